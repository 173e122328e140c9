"""Checks of whole runs on a CUDA device, with the real programs and the real renderer."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu_setup import Measured, Setup, require
from tests.support.compare import differences, state, table, tables
from tests.support.paths import ROOT

RUN = Path("cartpole_swingup", "run")  # of each run's folder, below its --work_dir
TO_STOP = 15  # seconds that a run may take to save and end
GAIN = 100.0  # by which the last return must exceed the first


class Program:
    """train.py or evaluate.py as a child process, with its output in a file.

    Args:
        log: that file.
        words: the program and its arguments.
        environment: environment variables to change.
    """

    def __init__(self, log: Path, *words: str, **environment: str) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.log = words[0], log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **environment},
            )

    def stop_when(self, condition: Callable[[], bool]) -> None:
        """Send SIGTERM as soon as the condition holds, unless the program ends before."""
        while not condition() and self.process.poll() is None:
            time.sleep(0.005)
        self.process.send_signal(signal.SIGTERM)

    def finish(self, *codes: int) -> str:
        """Wait for the end, check the exit code, return the output."""
        code, output = self.process.wait(), self.log.read_text()
        last = output.strip().splitlines()[-1:] or ["no output"]
        require(code in codes, f"{self.name} ended with code {code}: {last[0]}")
        return output


def train(setup: Setup, work_dir: Path, flags: str) -> Program:
    """Start a run in a new folder."""
    shutil.rmtree(work_dir, ignore_errors=True)
    place = ("--device", setup.device, "--work_dir", str(work_dir), "--run_name", RUN.name)
    return Program(work_dir / "log", "train.py", *shlex.split(flags), *place)


def uninterrupted_run(setup: Setup) -> Path:
    """Return the folder of a finished short run, which several checks use."""
    folder, mark = setup.scratch / "uninterrupted" / RUN, setup.scratch / "uninterrupted" / "finished"
    if not mark.exists():
        train(setup, mark.parent, setup.run).finish(0)
        mark.touch()
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file yet."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def resume(setup: Setup) -> Measured:
    """A run stopped by SIGTERM and resumed equals the uninterrupted one: CSV files, weights, optimizers, frames."""
    reference, stopped = uninterrupted_run(setup), setup.scratch / "stopped" / RUN
    program = train(setup, setup.scratch / "stopped", setup.run)
    program.stop_when(lambda: len(rows(stopped / "train.csv")) >= setup.stop_after)
    program.finish(128 + signal.SIGTERM)
    episodes = len(rows(stopped / "train.csv"))
    resumed = Program(setup.scratch / "resumed.log", "train.py", "--resume", str(stopped)).finish(0)

    for name, expected in {**tables(reference), "skills": table(reference / "skills.csv")}.items():
        require(table(stopped / f"{name}.csv") == expected, f"{name}.csv differs from the uninterrupted run's")
    places = list(differences(state(stopped), state(reference)))
    require(not places, f"the checkpoints differ in {len(places)} places: {', '.join(places[:3])}")
    log = (setup.scratch / "uninterrupted" / "log").read_text()
    warnings = [line for line in (log + resumed).splitlines() if "warning" in line.lower()]
    ours = [line for line in warnings if line.startswith("warning: ") or "deterministic" in line]  # others are torch's
    require(not (setup.judged and ours), f"the runs are equal, but warn: {ours[:1]}")
    return {"stopped_after_episodes": episodes, "episodes": len(rows(reference / "train.csv")), "warnings": warnings}


def evaluate(setup: Setup) -> Measured:
    """A checkpoint can be evaluated on the CPU, without a CUDA device in sight."""
    out = setup.scratch / "evaluation"
    words = (str(uninterrupted_run(setup)), "--device", "cpu", "--no_video", "--out", str(out))
    Program(setup.scratch / "evaluation.log", "evaluate.py", *words, CUDA_VISIBLE_DEVICES="").finish(0)
    returns = [float(row["episode_extrinsic_reward"]) for row in rows(out / "skills.csv")]
    require(len(returns) == 2, f"two skills were asked for, and skills.csv has {len(returns)}")
    return {"returns": returns}


def learning(setup: Setup) -> Measured:
    """DrQ learns: the return of the last evaluation exceeds the first. Stops when the time for checks is used up."""
    started = time.time()
    program = train(setup, setup.scratch / "learning", setup.learning)
    program.stop_when(lambda: time.time() > setup.ends - TO_STOP)
    output = program.finish(0, 128 + signal.SIGTERM)
    folder = setup.scratch / "learning" / RUN
    returns = {int(row["step"]): float(row["episode_reward"]) for row in rows(folder / "eval.csv")}
    values = list(returns.values())
    require(len(values) > 1, "the time was too short for two evaluations")
    gained = values[-1] - values[0]
    require(gained > GAIN or not setup.judged, f"the return rose by {gained:.0f}, not {GAIN:.0f}: {returns}")
    return {"returns": returns, "seconds": time.time() - started, "last_line": output.strip().splitlines()[-1]}
