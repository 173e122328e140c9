"""Fixtures of the tests that give random input to the programs: programs that are soon over, and a small run."""

from __future__ import annotations

import copy
import functools
import os
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import envs.make
import evaluate
import sweep
import sweeping.plan
import train
import utils
from dmc import resolve_task
from envs.parallel import open_eval_envs
from evaluation import refit
from evaluation.evaluate_skills import Evaluation
from running import build, checkpoint, loop, start
from tests.support.runs import RENDERER, SMALL_RUN, SeededEnv


class SizedEnv(SeededEnv):
    """A fake environment for every task of the suite, with the sizes that are asked for."""

    def __init__(self, name: str, *, image_size: int, frame_stack: int, **_: Any) -> None:
        resolve_task(name)
        super().__init__(ragged=True, image_size=image_size, frame_stack=frame_stack)


class InProcess:
    """In place of a pool of processes."""

    def __init__(self, *_: object) -> None:
        self.map = map


@pytest.fixture(scope="module")
def programs(renderer: object) -> Iterator[None]:
    """The programs with fake environments, without worker processes, pictures and Ray; train.py takes no step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.make, "DMCEnv", SizedEnv)
        patch.setattr(build, "open_eval_envs", lambda factory, episodes, workers: open_eval_envs(factory, episodes))
        patch.setattr(sweeping.plan, "ProcessPoolExecutor", lambda *_: nullcontext(InProcess()))
        patch.setattr(sweeping.plan, "do_without_renderer", lambda: None)
        patch.setattr(sweep, "run_on_ray", lambda *_: None)
        patch.setattr(start, "start_tracker", lambda *_: None)
        for program in (train, evaluate):
            patch.setattr(program, "choose_renderer", lambda: RENDERER)
        patch.setattr(Evaluation, "pictures", lambda self, frame: {"picture": np.zeros((8, 8, 3), np.uint8)})
        patch.setattr(Figure, "savefig", lambda self, file, **settings: None)
        patch.setattr(refit, "UPDATES", {"pixels": 2, "states": 2})
        patch.setattr(refit, "CHECKS", 1)
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(checkpoint, "READ_AGAIN", 0)
        unpacked = functools.lru_cache(8)(checkpoint._unpacked)  # of files that a test has not damaged
        patch.setattr(checkpoint, "_unpacked", lambda data: copy.deepcopy(unpacked(data)))
        for module in (utils, checkpoint, build):  # to ask the system takes a millisecond
            patch.setattr(module, "free_memory", lambda: 10**10)
        yield


@pytest.fixture(scope="module")
def small_run(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with few tensors, as most of the time is spent on reading them."""
    work_dir = tmp_path_factory.mktemp("small")
    line = f"{SMALL_RUN} --num_skills 2 --hidden_depth 1 --discriminator_encoder shared --num_train_steps 20"
    assert train.main(shlex.split(f"{line} --work_dir {work_dir} --run_name run")) == 0
    return work_dir / "cartpole_swingup" / "run"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train", lambda run: None)
