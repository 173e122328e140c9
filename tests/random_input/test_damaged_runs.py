"""Damaged runs for the programs that read them: each is read, or refused in one line and not changed.

An exception that a program does not answer itself fails the test.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from tests.support.damage import damaged_bytes, damaged_json, damaged_state, damaged_table
from tests.support.disk import copy_of, load_piece, put_file, put_manifest, read_json, saved, snapshot
from tests.support.fuzz import check_all, fast_and_slow
from tests.support.program import MAIN, assert_refused, call

pytestmark = pytest.mark.usefixtures("programs")


@functools.cache
def content_of(path: Path) -> dict[str, Any]:
    """Return the content of a file of a checkpoint."""
    return load_piece(path)


@st.composite
def changes_of(draw: DrawFn, folder: Path) -> dict[str, Any]:
    """Draw new contents of one or two files of a run, by name: bytes, a checkpoint's content, or None to remove it."""
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".pt")
    )
    changes: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        path = folder / name
        ways = {
            ".json": lambda path: damaged_json(read_json(path)),
            ".csv": lambda path: damaged_table(path.read_bytes()),
            ".pt": lambda path: damaged_state(content_of(path)) | damaged_bytes(path.read_bytes()),
        }
        changes[name] = draw(ways[path.suffix](path)) if draw(st.integers(0, 15)) else None
    return changes


def damage(folder: Path, changes: dict[str, Any], *, sealed: bool) -> None:
    """Change a run's files; if `sealed`, with checksums that fit."""
    for name, content in sorted(changes.items(), key=lambda change: change[0].endswith(MANIFEST_FILE)):
        path = folder / name
        data = saved(content) if isinstance(content, dict) else content
        if data is None:
            path.unlink()
        elif sealed and path.suffix == ".pt":
            put_file(folder, path.name, data)
        elif sealed and path.name == MANIFEST_FILE:
            path.write_bytes(data)
            with suppress(ValueError, RecursionError, AttributeError):
                put_manifest(folder, read_json(path))
        else:
            path.write_bytes(data)


def check_damaged(program: str, run: Path, examples: int, lines: Sequence[str]) -> None:
    """Give damaged copies of the run to a program. If one is refused, nothing is changed or made."""
    (state,) = (path.name for path in (run / CHECKPOINT_FOLDER).glob("state_*"))

    def check(line: str, sealed: bool, changes: dict[str, Any]) -> None:
        with copy_of(run) as folder, tempfile.TemporaryDirectory() as place:
            damage(folder, changes, sealed=sealed)
            before = snapshot(folder)
            words = line.format(folder, state=state).split()
            if program == "evaluate":
                words += ["--no_video", "--device", "cpu", "--out", f"{place}/out"]
            elif "--resume" not in words:
                words += ["--work_dir", place]
            answer = call(words, MAIN[program])
            if answer.code != 0:
                assert_refused(answer, program=program)
                assert not any(Path(place).iterdir())
            if answer.code != 0 or "--resume" not in words:
                assert snapshot(folder) == before

    check_all(examples, check, line=st.sampled_from(lines), sealed=st.booleans(), changes=changes_of(run))


@fast_and_slow(slowly=400)
@pytest.mark.usefixtures("untrained")
def test_train_from_a_damaged_run(examples: int, small_run: Path) -> None:
    ways = ("--resume {}", "--resume {} --num_train_steps 30", "--config {}/config.json", "--finetune_from {}")
    check_damaged("train", small_run, examples, ways)


@fast_and_slow(slowly=400)
def test_evaluate_a_damaged_run(examples: int, small_run: Path) -> None:
    ways = ("{} --skills 1", "{}/checkpoint --skills 0", "{}/checkpoint/{state} --skills 1", "{} --skill_schedule 0:2")
    check_damaged("evaluate", small_run, examples, ways)
