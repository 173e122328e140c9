"""Files that are replaced atomically, and the lock of a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from running.atomic_files import (
    LOCK_FILE,
    check_file,
    check_folder,
    in_use,
    locked,
    made_folder,
    read_file,
    write_file,
)
from tests.support.disk import Crash, failing, no_space
from tests.support.paths import ROOT


def test_write_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"old", b"new"):
        write_file(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_read_if_its_size_is_known_and_fits(tmp_path: Path) -> None:
    """A device has no end, and a sparse file takes no room on the disk but would take it in memory."""
    path = tmp_path / "file"
    path.write_bytes(b"four")
    assert read_file(path) == read_file(path, 4) == b"four"
    os.truncate(path, 1 << 40)
    for name, target, reason in (("file", None, "File too large"), ("device", "/dev/null", "not a regular file")):
        if target is not None:
            (tmp_path / name).symlink_to(target)
        with pytest.raises(OSError, match=reason) as caught:
            read_file(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nowhere")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for moment in range(4):
        path.write_bytes(b"old")
        with failing(moment, no_space()), pytest.raises(OSError, match="No space") as caught:
            write_file(path, b"new")
        assert Path(str(caught.value.filename)).name.startswith("file")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, found = tmp_path / "file", []
    for moment in range(6):
        path.write_bytes(b"old")
        with failing(moment, Crash()), pytest.raises(Crash):
            write_file(path, b"new")
        found.append(path.read_bytes())
    assert found == [b"old"] * 4 + [b"new"] * 2


def test_a_locked_folder_names_its_owner(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"{tmp_path} is in use by {owner}"), locked(tmp_path):
            pass
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)


def test_one_that_only_looks_does_not_keep_the_folder_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock for a moment."""
    real, attempts = fcntl.flock, []

    def flock(file: Any, operation: int) -> None:
        attempts.append(operation)
        if len(attempts) == 1:
            raise BlockingIOError
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(attempts) == 2
        assert in_use(tmp_path)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = "import sys, pathlib\nfrom running.atomic_files import locked\n"
    script += "with locked(pathlib.Path(sys.argv[1])):\n    print('locked', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        assert in_use(tmp_path)
        child.kill()
    assert not in_use(tmp_path)


def test_a_folder_without_a_lock_is_not_in_use(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    assert not in_use(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written"), locked(tmp_path):
        pass


def test_an_owner_in_other_letters(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(b"\xff\xfe")
    with (tmp_path / LOCK_FILE).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by"), locked(tmp_path):
            pass


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path) as folder:
        assert folder == tmp_path
    assert "cannot be locked (No locks available): run only one process on it" in capsys.readouterr().err


def test_what_can_be_written_is_found_out_without_a_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere/at/all")
    before = {path: path.lstat() for path in (tmp_path, *tmp_path.iterdir())}
    for path in (tmp_path / "file", tmp_path / "new"):
        check_file(path)
    for path in (tmp_path, tmp_path / "new"):
        check_folder(path)
    for check, names in ((check_file, ("", "pipe", "link")), (check_folder, ("file", "pipe", "link"))):
        for name in names:
            with pytest.raises(OSError, match=str(tmp_path)) as caught:
                check(tmp_path / name)
            assert caught.value.filename == str(tmp_path / name)
    after = {path: path.lstat() for path in (tmp_path, *tmp_path.iterdir())}
    assert after.keys() == before.keys()
    assert after[tmp_path / "file"].st_mtime_ns == before[tmp_path / "file"].st_mtime_ns


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_a_folder_in_which_nothing_is_written_is_removed(tmp_path: Path, error: type[BaseException] | None) -> None:
    (tmp_path / "mine").mkdir()
    for name, written in (("a/b", False), ("mine", False), ("mine/c", False), ("d/../e/f", True)):
        folder = tmp_path / name
        try:
            with made_folder(folder):
                assert folder.is_dir()
                if written:
                    (folder / "file").write_text("")
                if error is not None:
                    raise error
        except (OSError, KeyboardInterrupt):
            pass
        assert folder.is_dir() == (written or name == "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "e", "mine"]


def test_ctrl_c_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())
