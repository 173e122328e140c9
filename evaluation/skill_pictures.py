"""Pictures of the skills of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

import cv2
import numpy as np

from evaluation.figures import Figure, FigureCanvasAgg
from evaluation.skill_report import EpisodesBySkill

MATRIX_NUMBERS = 40  # skills up to which the confusion matrix has numbers
SHEET_ROWS, SHEET_COLUMNS = 64, 8  # skills, and pictures of an episode, on the contact sheet
SHEET_TILE, SHEET_HEADER, SHEET_LABEL = 84, 18, 44  # pixels: smallest tile, header's height, labels' width


def headline(measures: Mapping[str, Any], episodes: int, frame: int) -> str:
    """Return a summary of an evaluation with so many episodes of each skill in two lines; see `overall`."""
    accuracy, bound = measures["discriminator_accuracy"], measures["mutual_information_bound"]
    skills = measures["effective_skills"]
    played = f"frame {frame}, episodes a skill: {episodes}"
    return f"{played}\n% of steps, accuracy {accuracy:.2f}, bound {bound:.2f} nats = {skills:.1f} skills"


def picture_interval(max_episode_steps: int) -> int:
    """Return the agent steps between the pictures that the contact sheet shows of an episode."""
    return math.ceil(max_episode_steps / SHEET_COLUMNS)


def draw_confusion_matrix(matrix: np.ndarray, title: str) -> np.ndarray:
    """Draw a matrix `(K, K)` of shares as a picture, uint8 RGB `(H, W, 3)`."""
    count = len(matrix)
    readable = count <= MATRIX_NUMBERS  # with more skills, the cells have no numbers and the picture grows no further
    size = 0.42 * min(count, MATRIX_NUMBERS)
    figure = Figure(figsize=(2.2 + size, 1.8 + size), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="Blues", interpolation=None if readable else "nearest")
    for (row, column), share in np.ndenumerate(matrix) if readable else ():
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="the discriminator names skill", ylabel="skill")
    if readable:
        axes.set(xticks=range(count), yticks=range(count))
    axes.set_title(title, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def contact_sheet(played: EpisodesBySkill) -> np.ndarray:
    """Draw a row of pictures for each skill, its first episode from left to right in time: uint8 RGB `(H, W, 3)`.

    Only the first SHEET_ROWS skills are shown.

    The header shows agent steps. The label of a row shows the skill, and the share of the episode's steps at which the
    discriminator names it.
    """
    played = dict(islice(played.items(), SHEET_ROWS))
    longest = max((episodes[0][1] for episodes in played.values()), key=lambda trace: len(trace.pictures))
    stride = max(1, (len(longest.pictures) - 1) // (SHEET_COLUMNS - 1))
    size = longest.pictures[0].shape[1]
    size *= math.ceil(SHEET_TILE / size)
    sheet = np.zeros((SHEET_HEADER + size * len(played), SHEET_LABEL + size * SHEET_COLUMNS, 3), np.uint8)
    sheet[:SHEET_HEADER] = sheet[:, :SHEET_LABEL] = 255
    for column in range(SHEET_COLUMNS):
        text = f"step {column * stride * longest.picture_every}"
        _write(sheet, text, SHEET_LABEL + size * column + 4, SHEET_HEADER - 6)
    for row, (skill, episodes) in enumerate(played.items()):
        episode, trace = episodes[0]
        top = SHEET_HEADER + size * row
        _write(sheet, f"{skill}", 4, top + size // 2)
        _write(sheet, f"{episode.discriminator_accuracy:.0%}", 4, top + size // 2 + 18)
        for column, picture in enumerate(trace.pictures[::stride][:SHEET_COLUMNS]):
            left = SHEET_LABEL + size * column
            tile = cv2.resize(picture.transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_NEAREST)
            sheet[top : top + size, left : left + size] = tile
    sheet[SHEET_HEADER:, SHEET_LABEL::size] = 255  # lines between the columns
    return sheet


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
