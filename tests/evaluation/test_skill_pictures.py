"""The pictures of an evaluation, looked at pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.cells import CellGrid, Coordinate
from evaluation.figures import NAMED_SKILLS, Axes, skill_color
from evaluation.play import Trace
from evaluation.skill_pictures import (
    MATRIX_NUMBERS,
    MOST_LINES,
    MOST_POINTS,
    SHEET_COLUMNS,
    SHEET_HEADER,
    SHEET_LABEL,
    SHEET_ROWS,
    contact_sheet,
    draw_confusion_matrix,
    draw_trajectories,
    headline,
)
from evaluation.skill_report import overall, skill_rows
from logger import Episode


def pictured(length: int, every: int) -> Trace:
    """Return an episode whose pictures are as bright as their step."""
    steps = sorted({*range(0, length, every), length})
    return Trace(every, pictures=[np.full((3, 8, 8), step, np.uint8) for step in steps], picture_steps=steps)


@pytest.mark.parametrize(
    ("length", "every", "columns"),
    [
        (7, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 1, [0, 1, 2, 3, 5, 6, 7, 8]),
        (125, 3, [0, 18, 36, 54, 72, 90, 108, 125]),
        (250, 5, [0, 35, 70, 105, 145, 180, 215, 250]),
        (3, 1, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_contact_sheet(length: int, every: int, columns: list[int]) -> None:
    """A row for each skill, from its first step to its last; an episode that ends early keeps its last picture."""
    result = Episode(1.0, 0.0, discriminator_accuracy=0.5)
    played: Any = {0: [(result, pictured(length, every))], 1: [(result, pictured(2, every))]}
    sheet = contact_sheet(played)
    assert sheet.shape == (SHEET_HEADER + 2 * 88, SHEET_LABEL + 88 * SHEET_COLUMNS, 3)
    tiles = sheet[SHEET_HEADER + 44 :: 88, SHEET_LABEL + 44 :: 88, 0].astype(int)
    long, short = tiles.tolist()
    assert long == columns
    assert (short[0], short[-1]) == (0, 2)
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
    assert headline(overall(rows), 2, 5, 120_000).splitlines() == [
        "frame 120,000, 5 episodes of each skill",
        "accuracy 0.45 (chance 0.50), 1.6 of 2 effective skills",
        "bound 0.50 of at most 0.69 nats",
    ]


@pytest.mark.parametrize("count", [100, 1600])
def test_pictures_and_distances_of_many_skills_are_bounded(count: int) -> None:
    """The confusion matrix has no numbers then, the sheet shows the first skills, and fewer states are compared."""
    rng = np.random.default_rng(0)
    picture = np.zeros((3, 84, 84), np.uint8)
    played = {
        skill: [
            (
                Episode(1.0, 0.0, skill, length=50),
                Trace(
                    1, predicted=[skill] * 51, states=list(rng.random((51, 4))), pictures=[picture], picture_steps=[0]
                ),
            )
        ]
        for skill in range(count)
    }
    matrix = draw_confusion_matrix(np.eye(count), "title")
    assert matrix.shape[:2] == draw_confusion_matrix(np.eye(MATRIX_NUMBERS), "title").shape[:2]
    assert contact_sheet(played).shape[0] == SHEET_HEADER + SHEET_ROWS * 84
    assert all(row["state_distance_between"] > 0 for row in skill_rows(played))


# -- trajectories ------------------------------------------------------------------------------------------------------

PLANE = CellGrid((Coordinate("x", "m", 1.0), Coordinate("y", "m", 1.0)), lambda physics: physics, is_plane=True)
ANGLE = CellGrid((Coordinate("angle", "rad", 0.5, periodic=True),), lambda physics: physics)


def moving(ends: Any, episodes: int = 1, steps: int = 50) -> Any:
    """Return skills that move from the origin to their ends in a straight line."""
    share = np.linspace(0.0, 1.0, steps)[:, None]
    trace = lambda end: Trace(positions=list(share * np.array(end)))  # noqa: E731
    return {skill: [(Episode(1.0, 0.0), trace(end))] * episodes for skill, end in enumerate(ends)}


def places(picture: np.ndarray, skill: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pixels in a skill's color, left of the legend and right of the names."""
    color = 255 * np.array(skill_color(skill, count)[:3])
    shown = np.abs(picture[:, 60:620] - (0.8 * color + 0.2 * 255)).max(axis=2) < 40
    rows, columns = np.nonzero(shown)
    return rows, columns


def test_each_skill_has_its_path_in_its_color() -> None:
    """Skill 0 (blue) goes to the right, 1 (orange) up, 2 (green) down and to the left."""
    picture = draw_trajectories(moving([(3.0, 0.0), (0.0, 3.0), (-3.0, -3.0)]), PLANE, "title")
    middle = [np.mean(places(picture, skill, 3), axis=1) for skill in range(3)]
    assert middle[0][1] > middle[1][1] + 40 > middle[2][1] + 80, "columns from the left"
    assert middle[1][0] < middle[0][0] - 40 < middle[2][0] - 80, "rows from the top"


def test_an_angle_goes_on_after_a_turn() -> None:
    """At constant speed it is a straight line over time, from the lower left to the upper right."""
    angles = (np.linspace(0.0, 30.0, 2000) + np.pi) % (2 * np.pi) - np.pi
    trace = Trace(positions=[np.array([angle]) for angle in angles])
    picture = draw_trajectories({0: [(Episode(1.0, 0.0), trace)]}, ANGLE, "title")
    rows, columns = places(picture, 0, 1)
    assert np.corrcoef(rows, columns)[0, 1] < -0.999


def test_episodes_that_start_on_both_sides_of_an_angles_jump_are_drawn_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Near pi and near -pi is almost the same angle."""
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(Axes, "plot", lambda axes, steps, values, **look: drawn.append(values))
    still = [(Episode(1.0, 0.0), Trace(positions=[np.array([angle])] * 50)) for angle in (3.1, -3.1)]
    draw_trajectories({0: still}, ANGLE, "title")
    np.testing.assert_allclose(drawn, np.array([[3.1], [2 * np.pi - 3.1]]) * np.ones(50))


@pytest.mark.parametrize("count", [1, 10, 20, 21, 700])
def test_trajectories_of_any_number_of_skills(count: int) -> None:
    """The picture has the same size, and a legend's or a color bar's colors at its right."""
    rng = np.random.default_rng(0)
    picture = draw_trajectories(moving(rng.normal(size=(count, 2)), episodes=3), PLANE, "title")
    assert picture.shape == (560, 740, 3)
    right = picture[:, 640:].astype(int)
    assert (np.ptp(right, axis=2) > 60).sum() > 8 * min(count, NAMED_SKILLS)


def test_the_number_of_lines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[int] = []
    plot = Axes.plot

    def remember(axes: Axes, *data: Any, **look: Any) -> Any:
        lines.append(len(data[0]) if "label" in look else 0)
        return plot(axes, *data, **look)

    monkeypatch.setattr(Axes, "plot", remember)
    for skills, episodes in ((2, 1000), (1000, 2), (3, 2)):
        lines.clear()
        draw_trajectories(moving(np.eye(skills, 2), episodes, steps=1001), PLANE, "title")
        drawn = [length for length in lines if length]
        assert len(drawn) == min(skills * episodes, MOST_LINES)
        assert max(drawn) <= MOST_POINTS


def test_skills_that_stay_where_they_are() -> None:
    picture = draw_trajectories(moving([(0.0, 0.0)] * 2), PLANE, "title")
    assert picture.std() > 10
