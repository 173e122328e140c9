"""Write one HTML page that shows runs: settings, learning curves, skills with videos, and what was not measured.

python report.py RUN [RUN ...] [--evaluation FOLDER ...] [--out FILE.html]

Reads the files of runs, whether finished, running or killed, and is a single file that needs no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from console.arguments import Parser
from console.packages import check_packages
from console.streams import tolerant_output
from errors import UserError, one_line, reason_of
from running.stored_config import check_folders

PACKAGES = ("numpy", "pandas", "scipy", "matplotlib", "jinja2")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read runs, write the page. Return the exit code: 2 for bad input, 130 for Ctrl-C."""
    parser = Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="a run, or a folder with runs in it")
    what = "also show what evaluate.py wrote to this folder, best with --controls and --refit; may be repeated"
    add("--evaluation", type=Path, metavar="FOLDER", action="append", default=[], help=what)
    add("--out", type=Path, metavar="FILE.html", help="default: reports/<task>_<run>.html; a report there is replaced")
    args = parser.parse_args(argv)
    try:
        check_packages(PACKAGES)
        check_folders(args.runs)
        from evaluation.report import write_report

        write_report(args.runs, args.evaluation, args.out)
    except (UserError, OSError, ValueError) as error:
        print(f"report.py: error: {one_line(reason_of(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("report.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
