"""CUDA graphs emulated on the CPU, so that recording and replaying can be tested without a GPU.

A capture runs the function and records its ATen operations with the memory that they read and write; a replay repeats
these operations on that memory. So the emulation freezes what a real graph freezes: addresses, Python branches and
scalars. As in a real capture, nothing counts as computed until the first replay: weights are restored and outputs are
filled with NaN. Of a shared memory pool it shows the worst: a replay fills everything that other captures have
allocated there with NaN. The emulation does not show anything about streams and kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Tape(TorchDispatchMode):
    """Records every ATen operation, and what the tensors that it writes held before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []  # function, args, kwargs, outputs
        self.overwritten: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by address: tensor, earlier value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            self.overwritten.setdefault(tensor.data_ptr(), (tensor.detach(), tensor.detach().clone()))
        outputs = func(*args, **kwargs)
        self.operations.append((func, *(_same_memory(value) for value in (args, kwargs, outputs))))
        return outputs


class EmulatedGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.allocated: list[torch.Tensor] = []  # by the capture
        self.sharing: list[EmulatedGraph] = []  # the graphs of its memory pool

    @torch.no_grad()
    def replay(self) -> None:
        for graph in self.sharing:
            if graph is not self:
                _poison(graph.allocated)
        for func, args, kwargs, outputs in self.tape.operations:
            for recorded, computed in zip(_tensors(outputs), _tensors(func(*args, **kwargs)), strict=True):
                if recorded.data_ptr() != computed.data_ptr():
                    recorded.copy_(computed)


class EmulatedCuda:
    """Counts the captures, and knows which of them share a memory pool."""

    def __init__(self) -> None:
        self.captures = 0
        self._pools: dict[object, list[EmulatedGraph]] = {}

    @contextlib.contextmanager
    def graph(self, graph: EmulatedGraph, pool: object = None) -> Iterator[None]:
        self.captures += 1
        with graph.tape:
            yield
        graph.allocated = self._undo(graph.tape)
        graph.sharing = self._pools.setdefault(graph if pool is None else pool, [])
        graph.sharing.append(graph)

    @staticmethod
    @torch.no_grad()
    def _undo(tape: Tape) -> list[torch.Tensor]:
        """Restore all memory that the capture wrote, and fill what it allocated, which it returns, with NaN."""
        for tensor, before in reversed(tape.overwritten.values()):
            tensor.copy_(before)
        existing: set[int] = set()
        allocated: set[int] = set()
        tensors: list[torch.Tensor] = []
        for _, args, kwargs, outputs in tape.operations:
            existing |= {_storage(tensor) for tensor in _tensors((args, kwargs))} - allocated
            for tensor in _tensors(outputs):
                if _storage(tensor) not in existing:
                    allocated.add(_storage(tensor))
                    tensors.append(tensor)
        _poison(tensors)
        return tensors


class EmulatedStream:
    """Stands in for `torch.cuda.Stream`: everything runs in order anyway."""

    def wait_stream(self, other: EmulatedStream) -> None:
        pass


def emulate_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> EmulatedCuda:
    """Let `CudaGraphs` record and replay on the CPU."""
    emulated = EmulatedCuda()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", EmulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", emulated.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", EmulatedStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", EmulatedStream)
    return emulated


def _poison(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))


def _same_memory(values: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach(), values)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that an ATen operation writes, by its schema."""
    arguments = func._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    changed = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([given[name] for name in changed if name in given])
