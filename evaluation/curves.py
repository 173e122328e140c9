"""Learning curves from the CSV files of runs: a figure for each task.

Runs that differ only in the seed form a group. Its curve is the mean over seeds, with the interquartile mean and, for
five seeds or more, the bootstrapped interval of the mean. Horizontal axes count frames, except that of rewards.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from config import FIELDS, Role, flags_with
from errors import UserError, one_line, reason_of
from evaluation.figures import Axes, Figure
from running.atomic_files import output_folder, write_file
from running.names import folder_name
from running.stored_config import CONFIG_FILE, known_flags
from running.tables import read_table

NOT_SETTINGS = flags_with(Role.RESUMABLE | Role.SAME_EXPERIMENT)
# The flags that distinguish experiments, with their defaults as config.json would have them.
DEFAULTS = json.loads(json.dumps({name: field.default for name, field in FIELDS.items() if name not in NOT_SETTINGS}))
OF_DISCRIMINATOR = frozenset(flags_with(Role.DIAYN)) - frozenset(flags_with(Role.NETWORK))
OF_SKILLS = frozenset(flags_with(Role.DIAYN | Role.FINE_TUNING)) - {"num_skills", "finetune_from"}
NAMED_BY_KIND = frozenset(flags_with(Role.FOLLOWS_SKILLS))  # flags that always differ between DrQ and DIAYN
CONFIDENCE = 0.95
MAX_COUNT = 2**53  # of frames, and of skills: what a float counts exactly
SEEDS_FOR_INTERVAL = 5  # with fewer, a bootstrap gives little more than the lowest and highest value
COLORS = [f"C{number}" for number in range(10)]
LABELLED_SKILLS = 20  # in a legend, which would otherwise cover the curves
STYLES = ("-", "--", "-.")  # the next one when the colors repeat
EVAL_NUMBERS = ("step", "episode_reward")  # columns of eval.csv, and of skills.csv, that are drawn
EVAL_MEASURES = ("mutual_information_bound", "discriminator_accuracy")  # also drawn, if there are skills
SKILL_NUMBERS = ("step", "skill_id", "episode_extrinsic_reward")
SKILL_MEASURES = ("mutual_information_bound", "state_distance_within", "state_distance_between")  # cells may be empty
LOWEST_BOUND = -1.0  # nats, of the axis; an untrained discriminator is overconfident by far more


@dataclass
class Run:
    """The files of one run, with the columns that are drawn."""

    folder: Path
    env: str
    seed: int
    flags: Mapping[str, Any]
    evaluations: pd.DataFrame  # of eval.csv
    skills: pd.DataFrame  # of skills.csv; empty if the run has none

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
        return {n: None if n in unread else self.flags.get(n, default) for n, default in DEFAULTS.items()}

    @property
    def last_frame(self) -> int:
        """The frame of the last evaluation."""
        return int(self.evaluations["step"].iloc[-1])


@dataclass
class Group:
    """Runs of one task that differ only in the seed."""

    label: str
    runs: list[Run]
    color: str
    style: str


def plot_runs(places: Sequence[Path], out: Path, published: Path | None) -> None:
    """Read the runs in `places` and write a figure for each task to `out`. Print its paths, and what is left out.

    `published` is a CSV file with curves to draw beside them. Raises UserError, OSError.
    """
    reference = None if published is None else read_reference(published)
    runs, left_out = read_runs(places)
    for reason in left_out:
        print(f"left out: {one_line(reason)}", file=sys.stderr)
    with output_folder(out):
        for env in sorted({run.env for run in runs}):
            groups = make_groups([run for run in runs if run.env == env])
            for path in draw_task(env, groups, reference, out):
                print(path)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_runs(places: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in `places` and below them, and why others are left out. Raises UserError if there are none."""
    runs, left_out = [], []
    for folder in find_runs(places):
        try:
            runs.append(read_run(folder))
        except (UserError, OSError) as error:
            left_out.append(reason_of(error))
    if not runs:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        reasons = "".join(f": {reason}{more}" for reason in left_out[:1])
        nothing = f"no evaluations in {', '.join(map(str, places))}{reasons}"
        raise UserError(f"{nothing}; name a run's folder, or one above it")
    return runs, left_out


