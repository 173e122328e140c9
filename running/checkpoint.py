"""Checkpoints: the state of a run in files that stay usable if the process is killed or the disk fills up.

`<run>/checkpoint/` holds `manifest.json`, and the state and the pieces of the replay buffer that it lists. A new
checkpoint writes its files beside the old ones, syncs them, and then replaces the manifest atomically; after that the
old files are removed. The manifest has the SHA-256 of every file and of itself. States hold tensors and plain data and
are read with `torch.load(weights_only=True)`, so nothing is unpickled. This module does not know what a state means.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from errors import CheckpointError
from running.atomic_files import UNFINISHED, read_file, write_file
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from utils import free_memory

FORMAT = 1  # of all files of a checkpoint; others are refused
FILE_NAME = re.compile(r"(state|replay)_[0-9]+\.pt")
READ_AGAIN = 3  # attempts, as a training run may replace its checkpoint while it is read

State = dict[str, Any]  # tensors, numbers, strings, None, and dicts, lists and tuples of them


class Piece(NamedTuple):
    """A file of a checkpoint, as listed in the manifest."""

    name: str
    bytes: int
    sha256: str
    end: int = 0  # of a replay piece: number of its last frame + 1


class Checkpoints:
    """The checkpoint of a run, of which there is at most one. `step` is its agent step, -1 without one.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / CHECKPOINT_FOLDER
        self.step = -1
        self._serial = 0  # of the current checkpoint; each has file names of its own
        self._pieces: list[Piece] = []

    # -- writing --------------------------------------------------------------------------------------------------

    @property
    def saved_frames(self) -> int:
        """Frames of the replay buffer with lower numbers are already in pieces."""
        return self._pieces[-1].end if self._pieces else 0

    def write(self, step: int, state: State, replay: State | None, *, oldest_frame: int = 0, end: int = 0) -> None:
        """Write the checkpoint of agent step `step`: `state`, and the replay pieces so far with `replay` as the newest.

        Args:
            replay: what the replay buffer received from frame `saved_frames` to `end` - 1; None if it is not saved.
            oldest_frame: the oldest frame that the buffer still holds; pieces that end before it are dropped.

        Raises:
            OSError: with the file's name. The previous checkpoint is still usable.
        """
        self.folder.mkdir(exist_ok=True)
        manifest, serial = self.folder / MANIFEST_FILE, self._serial + 1
        pieces = [piece for piece in self._pieces if piece.end > oldest_frame] if replay is not None else []
        sealed = b""
        try:
            if not manifest.exists():  # a manifest that is missing beside other files is damage
                write_file(manifest, _sealed({"serial": 0, "step": -1, "state": None, "replay": []}))
            if replay is not None and end > self.saved_frames:
                pieces.append(self._write_piece(f"replay_{serial}.pt", replay, end))
            main = self._write_piece(f"state_{serial}.pt", state)
            listed = [piece._asdict() for piece in pieces]
            content = {"serial": serial, "step": step, "state": main._asdict(), "replay": listed}
            sealed = _sealed(content)
            write_file(manifest, sealed)
        except OSError:
            if sealed and manifest.read_bytes() == sealed:
                # Renamed but not synced: a power cut may undo it, so the old checkpoint's files must stay.
                self.step, self._serial, self._pieces = step, serial, pieces
            else:
                for kind in ("replay", "state"):
                    (self.folder / f"{kind}_{serial}.pt").unlink(missing_ok=True)
            raise
        self.step, self._serial, self._pieces = step, serial, pieces
        self._remove_all_but({main.name, *(piece.name for piece in pieces)})

    def _write_piece(self, name: str, content: State, end: int = 0) -> Piece:
        memory = io.BytesIO()
        torch.save(content, memory)
        data = memory.getvalue()
        write_file(self.folder / name, data)
        return Piece(name, len(data), hashlib.sha256(data).hexdigest(), end)

    def _remove_all_but(self, names: set[str]) -> None:
        """Remove files of older and unfinished checkpoints. Files of other origin are kept."""
        for path in self.own_files():
            if path.name not in {MANIFEST_FILE, *names}:
                path.unlink(missing_ok=True)

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self) -> State | None:
        """Return the checkpoint's state, tensors on the CPU; None if none was completed. Raises CheckpointError."""
        manifest = self._read_manifest()
        if manifest is None:
            return None
        try:
            if manifest["state"] is None:  # killed, or the disk full, during the first one
                return None
            state, *pieces = [self._listed(**piece) for piece in [manifest["state"], *manifest["replay"]]]
            step, serial = _count(manifest["step"]), _count(manifest["serial"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damage(MANIFEST_FILE, "an entry is missing or wrong") from error
        self.step, self._serial, self._pieces = step, serial, pieces
        return self._read_piece(state)

    def _listed(self, name: str, bytes: int, sha256: str, end: int) -> Piece:
        """Return a file's entry in the manifest."""
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            raise self._damage(MANIFEST_FILE, f"it names a file {name!r}")
        return Piece(name, _count(bytes), sha256, _count(end))

    def replay_pieces(self) -> Iterator[State]:
        """Return the pieces of the replay buffer, oldest first. Raises CheckpointError."""
        return map(self._read_piece, self._pieces)

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST_FILE
        try:
            data = read_file(path)
        except FileNotFoundError:
            if any(path.name.startswith("state") and path.suffix != UNFINISHED for path in self.own_files()):
                raise self._damage(MANIFEST_FILE, "it is missing") from None
            return None  # the run was killed before its first checkpoint was complete
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError):
            raise self._damage(MANIFEST_FILE, "it is not JSON") from None
        if not isinstance(manifest, dict):
            raise self._damage(MANIFEST_FILE, "an entry is missing or wrong")
        if isinstance(manifest.get("format"), int) and manifest["format"] != FORMAT:
            found = manifest["format"]
            raise CheckpointError(
                f"{path} has format {found}, this version reads {FORMAT}; use the version that wrote it"
            )
        if data != _sealed(manifest):
            raise self._damage(MANIFEST_FILE, "its checksum is wrong")
        return manifest

    def own_files(self) -> list[Path]:
        """Return the files of all checkpoints, complete or not, which the next one replaces or removes."""
        files = [(path, path.name.removesuffix(UNFINISHED)) for path in self.folder.glob("*")]
        return [path for path, name in files if name == MANIFEST_FILE or FILE_NAME.fullmatch(name)]

    def _read_piece(self, piece: Piece) -> State:
        try:
            data = read_file(self.folder / piece.name, free_memory())
        except FileNotFoundError:
            raise self._damage(piece.name, "it is missing") from None
        except OSError as error:
            raise CheckpointError(f"{self.folder / piece.name} cannot be read: {error.strerror}") from error
        if len(data) != piece.bytes:
            raise self._damage(piece.name, f"it has {len(data)} bytes instead of {piece.bytes}")
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise self._damage(piece.name, "its checksum is wrong")
        try:
            return _unpacked(data)
        except ValueError as error:
            raise self._damage(piece.name, str(error)) from error

    def _damage(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.folder / name} is damaged: {what}; restore a copy, or start a new run")


def read_newest(place: Path) -> State | None:
    """Return the state in a run's checkpoint, even while the run replaces it. Raises CheckpointError."""
    for _ in range(READ_AGAIN):
        try:
            return Checkpoints(place).read()
        except CheckpointError:
            time.sleep(0.5)
    return Checkpoints(place).read()


def load_file(path: Path) -> State:
    """Return the state in one file of a checkpoint, without checking it against a manifest. Raises CheckpointError."""
    try:
        return _unpacked(read_file(path, free_memory()))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _unpacked(data: bytes) -> State:
    """Return what a file's bytes hold. Raises ValueError."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can make it fail in any way
        raise ValueError("it does not hold tensors and plain data") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no state")
    return content


def _sealed(manifest: dict[str, Any]) -> bytes:
    """Return the bytes of the manifest's file, with the format and the checksum of everything else."""
    content = {
        "format": FORMAT,
        **{name: value for name, value in manifest.items() if name not in ("format", "sha256")},
    }
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": seal}, indent=1) + "\n").encode()


def _count(value: Any) -> int:
    """Return the value if it is a non-negative 64-bit integer. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(value)
    return value
