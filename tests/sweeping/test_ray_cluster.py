"""Resources of a run, and an attempt at a run outside Ray."""

from __future__ import annotations

import errno
import os
import pickle
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from errors import UserError
from running.atomic_files import in_use
from sweeping.ray_cluster import attempt, connect, environment_variables, resources
from sweeping.record import Trial
from tests.support.paths import ROOT
from tests.support.processes import SMALL, wait_for
from tests.support.sweeps import sweep_of_seeds


def test_a_run_gets_the_threads_and_the_gpu_assigned_to_it() -> None:
    inherited = {"OMP_NUM_THREADS": "64", "HOME": "h", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    variables = environment_variables(inherited, 3.0, ["2"])
    assert variables["HOME"] == "h"
    assert [variables[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS", "LP")] == ["3"] * 4
    assert (variables["CUDA_VISIBLE_DEVICES"], variables["MUJOCO_EGL_DEVICE_ID"]) == ("2", "2")
    assert environment_variables(inherited, 0.5, [])["OMP_NUM_THREADS"] == "1"
    without_gpu = environment_variables(inherited, 1.0, [])
    assert without_gpu["CUDA_VISIBLE_DEVICES"] == ""
    assert "MUJOCO_EGL_DEVICE_ID" not in without_gpu


def test_the_users_gpu_for_drawing_is_kept() -> None:
    assert environment_variables({"MUJOCO_EGL_DEVICE_ID": "5"}, 1.0, ["2"])["MUJOCO_EGL_DEVICE_ID"] == "5"
    assert "MUJOCO_EGL_DEVICE_ID" not in environment_variables({}, 1.0, ["GPU-0a1b"])


def node(**amounts: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"memory": 64e9, **amounts}}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([node(CPU=4)], {}, {"CPU": 1.0, "GPU": 0.0, "memory": 1.0}),
        ([node(CPU=4), node(CPU=2, GPU=2)], {}, {"CPU": 1.0, "GPU": 1.0, "memory": 1.0}),
        ([node(CPU=4, GPU=1)], {"gpus_per_run": 0.25, "memory_per_run": 3.0}, {"CPU": 1, "GPU": 0.25, "memory": 3.0}),
        ([node(CPU=4, GPU=1)], {"device": "cpu"}, {"CPU": 1.0, "GPU": 0.0, "memory": 1.0}),
        ([node(CPU=4)], {"device": "cuda"}, "--device cuda: the runs get no GPU"),
        ([node(CPU=4)], {"cpus_per_run": 8.0}, "--cpus_per_run 8 is more than any node has (4)"),
        ([node(CPU=4)], {"gpus_per_run": 1.0}, "--gpus_per_run 1 is more than any node has (0)"),
        ([node(CPU=4)], {"memory_per_run": 100.0}, "--memory_per_run 100 is more than any node has (64)"),
        (
            [node(CPU=8), node(CPU=1, GPU=1)],
            {"cpus_per_run": 4.0},
            "no node has all of --cpus_per_run 4, --gpus_per_run 1, --memory_per_run 1 together",
        ),
    ],
)
def test_resources_of_a_run(nodes: list[Any], options: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    sweep = sweep_of_seeds(tmp_path, **options)
    dead = {"Alive": False, "Resources": {"CPU": 99.0}}
    if isinstance(expected, dict):
        assert resources(sweep, [*nodes, dead]) == expected
        return
    with pytest.raises(UserError) as caught:
        resources(sweep, [*nodes, dead])
    assert expected in str(caught.value)


# -- the connection ----------------------------------------------------------------------------------------------------

LONG_PATH = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x/plasma_store"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            Exception("The current node timed out during startup. This could\nhappen"),
            "This could; it may be overloaded",
        ),
        (TimeoutError("no answer"), "no answer; it may be overloaded: try again, or name a running cluster"),
        (OSError(LONG_PATH), "plasma_store; set TMPDIR to a folder with a shorter path, such as /tmp"),
        (ValueError(LONG_PATH), "plasma_store; set TMPDIR to a folder with a shorter path, such as /tmp"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "set TMPDIR to a folder that is writable"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "set TMPDIR to a folder that is writable"),
        (ray.exceptions.RaySystemError("no GCS"), "no GCS"),
        (AssertionError(), "AssertionError"),
        (KeyError("node_ip"), "'node_ip'"),
    ],
)
def test_ray_that_cannot_be_started(
    error: Exception, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    for address, words in (
        (None, "Ray can't be started on this machine: "),
        ("x", "--address x: no Ray cluster"),
    ):
        with pytest.raises(UserError) as caught, connect(sweep_of_seeds(tmp_path), address):
            pass
        message = str(caught.value)
        assert message.startswith(words)
        assert expected in message or address is not None
        assert "\n" not in message


def test_an_address_at_which_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is not asked, as it would try for a long time."""
    monkeypatch.setattr(ray, "init", pytest.fail)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:many"):
            message = f"--address {address}: no Ray cluster answers .*; start one with ray start"
            with pytest.raises(UserError, match=message), connect(sweep_of_seeds(tmp_path), address):
                pass


@pytest.mark.slow
def test_a_long_tmpdir_is_answered_with_the_remedy(tmp_path: Path) -> None:
    """With the real Ray, whose sockets have the path of TMPDIR."""
    place = tmp_path / ("x" * 100)
    place.mkdir()
    command = [sys.executable, str(ROOT / "sweep.py"), "--seed", "1", "--work_dir", str(tmp_path / "runs")]
    ended = subprocess.run(command, env={**os.environ, "TMPDIR": str(place)}, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("sweep.py: error: Ray can't be started on this machine: ")
    assert line.endswith("; set TMPDIR to a folder with a shorter path, such as /tmp")
    assert not (tmp_path / "runs").exists()


# -- an attempt --------------------------------------------------------------------------------------------------------


def a_trial(steps: int) -> Trial:
    return Trial("x", "cartpole_swingup", {}, shlex.split(f"{SMALL} --num_train_steps {steps}"), frames=steps)


@pytest.mark.slow
def test_a_run_without_a_config_starts_again_and_one_with_it_is_resumed(tmp_path: Path) -> None:
    trial = a_trial(steps=30)
    folder, log = trial.folder(tmp_path), trial.log(tmp_path)
    folder.mkdir(parents=True)
    (folder / "train.csv").touch()  # left by a kill at the start
    assert attempt(tmp_path, trial, 1.0, []) == 0
    assert (folder / "config.json").exists()
    assert not folder.with_name("x-run2").exists()
    assert log.read_text().splitlines()[1].startswith("$ python train.py --device cpu")
    assert attempt(tmp_path, trial, 1.0, []) == 0
    assert "--resume" in log.read_text()


def test_a_checkpoint_without_a_config_is_not_removed(tmp_path: Path) -> None:
    trial = a_trial(steps=30)
    checkpoint = trial.folder(tmp_path) / "checkpoint"
    checkpoint.mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"restore it, or remove the folder"):
        attempt(tmp_path, trial, 1.0, [])
    assert checkpoint.exists()


@pytest.mark.slow
def test_a_run_dies_with_its_worker(tmp_path: Path) -> None:
    """When the process that started it is killed, its folder is free."""
    trial = a_trial(steps=100_000)
    folder = trial.folder(tmp_path)
    code = (
        "import pickle, sys; sys.path.insert(0, sys.argv[1])\n"
        "from sweeping.ray_cluster import attempt; attempt(*pickle.load(sys.stdin.buffer), 1.0, [])"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdin=subprocess.PIPE)
    assert worker.stdin is not None
    with worker.stdin as pipe:
        pickle.dump((tmp_path, trial), pipe)
    try:
        wait_for(lambda: (folder / "config.json").exists())
        assert in_use(folder)
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: not in_use(folder))
