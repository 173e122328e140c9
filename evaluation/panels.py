"""The figure that plot.py draws of a task: a panel for each measure that its runs have.

Panels of single skills are of one run, the longest: each skill has one color and its number in all of them.
"""

from __future__ import annotations

import io
import math
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from console.numbers import shown_number
from errors import UserError, one_line
from evaluation.curves import (
    BESIDE_EVALUATIONS,
    CONTROL_STYLES,
    Group,
    draw_accuracies,
    draw_bounds,
    draw_coverage,
    draw_effective_skills,
    draw_level,
    draw_returns,
    draw_skill_returns,
    draw_training,
    finish,
    make_groups,
    measured,
    training_curves,
)
from evaluation.figures import Axes, Figure, skill_color
from evaluation.record import OF_EPISODES, check_episodes_alike, read_evaluation_record
from evaluation.runs import RecordedRun, read_reference, read_run, read_runs
from running.atomic_files import output_folder, write_file
from running.names import folder_name
from running.tables import read_table

Panel = Callable[[Axes], Any]  # draws; returns the numbers of curves over seeds, else nothing
CONTROL_NUMBERS = ("skills", "episodes", "episode_extrinsic_reward")  # of summary.csv
COLUMNS = 3  # panels in a row
LABEL_WIDTH = 70  # characters of a line of the legend, for each column of panels


def plot_runs(places: Sequence[Path], out: Path, published: Path | None, evaluation: Path | None = None) -> None:
    """Read the runs in `places` and write a figure for each task to `out`. Print its paths, and what is left out.

    Raises UserError, OSError.

    Args:
        published: a CSV file with curves to draw beside them.
        evaluation: a folder of `evaluate.py --controls`, whose levels to draw.
    """
    reference = None if published is None else read_reference(published)
    controls = None if evaluation is None else read_controls(evaluation)
    runs, left_out = read_runs(places, read_run, ("eval.csv",), "evaluations")
    for reason in left_out:
        print(f"left out: {one_line(reason)}", file=sys.stderr)
    tasks = sorted({run.env for run in runs})
    if controls is not None and len(tasks) > 1:
        raise UserError(f"--evaluation has levels of one task, the runs are of {', '.join(tasks)}; name runs of one")
    if evaluation is not None:
        check_episodes_alike(evaluation, read_evaluation_record(evaluation), [(run.shown, run.flags) for run in runs])
    with output_folder(out):
        for env in tasks:
            groups = make_groups([run for run in runs if run.env == env])
            for path in draw_task(env, groups, reference, controls, out):
                print(path)


def read_controls(folder: Path) -> pd.DataFrame:
    """Return the rows of the policies `untrained` and `random` of a folder of evaluate.py. Raises UserError."""
    path = folder / "summary.csv"
    try:
        columns = read_table(path, CONTROL_NUMBERS, newer=("cells_visited",), texts=("policy",))
    except UserError as error:
        raise UserError(f"--evaluation {error}; name a folder that evaluate.py --controls wrote") from error
    table = pd.DataFrame(columns)
    controls = table[table["policy"].isin(("untrained", "random"))]
    if controls.empty:
        raise UserError(f"--evaluation {path} has no controls; name a folder that evaluate.py --controls wrote")
    return controls


