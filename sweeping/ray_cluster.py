"""Runs as Ray tasks: the cluster, the resources of a run, and an attempt at a run in a Ray worker."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from errors import UserError, one_line
from running.atomic_files import in_use
from running.stored_config import CONFIG_FILE
from sweeping.record import Sweep, Trial

PROGRAM = Path(__file__).resolve().parent.parent  # the folder of train.py
OBJECT_STORE_BYTES = 100_000_000  # of a Ray on this machine alone; exit codes take no room
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")  # LP: llvmpipe

# The run's process executes this, then becomes train.py. The kernel kills it when the worker that started it dies, so
# that the run's folder is free for another node. Ray workers block SIGINT, and a process inherits that.
LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the worker is gone")
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
os.execv(sys.argv[2], sys.argv[2:])
"""


class Outcome(NamedTuple):
    """How an attempt ended."""

    exit_code: int | None  # of the run's process; None if it is unknown
    reason: str = ""  # why it is unknown


class Cluster:
    """A connected Ray cluster, on which each attempt at a run is a task.

    Args:
        sweep: whose runs are started.
        needs: resources of a run, as `resources` returns them.
    """

    def __init__(self, sweep: Sweep, needs: Mapping[str, float]) -> None:
        self._folder, self._cpus = sweep.folder, needs["CPU"]
        self._attempt = ray.remote(max_retries=0)(attempt_in_worker).options(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=needs["memory"]
        )

    def start(self, trial: Trial) -> Any:
        """Queue an attempt at the run and return a reference to it."""
        folder, log = trial.folder(self._folder), trial.log(self._folder)
        return self._attempt.remote(folder, log, trial.command(self._folder), self._cpus)

    def wait(self, references: Sequence[Any], timeout: float) -> list[Any]:
        """Wait until an attempt ends, at most `timeout` seconds. Return the references of all that have ended."""
        ended, _ = ray.wait(list(references), timeout=timeout)
        if ended:
            ended, _ = ray.wait(list(references), num_returns=len(references), timeout=0)
        return ended

    def outcome(self, reference: Any) -> Outcome:
        """Return how an attempt ended."""
        try:
            return Outcome(ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            return Outcome(None, f"it could not be run: {str(error).strip().splitlines()[-1]}")
        except ray.exceptions.RayError as error:
            return Outcome(
                None, f"its node or worker is lost: {one_line((str(error).strip().splitlines() or [''])[0])}"
            )

    def cancel(self, reference: Any) -> None:
        """Ask a running attempt to write a checkpoint and end; remove a queued one from the queue."""
        ray.cancel(reference)


@contextmanager
def connect(sweep: Sweep, address: str | None) -> Iterator[Cluster]:
    """Connect to the Ray cluster at this address, or start Ray on this machine. Raises UserError."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address=address or "local", **settings)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise UserError(f"Ray can't be started on this machine: {reason}") from error
        raise UserError(f"--address {address}: no Ray cluster answers ({reason}); start one with ray start") from error
    try:
        yield Cluster(sweep, resources(sweep, ray.nodes()))
    finally:
        ray.shutdown()


def resources(sweep: Sweep, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the resources that Ray reserves for a run. Raises UserError if no node of the cluster has them.

    Args:
        nodes: as `ray.nodes()` describes them; memory is in bytes.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    devices = {trial.settings.get("device") for trial in sweep.trials}
    gpus = sweep.gpus_per_run
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in alive) and devices != {"cpu"} else 0.0
    if not gpus and "cuda" in devices:
        raise UserError("--device cuda: the runs get no GPU; give --gpus_per_run if the nodes have GPUs")
    memory = sweep.memory_per_run or sweep.needs_memory
    needs = {"CPU": sweep.cpus_per_run, "GPU": gpus, "memory": memory * 1e9}
    flags = {"CPU": "cpus_per_run", "GPU": "gpus_per_run", "memory": "memory_per_run"}
    units = {"CPU": 1.0, "GPU": 1.0, "memory": 1e9}  # of the flags
    for resource, flag in flags.items():
        most, unit = max((node.get(resource, 0.0) for node in alive), default=0.0), units[resource]
        if needs[resource] > most:
            raise UserError(
                f"--{flag} {needs[resource] / unit:g} is more than any node has ({most / unit:.4g}); give less"
            )
    if not any(all(node.get(resource, 0.0) >= need for resource, need in needs.items()) for node in alive):
        wanted = ", ".join(f"--{flag} {needs[resource] / units[resource]:g}" for resource, flag in flags.items())
        raise UserError(f"no node has all of {wanted} together; give less of one")
    return needs


def check_nodes(folder: Path) -> None:
    """Raise UserError if a node of the cluster does not see the sweep's folder or this program."""

    def missing(places: Sequence[Path]) -> list[Path]:  # a local function: Ray sends its code, not this module's name
        return [place for place in places if not place.exists()]

    ask = ray.remote(num_cpus=0, max_retries=0)(missing)
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            unseen = ray.get(ask.options(scheduling_strategy=there).remote([folder, Path(__file__).resolve()]))
            if unseen:
                raise UserError(
                    f"--work_dir: node {node['NodeManagerHostname']} has no {unseen[0]}; every node must see this "
                    "program and the folder of the runs at the same path"
                )


def attempt_in_worker(folder: Path, log: Path, command: Sequence[str], cpus: float) -> int:
    """Call `attempt` with the GPUs that Ray has assigned to this worker."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how Ray cancels; a job in the background ignores it
    return attempt(folder, log, command, cpus, ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def attempt(folder: Path, log: Path, command: Sequence[str], cpus: float, gpus: Sequence[str]) -> int:
    """Start the run, or resume it if its folder has a config.json. Wait for its end and return its exit code.

    KeyboardInterrupt, which Ray raises to cancel a task, makes the run write a checkpoint and end.

    Args:
        folder: of the run.
        log: the file for the run's output.
        command: starts the run: train.py and its flags.
        cpus: cores of the run.
        gpus: indices or UUIDs of its GPUs.
    """
    log.parent.mkdir(exist_ok=True)  # not its parents: if they are missing, this node does not share the folder
    with log.open("w") as out:
        print(f"host {socket.gethostname()}", file=out, flush=True)
        while in_use(folder):  # by a process of a lost node, which is about to end
            time.sleep(0.5)
        if (folder / CONFIG_FILE).exists():
            command = ["train.py", "--resume", str(folder)]
        else:
            remove_unfinished(folder)
        print(f"$ python {shlex.join(command)}", file=out, flush=True)
        program = [sys.executable, str(PROGRAM / command[0]), *command[1:]]
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(os.getpid()), *program],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment_variables(os.environ, cpus, gpus),
            start_new_session=True,
        )
        try:
            while process.poll() is None:  # not wait(), which Ray's KeyboardInterrupt does not end
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


def remove_unfinished(folder: Path) -> None:
    """Remove the folder of a run that was killed before it wrote config.json, and so can't be resumed."""
    if (folder / "checkpoint").exists():
        raise FileExistsError(f"{folder} has a checkpoint and no {CONFIG_FILE}; restore it, or remove the folder")
    if folder.exists():
        shutil.rmtree(folder)


def environment_variables(inherited: Mapping[str, str], cpus: float, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of a run: as many threads as it has cores, and its GPU for CUDA and EGL."""
    threads = str(max(1, int(cpus)))
    variables = {**inherited, **dict.fromkeys(THREAD_VARIABLES, threads), "PYTHONUNBUFFERED": "1"}
    variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if gpus and gpus[0].isdecimal() and "MUJOCO_EGL_DEVICE_ID" not in inherited:
        variables |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "MUJOCO_EGL_DEVICE_ID": gpus[0]}  # the same numbering for both
    return variables
