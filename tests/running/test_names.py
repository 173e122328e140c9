"""Names of files and folders."""

from __future__ import annotations

import os

import pytest

from running.names import folder_name, frame_name, padded, short_name


@pytest.mark.parametrize(
    ("env", "expected"),
    [("walker_run", "walker_run"), ("gym:Pendulum-v1", "gym_Pendulum-v1"), ("gym:a/b:C", "gym_a_b_C")],
)
def test_folder_name(env: str, expected: str) -> None:
    assert folder_name(env) == expected


def test_names_that_are_too_long_are_cut() -> None:
    """Short ones stay as they are; a hash tells apart what is cut."""
    assert folder_name("gym:ns/Env-v0") == "gym_ns_Env-v0"
    assert short_name("x" * 200) == "x" * 200
    for letter in ("x", "é", "\U0001f600", "\udcff", "猫"):
        names = {short_name(letter * 300), short_name(letter * 301), folder_name(letter * 300)}
        assert all(0 < len(os.fsencode(name)) <= 200 for name in names)
        assert short_name(letter * 300) != short_name(letter * 301)
    assert folder_name("x/" * 300) != folder_name("x:" * 300)


def test_names_of_files_sort() -> None:
    frames = [0, 96, 4000, 100_000, 99_999_999]
    assert sorted(map(frame_name, frames)) == list(map(frame_name, frames))
    assert frame_name(4000) == "00004000"
    assert frame_name(123_456_789) == "123456789"
    assert [padded(3, 9), padded(3, 10), padded(3, 100)] == ["3", "03", "003"]
