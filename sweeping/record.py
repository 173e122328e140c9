"""What a sweep knows about its runs: sweep.json and summary.csv, and the progress read from the runs' own files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import reprlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import MAX_INTEGER
from errors import UserError
from running.atomic_files import read_file, write_file
from running.names import check_name, folder_name
from running.stored_config import CONFIG_FILE, saved_step
from running.tables import LARGEST

SWEEP_FILE, SUMMARY_FILE, LOGS = "sweep.json", "summary.csv", "logs"
FORMAT = 1  # of sweep.json
STATES = ("running", "failed", "stopped", "waiting", "finished")
MESSAGE_LINES = 5  # of a failed attempt's output, kept in the summary
# The flags that a sweep stores and --resume may change, with their smallest values.
OPTIONS = {"cpus_per_run": 0.01, "gpus_per_run": 0.0, "memory_per_run": 0.01, "max_failures": 0}
IN_MEMORY = ("started_at", "progress")  # fields of a Trial that sweep.json does not hold
LEAST_SHARE = 0.0001  # of a GPU, for Ray


@dataclass
class Progress:
    """How far a run is, according to its files."""

    frame: int = 0
    fps: float = math.nan
    last_return: float = math.nan
    best_return: float = math.nan
    bound: float = math.nan  # on the mutual information, nats

    def results(self) -> list[str]:
        """Return last and best return and the bound as text, "" if there is none yet."""
        return ["" if math.isnan(x) else f"{x:.6g}" for x in (self.last_return, self.best_return, self.bound)]


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
    # In memory only: time.monotonic() at the start of the current attempt, and how far the run is.
    started_at: float | None = field(default=None, repr=False, compare=False)
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)

    @property
    def path(self) -> str:
        """The run's folder, relative to the sweep's."""
        return f"{folder_name(self.env)}/{self.name}"

    @property
    def wall_seconds(self) -> float:
        """Wall time of all attempts, including the current one."""
        return self.seconds + (0.0 if self.started_at is None else time.monotonic() - self.started_at)

    @property
    def frames_left(self) -> int:
        return max(0, self.frames - self.progress.frame)

    def folder(self, sweep: Path) -> Path:
        """Return the run's folder."""
        return sweep / self.path

    def log(self, sweep: Path) -> Path:
        """Return the file with the output of the last attempt."""
        return sweep / LOGS / f"{self.path.replace('/', '_')}_{self.attempts}.log"

    def command(self, sweep: Path) -> list[str]:
        """Return the command that starts the run, or resumes it once it has begun, without the interpreter."""
        if (self.folder(sweep) / CONFIG_FILE).exists():
            return ["train.py", "--resume", str(self.folder(sweep))]
        return ["train.py", *self.arguments, "--work_dir", str(sweep), "--run_name", self.name]


