"""The programs as child processes of a test, and small settings for them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.fork_server import ForkedProcess, fork_server
from tests.support.paths import ROOT

# Eight and a half episodes of 8 agent steps, updates from step 20 on, a replay buffer that is full after four episodes.
# Evaluations after steps 0, 24, 48 and 68; checkpoints after 0, 24, 40, 64 and 68.
SMALL = (
    "--device cpu --env cartpole_swingup --image_size 24 --time_limit 16 --action_repeat 2 --num_train_steps 68 "
    "--num_seed_steps 20 --num_skills 2 --batch_size 4 --hidden_dim 8 --encoder_feature_dim 4 --num_eval_episodes 1 "
    "--replay_buffer_capacity 30 --log_frequency_step 50 --eval_frequency 24 --checkpoint_frequency 20 "
    "--save_video false"
)
EPISODE_STEPS, ACTION_REPEAT = 8, 2  # of SMALL
PATIENCE = 900.0  # seconds; only a program that hangs takes as long


class Child:
    """`python train.py` as the leader of its own process group, with its output in files.

    Args:
        line: its arguments.
        place: a new folder for those files.
        environment: variables beside those of this process.
    """

    PROGRAM = "train.py"

    def __init__(self, line: str, place: Path, **environment: str) -> None:
        place.mkdir()
        self._stdout, self._stderr = place / "stdout", place / "stderr"
        usual = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        words = [str(ROOT / self.PROGRAM), *shlex.split(line)]
        self.process = self._start(words, {**os.environ, **usual, **environment})

    def _start(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes] | ForkedProcess:
        return fork_server().start(words, environment, self._stdout, self._stderr)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def last_line(self) -> str:
        """The last line of stderr."""
        return self.stderr.splitlines()[-1]

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout)

    def until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> bool:
        """Wait for the condition. Return False if the process or the time ends first."""
        end = time.monotonic() + timeout
        while not condition():
            if not self.running or time.monotonic() > end:
                return bool(condition())
            time.sleep(0.02)
        return True

    def until_says(self, text: str) -> None:
        """Wait until stdout contains the text."""
        assert self.until(lambda: text in self.stdout), f"{text!r} was not printed: {self.stdout}{self.stderr}"

    def until_episode(self, number: int) -> None:
        """Wait for the end of this training episode."""
        self.until_says(f"| train | E: {number} ")

    def finish(self) -> Child:
        """Wait for exit code 0."""
        assert self.wait() == 0, self.stderr
        assert "Traceback" not in self.stderr
        return self

    def halt(self) -> None:
        """Send SIGSTOP and wait until the process is stopped."""
        assert isinstance(self.process, ForkedProcess)
        self.process.send_signal(signal.SIGSTOP)
        self.process.wait_until_stopped()

    def go_on(self) -> None:
        """Send SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


class Evaluating(Child):
    """`python evaluate.py`."""

    PROGRAM = "evaluate.py"


class ColdChild(Child):
    """A child that imports its packages itself and has its own hash seed."""

    def _start(self, words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes] | ForkedProcess:
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )


Launch = Callable[[str], Child]


def launching(kind: type[Child], place: Path) -> Iterator[Launch]:
    """Yield `launch(arguments)`, which returns a new child. Kill the children that still run afterwards."""
    children: list[Child] = []

    def start(line: str) -> Child:
        children.append(kind(line, place / f"{kind.__name__}{len(children)}"))
        return children[-1]

    yield start
    for child in children:
        if child.running:
            os.killpg(child.pid, signal.SIGKILL)
            child.process.wait(PATIENCE)


def wait_for(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def run_folder(work_dir: Path) -> Path:
    """Return the folder of the only run in `work_dir`."""
    (record,) = work_dir.glob("*/2*/config.json")
    return record.parent
