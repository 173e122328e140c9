"""Learning curves of runs.

Runs that differ only in the seed form a group. Its curve is the mean over seeds, with the interquartile mean and, for
five seeds or more, the bootstrapped interval of the mean. Horizontal axes count frames, except that of rewards.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from config import Role, flags_with
from errors import one_line
from evaluation.figures import NAMED_SKILLS, Axes, skill_color
from evaluation.runs import DEFAULTS, OF_SKILLS, RecordedRun

NAMED_BY_KIND = frozenset(flags_with(Role.FOLLOWS_SKILLS))  # flags that always differ between DrQ and DIAYN
CONFIDENCE = 0.95
RESAMPLES = 2000  # of the bootstrap
LARGEST_RESAMPLE = 10_000_000  # values that are in memory at once
SEEDS_FOR_INTERVAL = 5  # with fewer, a bootstrap gives little more than the lowest and highest value
COLORS = [f"C{number}" for number in range(10)]
STYLES = ("-", "--", "-.")  # the next one when the colors repeat
TRAINING_CURVES = {  # columns of train.csv that are drawn: title, unit
    "episode_reward": ("return of training episodes", "return of the task"),
    "discriminator_accuracy": ("discriminator accuracy, sampled batches", "share of observations"),
    "actor_entropy": ("entropy of the policy, sampled batches", "nats"),
    "discriminator_loss": ("loss of the discriminator", "nats"),
    "critic_loss": ("loss of the critic", "squared error"),
    "actor_loss": ("loss of the actor", "alpha log pi - min Q"),
}
CONTROL_STYLES = {"untrained": ":", "random": "--"}  # of the levels of other policies
BESIDE_EVALUATIONS = ("discriminator_accuracy", "actor_entropy")  # of them, also with curves of evaluations
LOWEST_BOUND = -1.0  # nats, of the axis; an untrained discriminator is overconfident by far more

Table = Literal["evaluations", "training"]  # of a RecordedRun


@dataclass
class Group:
    """Runs of one task that differ only in the seed."""

    label: str
    runs: list[RecordedRun]
    color: str
    style: str


def make_groups(runs: Sequence[RecordedRun]) -> list[Group]:
    """Group runs by their settings, with one run for each seed.

    A label names the flags in which groups differ, but not a value that most groups of the kind have.
    """

    def differing(among: Sequence[RecordedRun]) -> set[str]:
        return {name for name in DEFAULTS if len({json.dumps(run.settings[name]) for run in among}) > 1}

    members: dict[tuple[str, str], list[RecordedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.kind, run.seed)):
        members.setdefault((run.kind, json.dumps(run.settings)), []).append(run)
    groups = []
    for number, ((kind, _), group) in enumerate(members.items()):
        kin = [run for run in runs if run.kind == kind]
        shown = sorted((differing(runs) - NAMED_BY_KIND - OF_SKILLS) | differing(kin))
        settings, others = group[0].settings, [each[0].settings for (of, _), each in members.items() if of == kind]
        words = ", ".join(f"{name} {settings[name]}" for name in shown if not is_usual(name, settings, others))
        label = one_line(f"{kind} ({words})" if words else kind)
        again, color = divmod(number, len(COLORS))
        groups.append(Group(label, one_for_each_seed(group), COLORS[color], STYLES[again % len(STYLES)]))
    return groups


def is_usual(name: str, settings: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether more than half of three groups or more have this value of a flag."""
    equal = sum(each[name] == settings[name] for each in among)
    return len(among) > 2 and 2 * equal > len(among)


