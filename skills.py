"""What an evaluation says of the skills: do they differ, and in what. Numbers for skills.csv, and two pictures.

Nothing here plays or learns: it is handed the traces of episodes that were played.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import cv2
import numpy as np
from scipy.spatial.distance import cdist

from logger import Episode
from replay_buffer import NO_SKILL
from rollouts import Start, Trace

STATES_COMPARED = 100  # of each skill, about, spread evenly over its episodes
SHEET_COLUMNS = 8  # pictures of an episode on the contact sheet
SHEET_TILE, SHEET_HEADER, SHEET_LABEL = 84, 18, 44  # pixels: a picture at least, above them, to their left

Played = Mapping[int, Sequence[tuple[Episode, Trace]]]  # by skill


def by_skill(starts: Sequence[Start], results: Sequence[Episode]) -> Played:
    """The episodes of an evaluation with their traces, by skill."""
    played: dict[int, list[tuple[Episode, Trace]]] = {}
    for start, result in zip(starts, results, strict=True):
        assert start.trace is not None
        played.setdefault(start.skill, []).append((result, start.trace))
    return played


def rows_of_skills(played: Played) -> list[dict[str, Any]]:
    """A row of skills.csv for each skill, but for `step`."""
    within, between = state_distances({skill: _states(episodes) for skill, episodes in played.items()})
    return [_row(skill, episodes, within.get(skill), between.get(skill)) for skill, episodes in played.items()]


def _row(skill: int, played: Sequence[tuple[Episode, Trace]], within: float | None, between: float | None) -> dict:
    episodes, traces = [episode for episode, _ in played], [trace for _, trace in played]
    lengths = [episode.length for episode in episodes]
    row = {
        "skill_id": skill,
        "episodes": len(episodes),
        "episode_extrinsic_reward": np.mean([episode.extrinsic_reward for episode in episodes]),
        "episode_intrinsic_reward_sum": np.mean([episode.intrinsic_reward_sum for episode in episodes]),
        "state_distance_within": within,
        "state_distance_between": between,
    }
    if traces[0].predicted[0] != NO_SKILL:  # there is a discriminator
        row["discriminator_accuracy"] = sum(
            episode.discriminator_accuracy * episode.length for episode in episodes
        ) / max(sum(lengths), 1)
        row["accuracy_at_start"] = np.mean([trace.predicted[0] == skill for trace in traces])
        row["mutual_information_bound"] = sum(episode.intrinsic_reward_sum for episode in episodes) / max(
            sum(lengths), 1
        )
    if traces[0].centres:
        moved = np.mean([trace.centres[-1] - trace.centres[0] for trace in traces], axis=0)
        row |= {"displacement_x": moved[0], "displacement_y": moved[1]}
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}


def _states(played: Sequence[tuple[Episode, Trace]]) -> list[np.ndarray]:
    """States (N, D) of each episode, none where an environment has none."""
    episodes = [np.array(trace.states) for _, trace in played if trace.states]
    counts = [min(len(states), max(STATES_COMPARED // len(episodes), 1)) for states in episodes]
    chosen = (np.linspace(0, len(own) - 1, count).astype(int) for own, count in zip(episodes, counts, strict=True))
    return [states[indices] for states, indices in zip(episodes, chosen, strict=True)]


def state_distances(
    episodes: Mapping[int, Sequence[np.ndarray]],
) -> tuple[dict[int, float], dict[int, float]]:
    """How far apart the states (N, D) of a skill's episodes lie, by skill: within it, and from all other skills.

    Mean distances between pairs of states, in standard deviations: each dimension is divided by its own over all
    skills, and a distance is the root mean square over dimensions. Within a skill, the pairs are of states of different
    episodes, as those of one are near each other whatever is played; a skill with one episode has no such distance.
    Skills that look alike have both equal.
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


def pictures(played: Played, rows: Sequence[Mapping[str, Any]], frame: int) -> dict[str, np.ndarray]:
    """What there is to see of an evaluation of all skills, whose rows of skills.csv these are: uint8 RGB (H, W, 3)."""
    matrix = draw_confusion_matrix(confusion_matrix(played), headline(rows, frame))
    return {"confusion_matrix": matrix, "contact_sheet": contact_sheet(played)}


def confusion_matrix(played: Played) -> np.ndarray:
    """Shares (K, K): of the steps of skill k (row), those that the discriminator puts down to each skill (column).

    All K skills must have been played.
    """
    matrix = np.zeros((len(played), len(played)))
    for skill, episodes in played.items():
        for _, trace in episodes:
            np.add.at(matrix[skill], trace.predicted[1:], 1.0)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)  # physics may fail in a skill's first step


def picture_every(episode_steps: int) -> int:
    """Agent steps between the pictures of an episode that a contact sheet shows."""
    return math.ceil(episode_steps / SHEET_COLUMNS)


def headline(rows: Sequence[Mapping[str, Any]], frame: int) -> str:
    """What the rows of skills.csv come to, in two lines: means over skills."""
    accuracy, bound = (
        np.mean([row[name] for row in rows]) for name in ("discriminator_accuracy", "mutual_information_bound")
    )
    played = f"frame {frame}, episodes a skill: {rows[0]['episodes']}"
    return f"{played}\n% of steps, accuracy {accuracy:.2f}, bound {bound:.2f} nats"


def draw_confusion_matrix(matrix: np.ndarray, title: str) -> np.ndarray:
    """The matrix as a picture: uint8 RGB (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(matrix)
    figure = Figure(figsize=(2.2 + 0.42 * count, 1.8 + 0.42 * count), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="Blues")
    for (row, column), share in np.ndenumerate(matrix):
        if share >= 0.005:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=range(count), yticks=range(count), xlabel="the discriminator names skill", ylabel="skill")
    axes.set_title(title, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def contact_sheet(played: Played) -> np.ndarray:
    """A row for each skill, its first episode from left to right in time: uint8 RGB (H, W, 3).

    Above stand the agent steps; beside a skill, in what share of that episode's steps the discriminator names it.
    """
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
        result, trace = episodes[0]
        top = SHEET_HEADER + size * row
        _write(sheet, f"{skill}", 4, top + size // 2)
        _write(sheet, f"{result.discriminator_accuracy:.0%}", 4, top + size // 2 + 18)
        for column, picture in enumerate(trace.pictures[::stride][:SHEET_COLUMNS]):
            left = SHEET_LABEL + size * column
            tile = cv2.resize(picture.transpose(1, 2, 0), (size, size), interpolation=cv2.INTER_NEAREST)
            sheet[top : top + size, left : left + size] = tile
    sheet[SHEET_HEADER:, SHEET_LABEL::size] = 255  # lines between the columns
    return sheet


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
