"""Every exception that crosses modules. Standard library only, so that any module can import it at the top.

The message of each is one line that says what is wrong, names the flag or file, and says what to do.
"""

from __future__ import annotations

import re

LONGEST_WORD = 300  # characters of a word, such as a path, that a message shows
LONGEST_LINE = 3000  # and of a message


class UserError(Exception):
    """Bad input that the user can fix: a flag, a file, a missing resource. Programs print the message and return 2."""


class RunError(Exception):
    """The run cannot continue. The message says why and which checkpoint is the last good one."""


class StopError(Exception):
    """A signal asked the run to stop during an evaluation."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used. The message names the file."""


class LogError(Exception):
    """A log file that does not match the checkpoint. The message names the file."""


class TaskError(ValueError):
    """There is no such task, or it cannot be used. The message names alternatives."""


class RenderingError(RuntimeError):
    """No OpenGL renderer works, or a picture cannot be drawn. The message says what was tried."""


class SimulationError(RuntimeError):
    """The physics became unstable, so the episode cannot continue."""


class EnvError(RuntimeError):
    """An environment that others wrote raised an exception in its reset or step."""


class WorkerError(RuntimeError):
    """A process that plays evaluation episodes has died."""


def reason_of(error: Exception) -> str:
    """Return the message of an error; of one of the system's, the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def one_line(message: str) -> str:
    """Escape characters that would break the line or act on a terminal, and shorten what is very long."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    line = re.sub(rf"(\S{{{LONGEST_WORD // 2}}})\S{{{LONGEST_WORD // 2},}}?(['\"]?[:;,]?)(?!\S)", r"\1[...]\2", line)
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}[...]{line[-half:]}"
