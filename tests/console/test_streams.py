"""Output to a terminal or a pipe that is closed."""

from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from console.streams import tolerant_output
from tests.support.paths import ROOT


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


CHILD = """
import pathlib, sys
sys.path.insert(0, {root!r})
from console.streams import tolerant_output
with tolerant_output():
    print("é \u2028 out", flush=True)
    print("err", file=sys.stderr)
    path = pathlib.Path({path!r})
    with path.open("w") as file:
        file.write(str(file.fileno()))
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_descriptors(closed: str, tmp_path: Path) -> None:
    """The output is discarded, and no file that is opened later gets the number of a standard stream."""
    path = tmp_path / "file"
    script = shlex.join([sys.executable, "-c", CHILD.format(root=str(ROOT), path=str(path))])
    child = subprocess.run(["sh", "-c", f"exec {script} {closed}"], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert int(path.read_text()) > 2


def test_what_cannot_be_encoded_is_escaped(tmp_path: Path) -> None:
    script = CHILD.format(root=str(ROOT), path=str(tmp_path / "file"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    child = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "\\xe9 \\u2028 out\n")
