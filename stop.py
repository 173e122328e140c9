"""Being asked to stop: Ctrl-C, and the SIGTERM of a cluster that wants its machine back."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class StopError(Exception):
    """Somebody asked the run to stop, in the middle of an evaluation."""


class StopRequest:
    """SIGINT and SIGTERM. `with StopRequest() as stop:` within it the first one only sets `number`, if the run is
    `listening`, and the second ends the process at once; before it listens, one raises KeyboardInterrupt.
    """

    def __init__(self, answer: str = "the step is finished and a checkpoint written") -> None:
        self.answer = answer  # what will be done, for whoever asked
        self.number: int | None = None
        self.listening = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's & have it
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What a process that a signal ended returns to the shell."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Raise StopError where a stop was asked for."""
        if self.number is not None:
            raise StopError

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        if not self.listening:
            raise KeyboardInterrupt
        # Not print: the signal may have come in the middle of another one.
        os.write(2, f"stopping: {self.answer}; once more stops at once\n".encode())
