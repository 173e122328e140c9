"""Files that are replaced atomically, and folders that only one process at a time may write to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from errors import UserError, reason_of

LARGEST_TEXT = 1 << 30  # bytes of a table or a record
UNFINISHED = ".partial"
LOCK_FILE = ".lock"


def write_file(path: Path, data: bytes) -> None:
    """Replace the file's content atomically: a reader, or a crash, finds the old bytes or the new ones.

    Raises OSError with the file's name.
    """
    aside = path.with_name(path.name + UNFINISHED)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except (OSError, KeyboardInterrupt) as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk's error has no name
        raise


def sync_folder(folder: Path) -> None:
    """Sync the folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """Return the file's bytes. Raises OSError, with its name, if it is no regular file or has more than `most` bytes.

    To read a pipe or a device could take forever, and a huge file all memory.
    """
    check_regular(path)
    if path.stat().st_size > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Raise OSError, with the file's name, if it exists and is not a regular file."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def check_file(path: Path) -> None:
    """Raise OSError, with the file's name, if the file exists and cannot be written, or is not a regular file."""
    if not os.path.lexists(path):
        return
    check_regular(path)
    with path.open("rb+"):
        pass


def check_folder(folder: Path) -> None:
    """Raise OSError, with the folder's name, if no file can be made in it. A folder that is missing can be made."""
    if not os.path.lexists(folder):
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make the folder and its parents; after the block remove those that were made and are empty. Raises OSError."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        if not (folder.is_dir() and any(folder.iterdir())):
            for place in missing:
                with suppress(OSError):
                    place.rmdir()


@contextmanager
def output_folder(out: Path) -> Iterator[None]:
    """Make the folder that --out names, for the block to write to; remove it again if nothing was written.

    Raises UserError if the folder, or a file in it, cannot be written.
    """
    try:
        with made_folder(out):
            check_folder(out)
            yield
    except OSError as error:
        place = Path(str(error.filename))
        if not (place.is_relative_to(out) or out.is_relative_to(place)):  # nothing that was written
            raise
        remedy = f"{'free space, or ' if disk_is_full(error) else ''}name another folder with --out"
        raise UserError(f"{reason_of(error)}; {remedy}") from error


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Lock the folder against other processes. The system releases the lock when this process ends, however it ends.

    Raises UserError if another process holds the lock. On a disk without locks it only prints a warning.
    """
    try:
        file = os.fdopen(os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644), "r+", errors="replace")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; fix its permissions or copy it elsewhere"
        ) from error
    with file:
        try:
            take_lock(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()[:200] or "another process"
            raise UserError(f"{folder} is in use by {owner}; stop that first") from None
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {folder} cannot be locked ({error.strerror}): run only one process on it", file=sys.stderr)
        with suppress(OSError):  # the owner's name is informative only; a full disk must not stop the run here
            os.pwrite(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".ljust(80).encode(), 0)
        yield folder


def take_lock(file: IO[str]) -> None:
    """Lock the file, trying again for a second: another process may only be looking, in `in_use`.

    Raises BlockingIOError if another process holds the lock.
    """
    for attempts_left in reversed(range(20)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not attempts_left:
                raise
            time.sleep(0.05)


def in_use(folder: Path) -> bool:
    """Return whether a process holds the folder's lock. The answer may be outdated at once."""
    try:
        with (folder / LOCK_FILE).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def no_room(work_dir: object, error: OSError) -> UserError:
    """Return the error to raise if nothing can be written to --work_dir."""
    remedy = "on a disk with free space" if disk_is_full(error) else "that can be written"
    return UserError(f"--work_dir {work_dir}: {error.strerror or error}; name a folder {remedy}")


def disk_is_full(error: OSError) -> bool:
    """Return whether an error says that there is no more space on the disk for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
