"""CUDA graphs: a function of tensors is recorded once and then replayed as one launch.

An update of DrQ is several hundred small kernels; launching them one by one takes longer than running them. Nothing
here knows about reinforcement learning, and nothing random happens inside a graph: random numbers are inputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

WARM_UP_RUNS = 3  # lets cuDNN, cuBLAS and the optimizers allocate what they need before recording
Tensors = dict[str, torch.Tensor]


class Recording(NamedTuple):
    """A graph, with what it reads and what it writes: outputs, and gradients of its own by parameter."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    outputs: Tensors
    gradients: list[tuple[torch.Tensor, torch.Tensor]]


class Graphed:
    """`function(**tensors) -> dict of tensors`, replayed from CUDA graphs, one for each shape of input and `kind`.

    Recording leaves every weight and optimizer as it was; the replay that follows is the first to count. The outputs
    are overwritten by the next replay: copy what is to last.

    Args:
        function: the work; it reads tensors, changes `modules` through `optimizers`, and waits for nothing.
        kind: which of several ways the function goes now, where Python decides that inside it.
        modules, optimizers: what the function changes; the optimizers capturable. `extra` holds trained tensors outside
            any module.
    """

    def __init__(
        self,
        function: Callable[..., Tensors],
        *,
        kind: Callable[[], Hashable] = lambda: None,
        modules: Sequence[nn.Module] = (),
        optimizers: Sequence[torch.optim.Optimizer] = (),
        extra: Sequence[torch.Tensor] = (),
    ) -> None:
        self._function, self._kind = function, kind
        self._modules, self._optimizers, self._extra = modules, optimizers, extra
        self._recordings: dict[Hashable, Recording] = {}

    def __call__(self, **tensors: torch.Tensor) -> Tensors:
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())
        key = (self._kind(), shapes)
        if key not in self._recordings:
            self._recordings[key] = self._record(tensors)
        recording = self._recordings[key]
        for name, tensor in tensors.items():
            recording.inputs[name].copy_(tensor, non_blocking=True)
        recording.graph.replay()
        for parameter, gradient in recording.gradients:  # the newest, for whoever looks at them
            parameter.grad = gradient
        return recording.outputs

    def _record(self, tensors: Tensors) -> Recording:
        inputs = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # clone keeps channels_last
        restore = self._remember()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This instance was constructed with capturable")  # it soon is
            for _ in range(WARM_UP_RUNS):
                self._function(**inputs)
        torch.cuda.current_stream().wait_stream(stream)
        restore()
        before = [(parameter, parameter.grad) for parameter in self._parameters()]
        for parameter, _ in before:
            parameter.grad = None  # so that the graph's backward pass allocates gradients of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._function(**inputs)
        gradients = [(parameter, parameter.grad) for parameter, _ in before if parameter.grad is not None]
        for parameter, gradient in before:
            if parameter.grad is None:  # not this graph's: another one's stays to be looked at
                parameter.grad = gradient
        return Recording(graph, inputs, outputs, gradients)

    def _parameters(self) -> list[torch.Tensor]:
        return [*(p for module in self._modules for p in module.parameters()), *self._extra]

    @torch.no_grad()
    def _remember(self) -> Callable[[], None]:
        """A function that puts weights and optimizer states back as they are now, in place."""
        weights = [(p, p.detach().clone()) for p in self._parameters()]
        moments = [
            {p: {name: value.clone() for name, value in state.items()} for p, state in optimizer.state.items()}
            for optimizer in self._optimizers
        ]

        @torch.no_grad()
        def restore() -> None:
            for parameter, value in weights:
                parameter.copy_(value)
            for optimizer, saved in zip(self._optimizers, moments, strict=True):
                for parameter, state in optimizer.state.items():
                    _put_back(state, saved.get(parameter))

        return restore


def _put_back(state: dict[str, Any], saved: dict[str, torch.Tensor] | None) -> None:
    """Adam's state of one parameter as it was; where there was none, Adam's beginning, which is all zeros."""
    for name, value in state.items():
        if saved is None:
            value.zero_()
        else:
            value.copy_(saved[name])
