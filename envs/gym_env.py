"""Gymnasium environments with continuous actions as pixels: `--env gym:<id>`.

The environment must be registered with Gymnasium and must be able to render RGB. `gym:my_module:MyEnv-v0` imports
`my_module` first, which registers it.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import cv2
import gymnasium
import numpy as np

from envs.pixel_env import PixelEnv
from envs.renderer import may_draw
from errors import EnvError, SimulationError, TaskError, one_line

DEFAULT_FPS = 30.0  # of an environment that does not say how fast its frames follow each other
FPS_RANGE = 0.1, 1000.0  # that videos can have
UNBOUNDED = 1e10  # a larger action bound is none: scaled to it, no action would be sensible


class GymPixelEnv(PixelEnv):
    """A Gymnasium environment as stacked pixels of what it renders; its own observations are not used.

    If this process may draw, one reset, one picture and one step are tried at once, and the answers are checked.

    Args:
        name: Gymnasium's id, without the prefix "gym:".
        time_limit: frames (steps of the Gymnasium environment) per episode; None keeps the environment's own limit.
        pixels: image_size, frame_stack and action_repeat; see `PixelEnv`.

    Raises:
        TaskError: there is no such environment, its actions are not continuous and bounded, it cannot draw itself, or
            it does not answer as Gymnasium's interface demands.
    """

    def __init__(self, name: str, *, time_limit: int | None = None, **pixels: int) -> None:
        self._name = name
        settings: dict[str, Any] = {"render_mode": "rgb_array", "max_episode_steps": time_limit}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*possible render_modes")  # checked below
                # gymnasium's own checker would warn of observations, which are not used
                self._env = gymnasium.make(name, disable_env_checker=True, **settings)
        except (Exception, SystemExit) as error:  # importing an environment may raise anything
            raise TaskError(f"gymnasium cannot make {name!r}: {_reason(error)}") from error
        try:
            low, high = self._action_bounds(name)
            metadata = self._metadata(name)
            if may_draw():  # some environments import their renderer only when they draw for the first time
                self._try_once(name, (low + high) / 2)
            limit = self._env.spec.max_episode_steps if self._env.spec is not None else None
            super().__init__(
                low,
                high,
                frame_limit=math.inf if limit is None else limit,
                frame_rate=_frame_rate(name, metadata.get("render_fps")),
                **pixels,
            )
        except BaseException:
            with suppress(Exception):
                self._env.close()
            raise

    def _action_bounds(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the bounds of the actions, float64. Raises TaskError if the actions cannot be used."""
        space = getattr(self._env, "action_space", None)
        needed = f"{name!r} has the actions {space}; they must be a bounded Box of floats with one dimension"
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
            raise TaskError(needed)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if not low.size:
            raise TaskError(f"{needed}, and there is none")
        if not (np.all(np.abs(low) < UNBOUNDED) and np.all(np.abs(high) < UNBOUNDED)):  # also false for NaN
            raise TaskError(f"{needed}; register it with finite bounds, for example by gymnasium's TransformAction")
        return low, high

    def _metadata(self, name: str) -> Mapping[str, Any]:
        """Return the environment's metadata. Raises TaskError if it has no render mode rgb_array."""
        metadata = self._env.metadata if isinstance(self._env.metadata, Mapping) else {}
        if "rgb_array" not in (metadata.get("render_modes") or ()):
            raise TaskError(f"{name!r} cannot draw itself (it has no render mode rgb_array)")
        return metadata

    def _try_once(self, name: str, control: np.ndarray) -> None:
        """Reset, draw and step the environment. Raises TaskError if it cannot, or answers with something else."""
        attempt = "be reset"
        try:
            answer = self._env.reset(seed=0)
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise TypeError("reset() must return an observation and a dict of information")
            attempt = "be resumed (its np_random must be numpy's default generator)"
            json.dumps(self.state())  # fails if a checkpoint could not hold it
            attempt = "draw itself"
            self._picture()
            attempt = "be stepped"
            self._step(control)
        except (Exception, SystemExit) as error:
            raise TaskError(f"{name!r} cannot {attempt}: {_reason(error)}") from error

    def state(self) -> dict[str, Any]:
        return dict(self._env.unwrapped.np_random.bit_generator.state)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._env.unwrapped.np_random.bit_generator.state = dict(state)

    def close(self) -> None:
        self._env.close()

    def _restart(self, seed: int | None) -> None:
        with self._exceptions_named("reset()"):
            self._env.reset(seed=None if seed is None else seed % 2**31)

    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        with self._exceptions_named("step()"):
            return self._step(control)

    @contextmanager
    def _exceptions_named(self, method: str) -> Iterator[None]:
        """Raise EnvError for whatever the environment raises."""
        try:
            yield
        except SimulationError:
            raise
        except (Exception, SystemExit) as error:
            raise EnvError(f"{self._name!r}: {method} raised {type(error).__name__}: {_reason(error)}") from error

    def _step(self, control: np.ndarray) -> tuple[float, bool, bool]:
        _, reward, terminated, truncated, _ = self._env.step(control.astype(self._env.action_space.dtype))
        rewards = np.asarray(reward)  # some environments return an array of one number
        if rewards.size != 1:
            raise ValueError(f"step() returned rewards of shape {rewards.shape}; it must return one number")
        value = float(rewards.item())
        if not math.isfinite(value):
            raise SimulationError(f"step() returned the reward {value}")
        return value, bool(terminated), bool(truncated)

    def _draw(self, height: int, width: int) -> np.ndarray:
        return cv2.resize(self._picture(), (width, height), interpolation=cv2.INTER_AREA)

    def _picture(self) -> np.ndarray:
        """Return what the environment renders, uint8 RGB (H, W, 3). Raises ValueError if it is something else.

        Gymnasium makes a MuJoCo viewer's OpenGL context current only when it makes the viewer. Once another viewer was
        made or closed, the picture would be black or of another model.
        """
        viewer = getattr(getattr(self._env.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()
        picture = np.asarray(self._env.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"render() returned an array of shape {picture.shape}, not an RGB picture (H, W, 3)")
        if picture.dtype != np.uint8:
            remedy = "; multiply it by 255 and convert it" if picture.dtype.kind == "f" and picture.max() <= 1 else ""
            raise ValueError(f"render() returned {picture.dtype} values; they must be uint8, from 0 to 255{remedy}")
        return picture


def _frame_rate(name: str, rate: Any) -> float:
    """Return the environment's frames per second; if it is no number in FPS_RANGE, DEFAULT_FPS with a warning."""
    with suppress(TypeError, ValueError, OverflowError):
        if FPS_RANGE[0] <= float(rate) <= FPS_RANGE[1]:
            return float(rate)
    if rate is not None and multiprocessing.parent_process() is None:
        _warn_once(f"{name!r} has the render_fps {rate!r}; its videos play at {DEFAULT_FPS:g}")
    return DEFAULT_FPS


@functools.cache  # as several environments are made
def _warn_once(message: str) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    """Return the error's first line, and what to do about a missing package or an old interface."""
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, (ImportError, gymnasium.error.DependencyNotInstalled)):
        return reason if "pip install" in reason else f"{reason}; pip install what it needs"
    if "max_episode_steps" in reason:
        return f"{reason}; give --time_limit"
    if "to unpack" in reason:
        return f"{reason}; step() must return observation, reward, terminated, truncated and information"
    return reason
