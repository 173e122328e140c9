"""What report.py reads: the folders of runs, and those that evaluate.py wrote. Nothing in them is trusted."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from config import FIELDS, shown_value
from errors import UserError, one_line, reason_of
from evaluation.record import EvaluationRecord, read_evaluation_record
from evaluation.runs import MAX_COUNT, RecordedRun, between_evaluations, read_begun_run, read_csv, read_training
from running.atomic_files import in_use, read_file
from running.columns import (
    EVAL_SKILL_COLUMNS,
    NO_SKILL,
    REFIT_COLUMNS,
    REQUIRED_CSV_FILES,
    SKILL_COLUMNS,
    SUMMARY_COLUMNS,
)
from running.derivation import derive, preset_settings
from running.stored_config import CONFIG_FILE, read_record, saved_step
from running.tables import read_table

LARGEST_FILE = 32 << 20  # bytes of a picture or video
LARGEST_MEDIA = 192 << 20  # bytes of all pictures and videos of a page
PICTURES = ("contact_sheet", "confusion_matrix", "trajectories")
# Flags that are not listed as settings. config.json has the device that was used, whether it was asked for or not.
SHOWN_ELSEWHERE = ("env", "seed", "device", "notes", "work_dir", "run_name", "resume")
VIDEO = re.compile(r"(?:(\d+)_)?(?:skill(\d+)|policy|(\d+))\.mp4")  # 4000_skill3, 4000; skill3, policy of evaluate.py
PICTURE = re.compile(rf"(?:(\d+)_)?({'|'.join(PICTURES)})\.png")
WHOLE = {"png": lambda data: data[:8] == b"\x89PNG\r\n\x1a\n", "mp4": lambda data: data[4:8] == b"ftyp"}
TYPES = {"png": "image/png", "mp4": "video/mp4"}

Row = dict[str, Any]  # numbers and texts by column; None for an empty cell or a column that the file lacks


class Media:
    """Embeds pictures and videos, up to LARGEST_MEDIA bytes together.

    What cannot be embedded is left out, and `left_out` says why.
    """

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._left = LARGEST_MEDIA

    def embed(self, path: Path | None) -> str | None:
        """Return the file as a data URI; None if there is none, or it is left out."""
        if path is None:
            return None
        kind = path.suffix[1:]
        try:
            data = read_file(path, min(LARGEST_FILE, self._left))
        except OSError as error:
            self.left_out.append(one_line(reason_of(error)))
            return None
        if not WHOLE[kind](data):
            self.left_out.append(one_line(f"{path} is damaged"))
            return None
        self._left -= len(data)
        return f"data:{TYPES[kind]};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Setting:
    """A flag that differs from its default."""

    name: str
    value: str
    default: str
    by_preset: bool


@dataclass
class RunFiles:
    """A run: what its files say, and which pictures and videos of its last evaluation there are."""

    run: RecordedRun
    record: Mapping[str, Any]  # config.json
    evaluations: Sequence[Row]  # of eval.csv
    skills: Sequence[Row]  # of skills.csv, at the last evaluation
    training: Row  # the last row of train.csv; empty before the first episode has ended
    seconds: float  # in episodes, which is all but starting
    is_running: bool
    has_tables: bool  # whether any of the tables that every run writes is there
    saved_step: int = 0  # the agent step of its checkpoint; 0 without one
    videos: Mapping[int | None, Path] = field(default_factory=dict)  # of the last evaluation, by skill
    pictures: Mapping[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return one_line(self.run.folder.name)

    @property
    def frame(self) -> int | None:
        """The frame of the last evaluation; None before the first."""
        return None if self.run.evaluations.empty else self.run.last_frame

    @property
    def frames(self) -> int:
        """The frames played so far, as far as they are in the tables or in the checkpoint.

        A run that makes no evaluations ends within an episode, which the tables do not have.
        """
        saved = self.saved_step * (self.run.flags.get("action_repeat") or 0)
        return max(self.frame or 0, int(self.training.get("step") or 0), self.frames_before + saved if saved else 0)

    @property
    def budget(self) -> int | None:
        """The frame at which training ends; None if there is no config.json."""
        return None if self.run.budget is None else self.frames_before + self.run.budget

    @property
    def frames_before(self) -> int:
        """The frames that chose the skill to fine-tune, from which the run counts on."""
        frames = self.record.get("frames_before")
        return frames if type(frames) is int and 0 <= frames <= MAX_COUNT else 0

    @property
    def next_evaluation(self) -> int | None:
        """The frame from which on the next evaluation is due; None if there is none, or it is not known."""
        every, repeat = self.run.flags.get("eval_frequency"), self.run.flags.get("action_repeat")
        if self.frame is None or self.budget is None or not every or not repeat or self.frame >= self.budget:
            return None
        evaluated = (self.frame - self.frames_before) // repeat  # agent steps
        return min(self.frames_before + (evaluated // every + 1) * every * repeat, self.budget)

    @property
    def state(self) -> str:
        if self.is_running:
            return "running"
        if self.budget is None or not self.has_tables:
            return "state unknown"
        return "finished" if self.frames >= self.budget else "not running"


@dataclass
class EvaluationFiles:
    """A folder that evaluate.py wrote."""

    folder: Path
    record: EvaluationRecord | None
    skills: Sequence[Row]
    summary: Sequence[Row]  # a row for each policy
    refit: Sequence[Row]
    videos: Mapping[int | None, Path]
    pictures: Mapping[str, Path]

    @property
    def env(self) -> str | None:
        """The task; None if an older version wrote the folder."""
        return None if self.record is None else self.record.flags.get("env")

    def may_be_of(self, run: RecordedRun) -> bool:
        """Return whether the folder is of the run, as far as it says; the run's folder may have been moved since."""
        return self.record is None or (self.env == run.env and run.folder.name in Path(self.record.run).parts)

    @property
    def policies(self) -> set[str]:
        return {row["policy"] for row in self.summary}


