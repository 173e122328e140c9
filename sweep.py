# PYTHON_ARGCOMPLETE_OK (shells complete flags: docs/running.md)
"""Train every combination of the values given for train.py's flags, several runs at a time, on Ray.

python sweep.py --env cartpole_swingup walker_walk --seed 1 2 3 --num_skills 0 10
python sweep.py --resume runs/<sweep>

Each run is a process of its own and equals train.py with the same flags. The sweep's folder holds the runs,
`sweep.json` (the sweep's state), `summary.csv` (a row for each run) and `logs/` (the output of each attempt).
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from config import Role, check_name, flags_with
from console.arguments import UNITS, Parser, add_flags, complete
from errors import UserError, one_line
from running.signals import StopRequest
from running.stored_config import CONFIG_FILE
from sweeping.plan import new_sweep
from sweeping.record import OPTIONS, Sweep, resumed_sweep

if TYPE_CHECKING:
    from sweeping.driver import Driver

DESCRIPTION = "Train every combination of the values given for train.py's flags, several runs at a time, on Ray."
INSTALL_HINT = "pip install -r requirements-sweep.txt"
RAY_TOKEN = Path("~/.ray/auth_token")  # written by the first Ray on this machine


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line: the sweep's own flags, train.py's as lists in `values`, given OPTIONS in `options`.

    Bad input ends the program with one line and exit code 2.
    """
    parser = Parser(prog="sweep.py", description=DESCRIPTION, epilog=UNITS)
    own = parser.add_argument_group("sweep")
    own.add_argument("--dry_run", action="store_true", help="list the runs, as commands, and start none")
    own.add_argument("--sweep_name", metavar="NAME", help="name of the sweep's folder (default: sweep_<date>_<time>)")
    own.add_argument(
        "--work_dir", type=Path, default="runs", help="folder in which that folder is made (default: runs)"
    )
    own.add_argument("--resume", type=Path, metavar="FOLDER", help="resume the unfinished runs of this sweep")
    own.add_argument(
        "--address", help="a running Ray cluster (auto: this machine's); default: Ray on this machine alone"
    )
    own.add_argument("--cpus_per_run", type=float, metavar="X", help="cores, and threads, of a run (default: 1)")
    own.add_argument(
        "--gpus_per_run",
        type=float,
        metavar="X",
        help="GPUs of a run, or a fraction of one (default: 1 if there are GPUs, else 0)",
    )
    own.add_argument(
        "--memory_per_run", type=float, metavar="GB", help="memory reserved for a run (default: replay buffer + 2)"
    )
    own.add_argument("--max_failures", type=int, metavar="N", help="times that a failed run is resumed (default: 3)")
    taken = {action.dest for action in parser._actions}
    add_flags(parser, several=True, without=flags_with(Role.PLACED_BY_SWEEP))
    complete(parser)
    args = parser.parse_args(argv)
    args.values = {name: given for name, given in vars(args).items() if name not in taken}
    args.options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    try:
        check_args(args)
    except UserError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError if the sweep's own flags are out of range or contradict each other."""
    for name, value in args.options.items():
        if not OPTIONS[name] <= value < math.inf:
            raise UserError(f"--{name} must be at least {OPTIONS[name]}; got {value}")
    gpus = args.gpus_per_run or 0
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus_per_run must be whole above 1; got {gpus}")
    check_name("sweep_name", args.sweep_name)
    if args.resume is not None and (args.values or args.sweep_name):
        name = next(iter(args.values), "sweep_name")
        raise UserError(f"--{name}: a resumed sweep keeps its runs; leave the flag out, or start a new sweep")


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, check, run. Return the exit code.

    0: every run is finished. 1: some failed. 2: bad input. 128 + signal: stopped by it, with a checkpoint of every run.
    """
    args = parse_args(argv)
    stop = StopRequest("every run writes a checkpoint")
    with ExitStack() as stack:
        try:
            sweep = requested_sweep(args)
            if args.dry_run:
                list_runs(sweep)
                return 0
            driver = stack.enter_context(open_driver(sweep, args.address, stop))
        except UserError as error:
            print(f"sweep.py: error: {one_line(str(error))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped before the first run began", file=sys.stderr)
            return stop.exit_code
        print(f"{len(sweep.trials)} runs in {sweep.folder}", flush=True)
        driver.run()
    if all(trial.state == "finished" for trial in sweep.trials):
        return 0
    if stop.number is None:
        return 1
    print(f"resume with: python sweep.py --resume {shlex.quote(str(sweep.folder))}", file=sys.stderr)
    return stop.exit_code


def requested_sweep(args: argparse.Namespace) -> Sweep:
    """Return the new or resumed sweep of the command line. Raises UserError."""
    if args.resume is not None:
        return resumed_sweep(args.resume, args.options)
    name = args.sweep_name or f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return new_sweep(args.values, args.work_dir / name, args.options)


def list_runs(sweep: Sweep) -> None:
    """Print the commands of all unfinished runs."""
    unfinished = [trial for trial in sweep.trials if trial.state != "finished"]
    for trial in unfinished:
        folder = trial.folder(sweep.folder)
        begun = (folder / CONFIG_FILE).exists()
        command = ["train.py", "--resume", str(folder)] if begun else trial.command(sweep.folder)
        print(f"python {shlex.join(command)}")
    frames = sum(trial.frames - trial.progress.frame for trial in unfinished)
    print(f"{len(unfinished)} runs, {frames:,} frames", file=sys.stderr)


def open_driver(sweep: Sweep, address: str | None, stop: StopRequest) -> AbstractContextManager[Driver]:
    """Import what needs Ray and Rich, and open the sweep's driver. Raises UserError.

    Ray reads its settings from environment variables when it is imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a run without a GPU gets its variables from us
    if address is not None and RAY_TOKEN.expanduser().exists():  # a cluster started by `ray start` asks for it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from sweeping import driver
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"a sweep needs {package}; {INSTALL_HINT}") from None
    return driver.open_driver(sweep, address, stop)


if __name__ == "__main__":
    sys.exit(main())
