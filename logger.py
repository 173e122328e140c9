"""Everything a run records while it trains: CSV files, TensorBoard, pictures, console lines, a progress bar.

`step` counts frames (control steps of the task) in every file, tag and line. Metrics arrive as detached tensors, are
summed on their device, and are read once per training episode. The columns are declared in running/columns.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from console.numbers import shown_number
from running.atomic_files import check_file, check_folder, write_file
from running.columns import (
    CONSOLE,
    CONSOLE_UNITS,
    EPISODE_COLUMNS,
    EVAL_LINE,
    HEADLINE,
    LINE_WIDTH,
    NO_SKILL,
    REQUIRED_CSV_FILES,
    TRAIN_LINE,
    TRAIN_SKILL_LINE,
    csv_columns,
    former_columns,
    update_metrics,
)
from running.csv_files import CsvFile, check_declared, continue_file, read_beginning
from running.names import frame_name
from running.progress import ProgressBar
from running.tensorboard import TensorBoard, event_files
from running.tracker import Tracker
from video import gif_clip

Row = dict[str, Any]


@dataclass(frozen=True)
class Episode:
    """A finished episode."""

    duration: float  # seconds
    extrinsic_reward: float  # the task's return
    skill: int = NO_SKILL  # the skill that was played
    intrinsic_reward_sum: float = 0.0  # nats
    discriminator_accuracy: float = 0.0  # fraction of the steps at which the skill is recognized; evaluation only
    length: int = 0  # agent steps


def check_logs(folder: Path, *, with_skills: bool, tensorboard: bool, logs: Mapping[str, Any] | None) -> None:
    """Check all files of a run that a `Logger` with these arguments would open or change, without changing any.

    Raises LogError, or OSError with the file's name.
    """
    for name, recorded in _recorded_columns(logs, with_skills).items():
        if logs is not None and logs["position"].get(name):
            read_beginning(folder / name, recorded, logs["position"][name])
        check_file(folder / name)
    for path in event_files(folder / "tb"):
        check_file(path)
    for subfolder, used in (("tb", tensorboard), ("skills", with_skills)):
        if used:
            check_folder(folder / subfolder)


def _recorded_columns(logs: Mapping[str, Any] | None, with_skills: bool) -> dict[str, Sequence[str]]:
    """Return the columns that each CSV file had at a Logger's `state_dict`. Older versions did not record them."""
    recorded = former_columns(with_skills) | (logs or {}).get("columns", {})
    return {name: recorded.get(name, columns) for name, columns in csv_columns(with_skills).items()}