def draw_task(
    env: str, groups: Sequence[Group], reference: pd.DataFrame | None, controls: pd.DataFrame | None, out: Path
) -> list[Path]:
    """Write the figure and the numbers of one task, and return the paths. Raises OSError."""
    returns: Panel = partial(draw_task_returns, env, groups, reference, controls)
    runs, title = [run for group in groups for run in group.runs], env
    if any(run.has_curves for run in runs):
        panels = [returns, *skill_panels(groups, controls)]
    else:
        panels = [partial(draw_training, groups=groups, column=column) for column in training_curves(groups)]
        if not panels or reference is not None or controls is not None:
            panels.insert(0, returns)
        panels += panels_of_last_evaluation(groups)
        frames = ", ".join(map(str, sorted({run.last_frame for run in runs})))
        title += f": one evaluation{' of each run' if len(runs) > 1 else ''} so far, at frame {frames}"
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.suptitle(one_line(title))
    numbers = [draw(axes) for axes, draw in zip(places, panels, strict=False)]
    for axes in places[len(panels) :]:
        axes.remove()
    handles, labels = places[0].get_legend_handles_labels()
    labels = [textwrap.fill(label, LABEL_WIDTH * columns, subsequent_indent="    ") for label in labels]
    figure.set_figheight(figure.get_figheight() + 0.15 * ("\n".join(labels).count("\n") + 3))
    figure.legend(handles, labels, loc="outside lower left", fontsize=8)
    png, pdf = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        figure.savefig(png, format="png", dpi=120)
        figure.savefig(pdf, format="pdf")
    table = pd.concat([drawn for drawn in numbers if isinstance(drawn, pd.DataFrame)])
    text = table.to_csv(index=False, float_format="%.6g")
    contents = {"png": png.getvalue(), "pdf": pdf.getvalue(), "csv": text.encode()}
    paths = {kind: out / f"{folder_name(env)}.{kind}" for kind in contents}
    for kind, path in paths.items():
        write_file(path, contents[kind])
    return list(paths.values())


def skill_panels(groups: Sequence[Group], controls: pd.DataFrame | None) -> list[Panel]:
    """Return the panels of the groups with skills that have content."""
    groups = [group for group in groups if group.runs[0].num_skills]
    if not groups:
        return []
    curves: dict[str, Panel] = {
        "mutual_information_bound": partial(draw_bounds, groups=groups),
        "mutual_information_bound_second_half": partial(draw_bounds, groups=groups, second_half=True),
        "discriminator_accuracy": partial(draw_accuracies, groups=groups),
        "effective_skills": partial(draw_effective_skills, groups=groups),
        "cells_visited": partial(draw_coverage_beside_controls, groups=groups, controls=controls),
    }
    panels = [panel for column, panel in curves.items() if measured(groups, column)]
    panels += curves_beside_evaluations(groups)
    if (longest := longest_with_skills(groups)) is not None:
        panels += [partial(draw_skill_returns, run=longest), *panels_of_last_evaluation(groups)]
        if longest.skills["state_distance_between"].notna().any():
            panels.append(partial(draw_distances, run=longest))
    return panels


def curves_beside_evaluations(groups: Sequence[Group]) -> list[Panel]:
    """Return the panels of training that evaluations are compared with: accuracy in sampled batches, and entropy."""
    columns = [column for column in BESIDE_EVALUATIONS if measured(groups, column, "training")]
    return [partial(draw_training, groups=groups, column=column) for column in columns]


def panels_of_last_evaluation(groups: Sequence[Group]) -> list[Panel]:
    """Return the panel of the skills at the last evaluation of the longest run; none without skills."""
    longest = longest_with_skills(groups)
    return [] if longest is None else [partial(draw_reward_against_reward, run=longest)]


def longest_with_skills(groups: Sequence[Group]) -> RecordedRun | None:
    """Return the longest run with skills, if it has their table."""
    runs = [run for group in groups for run in group.runs if run.num_skills]
    longest = max(runs, key=lambda run: run.last_frame, default=None)
    return longest if longest is not None and len(longest.skills) else None


def draw_task_returns(
    env: str, groups: Sequence[Group], reference: pd.DataFrame | None, controls: pd.DataFrame | None, axes: Axes
) -> pd.DataFrame:
    """Draw the returns of all groups, published ones, and levels of controls."""
    runs = [run for group in groups for run in group.runs]
    if reference is not None:
        draw_reference(axes, reference[reference["env"] == env])
    if reference is not None or not any(run.has_curves for run in runs):
        end = max(run.last_frame for run in runs) or max(run.budget or 0 for run in runs)
        axes.set_xlim(0, 1.1 * end + 1)
    numbers = draw_returns(axes, groups)
    if controls is not None:
        draw_controls(axes, controls, "episode_extrinsic_reward")
    else:
        draw_untrained(axes, runs)
    return numbers


