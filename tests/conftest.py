"""Shared by all tests: the repository root on the path, small sizes, and a fake pixel environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py has it, before torch is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as --deterministic has it; read once in a process

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:  # the other cores have tests of their own
    os.environ.update(OMP_NUM_THREADS="1", LP_NUM_THREADS="1")

import gymnasium
import numpy as np
import pytest
import torch

# A shell's & has the first ignored, nohup the second, and so would the programs that are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

IMAGE_SIZE = 24
Mount = Callable[[str], Path]


class FakePixelEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """As DMCEnv looks from outside, but instant: it writes what it is into its pixels.

    Every frame is constant per channel: channel 0 holds the episode's number, channel 1 the step within the episode,
    channel 2 a random number drawn from the seeded stream (all modulo 256). The reward is the first action component
    plus that random number / 256, so that a run depends on actions and on the environment's own randomness.

    Args:
        episode_length: agent steps until the time limit (`truncated`).
        terminate_at: agent step at which every episode really ends instead (`terminated`), or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20.0}  # noqa: RUF012
    render_mode = "rgb_array"

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
        self.terminate_at = terminate_at
        self.image_size = image_size
        self.frames: deque[np.ndarray] = deque(maxlen=frame_stack)
        self.episode = -1
        self.steps = 0
        self.random = np.random.default_rng()
        self.seeds: list[int | None] = []  # what reset was called with

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
        """It has no physics."""

    def close(self) -> None:
        pass

    def _frame(self) -> np.ndarray:
        values = np.array([self.episode % 256, self.steps % 256, self.random.integers(256)], np.uint8)
        return np.broadcast_to(values[:, None, None], (3, self.image_size, self.image_size)).copy()


@pytest.fixture
def fake_env() -> type[FakePixelEnv]:
    """The class itself: tests choose their sizes."""
    return FakePixelEnv


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount(options)`: a small file system of its own. Only root can make one."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("no right to mount a file system")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What --deterministic sets is as it was again after the test."""
    benchmark, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
