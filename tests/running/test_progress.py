"""The progress bar and the lines above it, on a real terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from running.progress import FEWEST_STEPS, RECENT_STEPS, Pace
from tests.support.terminal import Screen, run_on_terminal

# A run on fake environments that prints warnings while it trains and evaluates, and is stopped by a signal in its
# third episode; then the same run is resumed, evaluated, and one of its skills fine-tuned.
PROGRAM = """
import os, shlex, signal, sys
import pytest
import evaluate, train
from console.streams import tolerant_output
from tests.support.labs import TINY
from tests.support.runs import RecordingEnv, use_fake_environments

steps, stop_at = 0, 25

class NoisyEnv(RecordingEnv):
    def step(self, action):
        global steps
        steps += 1
        if steps % 7 == 0:
            print(f"warning: step {steps}", file=sys.stderr)
        if steps == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().step(action)

folder = sys.argv[1]
with pytest.MonkeyPatch.context() as patch, tolerant_output():
    use_fake_environments(patch, NoisyEnv)
    line = f"{TINY.replace('--device cpu', '')} --work_dir {folder} --run_name run --eval_frequency 10"
    print(train.main(shlex.split(line)))
    print(train.main(["--resume", f"{folder}/cartpole_swingup/run"]))
    print(evaluate.main([f"{folder}/cartpole_swingup/run", "--out", f"{folder}/out", "--controls", "--no_video"]))
    tuning = "--batch_size 4 --num_seed_steps 10 --num_train_steps 30 --num_eval_episodes 1 --save_video false"
    line = f"--finetune_from {folder}/cartpole_swingup/run {tuning} --log_save_tb false --replay_buffer_capacity 500"
    print(train.main([*shlex.split(line), "--work_dir", folder, "--run_name", "tuned"]))
"""


def test_the_screen() -> None:
    screen = Screen(5).feed("abc\r\n12345\rxy\x1b[K\r\n")
    assert (screen.lines, screen.wrapped) == (["abc", "xy"], False)
    assert Screen(5).feed("123456").wrapped


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.slow
def test_bar_and_lines_do_not_mix(columns: int, tmp_path: Path) -> None:
    """Every line stands alone, from the start to a stop, after a resume, of evaluate.py, and of a fine-tuned run."""
    code, written = run_on_terminal(["-c", PROGRAM, str(tmp_path)], columns)
    assert code == 0, written
    lines = [line for line in Screen(200).feed(written).lines if line]
    number = r"-?\d[\d.e+-]*"
    known = {
        "warning": r"warning: (step \d+|no CUDA device was found; using the CPU \(--device cpu silences this\))",
        "start": r"(device|replay buffer|outputs): \S.*|resumed at frame \d+, in episode \d",
        "choice": r"choosing the best of 2 skills of \S+, by one episode each|fine-tuning skill \d, the best of .*"
        r"|the choice took \d+ frames, which every step in the outputs counts",
        "line": rf"\| (train|eval ) \| E: \d+ \| S: \d+ \| R: {number}( \| [A-Z]+: {number}( s)?)*",
        "stop": r"stopping \(SIGINT\): finishing the step and writing a checkpoint; a second signal stops at once"
        r"|stopped at frame \d+, which is saved; resume with: .*",
        "end": r"done: \d+ frames in \d+ s, \d+ fps; .*|open first: \S+|0|130",
        "table": r" *skill +episodes +return .*|( +-?[\d.]+)+"
        r"|(means over|effective number|bound in|cells|2nd half:) .*",
    }
    for line in lines:
        assert any(re.fullmatch(pattern, line) for pattern in known.values()), f"{line!r} in {lines}"
    assert sum(line.startswith("warning: no CUDA") for line in lines) == 3, "of train.py twice, and of evaluate.py"
    assert re.search(r"evaluating: step 1 of 10: +0%\|", written)
    assert re.search(r"playing: .*\d+/\d+ \[", written)
    assert re.search(r"\| 0/120 \[\d\d:\d\d, time left not known yet\]", written), "after the first evaluation"
    assert re.search(r"\| 120/120 \[\d\d:\d\d, [\d.e-]+ frames/s, 00:00 left\]", written), "after the last one"
    assert re.search(r"choosing:   0%\|.*?\| 0/20 \[", written)
    (choice,) = re.findall(r"the choice took (\d+) frames", written)
    assert re.search(rf"\r{choice} frames to choose:   0%\|[^\r]*\| 0/120 \[", written), "the bar counts training only"
    bars = [part for part in re.split(r"[\r\n]", written) if re.search(r"\d+%\|", part)]
    assert max(map(len, bars)) <= columns
    assert max(len(line) for line in lines if re.fullmatch(known["table"], line)) <= columns


def test_a_rate_is_that_of_recent_steps() -> None:
    """The first step, which may take long, is no part of it, and a few must have been timed."""
    pace = Pace()
    for step in range(FEWEST_STEPS + 1):
        assert pace.rate is None
        pace.step(4 * step, 1000.0 + 8 * step)
    assert pace.rate == 0.5
    for step in range(RECENT_STEPS + 1):
        pace.step(100 + 4 * step, 2000.0 + step)
    assert pace.rate == 4.0


@pytest.mark.parametrize("before", [0, 2000])
def test_the_time_left_is_that_of_timed_steps(before: int) -> None:
    """Nothing is said until some are timed; then the rate is theirs, not one of what was done before the process."""
    source = f"""
