"""Being asked to stop: Ctrl-C, the SIGTERM of a cluster that wants its machine back, a terminal that closes.

And going on where nobody reads the console any more.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO


class StopError(Exception):
    """Somebody asked the run to stop, in the middle of an evaluation."""


class StopRequest:
    """The signals that ask for it. `with StopRequest() as stop:` within it the first one only sets `number`, if the run
    is `listening`, and the second ends the process at once; before it listens, one raises KeyboardInterrupt.
    """

    def __init__(self, answer: str = "the step is finished and a checkpoint written") -> None:
        self.answer = answer  # what will be done, for whoever asked
        self.number: int | None = None
        self.listening = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
        with suppress(OSError):  # not print: the signal may have come in the middle of another one
            os.write(2, f"stopping ({signal.Signals(number).name}): {self.answer}; once more stops at once\n".encode())


@contextmanager
def unread_console() -> Iterator[None]:
    """Within it, what is printed where nobody reads it any more is lost: a closed terminal, a `tee` that ended."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Console(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Console:
    """An output stream that forgives OSError."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Lead the stream nowhere, as what it still holds would otherwise be an error when Python ends."""
        if error.errno in (errno.EPIPE, errno.EIO):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
