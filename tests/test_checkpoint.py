"""Checkpoints under every kind of trouble: full disks, kills, damaged and crafted files, odd words on the command line.

In this process and on the fake environment. That a resumed run goes on exactly is tested elsewhere.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import checkpoint
import files
import numpy as np
import pytest
import run_folder
import runs
import torch
from checkpoint import FOLDER, MANIFEST, CheckpointError, Checkpoints, State
from files import UNFINISHED
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

import envs.make
import envs.renderer
import replay_buffer
import train
from config import CHANGEABLE, CONFIG_FILE, CONFIG_TYPES, Config, UserError, parse_args
from replay_buffer import Batch, ReplayBuffer
from tests.support.runs import RecordingEnv
from tests.test_config import FLAGS
from tests.test_train import TINY

REAL_CHOOSE_RENDERER, REAL_MAKE_ENVIRONMENT = envs.renderer.choose_renderer, envs.make.make_environment
RENDERER = envs.renderer.RendererInfo("fake", "a fake renderer")
STEPS = 25  # agent steps of the run whose checkpoint is damaged here: it ends in the middle of its third episode
# What its checkpoint has: the first one, at step 0, had no frame for a piece of the replay buffer.
FILES = ("manifest.json", "replay_2.pt", "replay_3.pt", "replay_4.pt", "state_4.pt")


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class StrictEnv(RecordingEnv):
    """Refuses a crafted action as dm_control would, and not by an assertion."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError("no action")
        return super().step(action)


class Crash(BaseException):
    """The process ends here: nobody catches it, and nothing is cleaned up."""


# -- what the tests work with ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def fakes() -> Iterator[None]:
    """Fakes in the place of dm_control and of the disk's own delay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.make, "make_environment", lambda config: StrictEnv())
        patch.setattr(envs.renderer, "choose_renderer", lambda: RENDERER)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose budget is used up. Tests work on copies of it."""
    work_dir = tmp_path_factory.mktemp("finished")
    words = shlex.split(f"{TINY} --num_train_steps {STEPS} --checkpoint_frequency 8")
    assert call([*words, "--work_dir", str(work_dir)]).code == 0
    (folder,) = work_dir.glob("*/2*")
    assert tuple(sorted(path.name for path in (folder / FOLDER).iterdir())) == FILES
    return folder


class Answer(NamedTuple):
    """How the program ended, and the lines of its stderr."""

    code: Any
    lines: list[str]


def call(words: Sequence[str], function: Callable[[Sequence[str]], Any] = train.main) -> Answer:
    """`train.py` with these words, in this process. Any other exception than SystemExit gets through."""
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        try:
            code = function(words)
        except SystemExit as stopped:
            code = stopped.code
    return Answer(code, errors.getvalue().splitlines())


def resume(folder: Path, *words: str) -> Answer:
    return call(["--resume", str(folder), *words])


def assert_refused(answer: Answer, *named: str) -> None:
    """Exit code 2 and one line for it, in which each of `named` stands as a word; before it there are warnings only."""
    assert answer.code == 2, answer
    *warnings, last = answer.lines
    assert last.startswith("train.py: error: "), answer
    assert all(line.startswith("warning: ") for line in warnings), answer
    for words in named:
        assert re.search(rf"(?<!\w){re.escape(words)}(?!\w)", last), last


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All there is in a folder, with every file's bytes; but for the lock, which says who had it last."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != files.LOCK_FILE
    }


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    """A copy to work on, below a place of its own in which nothing else may change."""
    with tempfile.TemporaryDirectory() as place:
        copied = Path(place) / "outer" / "run"
        shutil.copytree(folder, copied)
        yield copied
        assert [path.name for path in Path(place).rglob("*") if copied not in (path, *path.parents)] == ["outer"]


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def put_file(folder: Path, name: str, data: bytes) -> None:
    """Put `data` into a checkpoint's file, and its length and checksum into the manifest."""
    manifest = read_json(folder / FOLDER / MANIFEST)
    for piece in (manifest["state"], *manifest["replay"]):
        if piece["name"] == name:
            piece |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / FOLDER / name).write_bytes(data)
    (folder / FOLDER / MANIFEST).write_bytes(checkpoint._sealed(manifest))


def load(path: Path) -> State:
    content = torch.load(path, weights_only=True)
    assert isinstance(content, dict)
    return content


def saved(content: Any) -> bytes:
    memory = io.BytesIO()
    torch.save(content, memory)
    return memory.getvalue()


