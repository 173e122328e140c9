"""CUDA graphs: record a function of tensors once, then replay all of its kernels with a single launch.

A training step of small networks runs several hundred short kernels, and launching them one by one takes longer than
running them. A graph repeats exactly the recorded kernels on the recorded memory, so random numbers must be inputs of
the function, and the function must not synchronize with the device.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from utils import load_adam_state

WARM_UP_RUNS = 3  # cuDNN, cuBLAS and the optimizers allocate their memory before the recording

Inputs = TypeVar("Inputs", bound=tuple[torch.Tensor, ...])
Outputs = TypeVar("Outputs")


class Launch(Protocol):
    """A way to compute `function(inputs)`: directly (`call`), or from CUDA graphs (`CudaGraphs`).

    `inputs` is a NamedTuple of tensors. `kind` distinguishes the ways that the function can take: it must differ
    whenever Python code inside the function branches differently.
    """

    def __call__(self, function: Callable[[Inputs], Outputs], inputs: Inputs, kind: Hashable = None) -> Outputs: ...


def call(function: Callable[[Inputs], Outputs], inputs: Inputs, kind: Hashable = None) -> Outputs:
    """Call the function directly."""
    return function(inputs)


class Recording(NamedTuple):
    """A recorded graph and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    outputs: Any
    gradients: list[tuple[torch.Tensor, torch.Tensor]]  # parameters and the gradients that the graph writes


class CudaGraphs:
    """Compute `function(inputs)` by replaying a CUDA graph, recorded at the first call of its kind.

    There is one recording for each function name, `kind`, and shapes and dtypes of the inputs. Recording leaves all
    weights and optimizer states unchanged; only replays count. A replay overwrites the outputs of the previous replay
    of the same recording, so copy outputs that must last. Every recording has a memory pool of its own: in a shared one
    a replay may overwrite outputs and gradients of other recordings.

    Args:
        modules, parameters: what the functions read and train; `parameters` are tensors outside of the modules.
        optimizers: what the functions step. They are made capturable.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizers: Iterable[torch.optim.Adam],
        parameters: Iterable[torch.Tensor] = (),
    ) -> None:
        self._parameters = [*(p for module in modules for p in module.parameters()), *parameters]
        self._optimizers = list(optimizers)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
        self._recordings: dict[Hashable, Recording] = {}

    def __call__(self, function: Callable[[Inputs], Outputs], inputs: Inputs, kind: Hashable = None) -> Outputs:
        key = (function.__name__, kind, tuple((tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._recordings:
            self._recordings[key] = self._record(function, inputs)
        recording = self._recordings[key]
        for recorded, tensor in zip(recording.inputs, inputs, strict=True):
            recorded.copy_(tensor, non_blocking=True)
        recording.graph.replay()
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient  # the gradients of the newest replay are the ones to inspect
        return recording.outputs

    def _record(self, function: Callable[[Inputs], Outputs], inputs: Inputs) -> Recording:
        inputs = type(inputs)(*(tensor.detach().clone() for tensor in inputs))  # clone() keeps channels_last
        self._warm_up(function, inputs)
        previous = [(parameter, parameter.grad) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None  # the recorded backward pass must allocate gradients of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(inputs)
        gradients = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        for parameter, gradient in previous:
            if parameter.grad is None:  # this graph does not compute it: keep the one of another graph
                parameter.grad = gradient
        return Recording(graph, inputs, outputs, gradients)

    @torch.no_grad()
    def _warm_up(self, function: Callable[[Inputs], Outputs], inputs: Inputs) -> None:
        """Run the function on a side stream, then restore weights and optimizer states in place."""
        weights = [parameter.clone() for parameter in self._parameters]
        states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in self._optimizers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.enable_grad(), torch.cuda.stream(stream), warnings.catch_warnings():
            # Warns that a capturable optimizer is stepped outside of a capture, which warming up has to do.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable")
            for _ in range(WARM_UP_RUNS):
                function(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)
        for optimizer, state in zip(self._optimizers, states, strict=True):
            load_adam_state(optimizer, state)
