"""CSV files of other programs and versions, whole and damaged."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from errors import UserError
from running.tables import read_table

DAMAGE = {
    "empty": (b"", "lacks the columns step, bound, env"),
    "another column": (b"steps,bound,env\n1,2,a\n", "lacks the column step"),
    "a word": (b"step,bound,env\n1,2,a\nmany,2,a\n", "line 3: step is 'many', not a number"),
    "no number": (b"step,bound,env\n,2,a\n", "line 2: step is '', not a number"),
    "NaN": (b"step,bound,env\nnan,2,a\n", "line 2: step is nan"),
    "infinite": (b"step,bound,env\ninf,2,a\n", "line 2: step is inf"),
    "overflow": (b"step,bound,env\n" + b"9" * 5000 + b",2,a\n", "line 2: step is inf"),
    "huge": (b"step,bound,env\n1,-1e300,a\n", "line 2: bound is -1e.300"),
    "infinite, where a cell may be empty": (b"step,bound,env\n1,inf,a\n", "bound is inf"),
    "a short row": (b"step,bound,env\n1,2\n", "line 2, has 2 cells instead of 3"),
    "a long row": (b"step,bound,env\n1,2,a,b\n", "line 2, has 4 cells instead of 3"),
    "an open quote": (b'step,bound,env\n1,2,"a\n3,4,b\n5,6,c', None),
    "binary": (bytes(range(256)), "is no CSV file"),
    "UTF-16": ("step,bound,env\n1,2,a\n".encode("utf-16"), "is no CSV file"),
    "a cell without end": (b"step,bound,env\n1,2," + b"x" * 200_000, "is no CSV file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    data, words = DAMAGE[damage]
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    if words is None:
        assert read_table(path, ["step"], texts=["env"])["env"] == ["a\n3,4,b\n5,6,c"]
        return
    with pytest.raises(UserError, match=words) as caught:
        read_table(path, ["step"], optional=["bound"], texts=["env"])
    assert str(caught.value).startswith(str(path))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("folder", "pipe", "loop", "nowhere"):
        with pytest.raises(UserError, match=str(tmp_path / name)):
            read_table(tmp_path / name, ["step"])


@pytest.mark.parametrize(
    "text", ["a,step,bound\nx,1,2.5\ny,3,\n", "\ufeffstep,a,bound\r\n 1 ,x,2.5\r\n\r\n3,y,nan\r\n"]
)
def test_columns_are_found_by_name(tmp_path: Path, text: str) -> None:
    """In any order, beside others, and as spreadsheets write them."""
    (tmp_path / "a.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "a.csv", ["step"], optional=["bound"], texts=["a"])
    assert (table["step"], table["a"]) == ([1.0, 3.0], ["x", "y"])
    assert table["bound"][0] == 2.5
    assert math.isnan(float(table["bound"][1]))
