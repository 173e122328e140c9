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
# a graph, the inputs that it reads, the outputs that it writes, and the parameters whose gradients it writes
Recording = tuple[torch.cuda.CUDAGraph, list[torch.Tensor], Any, list[torch.Tensor]]


class CudaGraphs:
    """Compute `function(*inputs)` by replaying a CUDA graph, recorded at the first call of its kind.

    `inputs` are tensors or tuples of tensors. There is one recording for each function name, `kind`, and shapes and
    dtypes of the inputs; `kind` must differ whenever Python code inside the function branches differently. Recording
    leaves all weights and optimizer states unchanged; only replays count. A replay overwrites the outputs of the
    previous replay of the same recording, so copy outputs that must last.

    All recordings share one memory pool, so that together they need as much memory as the largest of them. A replay may
    then overwrite whatever another recording has allocated. Outputs and gradients are therefore copied, as the last
    part of each graph, to memory outside of the pool; all recordings have the same memory for gradients.

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
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}  # of the newest replay, by parameter
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[..., Outputs], *inputs: Any, kind: Hashable = None) -> Outputs:
        tensors = tree_leaves(inputs)
        key = (function.__name__, kind, tuple((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self._recordings:
            self._recordings[key] = self._record(function, inputs)
        graph, recorded_inputs, outputs, trained = self._recordings[key]
        for recorded, tensor in zip(recorded_inputs, tensors, strict=True):
            recorded.copy_(tensor, non_blocking=True)
        graph.replay()
        for parameter in trained:
            parameter.grad = self._gradients[parameter]
        return outputs

    def _record(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Recording:
        inputs = tree_map(lambda tensor: tensor.detach().clone(), inputs)  # clone() keeps channels_last
        previous = [(parameter, parameter.grad) for parameter in self._parameters]
        outputs = tree_map(torch.empty_like, self._warm_up(function, inputs))
        trained = [parameter for parameter in self._parameters if parameter.grad is not None]
        for parameter in trained:
            if parameter not in self._gradients:
                self._gradients[parameter] = torch.empty_like(parameter)
        for parameter in self._parameters:
            parameter.grad = None  # the recorded backward pass must allocate gradients, not add to these
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._copy_out(function(*inputs), outputs, trained)
        except RuntimeError as error:  # ending a failed capture fails too, and would hide why, such as lack of memory
            raise (error.__context__ if isinstance(error.__context__, RuntimeError) else error) from None
        for parameter, gradient in previous:
            parameter.grad = gradient  # that of another recording, if this one does not compute it
        return graph, tree_leaves(inputs), outputs, trained

    @torch.no_grad()
    def _copy_out(self, results: Any, outputs: Any, trained: list[torch.Tensor]) -> None:
        """Copy a function's results and the gradients that it computed to where they stay."""
        gradients = [parameter.grad for parameter in trained]
        lasting = [self._gradients[parameter] for parameter in trained]
        torch._foreach_copy_(tree_leaves(outputs) + lasting, tree_leaves(results) + gradients)

    @torch.no_grad()
    def _warm_up(self, function: Callable[..., Outputs], inputs: tuple[Any, ...]) -> Outputs:
        """Run the function on a side stream, then restore weights and optimizer states in place. Return its results.

        The gradients that it computes are left in the parameters; the others have none.
        """
        weights = [parameter.clone() for parameter in self._parameters]
        states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in self._optimizers]
        for parameter in self._parameters:
            parameter.grad = None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.enable_grad(), torch.cuda.stream(stream), warnings.catch_warnings():
            # Warns that a capturable optimizer is stepped outside of a capture, which warming up has to do.
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable")
            for _ in range(WARM_UP_RUNS):
                results = function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)
        for optimizer, state in zip(self._optimizers, states, strict=True):
            load_adam_state(optimizer, state)
        return results
