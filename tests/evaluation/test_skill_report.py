"""The report on skills, against numbers computed by hand and on real rollouts."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

from diayn import DIAYNAgent
from dmc import DMCEnv
from envs.cells import CellGrid, Coordinate
from envs.parallel import open_eval_envs
from envs.renderer import RendererInfo
from evaluation.play import Start, Trace, play
from evaluation.skill_report import (
    DECILES,
    bound_by_decile,
    cells_visited,
    confusion_matrix,
    mean_by_decile,
    overall,
    skill_rows,
    state_distances,
)
from logger import Episode


def episode(predicted: list[int], states: list[list[float]], centers: list[list[float]], **figures: float) -> Any:
    length = len(predicted) - 1
    trace = Trace(predicted=predicted, states=[np.array(s) for s in states], centers=[np.array(c) for c in centers])
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
    starts = {skill: range(len(episodes)) for skill, episodes in states.items()}
    scale = np.concatenate([own for episodes in states.values() for own in episodes]).std(axis=0)
    within, between = state_distances(states)
    assert sorted(within) == [1, 2], "a skill with one episode has no distance within"

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.sqrt((((one - other) / scale) ** 2).mean()))

    for skill, episodes in states.items():
        pairs = [pair for one, another in combinations(episodes, 2) for pair in product(one, another)]
        if pairs:
            assert within[skill] == pytest.approx(np.mean([distance(*pair) for pair in pairs]))
        pairs = [
            pair
            for other in states
            for i, j in product(starts[skill], starts[other])
            if other != skill and i != j
            for pair in product(episodes[i], states[other][j])
        ]
        assert between[skill] == pytest.approx(np.mean([distance(*pair) for pair in pairs]))


def test_skills_that_behave_alike_are_as_far_apart_as_their_own_episodes() -> None:
    """Their episodes from one start are equal; they are not compared, as a skill's own are not either."""
    rng = np.random.default_rng(0)
    episodes = [rng.normal(start, 1.0, (20, 3)) for start in (0.0, 3.0)]
    within, between = state_distances(dict.fromkeys(range(4), episodes))
    assert within == pytest.approx(between)


def test_turns_of_a_joint_without_limits_are_not_counted() -> None:
    rng = np.random.default_rng(0)
    states = {skill: [rng.normal(0.0, 1.0, (20, 3)) for _ in range(2)] for skill in range(2)}
    turned = {
        skill: [own + np.array([0.0, 20 * np.pi * skill, 0.0]) for own in episodes]
        for skill, episodes in states.items()
    }
    for distances, expected in zip(state_distances(turned, [1]), state_distances(states, [1]), strict=True):
        assert distances == pytest.approx(expected)


def test_an_angle_is_one_dimension() -> None:
    """Opposite points of a circle, where each has a distance of 1 from the mean; and 0 and 1 on a line."""
    states = {0: [np.array([[0.0, 0.0]])] * 2, 1: [np.array([[1.0, np.pi]])] * 2}
    within, between = state_distances(states, [1])
    assert within == pytest.approx({0: 0.0, 1: 0.0})
    assert between == pytest.approx({0: 2.0, 1: 2.0})  # 2 standard deviations in both


def test_distances_from_one_start() -> None:
    states = {0: [np.array([[0.0]])], 1: [np.array([[2.0]])]}
    assert state_distances(states) == ({}, pytest.approx({0: 2.0, 1: 2.0}))


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
    first, _ = skill_rows(played)
    assert (first["skill_id"], first["episodes"], first["episode_extrinsic_reward"]) == (0, 2, 3.0)
    assert first["discriminator_accuracy"] == pytest.approx(2 / 3)
    assert (first["displacement_x"], first["displacement_y"]) == (2.0, 0.0)
    np.testing.assert_allclose(confusion_matrix(played), [[2 / 3, 1 / 3], [0.0, 1.0]])


# -- the bound over the episode ----------------------------------------------------------------------------------------


