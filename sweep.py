# PYTHON_ARGCOMPLETE_OK (shells complete flags: README.md)
"""Many runs as one command: the product of the values given for train.py's flags, several at a time, on Ray.

python sweep.py --env cartpole_swingup walker_walk --seed 1 2 3 --num_skills 0 10
python sweep.py --resume runs/<sweep>

Each run is what train.py makes of the same flags, in a process of its own. The sweep's folder holds the runs,
`sweep.json` with what is known about them, `summary.csv` with a row a run, and in `logs/` what each attempt printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import math
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from config import Config, Role, check_name, flags_with, shown_value
from console.arguments import UNITS, Parser, add_flags, complete
from errors import UserError, one_line
from running.atomic_files import no_room
from running.signals import StopRequest
from running.stored_config import CONFIG_FILE, config_from, with_template
from sweep_record import OPTIONS, SUMMARY_FILE, Sweep, Trial, View, host_of, last_lines, look, overall

# what an environment is made from, and what else is looked at before anything starts
CHECKED = ("env", *flags_with(Role.ENVIRONMENT), "replay_buffer_capacity", "finetune_from")
NETWORKS_MEMORY = 2.0  # GB for a run's process beside its replay buffer
REFRESH = 2.0  # seconds between looks at the runs
WRITE_EVERY = 30.0  # seconds between updates of summary.csv while nothing begins or ends
TOKEN = Path("~/.ray/auth_token")  # Ray's, made by the first Ray on this machine
RETRY_AFTER = 5.0  # seconds from a run's first failure to the next attempt, twice as long from each further one
LONGEST_NAME = 100  # letters, of a run's folder
INSTALL_HINT = "pip install -r requirements-sweep.txt"


# -- the plan ----------------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The sweep's own flags, and in `values` those of train.py, each with a list."""
    parser = Parser(
        prog="sweep.py",
        description="Train every combination of the values given for train.py's flags, several runs at a time, on Ray.",
        epilog=UNITS,
    )
    own = parser.add_argument_group("sweep")
    own.add_argument("--dry_run", action="store_true", help="list the runs, as commands, and start none")
    own.add_argument("--sweep_name", metavar="NAME", help="name of the sweep's folder (default: sweep_<date>_<time>)")
    own.add_argument("--work_dir", type=Path, default="runs", help="where that folder is made (default: runs)")
    own.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with what is unfinished of this sweep")
    own.add_argument(
        "--address", help="a running Ray cluster (auto: this machine's); default: Ray on this machine alone"
    )
    own.add_argument("--cpus_per_run", type=float, metavar="X", help="cores, and threads, of a run (default: 1)")
    own.add_argument(
        "--gpus_per_run",
        type=float,
        metavar="X",
        help="GPUs of a run, or a part of one (default: 1, or 0 where there is none)",
    )
    own.add_argument(
        "--memory_per_run", type=float, metavar="GB", help="memory set aside for a run (default: replay buffer + 2)"
    )
    own.add_argument(
        "--max_failures", type=int, metavar="N", help="times that a run which fails is resumed (default: 3)"
    )
    taken = {action.dest for action in parser._actions}
    add_flags(parser, several=True, without=flags_with(Role.PLACED_BY_SWEEP))
    complete(parser)
    args = parser.parse_args(argv)
    args.values = {name: given for name, given in vars(args).items() if name not in taken}
    try:
        check_options(args)
    except UserError as error:
        parser.error(str(error))
    return args


def check_options(args: argparse.Namespace) -> None:
    """Raise UserError where the sweep's own flags make no sense."""
    for name, lowest in (("cpus_per_run", 0.01), ("gpus_per_run", 0.0), ("memory_per_run", 0.01), ("max_failures", 0)):
        value = getattr(args, name)
        if value is not None and not lowest <= value < math.inf:
            raise UserError(f"--{name} must be at least {lowest}; got {value}")
    gpus = args.gpus_per_run or 0
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus_per_run must be whole above 1; got {gpus}")
    check_name("sweep_name", args.sweep_name)
    if args.resume is not None and (args.values or args.sweep_name):
        name = next(iter(args.values), "sweep_name")
        raise UserError(f"--{name}: a resumed sweep keeps its runs; leave the flag out, or start a new sweep")


