"""Gymnasium environments with continuous actions as pixels: `--env gym:<id>`.

The environment must be registered with Gymnasium and must be able to render RGB. `gym:my_module:MyEnv-v0` imports
`my_module` first, which registers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import gymnasium
import numpy as np

from envs.pixel_env import PixelEnv
from envs.renderer import may_draw
from errors import TaskError


class GymPixelEnv(PixelEnv):
    """A Gymnasium environment as stacked pixels of what it renders; its own observations are not used.

    Args:
        name: Gymnasium's id, without the prefix "gym:".
        time_limit: frames (steps of the Gymnasium environment) per episode; None keeps the environment's own limit.
        pixels: image_size, frame_stack and action_repeat; see `PixelEnv`.

    Raises:
        TaskError: there is no such environment, its actions are not continuous and bounded, or it cannot draw itself.
    """

    def __init__(self, name: str, *, time_limit: int | None = None, **pixels: int) -> None:
        try:
            self._env = gymnasium.make(name, render_mode="rgb_array", max_episode_steps=time_limit)
        except Exception as error:  # importing an environment may raise anything
            raise TaskError(f"gymnasium cannot make {name!r}: {_reason(error)}") from error
        try:
            space = self._checked_actions(name)
        except TaskError:
            self._env.close()
            raise
        limit = self._env.spec.max_episode_steps if self._env.spec is not None else None
        super().__init__(
            space.low.astype(np.float64),
            space.high.astype(np.float64),
            frame_limit=math.inf if limit is None else limit,
            frame_rate=self._env.metadata.get("render_fps", 30),
            **pixels,
        )

    def _checked_actions(self, name: str) -> gymnasium.spaces.Box:
        """Return the action space. Raises TaskError if the environment cannot be used."""
        if "rgb_array" not in self._env.metadata.get("render_modes", ()):
            raise TaskError(f"{name!r} cannot draw itself (it has no render mode rgb_array)")
        space = self._env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
            raise TaskError(f"{name!r} has the actions {space}; they must be a bounded Box of one dimension")
        try:
            if may_draw():  # some environments import their renderer only when they draw for the first time
                self._env.reset(seed=0)
                self._picture()
        except Exception as error:
            raise TaskError(f"{name!r} cannot draw itself: {_reason(error)}") from error
        return space

    def state(self) -> dict[str, Any]:
        return dict(self._env.unwrapped.np_random.bit_generator.state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._env.unwrapped.np_random.bit_generator.state = dict(state)

    def close(self) -> None:
        self._env.close()

    def _restart(self, seed: int | None) -> None:
        self._env.reset(seed=None if seed is None else seed % 2**31)

    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        _, reward, terminated, truncated, _ = self._env.step(control.astype(self._env.action_space.dtype))
        return float(reward), bool(terminated), bool(truncated)

    def _draw(self, height: int, width: int) -> np.ndarray:
        return cv2.resize(self._picture(), (width, height), interpolation=cv2.INTER_AREA)

    def _picture(self) -> np.ndarray:
        picture = np.asarray(self._env.render())
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"render() returned an array of shape {picture.shape}, not an RGB picture")
        return picture


def _reason(error: Exception) -> str:
    """Return the error's first line, and what to do about a missing package."""
    missing = isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled))
    return (str(error).splitlines() or [type(error).__name__])[0] + ("; pip install what it needs" if missing else "")
