"""Find the skill that explains the frames of a trajectory best (DIAYN, section 4.2.3)."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from config import Config
from console.numbers import shown_size
from diayn import DIAYNAgent
from errors import UserError
from evaluation.load import LoadedRun
from running.atomic_files import check_regular
from utils import free_memory
from video import VideoRecorder

LARGEST_SCALAR = 4000  # bytes, of a number or a text of a trajectory


def read_trajectory(path: Path, config: Config) -> tuple[np.ndarray, int | None]:
    """Read an .npz file from --save_trajectories. Raises UserError.

    Return its frames, resized to the run's image size, uint8 `(T + 1, 3, H, W)`, and the seed of its start if known.
    Nothing is unpickled, and nothing is read before its size is known.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as file:
            seed = _read_scalar(file, "seed", "iu")
            env, repeat = _read_scalar(file, "env", "U"), _read_scalar(file, "action_repeat", "iu")
            shape, dtype = _read_header(file, "frames")
            if env not in (None, config.env):
                raise UserError(f"its frames are of {env}, the run's of {config.env}; name some of its task")
            if repeat not in (None, config.action_repeat):
                what = f"its frames are {repeat} control steps apart, the run's {config.action_repeat}"
                raise UserError(f"{what}; name some with --action_repeat {config.action_repeat}")
            if dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[0] < 2 or min(shape) < 1:
                raise UserError(f"frames must be uint8 (T + 1, 3, H, W); got {dtype} {shape}")
            if seed is not None and seed < 0:
                raise UserError(f"its seed is {seed}; it must be 0 or above")
            _check_memory(shape, config)
            frames = _read_array(file, "frames")
        if frames.shape[2:] != (config.image_size, config.image_size):
            frames = np.stack([_resized(f, config.image_size, cv2.INTER_AREA).transpose(2, 0, 1) for f in frames])
    except OSError as error:
        raise UserError(
            f"--imitate {path}: {error.strerror or error}; name an .npz from --save_trajectories"
        ) from error
    except UserError as error:
        raise UserError(f"--imitate {path}: {error}") from error
    except Exception as error:  # a crafted file can make it fail in any way
        raise UserError(f"--imitate {path} holds no trajectory; name an .npz from --save_trajectories") from error
    return frames, None if seed is None else int(seed)


def _read_header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array in an .npz file, without reading it. Raises any exception."""
    with file.open(f"{name}.npy") as member:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[np.lib.format.read_magic(member)](member)
    return shape, dtype


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _read_scalar(file: zipfile.ZipFile, name: str, kinds: str) -> Any:
    """Return a number or a text in an .npz file, or None if it is missing. Raises UserError if it is something else."""
    if f"{name}.npy" not in file.namelist():
        return None
    shape, dtype = _read_header(file, name)
    if shape != () or dtype.kind not in kinds or dtype.itemsize > LARGEST_SCALAR:
        raise UserError(f"its {name} is no {'number' if kinds != 'U' else 'text'} but {dtype} {shape}")
    return _read_array(file, name).item()


def _check_memory(shape: Sequence[int], config: Config) -> None:
    """Raise UserError if frames of this shape, and the observations stacked from them, do not fit in memory."""
    pixels = 3 * config.image_size**2
    needed = math.prod(shape) + shape[0] * pixels * (2 + 2 * config.frame_stack)
    free = free_memory()
    if needed > free:
        raise UserError(f"its {shape[0]} frames need {shown_size(needed)}, {shown_size(free)} are free")


def stack_frames(frames: np.ndarray, frame_stack: int) -> np.ndarray:
    """Return the observation after each step, `(T, 3 * frame_stack, H, W)`, from frames `(T + 1, 3, H, W)`."""
    newest = np.arange(1, len(frames))
    parts = [frames[np.maximum(newest - age, 0)] for age in reversed(range(frame_stack))]
    return np.concatenate(parts, axis=1)


def skill_likelihoods(agent: DIAYNAgent, frames: np.ndarray, frame_stack: int) -> pd.DataFrame:
    """Return mean and sum over the steps of log q(z | s') for each skill z: skill_id, log_q_mean, log_q_sum.

    `frames` are uint8 `(T + 1, 3, image_size, image_size)`.
    """
    log_q = agent.log_likelihood(stack_frames(frames, frame_stack))
    return pd.DataFrame({"skill_id": agent.skills(), "log_q_mean": log_q.mean(axis=0), "log_q_sum": log_q.sum(axis=0)})


def record_imitation(
    loaded: LoadedRun, frames: np.ndarray, skill: int, seed: int, folder: Path, size: int
) -> Path | None:
    """Write given.mp4 of frames `(T + 1, 3, H, W)`, the skill's video, and imitation.mp4 with both side by side.

    The skill is played from the start with this seed. `size` is the height and width of a video in pixels.
    Return the last one's path, or None if it could not be written. If an exception is raised, no video is left behind.
    """
    recorder = VideoRecorder(folder, loaded.fps, size=size)
    with recorder.recorded("given"):
        for frame in frames[1:]:
            recorder.record(_resized(frame, size, cv2.INTER_NEAREST), ["given"])
    try:
        evaluation = loaded.evaluate([skill], [seed], asked_by="--imitate", video_folder=folder, video_size=size)
    except BaseException:
        (folder / "given.mp4").unlink(missing_ok=True)
        raise
    videos = (folder / "given.mp4", *evaluation.videos.values())
    return recorder.tile("imitation", [video for video in videos if video.exists()])


def _resized(frame: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Return a frame `(3, H, W)` as a picture `(size, size, 3)`."""
    picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return cv2.resize(picture, (size, size), interpolation=interpolation)