def plan(values: Mapping[str, Any]) -> list[tuple[Trial, Config]]:
    """Every combination of the values, checked. Raises UserError."""
    once = {"config": values["config"]} if "config" in values else {}
    choices = {name: several(name, given) for name, given in values.items() if name != "config"}
    varied = [name for name, options in choices.items() if len(options) > 1 and name != "env"]
    planned: dict[tuple[str, str], tuple[Trial, Config]] = {}
    for number, combination in enumerate(itertools.product(*choices.values())):
        chosen = dict(zip(choices, combination, strict=True))
        config = config_from({**chosen, **once})
        if config.device not in (None, "cpu", "cuda"):
            raise UserError(f"--device {config.device}: give cpu or cuda; a run sees the GPUs that it was given only")
        flags = with_template({**chosen, **once})
        if config.finetune_from is not None:
            flags["finetune_from"] = config.finetune_from  # absolute
        name = run_name({flag: chosen[flag] for flag in varied})
        if len(name) > LONGEST_NAME or (config.env, name) in planned:  # or the values differ in what no name can hold
            name = f"{name[:LONGEST_NAME]}_{number}"
        settings = {flag: " ".join(as_words(value)) for flag, value in chosen.items()}
        arguments = [word for flag, value in flags.items() for word in as_arguments(flag, value)]
        planned[config.env, name] = Trial(name, config.env, settings, arguments, config.num_train_frames), config
    return list(planned.values())


def several(name: str, given: Sequence[Any]) -> list[Any]:
    """The values of a flag, each once. Raises UserError."""
    values = list(given) or [True]  # a switch without a value
    if name == "log_std_bounds":  # two numbers are a value
        if len(values) % 2:
            raise UserError(f"--{name} takes pairs of numbers; got {len(values)}")
        values = list(zip(values[::2], values[1::2], strict=True))
    if name == "env":
        values = [value.removeprefix("dmc_") for value in values]
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"--{name} names {shown_value(value)} twice; each combination is run once")
    return values


def as_words(value: Any) -> list[str]:
    """A flag's value on a command line."""
    if isinstance(value, tuple):
        return [str(part) for part in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def as_arguments(flag: str, value: Any) -> list[str]:
    words = as_words(value)
    if isinstance(value, str) and value.startswith("-"):  # else it would look like another flag
        return [f"--{flag}={value}"]
    return [f"--{flag}", *words]


def run_name(varied: Mapping[str, Any]) -> str:
    words = "_".join(f"{name}={'+'.join(as_words(value))}" for name, value in varied.items())
    return re.sub(r"[^\w.+=-]+", "-", words, flags=re.ASCII) or "run"


def check_environments(configs: Sequence[Config]) -> None:
    """Make each environment once, without drawing, in a process of its own; see each run that is fine-tuned.

    Raises UserError.
    """
    distinct = list({tuple(getattr(config, name) for name in CHECKED): config for config in configs}.values())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        for _ in pool.map(check_environment, distinct):
            pass


def check_environment(config: Config) -> None:
    """In a process of its own, as the machine that starts a sweep may be unable to draw. Raises UserError."""
    from runs import make_environment

    from dmc import do_without_renderer
    from errors import CheckpointError
    from running.checkpoint import read_newest

    do_without_renderer()
    make_environment(config).close()
    if config.finetune_from is not None:
        try:
            if read_newest(Path(config.finetune_from)) is None:
                raise UserError(f"--finetune_from {config.finetune_from}: that run has no checkpoint yet")
        except CheckpointError as error:
            raise UserError(f"--finetune_from {config.finetune_from}: {error}") from error


def memory_needed(configs: Sequence[Config]) -> float:
    """GB of the hungriest run: its frames, and what every process takes."""
    frames = (config.replay_buffer_capacity * 3 * config.image_size**2 / 1e9 for config in configs)
    return round(max(frames) + NETWORKS_MEMORY, 2)


def new_sweep(args: argparse.Namespace) -> Sweep:
    """The sweep that the command line asks for; nothing is on the disk yet. Raises UserError."""
    planned = plan(args.values)
    configs = [config for _, config in planned]
    name = args.sweep_name or f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = (args.work_dir / name).resolve()
    if folder.exists():
        raise UserError(f"--sweep_name {name}: {folder} exists; choose another, or go on with --resume {folder}")
    options: dict[str, Any] = {"cpus_per_run": 1.0, "gpus_per_run": None, "memory_per_run": None, "max_failures": 3}
    options |= {option: value for option in options if (value := getattr(args, option)) is not None}
    check_environments(configs)
    return Sweep(folder, [trial for trial, _ in planned], **options, needs_memory=memory_needed(configs))


def resumed_sweep(args: argparse.Namespace) -> Sweep:
    """The sweep in the folder `args.resume`, with what is not finished waiting again. Raises UserError."""
    sweep = Sweep.read(args.resume)
    for option in OPTIONS:
        value = getattr(args, option)
        if value is not None:
            setattr(sweep, option, value)
    for trial in sweep.trials:
        if trial.state != "finished":
            trial.state, trial.failures, trial.message = "waiting", 0, ""
    return sweep


# -- a run, on the node that Ray chose for it --------------------------------------------------------------------------


def attempt(folder: Path, log: Path, command: Sequence[str], cpus: float, gpus: Sequence[str]) -> int:
    """Start the run, or go on with what is in its folder, and wait for its end; the exit code. Runs in a Ray worker.

    Being cancelled, which raises KeyboardInterrupt, has the run write a checkpoint and end.
    """
    from running.atomic_files import in_use

    log.parent.mkdir(exist_ok=True)  # and not the folders above it: they are there, or this is no shared folder
    with log.open("w") as out:
        print(f"host {socket.gethostname()}", file=out, flush=True)
        while in_use(folder):  # a process of a lost node, which is just about to notice
            time.sleep(0.5)
        if (folder / CONFIG_FILE).exists():
            command = ["train.py", "--resume", str(folder)]
        else:
            clear(folder)
        print(f"$ python {shlex.join(command)}", file=out, flush=True)
        program = str(Path(__file__).resolve().parent / command[0])
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(os.getpid()), sys.executable, program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=surroundings(os.environ, cpus, gpus),
            start_new_session=True,
        )
        try:
            while process.poll() is None:  # not wait(): a KeyboardInterrupt of Ray's doesn't break it off
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode


# The run's process becomes train.py; it is killed where the worker that started it dies, so that another node finds the
# run's folder free. A worker begins with SIGINT blocked, which a process inherits.
CHILD = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the worker is gone")
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
os.execv(sys.argv[2], sys.argv[2:])
"""


def clear(folder: Path) -> None:
    """Remove what a run left that was killed before its config.json was there: nothing of it can be used."""
    if (folder / "checkpoint").exists():
        raise FileExistsError(f"{folder} has a checkpoint and no {CONFIG_FILE}; put that back, or remove the folder")
    if folder.exists():
        shutil.rmtree(folder)


def surroundings(before: Mapping[str, str], cpus: float, gpus: Sequence[str]) -> dict[str, str]:
    """Environment variables of a run: as many threads as it has cores, and its GPU for CUDA and for drawing."""
    threads = str(max(1, int(cpus)))
    threaded = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")  # the last: llvmpipe
    after = {**before, **dict.fromkeys(threaded, threads), "PYTHONUNBUFFERED": "1"}
    after["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if gpus and gpus[0].isdecimal() and "MUJOCO_EGL_DEVICE_ID" not in before:
        after |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "MUJOCO_EGL_DEVICE_ID": gpus[0]}  # one numbering for both
    return after


# -- the engine --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(sweep: Sweep, address: str | None) -> Iterator[Callable[[Trial], Any]]:
    """Ray, as a function that queues a run and returns the reference to its exit code. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # `surroundings` hides GPUs from runs without one
    if address is not None and TOKEN.expanduser().exists():  # a cluster made by `ray start` then asks for it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
        import rich  # noqa: F401
    except ImportError as error:
        raise UserError(f"a sweep needs {error.name}; {INSTALL_HINT}") from None
    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100_000_000} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise UserError(f"Ray can't be started on this machine: {reason}") from error
        raise UserError(f"--address {address}: no Ray cluster answers ({reason}); start one with ray start") from error
    try:
        needs = resources(sweep, ray.nodes())
        remote = ray.remote(max_retries=0)(attempt_in_ray).options(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], memory=needs["memory"]
        )

        def start(trial: Trial) -> Any:
            folder = trial.folder(sweep.folder)
            return remote.remote(folder, trial.log(sweep.folder), trial.command(sweep.folder), needs["CPU"])

        yield start
    finally:
        ray.shutdown()