def one_for_each_seed(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Return the longest run of each seed and fine-tuning source: a second one is not another sample."""
    longest: dict[tuple[int, str], RecordedRun] = {}
    for run in sorted(runs, key=lambda run: run.last_frame, reverse=True):
        sample = run.seed, run.flags.get("finetune_from") or ""
        if longest.setdefault(sample, run) is not run:
            why = f"'{longest[sample].folder}' has the same settings and seed"
            print(one_line(f"warning: '{run.folder}' is left out: {why}"), file=sys.stderr)
    return [longest[sample] for sample in sorted(longest)]


# -- statistics --------------------------------------------------------------------------------------------------------


def over_seeds(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Return mean, interquartile mean and the mean's bootstrapped interval over frames that all curves cover.

    There may be no such frame. With fewer than SEEDS_FOR_INTERVAL curves the interval is NaN. Curves are interpolated
    linearly, because runs evaluate at the ends of episodes, which may be at different frames.
    """
    begin, end = max(curve.index[0] for curve in curves), min(curve.index[-1] for curve in curves)
    frames = np.unique(np.concatenate([curve.loc[begin:end].index for curve in curves]))
    values = np.stack([np.interp(frames, curve.index, curve.to_numpy()) for curve in curves])
    mean = values.mean(axis=0)
    low = high = np.full_like(mean, np.nan)
    if len(curves) >= SEEDS_FOR_INTERVAL and len(frames):
        result = stats.bootstrap(
            (values,),
            np.mean,
            axis=0,
            confidence_level=CONFIDENCE,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=int(np.clip(LARGEST_RESAMPLE // values.size, 1, RESAMPLES)),
            rng=0,
        )
        low, high = result.confidence_interval
    columns = {"mean": mean, "interquartile_mean": stats.trim_mean(values, 0.25, axis=0), "low": low, "high": high}
    return pd.DataFrame({"frame": frames, **columns, "seeds": len(curves)})


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw_returns(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw the returns of evaluations, and return the numbers."""
    return draw_curves(axes, groups, "episode_reward", "return of evaluation episodes", unit="return of the task")


def draw_bounds(axes: Axes, groups: Sequence[Group], *, second_half: bool = False) -> pd.DataFrame:
    """Draw the bounds of groups with skills, over whole episodes or their second halves, and return the numbers."""
    column = "mutual_information_bound_second_half" if second_half else "mutual_information_bound"
    name = "bound in the second half of the episode" if second_half else "bound on I(skill; state)"
    ceiling = {math.log(group.runs[0].num_skills) for group in groups}
    numbers = draw_curves(axes, groups, column, name, ceiling, "ceiling", unit="nats")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST_BOUND))
    return numbers


def draw_accuracies(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw the accuracies of groups with skills, and return the numbers."""
    chance, name = {1 / group.runs[0].num_skills for group in groups}, "discriminator accuracy, fresh episodes"
    numbers = draw_curves(axes, groups, "discriminator_accuracy", name, chance, "chance", unit="share of steps")
    axes.set_ylim(0.0, 1.0)
    return numbers


def draw_effective_skills(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw the effective numbers of skills of groups with skills, and return the numbers."""
    count, name = {float(group.runs[0].num_skills) for group in groups}, "effective number of skills"
    numbers = draw_curves(axes, groups, "effective_skills", name, count, "all", unit="skills")
    axes.set_ylim(bottom=0.0)
    return numbers


def draw_coverage(axes: Axes, groups: Sequence[Group]) -> pd.DataFrame:
    """Draw how many cells the evaluations of groups with skills visit, and return the numbers."""
    for group in groups:
        episodes = {count for run in group.runs for count in run.episodes_of_coverage}
        if len(episodes) > 1:
            counted = ", ".join(map(str, sorted(episodes)))
            why = "and more episodes visit more cells"
            print(f"warning: {group.label}: coverage is of {counted} episodes, {why}", file=sys.stderr)
    numbers = draw_curves(axes, groups, "cells_visited", "coverage: cells visited by all skills", unit="cells")
    axes.set_ylim(bottom=0.0)
    return numbers


def draw_training(axes: Axes, groups: Sequence[Group], column: str) -> pd.DataFrame:
    """Draw one of TRAINING_CURVES, and return the numbers."""
    counts, levels = {group.runs[0].num_skills for group in groups} - {0}, set()
    if column == "discriminator_accuracy":
        levels = {1 / count for count in counts}
    if column == "discriminator_loss":
        levels = {math.log(count) for count in counts}
    name, unit = TRAINING_CURVES[column]
    numbers = draw_curves(axes, groups, column, name, levels, "chance", unit=unit, table="training")
    if column == "discriminator_accuracy":
        axes.set_ylim(0.0, 1.0)
    return numbers


def training_curves(groups: Sequence[Group]) -> list[str]:
    """Return those of TRAINING_CURVES that have two points at least, in any run."""
    tables = [run.training for group in groups for run in group.runs if len(run.training)]
    return [name for name in TRAINING_CURVES if any(table[name].count() > 1 for table in tables)]


def measured(groups: Sequence[Group], column: str, table: Table = "evaluations") -> bool:
    """Return whether a column of eval.csv or train.csv has a number, in any run."""
    tables = [getattr(run, table) for group in groups for run in group.runs]
    return any(column in table and table[column].notna().any() for table in tables)


def draw_curves(
    axes: Axes,
    groups: Sequence[Group],
    column: str,
    name: str,
    levels: Iterable[float] = (),
    level_name: str = "",
    *,
    unit: str,
    table: Table = "evaluations",
) -> pd.DataFrame:
    """Draw each group's curve over its seeds of a column of eval.csv, and return the numbers.

    Runs in which it was not measured are left out; it must be `measured` in one.

    Args:
        levels: heights of horizontal lines, which are labeled with `level_name`.
        unit: of the vertical axis.
        table: `training` draws a column of train.csv.
    """
    drawn, most, count = [], 0, 0
    for group in groups:
        curves = [getattr(run, table).groupby("step")[column].last().dropna() for run in group.runs]
        curves = [curve for curve in curves if len(curve)]
        if not curves:
            continue
        count += len(curves)
        summary = over_seeds(curves)
        label = f"{group.label}: {len(curves)} seed"
        if len(curves) > 1:
            label += f"s, {'no frame in common' if summary.empty else 'mean'}; each one thin"
        look: dict[str, Any] = {"color": group.color, "ls": group.style}
        if not summary.empty:
            most = max(most, len(curves))
        axes.plot(summary["frame"], summary["mean"], **look, marker=".", label=label)
        axes.fill_between(summary["frame"], summary["low"], summary["high"], color=group.color, alpha=0.25, lw=0)
        if len(curves) > 3:  # with fewer it equals the mean
            axes.plot(summary["frame"], summary["interquartile_mean"], color=group.color, ls=":")
        if len(curves) > 1:
            for single in curves:
                axes.plot(single.index, single, **look, lw=0.8, alpha=0.5, marker="." if len(single) == 1 else "")
        drawn.append(summary.assign(group=group.label, metric=f"train/{column}" if table == "training" else column))
    if most > 3:
        axes.plot([], [], color="0.3", ls=":", label="interquartile mean")
    if most >= SEEDS_FOR_INTERVAL:
        axes.fill_between([], [], color="0.3", alpha=0.25, label=f"{CONFIDENCE:.0%} interval of the mean, bootstrapped")
    for level in levels:
        draw_level(axes, level, f"{level_name} {level:.3g}")
    runs = sum(len(group.runs) for group in groups)
    finish(axes, name if count == runs else f"{name} ({count} of {runs} runs)", unit)
    return pd.concat(drawn)


def draw_level(axes: Axes, height: float, text: str, style: str = "-") -> None:
    """Draw a horizontal line, with a text at its right end."""
    axes.axhline(height, color="0.5", lw=0.8, ls=style)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 2), "textcoords": "offset points"}
    axes.annotate(text, (1, height), **place, ha="right", fontsize=7, color="0.3")


def draw_skill_returns(axes: Axes, run: RecordedRun) -> None:
    """Draw the return of each skill of one run, in the color that the skill has in every picture."""
    for skill, table in run.skills.groupby("skill_id"):
        look: dict[str, Any] = {"color": skill_color(skill, run.num_skills), "ms": 2, "lw": 1}
        axes.plot(table["step"], table["episode_extrinsic_reward"], "o-", label=f"{skill}", **look)
        if run.num_skills > NAMED_SKILLS:  # too many for a legend
            end = table["step"].iloc[-1], table["episode_extrinsic_reward"].iloc[-1]
            axes.annotate(f"{skill}", end, xytext=(2, 0), textcoords="offset points", fontsize=5, color=look["color"])
    finish(axes, f"return of each skill of {run.shown}", "return of the task")
    if len(axes.get_lines()) > 0 and run.num_skills <= NAMED_SKILLS:
        axes.legend(title="skill", title_fontsize=7, fontsize=7, ncols=2, framealpha=0.6)


def finish(axes: Axes, name: str, unit: str, x: str = "frames") -> None:
    """Set the title, the names of the axes and the grid."""
    axes.set(xlabel=x, ylabel=unit, title=name)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", nbins=6)
