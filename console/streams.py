"""Output streams that outlive their reader: a closed terminal, or a pipe whose other end has exited."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Within the block, output to a closed terminal or pipe is discarded instead of raising OSError."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_TolerantStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _TolerantStream:
    """An output stream that discards output once the terminal or pipe is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
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
