"""Locks of folders."""

from __future__ import annotations

from pathlib import Path

from running.atomic_files import LOCK_FILE, in_use, locked


def test_a_folder_is_in_use_while_it_is_locked(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)
    assert (tmp_path / LOCK_FILE).exists()
    assert not in_use(tmp_path)
