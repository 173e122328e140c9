"""Evaluation episodes that are played side by side: the results do not depend on how many there are at a time."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from diayn import DIAYNAgent
from dmc import DMCEnv
from drq import DrQAgent
from envs.parallel import make_eval_envs, open_eval_envs
from envs.renderer import RendererInfo
from errors import RenderingError, SimulationError, WorkerError
from evaluation.evaluate_skills import evaluate_skills
from evaluation.play import Actions, Start, best_skill, play, start_seeds
from logger import Episode
from running.columns import NO_SKILL
from tests.support.fake_env import IMAGE_SIZE, UnevenEnv
from video import VideoRecorder, read_video

# What `evaluate_skills` is told of the task.
OF_TASK: dict[str, Any] = {"fps": 10.0, "max_episode_steps": 9, "cell_grid": None, "angles": ()}
SMALL: dict[str, Any] = {"device": "cpu", "seed": 0, "encoder_feature_dim": 8, "hidden_dim": 16}


def make_diayn(image_size: int, action_dim: int, encoder: str = "shared") -> DIAYNAgent:
    torch.manual_seed(0)
    skills: dict[str, Any] = {"num_skills": 3, "skill_embedding_dim": 4, "lr_discriminator": 1e-3}
    return DIAYNAgent((9, image_size, image_size), action_dim, discriminator_encoder=encoder, **skills, **SMALL)


def play_on(
    agent: DrQAgent, factory: Any, starts: list[Start], count: int, workers: int = 0
) -> list[dict[str, float | int]]:
    """Play the starts on `count` environments and return the episodes without their durations."""
    with open_eval_envs(factory, count, workers) as eval_envs:
        episodes = play(agent, eval_envs, starts)
    assert all(isinstance(episode, Episode) and episode.duration > 0 for episode in episodes)
    return [{**dataclasses.asdict(episode), "duration": 0.0} for episode in episodes]


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_side_by_side_equals_one_after_the_other(encoder: str) -> None:
    """Bit for bit, for episodes of different lengths and for rounds with fewer starts than environments."""
    agent = make_diayn(IMAGE_SIZE, 2, encoder)
    starts = [Start(skill, seed) for seed in (0, 5, 3, 4) for skill in agent.skills()]
    alone = play_on(agent, UnevenEnv, starts, count=1)
    assert [episode["length"] for episode in alone] == [3] * 3 + [8] * 3 + [6] * 3 + [7] * 3
    for count in (2, 3, 5, 12):
        assert play_on(agent, UnevenEnv, starts, count) == alone


def test_results_match_a_plain_loop() -> None:
    """Return, intrinsic sum, accuracy and length of an episode that a plain loop plays."""
    agent, env = make_diayn(IMAGE_SIZE, 2), UnevenEnv()
    obs, _ = env.reset(seed=5)
    returns, rewards, hits, done = 0.0, [], [], False
    while not done:
        action = agent.act(obs, 1, sample=False)
        obs, reward, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
        returns += reward
        logits = agent.classify(torch.from_numpy(obs[None])).detach().double()
        rewards.append(float(logits.log_softmax(1)[0, 1] + np.log(3)))
        hits.append(int(logits.argmax()) == 1)
    (episode,) = play_on(agent, UnevenEnv, [Start(1, 5)], count=1)
    assert episode["length"] == len(rewards) == 8
    assert episode["extrinsic_reward"] == pytest.approx(returns, rel=1e-5)
    assert episode["intrinsic_reward_sum"] == pytest.approx(sum(rewards), abs=1e-4)
    assert episode["discriminator_accuracy"] == pytest.approx(np.mean(hits))


@pytest.mark.slow
def test_processes_equal_this_process_on_real_pixels(renderer: RendererInfo) -> None:
    """Two spawned processes, each with its own rendering context, against environments in this process."""
    agent = make_diayn(84, 1)
    starts = [Start(skill, 7) for skill in agent.skills()]
    factory = partial(DMCEnv, "cartpole_swingup", action_repeat=8, time_limit=160)
    alone = play_on(agent, factory, starts, count=1)
    assert play_on(agent, factory, starts, count=3) == alone
    assert play_on(agent, factory, starts, count=3, workers=2) == alone


def test_the_best_skill_has_the_highest_mean_return() -> None:
    agent, seeds = make_diayn(IMAGE_SIZE, 2), [0, 5]
    with open_eval_envs(UnevenEnv, 4) as eval_envs:
        best, returns, steps = best_skill(agent, eval_envs, [2, 0, 1], seeds)
        episodes = play(agent, eval_envs, [Start(skill, seed) for seed in seeds for skill in (2, 0, 1)])
    means = {
        skill: np.mean([episode.extrinsic_reward for episode in episodes if episode.skill == skill])
        for skill in (2, 0, 1)
    }
    assert returns == pytest.approx(means)
    assert best == max(means, key=lambda skill: means[skill])
    assert steps == 3 * (3 + 8)


def test_start_seeds_follow_from_the_entropy() -> None:
    assert start_seeds(7, 3) == np.random.SeedSequence(7).generate_state(3).tolist() == start_seeds([7], 3)
    assert not set(start_seeds([7, 0], 3)) & set(start_seeds([7, 100], 3))


# -- random actions ----------------------------------------------------------------------------------------------------


def test_sampled_actions_are_the_policys() -> None:
    """They are `act`'s for the same noise, which depends on the start only."""
    agent = make_diayn(IMAGE_SIZE, 2)
    starts = [Start(skill, seed) for seed in (5, 4) for skill in agent.skills()]
    with open_eval_envs(UnevenEnv, 4) as eval_envs:
        play(agent, eval_envs, starts, actions="sampled")
    chosen = np.random.default_rng([4, 1 + 1])  # of seed 4 and skill 1
    env = UnevenEnv()
    obs, _ = env.reset(seed=4)
    for action in starts[4].trace.actions:
        noise = torch.from_numpy(chosen.standard_normal((1, 2), np.float32))
        expected = agent.policy(torch.from_numpy(obs[None]), torch.tensor([1]), noise)[0]
        np.testing.assert_allclose(action, expected, atol=1e-6)
        obs, *_ = env.step(action)
    modes = agent.assess(obs[None], np.array([1])).action[0]
    assert np.abs(starts[4].trace.actions[-1] - modes).max() > 1e-3


