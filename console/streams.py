"""Output streams that never end a program: closed, unread, or unable to encode a character."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

DESCRIPTORS = (0, 1, 2)  # standard input, output and error


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Within the block, no output fails: it is discarded if nobody can read it, and escaped if it cannot be encoded."""
    _open_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_TolerantStream(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_descriptors() -> None:
    """Open the null device on closed standard descriptors. The next file would get their number, and their output."""
    for descriptor in DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


class _TolerantStream:
    """A text stream that discards what it cannot write and escapes what it cannot encode."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._discard_buffer(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._discard_buffer(error)

    def _discard_buffer(self, error: OSError) -> None:
        """Redirect the stream to the null device: Python flushes its buffer at exit, which would fail again."""
        if error.errno in (errno.EPIPE, errno.EIO):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