def attempt_in_ray(folder: Path, log: Path, command: Sequence[str], cpus: float) -> int:
    import ray

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a cancellation comes as one; a shell's & has it ignored
    return attempt(folder, log, command, cpus, ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


def resources(sweep: Sweep, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What Ray sets aside for a run. Raises UserError where no node of the cluster ever has as much."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    devices = {trial.settings.get("device") for trial in sweep.trials}
    gpus = sweep.gpus_per_run
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in alive) and devices != {"cpu"} else 0.0
    if not gpus and "cuda" in devices:
        raise UserError("--device cuda: the runs get no GPU; give --gpus_per_run, where the nodes have some")
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
    """Raise UserError where a node of the cluster doesn't see the sweep's folder or this program."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(what_is_missing)
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            missing = ray.get(ask.options(scheduling_strategy=there).remote([folder, Path(__file__).resolve()]))
            if missing:
                raise UserError(
                    f"--work_dir: node {node['NodeManagerHostname']} has no {missing[0]}; every node must see this "
                    "program and the folder of the runs at the same place"
                )


def what_is_missing(places: Sequence[Path]) -> list[Path]:
    return [place for place in places if not place.exists()]


class Driver:
    """Starts what waits, and again what fails, until everything has ended or somebody asks to stop.

    Args:
        start: queues an attempt at a run and returns the reference to its exit code.
    """

    def __init__(self, sweep: Sweep, start: Callable[[Trial], Any], stop: StopRequest, view: View) -> None:
        self.sweep, self.start, self.stop, self.view = sweep, start, stop, view
        self.running: dict[Any, Trial] = {}  # started, or queued for a free place
        self.not_before: dict[str, float] = {}  # time.monotonic() from which a run that failed may start again
        self._written, self._cancelled = -math.inf, False

    def run(self) -> None:
        try:
            while self.running or (self.stop.number is None and self._waiting()):
                self._start_waiting()
                news = self._collect()
                self._look(news)
                if self.stop.number is not None:
                    self._cancel()
        except BaseException:  # whatever went wrong here is no reason to kill the runs: each writes a checkpoint
            self._cancel()
            while self.running:
                self._collect()
            raise

    def _waiting(self) -> list[Trial]:
        queued = {trial.place for trial in self.running.values()}
        return [trial for trial in self.sweep.trials if trial.state == "waiting" and trial.place not in queued]

    def _start_waiting(self) -> None:
        if self.stop.number is not None:
            return
        for trial in self._waiting():
            if time.monotonic() >= self.not_before.get(trial.place, 0.0):
                trial.attempts += 1
                while trial.log(self.sweep.folder).exists():  # of an attempt that a killed sweep.py didn't write down
                    trial.attempts += 1
                trial.began = None
                self.running[self.start(trial)] = trial

    def _collect(self) -> bool:
        """Wait a little, and write down what has ended; whether something has."""
        import ray

        if not self.running:
            time.sleep(REFRESH)
            return False
        ended, _ = ray.wait(list(self.running), timeout=REFRESH)
        if ended:
            ended, _ = ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        for reference in ended:
            trial = self.running.pop(reference)
            settle(self.sweep, trial, exit_code(reference), stopping=self._cancelled, view=self.view)
            self.not_before[trial.place] = time.monotonic() + RETRY_AFTER * 2 ** min(trial.failures - 1, 4)
        return bool(ended)

    def _look(self, news: bool) -> None:
        """See what the runs have written, and tell."""
        sweep = self.sweep
        for trial in self.running.values():
            host = host_of(trial.log(sweep.folder))
            if trial.began is None and host:
                news = True
                trial.began, trial.state, trial.host = time.monotonic(), "running", host
                self.view.line(trial, f"{'resumed' if trial.attempts > 1 else 'started'} on {host}")
            if trial.state == "running":
                trial.seen = look(trial.folder(sweep.folder), trial.seen)
        if news or time.monotonic() - self._written > WRITE_EVERY:
            self._written = time.monotonic()
            try:
                sweep.write()
            except OSError as error:
                print(f"warning: {error.filename}: {error.strerror}; tried again later", file=sys.stderr)
        self.view.show(sweep)

    def _cancel(self) -> None:
        """Ask all runs to write a checkpoint and end, once."""
        import ray

        if not self._cancelled:
            self._cancelled = True
            for reference in self.running:
                ray.cancel(reference)


def exit_code(reference: Any) -> tuple[int | None, str]:
    """How an attempt ended: the run's exit code, or None and why there is none."""
    import ray

    try:
        return ray.get(reference), ""
    except ray.exceptions.RayTaskError as error:
        return None, f"it could not be run: {str(error).strip().splitlines()[-1]}"
    except ray.exceptions.RayError as error:
        return None, f"its node or worker is lost: {one_line((str(error).strip().splitlines() or [''])[0])}"


def settle(sweep: Sweep, trial: Trial, ended: tuple[int | None, str], *, stopping: bool, view: View) -> None:
    """Write down how an attempt ended, and whether there is to be another."""
    code, reason = ended
    log = trial.log(sweep.folder)
    if trial.began is not None:
        trial.seconds += time.monotonic() - trial.began
        trial.began = None
    trial.host = host_of(log) or trial.host
    trial.seen = look(trial.folder(sweep.folder), trial.seen)
    if code == 0:
        trial.state, trial.message = "finished", ""
        view.line(trial, "finished")
    elif stopping:
        trial.state = "stopped" if trial.folder(sweep.folder).exists() else "waiting"
        view.line(trial, "stopped")
    else:
        trial.failures += 1
        trial.message = "\n".join(part for part in (reason, last_lines(log)) if part)
        again = trial.failures <= sweep.max_failures
        trial.state = "waiting" if again else "failed"
        how = reason or f"exit code {code}: {last_lines(log)}"
        view.line(trial, f"{'to be resumed' if again else 'given up'}; {one_line(how)}")


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, check, run. Returns the exit code.

    0: every run is finished. 1: some failed. 2: bad input. 128 + signal: stopped by it, with a checkpoint of every run.
    """
    args = parse_args(argv)
    with contextlib.ExitStack() as stack:
        stop = StopRequest("every run writes a checkpoint")
        try:
            sweep = resumed_sweep(args) if args.resume is not None else new_sweep(args)
            if args.dry_run:
                list_runs(sweep)
                return 0
            start = stack.enter_context(opened(sweep, args, stop))
        except UserError as error:
            print(f"sweep.py: error: {one_line(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped before the first run began", file=sys.stderr)
            return stop.exit_code
        print(f"{len(sweep.trials)} runs in {sweep.folder}", flush=True)
        with shown(sweep) as view:
            Driver(sweep, start, stop, view).run()
        with contextlib.suppress(OSError):  # said already
            sweep.write()
    states = [trial.state for trial in sweep.trials]
    print(f"{overall(sweep)}; {sweep.folder / SUMMARY_FILE}")
    if stop.number is not None and set(states) != {"finished"}:
        print(f"go on with: python sweep.py --resume {shlex.quote(str(sweep.folder))}", file=sys.stderr)
        return stop.exit_code
    return 0 if set(states) == {"finished"} else 1


def list_runs(sweep: Sweep) -> None:
    """The commands that would be run."""
    unfinished = [trial for trial in sweep.trials if trial.state != "finished"]
    for trial in unfinished:
        folder = trial.folder(sweep.folder)
        goes_on = (folder / CONFIG_FILE).exists()
        command = ["train.py", "--resume", str(folder)] if goes_on else trial.command(sweep.folder)
        print(f"python {shlex.join(command)}")
    frames = sum(trial.frames - trial.seen.frame for trial in unfinished)
    print(f"{len(unfinished)} runs, {frames:,} frames", file=sys.stderr)


@contextlib.contextmanager
def opened(sweep: Sweep, args: argparse.Namespace, stop: StopRequest) -> Iterator[Callable[[Trial], Any]]:
    """Ray, the signals and the sweep's folder, which nobody else is using. Raises UserError."""
    from running.atomic_files import locked

    with cluster(sweep, args.address) as start, stop, contextlib.ExitStack() as stack:  # Ray's own handlers come first
        new = not sweep.folder.exists()
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
            if args.address is not None:
                check_nodes(sweep.folder)
            stack.enter_context(locked(sweep.folder))
            sweep.write()
        except (OSError, UserError) as error:
            if new:
                shutil.rmtree(sweep.folder, ignore_errors=True)
            if isinstance(error, UserError):
                raise
            raise no_room(args.work_dir, error) from error
        stop.listening = True
        yield start


@contextlib.contextmanager
def shown(sweep: Sweep) -> Iterator[View]:
    if not sys.stdout.isatty():
        yield View(sweep, None)
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield View(sweep, live)


if __name__ == "__main__":
    sys.exit(main())
