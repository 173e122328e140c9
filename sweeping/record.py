"""What a sweep knows about its runs: sweep.json and summary.csv, and the progress read from the runs' own files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import folder_name
from errors import UserError
from running.atomic_files import write_file
from running.stored_config import CONFIG_FILE

SWEEP_FILE, SUMMARY_FILE, LOGS = "sweep.json", "summary.csv", "logs"
FORMAT = 1  # of sweep.json
STATES = ("running", "failed", "stopped", "waiting", "finished")
TAIL_BYTES = 16384  # of a train.csv, read to find its last row
MESSAGE_LINES = 5  # of a failed attempt's output, kept in the summary
MESSAGE_BYTES = 8192  # of a log, read to find those lines


@dataclass
class Progress:
    """How far a run is, according to its files."""

    frame: int = 0
    fps: float = math.nan
    last_return: float = math.nan
    best_return: float = math.nan
    bound: float = math.nan  # on the mutual information, nats


@dataclass
class Trial:
    """A run of the sweep."""

    name: str  # of its folder
    env: str
    settings: dict[str, str]  # the flags that were given, with this run's values as text
    arguments: list[str]  # of train.py, without those that name the folder
    frames: int  # training budget
    state: str = "waiting"  # one of STATES
    attempts: int = 0
    failures: int = 0  # failed attempts since the sweep was started or resumed
    seconds: float = 0.0  # wall time of all attempts that have ended
    host: str = ""  # of the last attempt
    message: str = ""  # last lines of a failed attempt's output
    started_at: float | None = field(default=None, repr=False)  # time.monotonic() of the current attempt's start
    progress: Progress = field(default_factory=Progress, repr=False)

    @property
    def path(self) -> str:
        """The run's folder, relative to the sweep's."""
        return f"{folder_name(self.env)}/{self.name}"

    @property
    def wall_seconds(self) -> float:
        """Wall time of all attempts, including the current one."""
        return self.seconds + (0.0 if self.started_at is None else time.monotonic() - self.started_at)

    def folder(self, sweep: Path) -> Path:
        """Return the run's folder."""
        return sweep / self.path

    def log(self, sweep: Path) -> Path:
        """Return the file with the output of the last attempt."""
        return sweep / LOGS / f"{self.path.replace('/', '_')}_{self.attempts}.log"

    def command(self, sweep: Path) -> list[str]:
        """Return the command that starts the run, without the interpreter."""
        return ["train.py", *self.arguments, "--work_dir", str(sweep), "--run_name", self.name]


IN_MEMORY = ("started_at", "progress")  # fields of a Trial that sweep.json does not hold


def option(default: float | None, low: float) -> Any:
    """Declare a flag of sweep.py that the sweep stores and --resume may change. `low` is its smallest value."""
    return field(default=default, metadata={"low": low})


