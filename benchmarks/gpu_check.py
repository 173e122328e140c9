"""Accept or refuse a CUDA machine: check everything that needs one in less than nine minutes, and say yes or no.

python -m benchmarks.gpu_check --out gpu.json

Prints a line for each check. Exit code 0: all passed. 1: a check failed. 2: bad input, or no CUDA device. --rehearse
runs the same code at small sizes on the CPU, with emulated CUDA graphs: times, memory and returns then say nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_numbers, gpu_runs, gpu_speed
from benchmarks.gpu_setup import FULL, REHEARSAL, Measured, Setup
from console.arguments import Parser
from console.streams import tolerant_output
from errors import one_line
from running.build import choose_device
from tests.support.rehearsal import cuda_on_the_cpu

MODULES = (gpu_numbers, gpu_runs, gpu_speed)
LONGEST_REASON = 400  # characters
KEPT_OUTPUT = 4000  # characters of a failed check's output in the report
REHEARSAL_SECONDS = 1800  # of each check; only one that hangs takes as long


class Check(NamedTuple):
    """A check and the seconds that it may take. What it leaves of them, the checks after it may use."""

    function: Callable[[Setup], Measured]
    seconds: int

    @property
    def name(self) -> str:
        return self.function.__name__


CHECKS = (
    Check(gpu_speed.machine, 45),  # importing everything included
    Check(gpu_numbers.graphs, 80),
    Check(gpu_numbers.gradients, 20),
    Check(gpu_numbers.waits, 22),
    Check(gpu_numbers.augmentations, 20),
    Check(gpu_numbers.evaluation_rows, 12),
    Check(gpu_numbers.out_of_memory, 12),
    Check(gpu_numbers.ring, 30),
    Check(gpu_runs.resume, 70),
    Check(gpu_runs.evaluate, 20),
    Check(gpu_speed.memory, 20),
    Check(gpu_speed.speed, 60),
    Check(gpu_speed.overlap, 16),
    Check(gpu_runs.learning, 105),  # ends by itself; last, so that it has all the time that is left
)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run the checks, report. Return the exit code."""
    args = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in train.py; read where the checks run
    if not (args.rehearse or torch.cuda.is_available()):
        print("gpu_check: error: there is no CUDA device; --rehearse runs the checks on the CPU", file=sys.stderr)
        return 2
    try:
        report = run_checks([check for check in CHECKS if args.only is None or check.name in args.only], args)
    except OSError as error:
        print(f"gpu_check: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    failed = [name for name, result in report["checks"].items() if not result["ok"]]
    total, seconds = len(report["checks"]), report["seconds"]
    what = "rehearsal on the CPU, " if args.rehearse else ""
    if failed:
        print(f"no: {what}{len(failed)} of {total} checks failed in {seconds:.0f} s: {', '.join(failed)}")
    else:
        print(f"yes: {what}{total} of {len(CHECKS)} checks were run and passed in {seconds:.0f} s")
    return 1 if failed else 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"checks to run: {', '.join(names)}")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU, at small sizes")
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file, after each check")
    return parser.parse_args(argv)


def run_checks(checks: Sequence[Check], args: argparse.Namespace) -> dict[str, Any]:
    """Run the checks one after the other, print a line for each, and return the report."""
    started = time.time()
    report: dict[str, Any] = {"rehearsal": args.rehearse, "ok": None, "seconds": 0.0, "checks": {}}
    write_report(args.out, report)
    ends = started
    with tempfile.TemporaryDirectory() as scratch:
        for check in checks:
            began = time.time()
            ends += REHEARSAL_SECONDS if args.rehearse else check.seconds
            setup = dataclasses.replace(REHEARSAL if args.rehearse else FULL, ends=ends, scratch=Path(scratch))
            result = {**run_check(check, setup), "seconds": time.time() - began}
            report["checks"][check.name] = result
            verdict = "ok" if result["ok"] else "FAILED"
            print(f"{verdict:7}{check.name:16}{result['seconds']:5.0f} s  {result['reason']}".rstrip(), flush=True)
            report["seconds"] = time.time() - started
            write_report(args.out, report)
    report["ok"] = all(result["ok"] for result in report["checks"].values())
    write_report(args.out, report)
    return report


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1, default=str) + "\n")


def run_check(check: Check, setup: Setup) -> dict[str, Any]:
    """Run a check in a process of its own, which an error of the device or a hang cannot outlast."""
    answer, log = setup.scratch / f"{check.name}.json", setup.scratch / f"{check.name}.log"
    context = multiprocessing.get_context("forkserver")  # a process that has imported everything, and not used CUDA
    context.set_forkserver_preload([module.__name__ for module in MODULES])
    process = context.Process(target=child, args=(check.function, setup, answer, log))
    process.start()
    assert process.pid is not None
    process.join(max(1.0, setup.ends - time.time()))
    late = process.is_alive()
    process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started
    process.join()
    output = log.read_text(errors="replace") if log.exists() else ""
    if answer.exists() and not late:
        result = json.loads(answer.read_text())
    else:
        reason = "it took too long" if late else f"the process ended with code {process.exitcode}"
        result = {"ok": False, "reason": f"{reason}: {one_line(output.strip().rpartition(chr(10))[2])}"}
    return result if result["ok"] else {**result, "output": output[-KEPT_OUTPUT:]}


def child(function: Callable[[Setup], Measured], setup: Setup, answer: Path, log: Path) -> None:
    """Run a check in this process and write the result to `answer`, what it prints to `log`."""
    os.setsid()
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    try:
        choose_device(setup.device)  # sets TF32, as in a run
        with cuda_on_the_cpu() if setup.device == "cpu" else nullcontext():
            result = {"ok": True, "reason": "", "measured": function(setup)}
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        result = {"ok": False, "reason": one_line(reason)[:LONGEST_REASON]}
    answer.write_text(json.dumps(result, default=str))


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
