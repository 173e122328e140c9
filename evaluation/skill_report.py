"""Report on the skills of an evaluation: whether they differ, and how. The numbers of skills.csv and eval.csv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from envs.cells import CellGrid
from evaluation.play import Trace
from logger import Episode, Row
from running.columns import NO_SKILL

STATES_COMPARED = 100  # states of each skill that distances are measured between
MOST_STATES = 3000  # of all skills together
DECILES = 10

# Columns of eval.csv that are means over skills.
MEANS = (
    *("episode_intrinsic_reward_sum", "discriminator_accuracy", "mutual_information_bound"),
    "mutual_information_bound_second_half",
)

EpisodesBySkill = Mapping[int, Sequence[tuple[Episode, Trace]]]


def skill_rows(played: EpisodesBySkill, cell_grid: CellGrid | None = None, angles: Sequence[int] = ()) -> list[Row]:
    """Return the row of skills.csv for each skill, without `step`.

    `angles` are the entries of a state that are angles without limits.
    """
    count = min(STATES_COMPARED, max(MOST_STATES // max(len(played), 1), 2))
    within, between = state_distances({skill: _states(episodes, count) for skill, episodes in played.items()}, angles)
    return [
        {
            **_row(skill, episodes),
            "cells_visited": cells_visited({skill: episodes}, cell_grid),
            "state_distance_within": within.get(skill),
            "state_distance_between": between.get(skill),
        }
        for skill, episodes in played.items()
    ]


def _row(skill: int, played: Sequence[tuple[Episode, Trace]]) -> Row:
    episodes, traces = [episode for episode, _ in played], [trace for _, trace in played]
    steps = sum(episode.length for episode in episodes)
    row: Row = {
        "skill_id": skill,
        "episodes": len(episodes),
        "episode_extrinsic_reward": np.mean([episode.extrinsic_reward for episode in episodes]),
    }
    if steps and traces[0].predicted[0] != NO_SKILL:  # there is a discriminator
        row["episode_intrinsic_reward_sum"] = np.mean([episode.intrinsic_reward_sum for episode in episodes])
        recognized = sum(episode.discriminator_accuracy * episode.length for episode in episodes)
        row["discriminator_accuracy"] = recognized / steps
        row["mutual_information_bound"] = sum(episode.intrinsic_reward_sum for episode in episodes) / steps
        sums, counts = _by_decile(traces)
        if later := sum(counts[DECILES // 2 :]):
            row["mutual_information_bound_second_half"] = sum(sums[DECILES // 2 :]) / later
    if traces[0].centers:
        moved = np.mean([trace.centers[-1] - trace.centers[0] for trace in traces], axis=0)
        row |= {"displacement_x": moved[0], "displacement_y": moved[1]}
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in row.items()}


def overall(rows: Sequence[Row]) -> Row:
    """Return the measures of all skills together that follow from the row of skills.csv of each.

    Means weight every skill equally, as p(z) does, however long its episodes are. A measure may be missing or None for
    some skills: the mean is over the others, and None if there are none.
    """
    measures: Row = {name: _mean(row.get(name) for row in rows) for name in MEANS}
    bound = measures["mutual_information_bound"]
    return {**measures, "effective_skills": None if bound is None else math.exp(bound)}


def cells_visited(played: EpisodesBySkill, cell_grid: CellGrid | None) -> int | None:
    """Return the number of distinct cells that the episodes visit; None without a grid."""
    if cell_grid is None:
        return None
    traces = (trace for episodes in played.values() for _, trace in episodes if trace.positions)
    return len(set().union(*(cell_grid.cells(np.array(trace.positions)) for trace in traces)))


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def bound_by_decile(played: EpisodesBySkill) -> dict[int, list[float | None]]:
    """Return each skill's mean intrinsic reward in each tenth of its episodes, in nats; None without a step.

    Step t (from 0) of an episode of T steps is in decile 10 t // T. The second half of the episode is the last five.
    """
    bounds = {}
    for skill, episodes in played.items():
        sums, counts = _by_decile([trace for _, trace in episodes])
        bounds[skill] = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    return bounds


def mean_by_decile(bounds: Mapping[int, Sequence[float | None]]) -> list[float | None]:
    """Return the mean over skills for each tenth of the episodes."""
    return [_mean(column) for column in zip(*bounds.values(), strict=True)]


def _by_decile(traces: Sequence[Trace]) -> tuple[list[float], list[float]]:
    """Return the sum of intrinsic rewards and the number of steps in each tenth of the episodes."""
    sums, counts = np.zeros((2, DECILES))
    for rewards in (trace.intrinsic for trace in traces if trace.intrinsic):
        decile = DECILES * np.arange(len(rewards)) // len(rewards)
        sums += np.bincount(decile, rewards, DECILES)
        counts += np.bincount(decile, minlength=DECILES)
    return sums.tolist(), counts.tolist()


def _states(played: Sequence[tuple[Episode, Trace]], count: int) -> list[np.ndarray]:
    """Return about `count` states, as an array (N, D) for each of the first episodes; none if there are no physics.

    Each episode gives as many, evenly spread over it. The moments differ between episodes, so that those of many cover
    an episode even if each gives one state.
    """
    episodes = [np.array(trace.states) for _, trace in played if trace.states][:count]
    chosen = []
    for number, states in enumerate(episodes):
        most = min(len(states), count // len(episodes))
        parts = (np.arange(most) + (number + 0.5) / len(episodes)) / most
        chosen.append(states[(parts * len(states)).astype(int)])
    return chosen


def without_turns(states: np.ndarray, angles: Sequence[int]) -> np.ndarray:
    """Return states (N, D) with the sines and then the cosines of A angles in place of the angles, (N, D + A).

    How often a joint without limits has turned since the start cannot be seen in the world.
    """
    return np.concatenate([np.delete(states, angles, 1), np.sin(states[:, angles]), np.cos(states[:, angles])], axis=1)


def state_distances(
    episodes: Mapping[int, Sequence[np.ndarray]], angles: Sequence[int] = ()
) -> tuple[dict[int, float], dict[int, float]]:
    """Return how far apart states lie, for each skill: within the skill, and between it and all other skills.

    `episodes` are the states `(N, D)` of each episode of each skill. A distance is a mean over pairs of states. Each
    dimension is divided by its standard deviation over all skills, and the distance of a pair is the root mean square
    over dimensions. An angle without limits is a point on a circle: its sine and cosine are one dimension. Pairs are of
    states from different starts, because states from one start are close under any policy; the n-th episodes of all
    skills have the same start. For skills that behave alike, both are equal. If no skill has two episodes, there is no
    distance within, and those between are of the same start.
    """
    if len(episodes) < 2 or not all(episodes.values()):
        return {}, {}
    states = np.concatenate([states for own in episodes.values() for states in own])
    labels = [(skill, start) for skill, own in episodes.items() for start, states in enumerate(own) for _ in states]
    skills, starts = np.array(labels).T
    dimensions, count = states.shape[1], len(angles)
    states = without_turns(states, angles)
    variance = states.var(axis=0)
    variance[dimensions - count :] = np.tile(variance[dimensions - count :].reshape(2, count).sum(axis=0), 2)
    moving = variance > 1e-18
    if not moving.any():
        return {}, {}
    states = states[:, moving] / np.sqrt(variance[moving] * moving[:dimensions].sum())
    within, between = {}, {}
    one_start = not starts.any()
    for skill, own in episodes.items():
        mine = skills == skill
        distances = cdist(states[mine], states)
        compared = (starts[mine][:, None] != starts) | one_start
        between[skill] = float(distances[compared & ~mine].mean())
        if len(own) > 1:
            within[skill] = float(distances[compared & mine].mean())
    return within, between


def confusion_matrix(played: EpisodesBySkill) -> np.ndarray:
    """Return shares `(K, K)`: of the steps of each of all K skills (row), those that q_phi assigns to each (column)."""
    matrix = np.zeros((len(played), len(played)))
    for skill, episodes in played.items():
        for _, trace in episodes:
            np.add.at(matrix[skill], trace.predicted[1:], 1.0)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)  # an unstable first step leaves an empty row
