"""Files of a run that have no end, for every program that reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sweep
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from running.stored_config import CONFIG_FILE
from sweeping.record import SWEEP_FILE
from tests.support.disk import copy_of
from tests.support.program import MAIN, assert_refused, call
from tests.support.sweeps import sweep_of_seeds

pytestmark = pytest.mark.usefixtures("programs")

PLAY = "--no_video --device cpu --out {out}"
READ = {  # how a program is called, and the files of the run that it reads then
    "train --resume {run}": (
        CONFIG_FILE,
        "train.csv",
        f"{CHECKPOINT_FOLDER}/{MANIFEST_FILE}",
        f"{CHECKPOINT_FOLDER}/state_*",
        f"{CHECKPOINT_FOLDER}/replay_*",
    ),
    "train --finetune_from {run} --work_dir {out}": (
        CONFIG_FILE,
        f"{CHECKPOINT_FOLDER}/{MANIFEST_FILE}",
        f"{CHECKPOINT_FOLDER}/state_*",
    ),
    "train --config {run}/config.json --work_dir {out}": (CONFIG_FILE,),
    f"evaluate {{run}} {PLAY}": (f"{CHECKPOINT_FOLDER}/{MANIFEST_FILE}", f"{CHECKPOINT_FOLDER}/state_*"),
    f"evaluate {{run}}/checkpoint/{{file}} {PLAY}": (f"{CHECKPOINT_FOLDER}/state_*",),
    "plot {run} --out {out}": (CONFIG_FILE, "eval.csv", "skills.csv"),
    "plot {run} --out {out} --reference {run}/{file}": ("train.csv",),
    "report {run} --out {out}.html": (CONFIG_FILE, "train.csv", "eval.csv", "episodes.csv", "skills.csv"),
}


@pytest.mark.parametrize("kind", ["huge", "device"])
@pytest.mark.parametrize(("line", "name"), [(line, name) for line, names in READ.items() for name in names])
def test_a_file_without_end_is_refused(small_run: Path, tmp_path: Path, line: str, name: str, kind: str) -> None:
    """It is neither read until the memory is full, nor for ever."""
    with copy_of(small_run) as folder:
        path = max(folder.glob(name))
        if kind == "huge":
            os.truncate(path, 1 << 40)
        else:
            path.unlink()
            path.symlink_to("/dev/null")  # which ends, so that this test does too
        program, *words = line.format(run=folder, file=path.name, out=tmp_path / "out").split()
        answer = call(words, MAIN[program])
        assert_refused(answer, program=program)
        reasons = ("File too large", "not a regular file", "neither a run's folder nor a checkpoint")
        assert any(reason in answer.lines[-1] for reason in reasons)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["huge", "device"])
def test_a_sweep_without_end_is_refused(tmp_path: Path, kind: str) -> None:
    sweep_of_seeds(tmp_path).write()
    path = tmp_path / SWEEP_FILE
    if kind == "huge":
        os.truncate(path, 1 << 40)
    else:
        path.unlink()
        path.symlink_to("/dev/null")
    assert_refused(call(["--resume", str(tmp_path)], sweep.main), program="sweep")
