"""The base class of all environments: stacked pixels, repeated actions and a random stream that can be saved."""

from __future__ import annotations

import abc
import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from envs.cells import CellGrid
from errors import RenderingError, TaskError


class Measurement(NamedTuple):
    """What an environment knows about its scene."""

    state: np.ndarray  # of the physics, float64 (n,)
    center: np.ndarray  # center of mass of all bodies (x, y, z), meters
    position: np.ndarray  # coordinates of `cell_grid`, float64 (C,); empty without a grid


class PixelEnv(gymnasium.Env[np.ndarray, np.ndarray], abc.ABC):
    """An environment with pixel observations.

    Observations are uint8 `(3 * frame_stack, image_size, image_size)`, RGB, oldest frame first; a reset repeats its
    first frame. Actions are float32 `(action_dim,)` in [-1, 1]. They are scaled to the task's bounds and held for
    `action_repeat` frames, whose rewards are summed; the repeat stops at the end of the episode. `terminated` marks a
    real end. `truncated` marks the time limit, through which the value is bootstrapped.

    Args:
        low, high: the task's own action bounds, float64 `(action_dim,)`.
        frame_limit: frames per episode; `math.inf` for no limit.
        frame_rate: frames per second of simulated time.
    """

    render_mode = "rgb_array"
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.spaces.Box
    cell_grid: CellGrid | None = None  # in which coverage is counted
    angles: Sequence[int] = ()  # entries of the state of the physics that are angles without limits

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        *,
        frame_limit: float,
        frame_rate: float,
        image_size: int = 84,
        frame_stack: int = 3,
        action_repeat: int = 1,
    ) -> None:
        if action_repeat > frame_limit:
            frames = f"an episode has {frame_limit:.0f} frames, an action takes {action_repeat}"
            remedy = "a smaller --action_repeat or, if the task allows it, a larger --time_limit"
            raise TaskError(f"{frames}; give {remedy}")
        self._low, self._high = low, high
        self._image_size, self._action_repeat = image_size, action_repeat
        self.frame_limit = frame_limit
        self._frames: deque[np.ndarray] = deque(maxlen=frame_stack)
        self.render_seconds = 0.0  # spent drawing since the environment was made
        # agent steps, or None for no limit
        self.max_episode_steps = None if math.isinf(frame_limit) else math.ceil(frame_limit / action_repeat)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": frame_rate / action_repeat}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, low.shape, np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (3 * frame_stack, image_size, image_size), np.uint8)

    # -- for subclasses --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state of the random stream, which future episodes depend on, as plain data.

        An unfinished episode is not part of it: replaying its actions from its start reproduces it.
        """

    @abc.abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load a `state` saved by an environment with the same settings. Call `reset` next."""

    @abc.abstractmethod
    def _restart(self, seed: int | None) -> None:
        """Begin an episode. A seed restarts the random stream."""

    @abc.abstractmethod
    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        """Simulate one frame under `control`, float64 `(action_dim,)` within the task's bounds.

        Return the reward, whether the episode really ended, and whether the time limit was reached.
        """

    @abc.abstractmethod
    def _draw(self, height: int, width: int) -> np.ndarray:
        """Return a new picture of the scene, uint8 RGB `(height, width, 3)`. Any exception may be raised."""

    def _free_contexts(self) -> None:
        """Free the rendering contexts, so that the next picture is drawn with new ones."""

    def measure(self) -> Measurement | None:
        """Return a measurement of the scene, or None if the environment does not provide one."""
        return None

    # -- for users -------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode. A seed restarts the random stream; without a seed the stream continues."""
        super().reset(seed=seed)
        self._restart(seed)
        self._frames.extend([self._frame()] * (self._frames.maxlen or 1))
        return np.concatenate(list(self._frames)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold `action` for the action repeat or until the episode ends.

        Raises SimulationError, RenderingError, EnvError.
        """
        unit = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0) / 2.0
        control = self._low + unit * (self._high - self._low)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._action_repeat):
            reward, terminated, truncated = self._advance(control)
            total += reward
            if terminated or truncated:
                break
        self._frames.append(self._frame())
        return np.concatenate(list(self._frames)), total, terminated, truncated and not terminated, {}

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """Return the current scene, uint8 RGB `(height, width, 3)`; `image_size` is the default for both.

        If drawing fails, it is tried once more with new rendering contexts. Raises RenderingError if that fails too.
        """
        size = (height or self._image_size, width or self._image_size)
        started = time.perf_counter()
        try:
            picture = self._draw(*size)
        except (Exception, SystemExit) as first:  # OpenGL bindings raise many types, and environments of others
            try:
                self._free_contexts()
                picture = self._draw(*size)
            except (Exception, SystemExit) as second:
                message = f"drawing a frame failed twice: {first}; on the second attempt: {second}"
                raise RenderingError(message) from second
            print(f"warning: drawing a frame failed ({first}); the second attempt succeeded", file=sys.stderr)
        self.render_seconds += time.perf_counter() - started
        return picture

    def _frame(self) -> np.ndarray:
        return np.ascontiguousarray(self.render().transpose(2, 0, 1))
