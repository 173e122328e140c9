"""Read CSV files that may be of other programs or versions, or damaged. Standard library only."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from console.numbers import counted
from errors import UserError, reason_of
from running.atomic_files import read_file

LARGEST = 1e30  # what can still be averaged and drawn
Columns = dict[str, list[float] | list[str]]


def read_table(
    path: Path,
    numbers: Sequence[str],
    *,
    optional: Sequence[str] = (),
    newer: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> Columns:
    """Return columns of a CSV file, by name.

    Args:
        numbers: columns that hold a finite number in each row.
        optional: columns of numbers in which a cell may be empty or nan; both are read as NaN.
        newer: like `optional`, but files of older versions may lack the whole column.
        texts: columns that are returned as text.

    Raises:
        UserError: the file cannot be read, or a column or a number is missing. The message starts with its name.
    """
    first, *rows = _lines(path) or [(1, [])]
    header = first[1]
    lacked = [name for name in newer if name not in header]
    optional = [*optional, *(name for name in newer if name in header)]
    missing = [name for name in (*numbers, *optional, *texts) if name not in header]
    if missing:
        raise UserError(f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    places = {name: header.index(name) for name in (*numbers, *optional, *texts)}
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}, has {counted(len(row), 'cell')} instead of {len(header)}")
    columns: Columns = {}
    for name, place in places.items():
        cells = [(line, row[place]) for line, row in rows]
        if name in texts:
            columns[name] = [cell for _, cell in cells]
        else:
            columns[name] = [_number(cell, name in optional, f"{path}, line {line}: {name}") for line, cell in cells]
    return {**columns, **{name: [math.nan] * len(rows) for name in lacked}}


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of cells, the header included, each with its line number. Raises UserError."""
    try:
        reader = csv.reader(io.StringIO(read_file(path).decode("utf-8-sig"), newline=""))
        return [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise UserError(reason_of(error)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file") from error


def _number(cell: str, may_be_missing: bool, place: str) -> float:
    """Return a cell's number. Raises UserError."""
    try:
        number = float(cell or "nan") if may_be_missing else float(cell)
    except ValueError:
        raise UserError(f"{place} is {cell!r}, not a number") from None
    if abs(number) <= LARGEST or (may_be_missing and math.isnan(number)):
        return number
    raise UserError(f"{place} is {number}; it must be a finite number of at most {LARGEST:g}")
