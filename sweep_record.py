"""What is known about a sweep's runs: kept in sweep.json, told in summary.csv, shown while it goes on."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from config import folder_name
from errors import UserError
from running.atomic_files import write_file
from running.stored_config import CONFIG_FILE

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

SWEEP_FILE, SUMMARY_FILE, LOGS = "sweep.json", "summary.csv", "logs"
FORMAT = 1  # of sweep.json
OPTIONS = ("cpus_per_run", "gpus_per_run", "memory_per_run", "max_failures")  # of sweep.py, which a sweep remembers
LAST_LINES = 5  # of what a failed attempt printed, kept in the summary
STATES = ("running", "failed", "stopped", "waiting", "finished")
NEWEST = 16384  # bytes of a train.csv that are read to know how far it is
PLAIN_LINES = 300.0  # seconds between lines on how far the sweep is, where output is no terminal


@dataclass
class Progress:
    """What a run's files say."""

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
    settings: dict[str, str]  # flags that were given and their values here, as words
    arguments: list[str]  # of train.py, without the ones that say where
    frames: int  # its budget
    state: str = "waiting"  # one of STATES
    attempts: int = 0
    failures: int = 0  # attempts since the sweep was started or resumed that ended otherwise than by finishing
    seconds: float = 0.0  # of wall time, over all attempts that have ended
    host: str = ""  # of the last attempt
    message: str = ""  # the last lines of a failed attempt
    began: float | None = field(default=None, repr=False)  # time.monotonic() at which the attempt was seen to run
    seen: Progress = field(default_factory=Progress, repr=False)  # when its files were last looked at

    @property
    def place(self) -> str:
        """Its folder within the sweep's."""
        return f"{folder_name(self.env)}/{self.name}"

    @property
    def wall_seconds(self) -> float:
        """Over all attempts, with the one that goes on."""
        return self.seconds + (0.0 if self.began is None else time.monotonic() - self.began)

    def folder(self, sweep: Path) -> Path:
        return sweep / self.place

    def log(self, sweep: Path) -> Path:
        """What its last attempt prints."""
        return sweep / LOGS / f"{self.place.replace('/', '_')}_{self.attempts}.log"

    def command(self, sweep: Path) -> list[str]:
        """What does the same by hand."""
        return ["train.py", *self.arguments, "--work_dir", str(sweep), "--run_name", self.name]


@dataclass
class Sweep:
    """What sweep.json holds."""

    folder: Path
    trials: list[Trial]
    cpus_per_run: float
    gpus_per_run: float | None  # None: 1 where the cluster has GPUs
    memory_per_run: float | None  # GB; None: as much as the replay buffer needs, and 2
    max_failures: int
    needs_memory: float  # GB, the largest of the runs

    def write(self) -> None:
        """sweep.json and summary.csv, each replaced at once."""
        record = {"format": FORMAT, **{name: getattr(self, name) for name in (*OPTIONS, "needs_memory")}}
        runs = [dataclasses.asdict(trial) for trial in self.trials]
        for run in runs:
            del run["began"], run["seen"]
        text = json.dumps({**record, "runs": runs}, indent=1)
        write_file(self.folder / SWEEP_FILE, f"{text}\n".encode())
        write_file(self.folder / SUMMARY_FILE, self.summary().encode(errors="backslashreplace"))

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Raises UserError."""
        path = folder / SWEEP_FILE
        try:
            record = json.loads(path.read_bytes())
            if record.pop("format") != FORMAT:
                raise UserError(f"--resume {folder}: {path} is of another version of sweep.py; use that one")
            sweep = cls(folder.resolve(), [Trial(**run) for run in record.pop("runs")], **record)
        except FileNotFoundError:
            raise UserError(f"--resume {folder}: there is no {SWEEP_FILE} in it; name a sweep's folder") from None
        except OSError as error:
            raise UserError(f"--resume {folder}: {path} can't be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"--resume {folder}: {path} is damaged; put its text back, or start a new sweep") from None
        for trial in sweep.trials:
            trial.seen = look(trial.folder(sweep.folder), trial.seen)
        return sweep

    def summary(self) -> str:
        """A row a run, as CSV."""
        flags = list(dict.fromkeys(flag for trial in self.trials for flag in trial.settings))
        measured = ("frames", "last_return", "best_return", "mutual_information_bound")
        rest = ("state", *measured, "wall_seconds", "failures", "host", "message")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["run", *flags, *rest])
        for trial in self.trials:
            seen = trial.seen
            figures = [seen.frame, *(number(value) for value in (seen.last_return, seen.best_return, seen.bound))]
            table.writerow(
                [
                    trial.place,
                    *(trial.settings.get(flag, "") for flag in flags),
                    *(trial.state, *figures, f"{trial.wall_seconds:.0f}", trial.failures, trial.host, trial.message),
                ]
            )
        return text.getvalue()


def number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def host_of(log: Path) -> str:
    """Where an attempt was made, from the first line of its log; "" before that is there."""
    try:
        with log.open(errors="replace") as file:
            line = file.readline()
    except OSError:
        return ""
    return line.strip().removeprefix("host ") if line.endswith("\n") else ""


def last_lines(log: Path) -> str:
    """The end of what an attempt printed."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip() and not line.startswith(("host ", "$ "))][-LAST_LINES:])


