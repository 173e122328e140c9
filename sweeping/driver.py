"""The loop of a sweep: start what waits, record what ends, retry what fails."""

from __future__ import annotations

import math
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

from errors import UserError, one_line
from running.atomic_files import locked, no_room
from running.signals import StopRequest
from sweeping.ray_cluster import Cluster, check_nodes, connect
from sweeping.record import SUMMARY_FILE, Sweep, Trial, read_log, read_progress
from sweeping.view import View, open_view, status

REFRESH = 2.0  # seconds between looks at the runs
WRITE_EVERY = 30.0  # seconds between updates of summary.csv while no run starts or ends
RETRY_AFTER = 5.0  # seconds from a run's first failure to the next attempt; doubled by each further failure
MAX_DOUBLINGS = 4


def drive(sweep: Sweep, address: str | None, stop: StopRequest) -> None:
    """Connect to Ray, catch signals, make and lock the sweep's folder, and run the sweep. Raises UserError.

    `address` is that of a Ray cluster; None starts Ray on this machine.
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
        print(f"{len(sweep.trials)} runs in {sweep.folder}", flush=True)
        with open_view(sweep) as view:
            Driver(sweep, cluster, stop, view).run()
        print(f"{status(sweep)}; {sweep.folder / SUMMARY_FILE}")


class Driver:
    """Runs a sweep until every run has ended or a signal asks it to stop."""

    def __init__(self, sweep: Sweep, cluster: Cluster, stop: StopRequest, view: View) -> None:
        self.sweep, self.cluster, self.stop, self.view = sweep, cluster, stop, view
        self.running: dict[Any, Trial] = {}  # by reference to the attempt, which may still be queued
        self.not_before: dict[str, float] = {}  # time.monotonic() from which a failed run may start again
        self._written, self._cancelled = -math.inf, False

    def run(self) -> None:
        """Run the sweep, show it, and record how it ended."""
        try:
            while self.running or self._waiting():
                for trial in self._waiting():
                    if time.monotonic() >= self.not_before.get(trial.path, 0.0):
                        self._start(trial)
                self._update(changed=self._collect())
                if self.stop.number is not None:
                    self.cancel()
        except BaseException:  # let every run write a checkpoint before Ray ends
            self.cancel()
            while self.running:
                self._collect()
            raise
        with suppress(OSError):  # reported by _update
            self.sweep.write()

    def cancel(self) -> None:
        """Cancel all attempts, once."""
        if not self._cancelled:
            self._cancelled = True
            for reference in self.running:
                self.cluster.cancel(reference)

    def settle(self, trial: Trial, outcome: int | str) -> None:
        """Record how an attempt ended, in terms of `Cluster.outcome`, and whether the run is tried again.

        After `cancel`, an attempt that did not finish is no failure.
        """
        folder = trial.folder(self.sweep.folder)
        trial.seconds, trial.started_at = trial.wall_seconds, None
        host, output = read_log(trial.log(self.sweep.folder))
        trial.host = host or trial.host
        trial.progress = read_progress(folder, trial.progress)
        if outcome == 0:
            trial.state = event = "finished"
            trial.message = ""
        elif self._cancelled:
            trial.state, event = "stopped" if folder.exists() else "waiting", "stopped"
        else:
            trial.failures += 1
            delay = RETRY_AFTER * 2 ** min(trial.failures - 1, MAX_DOUBLINGS)
            self.not_before[trial.path] = time.monotonic() + delay
            if isinstance(outcome, int):
                trial.message, reason = output, f"exit code {outcome}: {output}"
            else:
                trial.message, reason = f"{outcome}\n{output}".strip(), outcome
            retry = trial.failures <= self.sweep.max_failures
            trial.state = "waiting" if retry else "failed"
            event = f"{'will be retried' if retry else 'given up'}; {one_line(reason)}"
        self.view.event(trial, event)

    def _waiting(self) -> list[Trial]:
        """Return the runs to start; none once a signal has arrived."""
        if self.stop.number is not None:
            return []
        queued = {trial.path for trial in self.running.values()}
        return [trial for trial in self.sweep.trials if trial.state == "waiting" and trial.path not in queued]

    def _start(self, trial: Trial) -> None:
        trial.attempts += 1
        while trial.log(self.sweep.folder).exists():  # of an attempt that a killed sweep.py did not record
            trial.attempts += 1
        self.running[self.cluster.start(trial)] = trial

    def _collect(self) -> bool:
        """Wait up to REFRESH seconds and record the attempts that have ended. Return whether there are any."""
        if not self.running:
            time.sleep(REFRESH)
            return False
        ended = self.cluster.wait(list(self.running), REFRESH)
        for reference in ended:
            self.settle(self.running.pop(reference), self.cluster.outcome(reference))
        return bool(ended)

    def _update(self, changed: bool) -> None:
        """Read and show what the runs have written. Write it to the sweep's files if `changed`, or if it is time."""
        folder = self.sweep.folder
        for trial in self.running.values():
            if trial.started_at is None:
                host, _ = read_log(trial.log(folder))
                if host:
                    changed = True
                    trial.started_at, trial.state, trial.host = time.monotonic(), "running", host
                    self.view.event(trial, f"{'resumed' if trial.attempts > 1 else 'started'} on {host}")
            if trial.started_at is not None:
                trial.progress = read_progress(trial.folder(folder), trial.progress)
        if changed or time.monotonic() - self._written > WRITE_EVERY:
            self._written = time.monotonic()
            try:
                self.sweep.write()
            except OSError as error:
                print(f"warning: {error.filename}: {error.strerror}; will be tried again", file=sys.stderr)
        self.view.update(self.sweep)
