"""Signals that ask a program to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from errors import StopError
from running.signals import StopRequest
from tests.support.paths import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
every_signal = pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])


@every_signal
def test_a_signal_is_recorded(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest("saving") as stop:
        stop.listening = True
        stop.check()
        signal.raise_signal(number)
        assert stop.number == number
        assert stop.exit_code == 128 + number
        with pytest.raises(StopError):
            stop.check()
    assert capfd.readouterr().err == f"stopping ({number.name}): saving; a second signal stops at once\n"


@every_signal
def test_a_signal_before_the_program_listens(number: signal.Signals) -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert stop.exit_code == 128 + number


def test_the_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert all(signal.getsignal(number) != old for number, old in zip(SIGNALS, before, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@every_signal
def test_a_second_signal_ends_the_process(number: signal.Signals) -> None:
    script = (
        "import signal, sys\nfrom running.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    stop.listening = True\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('continues', flush=True)\n"
        f"    signal.raise_signal({int(number)})\n"
        "    print('too late')\n"
    )
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=dict(os.environ), capture_output=True)
    assert child.returncode == 128 + number
    assert child.stdout == b"continues\n"
