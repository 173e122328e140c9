"""TensorBoard's event files of a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# The tab "custom scalars": charts of several tags, which are regular expressions, by heading.
LAYOUT = {
    "evaluation": {
        "return": ["Multiline", ["^eval/episode_reward$"]],
        "bound, nats": ["Multiline", ["^eval/mutual_information_bound(_second_half)?$"]],
        "effective skills": ["Multiline", ["^eval/effective_skills$"]],
        "cells visited": ["Multiline", ["^eval/cells_visited$"]],
    },
    "skills": {
        "return of each skill": ["Multiline", ["^skill_episode_reward/"]],
        "bound of each skill, nats": ["Multiline", ["^skill_mutual_information_bound/"]],
        "accuracy of each skill": ["Multiline", ["^skill_discriminator_accuracy/"]],
        "bound in each tenth of the episode, nats": ["Multiline", ["^eval_mutual_information_bound_by_decile/"]],
    },
    "training": {
        "return": ["Multiline", ["^train/episode_reward$"]],
        "losses": ["Multiline", ["^train/(actor|critic|discriminator)_loss$"]],
        "accuracy of the discriminator": ["Multiline", ["^train/discriminator_accuracy$"]],
        "entropy of the policy, nats": ["Multiline", ["^train/actor_(target_)?entropy$"]],
    },
}


def event_files(folder: Path) -> list[Path]:
    """Return TensorBoard's files in a folder."""
    return sorted(folder.glob("events.out.tfevents.*"))


class TensorBoard:
    """TensorBoard's event files. If the disk fails, a warning is printed and nothing more is written.

    Args:
        enabled: if false, every method does nothing.
        position: length in bytes of each existing file, by name, at the checkpoint from which the run is resumed. The
            files are cut back to it; files that are not named are removed.
        step: the checkpoint's step; an open TensorBoard discards what it has seen of later steps. None in a new run.
    """

    def __init__(self, folder: Path, *, enabled: bool, position: Mapping[str, int], step: int | None) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        for path in event_files(folder):
            if path.name in position:
                os.truncate(path, min(position[path.name], path.stat().st_size))
            else:
                path.unlink()
        if enabled:
            # The writer's thread notices a full disk first. It passes the error to the next call, which `_write`
            # reports, so its traceback is not printed.
            threading.excepthook = lambda args: (
                None if isinstance(args.exc_value, OSError) else threading.__excepthook__(args)
            )
            self._writer = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)

    @property
    def enabled(self) -> bool:
        """Whether anything is written."""
        return self._writer is not None

    def describe(self, flags: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Fill the tab HParams with flags, numbers or texts, and the metrics `eval/...`; lay out the custom scalars."""
        if self.enabled and flags:
            experiment, begun, _ = hparams(dict(flags), {f"eval/{name}": 0.0 for name in metrics})
            self._summary(experiment)
            self._summary(begun)
        self._write(SummaryWriter.add_custom_scalars, LAYOUT)

    def position(self) -> dict[str, int]:
        """Flush, and return the length of each event file in bytes, by name."""
        self.flush()
        return {path.name: path.stat().st_size for path in event_files(self._folder)}

    def scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._write(SummaryWriter.add_scalar, f"{prefix}/{name}", value, step)

    def histograms(self, values: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
        for name, value in values:
            self._write(SummaryWriter.add_histogram, f"weights_{name}", value, step)

    def image(self, tag: str, encoded: bytes, height: int, width: int, step: int) -> None:
        """Show an encoded picture or animation under Images."""
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def flush(self) -> None:
        self._write(SummaryWriter.flush)

    def close(self) -> None:
        self._write(SummaryWriter.close)

    def _summary(self, summary: Summary, step: int | None = None) -> None:
        self._write(lambda writer: writer.file_writer and writer.file_writer.add_summary(summary, step))

    def _write(self, method: Callable[..., object], *args: Any) -> None:
        if self._writer is None:
            return
        try:
            method(self._writer, *args)
        except OSError as error:
            print(f"warning: no more TensorBoard logs, tb/ cannot be written: {error}", file=sys.stderr)
            self._writer = None