def same(first: Any, second: Any) -> bool:
    """Equal in values and in types, tensors bit by bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and bytes_of(first) == bytes_of(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / FOLDER).iterdir()}


# -- a checkpoint is what was written ----------------------------------------------------------------------------------

DTYPES = (
    *(torch.uint8, torch.bool, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)


@st.composite
def tensors(draw: DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return torch.arange(int(np.prod(shape)), dtype=torch.int64).reshape(shape).to(draw(st.sampled_from(DTYPES)))


INTEGERS = st.integers(-(2**200), 2**200)  # PCG64 has 128 bits
LEAVES = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.text(max_size=5) | tensors()
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | INTEGERS, inner, max_size=4)
    ),
    max_leaves=20,
)


@fuzz(30)
@given(state=st.dictionaries(st.text(max_size=5), DATA, max_size=5), step=st.integers(0, 2**40))
def test_round_trip(state: State, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(Path(folder)).write(step, state, None)
        reader = Checkpoints(Path(folder))
        assert reader.step == -1
        assert same(reader.read(), state)
        assert reader.step == step
        assert list(reader.replay_pieces()) == []
        assert reader.saved_frames == 0


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    """Neither without its folder nor with an empty one, nor with what a kill left of the first file."""
    assert Checkpoints(tmp_path).read() is None
    (tmp_path / FOLDER).mkdir()
    assert Checkpoints(tmp_path).read() is None
    (tmp_path / FOLDER / f"state_1.pt{UNFINISHED}").write_bytes(b"half")
    reader = Checkpoints(tmp_path)
    assert reader.read() is None
    assert reader.step == -1


def test_the_next_one_replaces_it(tmp_path: Path) -> None:
    """Its files go; what somebody else put beside them stays, however much the name looks like one of ours."""
    writer = Checkpoints(tmp_path)
    writer.write(1, {"x": 1}, {"y": 1}, end=4)
    before = names(tmp_path)
    assert before == {MANIFEST, "state_1.pt", "replay_1.pt"}
    others = {"notes.txt", "state_1.pt.bak", "state_x.pt", "my_state_1.pt", "replay_1.ptt", "manifest.json.old", "mine"}
    for name in others - {"mine"}:
        (tmp_path / FOLDER / name).write_text("mine")
    (tmp_path / FOLDER / "mine").mkdir()
    (tmp_path / FOLDER / "mine" / "state_1.pt").write_text("mine")
    writer.write(2, {"x": 2}, None)
    assert writer.step == 2
    assert names(tmp_path) == others | {MANIFEST, "state_2.pt"}
    assert (tmp_path / FOLDER / "mine" / "state_1.pt").read_text() == "mine"
    reader = Checkpoints(tmp_path)
    assert reader.read() == {"x": 2}
    assert reader.step == 2


@pytest.mark.parametrize("reopened", [False, True])
def test_replay_pieces(tmp_path: Path, reopened: bool) -> None:
    """Each has what came since the one before, is never written again, and goes once its last frame is overwritten."""
    frames, held = 0, 12
    ends: list[int] = []
    seen: dict[str, tuple[bytes, int, int]] = {}
    writer = Checkpoints(tmp_path)
    for step, new in enumerate((5, 3, 0, 4, 1, 12, 2)):
        frames += new
        ends += [frames] if new else []
        oldest = max(0, frames - held)
        ends = [end for end in ends if end > oldest]
        if reopened:
            writer = Checkpoints(tmp_path)
            writer.read()
        writer.write(step, {"step": step}, {"end": frames}, oldest_frame=oldest, end=frames)
        assert writer.saved_frames == frames
        files = {path.name: path for path in (tmp_path / FOLDER).glob("replay_*")}
        assert len(files) == len(ends)
        for name, path in files.items():
            status = path.stat()
            now = (path.read_bytes(), status.st_mtime_ns, status.st_ino)
            assert seen.setdefault(name, now) == now
        reader = Checkpoints(tmp_path)
        assert reader.read() == {"step": step}
        assert [piece["end"] for piece in reader.replay_pieces()] == ends
        assert reader.saved_frames == frames
    assert ends == [25, 27]


def test_replay_pieces_may_come_and_go(tmp_path: Path) -> None:
    """A checkpoint without the replay buffer has none, and the next with it gets everything again."""
    writer = Checkpoints(tmp_path)
    writer.write(1, {}, {"first": 0}, end=5)
    writer.write(2, {}, None, oldest_frame=0, end=7)
    assert writer.saved_frames == 0
    assert names(tmp_path) == {MANIFEST, "state_2.pt"}
    writer.write(3, {}, {"first": 0}, end=8)
    assert names(tmp_path) == {MANIFEST, "state_3.pt", "replay_3.pt"}
    assert writer.saved_frames == 8


# -- full disks and kills ----------------------------------------------------------------------------------------------


@contextmanager
def failing(at: int, error: BaseException, *, deleting: bool = False) -> Iterator[list[str]]:
    """Raise `error` when the disk is used for the `at`-th time, counted from 0. Yields the uses so far, by name.

    These are a file's opening, a write (of which half arrives), a sync, a rename, and a deletion if `deleting`.
    """
    moments: list[str] = []

    def reach(name: str) -> None:
        moments.append(name)
        if len(moments) == at + 1:
            raise error

    class Torn(io.FileIO):
        def write(self, data: Any) -> int:
            try:
                reach("write")
            except BaseException:
                super().write(data[: len(data) // 2])
                raise
            return super().write(data)

    def before(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            reach(name)
            return function(*args, **kwargs)

        return instead

    def open_torn(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode != "wb":
            return path_open(path, mode, *args, **kwargs)
        reach("open")
        return Torn(path, "wb")

    path_open = Path.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_torn)
        patch.setattr(os, "open", before("open folder", os.open))
        patch.setattr(os, "fsync", before("sync", os.fsync))
        patch.setattr(os, "replace", before("rename", os.replace))
        if deleting:
            patch.setattr(Path, "unlink", before("delete", Path.unlink))
        yield moments


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Old(NamedTuple):
    """A folder with one checkpoint, or two, and the object that wrote it."""

    folder: Path
    writer: Checkpoints


OLD, NEW, NEWER = ({"step": step, "x": torch.full((40,), step)} for step in (1, 2, 3))
PIECES = ({"frames": 5}, {"frames": 9}, {"frames": 12})
ENDS = (5, 9, 12)


@contextmanager
def old_checkpoint() -> Iterator[Old]:
    with tempfile.TemporaryDirectory() as folder:
        writer = Checkpoints(Path(folder))
        writer.write(1, OLD, PIECES[0], end=ENDS[0])
        yield Old(Path(folder), writer)


def write_new(writer: Checkpoints) -> None:
    writer.write(2, NEW, PIECES[1], end=ENDS[1])


def write_newer(writer: Checkpoints) -> None:
    """With a piece of all that came since the last one that was completed."""
    writer.write(3, NEWER, {"frames": ENDS[2] - writer.saved_frames}, end=ENDS[2])


def whole(folder: Path) -> int:
    """The step of the checkpoint that is found there, after a look at all of it."""
    reader = Checkpoints(folder)
    state = reader.read()
    assert state is not None
    assert same(state, {1: OLD, 2: NEW, 3: NEWER}[reader.step])
    pieces = list(reader.replay_pieces())
    if reader.step < 3:
        assert pieces == list(PIECES[: reader.step])
    assert reader.saved_frames == ENDS[reader.step - 1]
    return reader.step


def moments_of_a_write() -> list[str]:
    with old_checkpoint() as old, failing(10**9, no_space(), deleting=True) as moments:
        write_new(old.writer)
    return moments


def decision() -> int:
    """The number of the moment that makes the new checkpoint the one there is: the manifest's rename."""
    return max(number for number, name in enumerate(moments_of_a_write()) if name == "rename")


def test_order_on_the_disk() -> None:
    """A file is synced before it gets its name, the names before the manifest's, and that before anything goes."""
    moments = moments_of_a_write()
    assert moments.count("rename") == 3
    for number, name in enumerate(moments):
        if name == "rename":
            assert moments[number - 2 : number] == ["write", "sync"]
            assert moments[number + 1 : number + 3] == ["open folder", "sync"]
    assert moments.index("delete") == decision() + 3
    assert set(moments[decision() + 3 :]) == {"delete"}


def refused_writes(first: int, last: int) -> Iterator[tuple[int, Old, OSError]]:
    """A second checkpoint that finds the disk full at each of these moments, one after the other."""
    for moment in range(first, last):
        with old_checkpoint() as old:
            with failing(moment, no_space()), pytest.raises(OSError, match="No space") as caught:
                write_new(old.writer)
            yield moment, old, caught.value


def test_full_disk_leaves_the_checkpoint_before() -> None:
    """Whole, alone and with its pieces; the error names a file, and the same object goes on when there is room."""
    count = 0
    for moment, old, error in refused_writes(0, decision() + 1):
        count += 1
        assert Path(str(error.filename)).parent == old.folder / FOLDER
        assert names(old.folder) == {MANIFEST, "state_1.pt", "replay_1.pt"}, moment
        assert whole(old.folder) == old.writer.step == 1
        write_new(old.writer)
        assert whole(old.folder) == old.writer.step == 2
        assert len(names(old.folder)) == 4
    assert count == decision() + 1 > 12


def test_failing_sync_after_the_decision() -> None:
    """Where only the last sync of the folder fails, the checkpoint that the manifest names is whole all the same."""
    for _, old, _ in refused_writes(decision() + 1, decision() + 3):
        assert not [name for name in names(old.folder) if name.endswith(UNFINISHED)]
        whole(old.folder)
        write_newer(old.writer)
        assert whole(old.folder) == 3


