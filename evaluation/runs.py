"""The runs that plot.py and report.py draw: their CSV files and flags."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from config import FIELDS, Role, flags_with
from envs.tasks import without_own_limit
from errors import UserError, one_line, reason_of
from running.columns import SKILL_UPDATE_METRICS, TRAIN_COLUMNS
from running.stored_config import CONFIG_FILE, check_folders, known_flags, real_run
from running.tables import read_table

NOT_SETTINGS = flags_with(Role.RESUMABLE | Role.SAME_EXPERIMENT)
# The flags that distinguish experiments, with their defaults as config.json would have them.
DEFAULTS = json.loads(json.dumps({name: field.default for name, field in FIELDS.items() if name not in NOT_SETTINGS}))
OF_DISCRIMINATOR = frozenset(flags_with(Role.DIAYN | Role.WITH_SKILLS)) - frozenset(flags_with(Role.NETWORK))
OF_SKILLS = frozenset(flags_with(Role.DIAYN | Role.WITH_SKILLS | Role.FINE_TUNING)) - {"num_skills"}
MAX_COUNT = 2**53  # of frames, and of skills: what a float counts exactly
EVAL_NUMBERS = ("step", "episode_reward")  # columns of eval.csv, and of skills.csv, that are drawn
# Also drawn, if there are skills. A cell is empty if no episode of the evaluation had a step.
EVAL_MEASURES = ("mutual_information_bound", "discriminator_accuracy")
NEWER_MEASURES = ("mutual_information_bound_second_half", "effective_skills", "cells_visited")  # not in older files
SKILL_NUMBERS = ("step", "skill_id", "episode_extrinsic_reward")
SKILL_MEASURES = ("mutual_information_bound", "state_distance_within", "state_distance_between")  # cells may be empty

AnyRun = TypeVar("AnyRun")


@dataclass
class RecordedRun:
    """The files of one run, with the columns that are drawn."""

    folder: Path
    env: str
    seed: int
    flags: Mapping[str, Any]
    evaluations: pd.DataFrame  # of eval.csv
    skills: pd.DataFrame  # of skills.csv; empty if the run has none
    training: pd.DataFrame = field(default_factory=pd.DataFrame)  # of train.csv; see `read_training`

    @property
    def num_skills(self) -> int:
        """Number of skills that are learned; 0 for a fine-tuned run, which has no discriminator."""
        return 0 if self.flags.get("finetune_from") else self.flags.get("num_skills", 0)

    @property
    def kind(self) -> str:
        """The kind of experiment, for labels."""
        if self.flags.get("finetune_from"):
            return "fine-tuned skill"
        return f"DIAYN, {self.num_skills} skills" if self.num_skills else "DrQ"

    @property
    def settings(self) -> dict[str, Any]:
        """The flags that distinguish experiments. Those that the run does not read are None."""
        unread = frozenset() if self.num_skills else OF_DISCRIMINATOR if self.flags.get("num_skills") else OF_SKILLS
        flags = without_own_limit(self.flags)
        return {n: None if n in unread else flags.get(n, default) for n, default in DEFAULTS.items()}

    @property
    def shown(self) -> str:
        """The name of the run, in quotes, for titles and messages."""
        return f"'{one_line(self.folder.name)}'"

    @property
    def last_frame(self) -> int:
        """The frame of the last evaluation."""
        return int(self.evaluations["step"].iloc[-1])

    @property
    def episodes_of_coverage(self) -> set[int]:
        """How many episodes the evaluations played, all skills together; a resume may have changed it."""
        played = self.skills.groupby("step")["episodes"].sum(min_count=1).dropna()
        return {int(count) for count in played} or {self.num_skills * (self.flags.get("num_eval_episodes") or 1)}

    @property
    def has_curves(self) -> bool:
        """Whether there are evaluations at two frames at least."""
        return self.evaluations["step"].nunique() > 1

    @property
    def budget(self) -> int | None:
        """The frames to train for, after those that chose a skill to fine-tune; None if there is no config.json."""
        steps, repeat = self.flags.get("num_train_steps"), self.flags.get("action_repeat")
        return steps * repeat if steps and repeat else None


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(
    places: Sequence[Path], read: Callable[[Path], AnyRun], names: Sequence[str], what: str
) -> tuple[list[AnyRun], list[str]]:
    """Return the runs in `places` and below them, and why others are left out. Raises UserError if there are none.

    Args:
        read: reads a run's folder; may raise UserError or OSError.
        names: files of which a run has one at least, as for `find_runs`.
        what: what is looked for, for the message.
    """
    runs, left_out = [], []
    for folder in find_runs(places, names):
        try:
            runs.append(read(folder))
        except (UserError, OSError) as error:
            left_out.append(reason_of(error))
    if not runs:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        why = f": {left_out[0]}{more}" if left_out else "; name a run's folder, or one above it"
        raise UserError(f"no {what} in {', '.join(map(str, places))}{why}")
    return runs, left_out


def find_runs(places: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the folders of runs in `places` and below them, each once: those with one of the files `names`.

    Raises UserError.
    """
    check_folders(places)
    found: list[Path] = []
    for place in places:
        found += sorted({real_run(path.parent) for name in names for path in place.rglob(name)})
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> RecordedRun:
    """Read a run's files. Raises UserError, which names the file, if one is damaged or there is no evaluation yet."""
    run = read_begun_run(folder)
    if run.evaluations.empty:
        raise UserError(f"'{folder}' has no evaluations yet")
    run.training = between_evaluations(run, read_training(folder))
    return run