def draw_untrained(axes: Axes, runs: Sequence[RecordedRun]) -> None:
    """Draw the mean return of the evaluations before training, if the runs have equal episodes."""
    begun = [run.evaluations.iloc[0] for run in runs if not run.flags.get("finetune_from")]
    returns = [row["episode_reward"] for row in begun if row["step"] == 0]
    if returns and len({str([run.flags.get(name) for name in OF_EPISODES]) for run in runs}) == 1:
        mean = sum(returns) / len(returns)
        draw_level(axes, mean, f"untrained {shown_number(mean, '.3g')}", ":")


def draw_coverage_beside_controls(axes: Axes, groups: Sequence[Group], controls: pd.DataFrame | None) -> pd.DataFrame:
    """Draw the cells visited. Those of controls are comparable if they are of as many episodes."""
    if controls is not None:
        counts = {count for group in groups for run in group.runs for count in run.episodes_of_coverage}
        same = controls[(controls["skills"] * controls["episodes"]).isin(counts)]
        if same.empty:
            played = int((controls["skills"] * controls["episodes"]).iloc[0])
            counted = ", ".join(map(str, sorted(counts)))
            why = f"the cells of {played} episodes cannot be compared with those of {counted}"
            print(f"left out: --evaluation: {why}", file=sys.stderr)
        draw_controls(axes, same, "cells_visited")
    return draw_coverage(axes, groups)  # last, as it decides how high the axis is


def draw_controls(axes: Axes, controls: pd.DataFrame, column: str) -> None:
    """Draw a level for each control in which a column of summary.csv was measured."""
    for policy, level in controls.set_index("policy")[column].dropna().items():
        draw_level(axes, level, f"{policy} {shown_number(level, '.3g')}", CONTROL_STYLES[str(policy)])


def draw_reference(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the range and the mean of the published seeds."""
    if table.empty:
        return
    by_step = table.groupby("step")["episode_reward"]
    low, high, mean = by_step.min(), by_step.max(), by_step.mean()
    axes.fill_between(low.index, low, high, color="0.85", label=f"published: range of {table['seed'].nunique()} seeds")
    axes.plot(mean.index, mean, color="0.5", lw=1, label="published: mean")


def draw_reward_against_reward(axes: Axes, run: RecordedRun) -> None:
    """Draw the return of each skill of one run against its intrinsic reward, at the last evaluation."""
    last = run.skills[run.skills["step"] == run.skills["step"].max()]
    for _, row in last.iterrows():
        skill, place = int(row["skill_id"]), (row["mutual_information_bound"], row["episode_extrinsic_reward"])
        look: dict[str, Any] = {"color": skill_color(skill, run.num_skills)}
        axes.scatter(*place, s=14, **look)
        axes.annotate(f"{skill}", place, xytext=(3, 3), textcoords="offset points", fontsize=7, **look)
    axes.margins(0.08)
    name = f"skills of {run.shown}, last evaluation"
    finish(axes, name, "return of the task", x="intrinsic reward, nats per agent step")


def draw_distances(axes: Axes, run: RecordedRun) -> None:
    """Draw the mean distances between states of one skill and of different skills, if they were measured."""
    means = run.skills.groupby("step")[["state_distance_within", "state_distance_between"]].mean()
    for column, name, style in (
        ("state_distance_between", "other skills", "o-"),
        ("state_distance_within", "the same skill", "o--"),
    ):
        distances = means[column].dropna()
        if len(distances):
            axes.plot(distances.index, distances, style, color="0.3", ms=2, label=f"states of {name}")
    finish(axes, f"distance of states, skills of {run.shown}", "standard deviations")
    axes.legend(fontsize=7, framealpha=0.6)
