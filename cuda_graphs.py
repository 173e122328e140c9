"""CUDA graphs: record a function of tensors once, then replay all of its kernels with a single launch.

A training step of small networks runs several hundred short kernels, and launching them one by one takes longer than
running them. A graph repeats exactly the recorded kernels on the recorded memory, so random numbers must be inputs of
the function, and the function must not synchronize with the device.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

from utils import load_adam_state

WARM_UP_RUNS = 3  # cuDNN, cuBLAS and the optimizers allocate their memory before the recording

Outputs = TypeVar("Outputs")
# a graph, the inputs that it reads, the outputs that it writes, and parameters with the gradients that it writes
Recording = tuple[torch.cuda.CUDAGraph, list[torch.Tensor], Any, list[tuple[torch.Tensor, torch.Tensor]]]


class CudaGraphs:
    """Compute `function(*inputs)` by replaying a CUDA graph, recorded at the first call of its kind.

    `inputs` are tensors or tuples of tensors. There is one recording for each function name, `kind`, and shapes and
    dtypes of the inputs; `kind` must differ whenever Python code inside the function branches differently. Recording
    leaves all weights and optimizer states unchanged; only replays count. A replay overwrites the outputs of the
    previous replay of the same recording, so copy outputs that must last. Every recording has a memory pool of its own:
    in a shared one a replay may overwrite outputs and gradients of other recordings.

    Args:
        parameters: what the functions read and train.
        optimizers: what the functions step. They are made capturable.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], optimizers: Iterable[torch.optim.Adam]) -> None:
        self._parameters, self._optimizers = list(parameters), list(optimizers)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
        self._recordings: dict[Hashable, Recording] = {}

    def __call__(self, function: Callable[..., Outputs], *inputs: Any, kind: Hashable = None) -> Outputs:
        tensors = tree_leaves(inputs)
        key = (function.__name__, kind, tuple((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self._recordings:
            self._recordings[key] = self._record(function, inputs)
        graph, recorded_inputs, outputs, gradients = self._recordings[key]
        for recorded, tensor in zip(recorded_inputs, tensors, strict=True):
            recorded.copy_(tensor, non_blocking=True)
        graph.replay()
        for parameter, gradient in gradients:
            parameter.grad = gradient  # the gradients of the newest replay are the ones to inspect
        return outputs

    def _record(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Recording:
        inputs = tree_map(lambda tensor: tensor.detach().clone(), inputs)  # clone() keeps channels_last
        self._warm_up(function, inputs)
        previous = [(parameter, parameter.grad) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None  # the recorded backward pass must allocate gradients of its own
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = function(*inputs)
        except RuntimeError as error:  # ending a failed capture fails too, and would hide why, such as lack of memory
            raise (error.__context__ if isinstance(error.__context__, RuntimeError) else error) from None
        gradients = [(parameter, parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        for parameter, gradient in previous:
            if parameter.grad is None:  # this graph does not compute it: keep the one of another graph
                parameter.grad = gradient
        return graph, tree_leaves(inputs), outputs, gradients

    @torch.no_grad()
    def _warm_up(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        """Run the function on a side stream, then restore weights and optimizer states in place."""
        weights = [parameter.clone() for parameter in self._parameters]
        states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in self._optimizers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.enable_grad(), torch.cuda.stream(stream), warnings.catch_warnings():
            # Warns that a capturable optimizer is stepped outside of a capture, which warming up has to do.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable")
            for _ in range(WARM_UP_RUNS):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)
        for optimizer, state in zip(self._optimizers, states, strict=True):
            load_adam_state(optimizer, state)
