"""Checkpoints on the disk: what is written and in which order, full disks, kills, damaged and crafted files.

The damage is shown to `train.py --resume` in this process, with fake environments.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from errors import CheckpointError
from running import checkpoint
from running.atomic_files import UNFINISHED
from running.checkpoint import Checkpoints, State, read_newest
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from tests.support.disk import (
    Crash,
    checkpoint_files,
    copy_of,
    failing,
    load_piece,
    no_space,
    put_file,
    put_manifest,
    read_json,
    saved,
    snapshot,
)
from tests.support.fuzz import ANY_JSON, ODD_JSON, fuzz
from tests.support.labs import FINISHED_FILES, same
from tests.support.program import assert_refused, can_open, resume

# -- what is read is what was written ----------------------------------------------------------------------------------

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
    """Without its folder, with an empty one, and with what a kill left of the first file."""
    assert Checkpoints(tmp_path).read() is None
    (tmp_path / CHECKPOINT_FOLDER).mkdir()
    assert Checkpoints(tmp_path).read() is None
    (tmp_path / CHECKPOINT_FOLDER / f"state_1.pt{UNFINISHED}").write_bytes(b"half")
    reader = Checkpoints(tmp_path)
    assert reader.read() is None
    assert reader.step == -1


def test_a_new_checkpoint_replaces_the_old_one(tmp_path: Path) -> None:
    """The old files are removed; files of other origin stay, even if their names are similar."""
    writer = Checkpoints(tmp_path)
    writer.write(1, {"x": 1}, {"y": 1}, end=4)
    assert checkpoint_files(tmp_path) == {MANIFEST_FILE, "state_1.pt", "replay_1.pt"}
    others = {"notes.txt", "state_1.pt.bak", "state_x.pt", "my_state_1.pt", "replay_1.ptt", "manifest.json.old", "mine"}
    for name in others - {"mine"}:
        (tmp_path / CHECKPOINT_FOLDER / name).write_text("mine")
    (tmp_path / CHECKPOINT_FOLDER / "mine").mkdir()
    (tmp_path / CHECKPOINT_FOLDER / "mine" / "state_1.pt").write_text("mine")
    writer.write(2, {"x": 2}, None)
    assert writer.step == 2
    assert checkpoint_files(tmp_path) == others | {MANIFEST_FILE, "state_2.pt"}
    assert (tmp_path / CHECKPOINT_FOLDER / "mine" / "state_1.pt").read_text() == "mine"
    reader = Checkpoints(tmp_path)
    assert reader.read() == {"x": 2}
    assert reader.step == 2


@pytest.mark.parametrize("reopened", [False, True])
def test_replay_pieces(tmp_path: Path, reopened: bool) -> None:
    """Each piece holds what is new, is written once, and is removed when its last frame is overwritten."""
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
        files = {path.name: path for path in (tmp_path / CHECKPOINT_FOLDER).glob("replay_*")}
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


def test_saving_the_replay_buffer_again(tmp_path: Path) -> None:
    """A checkpoint without the replay buffer has no piece; the next one with it needs all frames."""
    writer = Checkpoints(tmp_path)
    writer.write(1, {}, {"first": 0}, end=5)
    writer.write(2, {}, None, oldest_frame=0, end=7)
    assert writer.saved_frames == 0
    assert checkpoint_files(tmp_path) == {MANIFEST_FILE, "state_2.pt"}
    writer.write(3, {}, {"first": 0}, end=8)
    assert checkpoint_files(tmp_path) == {MANIFEST_FILE, "state_3.pt", "replay_3.pt"}
    assert writer.saved_frames == 8


def test_a_checkpoint_that_is_being_replaced_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(tmp_path).write(3, {"step": 3}, None)
    read, failures = Checkpoints._read_piece, [CheckpointError("missing")] * 2

    def torn(self: Any, piece: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(self, piece)

    monkeypatch.setattr(Checkpoints, "_read_piece", torn)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert read_newest(tmp_path) == {"step": 3}


# -- full disks and kills ----------------------------------------------------------------------------------------------


class Old(NamedTuple):
    """A folder with a checkpoint, and the object that wrote it."""

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
    """Write a piece of everything since the last checkpoint that was completed."""
    writer.write(3, NEWER, {"frames": ENDS[2] - writer.saved_frames}, end=ENDS[2])


def complete_step(folder: Path) -> int:
    """Return the step of the folder's checkpoint after checking all of it."""
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
    """Return the number of the moment that makes the new checkpoint the valid one: the manifest's rename."""
    return max(number for number, name in enumerate(moments_of_a_write()) if name == "rename")


def test_order_on_the_disk() -> None:
    """A file is synced before its rename, renames before the manifest's, and that before any deletion."""
    moments = moments_of_a_write()
    assert moments.count("rename") == 3
    for number, name in enumerate(moments):
        if name == "rename":
            assert moments[number - 2 : number] == ["write", "sync"]
            assert moments[number + 1 : number + 3] == ["open folder", "sync"]
    assert moments.index("delete") == decision() + 3
    assert set(moments[decision() + 3 :]) == {"delete"}


