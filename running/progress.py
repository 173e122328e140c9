"""A progress bar below the lines that are printed."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

COUNT_INTERVAL = 0.1  # seconds between two redraws of a count


class ProgressBar:
    """A bar on stderr with speed and time left; nothing unless stderr is a terminal.

    While it is shown, everything printed to a terminal appears above it in whole lines.

    Args:
        total: what there is to do.
        done: how much of it has been done.
        unit: of both.
        what: shown before the bar.
    """

    def __init__(self, total: int, done: int = 0, *, unit: str, what: str = "") -> None:
        self._before = sys.stdout, sys.stderr
        enabled = sys.stderr.isatty()
        look: dict[str, Any] = {"unit": f" {unit}", "leave": False, "dynamic_ncols": True, "file": sys.stderr}
        self._bar = tqdm(desc=what or None, total=total, initial=done, disable=not enabled, **look)
        self._counted = float("-inf")  # when a count was drawn
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

    def move(self, done: int) -> None:
        """Show how much has been done."""
        self._bar.update(done - self._bar.n)

    def advance(self) -> None:
        """Show that one more has been done."""
        self._bar.update()

    def status(self, text: str) -> None:
        """Show what the run is doing; an empty text shows nothing."""
        self._bar.set_description(text)

    def count(self, what: str, step: int, steps: int, seconds: float) -> None:
        """Show step n of m, and the time left if the rest goes on as the seconds so far. It is not drawn every time."""
        now = time.monotonic()
        if not self._bar.disable and now - self._counted >= COUNT_INTERVAL:
            left = tqdm.format_interval(seconds / step * max(steps - step, 0))
            self._bar.set_description(f"{what}: step {step} of {steps}, {left} left")
            self._counted = now

    def close(self) -> None:
        """Remove the bar."""
        for stream in self._above:
            stream.finish()
        if self._above:
            sys.stdout, sys.stderr = self._before
        self._above = []
        self._bar.close()


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
