"""What `PixelEnv` does for every environment: scaling, action repeat, frame stack, ends and repeated drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from envs.pixel_env import PixelEnv
from errors import RenderingError


class CountingEnv(PixelEnv):
    """A PixelEnv whose pictures show the number of the frame and whose rewards are 1, 2, 3, ...

    Args:
        ends_at: frame of the real end, or None.
        limit: frame of the time limit.
    """

    def __init__(self, *, ends_at: int | None = None, limit: float = 10, **settings: Any) -> None:
        defaults = {"image_size": 4, "frame_stack": 3, "action_repeat": 1}
        bounds = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
        super().__init__(*bounds, frame_limit=limit, frame_rate=100.0, **{**defaults, **settings})
        self.ends_at, self.limit = ends_at, limit
        self.count = 0
        self.seeds: list[int | None] = []
        self.controls: list[list[float]] = []
        self.failures: list[Exception] = []  # of the next attempts to draw
        self.contexts_freed = 0

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass

    def _restart(self, seed: int | None) -> None:
        self.seeds.append(seed)
        self.count = 0

    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        self.count += 1
        self.controls.append(control.tolist())
        return float(self.count), self.count == self.ends_at, self.count >= self.limit

    def _draw(self, height: int, width: int) -> np.ndarray:
        if self.failures:
            raise self.failures.pop(0)
        return np.full((height, width, 3), [self.count, 100, 200], np.uint8)

    def _free_contexts(self) -> None:
        self.contexts_freed += 1


ACTION = np.zeros(2, np.float32)


def frame_numbers(obs: np.ndarray) -> list[int]:
    """Return the number shown by each frame of a stack, oldest first."""
    return obs[::3, 0, 0].tolist()


def test_spaces() -> None:
    env = CountingEnv(image_size=5, frame_stack=2)
    obs, info = env.reset(seed=3)
    assert obs.shape == (6, 5, 5)
    assert env.observation_space.contains(obs)
    assert env.action_space.low.tolist() == [-1.0, -1.0]
    assert env.action_space.high.tolist() == [1.0, 1.0]
    assert env.action_space.dtype == np.float32
    assert info == {}


@pytest.mark.parametrize(
    ("stack", "stacks"), [(1, [[0], [1], [2], [3]]), (3, [[0] * 3, [0, 0, 1], [0, 1, 2], [1, 2, 3]])]
)
def test_stack_is_oldest_first_and_a_reset_repeats_its_first_frame(stack: int, stacks: list[list[int]]) -> None:
    env = CountingEnv(frame_stack=stack)
    for _ in range(2):
        observations = [env.reset()[0], *(env.step(ACTION)[0] for _ in range(3))]
        assert [frame_numbers(obs) for obs in observations] == stacks


def test_frames_are_rgb_with_channels_first() -> None:
    obs, _ = CountingEnv(frame_stack=1).reset()
    assert obs[:, 0, 0].tolist() == [0, 100, 200]


@pytest.mark.parametrize(
    ("action", "control"),
    [([-1, -1], [-2, 0]), ([0, 0], [0, 5]), ([1, 1], [2, 10]), ([0.5, -0.5], [1, 2.5]), ([3, -3], [2, 0])],
)
def test_actions_are_clipped_and_scaled_to_the_bounds(action: list[float], control: list[float]) -> None:
    """The bounds are [-2, 2] and [0, 10]."""
    env = CountingEnv()
    env.reset()
    env.step(np.array(action, np.float32))
    assert env.controls == [control]


def test_rewards_are_summed_over_the_repeat() -> None:
    """Only the last frame of a repeat enters the stack."""
    env = CountingEnv(action_repeat=3)
    env.reset()
    assert [env.step(ACTION)[1] for _ in range(2)] == [1 + 2 + 3, 4 + 5 + 6]
    assert frame_numbers(env.step(ACTION)[0]) == [3, 6, 9]


def test_the_time_limit_truncates_and_stops_the_repeat() -> None:
    env = CountingEnv(action_repeat=4, limit=10)
    env.reset()
    steps = [env.step(ACTION)[1:4] for _ in range(3)]
    assert steps == [(1 + 2 + 3 + 4, False, False), (5 + 6 + 7 + 8, False, False), (9 + 10, False, True)]


@pytest.mark.parametrize("limit", [10, 6])
def test_a_real_end_terminates_also_at_the_time_limit(limit: int) -> None:
    env = CountingEnv(action_repeat=4, ends_at=6, limit=limit)
    env.reset()
    assert [env.step(ACTION)[1:4] for _ in range(2)] == [(1 + 2 + 3 + 4, False, False), (5 + 6, True, False)]


@pytest.mark.parametrize(("limit", "repeat", "steps"), [(10, 1, 10), (10, 4, 3), (12, 4, 3), (float("inf"), 4, None)])
def test_max_episode_steps_counts_agent_steps(limit: float, repeat: int, steps: int | None) -> None:
    assert CountingEnv(limit=limit, action_repeat=repeat).max_episode_steps == steps


def test_render_fps_is_agent_steps_per_second() -> None:
    """The frame rate is 100. Each instance has its own value."""
    environments = [CountingEnv(action_repeat=repeat) for repeat in (1, 4)]
    assert [env.metadata["render_fps"] for env in environments] == [100.0, 25.0]


def test_seeds_are_passed_on() -> None:
    env = CountingEnv()
    for seed in (3, None):
        env.reset(seed=seed)
    assert env.seeds == [3, None]


def test_render_takes_other_sizes_and_adds_up_its_time() -> None:
    env = CountingEnv()
    env.reset()
    before = env.render_seconds
    assert env.render().shape == (4, 4, 3)
    assert env.render(6, 8).shape == (6, 8, 3)
    assert env.render_seconds > before > 0


def test_drawing_is_tried_again_with_new_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    env = CountingEnv()
    env.reset()
    env.failures = [OSError("lost")]
    assert env.render().shape == (4, 4, 3)
    assert env.contexts_freed == 1
    assert capsys.readouterr().err == "warning: drawing a frame failed (lost); the second attempt succeeded\n"


def test_drawing_that_fails_twice_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    env = CountingEnv()
    env.reset()
    env.failures = [OSError("lost"), OSError("still lost")]
    with pytest.raises(RenderingError, match="failed twice: lost; on the second attempt: still lost"):
        env.render()
    assert capsys.readouterr().err == ""
    assert env.render().shape == (4, 4, 3), "a later attempt works"


def test_measure_is_optional() -> None:
    assert CountingEnv().measure() is None
