"""Random command lines and damaged runs, for every program: each works, or is refused in one line and leaves nothing.

An exception that a program does not answer itself fails the test.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from matplotlib.figure import Figure

import envs.make
import evaluate
import plot
import report
import sweep
import sweeping.plan
import train
import utils
from config import Config
from dmc import resolve_task
from envs.parallel import open_eval_envs
from evaluation import curves
from evaluation.evaluate_skills import Evaluation
from running import build, checkpoint, loop
from running.checkpoint import FOLDER, MANIFEST
from running.stored_config import CONFIG_FILE
from sweeping.record import SWEEP_FILE
from tests.support.command_lines import TRAIN_FLAGS, Flags, command_lines, parsed
from tests.support.damage import damaged_bytes, damaged_json, damaged_state, damaged_table
from tests.support.disk import copy_of, load_piece, put_file, put_manifest, read_json, saved, snapshot
from tests.support.fuzz import check_all, fast_and_slow
from tests.support.program import Answer, call
from tests.support.runs import RENDERER, SMALL_RUN, SeededEnv
from tests.support.sweeps import sweep_of_seeds

pytestmark = pytest.mark.usefixtures("programs")
SMALL = 64  # of sizes, so that a line that works takes little time


class SizedEnv(SeededEnv):
    """A fake environment for every task of the suite, with the sizes that are asked for."""

    def __init__(self, name: str, *, image_size: int, frame_stack: int, **_: Any) -> None:
        resolve_task(name)
        super().__init__(ragged=True, image_size=image_size, frame_stack=frame_stack)


class InProcess:
    """In place of a pool of processes."""

    def __init__(self, *_: object) -> None:
        self.map = map


@pytest.fixture(scope="module")
def programs(renderer: object) -> Iterator[None]:
    """The programs with fake environments, without worker processes, pictures and Ray; train.py takes no step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.make, "DMCEnv", SizedEnv)
        patch.setattr(build, "open_eval_envs", lambda factory, episodes, workers: open_eval_envs(factory, episodes))
        patch.setattr(sweeping.plan, "ProcessPoolExecutor", lambda *_: nullcontext(InProcess()))
        patch.setattr(sweeping.plan, "do_without_renderer", lambda: None)
        patch.setattr(sweep, "run_on_ray", lambda *_: None)
        for program in (train, evaluate):
            patch.setattr(program, "choose_renderer", lambda: RENDERER)
        patch.setattr(Evaluation, "pictures", lambda self, frame: {"picture": np.zeros((8, 8, 3), np.uint8)})
        patch.setattr(Figure, "savefig", lambda self, file, **settings: None)
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(checkpoint, "READ_AGAIN", 0)
        for module in (utils, checkpoint, build):  # to ask the system takes a millisecond
            patch.setattr(module, "free_memory", lambda: 10**10)
        yield