def find_runs(places: Iterable[Path], names: Sequence[str] = ("eval.csv",)) -> list[Path]:
    """Return the folders of runs in `places` and below them, each once: those with one of the files `names`.

    Raises UserError.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is not a folder; name a run's folder, or one above it")
        found += sorted({Path(os.path.realpath(path.parent)) for name in names for path in place.rglob(name)})
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> Run:
    """Read a run's files. Raises UserError, which names the file, if one is damaged or there is no evaluation yet."""
    run = read_begun_run(folder)
    if run.evaluations.empty:
        raise UserError(f"{folder} has no evaluations yet")
    return run


def read_begun_run(folder: Path) -> Run:
    """Read a run's files, which may have no evaluation yet. Raises UserError, which names a damaged file."""
    try:
        flags = known_flags(folder / CONFIG_FILE)
    except FileNotFoundError:  # only the CSV files were kept
        flags = {}
    run = Run(folder, flags.get("env", folder.parent.name), flags.get("seed", 0), flags, pd.DataFrame(), pd.DataFrame())
    numbers = (*EVAL_NUMBERS, *(EVAL_MEASURES if run.num_skills else ()))
    run.evaluations = read_csv(folder / "eval.csv", numbers)
    if run.num_skills:
        run.skills = read_csv(folder / "skills.csv", SKILL_NUMBERS, SKILL_MEASURES).astype({"skill_id": int})
    return run


def read_csv(
    path: Path, numbers: Sequence[str], optional: Sequence[str] = (), newer: Sequence[str] = ()
) -> pd.DataFrame:
    """Return columns of a CSV file of a run, without rows if there is no file or nothing in it; see `read_table`.

    Raises UserError.
    """
    if not os.path.lexists(path) or (path.is_file() and not path.stat().st_size):
        return pd.DataFrame(columns=[*numbers, *optional, *newer], dtype=float)
    table = pd.DataFrame(read_table(path, numbers, optional=optional, newer=newer), dtype=float)
    for name in {"step", "skill_id"} & set(numbers):
        if not table[name].between(0, MAX_COUNT).all():
            raise UserError(f"{path} is damaged: {name} must be from 0 to {MAX_COUNT}")
    return table