def kills(
    write: Callable[[Checkpoints], None], folder: Path, writer: Checkpoints, work: Path, first: int = 0, every: int = 1
) -> Iterator[int]:
    """Copies of the folder at `work`, each after a kill at one moment of a write. Yields the moment."""
    for moment in itertools.count(first, every):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        clone = copy.deepcopy(writer)
        clone.folder = work / FOLDER
        try:
            with failing(moment, Crash(), deleting=True):
                write(clone)
        except Crash:
            yield moment
        else:
            assert moment > decision()
            return


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """The old checkpoint is there up to the manifest's rename, the new one after; and what comes next cleans up."""
    seen = []
    with old_checkpoint() as old:
        for moment in kills(write_new, old.folder, old.writer, tmp_path / "work"):
            step = whole(tmp_path / "work")
            assert step == (1 if moment <= decision() else 2)
            seen.append(step)
            heir = Checkpoints(tmp_path / "work")
            heir.read()
            write_newer(heir)
            assert whole(tmp_path / "work") == 3
            listed = read_json(tmp_path / "work" / FOLDER / MANIFEST)
            expected = {piece["name"] for piece in (listed["state"], *listed["replay"])}
            assert names(tmp_path / "work") == expected | {MANIFEST}
    assert set(seen) == {1, 2}


def test_kill_after_a_kill(tmp_path: Path) -> None:
    """The leftovers of the first don't get in the way of what the second leaves."""
    with old_checkpoint() as old:
        for moment in kills(write_new, old.folder, old.writer, tmp_path / "first"):
            heir = Checkpoints(tmp_path / "first")
            heir.read()
            for _ in kills(write_newer, tmp_path / "first", heir, tmp_path / "second", moment % 3, 3):
                assert whole(tmp_path / "second") in (heir.step, 3)


def test_kill_after_a_full_disk(tmp_path: Path) -> None:
    """What failed before doesn't make a later kill dangerous."""
    for moment, old, _ in refused_writes(0, decision() + 3):
        for _ in kills(write_newer, old.folder, old.writer, tmp_path / "work", moment % 2, 2):
            whole(tmp_path / "work")


def test_kill_during_the_first_one(tmp_path: Path) -> None:
    """There is none then, or the new one; the next run doesn't take the leftovers for damage."""
    (tmp_path / "empty").mkdir()
    seen = set()
    for _ in kills(write_new, tmp_path / "empty", Checkpoints(tmp_path / "empty"), tmp_path / "work"):
        heir = Checkpoints(tmp_path / "work")
        state = heir.read()
        assert state is None or same(state, NEW)
        seen.add(state is None)
        write_newer(heir)
        assert whole(tmp_path / "work") == 3
        assert not [name for name in names(tmp_path / "work") if name.endswith(UNFINISHED)]
    assert True in seen


def test_full_disk_during_the_first_one(tmp_path: Path) -> None:
    for moment in range(decision() + 1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        writer = Checkpoints(folder)
        with failing(moment, no_space()), pytest.raises(OSError, match="No space"):
            write_new(writer)
        assert Checkpoints(folder).read() is None
        assert writer.step == -1
        write_new(writer)
        assert same(Checkpoints(folder).read(), NEW)


# -- damaged files -----------------------------------------------------------------------------------------------------


def truncated(share: float, extra: int = 0) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share) + extra])

    return damage


def flipped(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int((len(data) - 1) * share)] ^= 0x10
        path.write_bytes(data)

    return damage


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": truncated(0),
    "one byte": truncated(0, 1),
    "half": truncated(0.5),
    "one byte less": truncated(1, -1),
    "one byte more": lengthened,
    **{f"flipped at {share}": flipped(share) for share in (0, 0.01, 0.2, 0.4, 0.6, 0.8, 0.99, 1)},
    "removed": Path.unlink,
    "a folder": replaced_by_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint(finished: Path, name: str, damage: str) -> None:
    """One line that names the file, and nothing is changed."""
    with copy_of(finished) as folder:
        DAMAGES[damage](folder / FOLDER / name)
        before = snapshot(folder)
        assert_refused(resume(folder), "--resume", f"{FOLDER}/{name}")
        assert snapshot(folder) == before


def test_undamaged_checkpoint(finished: Path) -> None:
    """The other tests here would mean nothing otherwise."""
    with copy_of(finished) as folder:
        assert resume(folder) == (0, [])
        assert resume(folder, "--num_train_steps", "40") == (0, [])
        assert whole_step(folder) == 40


def whole_step(folder: Path) -> int:
    reader = Checkpoints(folder)
    assert reader.read() is not None
    assert list(reader.replay_pieces())
    return reader.step


def test_every_byte_of_the_manifest_counts(finished: Path) -> None:
    with copy_of(finished) as folder:
        path = folder / FOLDER / MANIFEST
        data = path.read_bytes()
        for number in range(len(data)):
            for bit in (0x01, 0x80):
                path.write_bytes(data[:number] + bytes([data[number] ^ bit]) + data[number + 1 :])
                with pytest.raises(CheckpointError, match=MANIFEST):
                    Checkpoints(folder).read()


@pytest.mark.parametrize("name", [FOLDER, f"{FOLDER}/state_4.pt"])
@pytest.mark.parametrize("what", ["a file", "a loop of links"])
def test_something_else_in_its_place(finished: Path, name: str, what: str) -> None:
    with copy_of(finished) as folder:
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
        if what == "a file":
            place.write_text("mine")
        else:
            place.symlink_to(place)
        assert_refused(resume(folder), "--resume", name)
        assert place.is_symlink() or place.read_text() == "mine"


def edited(text: str, name: str, value: str) -> str:
    """config.json with another text in the place of a flag's value."""
    return re.sub(rf'(?m)^( +"{name}": ).*?(,?)$', rf"\g<1>{value}\g<2>", text, count=1)


