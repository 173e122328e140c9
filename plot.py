"""Plot learning curves from the CSV files of runs, whether finished, running or killed: one figure for each task.

python plot.py runs/cartpole_swingup [MORE ...] [--out plots] [--reference published.csv]; docs/outputs.md explains
what is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from console.arguments import Parser
from console.packages import check_packages
from console.streams import tolerant_output
from errors import UserError, one_line, reason_of
from running.stored_config import check_folders

PACKAGES = ("numpy", "pandas", "scipy", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read runs, draw. Return the exit code: 2 for bad input, 130 for Ctrl-C."""
    parser = Parser(prog="plot.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_OR_FOLDER", help="a run, or a folder with runs in it")
    add("--out", type=Path, default=Path("plots"), metavar="FOLDER", help="folder for the figures (default: plots)")
    columns = "env, seed, step (frames), episode_reward"
    add("--reference", type=Path, metavar="CSV", help=f"published curves to draw as a band: columns {columns}")
    controls = "folder of evaluate.py --controls: levels of random and untrained actions"
    add("--evaluation", type=Path, metavar="FOLDER", help=controls)
    args = parser.parse_args(argv)
    try:
        check_packages(PACKAGES)
        check_folders(args.runs)
        from evaluation.panels import plot_runs

        plot_runs(args.runs, args.out, args.reference, args.evaluation)
    except (UserError, OSError, ValueError) as error:
        print(f"plot.py: error: {one_line(reason_of(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plot.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