def read_reference(path: Path) -> pd.DataFrame:
    """Read published curves. Raises UserError."""
    try:
        return pd.DataFrame(read_table(path, EVAL_NUMBERS, texts=("env", "seed")))
    except UserError as error:
        raise UserError(f"--reference {error}; name a CSV file with published curves") from error


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Group runs by their settings, with one run for each seed. A label names the flags in which groups differ."""

    def differing(among: Sequence[Run]) -> set[str]:
        return {name for name in DEFAULTS if len({json.dumps(run.settings[name]) for run in among}) > 1}

    members: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.kind, run.seed)):
        members.setdefault((run.kind, json.dumps(run.settings)), []).append(run)
    groups = []
    for number, ((kind, _), group) in enumerate(members.items()):
        kin = [run for run in runs if run.kind == kind]
        shown = sorted((differing(runs) - NAMED_BY_KIND - OF_SKILLS) | differing(kin))
        words = ", ".join(f"{name} {group[0].settings[name]}" for name in shown)
        label = one_line(f"{kind} ({words})" if words else kind)
        again, color = divmod(number, len(COLORS))
        groups.append(Group(label, one_for_each_seed(group), COLORS[color], STYLES[again % len(STYLES)]))
    return groups


def one_for_each_seed(runs: Sequence[Run]) -> list[Run]:
    """Return the longest run of each seed and fine-tuning source: a second one is not another sample."""
    longest: dict[tuple[int, str], Run] = {}
    for run in sorted(runs, key=lambda run: run.last_frame, reverse=True):
        sample = run.seed, run.flags.get("finetune_from") or ""
        if longest.setdefault(sample, run) is not run:
            why = f"{longest[sample].folder} has the same settings and seed"
            print(f"warning: {one_line(f'{run.folder} is left out: {why}')}", file=sys.stderr)
    return [longest[sample] for sample in sorted(longest)]


# -- statistics --------------------------------------------------------------------------------------------------------


def over_seeds(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Return mean, interquartile mean and the mean's bootstrapped interval over frames that all curves cover.

    With fewer than SEEDS_FOR_INTERVAL curves the interval is NaN. Curves are interpolated linearly, because runs
    evaluate at the ends of episodes, which may be at different frames.
    """
    begin, end = max(curve.index[0] for curve in curves), min(curve.index[-1] for curve in curves)
    frames = np.unique(np.concatenate([curve.loc[begin:end].index for curve in curves]))
    values = np.stack([np.interp(frames, curve.index, curve.to_numpy()) for curve in curves])
    mean = values.mean(axis=0)
    low = high = np.full_like(mean, np.nan)
    if len(curves) >= SEEDS_FOR_INTERVAL and len(frames):
        result = stats.bootstrap(
            (values,), np.mean, axis=0, confidence_level=CONFIDENCE, method="percentile", n_resamples=2000, rng=0
        )
        low, high = result.confidence_interval
    columns = {"mean": mean, "interquartile_mean": stats.trim_mean(values, 0.25, axis=0), "low": low, "high": high}
    return pd.DataFrame({"frame": frames, **columns, "seeds": len(curves)})


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw_task(env: str, groups: Sequence[Group], reference: pd.DataFrame | None, out: Path) -> list[Path]:
    """Write the figure and the numbers of one task, and return the paths. Raises OSError."""
    with_skills = [group for group in groups if group.runs[0].num_skills]
    shape = (2, 3) if with_skills else (1, 1)
    legend_height = 0.18 * (len(groups) + 2)
    figure = Figure(figsize=(5.2 * shape[1], 3.8 * shape[0] + legend_height), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False).ravel()
    figure.suptitle(one_line(env))
    if reference is not None:
        draw_reference(axes[0], reference[reference["env"] == env])
        axes[0].set_xlim(0, 1.1 * max(run.last_frame for group in groups for run in group.runs) + 1)
    numbers = [draw_returns(axes[0], groups)]
    if with_skills:
        numbers += draw_bounds(axes[1], with_skills), draw_accuracies(axes[2], with_skills)
        longest = max((run for group in with_skills for run in group.runs), key=lambda run: run.last_frame)
        draw_skill_returns(axes[3], longest)
        draw_reward_against_reward(axes[4], with_skills)
        draw_distances(axes[5], longest)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", fontsize=8)
    png, pdf = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        figure.savefig(png, format="png", dpi=120)
        figure.savefig(pdf, format="pdf")
    table = pd.concat(numbers).to_csv(index=False, float_format="%.6g")
    contents = {"png": png.getvalue(), "pdf": pdf.getvalue(), "csv": table.encode()}
    paths = {kind: out / f"{folder_name(env)}.{kind}" for kind in contents}
    for kind, path in paths.items():
        write_file(path, contents[kind])
    return list(paths.values())


def draw_returns(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw the returns of evaluations, and return the numbers."""
    return draw_curves(axes, groups, "episode_reward", "return of evaluation episodes")


def draw_bounds(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw the bounds of groups with skills, and return the numbers."""
    ceiling = {math.log(group.runs[0].num_skills) for group in groups}
    name = "bound on I(skill; state), nats"
    numbers = draw_curves(axes, groups, "mutual_information_bound", name, ceiling, "ceiling")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST_BOUND))
    return numbers