BAD_CONFIGS: dict[str, Callable[[str], str | None]] = {
    "empty": lambda text: "",
    "one byte": lambda text: text[:1],
    "half": lambda text: text[: len(text) // 2],
    "without its end": lambda text: text[:-2],
    "missing": lambda text: None,
    "no JSON": lambda text: "flags: 3\n",
    "deep": lambda text: "[" * 10**5,
    "a list": lambda text: "[]",
    "a number": lambda text: "3",
    "null": lambda text: "null",
    "no flags": lambda text: "{}",
    "a list of flags": lambda text: '{"flags": []}',
    "no flags but null": lambda text: '{"flags": null}',
    "an unknown flag": lambda text: text.replace('"lr":', '"xyzzy": 3,\n    "lr":', 1),
    "a flipped flag": lambda text: text.replace('"hidden_dim"', '"hidden_din"', 1),
    "a flipped digit": lambda text: edited(text, "discount", "0.98"),
    "a flipped letter": lambda text: edited(text, "env", '"cartpole_swinguq"'),
    "a flipped quote": lambda text: edited(text, "augmentation", '"shift'),
    "another number": lambda text: edited(text, "hidden_dim", "17"),
    "out of range": lambda text: edited(text, "critic_tau", "1.5"),
    "infinite": lambda text: edited(text, "lr", "Infinity"),
    "no number": lambda text: edited(text, "lr", "NaN"),
    "no whole number": lambda text: edited(text, "seed", "1.0"),
}
NAMED = {
    "an unknown flag": "xyzzy",
    "a flipped flag": "hidden_din",
    "a flipped digit": "--discount",
    "a flipped letter": "--env",
    "another number": "--hidden_dim",
    "out of range": "--critic_tau",
    "infinite": "--lr",
    "no number": "--lr",
    "no whole number": "seed",
}


@pytest.mark.parametrize("damage", BAD_CONFIGS)
def test_damaged_config(finished: Path, damage: str) -> None:
    with copy_of(finished) as folder:
        path = folder / CONFIG_FILE
        text = BAD_CONFIGS[damage](path.read_text())
        assert text != path.read_text()
        path.unlink() if text is None else path.write_text(text)
        before = snapshot(folder)
        assert_refused(resume(folder), NAMED.get(damage, CONFIG_FILE))
        assert snapshot(folder) == before


def with_flag(folder: Path, name: str, value: Any) -> None:
    record = read_json(folder / CONFIG_FILE)
    record["flags"][name] = value
    (folder / CONFIG_FILE).write_text(json.dumps(record))


@pytest.mark.parametrize("name", CONFIG_TYPES)
def test_flag_of_a_wrong_type(finished: Path, name: str) -> None:
    with copy_of(finished) as folder:
        values: list[Any] = [{}, [], [1], [1, 2, 3], ["a", "b"], 3 if CONFIG_TYPES[name] is str else "text"]
        for value in values:
            with_flag(folder, name, value)
            before = snapshot(folder)
            assert_refused(resume(folder), CONFIG_FILE, name)
            assert snapshot(folder) == before


# -- crafted files -----------------------------------------------------------------------------------------------------


def set_up(folder: Path, *words: str) -> bool:
    """Begin to resume, as far as the first step. True where that works; else it is refused by one line."""

    def begin(words: Sequence[str]) -> int:
        try:
            runs.setup(parse_args(words)).close()
        except UserError as error:
            return train._failed(str(error), 2)
        return 0

    answer = call(["--resume", str(folder), *words], begin)
    if answer.code != 0:
        assert_refused(answer)
    return answer.code == 0


@fuzz(24)
@given(
    name=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=5, unique_by=lambda e: e[0]),
    cut=st.floats(0, 1) | st.none(),
    sealed=st.booleans(),
)
def test_random_bytes(
    finished: Path, name: str, edits: list[tuple[float, int]], cut: float | None, sealed: bool
) -> None:
    """Refused by the checksums; and with checksums made to fit, read with care all the same."""
    with copy_of(finished) as folder:
        original = (folder / FOLDER / name).read_bytes()
        data = bytearray(original)
        for place, change in edits:
            data[int((len(data) - 1) * place)] ^= change
        if cut is not None:
            del data[int(len(data) * cut) :]
        if bytes(data) == original:
            return
        if sealed and name != MANIFEST:
            put_file(folder, name, bytes(data))
            set_up(folder)
            return
        (folder / FOLDER / name).write_bytes(data)
        before = snapshot(folder)
        assert_refused(resume(folder), name)
        assert snapshot(folder) == before


ODD_JSON: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 10**30, 10**400, -(10**400), 0.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from(
        ["", "../../etc/passwd", "/etc/passwd", "state_1.pt", "state_4.pt\n", "replay_2.pt", "..", "\ud800"]
    ),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], [{}], {"name": "state_4.pt"}, [None], ["state"]]),
)
ANY_JSON = st.recursive(
    ODD_JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
MANIFEST_KEYS = ("serial", "step", "state", "replay", "format", "more")
PIECE_KEYS = ("name", "bytes", "sha256", "end", "more")


@st.composite
def crafted_manifests(draw: DrawFn) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that makes one out of a good one."""
    removed = draw(st.sets(st.sampled_from(MANIFEST_KEYS), max_size=1))
    odd = draw(st.dictionaries(st.sampled_from(MANIFEST_KEYS), ODD_JSON | ANY_JSON, max_size=2))
    odd_piece = draw(st.dictionaries(st.sampled_from(PIECE_KEYS), ODD_JSON, max_size=2))
    piece_lacks = draw(st.sets(st.sampled_from(PIECE_KEYS), max_size=1))
    which = draw(st.integers(0, 3))

    def make(good: dict[str, Any]) -> dict[str, Any]:
        made = copy.deepcopy(good)
        pieces = [made["state"], *made["replay"]]
        pieces[which].update(odd_piece)
        for key in piece_lacks:
            pieces[which].pop(key, None)
        made |= odd
        return {key: value for key, value in made.items() if key not in removed}

    return make


@fuzz(60)
@given(craft=crafted_manifests())
def test_crafted_manifest(finished: Path, craft: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """With a checksum that fits. What is not refused is good enough to write the next checkpoint after."""
    with copy_of(finished) as folder:
        path = folder / FOLDER / MANIFEST
        path.write_bytes(checkpoint._sealed(craft(read_json(path))))
        reader = Checkpoints(folder)
        try:
            reader.read()
            list(reader.replay_pieces())
        except CheckpointError as error:
            message = str(error)
        else:
            set_up(folder)
            reader.write(30, {"x": 1}, {"y": 1}, end=max(28, reader.saved_frames) + 1)
            assert Checkpoints(folder).read() == {"x": 1}
            return
        assert str(folder / FOLDER) in message
        before = snapshot(folder)
        assert_refused(resume(folder))
        assert snapshot(folder) == before


@fuzz(60)
@given(content=ANY_JSON, sealed=st.booleans())
def test_any_json_as_manifest(content: Any, sealed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FOLDER / MANIFEST
        path.parent.mkdir()
        sealed = sealed and isinstance(content, dict)
        path.write_bytes(checkpoint._sealed(content) if sealed else json.dumps(content).encode())
        with pytest.raises(CheckpointError, match=MANIFEST):
            Checkpoints(Path(folder)).read()


def test_deep_manifest(tmp_path: Path) -> None:
    """Nested so deep that reading it, or only checking it, takes more stack than there is."""
    (tmp_path / FOLDER).mkdir()
    for depth in (10, *range(200, 1000, 50), 10**5):
        (tmp_path / FOLDER / MANIFEST).write_text('{"a":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(CheckpointError, match=MANIFEST):
            Checkpoints(tmp_path).read()


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a state; of long lists, to the beginning."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, (*path, key))
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content[:3]):
            yield from leaves(value, (*path, number))


REMOVED = object()


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value, or none, in one place."""
    if not path:
        return value
    step, *rest = path
    if isinstance(content, dict):
        made = dict(content)
        made[step] = changed(made[step], tuple(rest), value)
        return {key: item for key, item in made.items() if item is not REMOVED}
    items = list(content)
    items[step] = changed(items[step], tuple(rest), value)
    return type(content)(item for item in items if item is not REMOVED)


ODD_VALUES: tuple[Any, ...] = (
    *(REMOVED, None, True, 0, -1, 3, 2**63, 2**70, -(10**400), 0.5, 1e308, float("inf"), float("nan"), "", "text"),
    *([], {}, (), [1], {"a": 1}, torch.zeros(0), torch.zeros(3, dtype=torch.float64), torch.zeros(2, 2, 2)),
    *(torch.zeros(4, dtype=torch.uint8), torch.tensor(float("nan")), torch.tensor(-1), torch.tensor([[1 + 2j]])),
)


def craft_and_resume(finished: Path, name: str, data: st.DataObject) -> None:
    with copy_of(finished) as folder:
        content = load(folder / FOLDER / name)
        # Each top-level entry is as likely as the other, however much is in it.
        top = data.draw(st.sampled_from(sorted(content)))
        ways = [way for way in leaves(content) if way[0] == top and "modules" not in way[3:]]
        way = data.draw(st.sampled_from(ways) | st.sampled_from([way for way in ways if len(way) < 3]))
        content = changed(content, way, data.draw(st.sampled_from(ODD_VALUES)))
        put_file(folder, name, saved(content))
        set_up(folder)


def test_state_without_a_part(finished: Path) -> None:
    """Each part is needed, and none of it is taken for something else."""
    state = load(finished / FOLDER / "state_4.pt")
    for name in state:
        for value in (REMOVED, 3, [3]):
            if (name, value) == ("render_seconds", 3):
                continue
            with copy_of(finished) as folder:
                put_file(folder, "state_4.pt", saved(changed(state, (name,), value)))
                before = snapshot(folder)
                assert_refused(resume(folder), "--resume")
                assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["actor", "critic"])