def refused_writes(first: int, last: int) -> Iterator[tuple[int, Old, OSError]]:
    """Write a second checkpoint with the disk full at each of these moments, one after the other."""
    for moment in range(first, last):
        with old_checkpoint() as old:
            with failing(moment, no_space()), pytest.raises(OSError, match="No space") as caught:
                write_new(old.writer)
            yield moment, old, caught.value


def test_a_full_disk_leaves_the_checkpoint_before() -> None:
    """It is complete, with no other files; the error names a file; the same object can write when there is room."""
    count = 0
    for moment, old, error in refused_writes(0, decision() + 1):
        count += 1
        assert Path(str(error.filename)).parent == old.folder / CHECKPOINT_FOLDER
        assert checkpoint_files(old.folder) == {MANIFEST_FILE, "state_1.pt", "replay_1.pt"}, moment
        assert complete_step(old.folder) == old.writer.step == 1
        write_new(old.writer)
        assert complete_step(old.folder) == old.writer.step == 2
        assert len(checkpoint_files(old.folder)) == 4
    assert count == decision() + 1 > 12


def test_a_failing_sync_after_the_decision() -> None:
    """If only the last sync of the folder fails, the checkpoint named by the manifest is complete."""
    for _, old, _ in refused_writes(decision() + 1, decision() + 3):
        assert not [name for name in checkpoint_files(old.folder) if name.endswith(UNFINISHED)]
        complete_step(old.folder)
        write_newer(old.writer)
        assert complete_step(old.folder) == 3


def kills(
    write: Callable[[Checkpoints], None], folder: Path, writer: Checkpoints, work: Path, first: int = 0, every: int = 1
) -> Iterator[int]:
    """Copy the folder to `work` and kill a write at one moment, for each moment. Yields the moment."""
    for moment in itertools.count(first, every):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        clone = copy.deepcopy(writer)
        clone.folder = work / CHECKPOINT_FOLDER
        try:
            with failing(moment, Crash(), deleting=True):
                write(clone)
        except Crash:
            yield moment
        else:
            assert moment > decision()
            return


def test_kill_at_any_moment(tmp_path: Path) -> None:
    """The old checkpoint is valid up to the manifest's rename, then the new one; the next write cleans up."""
    seen, work = [], tmp_path / "work"
    with old_checkpoint() as old:
        for moment in kills(write_new, old.folder, old.writer, work):
            step = complete_step(work)
            assert step == (1 if moment <= decision() else 2)
            seen.append(step)
            heir = Checkpoints(work)
            heir.read()
            write_newer(heir)
            assert complete_step(work) == 3
            listed = read_json(work / CHECKPOINT_FOLDER / MANIFEST_FILE)
            expected = {piece["name"] for piece in (listed["state"], *listed["replay"])}
            assert checkpoint_files(work) == expected | {MANIFEST_FILE}
    assert set(seen) == {1, 2}


def test_kill_after_a_kill(tmp_path: Path) -> None:
    """The files that the first left do not interfere with those of the second."""
    with old_checkpoint() as old:
        for moment in kills(write_new, old.folder, old.writer, tmp_path / "first"):
            heir = Checkpoints(tmp_path / "first")
            heir.read()
            for _ in kills(write_newer, tmp_path / "first", heir, tmp_path / "second", moment % 3, 3):
                assert complete_step(tmp_path / "second") in (heir.step, 3)


def test_kill_after_a_full_disk(tmp_path: Path) -> None:
    for moment, old, _ in refused_writes(0, decision() + 3):
        for _ in kills(write_newer, old.folder, old.writer, tmp_path / "work", moment % 2, 2):
            complete_step(tmp_path / "work")


def test_kill_during_the_first_checkpoint(tmp_path: Path) -> None:
    """There is none then, or the new one; the next run does not take the leftovers for damage."""
    (tmp_path / "empty").mkdir()
    seen, work = set(), tmp_path / "work"
    for _ in kills(write_new, tmp_path / "empty", Checkpoints(tmp_path / "empty"), work):
        heir = Checkpoints(work)
        state = heir.read()
        assert state is None or same(state, NEW)
        seen.add(state is None)
        write_newer(heir)
        assert complete_step(work) == 3
        assert not [name for name in checkpoint_files(work) if name.endswith(UNFINISHED)]
    assert True in seen


