"""The pictures of an evaluation, looked at pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluation.play import Trace
from evaluation.skill_pictures import (
    MATRIX_NUMBERS,
    SHEET_COLUMNS,
    SHEET_HEADER,
    SHEET_LABEL,
    SHEET_ROWS,
    contact_sheet,
    draw_confusion_matrix,
    headline,
)
from evaluation.skill_report import overall, skill_rows
from logger import Episode


@pytest.mark.parametrize("stride", [1, 7])
def test_contact_sheet(stride: int) -> None:
    """A row for each skill, in time from left to right; a short episode leaves black tiles. Stride 1 is training's."""
    full = [np.full((3, 8, 8), 10 * (step // stride), np.uint8) for step in range((SHEET_COLUMNS - 1) * stride + 1)]
    result = Episode(1.0, 0.0, discriminator_accuracy=0.5)
    played: Any = {0: [(result, Trace(1, pictures=full))], 1: [(result, Trace(1, pictures=full[: 1 + stride]))]}
    sheet = contact_sheet(played)
    assert sheet.shape == (SHEET_HEADER + 2 * 88, SHEET_LABEL + 88 * SHEET_COLUMNS, 3)
    tiles = sheet[SHEET_HEADER + 44 :: 88, SHEET_LABEL + 44 :: 88, 0].astype(int)
    assert tiles.tolist() == [[10 * column for column in range(SHEET_COLUMNS)], [0, 10, *[0] * 6]]
    assert (sheet[:SHEET_HEADER] < 128).any()


def test_the_confusion_matrix_is_darkest_at_one() -> None:
    plain, diagonal = (
        draw_confusion_matrix(matrix, "frame 1, accuracy 1").astype(int)
        for matrix in (np.full((3, 3), 1 / 3), np.eye(3))
    )
    assert plain.dtype == diagonal.dtype
    assert plain.shape == diagonal.shape
    assert (plain[:, :, 2] - plain[:, :, 0] > 150).sum() == 0, "shares of a third are pale"
    assert (diagonal[:, :, 2] - diagonal[:, :, 0] > 50).sum() > 3 * 400


def test_the_rows_of_a_confusion_matrix_are_the_skills_played() -> None:
    """Skill 0 is always taken for skill 2: the upper right is dark."""
    matrix = np.zeros((3, 3))
    matrix[0, 2] = 1.0
    picture = draw_confusion_matrix(matrix, "title").astype(int)
    rows, columns = np.nonzero(picture[:, :, 2] - picture[:, :, 0] > 60)
    assert rows.mean() < 0.45 * picture.shape[0]
    assert columns.mean() > 0.6 * picture.shape[1]


def test_the_headline_has_the_means_over_skills() -> None:
    rows = [
        {"discriminator_accuracy": accuracy, "mutual_information_bound": bound}
        for accuracy, bound in ((0.2, -1.0), (0.7, 2.0))
    ]
    first, second = headline(overall(rows), 5, 120).splitlines()
    assert first == "frame 120, episodes a skill: 5"
    assert second == "% of steps, accuracy 0.45, bound 0.50 nats = 1.6 skills"


@pytest.mark.parametrize("count", [100, 1600])
def test_pictures_and_distances_of_many_skills_are_bounded(count: int) -> None:
    """The confusion matrix has no numbers then, the sheet shows the first skills, and fewer states are compared."""
    rng = np.random.default_rng(0)
    picture = np.zeros((3, 84, 84), np.uint8)
    played = {
        skill: [
            (
                Episode(1.0, 0.0, skill, length=50),
                Trace(1, predicted=[skill] * 51, states=list(rng.random((51, 4))), pictures=[picture]),
            )
        ]
        for skill in range(count)
    }
    matrix = draw_confusion_matrix(np.eye(count), "title")
    assert matrix.shape[:2] == draw_confusion_matrix(np.eye(MATRIX_NUMBERS), "title").shape[:2]
    assert contact_sheet(played).shape[0] == SHEET_HEADER + SHEET_ROWS * 84
    assert all(row["state_distance_between"] > 0 for row in skill_rows(played))
