"""The driver: what it starts, retries, gives up and records, on a cluster without Ray."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from running.signals import StopRequest
from sweeping import driver
from sweeping.driver import Driver
from sweeping.ray_cluster import Cluster
from sweeping.record import Sweep, Trial
from sweeping.view import View
from tests.support.sweeps import sweep_of_seeds


class FakeCluster(Cluster):
    """A cluster on which every attempt has ended when it is waited for.

    Args:
        exit_codes: of the attempts at each run, by name; 0 after the last.
        signals: a signal that arrives during the first wait.
    """

    def __init__(self, sweep: Sweep, exit_codes: dict[str, list[int]], stop: StopRequest | None = None) -> None:
        self.folder, self.exit_codes, self.stop = sweep.folder, exit_codes, stop
        self.started: list[str] = []
        self.cancelled: list[int] = []

    def start(self, trial: Trial) -> int:
        trial.folder(self.folder).mkdir(parents=True, exist_ok=True)
        log = trial.log(self.folder)
        log.parent.mkdir(exist_ok=True)
        log.write_text("host here\n$ python train.py\nlast line\n")
        self.started.append(trial.name)
        return len(self.started) - 1

    def wait(self, references: Sequence[Any], timeout: float) -> list[Any]:
        if self.stop is not None and self.stop.number is None:
            self.stop.number = signal.SIGTERM
            return []
        return list(references)

    def outcome(self, reference: int) -> int:
        codes = self.exit_codes.get(self.started[reference], [])
        return codes.pop(0) if codes else 0

    def cancel(self, reference: int) -> None:
        self.cancelled.append(reference)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "RETRY_AFTER", 0.0)
    monkeypatch.setattr(driver, "REFRESH", 0.0)


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`drive(sweep, cluster, stop)`: run the sweep on the cluster."""

    def run(sweep: Sweep, cluster: Cluster, stop: StopRequest | None = None) -> None:
        monkeypatch.setattr(driver, "connect", lambda sweep, address: nullcontext(cluster))
        driver.drive(sweep, None, stop or StopRequest())

    return run


def test_failed_attempts_are_retried_until_there_are_too_many(
    drive: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of_seeds(tmp_path, seeds=(1, 2, 3), max_failures=1)
    cluster = FakeCluster(sweep, {"seed=2": [1], "seed=3": [1, 1]})
    drive(sweep, cluster)
    assert [(trial.state, trial.attempts, trial.failures) for trial in sweep.trials] == [
        ("finished", 1, 0),
        ("finished", 2, 1),
        ("failed", 2, 2),
    ]
    assert sorted(cluster.started) == ["seed=1", "seed=2", "seed=2", "seed=3", "seed=3"]
    assert [trial.state for trial in Sweep.read(tmp_path).trials] == ["finished", "finished", "failed"]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"3 runs in {tmp_path}"
    assert last == f"3 runs: 1 failed, 2 finished; {tmp_path / 'summary.csv'}"


def test_a_signal_cancels_every_attempt_once(drive: Callable[..., None], tmp_path: Path) -> None:
    sweep, stop = sweep_of_seeds(tmp_path), StopRequest()
    cluster = FakeCluster(sweep, {"seed=1": [143], "seed=2": [143]}, stop)
    drive(sweep, cluster, stop)
    assert cluster.cancelled == [0, 1]
    assert [(trial.state, trial.attempts) for trial in sweep.trials] == [("stopped", 1), ("stopped", 1)]


def test_an_error_cancels_every_attempt_and_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of_seeds(tmp_path)
    cluster = FakeCluster(sweep, {})
    monkeypatch.setattr(Sweep, "write", lambda self: 1 / 0)
    monkeypatch.setattr(cluster, "wait", lambda references, timeout: list(references)[:1])
    with pytest.raises(ZeroDivisionError):
        Driver(sweep, cluster, StopRequest(), View(sweep, None)).run()
    assert cluster.cancelled == [1]
    assert [trial.state for trial in sweep.trials] == ["finished", "finished"]


def test_the_log_of_an_unrecorded_attempt_is_kept(drive: Callable[..., None], tmp_path: Path) -> None:
    """A killed sweep.py may have started an attempt that sweep.json does not count."""
    sweep = sweep_of_seeds(tmp_path, seeds=(1,))
    trial = sweep.trials[0]
    trial.attempts = 1
    trial.log(tmp_path).parent.mkdir()
    trial.log(tmp_path).write_text("host there\n")
    trial.attempts = 0
    drive(sweep, FakeCluster(sweep, {}))
    assert (trial.attempts, trial.host) == (2, "here")


def test_a_full_disk_is_a_warning_while_runs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Sweep) -> None:
        raise OSError(28, "No space left on device", "sweep.json")

    sweep = sweep_of_seeds(tmp_path)
    monkeypatch.setattr(Sweep, "write", full)
    Driver(sweep, FakeCluster(sweep, {}), StopRequest(), View(sweep, None)).run()
    assert [trial.state for trial in sweep.trials] == ["finished", "finished"]
    assert "warning: sweep.json: No space left on device" in capsys.readouterr().err


def test_settle_records_and_reports_how_an_attempt_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of_seeds(tmp_path, max_failures=2)
    driver, trial = Driver(sweep, FakeCluster(sweep, {}), StopRequest(), View(sweep, None)), sweep.trials[0]
    trial.attempts = 1
    log = trial.log(tmp_path)
    log.parent.mkdir()
    log.write_text("host there\n$ python train.py\n" + "".join(f"line {n}\n" for n in range(9)))
    states = []
    for outcome in (1, "node died", -9):
        driver.settle(trial, outcome)
        states.append((trial.state, trial.failures))
    assert states == [("waiting", 1), ("waiting", 2), ("failed", 3)]
    assert trial.message.splitlines() == [f"line {n}" for n in range(4, 9)]
    assert trial.host == "there"
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(r"will be retried; exit code 1: line 4\nline 5\nline 6\nline 7\nline 8")
    assert said[1].endswith("will be retried; node died")
    assert "given up; exit code -9" in said[2]


def test_a_cancelled_attempt_is_no_failure(tmp_path: Path) -> None:
    sweep = sweep_of_seeds(tmp_path)
    started, queued = sweep.trials
    started.folder(tmp_path).mkdir(parents=True)
    driver = Driver(sweep, FakeCluster(sweep, {}), StopRequest(), View(sweep, None))
    driver.cancel()
    for trial in (started, queued):
        driver.settle(trial, "cancelled")
    assert [(trial.state, trial.failures) for trial in sweep.trials] == [("stopped", 0), ("waiting", 0)]