@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "step"])
def test_optimizer_of_other_parameters(finished: Path, name: str, moment: str) -> None:
    """The fused kernel doesn't look at shapes: it would read and write beside the tensors."""
    state = load(finished / FOLDER / "state_4.pt")
    for value in (torch.zeros(2, 2, 2), torch.zeros(0), torch.tensor(1, dtype=torch.uint8), 3, REMOVED):
        with copy_of(finished) as folder:
            put_file(folder, "state_4.pt", saved(changed(state, ("agent", "optimizers", name, 0, moment), value)))
            before = snapshot(folder)
            assert_refused(resume(folder), "--resume")
            assert snapshot(folder) == before


@fuzz(35)
@given(data=st.data())
def test_crafted_state(finished: Path, data: st.DataObject) -> None:
    """With checksums that fit, and a value too few or of another kind: refused, or good enough to go on with."""
    craft_and_resume(finished, "state_4.pt", data)


@fuzz(20)
@given(name=st.sampled_from([name for name in FILES if name.startswith("replay")]), data=st.data())
def test_crafted_replay(finished: Path, name: str, data: st.DataObject) -> None:
    craft_and_resume(finished, name, data)


@pytest.mark.parametrize("content", [None, 3, [], torch.zeros(3), {}, {"flags": {}}])
@pytest.mark.parametrize("name", FILES[1:])
def test_something_else_in_a_file(finished: Path, name: str, content: Any) -> None:
    with copy_of(finished) as folder:
        put_file(folder, name, saved(content))
        before = snapshot(folder)
        assert_refused(resume(folder), "--resume")
        assert snapshot(folder) == before


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["whole", "inside", "plain pickle", "old format"])
@pytest.mark.parametrize("name", FILES[1:])
def test_nothing_is_unpickled(finished: Path, tmp_path: Path, name: str, form: str) -> None:
    trap, sprung = tmp_path / "sprung", tmp_path / "tried"
    pickle.loads(pickle.dumps(Trap(sprung))).close()
    assert sprung.exists()  # it works
    with copy_of(finished) as folder:
        good = load(folder / FOLDER / name)
        inside = {**good, next(iter(good)): Trap(trap)}
        old = io.BytesIO()
        torch.save(inside, old, _use_new_zipfile_serialization=False)
        forms = {
            "whole": saved(Trap(trap)),
            "inside": saved(inside),
            "plain pickle": pickle.dumps(inside),
            "old format": old.getvalue(),
        }
        put_file(folder, name, forms[form])
        before = snapshot(folder)
        assert_refused(resume(folder), name)
        assert snapshot(folder) == before
    assert not trap.exists()


def plain_data(content: Any) -> bool:
    if isinstance(content, dict):
        return all(plain_data(key) and plain_data(value) for key, value in content.items())
    if isinstance(content, (list, tuple)):
        return all(map(plain_data, content))
    return content is None or type(content) in (bool, int, float, str, torch.Tensor)


@pytest.mark.parametrize("name", FILES[1:])
def test_tensors_and_plain_data(finished: Path, name: str) -> None:
    """Any file of a checkpoint loads on its own, without trust."""
    content = torch.load(finished / FOLDER / name, weights_only=True)
    assert isinstance(content, dict)
    assert plain_data(content)


# -- the command line --------------------------------------------------------------------------------------------------

NAMES = (*CONFIG_TYPES, "task", "framestack")
ODD_WORDS = (
    *(
        "0",
        "1",
        "-1",
        "-0",
        "1e6",
        "1e308",
        "1e309",
        "-1e309",
        "9" * 400,
        "9" * 4300,
        "9" * 5000,
        "0x10",
        "1_000",
        "0.5",
    ),
    *("nan", "inf", "-inf", "+5", " 7 ", "", " ", "--", "-", "-5", "true", "False", "maybe", "auto", "none", "planet"),
    *("dreamer", "cpu", "cuda:99", "walker_run", "../../x", "é", "٣", "\U0001f600", "a\nb", "a\r\nb", "\x1b[31m", "\0"),
    *("x" * 20_000, "%s", "{}", "\udcff", "a\u2028b", "--seed", "--xyzzy\nx"),
)


def is_help(word: str) -> bool:
    return word.startswith(("-h", "--h"))


WORDS = (st.sampled_from(ODD_WORDS) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8)).filter(
    lambda word: not is_help(word)
)


@st.composite
def command_lines(draw: DrawFn, most: int = 4) -> list[str]:
    """Flags with odd values, flags without, values without, and flags that there aren't."""
    line = []
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from([name for name in NAMES if name != "resume"]))
        values = draw(st.lists(WORDS, min_size=1, max_size=2) if draw(st.integers(0, 5)) else st.just([]))
        form = draw(st.sampled_from(["words", "words", "words", "equals", "bare", "misspelt"]))
        if form == "equals" and values:
            line.append(f"--{name}={values[0]}")
        else:
            flag = {"bare": values[:1], "misspelt": [f"--{name}x"]}.get(form, [f"--{name}"])
            line += [*flag, *(values if name == "log_std_bounds" else values[:1])]
    return line


def assert_within_limits(config: Config) -> None:
    for field in dataclasses.fields(Config):
        value, kind, limits = getattr(config, field.name), CONFIG_TYPES[field.name], field.metadata
        if value is None:
            assert field.name in ("time_limit", "benchmark", "device", "resume", "finetune_from", "run_name")
            continue
        assert type(value) is (get_origin(kind) or kind), field.name
        for number in value if isinstance(value, tuple) else [value]:
            assert not isinstance(number, float) or np.isfinite(number), field.name
            assert limits["low"] is None or number >= limits["low"], field.name
            assert limits["above"] is None or number > limits["above"], field.name
            assert limits["high"] is None or number <= limits["high"], field.name
        assert not limits["choices"] or value in limits["choices"], field.name
    assert config.num_train_frames == config.num_train_steps * config.action_repeat
    assert config.log_std_bounds[0] < config.log_std_bounds[1]


