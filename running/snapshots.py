"""Snapshots: the networks of a run at one moment, without what only a resume needs (replay buffer, optimizers).

`<run>/snapshots/<frame>.pt` is written once and kept. A folder with `config.json` and a snapshot can be evaluated and
fine-tuned like a run with a checkpoint.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import torch

from config import Config
from errors import CheckpointError
from running.atomic_files import write_file
from running.checkpoint import State, load_file, read_newest
from running.names import SNAPSHOT_FOLDER
from running.run import Run
from running.state import check_finite


def write_snapshot(run: Run) -> None:
    """Write the networks, and what is needed to use them. Raises RunError if they are not finite, OSError."""
    check_finite(run)
    folder = run.folder / SNAPSHOT_FOLDER
    with run.stopwatch("checkpoint"):
        state: State = {
            "flags": dataclasses.asdict(run.config),
            "counters": {"frames_before": run.frames_before, "step": run.step},
            "agent": run.agent.weights(),
        }
        memory = io.BytesIO()
        torch.save(state, memory)
        folder.mkdir(exist_ok=True)
        write_file(folder / f"{run.frame}.pt", memory.getvalue())
        run.snapshots.done(run.step, run.episode_start)


def snapshot_frames(run: Path) -> list[int]:
    """Return the frames of which a run has snapshots, in ascending order."""
    return sorted(int(path.stem) for path in (run / SNAPSHOT_FOLDER).glob("*.pt") if path.stem.isdecimal())


def read_networks(run: Path) -> State | None:
    """Return the newest networks of a run: of its checkpoint or, if it has none, of its last snapshot; None if neither.

    Raises CheckpointError.
    """
    state = read_newest(run)
    if state is None and (frames := snapshot_frames(run)):
        return load_file(run / SNAPSHOT_FOLDER / f"{frames[-1]}.pt")
    return state


def read_pretrained(config: Config) -> State:
    """Return the networks that the flags --finetune_from and --finetune_snapshot name. Raises CheckpointError."""
    run, frame = Path(config.finetune_from), config.finetune_snapshot
    if frame is None:
        state = read_networks(run)
        if state is None:
            raise CheckpointError("that run has no checkpoint yet; wait for its first evaluation")
        return state
    frames = snapshot_frames(run)
    if frame not in frames:
        known = f"it has those of the frames {', '.join(map(str, frames))}" if frames else "it has none"
        raise CheckpointError(f"that run has no snapshot of --finetune_snapshot {frame}; {known}")
    return load_file(run / SNAPSHOT_FOLDER / f"{frame}.pt")
