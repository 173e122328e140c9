"""Fixtures for the tests of runs: fake environments in place of dm_control's."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from evaluation.evaluate_skills import Evaluation
from running.checkpoint import FOLDER
from running.run import Run
from tests.support.labs import (
    FINISHED_FILES,
    FINISHED_STEPS,
    START_FLAGS,
    TINY,
    Fakes,
    Lab,
    Prepare,
    Start,
    StrictEnv,
)
from tests.support.program import call
from tests.support.runs import RecordingEnv, SeededEnv, start_run, use_fake_environments


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


@pytest.fixture
def prepare(fakes: Fakes, tmp_path: Path) -> Iterator[Prepare]:
    """`prepare(flags, **settings of the environments)` opens a run with the flags TINY, and does not play it."""
    labs: list[Lab] = []

    def make(line: str = "", **settings: Any) -> Lab:
        made = fakes(**settings)
        run = start_run(f"{TINY} --work_dir {tmp_path / 'runs'} {line}")
        labs.append(Lab(run, cast(RecordingEnv, run.env), [env for env in made if env is not run.env], run.folder))
        return labs[-1]

    yield make
    for lab in labs:
        lab.run.close()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """`start(flags)` opens a run whose episodes last 3 to 8 steps; `start(resume=folder)` opens it again.

    Its skills are not drawn, and nothing waits for the disk, as both would take most of the time.
    """
    runs: list[Run] = []

    def begin(line: str = "", *, resume: Path | None = None) -> Run:
        given = f"--resume {resume} {line}" if resume is not None else f"{START_FLAGS} --work_dir {tmp_path} {line}"
        runs.append(start_run(given))
        return runs[-1]

    use_fake_environments(monkeypatch, lambda: SeededEnv(ragged=True))
    picture = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(Evaluation, "pictures", lambda self, frame: {"confusion_matrix": picture})
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    yield begin
    for run in runs:
        run.close()


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
    assert tuple(sorted(path.name for path in (folder / FOLDER).iterdir())) == FINISHED_FILES
    return folder
