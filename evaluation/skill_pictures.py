"""Pictures of the skills of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np

from console.numbers import counted, shown_number
from envs.cells import CellGrid, Coordinate
from evaluation.figures import (
    NAMED_SKILLS,
    Axes,
    Axis,
    Figure,
    FigureCanvasAgg,
    Normalize,
    ScalarMappable,
    skill_color,
)
from evaluation.play import Trace
from evaluation.skill_report import EpisodesBySkill

MATRIX_NUMBERS = 40  # skills up to which the confusion matrix has numbers
SHEET_ROWS, SHEET_COLUMNS = 64, 8  # skills, and pictures of an episode, on the contact sheet
SHEET_CHOICE = 8  # pictures that are kept for each one shown, as nobody knows when an episode will end
SHEET_TILE, SHEET_HEADER, SHEET_LABEL = 84, 18, 44  # pixels: smallest tile, header's height, labels' width

MOST_LINES, MOST_POINTS = 400, 500  # trajectories in a picture, and points of one
MOST_BORDERS = 60  # borders of cells along an axis, above which none is drawn


def headline(measures: Mapping[str, Any], num_skills: int, episodes: int, frame: int) -> str:
    """Return a summary of an evaluation with so many episodes of each skill in three lines; see `overall`."""
    accuracy, bound = measures["discriminator_accuracy"], measures["mutual_information_bound"]
    if bound is None:  # no episode had a step
        return caption(episodes, frame)
    skills = measures["effective_skills"]
    lines = (
        caption(episodes, frame),
        f"accuracy {accuracy:.2f} (chance {1 / num_skills:.2f}), {skills:.1f} of {num_skills} effective skills",
        f"bound {shown_number(bound, '.2f')} of at most {math.log(num_skills):.2f} nats",
    )
    return "\n".join(lines)


def caption(episodes: int, frame: int) -> str:
    """Return how much was played, and when, in words."""
    return f"frame {frame:,}, {counted(episodes, 'episode')} of each skill"


def picture_interval(max_episode_steps: int) -> int:
    """Return the agent steps between the pictures of an episode among which the contact sheet chooses."""
    return math.ceil(max_episode_steps / (SHEET_CHOICE * (SHEET_COLUMNS - 1)))


def draw_confusion_matrix(matrix: np.ndarray, title: str) -> np.ndarray:
    """Draw a matrix `(K, K)` of shares as a picture, uint8 RGB `(H, W, 3)`."""
    count = len(matrix)
    readable = count <= MATRIX_NUMBERS  # with more skills, the cells have no numbers and the picture grows no further
    size = 0.42 * min(count, MATRIX_NUMBERS)
    figure = _figure(max(2.2 + size, 3.4), 1.8 + size, title, right=0.2)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="Blues", interpolation=None if readable else "nearest")
    for (row, column), share in np.ndenumerate(matrix) if readable else ():
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="predicted skill", ylabel="skill, % of its steps")
    if readable:
        axes.set(xticks=range(count), yticks=range(count))
    return _drawn(canvas)


def _figure(width: float, height: float, title: str, *, right: float) -> Figure:
    """Return a figure of this size in inches with a title, and margins for the names and numbers of axes.

    To have matplotlib measure the margins that are needed takes longer than to draw everything else.
    """
    figure = Figure(figsize=(width, height), dpi=100)
    figure.subplots_adjust(0.9 / width, 0.5 / height, 1.0 - right / width, 1.0 - 0.5 / height, hspace=0.08)
    figure.suptitle(title, y=1.0 - 0.08 / height, va="top", fontsize=8)
    return figure


def _drawn(canvas: FigureCanvasAgg) -> np.ndarray:
    """Return a figure as a picture, uint8 RGB `(H, W, 3)`."""
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def draw_trajectories(played: EpisodesBySkill, cell_grid: CellGrid, title: str) -> np.ndarray:
    """Draw where the skills were, in the coordinates of the grid, one color for each skill: uint8 RGB `(H, W, 3)`.

    A place in a plane is drawn as a path with a dot at its start, other coordinates over time; an angle goes on after a
    full turn. Thin lines are the borders of cells. Of many skills and episodes only the first are drawn, MOST_LINES
    together.
    """
    played = dict(islice(played.items(), MOST_LINES))
    coordinates, is_plane = cell_grid.coordinates, cell_grid.is_plane
    count = 1 if is_plane else len(coordinates)
    figure = _figure(7.4, 5.6 if is_plane else 1.0 + 2.6 * count, title, right=0.9)
    canvas, panels = FigureCanvasAgg(figure), list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])
    first = next(iter(played.values()))[0][1].positions[0]
    for index, (skill, episodes) in enumerate(played.items()):
        color = skill_color(index, len(played))
        for number, (_, trace) in enumerate(episodes[: max(MOST_LINES // len(played), 1)]):
            look: dict[str, Any] = {"color": color, "lw": 1.2, "alpha": 0.8, "label": None if number else f"{skill}"}
            if is_plane:
                _draw_path(panels[0], trace, look)
            else:
                _draw_over_time(panels, trace, coordinates, first, look)
    if is_plane:
        drawn = [panels[0].xaxis, panels[0].yaxis]
        _set_equal_scales(panels[0], drawn)
    else:
        drawn = [axes.yaxis for axes in panels]
        panels[-1].set_xlabel("agent steps")
    _name_axes(drawn, coordinates)
    if len(played) <= NAMED_SKILLS:
        named = panels[0].get_legend_handles_labels()
        figure.legend(*named, loc="upper right", title="skill", fontsize=8)
    else:
        bottom, top = figure.subplotpars.bottom, figure.subplotpars.top
        place = figure.add_axes((0.9, bottom, 0.02, top - bottom))
        figure.colorbar(ScalarMappable(Normalize(0, len(played) - 1), "turbo"), cax=place, label="skill")
    return _drawn(canvas)


def _draw_path(axes: Axes, trace: Trace, look: Mapping[str, Any]) -> None:
    """Draw the path of an episode in a plane."""
    positions = np.array(trace.positions)[_shown_steps(trace)]
    axes.plot(*positions.T, **look)
    axes.plot(*positions[0], "k.", ms=4)


def _draw_over_time(
    panels: Sequence[Axes],
    trace: Trace,
    coordinates: Sequence[Coordinate],
    first: np.ndarray,
    look: Mapping[str, Any],
) -> None:
    """Draw each coordinate of an episode. An angle begins within half a turn of `first`."""
    steps = _shown_steps(trace)
    for number, (axes, coordinate) in enumerate(zip(panels, coordinates, strict=True)):
        values = np.array(trace.positions)[:, number]
        if coordinate.periodic:
            values = np.unwrap([first[number], *values])[1:]
        axes.plot(steps, values[steps], **look)


def _shown_steps(trace: Trace) -> np.ndarray:
    """Return the steps of an episode that are drawn, at most MOST_POINTS."""
    return np.arange(len(trace.positions))[:: math.ceil(len(trace.positions) / MOST_POINTS)]


def _set_equal_scales(axes: Axes, drawn: Sequence[Axis]) -> None:
    """Give a meter the same length along both axes, and neither side less than a third of the other's length."""
    longest = max(np.ptp(axis.get_view_interval()) for axis in drawn)
    for axis in drawn:
        low, high = axis.get_view_interval()
        missing = max(longest / 3 - (high - low), 0.0)
        axis.set_view_interval(low - missing / 2, high + missing / 2, ignore=True)
    axes.set_aspect("equal")