def read_training(folder: Path) -> pd.DataFrame:
    """Read a run's train.csv, a row for each training episode. Raises UserError."""
    return read_csv(folder / "train.csv", TRAIN_COLUMNS[:2], newer=(*TRAIN_COLUMNS[2:], *SKILL_UPDATE_METRICS))


def between_evaluations(run: RecordedRun, training: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each evaluation: means over the training episodes since the one before it.

    If there are no curves of evaluations, return the rows of the episodes.
    """
    if not run.has_curves:
        return training
    frames = np.unique(run.evaluations["step"])
    due = np.searchsorted(frames, training["step"])  # the evaluation at the episode's end, or the next one
    finished = due < len(frames)
    means = training[finished].groupby(due[finished]).mean()
    return means.assign(step=frames[means.index])


def read_begun_run(folder: Path) -> RecordedRun:
    """Read a run's files, which may have no evaluation yet. Raises UserError, which names a damaged file."""
    try:
        flags = known_flags(folder / CONFIG_FILE)
    except FileNotFoundError:  # only the CSV files were kept
        print(f"warning: {folder} has no {CONFIG_FILE}: it is taken for plain DrQ with seed 0", file=sys.stderr)
        flags = {}
    env, seed, no_rows = flags.get("env", folder.parent.name), flags.get("seed", 0), pd.DataFrame()
    run = RecordedRun(folder, env, seed, flags, evaluations=no_rows, skills=no_rows)
    measures, newer = (EVAL_MEASURES, NEWER_MEASURES) if run.num_skills else ((), ())
    run.evaluations = read_csv(folder / "eval.csv", EVAL_NUMBERS, measures, newer)
    if run.num_skills:
        bound = run.evaluations["mutual_information_bound"].clip(upper=math.log(run.num_skills))
        run.evaluations["effective_skills"] = np.exp(bound)  # also of versions that did not write it
        columns = SKILL_NUMBERS, SKILL_MEASURES, ("episodes",)
        run.skills = read_csv(folder / "skills.csv", *columns, skills=range(run.num_skills))
        run.skills = run.skills.astype({"skill_id": int})
    return run


def read_csv(
    path: Path,
    numbers: Sequence[str],
    optional: Sequence[str] = (),
    newer: Sequence[str] = (),
    *,
    skills: range = range(MAX_COUNT),
) -> pd.DataFrame:
    """Return columns of a CSV file of a run, without rows if there is no file or nothing in it; see `read_table`.

    Raises UserError, also for a `skill_id` that is not in `skills`.
    """
    if not os.path.lexists(path) or (path.is_file() and not path.stat().st_size):
        return pd.DataFrame(columns=[*numbers, *optional, *newer], dtype=float)
    table = pd.DataFrame(read_table(path, numbers, optional=optional, newer=newer), dtype=float)
    limits = {"step": (0, MAX_COUNT), "episodes": (1, MAX_COUNT), "skill_id": (skills[0], skills[-1])}
    for name, (low, high) in limits.items():
        values = table[name].dropna() if name in table else pd.Series(dtype=float)
        if not (values.between(low, high) & (values % 1 == 0)).all():
            raise UserError(f"{path} is damaged: {name} must be a whole number from {low} to {high}")
    return table


def read_reference(path: Path) -> pd.DataFrame:
    """Read published curves. Raises UserError."""
    try:
        return pd.DataFrame(read_table(path, EVAL_NUMBERS, texts=("env", "seed")))
    except UserError as error:
        raise UserError(f"--reference {error}; name a CSV file with published curves") from error
