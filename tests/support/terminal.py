"""Programs on a real pseudo-terminal, and the screen that they leave."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

from tests.support.paths import ROOT


class Screen:
    """The lines of a terminal: carriage returns, line feeds, erasing to the end of the line, and wrapping.

    Args:
        columns: width in characters.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.rows = columns, [""]
        self.wrapped = False  # whether a text was longer than the screen is wide
        self._row = self._column = 0

    def feed(self, text: str) -> Screen:
        for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[^\x1b]|\x1b", text):
            if part == "\r":
                self._column = 0
            elif part == "\n":
                self._down(1)
            elif part == "\x1b[A":
                self._down(-1)
            elif part == "\x1b[K":
                self.rows[self._row] = self.rows[self._row][: self._column]
            elif part.startswith("\x1b"):
                raise ValueError(f"this screen does not know {part!r}")
            else:
                self._put(part)
        return self

    @property
    def lines(self) -> list[str]:
        """The lines that are not empty."""
        return [row.rstrip() for row in self.rows if row.strip()]

    def _down(self, rows: int) -> None:
        self._row += rows
        self.rows += [""] * (self._row + 1 - len(self.rows))

    def _put(self, letter: str) -> None:
        if self._column == self.columns:
            self.wrapped = True
            self._down(1)
            self._column = 0
        row = self.rows[self._row].ljust(self._column)
        self.rows[self._row] = row[: self._column] + letter + row[self._column + 1 :]
        self._column += 1


def open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Return the file descriptors of a new terminal and of its other side, for a program."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    return terminal, side


def read_terminal(terminal: int) -> str:
    """Return what is written to a terminal until its other side is closed, and close it."""
    written = b""
    try:
        while data := os.read(terminal, 4096):
            written += data
    except OSError:  # Linux reports like this that the other side was closed
        pass
    finally:
        os.close(terminal)
    return written.decode()


def run_on_terminal(words: Sequence[str], columns: int) -> tuple[int, str]:
    """Run a Python program with all its output on a new terminal. Return its exit code and what it wrote."""
    terminal, side = open_terminal(40, columns)
    unset = ("COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.Popen(
        [sys.executable, *words], stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True
    )
    os.close(side)
    written = read_terminal(terminal)
    return child.wait(), written