def parsed(words: list[str]) -> Config | None:
    """The Config of these words; None where they are refused, which is by one line."""
    answer = call(words, parse_args)
    if isinstance(answer.code, Config):
        assert answer.lines == []
        return answer.code
    assert answer.code == 2
    assert len(answer.lines) == 1
    assert answer.lines[0].startswith("train.py: error: ")
    return None


@fuzz(250)
@given(words=command_lines())
def test_any_command_line(words: list[str]) -> None:
    """A Config within every limit, or one line."""
    config = parsed(words)
    if config is not None:
        assert_within_limits(config)
        dumped = json.loads(json.dumps(dataclasses.asdict(config)))  # as config.json has it
        assert dumped["seed"] == config.seed


@fuzz(120)
@given(words=command_lines(most=2))
def test_any_command_line_beside_resume(finished: Path, words: list[str]) -> None:
    """As without; and what may not change has not."""
    before = parse_args(["--resume", str(finished)])
    config = parsed(["--resume", str(finished), *words])
    if config is not None:
        assert_within_limits(config)
        assert not {name for name in differing(before, config) if name not in CHANGEABLE}


def differing(first: Config, second: Config) -> set[str]:
    return {name for name in CONFIG_TYPES if getattr(first, name) != getattr(second, name)}


@fuzz(40)
@given(place=WORDS)
@example(place="..")
@example(place="x" * 5000)
def test_any_folder_to_resume(place: str) -> None:
    """A folder that holds no run is refused, and nothing is made in it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = call([f"--resume={place}"])
        assert_refused(answer, "--resume")
        assert len(answer.lines) == 1
        assert not any(Path(folder).iterdir())


@pytest.fixture(scope="module")
def real_renderer() -> None:
    """Found before dm_control is imported here, which binds it then."""
    REAL_CHOOSE_RENDERER()


TASKS = ("../../x", "/x/y", "..", ".", "", "cartpole_swingup/../../x", "dmc_../x", "~/x", "a\nb", "x" * 5000, "a\0b")
TASK_PARTS = ("..", "/", "cartpole", "_", "swingup", "dmc_", "~", "\n", " ", "é", "\0", "$HOME")


@pytest.mark.usefixtures("real_renderer")
@fuzz(25)
@given(task=st.sampled_from(TASKS) | st.lists(st.sampled_from(TASK_PARTS), max_size=6).map("".join))
def test_task_that_is_a_path(task: str) -> None:
    """No task, so it is refused, and nothing is made: neither in --work_dir nor anywhere else."""
    if task.removeprefix("dmc_").removeprefix("dmc_") == "cartpole_swingup":
        return
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.make, "make_environment", REAL_MAKE_ENVIRONMENT)
        work_dir = Path(place) / "a" / "b" / "runs"
        answer = call([*shlex.split(TINY), f"--env={task}", "--work_dir", str(work_dir)])
        assert_refused(answer, "--env")
        assert not any(Path(place).iterdir())


@pytest.mark.parametrize("name", ["a b", "é", "-x", "$HOME", "a/../b", "a'b", "a\nb", "\U0001f600"])
def test_odd_work_dir(tmp_path: Path, name: str) -> None:
    """Everything goes where it says, and the run can be resumed there."""
    work_dir = tmp_path / "new" / name
    assert call([*shlex.split(TINY), "--num_train_steps=12", "--num_seed_steps=12", f"--work_dir={work_dir}"]).code == 0
    (folder,) = work_dir.glob("*/2*")
    outside = {path for path in tmp_path.rglob("*") if not path.resolve().is_relative_to(work_dir.resolve())}
    assert all(path.is_dir() for path in outside)
    assert call([f"--resume={folder}"]) == (0, [])


# -- what a resumed run refuses by name --------------------------------------------------------------------------------

OTHER_VALUES = {
    **{name: text for name, (_, text, _) in FLAGS.items()},
    "lr_discriminator": "5e-4",
    "temperature": "learned",
    "extrinsic_reward_coeff": "0.5",
    "diayn_intrinsic_reward_coeff": "0.5",
    "num_train_frames": "400",
    "eval_frequency": "10",
    "finetune_from": "elsewhere",
    "finetune_skill": "1",
    "finetune_critic": "scratch",
    "run_name": "another",
}
FIXED = [name for name in CONFIG_TYPES if name not in CHANGEABLE]


def test_changeable_are_flags() -> None:
    assert set(CONFIG_TYPES) >= CHANGEABLE
    assert set(CONFIG_TYPES) - set(OTHER_VALUES) == {"device", "resume"}


@pytest.mark.parametrize("name", FIXED)
def test_refuses_a_change(finished: Path, name: str) -> None:
    before = snapshot(finished)
    for flag in {name, {"env": "task", "frame_stack": "framestack"}.get(name, name)}:
        answer = resume(finished, f"--{flag}", *OTHER_VALUES[name].split())
        assert_refused(answer, f"--{name}")
        assert "differs" in answer.lines[0]
        assert len(answer.lines) == 1
    assert snapshot(finished) == before


@pytest.mark.parametrize("name", sorted(CHANGEABLE - {"device", "resume"}))
def test_takes_a_change(finished: Path, name: str) -> None:
    before = parse_args(["--resume", str(finished)])
    value = str(not getattr(before, name)) if CONFIG_TYPES[name] is bool else OTHER_VALUES[name]
    config = parse_args(["--resume", str(finished), f"--{name}", value])
    budget = {"num_train_steps", "num_train_frames"}
    assert differing(before, config) == (budget if name in budget else {name})


def test_goes_on_with_the_changes(finished: Path) -> None:
    """For real, and config.json has them then."""
    line = "--num_train_frames 160 --eval_frequency 10 --num_eval_episodes 2 --checkpoint_frequency 7 --deterministic "
    line += "--save_replay_buffer false --log_frequency_step 7 --cuda_graphs false --device cpu"
    with copy_of(finished) as folder:
        assert resume(folder, *shlex.split(line)) == (0, [])
        flags = read_json(folder / CONFIG_FILE)["flags"]
        given = parse_args(shlex.split(line))
        assert all(flags[name] == getattr(given, name) for name in ("num_eval_episodes", "eval_frequency", "device"))
        assert flags["num_train_steps"] == 40
        assert flags["resume"] is None
        assert names(folder) == {MANIFEST, *(name for name in names(folder) if name.startswith("state"))}
        assert "0,100" not in (folder / "eval.csv").read_text()
        answer = resume(folder, "--num_train_steps", "45")
        assert answer.code == 0
        assert any("replay buffer" in line for line in answer.lines)


def test_takes_equal_values(finished: Path) -> None:
    """However they are written."""
    before = parse_args(["--resume", str(finished)])
    line = (
        "--task dmc_cartpole_swingup --framestack 3 --lr 0.0010 --log_std_bounds -1e1 2 --seed 1e0 --temperature auto"
    )
    config = parse_args(["--resume", str(finished), *shlex.split(line)])
    assert config == before
    for name in FIXED:
        value = getattr(before, name)
        if value is not None:
            words = map(str, value) if isinstance(value, tuple) else [str(value)]
            assert parse_args(["--resume", str(finished), f"--{name}", *words]) == before


@pytest.mark.parametrize("beside", ["", "--batch_size 64", "--action_repeat 3", "--batch_size 512 --action_repeat 8"])
def test_equal_through_a_benchmark(tmp_path: Path, beside: str) -> None:
    """A run under --benchmark planet is resumed with it, without it, and with what it stands for."""
    first = parse_args(shlex.split(f"--benchmark planet --task dmc_cartpole_swingup {beside}"))
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"flags": dataclasses.asdict(first)}))
    spelt_out = f"--batch_size {first.batch_size} --action_repeat {first.action_repeat}"
    for words in ("", "--benchmark planet", spelt_out, f"--benchmark planet {beside} --env cartpole_swingup"):
        config = parse_args(["--resume", str(tmp_path), *shlex.split(words)])
        assert differing(first, config) == {"resume"}
    assert_refused(call(["--resume", str(tmp_path), "--benchmark", "dreamer"], parse_args), "--benchmark")


def test_checkpoints_follow_the_evaluations(tmp_path: Path) -> None:
    """Where they come at every evaluation, they do so when a resumed run evaluates more often."""
    never = "--eval_frequency 0 --checkpoint_frequency 0"
    for words, expected in (("", 50), ("--checkpoint_frequency 0", 0), ("--eval_frequency 0", 5000), (never, 0)):
        first = parse_args(["--eval_frequency", "100", *shlex.split(words)])
        (tmp_path / CONFIG_FILE).write_text(json.dumps({"flags": dataclasses.asdict(first)}))
        resumed = parse_args(["--resume", str(tmp_path), "--eval_frequency", "50"])
        assert resumed.checkpoint_frequency == expected
        assert parse_args(["--resume", str(tmp_path)]).checkpoint_frequency == first.checkpoint_frequency
        silent = parse_args(["--resume", str(tmp_path), "--eval_frequency", "0"])
        assert silent.checkpoint_frequency == first.checkpoint_frequency


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.002), ("seed", 2), ("log_std_bounds", [-9, 2]), ("time_limit", 8)]
)
def test_config_edited_by_hand(finished: Path, name: str, value: Any) -> None:
    """The checkpoint knows better."""
    with copy_of(finished) as folder:
        with_flag(folder, name, value)
        before = snapshot(folder)
        answer = resume(folder)
        assert_refused(answer, f"--{name}")
        assert "checkpoint" in answer.lines[-1]
        assert snapshot(folder) == before


@pytest.mark.parametrize("other", [0, 7, 10**30])
def test_another_format(finished: Path, monkeypatch: pytest.MonkeyPatch, other: int) -> None:
    """Both numbers are told, and the file."""
    with copy_of(finished) as folder:
        path = folder / FOLDER / MANIFEST
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "FORMAT", other)
            path.write_bytes(checkpoint._sealed(read_json(path)))
        before = snapshot(folder)
        assert_refused(resume(folder), f"{FOLDER}/{MANIFEST}", f"format {other}", f"reads {checkpoint.FORMAT}")
        assert snapshot(folder) == before


# -- crafted config.json -----------------------------------------------------------------------------------------------


@st.composite
def crafted_configs(draw: DrawFn) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that makes the text of a config.json out of a good one's: one thing in it is odd, or two."""
    flags = st.sampled_from(sorted(CONFIG_TYPES))
    others = st.sampled_from(["versions", "resumed", "renderer", "device", "git_commit", "more"])
    odd_flags = draw(st.just({}) | st.dictionaries(flags, ODD_JSON, min_size=1, max_size=1))
    lacking = draw(st.just(set()) | st.sets(flags, min_size=1, max_size=1))
    odd = draw(st.just({}) | st.dictionaries(others, ODD_JSON, min_size=1, max_size=1))

    def make(good: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in (good["flags"] | odd_flags).items() if name not in lacking}
        return good | odd | {"flags": kept}

    return make


