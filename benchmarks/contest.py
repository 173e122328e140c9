"""Time variants of the same work side by side, and describe the machine."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from envs.renderer import RendererInfo
from utils import keep_freed_memory

Row = dict[str, Any]


def contest(
    args: argparse.Namespace, case: str, variants: Mapping[str, Callable[[], object]], steps: int | None = None
) -> list[Row]:
    """Time the variants in alternating blocks, so that a drift of the machine's speed affects all of them.

    The first block of each is a warm-up and not counted. Returns `rows` of the times of a step.
    """
    steps = steps or args.steps
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tqdm(total=(args.blocks + 1) * len(variants), desc=case, leave=False, disable=None) as bar:
        for block in range(args.blocks + 1):
            for name, run in variants.items():
                # The baseline gets glibc's default limit (at its highest); keeping more is one of our optimizations.
                keep_freed_memory(32 << 20 if name.startswith("baseline") else 1 << 30)
                elapsed = milliseconds(run, args.device, steps)
                if block:
                    times[name].append(elapsed)
                bar.update()
    return rows(case, times)


def milliseconds(work: Callable[[], object], device: str, steps: int = 1) -> float:
    """Return how long a step of the work takes, until the device is done."""

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    started = now()
    for _ in range(steps):
        work()
    return (now() - started) / steps * 1e3


def rows(case: str, times: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return a row for each variant: median and range of its times, and how the first variant's median compares."""
    table: list[Row] = []
    for name, values in times.items():
        median = statistics.median(values)
        ratio = table[0]["median_ms"] / median if table else 1.0
        timing = {"median_ms": median, "low_ms": min(values), "high_ms": max(values), "ratio": ratio}
        table.append({"case": case, "variant": name, **timing})
    return table


def machine(device: str, renderer: RendererInfo) -> Row:
    """Return what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else found[1] if found else "CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "renderer": f"{renderer.backend}, {renderer.name}",
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        **{package: version(package) for package in ("torch", "mujoco", "dm_control", "numpy")},
    }