def draw_accuracies(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw the accuracies of groups with skills, and return the numbers."""
    chance, name = {1 / group.runs[0].num_skills for group in groups}, "discriminator accuracy, fresh episodes"
    return draw_curves(axes, groups, "discriminator_accuracy", name, chance, "chance")


def draw_curves(
    axes: Axes, groups: Sequence[Group], column: str, name: str, levels: Iterable[float] = (), level_name: str = ""
) -> pd.DataFrame:
    """Draw each group's curve over its seeds of a column of eval.csv, and return the numbers.

    `levels` are heights of horizontal lines, which are labeled with `level_name`.
    """
    drawn, most = [], 0
    for group in groups:
        curves = [run.evaluations.groupby("step")[column].last() for run in group.runs]
        summary = over_seeds(curves)
        label = f"{group.label}: {len(curves)} seed" + ("s, mean; each one thin" if len(curves) > 1 else "")
        look: dict[str, Any] = {"color": group.color, "ls": group.style}
        most = max(most, len(curves))
        axes.plot(summary["frame"], summary["mean"], **look, marker=".", label=label)
        axes.fill_between(summary["frame"], summary["low"], summary["high"], color=group.color, alpha=0.25, lw=0)
        if len(curves) > 3:  # with fewer it equals the mean
            axes.plot(summary["frame"], summary["interquartile_mean"], color=group.color, ls=":")
        if len(curves) > 1:
            for single in curves:
                axes.plot(single.index, single, **look, lw=0.8, alpha=0.5)
        drawn.append(summary.assign(group=group.label, metric=column))
    if most > 3:
        axes.plot([], [], color="0.3", ls=":", label="interquartile mean")
    if most >= SEEDS_FOR_INTERVAL:
        axes.fill_between([], [], color="0.3", alpha=0.25, label=f"{CONFIDENCE:.0%} interval of the mean, bootstrapped")
    for level in levels:
        axes.axhline(level, color="0.5", lw=0.8)
        text = f"{level_name} {level:.2f}"
        axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), ha="right", fontsize=7)
    _finish(axes, name)
    return pd.concat(drawn)


def draw_reference(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the range and the mean of the published seeds."""
    if table.empty:
        return
    by_step = table.groupby("step")["episode_reward"]
    low, high, mean = by_step.min(), by_step.max(), by_step.mean()
    axes.fill_between(low.index, low, high, color="0.85", label=f"published: range of {table['seed'].nunique()} seeds")
    axes.plot(mean.index, mean, color="0.5", lw=1, label="published: mean")


def draw_skill_returns(axes: Axes, run: Run) -> None:
    """Draw the return of each skill of one run."""
    for number, (skill, table) in enumerate(run.skills.groupby("skill_id")):
        color, label = COLORS[skill % 10], f"{skill}" if number < LABELLED_SKILLS else None
        axes.plot(table["step"], table["episode_extrinsic_reward"], "o-", ms=2, lw=1, color=color, label=label)
    _finish(axes, f"return of each skill of {one_line(run.folder.name)}", legend_columns=2)


def draw_reward_against_reward(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw each skill's return against its intrinsic reward, at the last evaluation."""
    for group in groups:
        for run in group.runs:
            last = run.skills[run.skills["step"] == run.skills["step"].max()]
            rewards = last["mutual_information_bound"], last["episode_extrinsic_reward"]
            axes.scatter(*rewards, color=group.color, s=14)
    _finish(axes, "return of a skill, last evaluation", x="its intrinsic reward, nats per agent step")


def draw_distances(axes: Axes, run: Run) -> None:
    """Draw the mean distances between states of one skill and of different skills, if they were measured."""
    means = run.skills.groupby("step")[["state_distance_within", "state_distance_between"]].mean()
    for column, name in (("state_distance_between", "other skills"), ("state_distance_within", "the same skill")):
        measured = means[column].dropna()
        if len(measured):
            axes.plot(measured.index, measured, "o-", ms=2, label=f"states of {name}")
    _finish(axes, f"distance of states, {one_line(run.folder.name)}", legend_columns=1)


def _finish(axes: Axes, name: str, *, x: str = "frames", legend_columns: int = 0) -> None:
    """Set title and grid, and a legend of so many columns; groups have one legend for the whole figure instead."""
    axes.set(xlabel=x, title=name)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", nbins=6)
    if legend_columns and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=legend_columns, framealpha=0.6)