@dataclass
class Sweep:
    """The content of sweep.json."""

    folder: Path
    trials: list[Trial]
    needs_memory: float  # GB, of the run that needs most
    cpus_per_run: float = 1.0
    gpus_per_run: float | None = None  # None: 1 if the cluster has GPUs, else 0
    memory_per_run: float | None = None  # GB; None: needs_memory
    max_failures: int = 3

    def write(self) -> None:
        """Replace sweep.json and summary.csv, each atomically. Raises OSError."""
        record = {"format": FORMAT, **{name: getattr(self, name) for name in (*OPTIONS, "needs_memory")}}
        runs = [{name: value for name, value in vars(trial).items() if name not in IN_MEMORY} for trial in self.trials]
        text = json.dumps({**record, "runs": runs}, indent=1)
        write_file(self.folder / SWEEP_FILE, f"{text}\n".encode())
        write_file(self.folder / SUMMARY_FILE, self.summary().encode(errors="backslashreplace"))

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Return the sweep in this folder, with the progress of its runs. Raises UserError."""
        path = folder / SWEEP_FILE
        try:
            record = json.loads(read_file(path))
            if not isinstance(record, dict) or "format" not in record:
                raise ValueError("it has no format")
            if record.pop("format") != FORMAT:
                raise UserError(f"--resume {folder}: {path} is of another version of sweep.py; use that one")
            trials, options = checked_trials(record.pop("runs", None)), checked_options(record)
        except FileNotFoundError:
            raise UserError(f"--resume {folder}: there is no {SWEEP_FILE} in it; name a sweep's folder") from None
        except OSError as error:
            reason = f"{path} cannot be read: {error.strerror}"
            raise UserError(f"--resume {folder}: {reason}; name a sweep's folder") from error
        except (ValueError, RecursionError) as error:
            remedy = "restore it, or start a new sweep"
            raise UserError(f"--resume {folder}: {path} is damaged ({error}); {remedy}") from None
        sweep = cls(Path(os.path.realpath(folder)), trials, **options)
        for trial in sweep.trials:
            trial.progress = read_progress(trial.folder(sweep.folder), trial.progress)
        return sweep

    def summary(self) -> str:
        """Return summary.csv: a row for each run."""
        measured = ("frames", "last_return", "best_return", "mutual_information_bound")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        flags = self.trials[0].settings  # the same for all runs
        table.writerow(["run", *flags, "state", *measured, "wall_seconds", "failures", "host", "message"])
        for trial in self.trials:
            results = (trial.progress.frame, *trial.progress.results())
            outcome = (f"{trial.wall_seconds:.0f}", trial.failures, trial.host, trial.message)
            table.writerow([trial.path, *trial.settings.values(), trial.state, *results, *outcome])
        return text.getvalue()


def check_option(name: str, value: float) -> None:
    """Raise UserError if the value of one of OPTIONS is out of range."""
    if not math.isfinite(value) if isinstance(value, float) else value > MAX_INTEGER:
        raise UserError(f"--{name} must be a finite number; got {value}")
    if value < OPTIONS[name]:
        raise UserError(f"--{name} must be at least {OPTIONS[name]}; got {value}")
    if name == "gpus_per_run" and 1 < value != int(value):
        raise UserError(f"--{name} must be whole above 1; got {value}")
    if name == "gpus_per_run" and 0 < value < LEAST_SHARE:
        raise UserError(f"--{name} must be 0 or at least {LEAST_SHARE}; got {value}")


def checked_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a Sweep beside its runs, as sweep.json has them. Raises ValueError if one is impossible."""
    known = {field.name: field for field in dataclasses.fields(Sweep) if field.name not in ("folder", "trials")}
    if record.keys() - known.keys() or "needs_memory" not in record:
        raise ValueError("it has unknown fields, or lacks some")
    for name, value in record.items():
        if value is None and known[name].default is None:
            continue
        if not _is_number(value) or (name == "max_failures" and not isinstance(value, int)):
            raise ValueError(f"{name} is {reprlib.repr(value)}")
        try:
            if name in OPTIONS:
                check_option(name, value)
        except UserError as error:
            raise ValueError(str(error)) from None
    return dict(record)


def checked_trials(runs: Any) -> list[Trial]:
    """Return the runs that sweep.json has. Raises ValueError if one is impossible or two have the same folder."""
    if not isinstance(runs, list) or not runs:
        raise ValueError("it has no runs")
    trials = [_checked_trial(f"runs[{number}]", run) for number, run in enumerate(runs)]
    if len({trial.path for trial in trials}) < len(trials):
        raise ValueError("two runs have the same folder")
    if any(list(trial.settings) != list(trials[0].settings) for trial in trials):
        raise ValueError("the runs have different flags")
    return trials


