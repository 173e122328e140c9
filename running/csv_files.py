"""CSV files of a run. They are complete at any time, and a later version of the program can continue them.

A version that has more columns appends them to the file's own, so old rows have empty cells there. Columns that a
version no longer has stay, and are empty from then on. Standard library only.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from errors import LogError
from running.atomic_files import read_file, write_file


def csv_lines(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], name: str) -> bytes:
    """Return lines of a CSV file. Raises ValueError, with the file's name, if a row has an undeclared column."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    for row in rows:
        check_declared(row, columns, f"column of {name}")
        writer.writerow(row)
    return lines.getvalue().encode()


def header(columns: Sequence[str]) -> dict[str, str]:
    """Return the first row of a CSV file."""
    return dict(zip(columns, columns, strict=True))


def check_declared(names: Iterable[str], declared: Sequence[str], kind: str) -> None:
    """Raise ValueError if a name is not declared."""
    unknown = [name for name in names if name not in declared]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such {kind}; declare it in running/columns.py")


class CsvFile:
    """A CSV file with fixed columns. A row may leave columns out; their cells are empty.

    Each row is one unbuffered write, so the file ends with a complete row at any time, also after a kill.

    Args:
        keep: number of bytes of an existing file to keep and append to; the rest is cut off. 0 starts a new file.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, keep: int = 0) -> None:
        self.columns = columns
        self._file = path.open("rb+" if keep else "wb", buffering=0)
        if keep:
            self._file.truncate(keep)
            self._file.seek(keep)
        else:
            self.write(header(columns))

    def position(self) -> int:
        """Sync the file to disk and return its length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row. Raises ValueError if it has a column that the file does not have."""
        data = csv_lines([row], self.columns, self._file.name)
        try:
            written = self._file.write(data)
        except OSError as error:  # Python's error has no file name
            raise OSError(error.errno, error.strerror, self._file.name) from error
        if written != len(data):  # the disk filled up within the row
            self._file.truncate(self._file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def close(self) -> None:
        self._file.close()


# -- continuing a file -------------------------------------------------------------------------------------------------


class Beginning(NamedTuple):
    """The part of a CSV file that a checkpoint counts."""

    columns: tuple[str, ...]
    data: bytes  # complete rows, the header included


def read_beginning(path: Path, recorded: Sequence[str], position: int) -> Beginning:
    """Return the part of a file that was there at a checkpoint. Raises LogError if it is not there now.

    Args:
        recorded: the file's columns at the checkpoint. Columns may have been appended since.
        position: the file's length then, in bytes.
    """
    data = read_file(path) if path.exists() else b""
    damaged = LogError(f"{path} differs from what the checkpoint recorded; restore a copy, or start a new run")
    if not data:
        raise damaged
    columns = tuple(data.partition(b"\n")[0].decode(errors="replace").split(","))
    if columns[: len(recorded)] != tuple(recorded):
        raise LogError(f"{path} has other columns; use the version of the program that wrote it, or start a new run")
    counted = kept = 0
    for line in data.splitlines(keepends=True):
        if counted >= position:
            break
        kept += len(line)
        # No cell has a comma or a quote. Without the cells that were appended, it is the line of the checkpoint.
        counted += len(line) if len(columns) == len(recorded) else len(_cut(line, len(recorded)))
    if counted != position or not data[:kept].endswith(b"\n"):
        raise damaged
    return Beginning(columns, data[:kept])


def _cut(line: bytes, width: int) -> bytes:
    """Return the first `width` cells of a line."""
    return b",".join(line.rstrip(b"\n").split(b",")[:width]) + b"\n"


def continue_file(path: Path, columns: Sequence[str], recorded: Sequence[str], position: int) -> CsvFile:
    """Open a file as it was at a checkpoint, to append rows with these columns; see `read_beginning`.

    If columns must be appended, the file is replaced atomically. The checkpoint still fits it after that.
    """
    present, data = read_beginning(path, recorded, position)
    missing = tuple(name for name in columns if name not in present)
    if missing:
        rows = data.splitlines()[1:]
        lines = [",".join((*present, *missing)).encode(), *(row + b"," * len(missing) for row in rows)]
        data = b"".join(line + b"\n" for line in lines)
        write_file(path, data)
    return CsvFile(path, (*present, *missing), keep=len(data))