def test_a_full_disk_during_the_first_checkpoint(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("name", FINISHED_FILES)
def test_damaged_checkpoint(finished: Path, name: str, damage: str) -> None:
    """One line names the file, and nothing is changed."""
    with copy_of(finished) as folder:
        DAMAGES[damage](folder / CHECKPOINT_FOLDER / name)
        before = snapshot(folder)
        assert_refused(resume(folder), "--resume", f"{CHECKPOINT_FOLDER}/{name}")
        assert snapshot(folder) == before


def test_undamaged_checkpoint(finished: Path) -> None:
    """The tests of damage mean something only if this passes."""
    with copy_of(finished) as folder:
        assert resume(folder) == (0, [])
        assert resume(folder, "--num_train_steps", "40") == (0, [])
        reader = Checkpoints(folder)
        assert reader.read() is not None
        assert list(reader.replay_pieces())
        assert reader.step == 40


def test_every_byte_of_the_manifest_counts(finished: Path) -> None:
    with copy_of(finished) as folder:
        path = folder / CHECKPOINT_FOLDER / MANIFEST_FILE
        data = path.read_bytes()
        for number in range(len(data)):
            for bit in (0x01, 0x80):
                path.write_bytes(data[:number] + bytes([data[number] ^ bit]) + data[number + 1 :])
                with pytest.raises(CheckpointError, match=MANIFEST_FILE):
                    Checkpoints(folder).read()


@pytest.mark.parametrize("name", [CHECKPOINT_FOLDER, f"{CHECKPOINT_FOLDER}/state_4.pt"])
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


@pytest.mark.parametrize("other", [0, 7, 10**30])
def test_another_format(finished: Path, monkeypatch: pytest.MonkeyPatch, other: int) -> None:
    """The message has both numbers and the file."""
    with copy_of(finished) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "FORMAT", other)
            put_manifest(folder, read_json(folder / CHECKPOINT_FOLDER / MANIFEST_FILE))
        before = snapshot(folder)
        assert_refused(
            resume(folder), f"{CHECKPOINT_FOLDER}/{MANIFEST_FILE}", f"format {other}", f"reads {checkpoint.FORMAT}"
        )
        assert snapshot(folder) == before


# -- crafted files -----------------------------------------------------------------------------------------------------


MANIFEST_KEYS = ("serial", "step", "state", "replay", "format", "more")
PIECE_KEYS = ("name", "bytes", "sha256", "end", "more")


@st.composite
def crafted_manifests(draw: DrawFn) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that changes a good manifest."""
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
    """Its checksum fits. If it is not refused, the next checkpoint can be written after it."""
    with copy_of(finished) as folder:
        put_manifest(folder, craft(read_json(folder / CHECKPOINT_FOLDER / MANIFEST_FILE)))
        reader = Checkpoints(folder)
        try:
            reader.read()
            list(reader.replay_pieces())
        except CheckpointError as error:
            message = str(error)
        else:
            can_open(folder)
            reader.write(30, {"x": 1}, {"y": 1}, end=max(28, reader.saved_frames) + 1)
            assert Checkpoints(folder).read() == {"x": 1}
            return
        assert str(folder / CHECKPOINT_FOLDER) in message
        before = snapshot(folder)
        assert_refused(resume(folder))
        assert snapshot(folder) == before


@fuzz(60)
@given(content=ANY_JSON, sealed=st.booleans())
def test_any_json_as_manifest(content: Any, sealed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CHECKPOINT_FOLDER / MANIFEST_FILE
        path.parent.mkdir()
        if sealed and isinstance(content, dict):
            put_manifest(Path(folder), content)
        else:
            path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=MANIFEST_FILE):
            Checkpoints(Path(folder)).read()


def test_deeply_nested_manifest(tmp_path: Path) -> None:
    """Reading it, or only checking it, takes more stack than there is."""
    (tmp_path / CHECKPOINT_FOLDER).mkdir()
    for depth in (10, *range(200, 1000, 50), 10**5):
        (tmp_path / CHECKPOINT_FOLDER / MANIFEST_FILE).write_text('{"a":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(CheckpointError, match=MANIFEST_FILE):
            Checkpoints(tmp_path).read()


@pytest.mark.parametrize("content", [None, 3, [], torch.zeros(3), {}, {"flags": {}}])
@pytest.mark.parametrize("name", FINISHED_FILES[1:])
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
@pytest.mark.parametrize("name", FINISHED_FILES[1:])
def test_nothing_is_unpickled(finished: Path, tmp_path: Path, name: str, form: str) -> None:
    trap, sprung = tmp_path / "sprung", tmp_path / "tried"
    pickle.loads(pickle.dumps(Trap(sprung))).close()
    assert sprung.exists()  # the trap works
    with copy_of(finished) as folder:
        good = load_piece(folder / CHECKPOINT_FOLDER / name)
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


def is_plain_data(content: Any) -> bool:
    if isinstance(content, dict):
        return all(is_plain_data(key) and is_plain_data(value) for key, value in content.items())
    if isinstance(content, (list, tuple)):
        return all(map(is_plain_data, content))
    return content is None or type(content) in (bool, int, float, str, torch.Tensor)


@pytest.mark.parametrize("name", FINISHED_FILES[1:])
def test_tensors_and_plain_data(finished: Path, name: str) -> None:
    """Every file of a checkpoint can be loaded on its own with `weights_only`."""
    content = torch.load(finished / CHECKPOINT_FOLDER / name, weights_only=True)
    assert isinstance(content, dict)
    assert is_plain_data(content)