@fuzz(30)
@given(craft=crafted_configs(), words=st.sampled_from(["", "--num_train_steps 40", "--num_train_frames 160"]))
def test_crafted_config(finished: Path, craft: Callable[[dict[str, Any]], dict[str, Any]], words: str) -> None:
    with copy_of(finished) as folder:
        (folder / CONFIG_FILE).write_text(json.dumps(craft(read_json(folder / CONFIG_FILE))))
        before = snapshot(folder)
        if not set_up(folder, *shlex.split(words)):
            assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["versions", "resumed"])
@pytest.mark.parametrize("value", [None, 3, [], {}, "text", [[]], {"torch": []}])
def test_rest_of_the_config(finished: Path, name: str, value: Any) -> None:
    """What is not needed to go on doesn't keep a run from it."""
    with copy_of(finished) as folder:
        record = read_json(folder / CONFIG_FILE) | {name: value}
        (folder / CONFIG_FILE).write_text(json.dumps(record))
        assert resume(folder).code == 0
        assert read_json(folder / CONFIG_FILE)["resumed"][-1]["frame"] == 4 * STEPS


def test_a_resume_writes_down_what_it_changes(finished: Path) -> None:
    with copy_of(finished) as folder:
        before = read_json(folder / CONFIG_FILE)["flags"]
        assert resume(folder, "--num_train_steps", "50") == (0, [])
        record = read_json(folder / CONFIG_FILE)
        assert record["resumed"][-1]["flags"] == {
            "num_train_steps": 50,
            "num_train_frames": record["flags"]["num_train_frames"],
        }
        assert record["flags"] == before | record["resumed"][-1]["flags"]


def test_config_without_the_budget(finished: Path) -> None:
    """Then the one on the command line is taken."""
    with copy_of(finished) as folder:
        record = read_json(folder / CONFIG_FILE)
        del record["flags"]["num_train_steps"]
        (folder / CONFIG_FILE).write_text(json.dumps(record))
        assert resume(folder, "--num_train_frames", "120") == (0, [])
        assert read_json(folder / CONFIG_FILE)["flags"]["num_train_steps"] == 30


@fuzz(25)
@given(place=st.floats(0, 1), change=st.integers(1, 255))
def test_random_byte_in_config(finished: Path, place: float, change: int) -> None:
    with copy_of(finished) as folder:
        data = bytearray((folder / CONFIG_FILE).read_bytes())
        data[int((len(data) - 1) * place)] ^= change
        (folder / CONFIG_FILE).write_bytes(data)
        before = snapshot(folder)
        if not set_up(folder):
            assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["env", "lr", "num_train_steps", "seed"])
def test_deep_flag(finished: Path, name: str) -> None:
    with copy_of(finished) as folder:
        text = (folder / CONFIG_FILE).read_text()
        for depth in (10, *range(100, 1100, 50)):
            (folder / CONFIG_FILE).write_text(edited(text, name, "[" * depth + "]" * depth))
            assert_refused(resume(folder), CONFIG_FILE)


# -- config.json is written as safely ----------------------------------------------------------------------------------


def test_full_disk_leaves_config(finished: Path) -> None:
    """The text that was there, up to the moment at which the new one is whole in its place."""
    for moment in range(6):
        with copy_of(finished) as folder:
            config, before = parse_args(["--resume", str(folder), "--num_train_steps", "40"]), snapshot(folder)
            with failing(moment, no_space()) as moments, pytest.raises(OSError, match="No space") as caught:
                run_folder.write_config(config, folder, RENDERER, resumed_at=100)
            assert Path(str(caught.value.filename)).parent == folder
            if "rename" in moments[:-1]:
                assert read_json(folder / CONFIG_FILE)["flags"]["num_train_steps"] == 40
                before[CONFIG_FILE] = (folder / CONFIG_FILE).read_bytes()
            assert snapshot(folder) == before