@pytest.mark.parametrize("actions", ["sampled", "uniform"])
def test_random_actions_do_not_depend_on_the_number_of_environments(actions: Actions) -> None:
    agent = make_diayn(IMAGE_SIZE, 2)
    played = []
    for count in (1, 4, 6):
        starts = [Start(skill, seed) for seed in (5, 4) for skill in agent.skills()]
        with open_eval_envs(UnevenEnv, count) as eval_envs:
            play(agent, eval_envs, starts, actions=actions)
        played.append([np.array(start.trace.actions) for start in starts])
    for others in played[1:]:
        for first, other in zip(played[0], others, strict=True):
            np.testing.assert_array_equal(first, other)
    assert len({episode[0].tobytes() for episode in played[0]}) == 6, "each start has its own"


def test_uniform_actions_fill_the_box() -> None:
    starts = [Start(NO_SKILL, seed) for seed in range(60)]
    with open_eval_envs(UnevenEnv, 10) as eval_envs:
        play(DrQAgent((9, IMAGE_SIZE, IMAGE_SIZE), 2, **SMALL), eval_envs, starts, actions="uniform")
    actions = np.concatenate([start.trace.actions for start in starts])
    assert actions.dtype == np.float32
    assert stats.kstest(actions.ravel(), "uniform", (-1, 2)).pvalue > 0.01


# -- failures ----------------------------------------------------------------------------------------------------------


