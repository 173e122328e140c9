"""Any gymnasium environment with continuous actions that draws itself, seen as pixels: `--env gym:<id>`.

It looks from outside as `dmc.DMCEnv` does, so that everything else here works with it. An environment of one's own
needs to be registered with gymnasium; `gym:my_module:MyEnv-v0` first imports `my_module`, which registers it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import cv2
import gymnasium
import numpy as np

from dmc import PixelEnv, RenderingError, TaskError, may_draw

PREFIX = "gym:"


class GymPixelEnv(PixelEnv):
    """Stacked pixels of what a gymnasium environment renders; its own observations are left aside.

    Observations are uint8 `(3 * frame_stack, image_size, image_size)`, RGB, oldest frame first. Actions are float32 in
    [-1, 1], scaled to the environment's bounds, and held for `action_repeat` steps, whose rewards are summed.

    Args:
        name: gymnasium's id.
        time_limit: frames (the environment's steps) per episode; None keeps its own.

    Raises:
        TaskError: there is no such environment, its actions are not continuous and bounded, or it can't draw itself.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int = 84,
        frame_stack: int = 3,
        action_repeat: int = 1,
        time_limit: int | None = None,
    ) -> None:
        try:
            self._env = gymnasium.make(name, render_mode="rgb_array", max_episode_steps=time_limit)
        except Exception as error:  # whatever the import of an environment may raise
            hint = "; pip install what it needs" if isinstance(error, ImportError) else ""
            raise TaskError(f"gymnasium can't make {name!r}: {_first_line(error)}{hint}") from error
        if "rgb_array" not in self._env.metadata.get("render_modes", ()):
            self._env.close()
            raise TaskError(f"{name!r} can't draw itself (it has no render mode rgb_array)")
        space = self._env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
            self._env.close()
            raise TaskError(f"{name!r} has the actions {space}; they must be a bounded Box of one dimension")
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        try:  # what it lacks may show only here
            if may_draw():
                self._env.reset(seed=0)
                self._draw()
        except Exception as error:
            self._env.close()
            hint = "; pip install what it needs" if isinstance(error, (ImportError, gymnasium.error.Error)) else ""
            raise TaskError(f"{name!r} can't draw itself: {_first_line(error)}{hint}") from error
        self._image_size, self._action_repeat = image_size, action_repeat
        self._frames = deque(maxlen=frame_stack)
        limit = self._env.spec.max_episode_steps if self._env.spec is not None else None
        self.max_episode_steps = None if limit is None else math.ceil(limit / action_repeat)
        self.metadata = {**self.metadata, "render_fps": self._env.metadata.get("render_fps", 30) / action_repeat}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        shape = (3 * frame_stack, image_size, image_size)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

    def state(self) -> dict[str, Any]:
        """What the coming episodes depend on, as plain data: the state of the environment's random stream."""
        return dict(self._env.unwrapped.np_random.bit_generator.state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the `state` of an equal environment; `reset` comes next."""
        self._env.unwrapped.np_random.bit_generator.state = dict(state)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode. A seed restarts the environment's random stream; without one it goes on."""
        super().reset(seed=seed)
        self._env.reset(seed=None if seed is None else seed % 2**31)
        self._frames.extend([self._frame()] * (self._frames.maxlen or 1))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold `action` for `action_repeat` steps, or until the episode ends."""
        unit = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0) / 2.0
        control = (self._low + unit * (self._high - self._low)).astype(self._env.action_space.dtype)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._action_repeat):
            _, reward, terminated, truncated, _ = self._env.step(control)
            total += float(reward)
            if terminated or truncated:
                break
        self._frames.append(self._frame())
        return self._observation(), total, bool(terminated), bool(truncated and not terminated), {}

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The scene as it is now, scaled to uint8 RGB `(height, width, 3)`, or `image_size` square.

        A failure is tried again. Raises RenderingError where that fails too.
        """
        started = time.perf_counter()
        try:
            picture = self._draw()
        except Exception as first:  # whatever somebody's environment may raise
            try:
                picture = self._draw()
            except Exception as second:
                raise RenderingError(f"drawing a frame failed twice: {first}; then {second}") from second
        size = (width or self._image_size, height or self._image_size)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        self.render_seconds += time.perf_counter() - started
        return picture

    def _draw(self) -> np.ndarray:
        picture = np.asarray(self._env.render())
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"render() gave no RGB picture but an array {picture.shape}")
        return picture

    def close(self) -> None:
        self._env.close()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