from running.progress import ProgressBar
with ProgressBar({before} + 4000, {before}, unit="frames") as bar:
    for step in range(10):
        bar.move({before} + 4 * step)
    bar.status("")
    for step in range(10, 20):
        bar.move({before} + 4 * step, 5000 + 8 * step)
    bar.status("busy")
    bar.status("")
"""
    code, written = run_on_terminal(["-c", source], 100)
    assert code == 0, written
    bars = re.findall(r"\| (\d+)/\d+ \[\d\d:\d\d(.*?)\]", written)
    assert bars[0] == (str(before), "")
    at, total = before + 76, before + 4000
    assert (str(before + 36), ", time left not known yet") in bars
    assert bars[-1] == (str(at), ", 0.5 frames/s, 2:10:48 left"), "3924 frames at half a frame per second"
    assert re.search(rf"busy: +\d+%\|[^\r]*\| {at}/{total} \[\d\d:\d\d\]", written)


def test_a_count() -> None:
    """It has the time left once a few steps have been timed; each count begins anew."""
    source = """
import running.progress
running.progress.COUNT_INTERVAL = 0
with running.progress.ProgressBar(10, unit="frames") as bar:
    for first, each in ((100, 2), (0, 60)):
        for step in range(1, 21):
            bar.count("evaluating", step, 50, first + each * step)
"""
    code, written = run_on_terminal(["-c", source], 100)
    assert code == 0, written
    counts = re.findall(r"evaluating: step (\d+) of 50(?:, (\S+) left)?: +0%\|", written)
    lefts = ["", "", "", "", "", "", "01:26"]
    assert counts[:7] == [(str(step), left) for step, left in enumerate(lefts, start=1)]
    assert counts[20:27] == [(str(step), left and "43:00") for step, left in enumerate(lefts, start=1)]
    assert counts[39] == ("20", "30:00")


def test_a_held_back_line_is_printed_at_the_end(tmp_path: Path) -> None:
    source = """
from running.progress import ProgressBar
with ProgressBar(10, unit="steps", what="playing") as bar:
    print("begun ", end="", flush=True)
    bar.advance()
    print("and ended")
    print("no newline", end="")
print("after")
"""
    code, written = run_on_terminal(["-c", source], 80)
    assert code == 0
    assert Screen(80).feed(written).lines == ["begun and ended", "no newline", "after"]
