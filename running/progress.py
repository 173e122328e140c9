"""A progress bar below the lines that are printed."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, TextIO

from tqdm import tqdm

COUNT_INTERVAL = 0.1  # seconds between two redraws of a count
LOOK = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
RECENT_STEPS, FEWEST_STEPS = 100, 5  # timed steps that a rate is the mean of, at most and at least


class Pace:
    """The recent rate of steps. The first one is not part of it, as it may compile and load."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS + 1)  # what was done by then, and seconds

    def step(self, done: float, seconds: float) -> None:
        """Record that a step has ended.

        Args:
            done: how much has been done by now.
            seconds: on a clock that may stand still for what is no part of the steps.
        """
        self._ends.append((done, seconds))

    @property
    def rate(self) -> float | None:
        """How much is done in a second; None before a few steps have been timed."""
        if len(self._ends) <= FEWEST_STEPS:
            return None
        (before, began), (done, ended) = self._ends[0], self._ends[-1]
        return (done - before) / max(ended - began, 1e-9)


class ProgressBar:
    """A bar on stderr with the recent rate and the time left; nothing unless stderr is a terminal.

    While it is shown, everything printed to a terminal appears above it in whole lines.

    Args:
        total: what there is to do.
        done: how much of it was done before this process.
        unit: of both.
        what: shown before the bar.
    """

    def __init__(self, total: int, done: int = 0, *, unit: str, what: str = "") -> None:
        self._before = sys.stdout, sys.stderr
        enabled = sys.stderr.isatty()
        look: dict[str, Any] = {"bar_format": LOOK, "leave": False, "dynamic_ncols": True, "file": sys.stderr}
        self._what, self._unit, self._pace = what and f"{what}: ", unit, Pace()
        self._bar = tqdm(desc=self._what, total=total, initial=done, miniters=0, disable=not enabled, **look)
        self._count_pace, self._counted = Pace(), float("-inf")  # of a count, and when it was drawn
        self._above: list[_AboveBar] = []
        if enabled:
            sys.stderr = self._put_above(sys.stderr)
            sys.stdout = self._put_above(sys.stdout) if sys.stdout.isatty() else sys.stdout

    def _put_above(self, stream: TextIO) -> Any:
        self._above.append(_AboveBar(stream, self._bar))
        return self._above[-1]

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def move(self, done: int, seconds: float | None = None) -> None:
        """Show how much has been done.

        Args:
            seconds: on the clock of `Pace.step`, if what has just been done is a step whose rate matters.
        """
        if self._bar.disable:
            return
        if seconds is not None:
            self._pace.step(done, seconds)
        self._bar.set_postfix_str(self._rate_and_time_left(done), refresh=False)
        self._bar.update(done - self._bar.n)

    def advance(self) -> None:
        """Show that one more is about to be done."""
        self.move(self._bar.n + 1, time.monotonic() if self._bar.n else None)  # the first one is not timed

    def status(self, text: str) -> None:
        """Show what the run is doing, in place of rate and time left; an empty text shows these again."""
        self._describe(f"{text}: " if text else self._what, "" if text else self._rate_and_time_left(self._bar.n))

    def count(self, what: str, step: int, steps: int, seconds: float) -> None:
        """Show step n of m, which is about to begin, and the time left as in `move`. It is not drawn every time.

        Args:
            seconds: on the clock of `Pace.step`.
        """
        if self._bar.disable:
            return
        if step == 1:
            self._count_pace, self._counted = Pace(), float("-inf")
        else:
            self._count_pace.step(step - 1, seconds)
        now = time.monotonic()
        if now - self._counted >= COUNT_INTERVAL:
            rate = self._count_pace.rate
            left = "" if rate is None else f", {_time(steps - step, rate)} left"
            self._describe(f"{what}: step {step} of {steps}{left}: ", "")
            self._counted = now

    def _describe(self, before: str, behind: str) -> None:
        self._bar.set_postfix_str(behind, refresh=False)
        self._bar.set_description_str(before)

    def _rate_and_time_left(self, done: int) -> str:
        rate = self._pace.rate
        if rate is None:
            return "time left not known yet"
        shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} {self._unit}/s, {_time(self._bar.total - done, rate)} left"

    def close(self) -> None:
        """Remove the bar."""
        for stream in self._above:
            stream.finish()
        if self._above:
            sys.stdout, sys.stderr = self._before
        self._above = []
        self._bar.close()


def _time(amount: float, rate: float) -> str:
    """Return how long an amount takes, in words."""
    return str(tqdm.format_interval(max(amount, 0) / max(rate, 1e-9)))


class _AboveBar:
    """A stream of a terminal whose lines are printed above a bar. A line is held back until it is complete."""

    def __init__(self, stream: TextIO, bar: Any) -> None:
        self._stream, self._bar, self._begun = stream, bar, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._print(lines + newline)
        return len(text)

    def finish(self) -> None:
        """Print what has been held back."""
        if self._begun:
            self._print(self._begun + "\n")
            self._begun = ""

    def _print(self, lines: str) -> None:
        with self._bar.external_write_mode(file=self._bar.fp):  # clears the bar, and draws it again
            self._stream.write(lines)
            self._stream.flush()