@pytest.fixture(scope="module")
def small_run(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with few tensors, as most of the time is spent on reading them."""
    work_dir = tmp_path_factory.mktemp("small")
    line = f"{SMALL_RUN} --num_skills 2 --hidden_depth 1 --discriminator_encoder shared --num_train_steps 20"
    assert train.main(shlex.split(f"{line} --work_dir {work_dir} --run_name run")) == 0
    return work_dir / "cartpole_swingup" / "run"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train", lambda run: None)


def assert_one_line(program: str, answer: Answer) -> None:
    """Check for exit code 2 and one line of error, after nothing but warnings."""
    assert answer.code == 2, answer
    *before, last = answer.lines
    assert last.startswith(f"{program}.py: error: "), answer
    assert len(last) < 3000
    assert all(line.startswith(("warning: ", "left out: ")) for line in before), answer


# -- command lines -----------------------------------------------------------------------------------------------------

DAMAGED = {
    "cut": f"{FOLDER}/state_*.pt",
    "no_manifest": f"{FOLDER}/{MANIFEST}",
    "no_config": CONFIG_FILE,
    "no_table": "eval.csv",
}
PLACES = ("good", *DAMAGED, "good/checkpoint", "good/config.json", "good/eval.csv", "sweep", "empty", "nowhere", ".")


@pytest.fixture(scope="module")
def work(small_run: Path, programs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, damaged copies of it, and a sweep. Lines with "../.." stay within the folders around it."""
    place = tmp_path_factory.mktemp("work") / "a" / "b" / "c" / "work"
    shutil.copytree(small_run, place / "good")
    for name, pattern in DAMAGED.items():
        (file,) = Path(shutil.copytree(small_run, place / name)).glob(pattern)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (place / "empty").mkdir()
    (place / "sweep").mkdir()
    sweep_of_seeds(place / "sweep").write()
    line = [str(place / "good"), "--device", "cpu", "--no_video", "--skills", "1", "--save_trajectories"]
    assert call([*line, "--out", str(place / "played")], evaluate.main).code == 0
    shutil.copy(next((place / "played").glob("*.npz")), place / "trajectory.npz")
    shutil.rmtree(place / "played")
    (place / "reference.csv").write_text("env,seed,step,episode_reward\ncartpole_swingup,1,0,5\n")
    return place


RUNS: Flags = {"resume": ["good", "cut"], "finetune_from": ["good"], "config": ["good/config.json"]}
FLAGS_OF: dict[str, Flags] = {
    "train": {**TRAIN_FLAGS, **RUNS},
    "evaluate": {
        **{"skills": ["all", "best", "1", "1,0"], "episodes": ["1", "2"], "seed": ["7"], "video_size": ["32"]},
        **{"no_video": [], "save_trajectories": [], "skill_schedule": ["0:3,1:2", "random:2"], "device": ["cpu"]},
        **{"imitate": ["trajectory.npz", "good/config.json"], "out": ["out"], "controls": [], "sample": []},
    },
    "plot": {"out": ["out"], "reference": ["reference.csv", "good/eval.csv"]},
    "report": {"out": ["out.html", "out"], "evaluation": ["good", "out"]},
    "sweep": {
        **{name: values for name, values in {**TRAIN_FLAGS, **RUNS}.items() if name != "run_name"},
        **{"seed": ["1 2"], "resume": ["sweep", "good"], "dry_run": [], "sweep_name": ["s"], "address": ["auto"]},
        **{"cpus_per_run": ["0.5"], "gpus_per_run": ["0"], "memory_per_run": ["1.5"], "max_failures": ["2"]},
    },
}
MAIN: dict[str, Callable[[Sequence[str]], int]] = {
    **{"train": train.main, "evaluate": evaluate.main, "plot": plot.main, "report": report.main, "sweep": sweep.main}
}
# Before the random words, which win over these.
FIRST = {
    "train": shlex.split("--image_size 24 --hidden_dim 16 --encoder_feature_dim 8 --log_save_tb false"),
    "evaluate": ["--no_video", "--video_size", "32"],
    "plot": [],
    "report": [],
    "sweep": [],
}


@pytest.mark.parametrize("program", MAIN)
def test_no_flag_is_forgotten(
    program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # no line is broken
    with pytest.raises(SystemExit, match="0"):
        MAIN[program](["--help"])
    described = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert described
    assert described <= FLAGS_OF[program].keys()


@st.composite
def lines_of(draw: DrawFn, program: str) -> list[str]:
    words = [word for word in PLACES if word != "." or program not in ("plot", "report")]
    line = draw(command_lines(FLAGS_OF[program], words=words, several=program == "sweep"))
    if program in ("evaluate", "plot", "report"):
        line = draw(st.sampled_from([["good"], ["good"], *([word] for word in words), []])) + line
    return line


def is_small(config: Config) -> bool:
    """Return whether a run can be opened in little time."""
    sizes = (config.image_size, config.hidden_dim, config.encoder_feature_dim, config.skill_embedding_dim)
    return max(*sizes, config.frame_stack, config.num_skills, config.hidden_depth) <= SMALL


def is_soon_over(words: Sequence[str]) -> bool:
    """Return whether evaluate.py would refuse these words, or soon be ready."""
    try:
        args = evaluate.parse_args(words)
    except SystemExit:
        return True
    return bool(args.episodes <= 3 and args.video_size <= SMALL)


@fast_and_slow()
@pytest.mark.parametrize("program", MAIN)
@pytest.mark.usefixtures("untrained")
def test_any_command_line(program: str, examples: int, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setattr(curves, "draw_task", lambda *_: [])  # drawn in tests/test_plot_damaged.py
    around = work.parents[3]
    before = snapshot(around)

    def check(words: list[str]) -> None:
        words = [*FIRST[program], *words]
        if program == "train":
            config = parsed(words)
            if config is not None and not is_small(config):
                return
        elif program == "evaluate" and not is_soon_over(words):
            return
        answer = call(words, MAIN[program])
        if answer.code in (0, 1):
            assert answer.code == 0 or program == "sweep", answer  # which has runs that are not finished
            restore(around, before)
        else:
            assert_one_line(program, answer)
            assert snapshot(around) == before

    check_all(examples, check, words=lines_of(program))


def restore(around: Path, before: dict[str, bytes | None]) -> None:
    """Remove and write back what a program that worked has made and changed."""
    for path in sorted(around.rglob("*"), reverse=True):
        if str(path.relative_to(around)) not in before:
            path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
    for name, data in before.items():
        if data is not None and (around / name).read_bytes() != data:
            (around / name).write_bytes(data)


# -- damaged runs ------------------------------------------------------------------------------------------------------


@functools.cache
def content_of(path: Path) -> dict[str, Any]:
    """Return the content of a file of a checkpoint."""
    return load_piece(path)


@st.composite
def changes_of(draw: DrawFn, folder: Path) -> dict[str, Any]:
    """Draw new contents of one or two files of a run, by name: bytes, a checkpoint's content, or None to remove it."""
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".pt")
    )
    changes: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        path = folder / name
        ways = {
            ".json": lambda path: damaged_json(read_json(path)),
            ".csv": lambda path: damaged_table(path.read_bytes()),
            ".pt": lambda path: damaged_state(content_of(path)) | damaged_bytes(path.read_bytes()),
        }
        changes[name] = draw(ways[path.suffix](path)) if draw(st.integers(0, 15)) else None
    return changes


def damage(folder: Path, changes: dict[str, Any], *, sealed: bool) -> None:
    """Change a run's files; if `sealed`, with checksums that fit."""
    for name, content in sorted(changes.items(), key=lambda change: change[0].endswith(MANIFEST)):
        path = folder / name
        data = saved(content) if isinstance(content, dict) else content
        if data is None:
            path.unlink()
        elif sealed and path.suffix == ".pt":
            put_file(folder, path.name, data)
        elif sealed and path.name == MANIFEST:
            path.write_bytes(data)
            with suppress(ValueError, RecursionError, AttributeError):
                put_manifest(folder, read_json(path))
        else:
            path.write_bytes(data)


def check_damaged(program: str, run: Path, examples: int, lines: Sequence[str]) -> None:
    """Give damaged copies of the run to a program. If one is refused, nothing is changed or made."""
    (state,) = (path.name for path in (run / FOLDER).glob("state_*"))

    def check(line: str, sealed: bool, changes: dict[str, Any]) -> None:
        with copy_of(run) as folder, tempfile.TemporaryDirectory() as place:
            damage(folder, changes, sealed=sealed)
            before = snapshot(folder)
            words = line.format(folder, state=state).split()
            if program == "evaluate":
                words += ["--no_video", "--device", "cpu", "--out", f"{place}/out"]
            elif "--resume" not in words:
                words += ["--work_dir", place]
            answer = call(words, MAIN[program])
            if answer.code != 0:
                assert_one_line(program, answer)
                assert not any(Path(place).iterdir())
            if answer.code != 0 or "--resume" not in words:
                assert snapshot(folder) == before

    check_all(examples, check, line=st.sampled_from(lines), sealed=st.booleans(), changes=changes_of(run))


@fast_and_slow()
@pytest.mark.usefixtures("untrained")
def test_train_from_a_damaged_run(examples: int, small_run: Path) -> None:
    ways = ("--resume {}", "--resume {} --num_train_steps 30", "--config {}/config.json", "--finetune_from {}")
    check_damaged("train", small_run, examples, ways)


@fast_and_slow()
def test_evaluate_a_damaged_run(examples: int, small_run: Path) -> None:
    ways = ("{} --skills 1", "{}/checkpoint --skills 0", "{}/checkpoint/{state} --skills 1", "{} --skill_schedule 0:2")
    check_damaged("evaluate", small_run, examples, ways)


# -- files that cannot be read -----------------------------------------------------------------------------------------

PLAY = "--no_video --device cpu --out {out}"
READ = {  # how a program is called, and the files of the run that it reads then
    "train --resume {run}": (
        CONFIG_FILE,
        "train.csv",
        f"{FOLDER}/{MANIFEST}",
        f"{FOLDER}/state_*",
        f"{FOLDER}/replay_*",
    ),
    "train --finetune_from {run} --work_dir {out}": (CONFIG_FILE, f"{FOLDER}/{MANIFEST}", f"{FOLDER}/state_*"),
    "train --config {run}/config.json --work_dir {out}": (CONFIG_FILE,),
    f"evaluate {{run}} {PLAY}": (f"{FOLDER}/{MANIFEST}", f"{FOLDER}/state_*"),
    f"evaluate {{run}}/checkpoint/{{file}} {PLAY}": (f"{FOLDER}/state_*",),
    "plot {run} --out {out}": (CONFIG_FILE, "eval.csv", "skills.csv"),
    "plot {run} --out {out} --reference {run}/{file}": ("train.csv",),
    "report {run} --out {out}.html": (CONFIG_FILE, "train.csv", "eval.csv", "episodes.csv", "skills.csv"),
}


@pytest.mark.parametrize("kind", ["huge", "device"])
@pytest.mark.parametrize(("line", "name"), [(line, name) for line, names in READ.items() for name in names])
def test_a_file_without_end_is_refused(small_run: Path, tmp_path: Path, line: str, name: str, kind: str) -> None:
    """It is neither read until the memory is full, nor for ever."""
    with copy_of(small_run) as folder:
        path = max(folder.glob(name))
        if kind == "huge":
            os.truncate(path, 1 << 40)
        else:
            path.unlink()
            path.symlink_to("/dev/null")  # which ends, so that this test does too
        program, *words = line.format(run=folder, file=path.name, out=tmp_path / "out").split()
        answer = call(words, MAIN[program])
        assert_one_line(program, answer)
        reasons = ("File too large", "not a regular file", "neither a run's folder nor a checkpoint")
        assert any(reason in answer.lines[-1] for reason in reasons)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["huge", "device"])
def test_a_sweep_without_end_is_refused(tmp_path: Path, kind: str) -> None:
    sweep_of_seeds(tmp_path).write()
    path = tmp_path / SWEEP_FILE
    if kind == "huge":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
        path.symlink_to("/dev/null")
    assert_one_line("sweep", call(["--resume", str(tmp_path)], sweep.main))
