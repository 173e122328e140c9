"""Draw the measures of evaluate.py over the snapshots of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence

from evaluation.curves import CONTROL_STYLES, draw_level, finish
from evaluation.figures import Axes, Figure
from logger import Row

MEASURES = {  # column of summary.csv: title, unit
    "episode_extrinsic_reward": ("return, mean over skills", "return of the task"),
    "discriminator_accuracy": ("accuracy of the discriminator", "share of steps"),
    "mutual_information_bound": ("bound on I(skill; state)", "nats"),
    "mutual_information_bound_second_half": ("bound in the second half of the episode", "nats"),
    "effective_skills": ("effective number of skills", "skills"),
    "cells_visited": ("coverage: cells visited by all skills", "cells"),
}
REFITTED = {"mutual_information_bound": "nats", "discriminator_accuracy": "share of steps"}
COLUMNS = 3


def draw_measures(summary: Sequence[Row], refitted: Sequence[Row] = ()) -> bytes:
    """Return a PNG with a panel for each measure that a row has, over frames.

    Args:
        summary: rows of summary.csv. Rows of other policies than `trained` are levels.
        refitted: rows of refit.csv.
    """
    panels = [
        (title, unit, {"": [(row, row.get(column)) for row in summary]}) for column, (title, unit) in MEASURES.items()
    ]
    for column, unit in REFITTED.items():
        kinds = dict.fromkeys(row["discriminator"] for row in refitted)
        curves = {kind: [(row, row[column]) for row in refitted if row["discriminator"] == kind] for kind in kinds}
        name = "bound" if unit == "nats" else "accuracy"
        panels.append((f"{name} of a refitted discriminator", unit, curves))
    panels = [panel for panel in panels if any(value is not None for curve in panel[2].values() for _, value in curve)]
    lines = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4.6 * COLUMNS, 3.4 * lines), layout="constrained")
    for number, (title, unit, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, COLUMNS, number)
        for name, curve in curves.items():
            _draw(axes, name, curve)
        finish(axes, title, unit)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _draw(axes: Axes, name: str, curve: Sequence[tuple[Row, float | None]]) -> None:
    """Draw the values of the trained policy as a curve, those of others as levels; `name` is the discriminator's."""
    points = [(row["step"], value) for row, value in curve if row["policy"] == "trained" and value is not None]
    axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=name)
    for row, value in curve:
        if row["policy"] != "trained" and value is not None:
            draw_level(axes, value, " ".join(filter(None, (row["policy"], name))), CONTROL_STYLES[row["policy"]])
    if name:
        axes.legend(fontsize=7)
