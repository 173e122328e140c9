"""The evaluation of skills from common starts, used by training and by evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from drq import DrQAgent
from envs.parallel import EvalEnvs
from evaluation.play import Start, Trace, do_nothing, play
from evaluation.skill_report import (
    EpisodesBySkill,
    confusion_matrix,
    contact_sheet,
    draw_confusion_matrix,
    group_by_skill,
    headline,
    picture_interval,
    skill_rows,
)
from logger import Episode, Row
from video import VIDEO_SIZE, VideoRecorder


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_skills`.

    Attributes:
        starts: the episodes that were played, with their traces.
        episodes: their results, in the same order.
        videos: the video of each skill's first episode, by skill, without those that could not be written.
        grid: the video of all skills side by side; None if there is one skill only, or no video.
    """

    starts: list[Start]
    episodes: list[Episode]
    videos: dict[int, Path]
    grid: Path | None

    @cached_property
    def by_skill(self) -> EpisodesBySkill:
        """The episodes with their traces, by skill."""
        return group_by_skill(self.starts, self.episodes)

    @cached_property
    def rows(self) -> list[Row]:
        """The row of skills.csv for each skill, without `step`."""
        return skill_rows(self.by_skill)

    def pictures(self, frame: int) -> dict[str, np.ndarray]:
        """Return the confusion matrix and the contact sheet, uint8 RGB `(H, W, 3)`, by name.

        All skills of an agent with a discriminator must have been played.

        Args:
            frame: frames of training, for the title.
        """
        matrix = draw_confusion_matrix(confusion_matrix(self.by_skill), headline(self.rows, frame))
        return {"confusion_matrix": matrix, "contact_sheet": contact_sheet(self.by_skill)}


def evaluate_skills(
    agent: DrQAgent,
    eval_envs: EvalEnvs,
    names: Mapping[int, str],
    seeds: Sequence[int],
    *,
    fps: float,
    max_episode_steps: int,
    video_folder: Path | None,
    grid_name: str = "skills",
    video_size: int = VIDEO_SIZE,
    keep_all_pictures: bool = False,
    between_steps: Callable[[], object] = do_nothing,
) -> Evaluation:
    """Play each skill with the deterministic policy from each of the same starts.

    If an exception is raised, no video is left behind.

    Args:
        names: the skills to play, with the names of their videos.
        seeds: reset seeds of the starts.
        fps: frames per second of the videos.
        max_episode_steps: agent steps per episode, which decide how many pictures a trace keeps.
        video_folder: where the videos are written; None writes none.
        grid_name: name of the video of all skills side by side.
        video_size: height and width of a video in pixels.
        keep_all_pictures: whether traces keep the picture of every step, not only those of the contact sheet.
        between_steps: called before each step; an exception that it raises ends the evaluation.

    Raises:
        WorkerError: a worker process died.
        RenderingError: an observation cannot be drawn.
    """
    picture_every = 1 if keep_all_pictures else picture_interval(max_episode_steps)
    recorders = {skill: VideoRecorder(video_folder, fps, size=video_size) for skill in names}
    for skill, recorder in recorders.items():
        recorder.start(names[skill])
    starts = [
        Start(skill, seed, recorder if number == 0 else None, Trace(picture_every))
        for number, seed in enumerate(seeds)
        for skill, recorder in recorders.items()
    ]
    try:
        episodes = play(agent, eval_envs, starts, between_steps=between_steps)
    except BaseException:
        for recorder in recorders.values():
            recorder.drop()
        raise
    stopped = {skill: recorder.stop() for skill, recorder in recorders.items()}
    videos = {skill: path for skill, path in stopped.items() if path is not None}
    grid = None
    if len(names) > 1:
        grid = VideoRecorder(video_folder, fps, size=video_size).tile(grid_name, list(videos.values()))
    return Evaluation(starts, episodes, videos, grid)
