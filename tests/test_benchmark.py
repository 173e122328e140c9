"""The command benchmark.py: its answers to bad input, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import benchmark
from tests.support.program import Answer, call
from tests.support.runs import RENDERER

ROW = {"case": "fake", "variant": "ours", "median_ms": 1.0, "low_ms": 0.5, "high_ms": 2.0, "ratio": 1.0}


@pytest.fixture(autouse=True)
def measured(renderer: object, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The benchmarks that ran, of which none measures anything."""
    ran: list[Any] = []

    def bench(args: Any) -> Iterator[dict[str, Any]]:
        ran.append(args)
        yield ROW

    monkeypatch.setattr(benchmark, "choose_renderer", lambda: RENDERER)
    monkeypatch.setattr("benchmarks.parts.bench_update", bench)
    return ran


def run(*words: str) -> Answer:
    return call(["update", "--device", "cpu", *words], benchmark.main)


def test_the_results_are_written(tmp_path: Path, measured: list[Any]) -> None:
    out = tmp_path / "new" / "results.json"
    assert run("--out", str(out)).code == 0
    record = json.loads(out.read_text())
    assert record["results"] == [{"benchmark": "update", **ROW}]
    assert record.keys() == {"machine", "load_before", "results", "load_after"}
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--out /proc/new/x.json", "/proc/new: No such file or directory; name another folder"),
        ("--out {place}", "not a regular file"),
        ("--env walker_wlak", "--env: dm_control.suite has no task 'walker_wlak'; did you mean walker_walk"),
        ("--env gym:Pendulum-v1", "--env must be a task of the suite; got gym:Pendulum-v1"),
        ("--task walker_run", "unrecognized arguments: --task"),
        ("--device gpu", "--device must be cuda, cuda:N or cpu; got gpu"),
        ("--batch_size 0", "must be at least 1"),
        ("--num_skills 1", "must be 0, or 2 or more"),
        ("--num_skills -3", "must be 0, or 2 or more"),
        ("--blocks 1.5", "must be a whole number"),
        (f"--steps {'9' * 5000}", "--steps"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    tmp_path: Path, measured: list[Any], line: str, message: str
) -> None:
    answer = run(*line.format(place=tmp_path).split())
    assert (answer.code, len(answer.lines)) == (2, 1)
    assert answer.lines[0].startswith("benchmark.py: error: ")
    assert message in answer.lines[0]
    assert len(answer.lines[0]) < 500
    assert not measured
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 2), (KeyboardInterrupt(), 130)])
def test_an_end_within_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    """One line, and no folder that was made for the results."""

    def fail(args: Any) -> Iterator[dict[str, Any]]:
        raise error

    monkeypatch.setattr("benchmarks.parts.bench_update", fail)
    answer = run("--out", str(tmp_path / "new" / "results.json"))
    assert (answer.code, len(answer.lines)) == (code, 1)
    assert not any(tmp_path.iterdir())