def read_run_files(folder: Path) -> RunFiles:
    """Read a run, which may be running, killed, or without evaluations. Raises UserError, OSError."""
    run = read_begun_run(folder)
    try:
        record = read_record(folder / CONFIG_FILE, str(folder / CONFIG_FILE))
    except FileNotFoundError:
        record = {}
    numbers, measures = ("step", "episode_reward"), EVAL_SKILL_COLUMNS if run.num_skills else ()
    evaluations = read_csv(folder / "eval.csv", numbers, newer=measures)
    if run.num_skills:
        evaluations["effective_skills"] = run.evaluations["effective_skills"]
    frame = None if run.evaluations.empty else run.last_frame
    skills: list[Row] = []
    if run.num_skills:
        needed = ("step", "skill_id")
        table = read_csv(folder / "skills.csv", needed, newer=[name for name in SKILL_COLUMNS if name not in needed])
        skills = _rows(table[table["step"] == frame])
    training = read_training(folder)
    run.training = between_evaluations(run, training)
    episodes = read_csv(folder / "episodes.csv", (), newer=("duration",))
    return RunFiles(
        run=run,
        record=record,
        evaluations=_rows(evaluations),
        skills=skills,
        training=_rows(training.tail(1))[0] if len(training) else {},
        seconds=float(episodes["duration"].sum()),
        is_running=in_use(folder),
        has_tables=any((folder / name).exists() for name in REQUIRED_CSV_FILES),
        saved_step=saved_step(folder),
        videos=find_videos(folder / "video", frame),
        pictures=find_pictures(folder / "skills", frame),
    )


def read_evaluation_files(folder: Path) -> EvaluationFiles:
    """Read a folder that `evaluate.py --skills` wrote. Raises UserError, OSError."""
    if not (folder / "skills.csv").exists():
        raise UserError(f"--evaluation {folder} has no skills.csv; name a folder that evaluate.py --skills wrote")
    if (folder / CONFIG_FILE).exists():
        raise UserError(
            f"--evaluation {folder} is a run's folder; name one that evaluate.py wrote, or leave out the flag"
        )
    newer = _but(SKILL_COLUMNS, "skill_id")
    table = read_csv(folder / "skills.csv", ("skill_id",), newer=newer, skills=range(NO_SKILL, MAX_COUNT))
    refit = ("policy", "discriminator")
    return EvaluationFiles(
        folder=folder,
        record=read_evaluation_record(folder),
        skills=_rows(table),
        summary=_texts_and_numbers(folder / "summary.csv", ("policy",), SUMMARY_COLUMNS),
        refit=_texts_and_numbers(folder / "refit.csv", refit, REFIT_COLUMNS),
        videos=find_videos(folder, None),
        pictures=find_pictures(folder, None),
    )


def _but(columns: Sequence[str], *names: str) -> list[str]:
    return [name for name in columns if name not in names]


def _texts_and_numbers(path: Path, texts: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table of evaluate.py; none if there is no file. Raises UserError."""
    if not path.exists():
        return []
    rows = _rows(pd.DataFrame(read_table(path, (), newer=_but(columns, *texts), texts=texts)))
    return [{**row, **{name: one_line(row[name]) for name in texts}} for row in rows]


def _rows(table: pd.DataFrame) -> list[Row]:
    """Return the rows of a table, with None in place of NaN."""
    return [{name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in table.to_dict("records")]


def find_videos(folder: Path, frame: int | None) -> dict[int | None, Path]:
    """Return the videos of the evaluation at a frame, by skill; those of evaluate.py have no frame."""
    found: dict[int | None, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = VIDEO.fullmatch(path.name)
        if match is not None:
            before, skill, alone = match.groups()
            at = before or alone
            if (None if at is None else int(at)) == frame:
                found[None if skill is None else int(skill)] = path
    return dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))


def find_pictures(folder: Path, frame: int | None) -> dict[str, Path]:
    """Return the pictures of the evaluation at a frame, by name; those of evaluate.py have no frame."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = PICTURE.fullmatch(path.name)
        if match is not None and (None if match[1] is None else int(match[1])) == frame:
            found[match[2]] = path
    return found


def settings_of(run: RecordedRun) -> list[Setting]:
    """Return the flags that a run reads and that differ from their defaults, in the order of the table of flags."""
    unread = {name for name, value in run.settings.items() if value is None}
    flags = {name: value for name, value in run.flags.items() if name not in unread}
    derived = {name for name in flags if FIELDS[name].metadata["derived"]} - {"finetune_from"}
    given = {name: value for name, value in flags.items() if name not in derived}
    try:
        defaults = derive(given)  # of those that follow from other flags
        preset = preset_settings(flags)
    except UserError:  # another version's flags, which this one would refuse
        defaults, preset = {}, {}
    settings = []
    for name, data in FIELDS.items():
        default = defaults.get(name) if name in derived else data.default
        if name in flags and name not in SHOWN_ELSEWHERE and flags[name] not in (default, data.default):
            shown = data.metadata["derived"] if default is None else shown_value(default)
            by_preset = name in preset and preset[name] == flags[name]
            settings.append(Setting(name, one_line(shown_value(flags[name])), shown, by_preset))
    return settings
