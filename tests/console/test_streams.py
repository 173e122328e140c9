"""Output to a terminal or a pipe that is closed."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

import pytest

from console.streams import tolerant_output


class Broken(io.StringIO):
    """A stream whose device fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EBADF])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_broken_stream_is_tolerated(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, name, Broken(number))
    with tolerant_output():
        stream = getattr(sys, name)
        assert stream.write("text") == 4
        stream.flush()
        print("text", file=stream, flush=True)


def test_the_streams_are_restored() -> None:
    before = sys.stdout, sys.stderr
    block = tolerant_output()
    block.__enter__()
    assert sys.stdout is not before[0]
    assert sys.stderr is not before[1]
    block.__exit__(None, None, None)
    assert (sys.stdout, sys.stderr) == before


def test_output_reaches_a_stream_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    with tolerant_output():
        print("out")
        print("err", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert capsys.readouterr() == ("out\n", "err\n")


def test_a_closed_pipe_is_replaced_by_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python flushes the stream's buffer at exit, which must not fail either."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with tolerant_output():
            for _ in range(3):
                print("x" * 100_000, flush=True)
        assert os.path.samestat(os.fstat(pipe.fileno()), os.stat(os.devnull))


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> Any:
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(sys, "stdout", Closed())
    with tolerant_output(), pytest.raises(ValueError, match="closed file"):
        print("text")
