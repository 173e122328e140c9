"""Runs as Ray tasks: the cluster, the resources of a run, and an attempt at a run in a Ray worker."""

from __future__ import annotations

import errno
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
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from errors import UserError, one_line
from running.atomic_files import in_use
from running.stored_config import CONFIG_FILE
from sweeping.record import Sweep, Trial

PROGRAM_FOLDER = Path(__file__).resolve().parent.parent
ANSWER_WITHIN = 30.0  # seconds, of a Ray cluster
OBJECT_STORE_BYTES = 100_000_000  # of a Ray on this machine alone; exit codes take no room
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")  # LP: llvmpipe
FILE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

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


class Cluster:
    """A connected Ray cluster, on which each attempt at a run is a task that takes `needs`: see `resources`."""

    def __init__(self, sweep: Sweep, needs: Mapping[str, float]) -> None:
        self._sweep = sweep
        amounts: dict[str, Any] = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "memory": needs["memory"] * 1e9}
        self._attempt = ray.remote(max_retries=0, **amounts)(attempt_in_worker)

    def start(self, trial: Trial) -> Any:
        """Queue an attempt at the run and return a reference to it."""
        return self._attempt.remote(self._sweep.folder, trial, self._sweep.cpus_per_run)

    def wait(self, references: Sequence[Any], timeout: float) -> list[Any]:
        """Wait until all attempts end, at most `timeout` seconds. Return the references of those that have."""
        return ray.wait(list(references), num_returns=len(references), timeout=timeout)[0]

    def outcome(self, reference: Any) -> int | str:
        """Return the exit code of the run's process or, if it is unknown, the reason."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            return f"it could not be run: {str(error).strip().splitlines()[-1]}"
        except ray.exceptions.RayError as error:
            return f"its node or worker is lost: {one_line(first_line(error))}"

    def cancel(self, reference: Any) -> None:
        """Ask a running attempt to write a checkpoint and end; remove a queued one from the queue."""
        ray.cancel(reference)


def first_line(error: Exception) -> str:
    """Return the first line of the error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def connect(sweep: Sweep, address: str | None) -> Iterator[Cluster]:
    """Connect to the Ray cluster at this address, or start Ray on this machine. Raises UserError."""
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        if address is not None:
            check_answer(address)
        ray.init(address=address or "local", **settings)
        nodes = ray.nodes()
    except Exception as error:  # Ray raises many types, Exception itself among them
        ray.shutdown()
        reason = first_line(error).rstrip(".")
        if address is None:
            raise UserError(f"Ray can't be started on this machine: {reason}{start_remedy(error)}") from error
        raise UserError(f"--address {address}: no Ray cluster answers ({reason}); start one with ray start") from error
    try:
        yield Cluster(sweep, resources(sweep, nodes))
    finally:
        ray.shutdown()


