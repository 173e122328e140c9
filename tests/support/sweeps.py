"""Sweeps for tests, planned as sweep.py plans them and not started."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sweep
from config import Config
from sweeping.plan import plan
from sweeping.record import Sweep, Trial


def planned(line: str) -> list[tuple[Trial, Config]]:
    """Return the plan for a command line of sweep.py."""
    return plan(sweep.parse_args(shlex.split(line)).values)


def sweep_of_seeds(folder: Path, seeds: Sequence[int] = (1, 2), device: str | None = None, **options: Any) -> Sweep:
    """Return a sweep with a run for each seed."""
    line = f"--seed {' '.join(map(str, seeds))} {f'--device {device}' if device else ''}"
    return Sweep(folder, [trial for trial, _ in planned(line)], **{"needs_memory": 1.0, "max_failures": 1, **options})
