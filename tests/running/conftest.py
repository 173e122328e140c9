"""Fixtures for the tests of runs: fake environments in place of dm_control's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from evaluation.evaluate_skills import Evaluation
from running.run import Run
from tests.support.labs import (
    START_FLAGS,
    TINY,
    Fakes,
    Lab,
    Prepare,
    Start,
)
from tests.support.runs import RecordingEnv, SeededEnv, start_run, use_fake_environments


@pytest.fixture
def prepare(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Prepare]:
    """`prepare(flags, **settings of the environments)` opens a run with the flags TINY, and does not play it.

    Skills are drawn with `pictures=True` only, as that takes most of the time.
    """
    labs: list[Lab] = []

    def make(line: str = "", *, pictures: bool = False, **settings: Any) -> Lab:
        if not pictures:
            monkeypatch.setattr(Evaluation, "pictures", lambda self, frame: {})
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
