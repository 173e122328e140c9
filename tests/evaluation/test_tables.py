"""The tables that evaluate.py prints."""

from __future__ import annotations

from typing import Any

import pytest

from evaluation.tables import MEANINGS, SHORT_NAMES, print_table
from running.columns import REFIT_COLUMNS, SKILL_COLUMNS

ROW: dict[str, Any] = {
    **dict.fromkeys(SKILL_COLUMNS, 123.4567),
    **{"skill_id": 0, "episodes": 3, "cells_visited": 12},
}


@pytest.mark.parametrize("width", [40, 80, 120])
def test_short_names_of_a_table_are_explained(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that it has, as it leaves out what the terminal has no room for."""
    monkeypatch.setenv("COLUMNS", str(width))
    print_table([ROW], SKILL_COLUMNS[1:])
    head, _, *below = capsys.readouterr().out.splitlines()
    text = " ".join(below)
    assert {name for name in MEANINGS if MEANINGS[name] in text} == {
        name for name in MEANINGS if SHORT_NAMES[name] in head
    }
    assert all(len(line) <= width for line in (head, *below))
    assert len(below) == (0 if width == 40 else 1 if width == 80 else 2)


def test_other_tables_have_no_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"policy": "trained", "mutual_information_bound": 0.5}], REFIT_COLUMNS)
    assert len(capsys.readouterr().out.splitlines()) == 2
