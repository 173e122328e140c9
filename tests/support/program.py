"""The programs called in this process."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import evaluate
import plot
import report
import sweep
import train
from config import Config
from errors import UserError
from running.start import open_run
from tests.support.runs import RENDERER

MAIN: Mapping[str, Callable[[Sequence[str]], int]] = {
    **{"train": train.main, "evaluate": evaluate.main, "plot": plot.main, "report": report.main, "sweep": sweep.main}
}


class Answer(NamedTuple):
    """How the program ended, and the lines of its stderr."""

    code: Any
    lines: list[str]


def parse(line: str) -> Config:
    """Return the Config of a command line of train.py."""
    return train.parse_args(shlex.split(line))


def call(words: Sequence[str], function: Callable[[Sequence[str]], Any] = train.main) -> Answer:
    """Call a program with these words. Any exception but SystemExit passes through."""
    errors = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        try:
            code = function(words)
        except SystemExit as stopped:
            code = stopped.code
    return Answer(code, errors.getvalue().splitlines())


def resume(folder: Path, *words: str) -> Answer:
    return call(["--resume", str(folder), *words])


def can_open(folder: Path, *words: str) -> bool:
    """Resume the run up to its first step, with fake renderer; return whether that works. Else it must be refused."""

    def begin(words: Sequence[str]) -> int:
        try:
            open_run(train.parse_args(words), RENDERER).close()
        except UserError as error:
            return train._failed(str(error), 2)
        return 0

    answer = call(["--resume", str(folder), *words], begin)
    if answer.code != 0:
        assert_refused(answer)
    return bool(answer.code == 0)


def assert_refused(answer: Answer, *named: str, program: str = "train") -> None:
    """Check for exit code 2, and one line after nothing but warnings that holds each of `named` as a word."""
    assert answer.code == 2, answer
    *before, last = answer.lines
    assert last.startswith(f"{program}.py: error: "), answer
    assert len(last) < 3000
    assert all(line.startswith(("warning: ", "left out: ")) for line in before), answer
    assert_names(last, *named)


def assert_names(message: str, *named: str) -> None:
    """Check that each of `named` is in the message, and not only as part of a longer word."""
    for words in named:
        assert re.search(rf"(?<!\w){re.escape(words)}(?!\w)", message), message
