"""Time the program's parts beside the plain baseline of tests/support/oracle.py, in one process.

python benchmark.py update --device cuda --batch_size 128 512; the table shows medians over blocks and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from config import check_device
from console.arguments import Parser, integer
from console.packages import check_packages, import_errors_reported
from console.streams import tolerant_output
from envs.renderer import INSTALL_HINT, choose_renderer
from envs.tasks import check_task
from errors import EnvError, RenderingError, RunError, TaskError, UserError, one_line, reason_of
from running.atomic_files import check_file, output_folder, write_file
from running.derivation import make_config

NAMES = ("update", "loop", "replay", "eval", "render", "checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print a table. Return the exit code."""
    args = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py
    try:
        check_packages()
        args.renderer = choose_renderer()  # before dm_control is imported
        with import_errors_reported(INSTALL_HINT):
            from benchmarks import contest, parts
            from dmc import resolve_task
            from running.build import choose_device, out_of_memory_is_an_error, warn_of_cpu
        wanted, args.device = args.device, choose_device(args.device)
        resolve_task(args.env)
        warn_of_cpu(wanted, args.device)
        record: dict[str, Any] = {"machine": contest.machine(args.device, args.renderer)}
        with output_folder(args.out.parent) if args.out else nullcontext(), out_of_memory_is_an_error("that"):
            if args.out:
                check_file(args.out)
            record |= measure(args, parts)
            print(f"\n{record['machine']}\nload before {record['load_before']}, after {record['load_after']}\n")
            print(table(record["results"]))
            if args.out:
                write_file(args.out, (json.dumps(record, indent=2, default=str) + "\n").encode())
    except KeyboardInterrupt:
        print("benchmark.py: stopped", file=sys.stderr)
        return 130
    except (UserError, OSError, EnvError, RenderingError, RunError, TaskError) as error:
        flag = "--env: " if isinstance(error, TaskError) else ""
        print(f"benchmark.py: error: {flag}{one_line(reason_of(error))}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace, parts: ModuleType) -> dict[str, Any]:
    """Return the results of the benchmarks in `parts` that were asked for, and the machine's load before and after."""
    load_before, names = os.getloadavg(), NAMES if args.what == "all" else [args.what]
    results = [{"benchmark": name, **row} for name in names for row in getattr(parts, f"bench_{name}")(args)]
    return {"load_before": load_before, "results": results, "load_after": os.getloadavg()}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="benchmark.py", description=(__doc__ or "").partition("\n")[0])
    add, number = parser.add_argument, dict[str, Any](type=integer, metavar="N")
    add("what", nargs="?", choices=(*NAMES, "all"), default="all", help="each takes minutes (default: all)")
    add("--device", metavar="NAME", help="cuda, cuda:N or cpu (default: cuda, or cpu when there is no CUDA device)")
    add("--batch_size", nargs="+", default=[128], **number, help="of update, loop and replay (default: 128)")
    add("--num_skills", default=0, **number, help="skills in update, loop and checkpoint (default: 0, plain DrQ)")
    add("--blocks", default=5, **number, help="blocks per variant (default: 5)")
    add("--steps", default=4, **number, help="updates, or steps, in a block (default: 4)")
    task = "task of loop, eval, render and checkpoint (default: cartpole_swingup)"
    add("--env", default="cartpole_swingup", metavar="NAME", help=task)
    add("--out", type=Path, metavar="FILE", help="write everything measured to this JSON file (default: write none)")
    args = parser.parse_args(argv)
    if ":" in args.env:
        parser.error(f"--env must be a task of the suite; got {args.env}")
    try:
        check_device(args.device)
        check_task(make_config({"env": args.env}))
    except UserError as error:
        parser.error(str(error))
    if min(*args.batch_size, args.blocks, args.steps) < 1:
        parser.error("--batch_size, --blocks and --steps must be at least 1")
    if args.num_skills < 0 or args.num_skills == 1:
        parser.error("--num_skills must be 0, or 2 or more")
    return args


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    cells = [["benchmark", "case", "variant", "median ms", "range ms", "against the first", "remarks"]]
    for row in rows:
        timing = [f"{row['median_ms']:.2f}", f"{row['low_ms']:.2f} to {row['high_ms']:.2f}", f"{row['ratio']:.2f}x"]
        cells.append([row["benchmark"], row["case"], row["variant"], *timing, row.get("remarks", "")])
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
