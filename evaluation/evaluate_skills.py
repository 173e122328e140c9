"""The evaluation of skills from common starts, used by training and by evaluate.py."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from drq import DrQAgent
from envs.cells import CellGrid
from envs.parallel import EvalEnvs
from evaluation import skill_pictures, skill_report
from evaluation.play import Actions, Start, Trace, play
from logger import Episode, Row
from video import VIDEO_SIZE, VideoRecorder


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_skills`."""

    starts: list[Start]  # the episodes that were played, with their traces
    episodes: list[Episode]  # their results, in the same order
    videos: dict[int, Path]  # of each skill's first episode, by skill, without those that could not be written
    grid: Path | None  # the video of all skills side by side; None if there is one skill only, or no video
    cell_grid: CellGrid | None  # in which coverage is counted
    angles: Sequence[int]  # entries of the state of the physics that are angles without limits

    @cached_property
    def by_skill(self) -> skill_report.EpisodesBySkill:
        """The episodes with their traces, by skill."""
        played: dict[int, list[tuple[Episode, Trace]]] = {}
        for start, episode in zip(self.starts, self.episodes, strict=True):
            played.setdefault(start.skill, []).append((episode, start.trace))
        return played

    @cached_property
    def rows(self) -> list[Row]:
        """The row of skills.csv for each skill, without `step`."""
        return skill_report.skill_rows(self.by_skill, self.cell_grid, self.angles)

    @cached_property
    def overall(self) -> Row:
        """The measures of all skills together, by column of eval.csv."""
        visited = skill_report.cells_visited(self.by_skill, self.cell_grid)
        return {**skill_report.overall(self.rows), "cells_visited": visited}

    @cached_property
    def bound_by_decile(self) -> dict[int, list[float | None]]:
        """Each skill's mean intrinsic reward in each tenth of its episodes, in nats, by skill; None without a step."""
        return skill_report.bound_by_decile(self.by_skill)

    @property
    def mean_by_decile(self) -> list[float | None]:
        """The mean over skills of `bound_by_decile`."""
        return skill_report.mean_by_decile(self.bound_by_decile)

    def pictures(self, frame: int) -> dict[str, np.ndarray]:
        """Return the confusion matrix, the contact sheet and, with a grid, the trajectories, by name.

        They are uint8 RGB `(H, W, 3)`. All skills of an agent with a discriminator must have been played. `frame`, the
        frames of training, is shown.
        """
        matrix, episodes = skill_report.confusion_matrix(self.by_skill), self.rows[0]["episodes"]
        title = skill_pictures.headline(self.overall, len(self.rows), episodes, frame)
        pictures = {
            "confusion_matrix": skill_pictures.draw_confusion_matrix(matrix, title),
            "contact_sheet": skill_pictures.contact_sheet(self.by_skill),
        }
        if self.cell_grid is not None:
            title = f"{skill_pictures.caption(episodes, frame)}\ncells visited: {self.overall['cells_visited']}"
            pictures["trajectories"] = skill_pictures.draw_trajectories(self.by_skill, self.cell_grid, title)
        gc.collect()  # Matplotlib's figures are cycles of thousands of objects; Python collects those far less often
        return pictures


def evaluate_skills(
    agent: DrQAgent,
    eval_envs: EvalEnvs,
    names: Mapping[int, str],
    seeds: Sequence[int],
    *,
    fps: float,
    max_episode_steps: int,
    cell_grid: CellGrid | None,
    angles: Sequence[int],
    video_folder: Path | None,
    grid_name: str = "skills",
    video_size: int = VIDEO_SIZE,
    keep_all_pictures: bool = False,
    actions: Actions = "mode",
    between_steps: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Play each skill from each of the same starts.

    If an exception is raised, no video is left behind.

    Args:
        names: the skills to play, with the names of their videos.
        seeds: reset seeds of the starts.
        max_episode_steps: agent steps per episode, which decide how many pictures a trace keeps.
        cell_grid, angles: the environment's; see `Evaluation`.
        video_folder: where the videos are written, at `fps` frames per second; None writes none.
        grid_name: name of the video of all skills side by side.
        video_size: height and width of a video in pixels.
        keep_all_pictures: whether traces keep the picture of every step, not only those of the contact sheet.
        actions, between_steps: as for `play`, which also says what is raised.
    """
    every = 1 if keep_all_pictures else skill_pictures.picture_interval(max_episode_steps)
    starts = [Start(skill, seed, trace=Trace(int(keep_all_pictures))) for seed in seeds for skill in names]
    for start in starts[: min(len(names), skill_pictures.SHEET_ROWS)]:
        start.trace.picture_every = every
    recorders = {skill: VideoRecorder(video_folder, fps, size=video_size) for skill in names}
    for start in starts[: len(names)]:  # the first episode of each skill
        start.recorder = recorders[start.skill]
        start.recorder.start(names[start.skill])
    grid = None
    try:
        episodes = play(agent, eval_envs, starts, actions=actions, between_steps=between_steps)
        videos = {start.skill: start.video for start in starts if start.video is not None}
        if len(names) > 1:
            grid = VideoRecorder(video_folder, fps, size=video_size).tile(grid_name, list(videos.values()))
    except BaseException:
        for start in starts[: len(names)]:
            recorders[start.skill].drop()
            if start.video is not None:
                start.video.unlink(missing_ok=True)
        raise
    return Evaluation(starts, episodes, videos, grid, cell_grid, angles)