def _name_axes(drawn: Sequence[Axis], coordinates: Sequence[Coordinate]) -> None:
    """Name the axes, and draw the borders of cells along them unless there are too many."""
    borders = []
    for axis, coordinate in zip(drawn, coordinates, strict=True):
        axis.set_label_text(f"{coordinate.name}, {coordinate.unit}")
        first, last = (limit / coordinate.cell for limit in axis.get_view_interval())
        borders.append(coordinate.cell * np.arange(math.ceil(first), math.floor(last) + 1))
    if max(map(len, borders)) <= MOST_BORDERS:
        for axis, places in zip(drawn, borders, strict=True):
            axis.set_ticks(places, minor=True)
            axis.remove_overlapping_locs = False
            axis.grid(which="minor", color="0.85", lw=0.6)


def contact_sheet(played: EpisodesBySkill) -> np.ndarray:
    """Draw a row of pictures for each skill, its first episode from left to right in time: uint8 RGB `(H, W, 3)`.

    Only the first SHEET_ROWS skills are shown. Columns are spread evenly from the first to the last step of the longest
    episode; an episode that ends early keeps its last picture.

    The header shows agent steps. The label of a row shows the skill, and the share of the episode's steps at which the
    discriminator recognizes it.
    """
    played = dict(islice(played.items(), SHEET_ROWS))
    longest = max((episodes[0][1] for episodes in played.values()), key=lambda trace: trace.picture_steps[-1])
    even = np.linspace(0, longest.picture_steps[-1], SHEET_COLUMNS)
    shown = [longest.picture_steps[_nearest(longest, step)] for step in even]
    size = longest.pictures[0].shape[1]
    size *= math.ceil(SHEET_TILE / size)
    sheet = np.zeros((SHEET_HEADER + size * len(played), SHEET_LABEL + size * SHEET_COLUMNS, 3), np.uint8)
    sheet[:SHEET_HEADER] = sheet[:, :SHEET_LABEL] = 255
    for column, step in enumerate(shown):
        _write(sheet, f"step {step}", SHEET_LABEL + size * column + 4, SHEET_HEADER - 6)
    for row, (skill, episodes) in enumerate(played.items()):
        episode, trace = episodes[0]
        top = SHEET_HEADER + size * row
        _write(sheet, f"{skill}", 4, top + size // 2)
        _write(sheet, f"{episode.discriminator_accuracy:.0%}", 4, top + size // 2 + 18)
        for column, step in enumerate(shown):
            picture, left = trace.pictures[_nearest(trace, step)], SHEET_LABEL + size * column
            tile = cv2.resize(picture.transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_NEAREST)
            sheet[top : top + size, left : left + size] = tile
    sheet[SHEET_HEADER:, SHEET_LABEL::size] = 255  # lines between the columns
    return sheet


def _nearest(trace: Trace, step: float) -> int:
    """Return the number of the picture nearest to an agent step."""
    return int(np.abs(np.array(trace.picture_steps) - step).argmin())


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
