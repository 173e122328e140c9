"""Names of files and folders: what a file system, a shell and a reader can take. Standard library only."""

from __future__ import annotations

import hashlib
import os
import re

from errors import UserError

CHECKPOINT_FOLDER, MANIFEST_FILE, SNAPSHOT_FOLDER = "checkpoint", "manifest.json", "snapshots"
LONGEST_NAME = 200  # bytes of a folder's name: file systems take 255, and more may be appended

FRAME_DIGITS = 8  # names of later frames are longer


def folder_name(text: str) -> str:
    """Return a task's name, or another text, as the name of a file or folder."""
    return short_name(re.sub(r"[^\w.-]+", "_", text), text)


def short_name(name: str, full: str | None = None) -> str:
    """Return the name of a folder; one of more than LONGEST_NAME bytes is cut, and a hash of `full` is appended."""
    data = os.fsencode(name)
    if len(data) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256((full or name).encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{data[: LONGEST_NAME - 9].decode(errors='ignore')}_{digest}"


def frame_name(frame: int) -> str:
    """Return a frame as the beginning of a file's name: with zeros in front, so that names sort as frames do."""
    return f"{frame:0{FRAME_DIGITS}d}"


def padded(number: int, largest: int) -> str:
    """Return a number with as many digits as the largest that it is listed with."""
    return f"{number:0{len(str(largest))}d}"


def check_name(flag: str, name: str | None) -> None:
    """Raise UserError if `name` cannot be the name of a folder."""
    if name is None:
        return
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise UserError(f"--{flag} must be letters, digits and _ . + = -; got {name!r}")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"--{flag} must be at most {LONGEST_NAME} bytes long; got {len(name.encode())}")
