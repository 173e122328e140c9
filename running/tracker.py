"""Record a run with Weights & Biases or Trackio, beside TensorBoard.

Both packages have the functions that are used here. They are optional (requirements-track.txt), so the one that is
asked for is imported by its name. Where it records, and under which account, is set as its own documentation says.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError, one_line

PROJECT = "drq-diayn"  # unless WANDB_PROJECT or TRACKIO_PROJECT names another


class Tracker:
    """A tracker's record of a run. If the tracker fails, a warning is printed and nothing more is recorded.

    Args:
        package: "wandb" or "trackio".
        folder: the run's folder; wandb writes into its folder wandb/.
        group: the task.
        flags: all flags of the run.
        run_id: `id` of the record to continue; None starts a new one. What the tracker was told after the checkpoint
            from which the run is resumed is told again, with the same steps.

    Raises:
        UserError: the tracker cannot start.
    """

    def __init__(self, package: str, folder: Path, *, group: str, flags: Mapping[str, Any], run_id: str | None) -> None:
        self.id = run_id or uuid.uuid4().hex
        self.place: str | None = None  # where wandb records: an address or a folder. Trackio prints it
        self._package, self._failed = package, False
        random_state = random.getstate()  # what the package imports may draw numbers
        try:
            self._module: Any = import_module(package)
            common = {
                "project": os.environ.get(f"{package.upper()}_PROJECT", PROJECT),
                "group": group,
                "config": dict(flags),
            }
            if package == "wandb":
                # Its own console lines, its copy of ours, and a warning of its telemetry that may come at the end would
                # disturb the progress bar, or hide our last line.
                logging.getLogger("opentelemetry").setLevel(logging.ERROR)
                settings = self._module.Settings(console="off", silent=True)
                run = self._module.init(
                    **common, name=folder.name, dir=folder, id=self.id, resume="allow", settings=settings
                )
                self.place = run.dir if run.offline else run.url
            else:
                # A name is the record's identity, and folders of other tasks have equal names.
                name = f"{folder.name}-{self.id[:8]}"
                self._module.init(**common, name=name, resume="never" if run_id is None else "allow")
        except Exception as error:  # what it raises is its own affair
            reason = one_line(str(error)).rstrip(".")
            raise UserError(f"--track {package}: {reason}; fix that, or choose --track none") from error
        finally:
            random.setstate(random_state)

    def scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._module.log({f"{prefix}/{name}": value for name, value in values.items()}, step=step))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Record a picture, uint8 RGB `(H, W, 3)`."""
        self._try(lambda: self._module.log({tag: self._module.Image(image)}, step=step))

    def video(self, tag: str, path: Path, step: int) -> None:
        """Record an MP4 file."""
        self._try(lambda: self._module.log({tag: self._module.Video(str(path), format="mp4")}, step=step))

    def close(self, *, failed: bool) -> None:
        """End the record. Trackio does not record whether the run failed."""
        self._failed = False  # what was recorded until then is to be kept
        status = {"exit_code": int(failed)} if self._package == "wandb" else {}
        self._try(lambda: self._module.finish(**status))

    def _try(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            with warnings.catch_warnings(record=True) as caught:  # Trackio warns of its own errors
                warnings.simplefilter("always", UserWarning)
                action()
            told = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
            failure = told[0] if told and self._package == "trackio" else None
        except Exception as error:  # a record beside the run's own files: no reason to stop training
            failure = str(error)
        if failure is not None:
            self._failed = True
            print(f"warning: no more records for {self._package}: {one_line(failure)}", file=sys.stderr)