def _checked_trial(place: str, run: Any) -> Trial:
    fields = {field.name: field for field in dataclasses.fields(Trial) if field.name not in IN_MEMORY}
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if not isinstance(run, dict) or run.keys() - fields.keys() or needed - run.keys():
        raise ValueError(f"{place} is no run")
    for name, value in run.items():
        kind = fields[name].type
        fits = {
            "str": _is_text(value),
            "int": isinstance(value, int) and _is_number(value),
            "float": _is_number(value),
            "list[str]": isinstance(value, list) and all(map(_is_text, value)),
            "dict[str, str]": isinstance(value, dict) and all(map(_is_text, (*value, *value.values()))),
        }
        if not fits[str(kind)]:
            raise ValueError(f"{place}.{name} is {reprlib.repr(value)}")
    trial = Trial(**run)
    if trial.state not in STATES:
        raise ValueError(f"{place}.state is {reprlib.repr(trial.state)}")
    try:  # an attempt may replace the folder of these names
        check_name(f"{place}.name", trial.name)
        check_name(f"{place}.env", folder_name(trial.env))
    except UserError as error:
        raise ValueError(str(error).removeprefix("--")) from None
    return trial


def _is_number(value: Any) -> bool:
    """Return whether this is a number that a field may have: finite, not negative, not a bool."""
    return type(value) in (int, float) and 0 <= value <= MAX_INTEGER


def _is_text(value: Any) -> bool:
    """Return whether this is a text that a command line can hold."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def resumed_sweep(folder: Path, options: Mapping[str, Any]) -> Sweep:
    """Return the sweep in this folder with these OPTIONS and every unfinished run waiting again. Raises UserError."""
    sweep = dataclasses.replace(Sweep.read(folder), **options)
    for trial in sweep.trials:
        if trial.state != "finished":
            trial.state, trial.failures, trial.message = "waiting", 0, ""
    return sweep


def read_log(log: Path) -> tuple[str, str]:
    """Return the host of an attempt, "" if it has not started yet, and the last lines of its output."""
    try:
        first, newline, rest = read_file(log).decode(errors="replace").partition("\n")
    except OSError:
        return "", ""
    output = [line for line in rest.splitlines() if line.strip() and not line.startswith("$ ")]
    return first.removeprefix("host ") if newline else "", "\n".join(output[-MESSAGE_LINES:])


def read_progress(folder: Path, previous: Progress) -> Progress:
    """Return how far the run in this folder is; `previous` if its files cannot be read now."""
    try:
        progress = Progress()
        train, evaluations = read_rows(folder / "train.csv", only_last=True), read_rows(folder / "eval.csv")
        if train:
            progress.frame, progress.fps = int(train[-1]["step"]), float(train[-1]["fps"] or math.nan)
        if evaluations:
            returns = [float(row["episode_reward"]) for row in evaluations]
            progress.frame = max(progress.frame, int(evaluations[-1]["step"]))
            progress.last_return, progress.best_return = returns[-1], max(returns)
            progress.bound = float(evaluations[-1].get("mutual_information_bound") or math.nan)
        step = saved_step(folder)  # an episode that the budget cuts off has no row
        if progress.frame or step:  # a fine-tuned run's budget excludes the frames that were used to choose its skill
            record = json.loads(read_file(folder / CONFIG_FILE))
            progress.frame -= int(record.get("frames_before", 0))
            if step:
                progress.frame = max(progress.frame, step * int(record["flags"]["action_repeat"]))
        measured = (progress.frame, progress.fps, progress.last_return, progress.best_return, progress.bound)
        if any(abs(value) > LARGEST for value in measured) or 0 < progress.fps < 1 / LARGEST:
            return previous
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, csv.Error):
        return previous
    return progress


def read_rows(path: Path, *, only_last: bool = False) -> list[dict[str, str]]:
    """Return the complete rows, or only the last one, of a CSV file that may be written to at the same time."""
    if not path.exists():
        return []
    lines = read_file(path).rpartition(b"\n")[0].decode(errors="replace").splitlines()
    if only_last:
        del lines[1:-1]  # all but the header and the last row
    return list(csv.DictReader(lines))
