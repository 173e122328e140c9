"""What sweep.py shows while it runs: a live table on a terminal, otherwise a line for each event."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from sweeping.record import STATES, Sweep, Trial

STATUS_EVERY = 300.0  # seconds between lines on the whole sweep, if the output is not a terminal
LINES_AROUND_ROWS = 8  # of the terminal: the table's title, header and borders


@contextmanager
def open_view(sweep: Sweep) -> Iterator[View]:
    """Yield the view that fits standard output."""
    with Live(auto_refresh=False) if sys.stdout.isatty() else nullcontext() as live:
        yield View(sweep, live)


class View:
    """The view of a sweep: a table that `live` draws, or lines of text without it."""

    def __init__(self, sweep: Sweep, live: Live | None) -> None:
        self.live = live
        self._last_status = time.monotonic()
        for trial in sweep.trials:
            if trial.state == "finished":
                self.event(trial, "finished before")

    def event(self, trial: Trial, text: str) -> None:
        """Report what happened to a run. The table shows it by the run's state."""
        if self.live is None:
            self._print(f"{trial.path}: {text}")

    def update(self, sweep: Sweep) -> None:
        """Show the current state of the sweep."""
        if self.live is not None:
            self.live.update(table(sweep, self.live.console.height), refresh=True)
        elif time.monotonic() - self._last_status > STATUS_EVERY:
            self._last_status = time.monotonic()
            self._print(status(sweep))

    @staticmethod
    def _print(text: str) -> None:
        with suppress(OSError):  # a closed terminal or pipe must not stop the runs
            print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


def status(sweep: Sweep) -> str:
    """Return one line on the whole sweep: runs by state, speed, time left."""
    states = [trial.state for trial in sweep.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    text = f"{len(states)} runs: {counts}"
    unfinished = [trial for trial in sweep.trials if trial.state in ("waiting", "running")]
    speed = sum(trial.progress.fps for trial in unfinished if trial.state == "running" and trial.progress.fps > 0)
    left = sum(trial.frames_left for trial in unfinished)
    return f"{text}; {speed:.0f} frames/s, {duration(left / speed)} left" if speed else text


def duration(seconds: float) -> str:
    """Return a duration in at most two units: 40 s, 3 min, 2 h 5 min, 3 d 4 h."""
    hours, minutes = divmod(int(seconds // 60), 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def table(sweep: Sweep, height: int) -> Table:
    """Return the runs as a table, running ones first, with as many rows as fit into `height` lines."""
    drawn = Table(title=escape(f"{sweep.folder}\n{status(sweep)}"), title_justify="left")
    for column in ("run", "state", "host"):
        drawn.add_column(column, overflow="fold")
    for column in ("frames", "of", "frames/s", "left", "return", "best", "MI"):
        drawn.add_column(column, justify="right")
    ordered = sorted(sweep.trials, key=lambda trial: STATES.index(trial.state))
    for trial in ordered[: max(1, height - LINES_AROUND_ROWS)]:
        progress = trial.progress
        measured = trial.state == "running" and progress.fps > 0
        speed = f"{progress.fps:.0f}" if measured else ""
        left = duration(trial.frames_left / progress.fps) if measured else ""
        state = f"{trial.state} ({trial.failures} failed)" if trial.failures else trial.state
        frames = (f"{progress.frame:,}", f"{trial.frames:,}")
        drawn.add_row(escape(trial.path), state, trial.host, *frames, speed, left, *progress.results())
    return drawn
