"""Small helpers: time, tensors and optimizers, random streams, memory."""

from __future__ import annotations

import ctypes
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from console.numbers import shown_size
from errors import UserError

ALIGNMENT = 16  # bytes: of arrays that are uploaded together
NO_MEMORY = re.compile("out of memory|allocate memory|ALLOC(ATION)?_FAILED")  # torch; cuBLAS and cuDNN


class Stopwatch:
    """Adds up the seconds spent in named parts of a loop: `with stopwatch("update"): ...`"""

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
        """Seconds since the start, including those of earlier runs that were loaded."""
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "seconds": dict(self.seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another stopwatch. The time between saving and loading does not count."""
        self.started, self.seconds = time.perf_counter() - state["elapsed"], dict(state["seconds"])

    def shares(self) -> dict[str, float]:
        """Return each part's share of the time since the start; "other" is the remainder."""
        total = max(self.elapsed, 1e-9)
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        return {**shares, "other": 1.0 - sum(shares.values())}


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the array as a tensor on the device. Copies to CUDA through pinned memory, without synchronizing."""
    return upload([array], device)[0]


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Return the arrays as tensors on the device. CUDA gets them in a single copy, without synchronizing."""
    if device.type != "cuda":
        return [torch.from_numpy(array).to(device) for array in arrays]
    return split(pack(arrays, pinned=True).to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[np.ndarray], *, pinned: bool) -> torch.Tensor:
    """Return the arrays one after the other in a block of bytes, uint8 (bytes,), on the host."""
    packed = host_memory((sum(map(_padded_bytes, arrays)),), pinned=pinned)
    for tensor, array in zip(split(packed, arrays), arrays, strict=True):
        tensor.copy_(torch.from_numpy(array))
    return packed


def split(packed: torch.Tensor, arrays: Iterable[np.ndarray]) -> list[torch.Tensor]:
    """Return views of a block of `pack`, on any device. `arrays` give their shapes and dtypes."""
    tensors, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(array).dtype
        tensors.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
        start += _padded_bytes(array)
    return tensors


def host_memory(shape: tuple[int, ...], *, pinned: bool) -> torch.Tensor:
    """Return an uninitialized uint8 tensor. If pinned, copies from it to CUDA do not synchronize.

    torch keeps pinned memory for reuse, and does not hand it out again before the copies from it are done.
    """
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


def _padded_bytes(array: np.ndarray) -> int:
    return -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def make_adam(parameters: Iterable[torch.Tensor], lr: float) -> torch.optim.Adam:
    """Return an Adam optimizer that steps in one fused kernel and counts its steps on the device."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def minimize(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one optimizer step on a scalar loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def load_adam_state(optimizer: torch.optim.Adam, state: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
    """Copy `state`, the "state" of an Adam's `state_dict`, into an optimizer of the same parameters.

    In contrast to `Optimizer.load_state_dict` it writes existing tensors in place, because a recorded CUDA graph
    continues to use them, and never keeps references to `state`. An empty `state` is that before the first step.

    Raises:
        ValueError: the state belongs to other parameters. The fused kernel would access memory out of bounds.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if state and set(state) != set(range(len(parameters))):
        raise ValueError("the optimizer state belongs to other parameters")
    for index, parameter in enumerate(parameters):
        initial = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        saved, current = state.get(index, initial), optimizer.state.get(parameter, {})
        if {k: (v.shape, v.dtype) for k, v in saved.items()} != {k: (v.shape, v.dtype) for k, v in initial.items()}:
            raise ValueError("the optimizer state belongs to other parameters")
        if state and not current:
            current = optimizer.state[parameter] = initial
        for name, value in current.items():
            value.copy_(saved[name])


def seed_sequence(seed: int, purpose: str) -> np.random.SeedSequence:
    """Return the seed of an independent random stream for one purpose of a run, such as "agent" or "skills"."""
    return np.random.SeedSequence([seed, *purpose.encode()])


def derived_rng(rng: np.random.Generator, number: int) -> np.random.Generator:
    """Return an independent stream that depends on the seed of `rng` and a number, not on what was drawn from `rng`."""
    return np.random.default_rng([*rng.bit_generator.seed_seq.generate_state(4).tolist(), number])


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (initial weights, kornia's augmentations)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy, torch and, if `device` is one, the CUDA device."""
    state = {
        "python": random.getstate(),
        "numpy": plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_states(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore the global generators from `random_states`; that of a CUDA device only if it was saved."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def plain(state: Any) -> Any:
    """Return a NumPy generator's state with its arrays as lists, so that a checkpoint can hold it."""
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


CGROUPS = {  # by controller, "" in version 2: folder, files of limit and use, statistic of the inactive file cache
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(root: Path = Path("/")) -> int:
    """Return how many bytes this process can still allocate: the system's free memory or a tighter cgroup limit.

    Containers and cluster jobs limit memory by control groups (cgroups, version 1 or 2); a limit also holds for the
    groups below it. As in the system's own figure, a group's inactive file cache counts as free. Inside a container the
    path of the group may be the host's, which does not exist; the top folder is then the container's group.

    Args:
        root: where /proc and /sys are found; another folder in tests.
    """
    free = int(psutil.virtual_memory().available)
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        for controller in CGROUPS.keys() & controllers.split(","):
            top, limit, used, inactive = CGROUPS[controller]
            own = root / top / path.lstrip("/")
            for group in (own, *own.parents):
                with suppress(OSError, ValueError, KeyError):  # there is no such group, or no limit ("max")
                    statistics = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                    total, taken = (int((group / name).read_text()) for name in (limit, used))
                    free = min(free, total - taken + int(statistics[inactive]))
    return free


def check_memory(needs: Mapping[str, int]) -> None:
    """Raise UserError if the free memory is less than one of the needs: bytes, by what asks for them."""
    free = free_memory()
    for what, needed in needs.items():
        if needed > free:
            figures = f"needs at least {shown_size(needed)}, {shown_size(free)} are free"
            raise UserError(f"{what} {figures}; choose a smaller value")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed, on the host or the device; torch has no exception of its own for the CPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    )


def keep_freed_memory(up_to: int = 1 << 30) -> None:
    """Let glibc keep freed blocks of up to `up_to` bytes for reuse instead of returning them to the system.

    By default every allocation of a tensor over 32 MB costs a page fault per 4 KB. Does nothing without glibc.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(m_mmap_threshold, up_to):  # older versions refuse more than 32 MB; their defaults serve better then
            mallopt(m_trim_threshold, 2 * up_to - 1)
