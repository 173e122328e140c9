"""Time the program's parts beside the plain baseline of tests/support/oracle.py, in one process.

python benchmark.py update --device cuda --batch_size 128 512; the table shows medians over blocks and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console.arguments import Parser
from console.streams import tolerant_output
from envs.renderer import choose_renderer
from errors import RenderingError, TaskError, UserError

NAMES = ("update", "loop", "replay", "eval", "render", "checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print a table. Return the exit code."""
    args = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py
    try:
        args.renderer = choose_renderer()  # before dm_control is imported
        from benchmarks import contest, parts
        from dmc import resolve_task
        from running.build import choose_device

        args.device = choose_device(getattr(args, "device", None))
        resolve_task(args.env)
    except (UserError, RenderingError, TaskError) as error:
        print(f"benchmark.py: error: {'--env: ' if isinstance(error, TaskError) else ''}{error}", file=sys.stderr)
        return 2
    record: dict[str, Any] = {"machine": contest.machine(args.device, args.renderer), "load_before": os.getloadavg()}
    names = NAMES if args.what == "all" else [args.what]
    record["results"] = [{"benchmark": name, **row} for name in names for row in getattr(parts, f"bench_{name}")(args)]
    record["load_after"] = os.getloadavg()
    print(f"\n{record['machine']}\nload before {record['load_before']}, after {record['load_after']}\n")
    print(table(record["results"]))
    if args.out:
        args.out.write_text(json.dumps(record, indent=2, default=str) + "\n")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0], formatter_class=shown)
    add = parser.add_argument
    add("what", nargs="?", choices=(*NAMES, "all"), default="all", help="each takes minutes")
    add("--device", default=argparse.SUPPRESS, help="cuda, cuda:N or cpu (default: cuda, else cpu)")
    add("--batch_size", type=int, nargs="+", default=[128], help="of update, loop and replay")
    add("--num_skills", type=int, default=0, help="skills in the update, loop and checkpoint benchmarks")
    add("--blocks", type=int, default=5, help="blocks per variant")
    add("--steps", type=int, default=4, help="updates, or steps, in a block")
    add("--env", default="cartpole_swingup", help="task of the loop, eval, render and checkpoint benchmarks")
    add("--out", type=Path, help="write everything measured to this JSON file")
    args = parser.parse_args(argv)
    if min(*args.batch_size, args.blocks, args.steps) < 1:
        parser.error("--batch_size, --blocks and --steps must be at least 1")
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