def check_answer(address: str) -> None:
    """Raise OSError if nothing answers at an address HOST:PORT. Ray would try for more than ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_WITHIN).close()


def start_remedy(error: Exception) -> str:
    """Return what to do if Ray cannot be started on this machine, to be appended to the reason; "" if unknown."""
    if "AF_UNIX" in str(error):
        return "; set TMPDIR to a folder with a shorter path, such as /tmp"
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        return "; set TMPDIR to a folder that is writable and on a disk with free space"
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "; it may be overloaded: try again, or name a running cluster with --address"
    return ""


def resources(sweep: Sweep, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the resources that Ray reserves for a run, memory in GB. Raises UserError if no node has them.

    `nodes` are as in `ray.nodes()`, with memory in bytes.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    alive = [{**amounts, "memory": amounts.get("memory", 0.0) / 1e9} for amounts in alive]
    devices = {trial.settings.get("device") for trial in sweep.trials}
    gpus = sweep.gpus_per_run
    if gpus is None:
        gpus = float(devices != {"cpu"} and any(node.get("GPU") for node in alive))
    if not gpus and "cuda" in devices:
        raise UserError("--device cuda: the runs get no GPU; give --gpus_per_run if the nodes have GPUs")
    needs = {"CPU": sweep.cpus_per_run, "GPU": gpus, "memory": sweep.memory_per_run or sweep.needs_memory}
    flags = {"CPU": "--cpus_per_run", "GPU": "--gpus_per_run", "memory": "--memory_per_run"}
    for resource, need in needs.items():
        most = max((node.get(resource, 0.0) for node in alive), default=0.0)
        if need > most:
            raise UserError(f"{flags[resource]} {need:g} is more than any node has ({most:.4g}); give less")
    if not any(all(node.get(resource, 0.0) >= need for resource, need in needs.items()) for node in alive):
        wanted = ", ".join(f"{flags[resource]} {need:g}" for resource, need in needs.items())
        raise UserError(f"no node has all of {wanted} together; give less of one")
    return needs


def check_nodes(folder: Path) -> None:
    """Raise UserError if a node of the cluster does not see the sweep's folder or this program."""

    def missing(places: Sequence[Path]) -> list[Path]:  # a local function: Ray sends its code, not this module's name
        return [place for place in places if not place.exists()]

    ask = ray.remote(num_cpus=0, max_retries=0)(missing)
    for node in ray.nodes():
        if node["Alive"]:
            host = node["NodeManagerHostname"]
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                unseen = ray.get(ask.options(scheduling_strategy=there).remote([folder, Path(__file__).resolve()]))
            except ray.exceptions.RayError as error:
                raise UserError(f"--address: node {host} does not answer ({first_line(error)})") from error
            if unseen:
                raise UserError(
                    f"--work_dir: node {host} has no {unseen[0]}; every node must see this "
                    "program and the folder of the runs at the same path"
                )


def attempt_in_worker(sweep: Path, trial: Trial, cpus: float) -> int:
    """Call `attempt` with the GPUs that Ray has assigned to this worker."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # how Ray cancels; a job in the background ignores it
    return attempt(sweep, trial, cpus, ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def attempt(sweep: Path, trial: Trial, cpus: float, gpus: Sequence[str]) -> int:
    """Start the run, or resume it if its folder has a config.json. Wait for its end and return its exit code.

    KeyboardInterrupt, which Ray raises to cancel a task, makes the run write a checkpoint and end. `gpus` are indices
    or UUIDs.
    """
    folder, log = trial.folder(sweep), trial.log(sweep)
    log.parent.mkdir(exist_ok=True)  # not its parents: if they are missing, this node does not share the folder
    with log.open("w") as out:
        print(f"host {socket.gethostname()}", file=out, flush=True)
        while in_use(folder):  # by a process of a lost node, which is about to end
            time.sleep(0.5)
        if folder.exists() and not (folder / CONFIG_FILE).exists():  # killed before it could be resumed
            if (folder / "checkpoint").exists():
                raise FileExistsError(
                    f"{folder} has a checkpoint and no {CONFIG_FILE}; restore it, or remove the folder"
                )
            shutil.rmtree(folder)
        program, *arguments = trial.command(sweep)
        print(f"$ python {shlex.join([program, *arguments])}", file=out, flush=True)
        command = [sys.executable, str(PROGRAM_FOLDER / program), *arguments]
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(os.getpid()), *command],
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


def environment_variables(inherited: Mapping[str, str], cpus: float, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of a run: as many threads as it has cores, and its GPU for CUDA and EGL."""
    threads = str(max(1, int(cpus)))
    variables = {**inherited, **dict.fromkeys(THREAD_VARIABLES, threads), "PYTHONUNBUFFERED": "1"}
    variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if gpus and gpus[0].isdecimal() and "MUJOCO_EGL_DEVICE_ID" not in inherited:
        variables |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "MUJOCO_EGL_DEVICE_ID": gpus[0]}  # the same numbering for both
    return variables
