"""Fixtures for all tests, and the environment variables that must be set before torch is imported."""

from __future__ import annotations

import functools
import gc
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as with --deterministic; read once per process

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:  # the other cores run other tests
    os.environ.update(OMP_NUM_THREADS="1", LP_NUM_THREADS="0")  # 0: llvmpipe draws without threads of its own

import crc32c
import numpy as np
import pytest
import torch
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

import evaluate
import running.folder
import train
from diayn import DIAYNAgent
from envs.renderer import RendererInfo, choose_renderer
from running.names import CHECKPOINT_FOLDER
from tests.support.fake_env import FakePixelEnv
from tests.support.fuzz import FEW, MANY
from tests.support.labs import FINISHED_FILES, FINISHED_STEPS, TINY, Fakes, StrictEnv
from tests.support.paths import Mount
from tests.support.program import call
from tests.support.runs import SMALL_RUN, RecordingEnv, SeededEnv, use_fake_environments

EVERY_PROCESS = Path(__file__).parent / "support" / "every_process"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(EVERY_PROCESS), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(EVERY_PROCESS / "sitecustomize.py"))  # and in this process, before it imports dm_control

# pytest ignores SIGINT when started in the background by a shell, and SIGHUP under nohup; so do its child processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
pywrap_tensorflow.crc32c = crc32c.crc32c  # TensorBoard's is in Python, and a third of the time of reading its files
torch.set_num_threads(1)  # the tensors of the tests are too small to gain from more threads


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Return what `-n auto` starts: a process for each core, and one as many tests wait for programs."""
    return (yield) + 1


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out a test with few random examples where it also runs with many. The files that take longest come first.

    A file is played by one process (`--dist loadfile`): a long one that begins last would leave the others idle.
    """
    names = {item.nodeid for item in items}
    covered = [item for item in items if FEW in item.nodeid and item.nodeid.replace(FEW, MANY) in names]
    config.hook.pytest_deselected(items=covered)
    items[:] = [item for item in items if item not in covered]
    items.sort(key=lambda item: not {"random_input", "test_faults.py", "test_sweep.py"}.intersection(item.path.parts))


def pytest_collection_finish() -> None:
    """Leave modules and tests out of garbage collection, which a run does after each evaluation: that saves 0.2 s."""
    gc.freeze()


@pytest.fixture(scope="session")
def renderer() -> RendererInfo:
    """The renderer of this machine, chosen before a test imports dm_control."""
    assert "dm_control._render" not in sys.modules, "a test module imports it, which binds the renderer too early"
    return choose_renderer()


@pytest.fixture(scope="session", autouse=True)
def versions_read_once() -> Iterator[None]:
    """Look up the versions for config.json only once: that takes a tenth of a second for each run that is opened."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("version", "git_commit"):
            patch.setattr(running.folder, name, functools.cache(getattr(running.folder, name)))
        yield


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


# -- runs on the fake environment --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake_envs() -> Iterator[list[SeededEnv]]:
    """Fake environments in place of dm_control's; the list gets each one as it is made."""
    made: list[SeededEnv] = []

    def make() -> SeededEnv:
        made.append(SeededEnv(ragged=True))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        use_fake_environments(patch, make)
        yield made


@pytest.fixture(scope="module")
def pretrained(fake_envs: list[SeededEnv], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with four skills."""
    work_dir = tmp_path_factory.mktemp("pretrained")
    line = f"{SMALL_RUN} --num_skills 4 --work_dir {work_dir} --run_name skills"
    assert train.main(shlex.split(line)) == 0
    return work_dir / "cartpole_swingup" / "skills"


@pytest.fixture
def run_evaluate(pretrained: Path, tmp_path: Path) -> Callable[[str], Path]:
    """`run_evaluate(flags)` runs evaluate.py on that run and returns the folder with its outputs."""

    def call(line: str = "") -> Path:
        arguments = [str(pretrained), "--device", "cpu", "--out", str(tmp_path / "out"), *shlex.split(line)]
        assert evaluate.main(arguments) == 0
        return tmp_path / "out"

    return call


@pytest.fixture
def assessed_skills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The skills that an evaluation plays; the list grows with each step."""
    skills: list[int] = []
    assess = DIAYNAgent.assess

    def remember(agent: DIAYNAgent, obs: np.ndarray, skill: np.ndarray, *noise: np.ndarray) -> Any:
        skills.extend(skill.tolist())
        return assess(agent, obs, skill, *noise)

    monkeypatch.setattr(DIAYNAgent, "assess", remember)
    return skills


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """`fakes(**settings)` replaces dm_control by fake environments, and returns the list in which they will appear."""

    def install(**settings: Any) -> list[RecordingEnv]:
        made: list[RecordingEnv] = []

        def make() -> RecordingEnv:
            made.append(RecordingEnv(**settings))
            return made[-1]

        use_fake_environments(monkeypatch, make)
        return made

    return install


@pytest.fixture(scope="module")
def fake_program() -> Iterator[None]:
    """train.py with fake environments and a fake renderer, and a disk that syncs at once."""
    with pytest.MonkeyPatch.context() as patch:
        use_fake_environments(patch, StrictEnv)
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def finished(fake_program: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose budget is used up. Tests work on copies of it."""
    work_dir = tmp_path_factory.mktemp("finished")
    words = shlex.split(f"{TINY} --num_train_steps {FINISHED_STEPS} --checkpoint_frequency 8")
    assert call([*words, "--work_dir", str(work_dir)]).code == 0
    (folder,) = work_dir.glob("*/2*")
    assert tuple(sorted(path.name for path in (folder / CHECKPOINT_FOLDER).iterdir())) == FINISHED_FILES
    return folder
