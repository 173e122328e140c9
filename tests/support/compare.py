"""Comparison of what two runs have written: CSV files, TensorBoard scalars, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from replay_buffer import ReplayBuffer
from running.checkpoint import Checkpoints
from running.stored_config import RESUMABLE

CLOCK = ("duration", "fps")  # columns and tags measured by a clock


def table(path: Path) -> list[list[str]]:
    """Return a CSV file's cells as text, without the columns in CLOCK. Every row must be complete."""
    text = path.read_text()
    assert text.endswith("\n")
    header, *rows = [line.split(",") for line in text.splitlines()]
    assert all(len(row) == len(header) for row in rows), path
    kept = [number for number, column in enumerate(header) if column not in CLOCK]
    return [[row[number] for number in kept] for row in (header, *rows)]


def tables(folder: Path) -> dict[str, list[list[str]]]:
    """Return the `table` of each CSV file that every run has."""
    return {name: table(folder / f"{name}.csv") for name in ("train", "eval", "episodes")}


def column(folder: Path, name: str, title: str) -> list[str]:
    """Return a column of the CSV file `name`."""
    header, *rows = table(folder / f"{name}.csv")
    return [row[header.index(title)] for row in rows]


def steps(folder: Path, name: str) -> list[int]:
    """Return the frames of the rows of the CSV file `name`."""
    return [int(cell) for cell in column(folder, name, "step")]


def scalars(folder: Path, purge: bool) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's (step, value) pairs by tag, with measured times replaced by 0.

    Args:
        purge: only those that TensorBoard shows; otherwise all that are in the files.
    """
    reader = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0}, purge_orphaned_data=purge)
    reader.Reload()
    pairs = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    measured = {tag for tag in pairs if tag.rpartition("/")[2] in CLOCK}
    return {
        tag: [(step, 0.0 if tag in measured else value) for step, value in found]
        for tag, found in pairs.items()
        if not tag.startswith("time/")
    }


def state(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's content, the replay buffer assembled, without measured times and resumable flags."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.read()
    assert found is not None
    flags = found["flags"]
    buffer = ReplayBuffer(flags["replay_buffer_capacity"], (3, *[flags["image_size"]] * 2), flags["frame_stack"], 1)
    buffer.load_state_dict(found["replay_buffer"])
    for piece in checkpoints.replay_pieces():
        buffer.load_transitions(piece)
    assert len(buffer) > 0
    found["transitions"] = buffer.transitions_since(0)
    found["flags"] = {name: value for name, value in flags.items() if name not in RESUMABLE | {"work_dir"}}
    found["logs"] = found["logs"]["meters"]
    del found["stopwatch"], found["render_seconds"]
    if found["underway"] is not None:
        del found["underway"]["seconds"]
    return found


def differences(one: Any, two: Any, where: str = "") -> Iterator[str]:
    """Yield the places in which two states differ, in type or in value."""
    if type(one) is not type(two):
        yield f"{where}: {type(one)}, {type(two)}"
    elif isinstance(one, dict):
        if list(one) != list(two):
            yield f"{where}: {list(one)}, {list(two)}"
        for key in one.keys() & two.keys():
            yield from differences(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        if len(one) != len(two):
            yield f"{where}: lengths {len(one)}, {len(two)}"
        for number, pair in enumerate(zip(one, two, strict=False)):
            yield from differences(*pair, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        if one.dtype != two.dtype or not torch.equal(one, two):
            yield where
    elif one != two:
        yield f"{where}: {one}, {two}"


def assert_equal_runs(folder: Path, reference: Path, context: str = "", tensorboard: bool = True) -> None:
    """Assert equal CSV files apart from durations, TensorBoard scalars and last checkpoints, with no row twice."""
    for name, rows in tables(reference).items():
        assert table(folder / f"{name}.csv") == rows, f"{name}.csv {context}"
        assert steps(folder, name) == sorted(steps(folder, name)), context
    for name in ("train", "eval"):
        assert len(steps(folder, name)) == len(set(steps(folder, name))), context
    assert list(differences(state(folder), state(reference))) == [], context
    if tensorboard:
        for purge in (True, False):
            assert scalars(folder, purge) == scalars(reference, purge), context
    assert leftovers(folder) == [], context


def leftovers(folder: Path) -> list[Path]:
    """Return unfinished files."""
    return list(folder.rglob("*.partial*"))


def checkpoint_step(folder: Path) -> int:
    """Return the agent step of the checkpoint, after reading all its files; -1 without one."""
    checkpoints = Checkpoints(folder)
    checkpoints.read()
    assert all(checkpoints.replay_pieces())
    return checkpoints.step