# -- what one sees -----------------------------------------------------------------------------------------------------


def look(folder: Path, before: Progress) -> Progress:
    """How far a run is, from its CSV files; as it was before where they can't be read just now."""
    try:
        seen = Progress()
        train, evaluations = rows(folder / "train.csv", NEWEST), rows(folder / "eval.csv")
        if train:
            seen.frame, seen.fps = int(train[-1]["step"]), float(train[-1]["fps"] or math.nan)
        if evaluations:
            returns = [float(row["episode_reward"]) for row in evaluations]
            seen.frame = max(seen.frame, int(evaluations[-1]["step"]))
            seen.last_return, seen.best_return = returns[-1], max(returns)
            seen.bound = float(evaluations[-1].get("mutual_information_bound") or math.nan)
        if seen.frame:  # the budget of a fine-tuned run doesn't have those that the choice of the skill took
            seen.frame -= json.loads((folder / CONFIG_FILE).read_bytes()).get("frames_before", 0)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return before
    return seen


def rows(path: Path, newest: int | None = None) -> list[dict[str, str]]:
    """The whole rows of a CSV file, or those in its `newest` bytes; the last line may just be being written."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        header = file.readline()
        if newest is not None and path.stat().st_size > len(header) + newest:
            file.seek(-newest, os.SEEK_END)
            file.readline()  # what is left of a row
        whole = file.read().rpartition(b"\n")[0]
    return list(csv.DictReader((header + whole).decode(errors="replace").splitlines()))


class View:
    """A live table on a terminal; elsewhere a line for everything that happens, and now and then one on the whole."""

    def __init__(self, sweep: Sweep, live: Live | None) -> None:
        self.live = live
        self._said = time.monotonic()
        for trial in sweep.trials:
            if trial.state == "finished":
                self.line(trial, "finished before")

    def line(self, trial: Trial, words: str) -> None:
        """Something has happened to a run."""
        if self.live is None:
            self._say(f"{trial.place}: {words}")

    def show(self, sweep: Sweep) -> None:
        """How far everything is now."""
        if self.live is not None:
            self.live.update(table(sweep, self.live.console.height), refresh=True)
        elif time.monotonic() - self._said > PLAIN_LINES:
            self._said = time.monotonic()
            self._say(overall(sweep))

    @staticmethod
    def _say(words: str) -> None:
        with suppress(OSError):  # nobody reads it; the runs go on
            print(f"{datetime.now():%H:%M:%S} {words}", flush=True)


def overall(sweep: Sweep) -> str:
    """One line on the whole sweep."""
    states = [trial.state for trial in sweep.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    speeds = [trial.seen.fps for trial in sweep.trials if trial.state == "running" and not math.isnan(trial.seen.fps)]
    words = f"{len(states)} runs: {counts}"
    if not sum(speeds):
        return words
    left = sum(
        max(0, trial.frames - trial.seen.frame) for trial in sweep.trials if trial.state in ("waiting", "running")
    )
    return f"{words}; {sum(speeds):.0f} frames/s, {duration(left / sum(speeds))} left"


def duration(seconds: float) -> str:
    """As people read it: 40 s, 3 min, 2 h 5 min, 3 d 4 h."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def table(sweep: Sweep, height: int) -> Table:
    """The runs, those that go on first, as many as fit."""
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=escape(f"{sweep.folder}\n{overall(sweep)}"), title_justify="left")
    for column in ("run", "state", "host"):
        drawn.add_column(column, overflow="fold")
    for column in ("frames", "of", "frames/s", "left", "return", "best", "MI"):
        drawn.add_column(column, justify="right")
    ordered = sorted(sweep.trials, key=lambda trial: STATES.index(trial.state))
    for trial in ordered[: max(1, height - 8)]:
        seen = trial.seen
        runs = trial.state == "running" and seen.fps > 0
        left = duration(max(0, trial.frames - seen.frame) / seen.fps) if runs else ""
        state = f"{trial.state} ({trial.failures} failed)" if trial.failures else trial.state
        figures = (f"{seen.fps:.0f}" if runs else "", left)
        results = (number(value) for value in (seen.last_return, seen.best_return, seen.bound))
        drawn.add_row(
            escape(trial.place), state, trial.host, f"{seen.frame:,}", f"{trial.frames:,}", *figures, *results
        )
    return drawn
