"""Evaluation episodes played side by side: the same results however many at a time."""

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

from diayn import DIAYNAgent
from dmc import DMCEnv
from drq import DrQAgent
from envs.parallel import make_eval_envs, open_eval_envs
from envs.renderer import RendererInfo
from errors import RenderingError, SimulationError, WorkerError
from logger import Episode
from rollouts import Start, film, play
from tests.support.fake_env import IMAGE_SIZE, UnevenEnv
from video import VideoRecorder, read_video

SMALL: dict[str, Any] = {"device": "cpu", "seed": 0, "encoder_feature_dim": 8, "hidden_dim": 16}


def make_diayn(image_size: int, action_dim: int, encoder: str = "shared") -> DIAYNAgent:
    torch.manual_seed(0)
    skills: dict[str, Any] = {"num_skills": 3, "skill_embedding_dim": 4, "lr_discriminator": 1e-3}
    return DIAYNAgent((9, image_size, image_size), action_dim, discriminator_encoder=encoder, **skills, **SMALL)


def played(
    agent: DrQAgent, factory: Any, starts: list[Start], lanes: int, workers: int = 0
) -> list[dict[str, float | int]]:
    """The results without their durations."""
    envs = make_eval_envs(factory, lanes, workers)
    try:
        episodes = play(agent, envs, starts)
    finally:
        envs.close()
    assert all(isinstance(episode, Episode) and episode.duration > 0 for episode in episodes)
    return [{**dataclasses.asdict(episode), "duration": 0.0} for episode in episodes]


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_side_by_side_equals_one_after_the_other(encoder: str) -> None:
    """To the bit, for episodes of different lengths and for rounds that the starts don't fill."""
    agent = make_diayn(IMAGE_SIZE, 2, encoder)
    starts = [Start(skill, seed) for seed in (0, 5, 3, 4) for skill in agent.skills()]
    alone = played(agent, UnevenEnv, starts, lanes=1)
    assert [episode["length"] for episode in alone] == [3] * 3 + [8] * 3 + [6] * 3 + [7] * 3
    for lanes in (2, 3, 5, 12):
        assert played(agent, UnevenEnv, starts, lanes) == alone


def test_results_match_a_plain_loop() -> None:
    """Return, intrinsic sum, accuracy and length of an episode, worked out with nothing side by side."""
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
    (episode,) = played(agent, UnevenEnv, [Start(1, 5)], lanes=1)
    assert episode["length"] == len(rewards) == 8
    assert episode["extrinsic_reward"] == pytest.approx(returns, rel=1e-5)
    assert episode["intrinsic_reward_sum"] == pytest.approx(sum(rewards), abs=1e-4)
    assert episode["discriminator_accuracy"] == pytest.approx(np.mean(hits))


def test_recorded_episodes_have_one_frame_a_step(tmp_path: Path) -> None:
    agent = make_diayn(IMAGE_SIZE, 2)
    recorders = [VideoRecorder(tmp_path, 10) for _ in range(3)]
    for number, recorder in enumerate(recorders):
        recorder.start(str(number))
    envs = make_eval_envs(UnevenEnv, 3, 0)
    starts = [
        Start(skill, seed, recorder) for skill, seed, recorder in zip(range(3), (0, 5, 3), recorders, strict=True)
    ]
    play(agent, envs, starts)
    paths = [recorder.stop() for recorder in recorders]
    assert [len(list(read_video(path))) for path in paths if path] == [3, 8, 6]


class CountingEnv(UnevenEnv):
    drawn = 0

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        type(self).drawn += 1
        return super().render(height, width)


def test_only_what_is_recorded_is_drawn(tmp_path: Path) -> None:
    """One episode of three is filmed, in another lane each time, and only while it lasts."""
    agent = make_diayn(IMAGE_SIZE, 2)
    envs = make_eval_envs(CountingEnv, 3, 0)
    for filmed, length in enumerate((3, 8, 6)):
        recorder = VideoRecorder(tmp_path, 10)
        recorder.start(str(filmed))
        CountingEnv.drawn = 0
        play(agent, envs, [Start(lane, (0, 5, 3)[lane], recorder if lane == filmed else None) for lane in range(3)])
        recorder.stop()
        assert CountingEnv.drawn == length


