"""The page of report.py: a single HTML file that shows runs. It reads files only, and loads no network."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from console.numbers import shown_size
from errors import UserError, one_line
from evaluation import report_measures as measures
from evaluation.curves import (
    COLORS,
    STYLES,
    Group,
    draw_accuracies,
    draw_bounds,
    draw_returns,
    draw_skill_returns,
    draw_training,
    make_groups,
    measured,
    training_curves,
)
from evaluation.figures import Axes, Figure
from evaluation.panels import curves_beside_evaluations
from evaluation.report_files import (
    EvaluationFiles,
    Media,
    Row,
    RunFiles,
    read_evaluation_files,
    read_run_files,
    settings_of,
)
from evaluation.runs import RecordedRun, read_runs
from running.atomic_files import output_folder, read_file, write_file
from running.columns import NO_SKILL
from running.names import folder_name
from running.stored_config import CONFIG_FILE

TEMPLATE, SCRIPT = "report.html", "report.js"  # beside this module
GENERATOR = b'<meta name="generator" content="report.py">'  # near the top of every report
SUFFIXES = (".html", ".htm")
POLICY_COLUMNS = (  # of summary.csv
    ("episode_extrinsic_reward", "return", 1),
    ("cells_visited", "cells", 0),
    ("mutual_information_bound", "bound", 2),
    ("discriminator_accuracy", "accuracy", 2),
)


class Chart(NamedTuple):
    """A figure of plot.py."""

    source: str  # a data URI
    title: str
    text: str  # the last point of each curve, in words


def write_report(places: Sequence[Path], evaluations: Sequence[Path], out: Path | None) -> None:
    """Read runs, and folders that evaluate.py wrote, and write the page. Print its path, and what is left out.

    Raises UserError, OSError.
    """
    runs, left_out = read_runs(places, read_run_files, (CONFIG_FILE, "eval.csv"), "runs")
    runs.sort(key=lambda files: (files.run.env, files.run.kind, files.run.seed))
    for reason in left_out:
        print(f"left out: {one_line(reason)}", file=sys.stderr)
    out = out or default_path(runs)
    check_out(out)
    evaluated = [read_evaluation_files(folder) for folder in evaluations]
    for files in evaluated:
        if files.env not in (None, *tasks(runs)):
            raise UserError(f"--evaluation {files.folder} is of {files.env}, the runs are of {', '.join(tasks(runs))}")
    page = make_page(runs, evaluated)
    with output_folder(out.parent):
        write_file(out, page)
    print(f"{out}: {shown_size(len(page))}")


def default_path(runs: Sequence[RunFiles]) -> Path:
    """Return reports/<task>_<run>.html; of several runs, reports/<tasks>.html."""
    tasks = "_".join(dict.fromkeys(files.run.env for files in runs))
    return Path("reports", folder_name(f"{tasks}_{runs[0].run.folder.name}" if len(runs) == 1 else tasks) + ".html")


def check_out(out: Path) -> None:
    """Raise UserError if `out` is no place for a page, or has a file that is not a report; OSError if unreadable."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} must be a file whose name ends in .html")
    if os.path.lexists(out) and (not out.exists() or GENERATOR not in read_file(out)[:1000]):
        raise UserError(f"--out {out} exists and is not a report; name another file, or remove it")


# -- the page ----------------------------------------------------------------------------------------------------------


