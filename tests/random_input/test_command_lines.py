"""Random command lines for every program: each works, or is refused in one line and leaves nothing.

An exception that a program does not answer itself fails the test.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

import evaluate
from config import Config
from evaluation import panels
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from running.stored_config import CONFIG_FILE
from tests.support.command_lines import TRAIN_FLAGS, Flags, command_lines, parsed
from tests.support.disk import snapshot
from tests.support.fuzz import check_all, fast_and_slow
from tests.support.program import MAIN, assert_refused, call
from tests.support.sweeps import sweep_of_seeds

pytestmark = pytest.mark.usefixtures("programs")
SMALL = 64  # of sizes, so that a line that works takes little time

DAMAGED = {
    "cut": f"{CHECKPOINT_FOLDER}/state_*.pt",
    "no_manifest": f"{CHECKPOINT_FOLDER}/{MANIFEST_FILE}",
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
        **{"refit": ["3"], "time_limit": ["5", "40"]},
    },
    "plot": {"out": ["out"], "reference": ["reference.csv", "good/eval.csv"], "evaluation": ["good", "out"]},
    "report": {"out": ["out.html", "out"], "evaluation": ["good", "out"]},
    "sweep": {
        **{name: values for name, values in {**TRAIN_FLAGS, **RUNS}.items() if name != "run_name"},
        **{"seed": ["1 2"], "resume": ["sweep", "good"], "dry_run": [], "sweep_name": ["s"], "address": ["auto"]},
        **{"cpus_per_run": ["0.5"], "gpus_per_run": ["0"], "memory_per_run": ["1.5"], "max_failures": ["2"]},
    },
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
    return max(args.episodes, args.refit) <= 3 and max(args.video_size, args.time_limit or 0) <= SMALL


@fast_and_slow()
@pytest.mark.parametrize("program", MAIN)
@pytest.mark.usefixtures("untrained")
def test_any_command_line(program: str, examples: int, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setattr(panels, "draw_task", lambda *_: [])  # drawn in tests/test_plot_damaged.py
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
            assert_refused(answer, program=program)
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
