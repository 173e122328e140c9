"""What a run writes down while it goes: CSV files, TensorBoard, pictures, console lines, a progress bar.

`step` counts frames (control steps of the task) in every file, tag and line. A metric enters as a detached tensor,
adds up on its device, and is read once per training episode.
"""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from errors import LogError
from replay_buffer import NO_SKILL

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

UPDATE_METRICS = (
    "batch_reward",
    "actor_loss",
    "actor_entropy",
    "actor_target_entropy",
    "critic_loss",
    "alpha_loss",
    "alpha_value",
)
SKILL_UPDATE_METRICS = ("discriminator_loss", "discriminator_accuracy", "intrinsic_reward")
CSV_FILES = ("train.csv", "eval.csv", "episodes.csv")  # of every run
EPISODE_COLUMNS = (
    "type",
    "episode",
    "step",
    "duration",
    "episode_extrinsic_reward",
    "skill_id",
    "episode_intrinsic_reward_sum",
)
TRAIN_COLUMNS = ("episode", "step", "episode_reward", "duration", *UPDATE_METRICS, "fps")
TRAIN_SKILL_COLUMNS = ("skill_id", "episode_intrinsic_reward_sum", *SKILL_UPDATE_METRICS)
SKILL_COLUMNS = (
    *("step", "skill_id", "episodes", "episode_extrinsic_reward", "episode_intrinsic_reward_sum"),
    *("discriminator_accuracy", "accuracy_at_start", "mutual_information_bound"),
    *("displacement_x", "displacement_y", "state_distance_within", "state_distance_between"),
)
EVAL_COLUMNS = ("episode", "step", "episode_reward")
EVAL_SKILL_COLUMNS = ("episode_intrinsic_reward_sum", "discriminator_accuracy", "mutual_information_bound")

