"""Checkpoints: what a run needs to go on, kept in files so that a kill or a full disk at any moment leaves a whole one.

`<run>/checkpoint/` holds `manifest.json`, the state it names and the pieces of the replay buffer it names. A new
checkpoint writes its files beside the old ones, syncs them and then renames its manifest over the old one: that moment
decides. Only then the old files go. The manifest has every file's SHA-256 and its own. Nothing is unpickled: a state
holds tensors and plain data, and `torch.load(weights_only=True)` reads it. Nothing here knows what a state means.
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
from running.atomic_files import UNFINISHED, write_file

FORMAT = 1  # of everything here; another one is refused
FOLDER, MANIFEST = "checkpoint", "manifest.json"
FILE_NAME = re.compile(r"(state|replay)_[0-9]+\.pt")
READ_AGAIN = 3  # times, where a training run replaces its checkpoint in the middle of being read

State = dict[str, Any]  # tensors, numbers, strings, None, and dicts, lists and tuples of them


class Piece(NamedTuple):
    """A file of a checkpoint as the manifest lists it."""

    name: str
    bytes: int
    sha256: str
    end: int = 0  # replay pieces: the number of the last frame in it, plus 1


class Checkpoints:
    """The checkpoints of one run. At most one is there at a time; `step` says of when, -1 without one.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.step = -1
        self._serial = 0  # of the checkpoint there is; the next one's files have another, and overwrite none of its
        self._pieces: list[Piece] = []

    # -- writing --------------------------------------------------------------------------------------------------

    @property
    def saved_frames(self) -> int:
        """Frames of the replay buffer with a lower number are in pieces already."""
        return self._pieces[-1].end if self._pieces else 0

    def write(self, step: int, state: State, replay: State | None, *, oldest_frame: int = 0, end: int = 0) -> None:
        """Make `state` and the replay pieces so far, with `replay` as the newest, the checkpoint of agent step `step`.

        Args:
            replay: what the replay buffer got from frame number `saved_frames` to `end` - 1; None where it isn't kept.
            oldest_frame: the oldest frame number that the buffer still holds; pieces that end before it are dropped.

        Raises:
            OSError: with the file's name; the checkpoint before is still there and whole.
        """
        self.folder.mkdir(exist_ok=True)
        manifest, serial = self.folder / MANIFEST, self._serial + 1
        pieces = [piece for piece in self._pieces if piece.end > oldest_frame] if replay is not None else []
        sealed = b""
        try:
            if not manifest.exists():  # so that a manifest that is missing beside other files is always damage
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
                # Renamed, but a power cut may undo that: this one is the checkpoint, and the old one's files stay.
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
        """Remove what older checkpoints and unfinished ones left, and nothing that this program wouldn't have made."""
        for path in self.folder.iterdir():
            ours = FILE_NAME.fullmatch(path.name.removesuffix(UNFINISHED)) or path.name == MANIFEST + UNFINISHED
            if ours and path.name not in names:
                path.unlink(missing_ok=True)

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self) -> State | None:
        """The state of the checkpoint, tensors on the CPU; None where none was completed. Raises CheckpointError."""
        manifest = self._read_manifest()
        if manifest is None:
            return None
        try:
            if manifest["state"] is None:  # killed or out of room during the first one
                return None
            state, *pieces = [self._listed(**piece) for piece in [manifest["state"], *manifest["replay"]]]
            step, serial = _count(manifest["step"]), _count(manifest["serial"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damage(MANIFEST, "it lacks something") from error
        self.step, self._serial, self._pieces = step, serial, pieces
        return self._read_piece(state)

    def _listed(self, name: str, bytes: int, sha256: str, end: int) -> Piece:
        """A file as the manifest lists it."""
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            raise self._damage(MANIFEST, f"it names a file {name!r}")
        return Piece(name, _count(bytes), sha256, _count(end))

    def replay_pieces(self) -> Iterator[State]:
        """The pieces of the replay buffer, oldest first. Raises CheckpointError."""
        return map(self._read_piece, self._pieces)

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.folder / MANIFEST
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            if any(FILE_NAME.fullmatch(file.name) and file.name.startswith("state") for file in self._files()):
                raise self._damage(MANIFEST, "it is missing") from None
            return None  # the run was killed before its first checkpoint was complete
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError):
            raise self._damage(MANIFEST, "it is no JSON") from None
        if not isinstance(manifest, dict):
            raise self._damage(MANIFEST, "it lacks something")
        if isinstance(manifest.get("format"), int) and manifest["format"] != FORMAT:
            found = manifest["format"]
            raise CheckpointError(f"{path} has format {found}, this version reads {FORMAT}; use the version it is from")
        if data != _sealed(manifest):
            raise self._damage(MANIFEST, "its checksum doesn't fit")
        return manifest

    def _files(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def _read_piece(self, piece: Piece) -> State:
        try:
            data = (self.folder / piece.name).read_bytes()
        except FileNotFoundError:
            raise self._damage(piece.name, "it is missing") from None
        except OSError as error:
            raise CheckpointError(f"{self.folder / piece.name} can't be read: {error.strerror}") from error
        if len(data) != piece.bytes:
            raise self._damage(piece.name, f"it has {len(data)} bytes instead of {piece.bytes}")
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise self._damage(piece.name, "its checksum doesn't fit")
        try:
            return _unpacked(data)
        except ValueError as error:
            raise self._damage(piece.name, str(error)) from error

    def _damage(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self.folder / name} is damaged: {what}; put a copy back, or start a new run")


def read_newest(place: Path) -> State | None:
    """The state in a run's newest checkpoint, also while the run is replacing it. Raises CheckpointError."""
    for _ in range(READ_AGAIN):
        try:
            return Checkpoints(place).read()
        except CheckpointError:
            time.sleep(0.5)
    return Checkpoints(place).read()


def load_file(path: Path) -> State:
    """The state in one file of a checkpoint, without a manifest to check it against. Raises CheckpointError."""
    try:
        return _unpacked(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _unpacked(data: bytes) -> State:
    """What a file's bytes hold. Raises ValueError."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can make the reader fail in any way
        raise ValueError("it can't be read as tensors and plain data") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no state")
    return content


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as the bytes of its file: with the format, and with the checksum of all the rest."""
    content = {
        "format": FORMAT,
        **{name: value for name, value in manifest.items() if name not in ("format", "sha256")},
    }
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": seal}, indent=1) + "\n").encode()


def _count(value: Any) -> int:
    """The value, where it is a number as this program counts anything. Raises ValueError."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(value)
    return value
