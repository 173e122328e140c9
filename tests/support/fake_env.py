"""Environments that look like `PixelEnv` from outside but neither simulate nor draw."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np

IMAGE_SIZE = 24


class FakePixelEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment that writes its own state into its pixels.

    Each channel of a frame is constant: channel 0 is the number of the episode, channel 1 the step within the episode,
    channel 2 a random number drawn from the seeded stream (all modulo 256). The reward is the first component of the
    action plus that random number / 256, so a run depends on the actions and on the environment's own random stream.

    Args:
        episode_length: agent steps until the time limit (`truncated`).
        terminate_at: agent step at which every episode really ends instead (`terminated`), or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20.0}  # noqa: RUF012
    render_mode = "rgb_array"
    cell_grid = None
    angles = ()

    def __init__(
        self,
        *,
        episode_length: int = 10,
        terminate_at: int | None = None,
        image_size: int = IMAGE_SIZE,
        frame_stack: int = 3,
        action_dim: int = 2,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (3 * frame_stack, image_size, image_size), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self.max_episode_steps = episode_length
        self.frame_limit = float(episode_length * 3)  # as in runs with an action repeat of 3
        self.terminate_at = terminate_at
        self.image_size = image_size
        self.frames: deque[np.ndarray] = deque(maxlen=frame_stack)
        self.episode = -1
        self.steps = 0
        self.random = np.random.default_rng()
        self.seeds: list[int | None] = []  # the seeds that reset was called with

    def state(self) -> dict[str, Any]:
        return {"random": self.random.bit_generator.state, "episode": self.episode}

    def load_state(self, state: dict[str, Any]) -> None:
        self.random.bit_generator.state, self.episode = state["random"], state["episode"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seeds.append(seed)
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.episode += 1
        self.steps = 0
        frame = self._frame()
        self.frames.extend([frame] * (self.frames.maxlen or 1))
        return np.concatenate(list(self.frames)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        self.frames.append(self._frame())
        reward = float(action[0]) + float(self.frames[-1][2, 0, 0]) / 256
        terminated = self.steps == self.terminate_at
        truncated = not terminated and self.steps >= self.max_episode_steps
        return np.concatenate(list(self.frames)), reward, terminated, truncated, {}

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        image = np.zeros((height or self.image_size, width or self.image_size, 3), np.uint8)
        image[:] = self.frames[-1][:, 0, 0]
        return image

    def measure(self) -> None:
        """Return None: there is no physics."""

    def close(self) -> None:
        pass

    def _frame(self) -> np.ndarray:
        values = np.array([self.episode % 256, self.steps % 256, self.random.integers(256)], np.uint8)
        return np.broadcast_to(values[:, None, None], (3, self.image_size, self.image_size)).copy()


class UnevenEnv(FakePixelEnv):
    """A fake environment whose episodes depend on their reset seed only and last 3 + seed % 7 steps."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.max_episode_steps = 3 + seed % 7
        self.episode = seed - 1
        return super().reset(seed=seed, options=options)
