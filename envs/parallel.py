"""Several evaluation environments side by side, in this process or in worker processes."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from errors import SimulationError

EvalEnvs = AsyncVectorEnv | SyncVectorEnv  # of HoldAfterEnd
MAX_EVAL_ENVS = 16  # environments in one process; each has its own rendering context
Factory = Callable[[], gymnasium.Env[Any, Any]]


class HoldAfterEnd(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Holds an environment still once its episode is over, until the other environments of its vector have finished.

    After the end, `step` simulates nothing and returns the last observation with reward 0. The end is reported in
    `info["over"]` only, never as `terminated` or `truncated`, because a vector environment would reset. An episode
    also ends, with a warning, if its physics become unstable; the failed step is not counted and is marked by
    `info["unstable"]`.
    """

    recording = False  # whether `picture` draws: a vector environment calls a method on all its environments or on none
    _obs: np.ndarray
    _over: bool

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._over = False
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, unstable = 0.0, False
        if not self._over:
            try:
                self._obs, earned, terminated, truncated, _ = self.env.step(action)
                reward, self._over = float(earned), terminated or truncated
            except SimulationError as error:
                print(f"warning: an evaluation episode ends early: {error}", file=sys.stderr)
                self._over = unstable = True
        return self._obs, reward, False, False, {"over": self._over, "unstable": unstable}

    def picture(self, height: int, width: int) -> np.ndarray | str | None:
        """Return the current scene, uint8 RGB `(height, width, 3)`, or None unless `recording`.

        If drawing fails, return the error message: a video that fails must not end the evaluation.
        """
        try:
            return self.env.render(height, width) if self.recording else None  # type: ignore[call-arg, return-value]
        except Exception as error:
            return str(error)


def make_eval_envs(factory: Factory, episodes: int, workers: int) -> EvalEnvs:
    """Return a vector of environments on which `episodes` episodes can be played in rounds of equal size.

    A round has at most MAX_EVAL_ENVS episodes, or `workers` if that is not 0.

    Args:
        factory: makes one environment; must be picklable if there are workers.
        workers: 0 steps the environments one after the other in this process. Otherwise each environment gets its own
            process, which is spawned: a process forked with a rendering context would hang.
    """
    rounds = math.ceil(episodes / (workers or MAX_EVAL_ENVS))
    count = math.ceil(episodes / rounds)
    if workers:
        return AsyncVectorEnv([partial(_make_in_worker, factory, os.getpid())] * count, context="spawn")
    return SyncVectorEnv([lambda: HoldAfterEnd(factory())] * count)


@contextmanager
def open_eval_envs(factory: Factory, episodes: int, workers: int = 0) -> Iterator[EvalEnvs]:
    """Make environments with `make_eval_envs` and close them at the end, killing workers that do not respond."""
    eval_envs = make_eval_envs(factory, episodes, workers)
    try:
        yield eval_envs
    finally:
        try:
            eval_envs.close()
        except Exception:  # a worker has died, or has not finished its last command
            for process in getattr(eval_envs, "processes", ()):
                process.kill()
            eval_envs.closed = True


def _make_in_worker(factory: Factory, main_process: int) -> HoldAfterEnd:
    """Make an environment; in a worker process, ignore the signals that the main process handles."""
    if os.getpid() != main_process:  # AsyncVectorEnv also makes one environment in the main process
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    return HoldAfterEnd(factory())