class UnstableEnv(UnevenEnv):
    """Its physics become unstable in the third step of an episode from an odd seed."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.steps == 2 and self.episode % 2:
            raise SimulationError("the physics became unstable (a test)")
        return super().step(action)


def test_an_unstable_episode_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    """The failed step is not counted, and the other episodes are the same as without it."""
    agent = make_diayn(IMAGE_SIZE, 2)
    starts = [Start(0, seed) for seed in (4, 5, 2, 8)]
    stable = play_on(agent, UnevenEnv, starts, count=2)
    episodes = play_on(agent, UnstableEnv, starts, count=2)
    assert [episode["length"] for episode in stable] == [7, 8, 5, 4]
    assert [episode["length"] for episode in episodes] == [7, 2, 5, 4]
    assert [episodes[number] for number in (0, 2, 3)] == [stable[number] for number in (0, 2, 3)]
    assert capsys.readouterr().err.count("warning: an evaluation episode ends early: the physics became unstable") == 1


class TroubledEnv(UnevenEnv):
    """It cannot be drawn in episodes from seed 5, and ends its process in episodes from seed 6."""

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        if self.episode == 5:
            raise RenderingError("no picture (a test)")
        if self.episode == 6:
            os._exit(9)
        return super().render(height, width)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failed_picture_costs_only_its_own_video(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process and in workers. A dead worker raises WorkerError, and leaves no unfinished video."""
    agent = make_diayn(IMAGE_SIZE, 2)
    recorders = start_recorders(tmp_path, 2)
    with open_eval_envs(TroubledEnv, 2, workers) as eval_envs:
        starts = [Start(0, 4, recorders[0]), Start(1, 5, recorders[1])]
        episodes = [dataclasses.replace(episode, duration=0.0) for episode in play(agent, eval_envs, starts)]
        assert [start.video and start.video.name for start in starts] == ["0.mp4", None]
        assert capsys.readouterr().err.count("1.mp4 was not written: no picture (a test)") == 1
        if workers:
            with pytest.raises(WorkerError, match="an evaluation process died"):
                evaluate_skills(agent, eval_envs, {0: "a", 1: "b"}, [6], video_folder=tmp_path, **OF_TASK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4"]
    assert [vars(episode) for episode in episodes] == play_on(agent, UnevenEnv, [Start(0, 4), Start(1, 5)], count=2)


# -- videos ------------------------------------------------------------------------------------------------------------


def start_recorders(folder: Path, count: int) -> list[VideoRecorder]:
    recorders = [VideoRecorder(folder, 10) for _ in range(count)]
    for number, recorder in enumerate(recorders):
        recorder.start(str(number))
    return recorders


def test_recorded_episodes_have_one_frame_per_step(tmp_path: Path) -> None:
    recorders = start_recorders(tmp_path, 3)
    starts = [
        Start(skill, seed, recorder) for skill, seed, recorder in zip(range(3), (0, 5, 3), recorders, strict=True)
    ]
    play(make_diayn(IMAGE_SIZE, 2), make_eval_envs(UnevenEnv, 3, 0), starts)
    assert [len(list(read_video(start.video))) for start in starts if start.video] == [3, 8, 6]


class CountingEnv(UnevenEnv):
    drawn = 0

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        type(self).drawn += 1
        return super().render(height, width)


@pytest.mark.parametrize(("recorded", "length"), [(0, 3), (1, 8), (2, 6)])
def test_only_recorded_episodes_are_drawn(tmp_path: Path, recorded: int, length: int) -> None:
    """One of three episodes is recorded, and drawn only until it ends."""
    (recorder,) = start_recorders(tmp_path, 1)
    CountingEnv.drawn = 0
    starts = [Start(number, (0, 5, 3)[number], recorder if number == recorded else None) for number in range(3)]
    play(make_diayn(IMAGE_SIZE, 2), make_eval_envs(CountingEnv, 3, 0), starts)
    assert CountingEnv.drawn == length


def test_a_video_shows_skill_step_and_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each skill's video shows that skill, the number of each step, its intrinsic reward and the sum so far."""
    shown: dict[str, list[str]] = defaultdict(list)
    start, record = VideoRecorder.start, VideoRecorder.record
    names: dict[VideoRecorder, str] = {}

    def spy_on_start(self: VideoRecorder, name: str) -> None:
        names[self] = name
        start(self, name)

    def spy_on_record(self: VideoRecorder, frame: np.ndarray, text: Sequence[str] = ()) -> None:
        shown[names[self]] += text
        record(self, frame, text)

    monkeypatch.setattr(VideoRecorder, "start", spy_on_start)
    monkeypatch.setattr(VideoRecorder, "record", spy_on_record)
    agent = make_diayn(IMAGE_SIZE, 2)
    with open_eval_envs(UnevenEnv, 2) as eval_envs:
        evaluation = evaluate_skills(agent, eval_envs, {0: "zero", 2: "two"}, [5], video_folder=tmp_path, **OF_TASK)
    env = UnevenEnv()
    for name, episode, result in zip(("zero", "two"), evaluation.starts, evaluation.episodes, strict=True):
        env.reset(seed=5)
        observations = np.stack([env.step(action)[0] for action in episode.trace.actions])
        r_int = agent.assess(observations, np.full(len(observations), episode.skill)).intrinsic_reward
        lines = [
            (f"skill {episode.skill}  step {step}", f"r_int {r_int[step - 1]:.3f}  sum {r_int[:step].sum():.1f}")
            for step in range(1, 9)
        ]
        assert shown[name] == [text for pair in lines for text in pair]
        assert result.intrinsic_reward_sum == pytest.approx(r_int.sum(), rel=1e-5)
    assert len({*shown["zero"][1::2], *shown["two"][1::2]}) > 8, "the skills differ"
