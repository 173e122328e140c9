# PYTHON_ARGCOMPLETE_OK (shells complete flags: docs/running.md)
"""Train every combination of the values given for train.py's flags, several runs at a time, on Ray.

python sweep.py --env cartpole_swingup walker_walk --seed 1 2 3 --num_skills 0 10; docs/sweeps.md explains the rest.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from config import Role, check_value, flags_with
from console.arguments import UNITS, Parser, add_flags, as_typed, complete, integer
from console.numbers import counted
from console.streams import tolerant_output
from errors import UserError, one_line
from running.names import check_name
from running.signals import StopRequest
from sweeping.plan import new_sweep
from sweeping.record import OPTIONS, Sweep, check_option, resumed_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, check, run. Return the exit code.

    0: every run is finished. 1: some failed. 2: bad input. 128 + signal: stopped by it, with a checkpoint of every run.
    """
    stop = StopRequest("every run writes a checkpoint")
    try:
        args = parse_args(argv)
        if args.resume is not None:
            sweep = resumed_sweep(args.resume, args.options)
        else:
            name = args.sweep_name or f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S}"
            sweep = new_sweep(args.values, args.work_dir / name, args.options)
        if args.dry_run:
            list_runs(sweep)
            return 0
        run_on_ray(sweep, args.address, stop)
    except UserError as error:
        print(f"sweep.py: error: {one_line(as_typed(str(error), argv))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if stop.listening:  # Ray is shutting down
            raise
        print("stopped before the first run began", file=sys.stderr)
        return stop.exit_code
    if all(trial.state == "finished" for trial in sweep.trials):
        return 0
    if stop.number is None:
        return 1
    print(f"resume with: python sweep.py --resume {shlex.quote(str(sweep.folder))}", file=sys.stderr)
    return stop.exit_code


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line: the sweep's own flags, train.py's as lists in `values`, given OPTIONS in `options`.

    Raises UserError if the sweep's own flags are out of range or contradict each other.
    """
    parser = Parser(prog="sweep.py", description=(__doc__ or "").partition("\n")[0], epilog=UNITS)
    add = parser.add_argument_group("sweep").add_argument
    add("--dry_run", action="store_true", help="list the runs, as commands, and start none")
    add("--sweep_name", metavar="NAME", help="name of the sweep's folder (default: sweep_<date>_<time>)")
    add(
        "--work_dir",
        type=Path,
        default="runs",
        metavar="FOLDER",
        help="folder in which that folder is made (default: runs)",
    )
    add("--resume", type=Path, metavar="FOLDER", help="resume the unfinished runs of this sweep")
    add(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster; auto: this machine's (default: Ray on this machine alone)",
    )
    add("--cpus_per_run", type=float, metavar="X", help="cores, and threads, of a run (default: 1)")
    add(
        "--gpus_per_run",
        type=float,
        metavar="X",
        help="GPUs of a run, or a fraction (default: 1 if there are any, else 0)",
    )
    add("--memory_per_run", type=float, metavar="GB", help="memory reserved for a run (default: replay buffer + 2)")
    add("--max_failures", type=integer, metavar="N", help="times that a failed run is resumed (default: 3)")
    own = {action.dest for action in parser._actions}
    add_flags(parser, several=True, without=flags_with(Role.PLACED_BY_SWEEP))
    complete(parser)
    args = parser.parse_args(argv)
    args.values = {name: given for name, given in vars(args).items() if name not in own}
    args.options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    for name, value in args.options.items():
        check_option(name, value)
    for name in ("work_dir", "resume"):
        check_value(name, None if getattr(args, name) is None else str(getattr(args, name)))
    check_name("sweep_name", args.sweep_name)
    if args.resume is not None and (args.values or args.sweep_name):
        name = next(iter(args.values), "sweep_name")
        raise UserError(f"--{name}: a resumed sweep keeps its runs; leave the flag out, or start a new sweep")
    return args


def list_runs(sweep: Sweep) -> None:
    """Print the commands of all unfinished runs."""
    unfinished = [trial for trial in sweep.trials if trial.state != "finished"]
    for trial in unfinished:
        print(f"python {shlex.join(trial.command(sweep.folder))}")
    frames = sum(trial.frames - trial.progress.frame for trial in unfinished)
    print(f"{counted(len(unfinished), 'run')}, {frames:,} frames", file=sys.stderr)


def run_on_ray(sweep: Sweep, address: str | None, stop: StopRequest) -> None:
    """Import what needs Ray and Rich, and run the sweep. Raises UserError.

    Ray reads its settings from environment variables when it is imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a run without a GPU gets its variables from us
    if address is not None and Path("~/.ray/auth_token").expanduser().exists():  # `ray start` made it and asks for it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from sweeping.driver import drive
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"a sweep needs {package}; pip install -r requirements-sweep.txt") from None
    drive(sweep, address, stop)


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