class UnstableEnv(UnevenEnv):
    """Its physics become unstable in the third step of an episode from an odd seed."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.steps == 2 and self.episode % 2:
            raise SimulationError("the physics became unstable (a test)")
        return super().step(action)


def test_an_unstable_episode_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    """The others go on as they would without it."""
    agent = make_diayn(IMAGE_SIZE, 2)
    starts = [Start(0, seed) for seed in (4, 5, 2, 8)]
    stable = played(agent, UnevenEnv, starts, lanes=2)
    episodes = played(agent, UnstableEnv, starts, lanes=2)
    assert [episode["length"] for episode in stable] == [7, 8, 5, 4]
    assert [episode["length"] for episode in episodes] == [7, 2, 5, 4], "the step that failed is none"
    assert [episodes[number] for number in (0, 2, 3)] == [stable[number] for number in (0, 2, 3)]
    assert capsys.readouterr().err.count("warning: an evaluation episode ends early: the physics became unstable") == 1


class TroubledEnv(UnevenEnv):
    """It can't be drawn in episodes from seed 5, and ends its process in those from seed 6."""

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        if self.episode == 5:
            raise RenderingError("no picture (a test)")
        if self.episode == 6:
            os._exit(9)
        return super().render(height, width)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_fails_costs_its_own_video_only(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process and in others; a process that is gone is told as that, and no video is left half made."""
    agent = make_diayn(IMAGE_SIZE, 2)
    recorders = [VideoRecorder(tmp_path, 10) for _ in range(2)]
    for number, recorder in enumerate(recorders):
        recorder.start(str(number))
    with open_eval_envs(TroubledEnv, 2, workers) as envs:
        starts = [Start(0, 4, recorders[0]), Start(1, 5, recorders[1])]
        episodes = [dataclasses.replace(episode, duration=0.0) for episode in play(agent, envs, starts)]
        paths = [recorder.stop() for recorder in recorders]
        assert [path and path.name for path in paths] == ["0.mp4", None]
        assert capsys.readouterr().err.count("1.mp4 was not written: no picture (a test)") == 1
        if workers:
            with pytest.raises(WorkerError, match="an evaluation process died"):
                film(agent, envs, {0: "a", 1: "b"}, [6], tmp_path, 10.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4"]
    assert [vars(episode) for episode in episodes] == played(agent, UnevenEnv, [Start(0, 4), Start(1, 5)], lanes=2)


def test_film(tmp_path: Path) -> None:
    """A video of each skill's first episode and one of all, as large as asked for, and a trace of every episode."""
    agent = make_diayn(IMAGE_SIZE, 2)
    with open_eval_envs(UnevenEnv, 4) as envs:
        filmed = film(agent, envs, {0: "zero", 2: "two"}, [5, 4], tmp_path, 10.0, grid="all", size=48, picture_every=4)
    assert [(start.skill, start.seed) for start in filmed.starts] == [(0, 5), (2, 5), (0, 4), (2, 4)]
    assert [result.length for result in filmed.results] == [8, 8, 7, 7]
    assert filmed.videos == {0: tmp_path / "zero.mp4", 2: tmp_path / "two.mp4"}
    assert [frame.shape for frame in read_video(tmp_path / "two.mp4")] == [(48, 48, 3)] * 8
    assert [frame.shape for frame in read_video(tmp_path / "all.mp4")] == [(48, 96, 3)] * 8
    traces = [start.trace for start in filmed.starts if start.trace is not None]
    assert [(len(t.actions), len(t.rewards), len(t.predicted), len(t.pictures)) for t in traces] == [
        *[(8, 8, 9, 3)] * 2,
        *[(7, 7, 8, 2)] * 2,
    ]


def test_a_video_says_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a skill's name that skill, each step's number, its intrinsic reward and the sum up to it."""
    said: dict[str, list[str]] = defaultdict(list)
    start, record = VideoRecorder.start, VideoRecorder.record
    names: dict[VideoRecorder, str] = {}

    def spy_on_start(self: VideoRecorder, name: str) -> None:
        names[self] = name
        start(self, name)

    def spy_on_record(self: VideoRecorder, frame: np.ndarray, text: Sequence[str] = ()) -> None:
        said[names[self]] += text
        record(self, frame, text)

    monkeypatch.setattr(VideoRecorder, "start", spy_on_start)
    monkeypatch.setattr(VideoRecorder, "record", spy_on_record)
    agent = make_diayn(IMAGE_SIZE, 2)
    with open_eval_envs(UnevenEnv, 2) as lanes:
        filmed = film(agent, lanes, {0: "zero", 2: "two"}, [5], tmp_path, 10.0)
    env = UnevenEnv()
    for name, episode, result in zip(("zero", "two"), filmed.starts, filmed.results, strict=True):
        assert episode.trace is not None
        env.reset(seed=5)
        observations = np.stack([env.step(action)[0] for action in episode.trace.actions])
        r_int = agent.assess(observations, np.full(len(observations), episode.skill)).intrinsic_reward
        lines = [
            (f"skill {episode.skill}  step {step}", f"r_int {r_int[step - 1]:.3f}  sum {r_int[:step].sum():.1f}")
            for step in range(1, 9)
        ]
        assert said[name] == [text for pair in lines for text in pair]
        assert result.intrinsic_reward_sum == pytest.approx(r_int.sum(), rel=1e-5)
    assert len({*said["zero"][1::2], *said["two"][1::2]}) > 8, "the skills differ"


@pytest.mark.slow
def test_processes_equal_this_process_on_real_pixels(renderer: RendererInfo) -> None:
    """Two spawned processes, each with a rendering context of its own, against lanes in this process."""
    agent = make_diayn(84, 1)
    starts = [Start(skill, 7) for skill in agent.skills()]
    factory = partial(DMCEnv, "cartpole_swingup", action_repeat=8, time_limit=160)
    alone = played(agent, factory, starts, lanes=1)
    assert played(agent, factory, starts, lanes=3) == alone
    assert played(agent, factory, starts, lanes=3, workers=2) == alone
