"""Any gymnasium environment with continuous actions that draws itself, seen as pixels: `--env gym:<id>`.

It looks from outside as `dmc.DMCEnv` does, so that everything else here works with it. An environment of one's own
needs to be registered with gymnasium; `gym:my_module:MyEnv-v0` first imports `my_module`, which registers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import gymnasium
import numpy as np

from dmc import PixelEnv, TaskError, may_draw

PREFIX = "gym:"


class GymPixelEnv(PixelEnv):
    """Stacked pixels of what a gymnasium environment renders; its own observations are left aside.

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
        try:  # what it lacks may show only here
            if may_draw():
                self._env.reset(seed=0)
                self._picture()
        except Exception as error:
            self._env.close()
            hint = "; pip install what it needs" if isinstance(error, (ImportError, gymnasium.error.Error)) else ""
            raise TaskError(f"{name!r} can't draw itself: {_first_line(error)}{hint}") from error
        limit = self._env.spec.max_episode_steps if self._env.spec is not None else None
        super().__init__(
            space.low.astype(np.float64),
            space.high.astype(np.float64),
            frame_limit=math.inf if limit is None else limit,
            frame_rate=self._env.metadata.get("render_fps", 30),
            image_size=image_size,
            frame_stack=frame_stack,
            action_repeat=action_repeat,
        )

    def state(self) -> dict[str, Any]:
        return dict(self._env.unwrapped.np_random.bit_generator.state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._env.unwrapped.np_random.bit_generator.state = dict(state)

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
            raise ValueError(f"render() gave no RGB picture but an array {picture.shape}")
        return picture

    def close(self) -> None:
        self._env.close()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