def test_full_disk_on_resume(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == CONFIG_FILE:
            raise no_space()
        replace(source, target)

    with copy_of(finished) as folder:
        before = snapshot(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            assert_refused(resume(folder, "--num_train_steps", "40"), "No space left on device")
        assert snapshot(folder) == before
        assert resume(folder, "--num_train_steps", "40") == (0, [])


def test_full_disk_at_a_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the file and with how to go on, which then works; the checkpoint before is still there."""
    with copy_of(finished) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", lambda self, *args, **kwargs: full_write(self, *args, **kwargs))
            answer = resume(folder, "--num_train_steps", "40")
        assert_refused(answer, "full", str(folder), f"--resume {folder}")
        assert whole_step(folder) == STEPS
        assert resume(folder) == (0, [])
        assert whole_step(folder) == 40


full_disk_write = Checkpoints.write


def full_write(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
    with failing(3, no_space()):
        full_disk_write(self, *args, **kwargs)


# -- the replay buffer's pieces ----------------------------------------------------------------------------------------

SHAPE = (3, 2, 2)


class Player:
    """Plays random episodes into replay buffers, the same into each."""

    def __init__(self, seed: int, frame_stack: int) -> None:
        self.rng, self.frame_stack = np.random.default_rng(seed), frame_stack
        self.frames: list[np.ndarray] = []
        self.left = 0  # steps of the running episode

    def play(self, buffers: Sequence[ReplayBuffer], length: Callable[[], int]) -> None:
        """One more frame."""
        frame = self.rng.integers(256, size=SHAPE, dtype=np.uint8)
        if self.left == 0:
            self.left = length()
            self.frames = [frame] * self.frame_stack
            for buffer in buffers:
                buffer.start_episode(np.concatenate(self.frames))
            return
        self.left -= 1
        self.frames = [*self.frames[1:], frame]
        action, reward = self.rng.standard_normal(2, dtype=np.float32), float(self.rng.standard_normal())
        terminated, skill = self.left == 0 and bool(self.rng.integers(2)), int(self.rng.integers(-1, 5))
        for buffer in buffers:
            buffer.add(action, reward, np.concatenate(self.frames), terminated, skill)


def save(buffer: ReplayBuffer, checkpoints: Checkpoints, step: int) -> None:
    part = buffer.transitions_since(checkpoints.saved_frames)
    frames = {"oldest_frame": buffer.oldest_frame, "end": buffer.frames_written}
    checkpoints.write(step, buffer.state_dict(), part, **frames)


def batches(buffer: ReplayBuffer) -> list[Batch]:
    """All there is, and some random ones."""
    if not len(buffer):
        return []
    return [*buffer.recent(len(buffer), 7), *(buffer.sample(size) for size in (1, 5, 16))]


def assert_equal_buffers(first: ReplayBuffer, second: ReplayBuffer) -> None:
    assert first.state_dict() == second.state_dict()
    for one, other in zip(batches(first), batches(second), strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
        assert one.obs.stride() == other.obs.stride()


@fuzz(18)
@given(
    capacity=st.integers(2, 70),
    frame_stack=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    saves=st.integers(1, 10),
    together=st.sampled_from([1, 2, 7, 256]),
)
def test_restored_replay_buffer(
    capacity: int, frame_stack: int, seed: int, lengths: list[int], gaps: list[int], saves: int, together: int
) -> None:
    """From increments saved at any moment it samples what the original does, now and later; and so does its heir."""
    make = (capacity, SHAPE, frame_stack, 2)
    buffers = [ReplayBuffer(*make, seed=1)]
    player, length, gap = Player(seed, frame_stack), itertools.cycle(lengths), itertools.cycle(gaps)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_buffer, "PACKED_TOGETHER", together)
        checkpoints = Checkpoints(Path(folder))
        for round_ in range(3):
            for step in range(saves):
                for _ in range(next(gap)):
                    player.play(buffers, lambda: next(length))
                save(buffers[0], checkpoints, 100 * round_ + step)
            checkpoints = Checkpoints(Path(folder))
            state = checkpoints.read()
            assert state is not None
            restored = ReplayBuffer(*make, seed=2)
            restored.load_state_dict(state)
            for piece in checkpoints.replay_pieces():
                restored.load_transitions(piece)
            assert_equal_buffers(buffers[0], restored)
            for _ in range(2 * capacity):  # and so that no stale row is left to hide behind
                player.play([buffers[0], restored], lambda: next(length))
            assert_equal_buffers(buffers[0], restored)
            buffers = [restored]


def test_ring_wraps_several_times(tmp_path: Path) -> None:
    """Then only the pieces that are still needed are kept, and all of the ring comes from them."""
    buffer, checkpoints = ReplayBuffer(20, SHAPE, 3, 2, seed=1), Checkpoints(tmp_path)
    player, lengths = Player(0, 3), itertools.cycle((3, 9, 5))
    for step in range(40):
        for _ in range(6):
            player.play([buffer], lambda: next(lengths))
        save(buffer, checkpoints, step)
        assert len(list((tmp_path / FOLDER).glob("replay_*"))) <= 5
    assert buffer.frames_written == 240 > 5 * buffer.frame_capacity
    restored = ReplayBuffer(20, SHAPE, 3, 2, seed=2)
    reader = Checkpoints(tmp_path)
    restored.load_state_dict(reader.read() or {})
    for piece in reader.replay_pieces():
        restored.load_transitions(piece)
    assert_equal_buffers(buffer, restored)


@fuzz(60)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 100),
    constant=st.booleans(),
)
def test_packed_frames(shape: tuple[int, ...], seed: int, constant: bool) -> None:
    array = np.random.default_rng(seed).integers(256, size=(1, *shape[1:]) if constant else shape, dtype=np.uint8)
    frames = torch.from_numpy(np.broadcast_to(array, shape).copy())
    before = frames.clone()
    assert same(replay_buffer._unpack(replay_buffer._pack(frames), shape), frames)
    assert torch.equal(frames, before)


def test_packed_frames_that_do_not_fit() -> None:
    shape = (3, 3, 2, 2)
    packed = replay_buffer._pack(torch.zeros(shape, dtype=torch.uint8))
    for wrong in (packed[:-8], packed[:0], packed + 1, replay_buffer._pack(torch.zeros(2, *shape[1:]).byte())):
        with pytest.raises(ValueError, match=r"\w"):
            replay_buffer._unpack(wrong, shape)


def test_a_checkpoint_that_is_being_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.Checkpoints(tmp_path).write(3, {"step": 3}, None)
    read, failures = checkpoint.Checkpoints._read_piece, [checkpoint.CheckpointError("missing")] * 2

    def torn(self: Any, piece: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(self, piece)

    monkeypatch.setattr(checkpoint.Checkpoints, "_read_piece", torn)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert checkpoint.read_newest(tmp_path) == {"step": 3}
