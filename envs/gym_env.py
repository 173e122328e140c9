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
        image_size, frame_stack, action_repeat: see `PixelEnv`.
        time_limit: frames (steps of the Gymnasium environment) per episode; None keeps the environment's own limit.

    Raises:
        TaskError: there is no such environment, its actions are not continuous and bounded, or it cannot draw itself.
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
        except Exception as error:  # importing an environment may raise anything
            hint = "; pip install what it needs" if isinstance(error, ImportError) else ""
            raise TaskError(f"gymnasium cannot make {name!r}: {_first_line(error)}{hint}") from error
        try:
            self._check(name)
        except TaskError:
            self._env.close()
            raise
        space, spec = self._env.action_space, self._env.spec
        limit = spec.max_episode_steps if spec is not None else None
        assert isinstance(space, gymnasium.spaces.Box)
        super().__init__(
            space.low.astype(np.float64),
            space.high.astype(np.float64),
            frame_limit=math.inf if limit is None else limit,
            frame_rate=self._env.metadata.get("render_fps", 30),
            image_size=image_size,
            frame_stack=frame_stack,
            action_repeat=action_repeat,
        )

    def _check(self, name: str) -> None:
        """Raise TaskError if the environment cannot be used."""
        if "rgb_array" not in self._env.metadata.get("render_modes", ()):
            raise TaskError(f"{name!r} cannot draw itself (it has no render mode rgb_array)")
        space = self._env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
            raise TaskError(f"{name!r} has the actions {space}; they must be a bounded Box of one dimension")
        if not may_draw():
            return
        try:  # some environments import their renderer only when they draw for the first time
            self._env.reset(seed=0)
            self._picture()
        except Exception as error:
            hint = "; pip install what it needs" if isinstance(error, (ImportError, gymnasium.error.Error)) else ""
            raise TaskError(f"{name!r} cannot draw itself: {_first_line(error)}{hint}") from error

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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
