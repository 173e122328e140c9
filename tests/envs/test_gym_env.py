"""Gymnasium environments as pixels, on one that MuJoCo draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from envs.gym_env import GymPixelEnv
from errors import RenderingError, TaskError
from tests.support.paths import ROOT

TASK = "InvertedPendulum-v5"

MakeEnv = Callable[..., GymPixelEnv]

pytestmark = pytest.mark.usefixtures("renderer")


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Make environments, and close them after the test."""
    made: list[GymPixelEnv] = []

    def make(name: str = TASK, **settings: int) -> GymPixelEnv:
        made.append(GymPixelEnv(name, **settings))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_spaces_and_stack(make_env: MakeEnv) -> None:
    env = make_env(image_size=40, frame_stack=2)
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs)
    assert obs.shape == (6, 40, 40)
    np.testing.assert_array_equal(obs[:3], obs[3:])
    assert obs.std() > 5, "the picture has only one color"
    following, *_ = env.step(np.ones(1, np.float32))
    np.testing.assert_array_equal(following[:3], obs[3:])
    assert env.render(100, 60).shape == (100, 60, 3)


def test_actions_are_scaled_held_and_rewards_summed(make_env: MakeEnv) -> None:
    """Compared with Gymnasium's environment; its bounds are [-3, 3], and each action is held for two steps."""
    env, plain = make_env(action_repeat=2), gymnasium.make(TASK)
    env.reset(seed=3)
    plain.reset(seed=3)
    for action in (0.5, -1.0, 0.2):
        _, reward, terminated, _, _ = env.step(np.array([action], np.float32))
        expected, over = 0.0, False
        for _ in range(2):
            state, one, over, _, _ = plain.step(np.array([3 * action], np.float32))
            expected += float(one)
        assert reward == pytest.approx(expected)
        assert terminated == over
        inner = env._env.unwrapped
        np.testing.assert_allclose(inner._get_obs(), state, atol=1e-6)  # type: ignore[attr-defined]
    plain.close()


def test_time_limits(make_env: MakeEnv) -> None:
    """7 frames in repeats of 3 are three agent steps. The environment's own limit is 1000 frames."""
    env = make_env(action_repeat=3, time_limit=7)
    assert env.max_episode_steps == 3
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    assert make_env().max_episode_steps == 1000


def test_a_fresh_environment_repeats_an_episode_from_the_state_before_it(make_env: MakeEnv) -> None:
    """States are equal bit by bit, pictures nearly: Gymnasium's camera follows the body with a memory of its own."""
    played = make_env(action_repeat=2)
    played.reset(seed=3)
    played.step(np.ones(1, np.float32))
    state = json.loads(json.dumps(played.state()))
    first, _ = played.reset()
    expected = [first, *(played.step(np.array([a], np.float32))[0] for a in (0.3, -0.8, 0.1))]
    fresh = make_env(action_repeat=2)
    fresh.load_state(state)
    first, _ = fresh.reset()
    found = [first, *(fresh.step(np.array([a], np.float32))[0] for a in (0.3, -0.8, 0.1))]
    np.testing.assert_array_equal(*(env._env.unwrapped._get_obs() for env in (fresh, played)))  # type: ignore[attr-defined]
    assert np.abs(np.array(found, int) - np.array(expected, int)).max() < 16


@pytest.mark.parametrize(("name", "word"), [("CartPole-v1", "Box"), ("Nothing-v0", "Nothing"), ("", "make")])
def test_unusable_environments_are_refused(make_env: MakeEnv, name: str, word: str) -> None:
    with pytest.raises(TaskError, match=word):
        make_env(name)


def test_an_environment_that_cannot_draw_is_refused_at_once(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some environments import their renderer only when they draw. A process that may not draw does not try."""

    def render(_: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("painter is not installed\nat all")

    monkeypatch.setattr(gymnasium.Wrapper, "render", render)
    with pytest.raises(TaskError, match=r"cannot draw itself: painter is not installed; pip install"):
        make_env()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert make_env().action_space.shape == (1,)


def test_drawing_is_tried_again(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second failure, or an array that is not an RGB picture, is a RenderingError."""
    env = make_env()
    first, _ = env.reset(seed=0)
    draw, failures = env._env.render, [OSError("lost"), OSError("lost again")]

    def render() -> object:
        if failures:
            raise failures.pop()
        return draw()

    monkeypatch.setattr(env._env, "render", render)
    with pytest.raises(RenderingError, match="failed twice: lost again; on the second attempt: lost"):
        env.render()
    failures.append(OSError("lost"))
    assert env.render().shape == (first.shape[1], first.shape[2], 3)
    monkeypatch.setattr(env._env, "render", lambda: None)
    with pytest.raises(RenderingError, match="not an RGB picture"):
        env.render()


@pytest.mark.slow
def test_a_run_and_its_evaluation(tmp_path: Path) -> None:
    """The real programs: train with skills up to a budget, resume with a larger one, evaluate."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*command: str) -> str:
        child = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert child.returncode == 0, child.stderr
        return child.stdout

    program, small = str(ROOT / "train.py"), "--image_size 32 --hidden_dim 16 --batch_size 4 --num_seed_steps 20"
    run(program, "--env", f"gym:{TASK}", "--num_skills", "2", *small.split(), "--num_train_steps", "40")
    folder = tmp_path / "runs" / "gym_InvertedPendulum-v5" / "latest"
    run(program, "--resume", str(folder), "--num_train_steps", "50")
    assert (folder / "eval.csv").read_text().splitlines()[-1].split(",")[1] == "200"
    run(str(ROOT / "evaluate.py"), str(folder), "--out", "evaluated")
    assert len((tmp_path / "evaluated" / "skills.csv").read_text().splitlines()) == 3
    assert (tmp_path / "evaluated" / "skills.mp4").stat().st_size > 1000


def test_a_real_end_is_not_a_time_limit(make_env: MakeEnv) -> None:
    """The pole falls over."""
    env = make_env(action_repeat=2)
    env.reset(seed=0)
    for _ in range(200):
        _, _, terminated, truncated, _ = env.step(np.ones(1, np.float32))
        if terminated or truncated:
            break
    assert (terminated, truncated) == (True, False)


def test_pixels_are_rgb_and_upright(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of two colors, one above the other, scaled down from 64 x 64."""
    env = make_env(image_size=32)
    env.reset(seed=0)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32], picture[32:] = (200, 100, 50), (10, 20, 30)
    monkeypatch.setattr(env._env, "render", lambda: picture)
    obs, *_ = env.step(np.zeros(1, np.float32))
    assert obs[-3:, 0, 0].tolist() == [200, 100, 50]
    assert obs[-3:, -1, 0].tolist() == [10, 20, 30]


def test_videos_play_in_real_time(make_env: MakeEnv) -> None:
    """The environment's own frame rate, divided by the action repeat."""
    own = gymnasium.make(TASK, render_mode="rgb_array")
    assert make_env(action_repeat=2).metadata["render_fps"] == own.metadata["render_fps"] / 2 != 15
    own.close()