# (column, label, format) of the console lines: DrQ's, and DIAYN's appended.
TRAIN_LINE = (
    ("episode", "E", "d"),
    ("step", "S", "d"),
    ("episode_reward", "R", ".4f"),
    ("duration", "D", ".1f"),
    ("batch_reward", "BR", ".4f"),
    ("actor_loss", "ALOSS", ".4f"),
    ("critic_loss", "CLOSS", ".4f"),
    ("alpha_loss", "TLOSS", ".4f"),
    ("alpha_value", "TVAL", ".4f"),
    ("actor_entropy", "AENT", ".4f"),
    ("skill_id", "SKILL", "d"),
    ("episode_intrinsic_reward_sum", "IR", ".4f"),
    ("discriminator_loss", "DLOSS", ".4f"),
    ("discriminator_accuracy", "DACC", ".4f"),
)
EVAL_LINE = (
    ("episode", "E", "d"),
    ("step", "S", "d"),
    ("episode_reward", "R", ".4f"),
    ("episode_intrinsic_reward_sum", "IR", ".4f"),
    ("discriminator_accuracy", "DACC", ".4f"),
    ("mutual_information_bound", "MI", ".4f"),
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Episode:
    """One finished episode."""

    duration: float  # seconds
    extrinsic_reward: float  # the environment's return
    skill: int = NO_SKILL
    intrinsic_reward_sum: float = 0.0
    discriminator_accuracy: float = 0.0  # fraction of its steps; evaluation only
    length: int = 0  # agent steps


class CsvFile:
    """A CSV with its columns fixed at the start: a metric that is missing, or comes late, leaves its cell empty.

    Each row is one unbuffered write, so the file is whole at any moment and after a kill.

    Args:
        keep: bytes at the beginning of an existing file to go on after; what lies behind is cut off. 0 starts anew.

    Raises:
        LogError: the existing file has not so many bytes, or other columns.
    """

    def __init__(self, path: Path, columns: Iterable[str], *, keep: int = 0) -> None:
        self.columns = tuple(columns)
        if not keep:
            self._file = path.open("wb", buffering=0)
            self._write(self.columns)
            return
        check_beginning(path, self.columns, keep)
        self._file = path.open("rb+", buffering=0)
        self._file.truncate(keep)
        self._file.seek(0, os.SEEK_END)

    def position(self) -> int:
        """The file's bytes so far, which are on the disk now."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, row: Mapping[str, Any]) -> None:
        self._write([row.get(column, "") for column in self.columns])

    def close(self) -> None:
        self._file.close()

    def _write(self, cells: Iterable[Any]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        data = line.getvalue().encode()
        try:
            written = self._file.write(data)
        except OSError as error:  # nothing was written; Python leaves the file's name out
            raise OSError(error.errno, error.strerror, self._file.name) from error
        if written != len(data):  # the disk filled up in the middle of the row
            self._file.truncate(self._file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)


def check_beginning(path: Path, columns: Sequence[str], keep: int) -> None:
    """Raise LogError where the first `keep` bytes of a CSV aren't whole rows under these columns."""
    try:
        beginning = path.read_bytes()[:keep] if keep else b""
    except OSError:
        beginning = b""
    header, _, _ = beginning.decode(errors="replace").partition("\n")
    whole = len(beginning) == keep and beginning.endswith(b"\n") and header == ",".join(columns)
    if keep and not whole:
        raise LogError(f"{path} isn't as the checkpoint left it; put a copy back, or start a new run")


class Meters:
    """Means of metrics since the last reading. Sums stay on the metrics' device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, torch.Tensor]) -> None:
        known = [name for name in metrics if name in self._sums]
        if known:
            torch._foreach_add_([self._sums[name] for name in known], [metrics[name] for name in known])
        for name, value in metrics.items():
            if name not in self._sums:
                self._sums[name] = value.clone()  # the tensor may be a graph's output, which the next replay overwrites
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means, and start afresh."""
        means = self.peek()
        self._sums, self._counts = {}, {}
        return means

    def peek(self) -> dict[str, float]:
        """The means so far. This waits for the device."""
        if not self._sums:
            return {}
        totals = torch.stack(list(self._sums.values())).tolist()
        return {name: total / self._counts[name] for name, total in zip(self._sums, totals, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class Logger:
    """Writes a run's CSVs, skills/ and tb/, prints its console lines, draws its progress bar.

    Args:
        folder: the run's folder, which exists.
        with_skills: add DIAYN's columns and tags.
        tensorboard: write tb/.
        total_frames: the run's budget, for the progress bar, which is drawn only on a terminal.
        position: of a checkpoint, where the logs go on; what was written after it is cut off. None starts anew.
        step: the checkpoint's, in frames.

    Raises:
        LogError: an existing file doesn't go with `position`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        with_skills: bool,
        tensorboard: bool,
        total_frames: int,
        position: Mapping[str, int] | None = None,
        step: int = 0,
    ) -> None:
        self._with_skills, self._board_folder, self._picture_folder = with_skills, folder / "tb", folder / "skills"
        columns = {
            "train.csv": TRAIN_COLUMNS + TRAIN_SKILL_COLUMNS * with_skills,
            "eval.csv": EVAL_COLUMNS + EVAL_SKILL_COLUMNS * with_skills,
            "episodes.csv": EPISODE_COLUMNS,
            **({"skills.csv": SKILL_COLUMNS} if with_skills else {}),
        }
        kept = position or {}
        for name in columns:  # all of them before the first is changed
            check_beginning(folder / name, columns[name], kept.get(name, 0))
        self._files = {name: CsvFile(folder / name, columns[name], keep=kept.get(name, 0)) for name in columns}
        self._train, self._eval, self._episodes = (self._files[f"{name}.csv"] for name in ("train", "eval", "episodes"))
        _cut_back(self._board_folder, kept)
        self._writer = _summary_writer(self._board_folder, step if position else None) if tensorboard else None
        self._meters = Meters()
        self._bar = tqdm(total=total_frames, initial=step, unit=" frames", disable=not sys.stderr.isatty(), leave=False)

    def state_dict(self) -> dict[str, Any]:
        """The open meters and how long each file is, once it is on the disk: tensors and plain data."""
        self._board(lambda writer: writer.flush())
        position = {name: file.position() for name, file in self._files.items()}
        for path in _event_files(self._board_folder):
            position[path.name] = path.stat().st_size
        return {"meters": self._meters.state_dict(), "position": position}

    def load_meters(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over the meters of a `state_dict`."""
        self._meters.load_state_dict(state["meters"], device)

    def not_finite(self) -> list[str]:
        """The metrics of updates since the last row that became infinite or not a number. This waits for the device."""
        return [name for name, value in self._meters.peek().items() if not math.isfinite(value)]

    def update(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Take in the metrics of one update."""
        self._meters.add(metrics)

    def progress(self, step: int) -> None:
        """Move the progress bar."""
        self._bar.update(step - self._bar.n)

    def status(self, text: str) -> None:
        """Say beside the progress bar what is going on."""
        self._bar.set_description(text)

    def train_episode(self, number: int, step: int, result: Episode, frames: int) -> None:
        """Log a finished training episode of `frames` frames, with the means of the updates made during it."""
        row: Row = {
            "episode": number,
            "step": step,
            "episode_reward": result.extrinsic_reward,
            "duration": result.duration,
            "fps": frames / max(result.duration, 1e-9),
            **self._meters.read(),
        }
        if self._with_skills:
            row |= {"skill_id": result.skill, "episode_intrinsic_reward_sum": result.intrinsic_reward_sum}
        self._train.write(row)
        self._episode("train", number, step, result)
        self._scalars("train", {k: v for k, v in row.items() if k not in ("episode", "step", "skill_id")}, step)
        self._console("train", TRAIN_LINE, row)

    def evaluation(self, episode: int, step: int, results: Iterable[Episode], skills: Sequence[Row] = ()) -> None:
        """Log an evaluation with `episode` training episodes behind it: its episodes, and what it says of each skill.

        A skill counts like any other, as p(z) has it, however long its episodes are.
        """
        results = list(results)
        for result in results:
            self._episode("eval", episode, step, result)
        row: Row = {"episode": episode, "step": step, "episode_reward": _mean(r.extrinsic_reward for r in results)}
        if skills:
            row |= {name: _mean(skill[name] for skill in skills) for name in EVAL_SKILL_COLUMNS}
        self._eval.write(row)
        self._scalars("eval", {k: v for k, v in row.items() if k not in ("episode", "step")}, step)
        self._scalars("eval", {"duration": sum(r.duration for r in results)}, step)
        for skill in skills:
            self._files["skills.csv"].write({"step": step, **skill})
            figures = {
                "episode_reward" if name == "episode_extrinsic_reward" else name: value
                for name, value in skill.items()
                if name not in ("skill_id", "episodes") and value is not None
            }
            self._scalars("eval", {f"{name}/skill_{skill['skill_id']}": value for name, value in figures.items()}, step)
        self._console("eval ", EVAL_LINE, row)
        self._board(lambda writer: writer.flush())

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Keep a picture, uint8 RGB (H, W, 3), as skills/<step>_<name>.png and in TensorBoard; failing, warn."""
        import cv2

        path = self._picture_folder / f"{step}_{name}.png"
        try:
            _, png = cv2.imencode(".png", image[:, :, ::-1])
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png.tobytes())
        except (OSError, cv2.error) as error:
            path.unlink(missing_ok=True)
            print(f"warning: the picture {path} was not written: {error}", file=sys.stderr)
            return
        self._image(f"skills/{name}", png.tobytes(), image.shape[0], image.shape[1], step)

    def time_shares(self, shares: Mapping[str, float], step: int) -> None:
        """What share of the time each part of the loop took so far."""
        self._scalars("time", shares, step)

    def finish(self, step: int, seconds: float, shares: Mapping[str, float]) -> None:
        """The last line: how long it took, and what took it."""
        parts = ", ".join(f"{part} {share:.1%}" for part, share in sorted(shares.items(), key=lambda p: -p[1]))
        tqdm.write(f"done: {step} frames in {seconds:.0f} s, {step / max(seconds, 1e-9):.0f} fps; {parts}", sys.stdout)

    def clip(self, name: str, gif: bytes, height: int, width: int, *, step: int) -> None:
        """Show an animation in TensorBoard, under Images. Its own add_video would need an old moviepy."""
        self._image(f"video/{name}", gif, height, width, step)

    def histograms(self, values: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
        def write(writer: SummaryWriter) -> None:
            for name, value in values:
                writer.add_histogram(name, value, step)

        self._board(write)

    def close(self) -> None:
        self._bar.close()
        for file in self._files.values():
            file.close()
        self._board(lambda writer: writer.close())

    def _board(self, write: Callable[[SummaryWriter], object]) -> None:
        """Write to TensorBoard; where its disk fails, warn, and go on without it."""
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            print(f"warning: no more TensorBoard logs, tb/ can't be written: {error}", file=sys.stderr)
            self._writer = None

    def _image(self, tag: str, encoded: bytes, height: int, width: int, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._board(lambda writer: writer.file_writer and writer.file_writer.add_summary(summary, step))

    def _episode(self, kind: str, number: int, step: int, result: Episode) -> None:
        cells = (kind, number, step, result.duration, result.extrinsic_reward, result.skill)
        self._episodes.write(dict(zip(EPISODE_COLUMNS, (*cells, result.intrinsic_reward_sum), strict=True)))
        if kind == "train" and self._with_skills:
            tag = f"episode_intrinsic_reward_sum/skill_{result.skill}"
            self._scalars("train", {tag: result.intrinsic_reward_sum}, step)

    def _scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        def write(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(f"{prefix}/{name}", value, step)

        self._board(write)

    def _console(self, kind: str, line: Iterable[tuple[str, str, str]], row: Row) -> None:
        parts = [f"| {kind}"]
        for column, label, form in line:
            if column in row:
                unit = " s" if column == "duration" else ""
                parts.append(f"{label}: {row[column]:{form}}{unit}")
            elif column in UPDATE_METRICS or (self._with_skills and column in SKILL_UPDATE_METRICS):
                parts.append(f"{label}: -")  # no update yet
        tqdm.write(" | ".join(parts), file=sys.stdout)
        sys.stdout.flush()


def check_state(state: Mapping[str, Any]) -> None:
    """Raise an error of any usual kind where a Logger could not go on after this `state_dict`."""
    position = {name: state["position"][name] for name in CSV_FILES} | state["position"]
    if not all(type(size) is int and size >= 0 for size in position.values()):
        raise ValueError("lengths of log files")
    meters = Meters()
    meters.load_state_dict(state["meters"], torch.device("cpu"))
    meters.peek()


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def _cut_back(folder: Path, position: Mapping[str, int]) -> None:
    """Cut TensorBoard's files to the lengths that a checkpoint has seen, and remove those that came after it."""
    for path in _event_files(folder):
        if path.name in position:
            os.truncate(path, min(position[path.name], path.stat().st_size))
        else:
            path.unlink()


def _summary_writer(folder: Path, step: int | None) -> SummaryWriter:
    """A writer; resumed at `step`, it also has an open TensorBoard forget what it has seen of later ones."""
    from torch.utils.tensorboard import SummaryWriter

    # A full disk meets the writer's own thread first, which hands the error on to the next call: `_board` reports it.
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else threading.__excepthook__(args)
    return SummaryWriter(str(folder), purge_step=None if step is None else step + 1)