def with_rewards(*episodes: list[float]) -> Any:
    """Return episodes of a skill with these intrinsic rewards."""
    return [
        (
            Episode(1.0, 0.0, 0, sum(rewards), length=len(rewards)),
            Trace(predicted=[0] * (len(rewards) + 1), intrinsic=rewards),
        )
        for rewards in episodes
    ]


def test_the_bound_by_decile_and_over_the_second_half() -> None:
    """Against a plain loop, for episodes of different lengths, also of fewer steps than there are deciles."""
    rng = np.random.default_rng(0)
    played = {
        skill: with_rewards(*(rng.normal(size=length).tolist() for length in lengths))
        for skill, lengths in enumerate([(125, 30), (20,), (7, 4)])
    }
    by_decile = bound_by_decile(played)
    for row in skill_rows(played):
        tenths: list[list[float]] = [[] for _ in range(DECILES)]
        second_half = []
        for episode_, trace in played[row["skill_id"]]:
            for step, reward in enumerate(trace.intrinsic):
                tenths[int(10 * step / episode_.length)].append(reward)
                if step >= episode_.length / 2:
                    second_half.append(reward)
        assert by_decile[row["skill_id"]] == [pytest.approx(np.mean(tenth)) if tenth else None for tenth in tenths]
        assert row["mutual_information_bound_second_half"] == pytest.approx(np.mean(second_half))
    assert None in by_decile[2]
    for number, mean in enumerate(mean_by_decile(by_decile)):
        known = [bound for bounds in by_decile.values() if (bound := bounds[number]) is not None]
        assert mean == pytest.approx(np.mean(known))


def test_skills_that_are_told_apart_from_the_middle_on() -> None:
    """The second half is at the ceiling and the first at chance."""
    ceiling = float(np.log(2))
    played = {skill: with_rewards([0.0] * 50 + [ceiling] * 50) for skill in range(2)}
    assert mean_by_decile(bound_by_decile(played)) == pytest.approx([0.0] * 5 + [ceiling] * 5)
    measures = overall(skill_rows(played))
    assert measures["mutual_information_bound_second_half"] == pytest.approx(ceiling)
    assert measures["effective_skills"] == pytest.approx(np.sqrt(2))


def test_measures_of_all_skills_together() -> None:
    """Each skill has the same weight; skills that lack a measure are left out; without any it is None."""
    rows: list[dict[str, Any]] = [
        {"discriminator_accuracy": None, "mutual_information_bound": 1.0, "episode_intrinsic_reward_sum": 100.0},
        {"discriminator_accuracy": 0.5, "mutual_information_bound": 2.0, "episode_intrinsic_reward_sum": 2.0},
    ]
    assert overall(rows) == {
        "episode_intrinsic_reward_sum": 51.0,
        "discriminator_accuracy": 0.5,
        "mutual_information_bound": 1.5,
        "mutual_information_bound_second_half": None,
        "effective_skills": pytest.approx(np.exp(1.5)),
    }
    assert overall([{}])["effective_skills"] is None


def test_a_skill_without_a_step_is_left_out_of_the_means() -> None:
    """The physics became unstable in its first step: nothing was measured, not chance."""
    played = {0: with_rewards([1.0] * 10), 1: with_rewards([])}
    rows = skill_rows(played)
    assert "mutual_information_bound" not in rows[1]
    assert "discriminator_accuracy" not in rows[1]
    assert overall(rows)["mutual_information_bound"] == pytest.approx(1.0)


# -- coverage ----------------------------------------------------------------------------------------------------------

GRID = CellGrid((Coordinate("x", "m", 1.0), Coordinate("y", "m", 1.0)), lambda physics: physics)


def visiting(*positions: tuple[float, float]) -> Any:
    """Return an episode with these positions."""
    return Episode(1.0, 0.0), Trace(predicted=[0], positions=[np.array(position) for position in positions])


