"""Time variants of the same work side by side, and describe the machine."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from envs.renderer import RendererInfo
from utils import keep_freed_memory

Row = dict[str, Any]
Variants = Mapping[str, Callable[[], object]]


def contest(args: argparse.Namespace, case: str, variants: Variants, steps: int | None = None) -> list[Row]:
    """Time the variants in alternating blocks, so that a drift of the machine's speed affects all of them.

    The first block of each is a warm-up and not counted. Returns a row for each variant: median, lowest and highest
    time of a step over the blocks, in milliseconds, and `ratio`, the first variant's median over its own.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tqdm(total=(args.blocks + 1) * len(variants), desc=case, leave=False, disable=None) as bar:
        for block in range(args.blocks + 1):
            for name, run in variants.items():
                # The baseline gets glibc's default limit (at its highest); keeping more is one of our optimizations.
                keep_freed_memory(32 << 20 if name.startswith("baseline") else 1 << 30)
                synchronize(args.device)
                started = time.perf_counter()
                for _ in range(steps or args.steps):
                    run()
                synchronize(args.device)
                if block:
                    times[name].append((time.perf_counter() - started) / (steps or args.steps) * 1e3)
                bar.update()
    first = statistics.median(next(iter(times.values())))
    return [{"case": case, "variant": name, **timing(values, first)} for name, values in times.items()]


def timing(values: list[float], first: float) -> Row:
    """Return median and range of times, and how `first` compares with the median."""
    median = statistics.median(values)
    return {"median_ms": median, "low_ms": min(values), "high_ms": max(values), "ratio": first / median}


def synchronize(device: str) -> None:
    """Wait for a CUDA device."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object]) -> float:
    """Return how long the work takes once."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def machine(device: str, renderer: RendererInfo) -> Row:
    """Return what the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "renderer": f"{renderer.backend}, {renderer.name}",
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        **{package: version(package) for package in ("torch", "mujoco", "dm_control", "numpy")},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
