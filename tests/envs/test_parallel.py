"""Evaluation environments side by side, without an agent."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from envs.parallel import MAX_EVAL_ENVS, EvalEnvs, HoldAfterEnd, make_eval_envs, open_eval_envs
from errors import RenderingError, SimulationError
from tests.support.fake_env import FakePixelEnv, UnevenEnv

ACTION = np.zeros(2, np.float32)


class BrokenEnv(FakePixelEnv):
    """Its physics become unstable in the third step, and it cannot be drawn."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.steps == 2:
            raise SimulationError("the physics became unstable (a test)")
        return super().step(action)

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        raise RenderingError("no picture (a test)")


class SignalEnv(FakePixelEnv):
    """Sends its own process, in each step, the signals that stop training."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return super().step(action)


class MortalEnv(FakePixelEnv):
    """Ends its process in the first step."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        os._exit(9)


# -- HoldAfterEnd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [{"episode_length": 3}, {"terminate_at": 3}], ids=["time limit", "real end"])
def test_nothing_moves_after_the_end(end: dict[str, int]) -> None:
    """The end is reported by `info["over"]`, from the third step on, and never to the vector environment."""
    inner = FakePixelEnv(**end)
    env = HoldAfterEnd(inner)
    env.reset(seed=0)
    steps = [env.step(ACTION) for _ in range(5)]
    assert [info["over"] for *_, info in steps] == [False, False, True, True, True]
    assert not any(terminated or truncated or info["unstable"] for _, _, terminated, truncated, info in steps)
    assert [reward > 0 for _, reward, *_ in steps] == [True, True, True, False, False]
    assert [reward for _, reward, *_ in steps[3:]] == [0.0, 0.0]
    for obs, *_ in steps[3:]:
        np.testing.assert_array_equal(obs, steps[2][0])
    assert inner.steps == 3


def test_a_reset_starts_the_next_episode() -> None:
    env = HoldAfterEnd(FakePixelEnv(episode_length=1))
    for seed in (0, 1):
        env.reset(seed=seed)
        assert env.step(ACTION)[4]["over"]
    assert env.unwrapped.seeds == [0, 1]  # type: ignore[attr-defined]


def test_an_unstable_step_ends_the_episode_and_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    env = HoldAfterEnd(BrokenEnv())
    env.reset(seed=0)
    steps = [env.step(ACTION) for _ in range(4)]
    assert [info["over"] for *_, info in steps] == [False, False, True, True]
    assert [info["unstable"] for *_, info in steps] == [False, False, True, False]
    assert [reward for _, reward, *_ in steps[2:]] == [0.0, 0.0]
    for obs, *_ in steps[2:]:
        np.testing.assert_array_equal(obs, steps[1][0])
    assert capsys.readouterr().err == (
        "warning: an evaluation episode ends early: the physics became unstable (a test)\n"
    )


def test_only_a_recorded_environment_is_drawn() -> None:
    env, broken = HoldAfterEnd(FakePixelEnv()), HoldAfterEnd(BrokenEnv())
    for one in (env, broken):
        one.reset(seed=0)
        assert one.picture(30, 40) is None
        one.recording = True
    picture = env.picture(30, 40)
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (30, 40, 3)
    assert broken.picture(30, 40) == "no picture (a test)"


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("episodes", "count"),
    [
        pytest.param(1, 1, id="one"),
        pytest.param(10, 10, id="one round"),
        pytest.param(MAX_EVAL_ENVS + 1, 9, id="17 episodes: rounds of 9 and 8"),
        pytest.param(100, 15, id="100 episodes: six rounds of 15 and one of 10"),
    ],
)
def test_episodes_are_spread_evenly_over_rounds(episodes: int, count: int) -> None:
    eval_envs = make_eval_envs(FakePixelEnv, episodes, workers=0)
    assert isinstance(eval_envs, SyncVectorEnv)
    assert eval_envs.num_envs == count
    eval_envs.close()


# -- worker processes --------------------------------------------------------------------------------------------------


def rollout(eval_envs: EvalEnvs, steps: int) -> list[np.ndarray]:
    """Return observations, rewards and ends of a few steps with fixed actions from fixed seeds."""
    rng = np.random.default_rng(0)
    seeds = list(range(eval_envs.num_envs))
    results = [eval_envs.reset(seed=seeds)[0].copy()]  # type: ignore[arg-type]  # one seed each
    for _ in range(steps):
        actions = rng.uniform(-1, 1, eval_envs.action_space.shape or ()).astype(np.float32)
        obs, reward, _, _, info = eval_envs.step(actions)
        results += [obs.copy(), reward.copy(), info["over"].copy()]
    return results


def test_worker_processes_give_the_same_results_as_this_process() -> None:
    """Episodes of 3 and 4 steps. Three episodes for at most two workers are two rounds, of 2 and 1."""
    with open_eval_envs(UnevenEnv, 2) as here, open_eval_envs(UnevenEnv, 3, workers=2) as workers:
        assert isinstance(workers, AsyncVectorEnv)
        assert here.num_envs == workers.num_envs == 2
        for expected, found in zip(rollout(here, 5), rollout(workers, 5), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert not any(process.is_alive() for process in workers.processes)


def test_workers_ignore_the_signals_that_stop_training() -> None:
    with open_eval_envs(SignalEnv, 1, workers=1) as eval_envs:
        results = rollout(eval_envs, 2)
    assert len(results) == 1 + 2 * 3


def test_a_dead_worker_does_not_keep_the_environments_open() -> None:
    with open_eval_envs(MortalEnv, 2, workers=2) as eval_envs:
        eval_envs.reset(seed=0)
        with pytest.raises((EOFError, ConnectionError)):
            eval_envs.step(np.zeros((2, 2), np.float32))
    assert eval_envs.closed
    assert isinstance(eval_envs, AsyncVectorEnv)
    for process in eval_envs.processes:
        process.join()
        assert not process.is_alive()