def test_cells_are_counted_once() -> None:
    """For a skill over its episodes, together over all skills; the start counts."""
    played = {
        0: [visiting((0.5, 0.5), (0.6, 0.5), (1.5, 0.5)), visiting((0.4, 0.4), (0.5, 1.5))],
        1: [visiting((0.1, 0.1), (-0.1, 0.1))],
    }
    assert [row["cells_visited"] for row in skill_rows(played, GRID)] == [3, 2]
    assert cells_visited(played, GRID) == 4
    assert [row["cells_visited"] for row in skill_rows(played)] == [None, None]
    assert cells_visited(played, None) is None


# -- states ------------------------------------------------------------------------------------------------------------


def test_distances_use_states_of_the_whole_episode() -> None:
    """The skills of these long episodes behave alike for the first half."""
    still, moving = ([[max(step - 250.0, 0.0) * moves] for step in range(501)] for moves in (0, 1))
    played: Any = {skill: [episode([0] * 501, states, [])] for skill, states in enumerate((still, moving))}
    for row in skill_rows(played):
        assert row["state_distance_between"] > 0.5


@pytest.mark.parametrize("count", [2, 3, 50, 51, 150])
@pytest.mark.parametrize("skills", [2, 200])
def test_distances_do_not_depend_on_the_number_of_episodes(count: int, skills: int) -> None:
    """Skill k goes from 0 to k in each episode."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.01, (count, 126, 1))
    time = np.linspace(0.0, 1.0, 126)[:, None]
    played: Any = {
        skill: [episode([0] * 126, list(skill * time + noise[number]), []) for number in range(count)]
        for skill in range(skills)
    }
    rows = skill_rows(played)
    first, last = rows[0], rows[-1]
    assert first["state_distance_within"] < 0.1
    if skills == 2:  # uniform on [0, 1], and 0: the mean distance of two states is 1/3, that to the other skill 1/2
        spread = np.std(np.concatenate([np.zeros(126), time.ravel()]))
        assert last["state_distance_within"] == pytest.approx(1 / 3 / spread, rel=0.1)
        assert last["state_distance_between"] == pytest.approx(1 / 2 / spread, rel=0.1)


def test_traces_of_real_episodes(renderer: RendererInfo) -> None:
    """States, pictures, predictions and rewards of each step."""
    torch.manual_seed(0)
    agent = DIAYNAgent(
        (9, 84, 84), 6, num_skills=3, skill_embedding_dim=4, lr_discriminator=1e-3, device="cpu", seed=0, hidden_dim=16
    )
    starts = [Start(skill, 5, trace=Trace(picture_every=3)) for skill in agent.skills()]
    with open_eval_envs(lambda: DMCEnv("walker_walk", action_repeat=10, time_limit=200), 3) as eval_envs:
        episodes = play(agent, eval_envs, starts)
    env = DMCEnv("walker_walk", action_repeat=10, time_limit=200)
    obs, _ = env.reset(seed=5)
    trace = starts[1].trace
    assert (len(trace.predicted), len(trace.states), trace.picture_steps) == (21, 21, [*range(0, 20, 3), 20])
    for step in range(21):
        predicted = int(agent.classify(torch.from_numpy(obs[None])).argmax())
        state, center, position = env.measure()
        assert trace.predicted[step] == predicted
        np.testing.assert_array_equal(trace.states[step], state)
        np.testing.assert_array_equal(trace.centers[step], center)
        np.testing.assert_array_equal(trace.positions[step], position)
        if step in trace.picture_steps:
            np.testing.assert_array_equal(trace.pictures[trace.picture_steps.index(step)], obs[-3:])
        obs, *_ = env.step(agent.assess(obs[None], np.array([1])).action[0])
    assert abs(trace.centers[-1][2] - trace.centers[0][2]) > 0.1, "an untrained walker falls"
    assert len({start.trace.predicted[0] for start in starts}) == 1, "all skills start alike"
    for start, result in zip(starts, episodes, strict=True):
        assert len(start.trace.intrinsic) == 20
        assert sum(start.trace.intrinsic) == pytest.approx(result.intrinsic_reward_sum, abs=1e-5)
    env.close()