@dataclass
class Sweep:
    """The content of sweep.json."""

    folder: Path
    trials: list[Trial]
    needs_memory: float  # GB, of the run that needs most
    cpus_per_run: float = option(1.0, low=0.01)
    gpus_per_run: float | None = option(None, low=0.0)  # None: 1 if the cluster has GPUs, else 0
    memory_per_run: float | None = option(None, low=0.01)  # GB; None: needs_memory
    max_failures: int = option(3, low=0)

    def write(self) -> None:
        """Replace sweep.json and summary.csv, each atomically. Raises OSError."""
        record = {"format": FORMAT, **{name: getattr(self, name) for name in (*OPTIONS, "needs_memory")}}
        runs = [dataclasses.asdict(trial) for trial in self.trials]
        for run in runs:
            for name in IN_MEMORY:
                del run[name]
        text = json.dumps({**record, "runs": runs}, indent=1)
        write_file(self.folder / SWEEP_FILE, f"{text}\n".encode())
        write_file(self.folder / SUMMARY_FILE, self.summary().encode(errors="backslashreplace"))

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Return the sweep in this folder, with the progress of its runs. Raises UserError."""
        path = folder / SWEEP_FILE
        try:
            record = json.loads(path.read_bytes())
            if record.pop("format") != FORMAT:
                raise UserError(f"--resume {folder}: {path} is of another version of sweep.py; use that one")
            sweep = cls(folder.resolve(), [Trial(**run) for run in record.pop("runs")], **record)
        except FileNotFoundError:
            raise UserError(f"--resume {folder}: there is no {SWEEP_FILE} in it; name a sweep's folder") from None
        except OSError as error:
            raise UserError(f"--resume {folder}: {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"--resume {folder}: {path} is damaged; restore its text, or start a new sweep") from None
        for trial in sweep.trials:
            trial.progress = read_progress(trial.folder(sweep.folder), trial.progress)
        return sweep

    def summary(self) -> str:
        """Return summary.csv: a row for each run."""
        flags = list(dict.fromkeys(flag for trial in self.trials for flag in trial.settings))
        measured = ("frames", "last_return", "best_return", "mutual_information_bound")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["run", *flags, "state", *measured, "wall_seconds", "failures", "host", "message"])
        for trial in self.trials:
            settings = (trial.settings.get(flag, "") for flag in flags)
            progress = trial.progress
            results = map(shown_number, (progress.last_return, progress.best_return, progress.bound))
            outcome = (f"{trial.wall_seconds:.0f}", trial.failures, trial.host, trial.message)
            table.writerow([trial.path, *settings, trial.state, progress.frame, *results, *outcome])
        return text.getvalue()


OPTIONS = {entry.name: entry.metadata["low"] for entry in dataclasses.fields(Sweep) if entry.metadata}


def resumed_sweep(folder: Path, options: Mapping[str, Any]) -> Sweep:
    """Return the sweep in this folder, with every unfinished run waiting again. Raises UserError.

    Args:
        options: replace those of sweep.json.
    """
    sweep = dataclasses.replace(Sweep.read(folder), **options)
    for trial in sweep.trials:
        if trial.state != "finished":
            trial.state, trial.failures, trial.message = "waiting", 0, ""
    return sweep


def shown_number(value: float) -> str:
    """Return a measured value as text; an empty one if there is none yet."""
    return "" if math.isnan(value) else f"{value:.6g}"


def read_host(log: Path) -> str:
    """Return the host of an attempt, from the first line of its log; "" if that is not written yet."""
    try:
        with log.open(errors="replace") as file:
            line = file.readline()
    except OSError:
        return ""
    return line.strip().removeprefix("host ") if line.endswith("\n") else ""


def last_lines(log: Path) -> str:
    """Return the last lines of an attempt's output."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - MESSAGE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    output = [line for line in lines if line.strip() and not line.startswith(("host ", "$ "))]
    return "\n".join(output[-MESSAGE_LINES:])


def read_progress(folder: Path, previous: Progress) -> Progress:
    """Return how far the run in this folder is; `previous` if its files cannot be read now."""
    try:
        progress = Progress()
        train, evaluations = read_rows(folder / "train.csv", TAIL_BYTES), read_rows(folder / "eval.csv")
        if train:
            progress.frame, progress.fps = int(train[-1]["step"]), float(train[-1]["fps"] or math.nan)
        if evaluations:
            returns = [float(row["episode_reward"]) for row in evaluations]
            progress.frame = max(progress.frame, int(evaluations[-1]["step"]))
            progress.last_return, progress.best_return = returns[-1], max(returns)
            progress.bound = float(evaluations[-1].get("mutual_information_bound") or math.nan)
        if progress.frame:  # a fine-tuned run's budget excludes the frames that were used to choose its skill
            progress.frame -= json.loads((folder / CONFIG_FILE).read_bytes()).get("frames_before", 0)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return previous
    return progress


def read_rows(path: Path, tail: int | None = None) -> list[dict[str, str]]:
    """Return the complete rows of a CSV file that may be written to at the same time.

    Args:
        tail: read only rows in the last `tail` bytes.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        header = file.readline()
        if tail is not None and path.stat().st_size > len(header) + tail:
            file.seek(-tail, os.SEEK_END)
            file.readline()  # the rest of a row
        complete = file.read().rpartition(b"\n")[0]
    return list(csv.DictReader((header + complete).decode(errors="replace").splitlines()))