class Meters:
    """Means of metrics since the last `read`. The sums stay on the metrics' device until then.

    Args:
        names: the metrics that may be added.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._declared = names
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add the metrics of one update, scalar tensors. Raises ValueError if one is not declared."""
        check_declared(metrics, self._declared, "metric")
        known = [name for name in metrics if name in self._sums]
        if known:
            torch._foreach_add_([self._sums[name] for name in known], [metrics[name] for name in known])
        for name, value in metrics.items():
            if name not in self._sums:
                self._sums[name] = value.clone()  # it may be a CUDA graph's output, which the next replay overwrites
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = self.peek()
        self._sums, self._counts = {}, {}
        return means

    def peek(self) -> dict[str, float]:
        """Return the means so far. This synchronizes with the device."""
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
    """Write a run's CSV files, skills/ and tb/; print its console lines; draw its progress bar.

    Args:
        folder: the run's folder, which exists.
        with_skills: add DIAYN's columns and tags.
        with_disdain: add those of DISDAIN's bonus.
        total_frames: the run's budget, for the progress bar, which is drawn only on a terminal.
        frames_before: what `step` counts beside it: frames that were played before training.
        flags: numbers and texts by which TensorBoard compares runs.
        tracker: what else records numbers, pictures and videos; its owner closes it.
        logs: a `state_dict` to continue from; what was written later is cut off. None starts new files.
        step: the checkpoint's step, in frames.

    Raises:
        LogError: an existing file does not match `logs`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        with_skills: bool,
        with_disdain: bool = False,
        tensorboard: bool,
        total_frames: int,
        frames_before: int = 0,
        flags: Mapping[str, Any] | None = None,
        tracker: Tracker | None = None,
        logs: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        self._with_skills, self._picture_folder = with_skills, folder / "skills"
        position = {} if logs is None else logs["position"]
        check_logs(folder, with_skills=with_skills, tensorboard=tensorboard, logs=logs)
        recorded = _recorded_columns(logs, with_skills)
        self._files = {
            name: continue_file(folder / name, columns, recorded[name], position[name])
            if position.get(name)
            else CsvFile(folder / name, columns)
            for name, columns in csv_columns(with_skills, with_disdain).items()
        }
        self._tensorboard = TensorBoard(
            folder / "tb", enabled=tensorboard, position=position, step=step if position else None
        )
        self._tensorboard.describe(flags or {}, HEADLINE)
        self._tracker = tracker
        self._metrics = update_metrics(with_skills, with_disdain)
        self._meters = Meters(self._metrics)
        self._frames_before, what = frames_before, f"{frames_before} frames to choose" if frames_before else ""
        self._bar = ProgressBar(total_frames, step - frames_before, unit="frames", what=what)

    def state_dict(self) -> dict[str, Any]:
        """Return the open meters, and columns and length of each file after syncing it: tensors and plain data."""
        event_files = self._tensorboard.position()
        position = {name: file.position() for name, file in self._files.items()}
        columns = {name: list(file.columns) for name, file in self._files.items()}
        tracked = {} if self._tracker is None else {"tracked": self._tracker.id}
        return {
            "meters": self._meters.state_dict(),
            "position": position | event_files,
            "columns": columns,
            **tracked,
        }

    def load_meters(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load the meters of a `state_dict`."""
        self._meters.load_state_dict(state["meters"], device)

    def not_finite(self) -> list[str]:
        """Return the metrics since the last row that are infinite or NaN. This synchronizes with the device."""
        return [name for name, value in self._meters.peek().items() if not math.isfinite(value)]

    def update(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add the metrics of one update. Raises ValueError if one is not declared."""
        self._meters.add(metrics)

    def progress(self, step: int, seconds: float | None = None) -> None:
        """Move the progress bar to a frame.

        Args:
            seconds: of training so far, if an update was made for this frame: the rate is that of such frames.
        """
        self._bar.move(step - self._frames_before, seconds)

    def status(self, text: str) -> None:
        """Show beside the progress bar what the run is doing."""
        self._bar.status(text)

    def count(self, what: str, step: int, steps: int, seconds: float) -> None:
        """Show beside the progress bar how far something is; see `ProgressBar.count`."""
        self._bar.count(what, step, steps, seconds)

    def train_episode(self, number: int, step: int, result: Episode, frames: int) -> None:
        """Log a finished training episode of `frames` frames, with the means of the metrics since the last one."""
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
        self._files["train.csv"].write(row)
        self._episode("train", number, step, result)
        self._scalars("train", _without(row, "episode", "step", "skill_id"), step)
        if self._with_skills:
            own = {f"skill_{result.skill}": result.intrinsic_reward_sum}
            self._scalars("skill_train_episode_intrinsic_reward_sum", own, step)
        self._console("train", row, TRAIN_SKILL_LINE if self._with_skills else TRAIN_LINE)

    def evaluation(
        self,
        episode: int,
        step: int,
        results: Sequence[Episode],
        *,
        skills: Sequence[Row] = (),
        overall: Mapping[str, float | None] | None = None,
        more: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Log an evaluation. A measure that is missing or None leaves its cell empty.

        Args:
            episode: number of training episodes finished before it.
            results: its episodes.
            skills: rows of skills.csv without `step`; none if the run learns no skills.
            overall: the skill columns of eval.csv.
            more: groups of measures for TensorBoard only.
        """
        for result in results:
            self._episode("eval", episode, step, result)
        mean_return = sum(result.extrinsic_reward for result in results) / len(results)
        row: Row = {"episode": episode, "step": step, "episode_reward": mean_return, **(overall or {})}
        self._files["eval.csv"].write(row)
        duration = sum(result.duration for result in results)
        for name, value in _present({**_without(row, "episode", "step"), "duration": duration}).items():
            self._scalars("eval" if name in HEADLINE else "eval_more", {name: value}, step)
        for name, value in (more or {}).items():
            self._scalars(f"eval_{name}", value, step)
        for skill in skills:
            self._files["skills.csv"].write({"step": step, **skill})
            renamed = {"episode_extrinsic_reward": "episode_reward"}
            figures = {renamed.get(name, name): value for name, value in _present(skill).items()}
            for name, value in _without(figures, "skill_id", "episodes").items():
                self._scalars(f"skill_{name}", {f"skill_{skill['skill_id']}": value}, step)
        self._console("eval ", row, EVAL_LINE)
        self._tensorboard.flush()

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Write a picture, uint8 RGB `(H, W, 3)`, to skills/<frame>_<name>.png and TensorBoard. Warn if that fails."""
        path = self._picture_folder / f"{frame_name(step)}_{name}.png"
        try:
            png = encode_png(image)
            path.parent.mkdir(exist_ok=True)
            write_file(path, png)
        except (OSError, cv2.error) as error:
            print(f"warning: the picture {path} was not written: {error}", file=sys.stderr)
            return
        self._tensorboard.image(f"skills/{name}", png, image.shape[0], image.shape[1], step)
        if self._tracker is not None:
            self._tracker.image(f"skills/{name}", image, step)

    def time_shares(self, shares: Mapping[str, float], step: int) -> None:
        """Log the share of the run's time so far that each part of the loop took."""
        self._scalars("time", shares, step)

    def finish(self, step: int, seconds: float, shares: Mapping[str, float]) -> None:
        """Print the last line: the run's duration, and the share of each part of the loop."""
        parts = [f"{part} {share:.0%}" for part, share in sorted(shares.items(), key=lambda p: -p[1])]
        begun = f"done: {step} frames in {seconds:.0f} s, {step / max(seconds, 1e-9):.0f} fps; "
        while len(line := begun + ", ".join(parts)) > LINE_WIDTH and parts:  # the smallest are left out
            parts.pop()
        print(line)

    def video(self, name: str, path: Path, fps: float, step: int) -> None:
        """Show a video in TensorBoard, as a GIF under Images. SummaryWriter.add_video would need an old moviepy."""
        if self._tensorboard.enabled and (clip := gif_clip(path, fps)) is not None:
            self._tensorboard.image(f"video/{name}", *clip, step)
        if self._tracker is not None:
            self._tracker.video(f"video/{name}", path, step)

    def histograms(self, values: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
        """Log histograms of named tensors to TensorBoard."""
        self._tensorboard.histograms(values, step)

    def close(self) -> None:
        self._bar.close()
        for file in self._files.values():
            file.close()
        self._tensorboard.close()

    def _scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        self._tensorboard.scalars(prefix, values, step)
        if self._tracker is not None:
            self._tracker.scalars(prefix, values, step)

    def _episode(self, kind: str, number: int, step: int, result: Episode) -> None:
        cells = (kind, number, step, result.duration, result.extrinsic_reward, result.skill)
        row = dict(zip(EPISODE_COLUMNS, (*cells, result.intrinsic_reward_sum), strict=True))
        self._files["episodes.csv"].write(row)

    def _console(self, kind: str, row: Row, columns: Sequence[str]) -> None:
        """Print a line of the columns that have a value, as many as fit."""
        parts = [f"| {kind}"]
        for name in columns:
            if row.get(name) is not None:
                label, form = CONSOLE[name]
                parts.append(f"{label}: {shown_number(row[name], form)}{CONSOLE_UNITS.get(name, '')}")
        while len(line := " | ".join(parts)) > LINE_WIDTH:
            parts.pop()
        print(line, flush=True)


def encode_png(image: np.ndarray) -> bytes:
    """Return a picture, uint8 RGB `(H, W, 3)`, as PNG. Raises cv2.error."""
    _, png = cv2.imencode(".png", image[:, :, ::-1])
    return bytes(png.tobytes())


def check_state(state: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError, ValueError, AttributeError or RuntimeError if `state` is no Logger's `state_dict`."""
    position = {name: state["position"][name] for name in REQUIRED_CSV_FILES} | state["position"]
    if not all(type(size) is int and size >= 0 for size in position.values()):
        raise ValueError("lengths of log files")
    if not all(type(name) is str for columns in state.get("columns", {}).values() for name in columns):
        raise ValueError("columns of CSV files")
    if type(state.get("tracked")) not in (str, type(None)):
        raise ValueError("name of the tracker's record")
    meters = Meters(update_metrics(with_skills=True))
    meters.load_state_dict(state["meters"], torch.device("cpu"))
    meters.peek()


def _present(row: Mapping[str, Any]) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _without(row: Mapping[str, Any], *columns: str) -> Row:
    return {name: value for name, value in row.items() if name not in columns}
