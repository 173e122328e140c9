"""Random damage to the files of runs and sweeps, for hypothesis."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.support.fuzz import ANY_JSON

CELLS = (
    st.sampled_from(
        [
            *("", "nan", "inf", "-inf", "0", "-0", "1", "-1", "1000", "1e30", "-1e30", "1e31", "1e308", "9" * 5000),
            *("x", '"', "1,2", "\0"),
        ]
    )
    | st.floats().map(str)
    | st.integers().map(str)
    | st.text(max_size=5)
)
REMOVED = object()
ODD_VALUES: tuple[Any, ...] = (
    *(REMOVED, None, True, 0, -1, 3, 2**63, 2**70, -(10**400), 0.5, 1e308, float("inf"), float("nan"), "", "text"),
    *([], {}, (), [1], {"a": 1}, torch.zeros(0), torch.zeros(3, dtype=torch.float64), torch.zeros(2, 2, 2)),
    *(torch.zeros(4, dtype=torch.uint8), torch.tensor(float("nan")), torch.tensor(-1), torch.tensor([[1 + 2j]])),
)


@st.composite
def damaged_bytes(draw: DrawFn, data: bytes) -> bytes:
    """Draw the data as it is in most cases, else cut, or with other bytes in it."""
    how = draw(st.sampled_from(["whole"] * 4 + ["cut", "other", "replaced"]))
    place = draw(st.integers(0, len(data)))
    if how == "replaced":
        return draw(st.binary(max_size=40))
    return {"whole": data, "cut": data[:place], "other": data[:place] + draw(st.binary(max_size=4)) + data[place:]}[how]


@st.composite
def damaged_table(draw: DrawFn, data: bytes) -> bytes:
    """Draw a CSV file with other cells, rows and columns, or other bytes."""
    lines = [line.split(",") for line in data.decode().split()]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(lines))
        row[draw(st.integers(0, len(row) - 1))] = draw(CELLS)
    lines = lines[: draw(st.integers(0, len(lines)))] + draw(st.lists(st.sampled_from(lines), max_size=2))
    text = "\n".join(map(",".join, lines)).encode(errors="replace")
    return draw(damaged_bytes(text + draw(st.sampled_from([b"\n", b"", b"\r\n", b"\n\n"]))))


@st.composite
def damaged_record(draw: DrawFn, record: Any) -> Any:
    """Draw a copy of what a JSON file holds in which up to three values are replaced, removed, added or repeated."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(record))
        if not places:
            break
        inner, key = draw(st.sampled_from(places))
        way = draw(st.sampled_from(["replace", "replace", "remove", "add", "repeat"]))
        value = copy.deepcopy(inner[key] if way == "repeat" else draw(ANY_JSON))  # hypothesis draws an object again
        if way == "replace":
            inner[key] = value
        elif way == "remove":
            del inner[key]
        elif isinstance(inner, list):
            inner.insert(0, value)
        else:
            inner[draw(st.text(max_size=5) | st.sampled_from(["progress", "started_at", "format"]))] = value
    return record


def _places(record: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every dict and list in a record with each of its keys."""
    for key in record if isinstance(record, dict) else range(len(record)) if isinstance(record, list) else ():
        yield record, key
        yield from _places(record[key])


@st.composite
def damaged_json(draw: DrawFn, record: Any) -> bytes:
    """Draw a JSON file with other values in it, another structure, or other bytes."""
    content = draw(damaged_record(record) if draw(st.integers(0, 5)) else ANY_JSON)
    deep = st.just(b"[" * 100_000) if not draw(st.integers(0, 20)) else st.nothing()
    return draw(deep | damaged_bytes(json.dumps(content).encode()))


@st.composite
def damaged_state(draw: DrawFn, state: dict[str, Any]) -> dict[str, Any]:
    """Draw a copy of a file of a checkpoint in which one value is odd or removed. Weights are changed as a whole."""
    top = draw(st.sampled_from(sorted(state)))  # every top-level entry is equally likely, whatever its size
    paths = [path for path in _paths(state) if path[0] == top and "modules" not in path[3:]]
    path = draw(st.sampled_from(paths) | st.sampled_from([path for path in paths if len(path) < 3]))
    changed_state = changed(state, path, draw(st.sampled_from(ODD_VALUES)))
    assert isinstance(changed_state, dict)
    return changed_state


def _paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to everything in a state; in long lists, to the first items only."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _paths(value, (*path, key))
    elif isinstance(content, (list, tuple)):
        for number, value in enumerate(content[:3]):
            yield from _paths(value, (*path, number))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value, or without a value, at one path."""
    if not path:
        return value
    step, *rest = path
    if isinstance(content, dict):
        made = dict(content)
        made[step] = changed(made[step], tuple(rest), value)
        return {key: item for key, item in made.items() if item is not REMOVED}
    items = list(content)
    items[step] = changed(items[step], tuple(rest), value)
    return type(content)(item for item in items if item is not REMOVED)
