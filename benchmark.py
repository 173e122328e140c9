"""Time the program's parts beside the plain baseline of tests/support/oracle.py, in one process.

python benchmark.py update|loop|replay|eval|render|checkpoint|all [--device cuda] [--batch_size 128 512] [--out FILE]

Variants take turns in blocks; the table shows medians over blocks and their range. A block ends when the device is
done. Sampling is included, and passing the metrics to the logger.
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
from envs.renderer import choose_renderer
from errors import RenderingError, TaskError, UserError

NAMES = ("update", "loop", "replay", "eval", "render", "checkpoint")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print a table. Return the exit code."""
    args = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py
    try:
        args.renderer = choose_renderer()  # before dm_control is imported
        from benchmarks import contest, parts, update
        from dmc import resolve_task
        from running.build import choose_device

        args.device = choose_device(args.device)
        resolve_task(args.env)
    except (UserError, RenderingError) as error:
        return _failed(str(error))
    except TaskError as error:
        return _failed(f"--env: {error}")
    record: dict[str, Any] = {"machine": contest.machine(args.device, args.renderer), "load_before": os.getloadavg()}
    record["results"] = []
    benchmarks = {"update": update.bench_update, **{name: getattr(parts, f"bench_{name}") for name in NAMES[1:]}}
    for name in NAMES if args.what == "all" else [args.what]:
        for row in benchmarks[name](argparse.Namespace(**vars(args))):  # a copy, which it may change
            record["results"].append({"benchmark": name, **row})
    record["load_after"] = os.getloadavg()
    print(f"\n{record['machine']}\nload before {record['load_before']}, after {record['load_after']}\n")
    print(table(record["results"]))
    if args.out:
        args.out.write_text(json.dumps(record, indent=2, default=str) + "\n")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="benchmark.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=(*NAMES, "all"), default="all", help="each takes minutes")
    parser.add_argument("--device", help="cuda, cuda:N or cpu; without it CUDA, else the CPU")
    parser.add_argument("--batch_size", type=positive, nargs="+", default=[128], help="of update, loop and replay")
    parser.add_argument("--num_skills", type=int, default=0, help="skills in the update and loop benchmarks")
    parser.add_argument("--blocks", type=positive, default=5, help="blocks per variant")
    parser.add_argument("--steps", type=positive, default=4, help="updates, or steps, in a block")
    parser.add_argument("--env", default="cartpole_swingup", help="task of the loop, eval and render benchmarks")
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    args = parser.parse_args(argv)
    args.action_dim = 6  # of the update and replay benchmarks
    return args


def positive(text: str) -> int:
    """Parse an integer above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on; got {text!r}")
    return int(text)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    cells = [["benchmark", "case", "variant", "median ms", "range ms", "against the first", "remarks"]]
    for row in rows:
        timing = [f"{row['median_ms']:.2f}", f"{row['low_ms']:.2f} to {row['high_ms']:.2f}", f"{row['ratio']:.2f}x"]
        cells.append([row["benchmark"], row["case"], row["variant"], *timing, row.get("remarks", "")])
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def _failed(message: str) -> int:
    print(f"benchmark.py: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
