"""Stopwatch, uploads, Adam's state, and free memory under the limits of control groups."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils import Stopwatch, free_memory, keep_freed_memory, load_adam_state, make_adam, minimize, pack, split, upload

# -- stopwatch ---------------------------------------------------------------------------------------------------------


def test_stopwatch_continues_from_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds of 8 before saving, then 4 seconds of which 3 are spent updating; the break does not count."""
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    first = Stopwatch()
    with first("update"):
        now += 2.0
    now += 6.0
    state = copy.deepcopy(first.state_dict())
    now += 1000.0
    second = Stopwatch()
    second.load_state_dict(state)
    with second("update"):
        now += 3.0
    now += 1.0
    assert second.elapsed == 8.0 + 4.0
    assert second.shares() == pytest.approx({"update": (2.0 + 3.0) / 12.0, "other": 7.0 / 12.0})


# -- upload ------------------------------------------------------------------------------------------------------------


def test_arrays_are_packed_into_one_block() -> None:
    """Shapes, dtypes and values are kept; views of other dtypes must be aligned, so arrays of odd sizes are padded."""
    rng = np.random.default_rng(0)
    arrays: list[np.ndarray] = [
        rng.integers(256, size=(1, 3, 5), dtype=np.uint8),
        rng.integers(-(2**60), 2**60, size=7),
        rng.normal(size=(3, 3)).astype(np.float32),
        rng.normal(size=(4, 6)).astype(np.float32).T,  # not contiguous
        np.zeros(0, np.float32),
        rng.integers(9, size=1),
    ]
    packed = pack(arrays, pinned=False)
    tensors = split(packed, arrays)
    starts = [tensor.data_ptr() - packed.data_ptr() for tensor in tensors if tensor.numel()]
    assert starts == [0, 16, 16 + 64, 16 + 64 + 48, 16 + 64 + 48 + 96]
    assert len(packed) == 16 + 64 + 48 + 96 + 16
    direct = upload(arrays, torch.device("cpu"))
    for array, tensor, other in zip(arrays, tensors, direct, strict=True):
        assert torch.equal(tensor, torch.from_numpy(array.copy()))
        assert torch.equal(other, tensor)
        assert tensor.dtype == other.dtype


# -- Adam --------------------------------------------------------------------------------------------------------------


def adam(steps: int, dtype: torch.dtype = torch.float32) -> torch.optim.Adam:
    """Return an optimizer of two parameters after some steps."""
    generator = torch.Generator().manual_seed(steps)
    shapes = ((3, 2, 4, 4), (5,))
    parameters = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    parameters[0].data = parameters[0].data.contiguous(memory_format=torch.channels_last)
    optimizer = make_adam(parameters, lr=0.1)
    for _ in range(steps):
        minimize(torch.stack([(parameter**2).sum() for parameter in parameters]).sum(), optimizer)
    return optimizer


def adam_state(optimizer: torch.optim.Adam) -> dict[int, dict[str, torch.Tensor]]:
    return optimizer.state_dict()["state"]


def tensors(optimizer: torch.optim.Adam) -> list[torch.Tensor]:
    return [value for state in adam_state(optimizer).values() for value in state.values()]


@pytest.mark.parametrize("steps", [0, 2])
def test_load_adam_state(steps: int) -> None:
    """Into an optimizer without a state, and into the existing tensors of one that has made steps."""
    optimizer, other = adam(steps), adam(5)
    addresses = [value.data_ptr() for value in tensors(optimizer)]
    load_adam_state(optimizer, adam_state(other))
    torch.testing.assert_close(adam_state(optimizer), adam_state(other), rtol=0, atol=0)
    assert steps == 0 or [value.data_ptr() for value in tensors(optimizer)] == addresses
    assert not {value.data_ptr() for value in tensors(optimizer)} & {value.data_ptr() for value in tensors(other)}
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()


@pytest.mark.parametrize("steps", [0, 2])
def test_load_an_empty_adam_state(steps: int) -> None:
    """It is the state before the first step: none, or zeros in the existing tensors."""
    optimizer = adam(steps)
    before = tensors(optimizer)
    load_adam_state(optimizer, {})
    after = tensors(optimizer)
    assert [value.data_ptr() for value in after] == [value.data_ptr() for value in before]
    assert not any(value.any() for value in after)


OTHER_PARAMETERS: dict[str, Any] = {
    "fewer": lambda state: {0: state[0]},
    "more": lambda state: {**state, 2: state[1]},
    "other shape": lambda state: {**state, 1: {**state[1], "exp_avg": torch.zeros(6)}},
    "other dtype": lambda state: {**state, 1: {**state[1], "exp_avg_sq": torch.zeros(5, dtype=torch.float64)}},
    "step of another shape": lambda state: {**state, 1: {**state[1], "step": torch.zeros(1)}},
    "no step": lambda state: {**state, 1: {"exp_avg": torch.zeros(5), "exp_avg_sq": torch.zeros(5)}},
}


@pytest.mark.parametrize("change", OTHER_PARAMETERS.values(), ids=OTHER_PARAMETERS.keys())
def test_an_adam_state_of_other_parameters_is_refused(change: Any) -> None:
    with pytest.raises(ValueError, match="other parameters"):
        load_adam_state(adam(2), change(adam_state(adam(5))))


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accepted", "calls"), [(1, [(-3, 1 << 30), (-1, (2 << 30) - 1)]), (0, [(-3, 1 << 30)])])
def test_an_allocator_that_refuses_the_limit_keeps_its_defaults(
    accepted: int, calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second setting alone would make glibc map every larger block anew."""
    made = []

    class Glibc:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            made.append((parameter, value))
            return accepted

    monkeypatch.setattr("utils.sys.platform", "linux")
    monkeypatch.setattr("utils.ctypes.CDLL", lambda name: Glibc)
    keep_freed_memory()
    assert made == calls


@pytest.mark.parametrize(
    ("cgroup", "folder"),
    [
        ("0::/slurm/job_1", "sys/fs/cgroup/slurm/job_1"),
        ("0::/slurm/job_1/step_0", "sys/fs/cgroup/slurm/job_1"),  # a job's limit applies to its steps
        ("0::/docker/4711", "sys/fs/cgroup"),  # inside a container only the top folder exists
        ("5:cpu:/\n4:memory:/job_1\n0::/", "sys/fs/cgroup/memory/job_1"),  # version 1
    ],
)
def test_free_memory_under_a_control_group(tmp_path: Path, cgroup: str, folder: str) -> None:
    """The group's limit minus its use, without inactive file cache; the system's free memory if there is no limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{cgroup}\n")
    group = tmp_path / folder
    group.mkdir(parents=True)
    version_1 = "memory:" in cgroup
    limit, used = ("limit_in_bytes", "usage_in_bytes") if version_1 else ("max", "current")
    files = {limit: "5000\n", used: "3000\n", "stat": "anon 1000\ninactive_file 800\ntotal_inactive_file 800\n"}
    for name, text in files.items():
        (group / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path) == 5000 - 3000 + 800
    (group / f"memory.{limit}").write_text("9223372036854771712\n" if version_1 else "max\n")
    assert free_memory(tmp_path) > 1e6
    assert free_memory(tmp_path / "none") > 1e6
