"""A disk that fills up, and processes that are killed, at any moment of a write; folders before and after."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from running import checkpoint
from running.atomic_files import LOCK_FILE
from running.checkpoint import State
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE


class Crash(BaseException):
    """Ends the process at this point: no code catches it, so nothing is cleaned up."""


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def failing(at: int, error: BaseException, *, deleting: bool = False) -> Iterator[list[str]]:
    """Raise `error` at the `at`-th use of the disk, counted from 0. Yields the names of the uses so far.

    A use is the opening of a file, a write (of which half arrives), a sync, a rename, and a deletion if `deleting`.
    """
    moments: list[str] = []

    def reach(name: str) -> None:
        moments.append(name)
        if len(moments) == at + 1:
            raise error

    class Torn(io.FileIO):
        def write(self, data: Any) -> int:
            try:
                reach("write")
            except BaseException:
                super().write(data[: len(data) // 2])
                raise
            return super().write(data)

    def before(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            reach(name)
            return function(*args, **kwargs)

        return instead

    def open_torn(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode != "wb":
            return path_open(path, mode, *args, **kwargs)
        reach("open")
        return Torn(path, "wb")

    path_open = Path.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_torn)
        patch.setattr(os, "open", before("open folder", os.open))
        patch.setattr(os, "fsync", before("sync", os.fsync))
        patch.setattr(os, "replace", before("rename", os.replace))
        if deleting:
            patch.setattr(Path, "unlink", before("delete", Path.unlink))
        yield moments


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file in the folder, None for folders. The lock is left out: it names its last owner."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != LOCK_FILE
    }


@contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    """Yield a copy to work on. It lies below a folder of its own in which nothing else may change."""
    with tempfile.TemporaryDirectory() as place:
        copied = Path(place) / "outer" / "run"
        shutil.copytree(folder, copied)
        yield copied
        assert [path.name for path in Path(place).rglob("*") if copied not in (path, *path.parents)] == ["outer"]


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


# -- files of a checkpoint ---------------------------------------------------------------------------------------------


def checkpoint_files(folder: Path) -> set[str]:
    """Return the names of the files in a run's checkpoint."""
    return {path.name for path in (folder / CHECKPOINT_FOLDER).iterdir()}


def put_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a run's checkpoint, and its length and checksum in the manifest."""
    manifest = read_json(folder / CHECKPOINT_FOLDER / MANIFEST_FILE)
    for piece in (manifest["state"], *manifest["replay"]):
        if piece["name"] == name:
            piece |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / CHECKPOINT_FOLDER / name).write_bytes(data)
    put_manifest(folder, manifest)


def put_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest with a valid checksum."""
    (folder / CHECKPOINT_FOLDER / MANIFEST_FILE).write_bytes(checkpoint._sealed(content))


def load_piece(path: Path) -> State:
    content = torch.load(path, weights_only=True)
    assert isinstance(content, dict)
    return content


def saved(content: Any) -> bytes:
    """Return the bytes of a file that holds `content`."""
    memory = io.BytesIO()
    torch.save(content, memory)
    return memory.getvalue()
