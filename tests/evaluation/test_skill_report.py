"""The report on skills, against numbers computed by hand and on real rollouts."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

from diayn import DIAYNAgent
from dmc import DMCEnv
from envs.parallel import open_eval_envs
from envs.renderer import RendererInfo
from evaluation.play import Start, Trace, play
from evaluation.skill_report import (
    SHEET_COLUMNS,
    SHEET_HEADER,
    SHEET_LABEL,
    confusion_matrix,
    contact_sheet,
    draw_confusion_matrix,
    headline,
    skill_rows,
    state_distances,
)
from logger import Episode


def episode(predicted: list[int], states: list[list[float]], centres: list[list[float]], **figures: float) -> Any:
    length = len(predicted) - 1
    trace = Trace(predicted=predicted, states=[np.array(s) for s in states], centres=[np.array(c) for c in centres])
    return Episode(1.0, figures.get("reward", 0.0), 0, length * 1.0, figures.get("accuracy", 0.0), length), trace


def test_distances_of_two_skills_on_a_line() -> None:
    """At 0 and 2, and at 10 and 12, in two episodes each. A dimension that never changes is ignored."""
    states = {
        3: [np.array([[0.0, 7.0]]), np.array([[2.0, 7.0]])],
        5: [np.array([[10.0, 7.0]]), np.array([[12.0, 7.0]])],
    }
    within, between = state_distances(states)
    spread = np.std([0.0, 2.0, 10.0, 12.0])
    assert within == pytest.approx({3: 2 / spread, 5: 2 / spread})
    assert between == pytest.approx({3: 10 / spread, 5: 10 / spread})


def test_distances_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    states = {skill: [rng.normal(skill, 1 + skill, (5 + skill + e, 3)) for e in range(1 + skill)] for skill in range(3)}
    scale = np.concatenate([own for episodes in states.values() for own in episodes]).std(axis=0)
    within, between = state_distances(states)
    assert sorted(within) == [1, 2], "a skill with one episode has no distance within"

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sqrt((((one - other) / scale) ** 2).mean()))

    for skill, episodes in states.items():
        pairs = [pair for one, another in combinations(episodes, 2) for pair in product(one, another)]
        if pairs:
            assert within[skill] == pytest.approx(np.mean([distance(*pair) for pair in pairs]))
        others = [state for other in states if other != skill for episode in states[other] for state in episode]
        own = [state for episode in episodes for state in episode]
        assert between[skill] == pytest.approx(np.mean([distance(*pair) for pair in product(own, others)]))


@pytest.mark.parametrize(
    "states", [{}, {0: [np.zeros((4, 2))]}, {0: [np.ones((4, 2))] * 2, 1: [np.ones((4, 2))] * 2}, {0: [], 1: []}]
)
def test_no_distances_if_there_is_nothing_to_compare(states: dict[int, list[np.ndarray]]) -> None:
    assert state_distances(states) == ({}, {})


def test_rows_and_confusion() -> None:
    """Returns are means over episodes; accuracy is over their steps, without the start."""
    still = [[0.0], [0.0], [0.0]]
    played = {
        0: [
            episode([0, 0, 1], [[0], [1], [2]], [[0, 0, 9], [1, 1, 9], [3, -1, 9]], reward=2.0, accuracy=0.5),
            episode([1, 0], [[0], [1]], [[0, 0, 0], [1, 1, 0]], reward=4.0, accuracy=1.0),
        ],
        1: [episode([0, 1, 1], still, [[0, 0, 0]] * 3, accuracy=1.0)],
    }
    first, second = skill_rows(played)
    assert (first["skill_id"], first["episodes"], first["episode_extrinsic_reward"]) == (0, 2, 3.0)
    assert first["discriminator_accuracy"] == pytest.approx(2 / 3)
    assert (first["accuracy_at_start"], second["accuracy_at_start"]) == (0.5, 0.0)
    assert (first["displacement_x"], first["displacement_y"]) == (2.0, 0.0)
    np.testing.assert_allclose(confusion_matrix(played), [[2 / 3, 1 / 3], [0.0, 1.0]])


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
        {"episodes": 5, "discriminator_accuracy": accuracy, "mutual_information_bound": bound}
        for accuracy, bound in ((0.2, -1.0), (0.7, 2.0))
    ]
    assert headline(rows, 120) == "frame 120, episodes a skill: 5\n% of steps, accuracy 0.45, bound 0.50 nats"


def test_distances_use_states_of_the_whole_episode() -> None:
    """The skills of these long episodes behave alike for the first half."""
    still, moving = ([[max(step - 250.0, 0.0) * moves] for step in range(501)] for moves in (0, 1))
    played: Any = {skill: [episode([0] * 501, states, [])] for skill, states in enumerate((still, moving))}
    for row in skill_rows(played):
        assert row["state_distance_between"] > 0.5


def test_traces_of_real_episodes(renderer: RendererInfo) -> None:
    """States, pictures and predictions of each step. The starts are equal, so the first prediction is at chance."""
    torch.manual_seed(0)
    agent = DIAYNAgent(
        (9, 84, 84), 6, num_skills=3, skill_embedding_dim=4, lr_discriminator=1e-3, device="cpu", seed=0, hidden_dim=16
    )
    starts = [Start(skill, 5, None, Trace(picture_every=3)) for skill in agent.skills()]
    with open_eval_envs(lambda: DMCEnv("walker_walk", action_repeat=10, time_limit=200), 3) as eval_envs:
        episodes = play(agent, eval_envs, starts)
    env = DMCEnv("walker_walk", action_repeat=10, time_limit=200)
    obs, _ = env.reset(seed=5)
    trace = starts[1].trace
    assert (len(trace.predicted), len(trace.states), len(trace.pictures)) == (21, 21, 7)
    for step in range(21):
        predicted = int(agent.classify(torch.from_numpy(obs[None])).argmax())
        state, centre = env.measure()
        assert trace.predicted[step] == predicted
        np.testing.assert_array_equal(trace.states[step], state)
        np.testing.assert_array_equal(trace.centres[step], centre)
        if step % 3 == 0:
            np.testing.assert_array_equal(trace.pictures[step // 3], obs[-3:])
        obs, *_ = env.step(agent.assess(obs[None], np.array([1])).action[0])
    assert abs(trace.centres[-1][2] - trace.centres[0][2]) > 0.1, "an untrained walker falls"
    rows = skill_rows({start.skill: [(result, start.trace)] for start, result in zip(starts, episodes, strict=True)})
    assert np.mean([row["accuracy_at_start"] for row in rows]) == pytest.approx(1 / 3)
    env.close()
