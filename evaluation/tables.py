"""The tables that evaluate.py writes and prints."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from console.numbers import counted, shown_number
from evaluation.evaluate_skills import Evaluation
from logger import Row
from running.atomic_files import write_file
from running.columns import LINE_WIDTH
from running.csv_files import csv_lines, header

SHORT_NAMES = {  # of columns, in a printed table
    "skill_id": "skill",
    "episode_extrinsic_reward": "return",
    "episode_intrinsic_reward_sum": "intrinsic",
    "discriminator_accuracy": "accuracy",
    "mutual_information_bound": "bound",
    "mutual_information_bound_second_half": "2nd half",
    "cells_visited": "cells",
    "displacement_x": "moved x",
    "displacement_y": "moved y",
    "state_distance_within": "within",
    "state_distance_between": "between",
    "episodes_train": "train",
    "episodes_validation": "validation",
    "episodes_test": "test",
}
MEANINGS = {  # of short names that do not say enough, by the column they are printed with
    "mutual_information_bound_second_half": "2nd half: bound in the episode's second half",
    "displacement_x": "moved x, y: meters",
    "state_distance_within": "within: distance between its own episodes",
    "state_distance_between": "between: distance to other skills' states",
}


def write_table(path: Path, rows: Sequence[Row], columns: Sequence[str], frame: int | None = None) -> None:
    """Write rows. The step of those that have none is the frame of the checkpoint."""
    lines = [header(columns), *({"step": frame, **row} for row in rows)]
    write_file(path, csv_lines(lines, columns, path.name))


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows without the columns that are empty, and without the last ones that the terminal is too narrow for.

    Cells that are empty have a dash. Outside a terminal a line has at most as many characters as in the console. Below
    the table, print what short names mean.
    """
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    width = shutil.get_terminal_size((LINE_WIDTH, 0)).columns
    while True:
        cells = [{SHORT_NAMES.get(name, name): _shown(row.get(name)) for name in used} for row in rows]
        text = pd.DataFrame(cells).to_string(index=False)
        if len(text.partition("\n")[0]) <= width or len(used) == 1:
            break
        used.pop()
    print(text)
    meanings = [MEANINGS[name] for name in used if name in MEANINGS]
    if meanings:
        print(textwrap.fill("; ".join(meanings), width))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return shown_number(value, ".3f") if isinstance(value, float) else str(value)


def decile_rows(evaluation: Evaluation) -> list[Row]:
    """Return the rows of deciles.csv: for each skill, the bound in each tenth of its episodes."""
    return [
        {"skill_id": skill, "decile": number, "mutual_information_bound": bound}
        for skill, bounds in evaluation.bound_by_decile.items()
        for number, bound in enumerate(bounds, start=1)
    ]


def print_bound(evaluation: Evaluation, num_skills: int, complete: bool) -> None:
    """Print means over the skills that were played. Only those of all skills bound the mutual information."""
    measures = evaluation.overall
    accuracy, bound = measures["discriminator_accuracy"], measures["mutual_information_bound"]
    what, ceiling = ("bound", f" of at most {math.log(num_skills):.3f}") if complete else ("intrinsic reward", "")
    print(f"means over skills: accuracy {accuracy:.3f} (chance {1 / num_skills:.3f})")
    text = f"{what} in nats: {shown_number(bound, '.3f')}{ceiling}"
    if measures["mutual_information_bound_second_half"] is not None:
        text += f", in the second half {shown_number(measures['mutual_information_bound_second_half'], '.3f')}"
    print(text)
    if complete:
        print(f"effective number of skills: {measures['effective_skills']:.2f} of {len(evaluation.rows)}")
    bounds = " ".join("-" if bound is None else shown_number(bound, ".2f") for bound in evaluation.mean_by_decile)
    print(f"{what} in each tenth: {bounds}")


def summary_row(policy: str, evaluation: Evaluation, complete: bool) -> Row:
    """Return the row of summary.csv for a policy. Only all skills together have an effective number of skills."""
    row: Row = {"policy": policy, "skills": len(evaluation.rows), "episodes": evaluation.rows[0]["episodes"]}
    returns = [episode.extrinsic_reward for episode in evaluation.episodes]
    measures = evaluation.overall if complete else {**evaluation.overall, "effective_skills": None}
    return {**row, "episode_extrinsic_reward": sum(returns) / len(returns), **measures}


def print_coverage(summary: Sequence[Row]) -> None:
    """Print the cells that each policy visited, if the task has a grid."""
    if summary[0]["cells_visited"] is not None:
        cells = ", ".join(f"{row['policy']} {row['cells_visited']}" for row in summary)
        episodes = counted(summary[0]["skills"] * summary[0]["episodes"], "episode")
        print(f"cells visited in {episodes}: {cells}")
