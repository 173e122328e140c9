"""Stand-ins for CUDA, so that the checks of benchmarks/gpu_check.py can be rehearsed on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.emulated_cuda import EmulatedGraph, emulate_cuda_graphs

IDLE = {  # functions of torch.cuda, and what they return here
    "empty_cache": None,
    "max_memory_reserved": 0,
    "mem_get_info": (0, 0),
    "memory_allocated": 0,
    "memory_reserved": 0,
    "reset_peak_memory_stats": None,
    "set_sync_debug_mode": None,
}


@contextlib.contextmanager
def cuda_on_the_cpu() -> Iterator[None]:
    """Within the block, emulate CUDA graphs and limits of memory; the functions in IDLE do nothing."""
    with pytest.MonkeyPatch.context() as patch:
        emulated = emulate_cuda_graphs(patch)
        limit = 1.0

        def set_limit(fraction: float) -> None:
            nonlocal limit
            limit = fraction

        @contextlib.contextmanager
        def graph(graph: EmulatedGraph, pool: object) -> Iterator[None]:
            """As on a device, the end of a failed capture raises an error of its own."""
            try:
                if limit < 1:
                    raise torch.OutOfMemoryError("CUDA out of memory (emulated)")
                with emulated.graph(graph, pool):
                    yield
            except torch.OutOfMemoryError:
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

        @contextlib.contextmanager
        def stream(_: object) -> Iterator[None]:
            """Warming up needs memory too."""
            if limit < 1:
                raise torch.OutOfMemoryError("CUDA out of memory (emulated)")
            yield

        def stand_in(result: Any) -> Any:
            return lambda *_: result

        patch.setattr(torch.cuda, "graph", graph)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "set_per_process_memory_fraction", set_limit)
        for name, result in IDLE.items():
            patch.setattr(torch.cuda, name, stand_in(result))
        yield
