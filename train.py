# PYTHON_ARGCOMPLETE_OK (shell completion of flags: docs/running.md)
"""Train DrQ, with DIAYN skills or without, on a DeepMind Control Suite task seen as pixels.

`python train.py --help` lists every flag; docs/outputs.md explains what a run writes. The loop is in running/loop.py.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from config import Config
from console.arguments import UNITS, Parser, add_flags, as_typed, complete
from console.packages import check_packages, import_errors_reported
from console.streams import tolerant_output
from envs.renderer import INSTALL_HINT, choose_renderer
from envs.tasks import check_task
from errors import RenderingError, RunError, UserError, one_line
from running.signals import StopRequest
from running.stored_config import config_from


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, start the run, train. Return the exit code.

    0: the budget is used up. 2: bad input, or a full disk. 1: the run cannot continue. 128 + signal: stopped by SIGINT,
    SIGTERM or SIGHUP, with a checkpoint. Each code but 0 comes with one line that says what to do.
    """
    config = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch: idle threads must not block the renderer's
    with StopRequest() as stop:
        try:
            check_packages()
            if config.track != "none":
                check_packages([config.track], "pip install -r requirements-track.txt, or choose --track none")
            check_task(config)
            renderer = choose_renderer()  # before dm_control is imported
            with import_errors_reported(INSTALL_HINT):
                from running.loop import train
                from running.start import open_run
            run = open_run(config, renderer)
            run.stop, stop.listening = stop, True  # from here on a signal asks the run to stop
        except (UserError, RenderingError, KeyboardInterrupt) as error:
            if stop.number is not None:  # the interrupted import of a C extension raises ImportError
                print("stopped before the run started", file=sys.stderr)
                return stop.exit_code
            return _failed(as_typed(str(error), argv), 2)
        resume = f"resume with: {run.resume_command}"
        try:
            with run.resources:
                train(run)
        except RunError as error:
            return _failed(str(error), 1)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return _failed(f"the disk is full at {error.filename or run.folder}; free space, then {resume}", 2)
            if not str(error.filename).startswith(str(run.folder)):
                raise
            return _failed(f"{error.filename}: {error.strerror}; fix that, then {resume}", 2)
        if run.stopped:
            print(f"stopped at frame {run.frame}, which is saved; {resume}", file=sys.stderr)
            return stop.exit_code
    return 0


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """Return the command line as a Config. Bad input ends the program with one line and exit code 2."""
    parser = Parser(
        prog="train.py",
        description="Train DrQ, with DIAYN skills or without, on a DeepMind Control Suite task seen as pixels.",
        epilog=UNITS,
    )
    add_flags(parser)
    complete(parser)
    given = vars(parser.parse_args(argv))
    try:
        return config_from(given)
    except UserError as error:
        parser.error(as_typed(str(error), argv))


def _failed(message: str, exit_code: int) -> int:
    print(f"train.py: error: {one_line(message)}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
