"""Runs on fake environments: how to start, interrupt and compare them."""

from __future__ import annotations

import csv
import dataclasses
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import envs.make
import evaluate
import train
from envs.renderer import RendererInfo
from running import loop
from running.run import Run
from running.start import open_run
from running.state import state_of
from tests.support.fake_env import IMAGE_SIZE, FakePixelEnv

RENDERER = RendererInfo("fake", "a fake renderer")
CLOCK = ("duration", "fps")  # columns that depend on the machine's speed

# A small run; each test adds what it needs.
SMALL_RUN = (
    f"--device cpu --image_size {IMAGE_SIZE} --hidden_dim 16 --encoder_feature_dim 8 --batch_size 4 "
    "--num_seed_steps 12 --num_train_steps 40 --replay_buffer_capacity 200 --eval_frequency 25 --action_repeat 3 "
    "--save_video false --log_save_tb false"
)

Row = dict[str, str]


# -- environments ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Played:
    """An episode as the environment saw it."""

    seed: int | None
    observations: list[np.ndarray]  # the first is the reset's
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)


class RecordingEnv(FakePixelEnv):
    """The fake environment, which records its episodes in `played`.

    Args:
        ragged: episodes end by themselves after 3 to 8 steps, drawn from the seeded stream.
        blind: actions have no effect.
    """

    render_seconds = 0.0

    def __init__(self, *, ragged: bool = False, blind: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.ragged, self.blind = ragged, blind
        self.played: list[Played] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        if self.ragged:
            self.terminate_at = 3 + int(obs[-1, 0, 0]) % 6
        self.played.append(Played(seed, [obs]))
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        result = super().step(np.zeros_like(action) if self.blind else action)
        obs, reward = result[:2]
        self.played[-1].observations.append(obs)
        self.played[-1].actions.append(action)
        self.played[-1].rewards.append(reward)
        return result


class SeededEnv(RecordingEnv):
    """A recording environment in which everything after a seeded reset depends on the seed, as in a real one."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode = self.episode if seed is None else -1
        return super().reset(seed=seed)


def use_fake_environments(patch: pytest.MonkeyPatch, make: Callable[[], gymnasium.Env[Any, Any]]) -> None:
    """Let every program in this process use the environments that `make` returns, without a renderer."""
    patch.setattr(envs.make, "DMCEnv", lambda name, **settings: make())
    for program in (train, evaluate):
        patch.setattr(program, "choose_renderer", lambda: RENDERER)


def start_seeds_since(fake_envs: Sequence[RecordingEnv], known: int) -> list[int | None]:
    """Return the reset seeds of all episodes in environments made since there were `known` of them."""
    return [episode.seed for env in fake_envs[known:] for episode in env.played]


# -- runs --------------------------------------------------------------------------------------------------------------


def start_run(line: str) -> Run:
    """Return the run that the flags of train.py name, not yet played."""
    return open_run(train.parse_args(shlex.split(line)), RENDERER)


def played(run: Run) -> Run:
    """Train a run up to its budget, or to a stop, and return it."""
    loop.train(run)
    return run


def stop_at(run: Run, step: int) -> None:
    """Let a signal arrive while agent step `step` is played."""
    play = run.env.step

    def stepping(action: np.ndarray) -> Any:
        if run.step + 1 == step:
            run.stop.number = signal.SIGTERM
        return play(action)

    run.env.step = stepping  # type: ignore[method-assign]


def state(run: Run) -> dict[str, Any]:
    """Return the state that a checkpoint holds, without measured times and lengths of logs, which depend on them."""
    found = state_of(run)
    for name in ("stopwatch", "render_seconds", "flags", "logs"):
        del found[name]
    if found["underway"] is not None:
        del found["underway"]["seconds"]
    return found


def assert_same(first: Any, second: Any, where: str = "state") -> None:
    """Assert that nested containers and tensors are bit-identical."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    else:
        assert first == second, where


# -- files -------------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_clock(rows: list[Row]) -> list[Row]:
    """Return the rows without the columns that depend on the machine's speed."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]
