"""Signals that ask a program to stop: Ctrl-C, a cluster's SIGTERM, the SIGHUP of a closed terminal."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import Any

from errors import StopError


class StopRequest:
    """Record the first SIGINT, SIGTERM or SIGHUP in `number`; a second one ends the process at once.

    Use it as a context manager. While `listening` is false, a signal raises KeyboardInterrupt instead.

    Args:
        answer: what the program will do, printed when a signal arrives.
    """

    def __init__(self, answer: str = "finishing the step and writing a checkpoint") -> None:
        self.answer = answer
        self.number: int | None = None
        self.listening = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and a shell's & ignore some
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """The exit code of a process that the signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Raise StopError if a signal has arrived."""
        if self.number is not None:
            raise StopError

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if not self.listening:
            raise KeyboardInterrupt
        with suppress(OSError):  # os.write, as the signal may interrupt a print
            text = f"stopping ({signal.Signals(number).name}): {self.answer}; a second signal stops at once\n"
            clear = "\r\x1b[K" if os.isatty(2) else ""  # a progress bar, and the ^C that the terminal has echoed
            os.write(2, (clear + text).encode())
