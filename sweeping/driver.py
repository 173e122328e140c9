"""The loop of a sweep: start what waits, record what ends, retry what fails."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from errors import UserError, one_line
from running.atomic_files import locked, no_room
from running.signals import StopRequest
from sweeping.ray_cluster import Cluster, Outcome, check_nodes, connect
from sweeping.record import SUMMARY_FILE, Sweep, Trial, last_lines, read_host, read_progress
from sweeping.view import View, open_view, status

REFRESH = 2.0  # seconds between looks at the runs
WRITE_EVERY = 30.0  # seconds between updates of summary.csv while no run starts or ends
RETRY_AFTER = 5.0  # seconds from a run's first failure to the next attempt; doubled by each further failure
MAX_DOUBLINGS = 4


@contextmanager
def open_driver(sweep: Sweep, address: str | None, stop: StopRequest) -> Iterator[Driver]:
    """Connect to Ray, catch signals, make and lock the sweep's folder. Raises UserError.

    Args:
        address: of a Ray cluster; None starts Ray on this machine.
    """
    with connect(sweep, address) as cluster, stop, ExitStack() as stack:  # Ray sets signal handlers: `stop` after it
        new = not sweep.folder.exists()
        try:
            sweep.folder.mkdir(parents=True, exist_ok=True)
            if address is not None:
                check_nodes(sweep.folder)
            stack.enter_context(locked(sweep.folder))
            sweep.write()
        except (OSError, UserError) as error:
            if new:
                shutil.rmtree(sweep.folder, ignore_errors=True)
            if isinstance(error, UserError):
                raise
            raise no_room(sweep.folder.parent, error) from error
        stop.listening = True
        yield Driver(sweep, cluster, stop)


class Driver:
    """Runs a sweep until every run has ended or a signal asks it to stop."""

    def __init__(self, sweep: Sweep, cluster: Cluster, stop: StopRequest) -> None:
        self.sweep, self.cluster, self.stop = sweep, cluster, stop
        self.running: dict[Any, Trial] = {}  # by reference to the attempt, which may still be queued
        self.not_before: dict[str, float] = {}  # time.monotonic() from which a failed run may start again
        self._written, self._cancelled = -math.inf, False

    def run(self) -> None:
        """Run the sweep, show it, and write how it ended."""
        with open_view(self.sweep) as view:
            self._loop(view)
        with suppress(OSError):  # reported by _update
            self.sweep.write()
        print(f"{status(self.sweep)}; {self.sweep.folder / SUMMARY_FILE}")

    def _loop(self, view: View) -> None:
        try:
            while self.running or (self.stop.number is None and self._waiting()):
                self._start_waiting()
                changed = self._collect(view)
                self._update(view, changed)
                if self.stop.number is not None:
                    self._cancel()
        except BaseException:  # let every run write a checkpoint before Ray ends
            self._cancel()
            while self.running:
                self._collect(view)
            raise

    def _waiting(self) -> list[Trial]:
        queued = {trial.path for trial in self.running.values()}
        return [trial for trial in self.sweep.trials if trial.state == "waiting" and trial.path not in queued]

    def _start_waiting(self) -> None:
        if self.stop.number is not None:
            return
        for trial in self._waiting():
            if time.monotonic() >= self.not_before.get(trial.path, 0.0):
                trial.attempts += 1
                while trial.log(self.sweep.folder).exists():  # of an attempt that a killed sweep.py did not record
                    trial.attempts += 1
                trial.started_at = None
                self.running[self.cluster.start(trial)] = trial

    def _collect(self, view: View) -> bool:
        """Wait up to REFRESH seconds and record the attempts that have ended. Return whether there are any."""
        if not self.running:
            time.sleep(REFRESH)
            return False
        ended = self.cluster.wait(list(self.running), REFRESH)
        for reference in ended:
            trial = self.running.pop(reference)
            settle(self.sweep, trial, self.cluster.outcome(reference), stopping=self._cancelled, view=view)
            delay = RETRY_AFTER * 2 ** min(trial.failures - 1, MAX_DOUBLINGS)
            self.not_before[trial.path] = time.monotonic() + delay
        return bool(ended)

    def _update(self, view: View, changed: bool) -> None:
        """Read what the runs have written, show it, and write it to the sweep's files if it is time.

        Args:
            changed: whether an attempt has ended.
        """
        sweep = self.sweep
        for trial in self.running.values():
            host = read_host(trial.log(sweep.folder))
            if trial.started_at is None and host:
                changed = True
                trial.started_at, trial.state, trial.host = time.monotonic(), "running", host
                view.event(trial, f"{'resumed' if trial.attempts > 1 else 'started'} on {host}")
            if trial.state == "running":
                trial.progress = read_progress(trial.folder(sweep.folder), trial.progress)
        if changed or time.monotonic() - self._written > WRITE_EVERY:
            self._written = time.monotonic()
            try:
                sweep.write()
            except OSError as error:
                print(f"warning: {error.filename}: {error.strerror}; will be tried again", file=sys.stderr)
        view.update(sweep)

    def _cancel(self) -> None:
        """Cancel all attempts, once."""
        if not self._cancelled:
            self._cancelled = True
            for reference in self.running:
                self.cluster.cancel(reference)


def settle(sweep: Sweep, trial: Trial, outcome: Outcome, *, stopping: bool, view: View) -> None:
    """Record how an attempt ended and whether the run is tried again.

    Args:
        stopping: the attempts were cancelled, so that an unfinished one is no failure.
    """
    log = trial.log(sweep.folder)
    if trial.started_at is not None:
        trial.seconds += time.monotonic() - trial.started_at
        trial.started_at = None
    trial.host = read_host(log) or trial.host
    trial.progress = read_progress(trial.folder(sweep.folder), trial.progress)
    if outcome.exit_code == 0:
        trial.state, trial.message = "finished", ""
        view.event(trial, "finished")
    elif stopping:
        trial.state = "stopped" if trial.folder(sweep.folder).exists() else "waiting"
        view.event(trial, "stopped")
    else:
        trial.failures += 1
        output = last_lines(log)
        trial.message = "\n".join(part for part in (outcome.reason, output) if part)
        retry = trial.failures <= sweep.max_failures
        trial.state = "waiting" if retry else "failed"
        how = outcome.reason or f"exit code {outcome.exit_code}: {output}"
        view.event(trial, f"{'will be retried' if retry else 'given up'}; {one_line(how)}")
