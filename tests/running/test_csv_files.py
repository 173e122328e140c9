"""CSV files that are cut back to a checkpoint and continued, also by a version with other columns."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from errors import LogError, UserError
from running.checkpoint import Checkpoints
from running.columns import csv_columns, former_columns
from running.csv_files import CsvFile, continue_file, csv_lines, header, read_beginning
from running.names import CHECKPOINT_FOLDER
from tests.support.labs import Start, tables
from tests.support.runs import CLOCK, played, rows, stop_at

OLD, NEW = ("one", "gone", "two"), ("one", "two", "added")


def write(path: Path, columns: tuple[str, ...], *written: dict[str, float]) -> int:
    """Write a file, and return its length."""
    file = CsvFile(path, columns)
    for row in written:
        file.write(row)
    length = file.position()
    file.close()
    return length


def append(path: Path, columns: tuple[str, ...], recorded: tuple[str, ...], position: int, row: dict[str, int]) -> int:
    """Continue a file with one row, and return its length."""
    file = continue_file(path, columns, recorded, position)
    file.write(row)
    length = file.position()
    file.close()
    return length


def test_an_existing_file_is_cut_back_and_appended_to(tmp_path: Path) -> None:
    path, columns = tmp_path / "a.csv", ("one", "two")
    keep = write(path, columns, {"one": 1})
    with path.open("a") as file:
        file.write(",2\n")
    with pytest.raises(LogError, match=r"none\.csv differs from what the checkpoint recorded"):
        read_beginning(tmp_path / "none.csv", columns, keep)
    with pytest.raises(LogError, match=r"a\.csv has other columns; use the version of the program that wrote it"):
        read_beginning(path, ("one", "three"), keep)
    for length in (keep - 1, 1000):  # within a row, and beyond the end
        with pytest.raises(LogError, match=r"a\.csv differs"):
            read_beginning(path, columns, length)
    assert read_beginning(path, columns, keep).data == path.read_bytes()[:keep]
    append(path, columns, columns, keep, {"one": 3})
    assert path.read_text() == "one,two\n1,\n3,\n"


def test_columns_are_appended_and_none_is_removed(tmp_path: Path) -> None:
    """What was written after the checkpoint is cut off, whichever columns it has; the checkpoint fits again."""
    path = tmp_path / "a.csv"
    keep = write(path, OLD, {"one": 1, "gone": 0.25, "two": 22}, {"one": 333, "two": 4})
    with path.open("a") as file:
        file.write("5,6,7\n")
    for last in (5, 66):
        length = append(path, NEW, OLD, keep, {"one": last, "two": 7, "added": 8})
        assert path.read_text() == f"one,gone,two,added\n1,0.25,22,\n333,,4,\n{last},,7,8\n"
    columns = (*OLD, "added")
    assert append(path, NEW, columns, length, {"one": 9}) == length + len("9,,,\n")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("position", [-1, 1])
def test_a_continued_file_that_the_checkpoint_does_not_fit(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.csv"
    keep = write(path, OLD, {"one": 1, "gone": 0.25})
    append(path, NEW, OLD, keep, {"one": 2})
    before = path.read_bytes()
    with pytest.raises(LogError, match=r"a\.csv differs"):
        continue_file(path, NEW, OLD, keep + position)
    assert path.read_bytes() == before


# -- runs of the version before ----------------------------------------------------------------------------------------


def make_older(folder: Path) -> None:
    """Turn a run into one of a version with the former columns, which its checkpoints did not record."""
    checkpoints = Checkpoints(folder)
    state = checkpoints.read()
    assert state is not None
    del state["logs"]["columns"]
    for name, columns in former_columns(with_skills=True).items():
        path = folder / name
        kept = path.read_bytes()[: state["logs"]["position"][name]].count(b"\n") - 1
        cells = [{column: row.get(column, 0.5) for column in columns} for row in rows(path)]
        state["logs"]["position"][name] = len(csv_lines([header(columns), *cells[:kept]], columns, name))
        path.write_bytes(csv_lines([header(columns), *cells], columns, name))
    checkpoints.write(checkpoints.step, state, {}, end=checkpoints.saved_frames)


def test_a_run_of_the_version_before_that_is_refused_is_not_changed(start: Start) -> None:
    """All files are looked at before the first one is rewritten."""
    run = start()
    stop_at(run, 40)
    played(run).close()
    make_older(run.folder)
    skills = run.folder / "skills.csv"
    whole = skills.read_bytes()
    skills.write_bytes(whole.replace(b"accuracy_at_start", b"another"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"skills\.csv has other columns"):
        start(resume=run.folder)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    skills.write_bytes(whole)
    assert "effective_skills" in tables(played(start(resume=run.folder)))["eval"][0]


def test_a_run_of_the_version_before_is_resumed(start: Start, tmp_path: Path) -> None:
    """Also if it is killed before its next checkpoint. Its new rows have the new measures; its old rows stay."""
    line = "--checkpoint_frequency 0"
    undisturbed = played(start(line))
    run = start(line)
    stop_at(run, 60)
    played(run).close()
    make_older(run.folder)
    old = tables(run)
    shutil.copytree(run.folder / CHECKPOINT_FOLDER, tmp_path / CHECKPOINT_FOLDER)

    killed = start(resume=run.folder)
    stop_at(killed, 85)
    played(killed).close()
    assert len(tables(killed)["skills"]) > len(old["skills"])
    shutil.rmtree(run.folder / CHECKPOINT_FOLDER)
    shutil.copytree(tmp_path / CHECKPOINT_FOLDER, run.folder / CHECKPOINT_FOLDER)

    again = played(start(resume=run.folder))
    new, expected = tables(again), tables(undisturbed)
    for name, columns in csv_columns(with_skills=True).items():
        table = name.removesuffix(".csv")
        assert set(new[table][0]) == {*old[table][0], *columns} - set(CLOCK)
        kept = len(old[table])
        for row, before in zip(new[table], old[table], strict=False):
            assert row == {**dict.fromkeys(row, ""), **before}
        for row, other in zip(new[table][kept:], expected[table][kept:], strict=True):
            assert row == {**dict.fromkeys(row, ""), **other}
    assert new["skills"][-1]["accuracy_at_start"] == ""
    assert float(new["eval"][-1]["effective_skills"]) > 0

    again.close()
    extended = start(resume=run.folder)  # its own checkpoint now records the columns
    extended.close()
    assert tables(extended) == new
