"""Find the skill that explains the frames of a trajectory best (DIAYN, section 4.2.3)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from config import Config
from diayn import DIAYNAgent
from errors import UserError
from evaluation.load import LoadedRun
from video import VideoRecorder


def read_trajectory(path: Path, config: Config) -> tuple[np.ndarray, int | None]:
    """Read an .npz file from --save_trajectories. Raises UserError.

    Return its frames, resized to the run's image size, uint8 `(T + 1, 3, H, W)`, and the seed of its start if known.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            frames, seed = data["frames"], int(data["seed"]) if "seed" in data else None
            env = str(data["env"]) if "env" in data else config.env
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"--imitate {path} holds no trajectory; name an .npz from --save_trajectories") from error
    except OSError as error:
        raise UserError(
            f"--imitate {path}: {error.strerror or error}; name an .npz from --save_trajectories"
        ) from error
    if env != config.env:
        raise UserError(f"--imitate {path}: its frames are of {env}, the run's of {config.env}; name some of its task")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or len(frames) < 2:
        raise UserError(f"--imitate {path}: frames must be uint8 (T + 1, 3, H, W); got {frames.dtype} {frames.shape}")
    size = config.image_size
    if frames.shape[2:] != (size, size):
        frames = np.stack([_resized(frame, size, cv2.INTER_AREA).transpose(2, 0, 1) for frame in frames])
    return frames, seed


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


def record_imitation(loaded: LoadedRun, frames: np.ndarray, skill: int, seed: int, folder: Path, size: int) -> None:
    """Write given.mp4 of frames `(T + 1, 3, H, W)`, the skill's video, and imitation.mp4 with both side by side.

    The skill is played from the start with this seed. `size` is the height and width of a video in pixels.
    """
    recorder = VideoRecorder(folder, loaded.fps, size=size)
    with recorder.recorded("given"):
        for frame in frames[1:]:
            recorder.record(_resized(frame, size, cv2.INTER_NEAREST), ["given"])
    evaluation = loaded.evaluate([skill], [seed], video_folder=folder, video_size=size)
    videos = (folder / "given.mp4", *evaluation.videos.values())
    recorder.tile("imitation", [video for video in videos if video.exists()])


def _resized(frame: np.ndarray, size: int, interpolation: int) -> np.ndarray:
    """Return a frame `(3, H, W)` as a picture `(size, size, 3)`."""
    picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return cv2.resize(picture, (size, size), interpolation=interpolation)