def make_page(runs: Sequence[RunFiles], evaluations: Sequence[EvaluationFiles]) -> bytes:
    """Return the page as HTML."""
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = measures.number
    script, media = (here / SCRIPT).read_text(), Media()
    evaluated = [files.run for files in runs if files.frame is not None]
    groups = {env: make_groups([run for run in evaluated if run.env == env]) for env in tasks(runs)}
    seeds = [(group.label, len(group.runs)) for found in groups.values() for group in found]
    sections = [run_section(files, evaluations, media) for files in runs]
    page = environment.get_template(TEMPLATE).render(
        title=title_of(runs),
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        runs=sections,
        common=take_common(sections),
        curves=[(one_line(env), curves_of(found)) for env, found in groups.items() if has_curves(found)],
        evaluations=[evaluation_section(files, media) for files in evaluations],
        open_over_seeds=measures.not_measured_over_seeds(seeds),
        left_out=media.left_out,
        pictures=measures.PICTURES,
        policy_columns=POLICY_COLUMNS,
        read_policies=measures.READ_POLICIES,
        read_refit=measures.READ_REFIT,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode(errors="backslashreplace")


def has_curves(groups: Sequence[Group]) -> bool:
    """Return whether any run has evaluations at two frames."""
    return any(run.has_curves for group in groups for run in group.runs)


def tasks(runs: Sequence[RunFiles]) -> list[str]:
    return list(dict.fromkeys(files.run.env for files in runs))


def title_of(runs: Sequence[RunFiles]) -> str:
    names = one_line(", ".join(tasks(runs)))
    return f"{names}: {runs[0].name}" if len(runs) == 1 else f"{names}: {len(runs)} runs"


def take_common(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Take the settings, and the versions, that several runs have in common out of their sections and return them."""
    if len(sections) < 2:
        return {"settings": [], "versions": []}
    first, *others = sections
    settings = [setting for setting in first["settings"] if all(setting in one["settings"] for one in others)]
    for one in sections:
        one["settings"] = [setting for setting in one["settings"] if setting not in settings]
    same_versions = settings and all(one["versions"] == first["versions"] for one in others)
    return {"settings": settings, "versions": first["versions"] if same_versions else []}


def run_section(files: RunFiles, evaluations: Sequence[EvaluationFiles], media: Media) -> dict[str, Any]:
    """Return what the template shows of a run."""
    run, record = files.run, files.record
    resumed, several = record.get("resumed"), len(files.skills) > 1
    return {
        "name": files.name,
        "folder": one_line(str(run.folder)),
        "task": one_line(run.env),
        "kind": run.kind,
        "seed": run.seed,
        "state": files.state,
        "has_tables": files.has_tables,
        "frames": files.frames,
        "budget": files.budget,
        "time": duration(files.seconds),
        "device": text_of(record.get("device") or run.flags.get("device")),
        "commit": text_of(record.get("git_commit")),
        "renderer": text_of(record["renderer"].get("name")) if isinstance(record.get("renderer"), dict) else "",
        "versions": [(one_line(str(name)), text_of(value)) for name, value in mapping(record.get("versions")).items()],
        "resumes": len(resumed) if isinstance(resumed, list) else 0,
        "notes": text_of(run.flags.get("notes")),
        "settings": settings_of(run),
        "frame": files.frame,
        "figures": measures.figures_of(files),
        "training": training_figures(files.training),
        "outlook": measures.outlook(files),
        "training_curves": [] if run.has_curves else curves_of_training(run),
        "by_skill": chart(lambda axes: draw_skill_returns(axes, run)) if several and run.has_curves else None,
        "cards": cards(files.skills, files.videos, media),
        "pictures": {name: media.embed(files.pictures.get(name)) for name in measures.PICTURES},
        "open": measures.not_measured(files, [one for one in evaluations if one.may_be_of(files.run)]),
    }


def evaluation_section(files: EvaluationFiles, media: Media) -> dict[str, Any]:
    """Return what the template shows of a folder that evaluate.py wrote."""
    return {
        "name": one_line(str(files.folder)),
        "command": files.record.command if files.record is not None else "",
        "frame": next((int(row["step"]) for row in files.skills if row["step"] is not None), None),
        "summary": files.summary,
        "refit": files.refit,
        "cards": cards(files.skills, files.videos, media),
        "pictures": {name: media.embed(files.pictures.get(name)) for name in measures.PICTURES},
    }


def cards(skills: Sequence[Row], videos: Mapping[int | None, Path], media: Media) -> list[dict[str, Any]]:
    """Return a card for each skill, and for a policy without skills: its name, figures and video."""
    rows = {int(row["skill_id"]): row for row in skills if row["skill_id"] is not None}
    found = {NO_SKILL if skill is None else skill: video for skill, video in videos.items()}
    return [
        {
            "name": "policy" if skill == NO_SKILL else f"skill {skill}",
            "figures": measures.skill_figures(rows.get(skill, {})),
            "video": media.embed(found.get(skill)),
        }
        for skill in sorted({*rows, *found})
    ]


def training_figures(row: Row) -> list[tuple[str, str]]:
    """Return the last training episode in numbers."""
    shown = (("episode", "episode", 0), ("episode_reward", "return", 1), ("fps", "frames per second", 0))
    return [(label, measures.number(row[name], digits)) for name, label, digits in shown if row.get(name) is not None]


def mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """Return a value of config.json as one line; empty for what is no text or number."""
    return one_line(str(value)) if isinstance(value, (str, int, float)) else ""


def duration(seconds: float) -> str:
    """Return a time in words; empty if it is not known."""
    if not seconds > 0:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# -- curves ------------------------------------------------------------------------------------------------------------


def curves_of(groups: Sequence[Group]) -> list[Chart]:
    """Return the learning curves of the runs of one task."""
    with_skills = [group for group in groups if group.runs[0].num_skills]
    returns = chart(lambda axes: draw_returns(axes, groups), legend=True)
    charts = []
    for column, draw in (("mutual_information_bound", draw_bounds), ("discriminator_accuracy", draw_accuracies)):
        if measured(with_skills, column):
            charts.append(chart(partial(draw, groups=with_skills), legend=True))
    charts += [chart(draw, legend=True) for draw in curves_beside_evaluations(with_skills)]
    return [*charts, returns] if len(with_skills) == len(groups) else [returns, *charts]


def curves_of_training(run: RecordedRun) -> list[Chart]:
    """Return the curves of a run's training episodes."""
    alone = [Group(run.kind, [run], COLORS[0], STYLES[0])]
    return [chart(partial(draw_training, groups=alone, column=column)) for column in training_curves(alone)]


def chart(draw: Callable[[Axes], pd.DataFrame | None], *, legend: bool = False) -> Chart:
    """Return what `draw` draws, as SVG, with the last point of each curve in words."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    numbers = draw(axes)
    if legend:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", fontsize=8)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in letters that the font lacks
        figure.savefig(file, format="svg", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
    last = [] if numbers is None else [last_point(table) for _, table in numbers.groupby("group", sort=False)]
    return Chart(source, axes.get_title(), "; ".join(last))


def last_point(table: pd.DataFrame) -> str:
    """Return the last point of a curve in words."""
    last = table.iloc[-1]
    seeds = f"mean of {last['seeds']} seeds" if last["seeds"] > 1 else "1 seed"
    mean, low, high = (measures.number(last[name], 2) for name in ("mean", "low", "high"))
    interval = f", interval {low} to {high}" if last["low"] == last["low"] else ""
    return f"{last['group']}: {mean} at frame {int(last['frame']):,} ({seeds}{interval})"
