"""The checks of a CUDA machine: all are listed, each failure is reported, and they can be rehearsed on the CPU."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_numbers, gpu_speed
from benchmarks.gpu_check import CHECKS, MODULES, Check
from benchmarks.gpu_setup import REHEARSAL, Measured, Setup
from replay_buffer import ReplayBuffer
from tests.support.rehearsal import cuda_on_the_cpu


def passes(setup: Setup) -> Measured:
    return {"device": setup.device}


def fails(setup: Setup) -> Measured:
    raise AssertionError("one\nand two differ")


def dies(setup: Setup) -> Measured:
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(setup: Setup) -> Measured:
    time.sleep(10_000)
    return {}


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_check_is_in_the_table() -> None:
    """A check is a function of a Setup that returns what it measured."""
    found = {
        name
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and inspect.signature(function).return_annotation == "Measured"
    }
    names = [check.name for check in CHECKS]
    assert sorted(names) == sorted(found)
    assert len(set(names)) == len(names)


def test_all_checks_together_stay_under_nine_minutes() -> None:
    assert sum(check.seconds for check in CHECKS) < 9 * 60


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_checks_run_and_each_failure_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checks = (Check(fails, 60), Check(dies, 60), Check(passes, 60))
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    assert gpu_check.main(["--rehearse", "--out", str(tmp_path / "gpu.json")]) == 1
    *lines, verdict = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["FAILED", "fails"], ["FAILED", "dies"], ["ok", "passes"]]
    assert lines[0].endswith(" s  AssertionError: one and two differ")
    assert lines[1].endswith(" s  the process ended with code -9: the last words")
    assert verdict.startswith("no: rehearsal on the CPU, 2 of 3 checks failed")
    assert verdict.endswith("fails, dies")
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert not report["ok"]
    assert "Traceback" in report["checks"]["fails"]["output"]
    assert report["checks"]["passes"] == {
        "ok": True,
        "reason": "",
        "measured": {"device": "cpu"},
        "seconds": report["checks"]["passes"]["seconds"],
    }


def test_a_check_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    setup = dataclasses.replace(REHEARSAL, ends=time.time(), scratch=tmp_path)
    result = gpu_check.run_check(Check(hangs, 0), setup)
    assert not result["ok"]
    assert result["reason"].startswith("it took too long")


def test_selected_checks_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", (Check(fails, 60), Check(passes, 60)))
    assert gpu_check.main(["--rehearse", "--only", "passes"]) == 0
    assert "yes: rehearsal on the CPU, 1 of 2 checks were run and passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--only", "speeed"], "speeed"), (["--rehearse", "--out", "no/such/folder.json"], "no/such")],
)
def test_bad_input(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = gpu_check.main(arguments)
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith("gpu_check: error: ")
    assert named in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 2
    assert "there is no CUDA device; --rehearse" in capsys.readouterr().err


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def setup(deterministic: None, tmp_path: Path) -> Iterator[Setup]:
    with cuda_on_the_cpu():
        yield dataclasses.replace(REHEARSAL, ends=time.time() + 600, scratch=tmp_path)


@pytest.mark.parametrize("check", [gpu_numbers.out_of_memory, gpu_numbers.ring, gpu_numbers.augmentations])
def test_a_check_passes(check: Callable[[Setup], Measured], setup: Setup) -> None:
    assert check(setup)


def test_agents_that_differ_are_found(setup: Setup) -> None:
    direct, other = setup.agent(num_skills=0), setup.agent(num_skills=0, lr=2e-3)
    with pytest.raises(AssertionError, match="update 0: "):
        gpu_numbers.compare(setup, direct, other, first=0, window=False)


def test_a_ring_that_overwrites_a_frame_is_found(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReplayBuffer._store_frame

    def store_and_damage(buffer: ReplayBuffer, obs: object) -> int:
        number = store(buffer, obs)  # type: ignore[arg-type]
        if buffer.frames_written == buffer.frame_capacity + 1:
            buffer._frames[-1] += 1
        return number

    monkeypatch.setattr(ReplayBuffer, "_store_frame", store_and_damage)
    with pytest.raises(AssertionError, match="not equal"):
        gpu_numbers.ring(setup)


def test_memory_above_the_headroom_is_found(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 10**12))
    with pytest.raises(AssertionError, match=r"batch 4 uses 1000\.00 GB, and .* GB are left free for it"):
        gpu_speed.memory(setup)


@pytest.mark.slow
def test_rehearsal() -> None:
    """The checks that take seconds; `python -m benchmarks.gpu_check --rehearse` runs the others too."""
    names = ("machine", "waits", "evaluation_rows", "memory", "evaluate")
    assert gpu_check.main(["--rehearse", "--only", *names]) == 0
