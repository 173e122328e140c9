"""Fixtures for all tests, and the environment variables that must be set before torch is imported."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as with --deterministic; read once per process

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:  # the other cores run other tests
    os.environ.update(OMP_NUM_THREADS="1", LP_NUM_THREADS="1")

import pytest
import torch

from envs.renderer import RendererInfo, choose_renderer
from tests.support.fake_env import FakePixelEnv
from tests.support.paths import Mount

# pytest ignores SIGINT when started in the background by a shell, and SIGHUP under nohup; so do its child processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(1)  # the tensors of the tests are too small to gain from more threads


@pytest.fixture(scope="session")
def renderer() -> RendererInfo:
    """The renderer of this machine, chosen before a test imports dm_control."""
    return choose_renderer()


@pytest.fixture
def fake_env() -> type[FakePixelEnv]:
    """The class itself: each test chooses the sizes."""
    return FakePixelEnv


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount(options)` makes a small file system and returns its path. Only root can do that."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("no permission to mount a file system")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Restore the settings that --deterministic changes."""
    benchmark, fill = torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
