"""Report on the skills of an evaluation: whether they differ, and how. The numbers of skills.csv, and two pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, islice
from typing import Any

import cv2
import numpy as np
from scipy.spatial.distance import cdist

from evaluation.figures import Figure, FigureCanvasAgg
from evaluation.play import Trace
from logger import Episode, Row
from replay_buffer import NO_SKILL

STATES_COMPARED = 100  # states of each skill that distances are measured between, spread evenly over its episodes
MOST_STATES = 3000  # of all skills together
MATRIX_NUMBERS = 40  # skills up to which the confusion matrix has numbers
SHEET_ROWS, SHEET_COLUMNS = 64, 8  # skills, and pictures of an episode, on the contact sheet
SHEET_TILE, SHEET_HEADER, SHEET_LABEL = 84, 18, 44  # pixels: smallest tile, header's height, labels' width

EpisodesBySkill = Mapping[int, Sequence[tuple[Episode, Trace]]]


# -- numbers -----------------------------------------------------------------------------------------------------------


def skill_rows(played: EpisodesBySkill) -> list[Row]:
    """Return the row of skills.csv for each skill, without `step`."""
    count = min(STATES_COMPARED, max(MOST_STATES // max(len(played), 1), 2))
    within, between = state_distances({skill: _states(episodes, count) for skill, episodes in played.items()})
    return [_row(skill, episodes, within.get(skill), between.get(skill)) for skill, episodes in played.items()]


def _row(skill: int, played: Sequence[tuple[Episode, Trace]], within: float | None, between: float | None) -> Row:
    episodes, traces = [episode for episode, _ in played], [trace for _, trace in played]
    steps = max(sum(episode.length for episode in episodes), 1)
    row: Row = {
        "skill_id": skill,
        "episodes": len(episodes),
        "episode_extrinsic_reward": np.mean([episode.extrinsic_reward for episode in episodes]),
        "episode_intrinsic_reward_sum": np.mean([episode.intrinsic_reward_sum for episode in episodes]),
        "state_distance_within": within,
        "state_distance_between": between,
    }
    if traces[0].predicted[0] != NO_SKILL:  # there is a discriminator
        recognized = sum(episode.discriminator_accuracy * episode.length for episode in episodes)
        row["discriminator_accuracy"] = recognized / steps
        row["accuracy_at_start"] = np.mean([trace.predicted[0] == skill for trace in traces])
        row["mutual_information_bound"] = sum(episode.intrinsic_reward_sum for episode in episodes) / steps
    if traces[0].centres:
        moved = np.mean([trace.centres[-1] - trace.centres[0] for trace in traces], axis=0)
        row |= {"displacement_x": moved[0], "displacement_y": moved[1]}
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}


def _states(played: Sequence[tuple[Episode, Trace]], count: int) -> list[np.ndarray]:
    """Return about `count` states, as an array (N, D) for each episode; none if there are no physics."""
    episodes = [np.array(trace.states) for _, trace in played if trace.states]
    most = max(count // max(len(episodes), 1), 1)
    return [own[np.linspace(0, len(own) - 1, min(len(own), most)).astype(int)] for own in episodes]


def state_distances(episodes: Mapping[int, Sequence[np.ndarray]]) -> tuple[dict[int, float], dict[int, float]]:
    """Return how far apart states lie, for each skill: within the skill, and between it and all other skills.

    `episodes` are the states `(N, D)` of each episode of each skill. A distance is a mean over pairs of states. Each
    dimension is divided by its standard deviation over all skills, and the distance of a pair is the root mean square
    over dimensions. Pairs within a skill are of states from different episodes, because states of one episode are close
    under any policy; a skill with one episode has no such distance. For skills that behave alike, both are equal.
    """
    if len(episodes) < 2 or not all(episodes.values()):
        return {}, {}
    spread = np.concatenate([states for own in episodes.values() for states in own]).std(axis=0)
    moving = spread > 1e-9
    if not moving.any():
        return {}, {}
    scale = spread[moving] * np.sqrt(moving.sum())
    scaled = {skill: [states[:, moving] / scale for states in own] for skill, own in episodes.items()}
    within, between = {}, {}
    for skill, own in scaled.items():
        others = [states for other, theirs in scaled.items() if other != skill for states in theirs]
        between[skill] = float(cdist(np.concatenate(own), np.concatenate(others)).mean())
        pairs = [cdist(one, another).ravel() for one, another in combinations(own, 2)]
        if pairs:
            within[skill] = float(np.concatenate(pairs).mean())
    return within, between


def confusion_matrix(played: EpisodesBySkill) -> np.ndarray:
    """Return shares `(K, K)`: of the steps of each of all K skills (row), those that q_phi assigns to each (column)."""
    matrix = np.zeros((len(played), len(played)))
    for skill, episodes in played.items():
        for _, trace in episodes:
            np.add.at(matrix[skill], trace.predicted[1:], 1.0)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)  # an unstable first step leaves an empty row


def headline(rows: Sequence[Mapping[str, Any]], frame: int) -> str:
    """Return a summary of rows of skills.csv in two lines: means over skills."""
    accuracy = np.mean([row["discriminator_accuracy"] for row in rows])
    bound = np.mean([row["mutual_information_bound"] for row in rows])
    played = f"frame {frame}, episodes a skill: {rows[0]['episodes']}"
    return f"{played}\n% of steps, accuracy {accuracy:.2f}, bound {bound:.2f} nats"


# -- pictures ----------------------------------------------------------------------------------------------------------


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
