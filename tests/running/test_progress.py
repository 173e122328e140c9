"""The progress bar and the lines above it, on a real terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.terminal import Screen, run_on_terminal

# A run on fake environments that prints warnings while it trains and evaluates, and is stopped by a signal in its
# third episode; then the same run is resumed.
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
"""


def test_the_screen() -> None:
    screen = Screen(5).feed("abc\r\n12345\rxy\x1b[K\r\n")
    assert (screen.lines, screen.wrapped) == (["abc", "xy"], False)
    assert Screen(5).feed("123456").wrapped


@pytest.mark.parametrize("columns", [80, 120])
def test_bar_and_lines_do_not_mix(columns: int, tmp_path: Path) -> None:
    """Every line stands alone, from the start to a stop, after a resume, and of evaluate.py."""
    code, written = run_on_terminal(["-c", PROGRAM, str(tmp_path)], columns)
    assert code == 0, written
    assert " frames/s]" in written, "there was a bar"
    lines = [line for line in Screen(200).feed(written).lines if line]
    number = r"-?\d[\d.e+-]*"
    known = {
        "warning": r"warning: (step \d+|no CUDA device was found; using the CPU \(--device cpu silences this\))",
        "start": r"(device|replay buffer|outputs): \S.*|resumed at frame \d+, in episode \d",
        "line": rf"\| (train|eval ) \| E: \d+ \| S: \d+ \| R: {number}( \| [A-Z]+: {number}( s)?)*",
        "stop": r"stopping \(SIGINT\): finishing the step and writing a checkpoint; a second signal stops at once"
        r"|stopped at frame \d+, which is saved; resume with: .*",
        "end": r"done: \d+ frames in \d+ s, \d+ fps; .*|0|130",
        "table": r" *skill +episodes +return .*|( +-?[\d.]+)+|(means over|effective number|bound in|cells) .*",
    }
    for line in lines:
        assert any(re.fullmatch(pattern, line) for pattern in known.values()), f"{line!r} in {lines}"
    assert sum(line.startswith("warning: no CUDA") for line in lines) == 2, "of train.py and of evaluate.py"
    assert re.search(r"evaluating: step \d+ of 10, \d\d:\d\d left", written)
    assert re.search(r"playing: .*\d+/\d+ \[", written)
    bars = [part for part in re.split(r"[\r\n]", written) if re.search("(frames|steps)/s]|evaluating", part)]
    assert max(map(len, bars)) <= columns
    assert max(len(line) for line in lines if re.fullmatch(known["table"], line)) <= columns


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
