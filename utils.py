"""Small helpers: random streams, networks, memory, time."""

from __future__ import annotations

import ctypes
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn


class Stopwatch:
    """Adds up the seconds that named parts of a loop take. `with stopwatch("update"): ...`"""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "seconds": dict(self.seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stopwatch was, as if no time had passed between."""
        self.started, self.seconds = time.perf_counter() - state["elapsed"], dict(state["seconds"])

    def shares(self) -> dict[str, float]:
        """Each part's share of all the time since the start; "other" is the rest."""
        total = max(self.elapsed, 1e-9)
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        return {**shares, "other": 1.0 - sum(shares.values())}


def mlp(in_dim: int, hidden_dim: int, out_dim: int, hidden_depth: int) -> nn.Sequential:
    """`hidden_depth` ReLU layers of `hidden_dim` units, then a linear layer to `out_dim`."""
    layers: list[nn.Module] = []
    for _ in range(hidden_depth):
        layers += [nn.Linear(in_dim, hidden_dim), nn.ReLU()]
        in_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


def weight_init(module: nn.Module) -> None:
    """Orthogonal weights (gain sqrt 2 for convolutions) and zero biases; use with `Module.apply`."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        gain = nn.init.calculate_gain("relu") if isinstance(module, nn.Conv2d) else 1.0
        nn.init.orthogonal_(module.weight, gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def to_channels_last(module: nn.Module) -> None:
    """Lay convolution weights out as (height, width, channel) in memory, which the convolutions here run fastest on."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device. A CUDA device gets it from pinned memory, so that nobody waits for what it is doing."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@torch.no_grad()
def soft_update(online: nn.Module, target: nn.Module, tau: float) -> None:
    """target <- tau * online + (1 - tau) * target, for all parameters in one fused call."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within the block no gradient is computed for the module's parameters (its inputs still get theirs)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


def seed_sequence(seed: int, purpose: str) -> np.random.SeedSequence:
    """The seed of a random stream of its own for each purpose of a run: streams of equal seeds would be one."""
    return np.random.SeedSequence([seed, *purpose.encode()])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (network initialisation, kornia's augmentations)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The global generators of Python, NumPy, torch and, where it is used, the CUDA device: tensors and plain data."""
    state = {
        "python": random.getstate(),
        "numpy": plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators back to `random_states`; a CUDA device's only if there was one."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def plain(state: Any) -> Any:
    """A NumPy generator's state with lists for its arrays, so that a checkpoint can hold it."""
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the system's or, where that is tighter, those of its control groups.

    A container's or a cluster job's limit is such a group's, of either version of Linux's control groups. A group's
    files in memory that nobody reads count as free, as the system's do.
    """
    free = int(psutil.virtual_memory().available)
    for group, (limit, used, unread) in _memory_groups(root):
        with suppress(OSError, ValueError, KeyError):  # no such group, or no limit ("max")
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            total, taken = (int((group / name).read_text()) for name in (limit, used))
            free = min(free, total - taken + int(statistics[unread]))
    return free


def _memory_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the control groups that limit this process's memory, with their names for it.

    A container may be told its group's path as the host sees it; its own top folder is the group then.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = top / path.lstrip("/")
        yield from ((group, names) for group in (own, *own.parents) if group.is_relative_to(top))


def keep_freed_memory(up_to: int = 1 << 30) -> None:
    """Let glibc keep blocks of up to so many bytes for the next tensor instead of handing them back at every free.

    Without it a tensor over 32 MB costs a page fault per 4 KB each time it is made. Linux with glibc only; elsewhere
    nothing happens.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(m_mmap_threshold, up_to)
            mallopt(m_trim_threshold, 2 * up_to - 1)
