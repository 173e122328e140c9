"""Files that survive what happens to the process that writes them, and folders that only one process writes into."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config import UserError

UNFINISHED = ".partial"
LOCK_FILE = ".lock"


def write_file(path: Path, data: bytes) -> None:
    """Replace the file by `data`, all at once: whoever looks, or a crash, finds the old bytes or the new ones."""
    aside = path.with_name(path.name + UNFINISHED)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk's error doesn't name it
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Keep other processes from writing into the folder; the system frees it when this one ends, however it ends.

    Raises UserError where another process has it. On a disk that knows no locks there is a warning, and nothing else.
    """
    try:
        file = os.fdopen(os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror}; mend its rights or copy it elsewhere") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()[:200] or "another process"
            raise UserError(f"{folder} is in use by {owner}; stop that first") from None
        except OSError as error:  # as some network file systems
            print(
                f"warning: {folder} can't be locked ({error.strerror}): start one process on it only", file=sys.stderr
            )
        with suppress(OSError):  # who has it is said to be helpful; a full disk is no reason to stop here
            os.pwrite(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".ljust(80).encode(), 0)
        yield folder


def in_use(folder: Path) -> bool:
    """Whether a process has the folder `locked`; it may do so right after the answer."""
    try:
        with (folder / LOCK_FILE).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
