"""Play episodes in which the skill changes on a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.make import make_environment
from errors import UserError
from evaluation.load import LoadedRun, check_skill
from evaluation.play import start_seeds
from video import VIDEO_SIZE, VideoRecorder


class Stretch(NamedTuple):
    """A part of a schedule: a skill, or None for a random one, and for how many agent steps it is played."""

    skill: int | None
    steps: int


class ComposedEpisode(NamedTuple):
    """An episode that was played on a schedule."""

    seed: int  # of its start
    extrinsic_reward: float  # the task's return
    steps: int  # agent steps


def parse_schedule(text: str, known: Sequence[int]) -> list[Stretch]:
    """Parse a schedule such as 3:100,7:100 or random:100. Raises UserError.

    Args:
        known: the skills that the run has.
    """
    if known[0] < 0:
        raise UserError("--skill_schedule: the run has no skills; name one with --num_skills above 0")
    schedule = []
    for part in text.split(","):
        skill, _, steps = part.partition(":")
        if not steps.isdecimal() or int(steps) < 1 or not (skill == "random" or skill.isdecimal()):
            raise UserError(f"--skill_schedule must be such as 3:100,7:100 or random:100; got {text}")
        if skill != "random":
            check_skill("skill_schedule", int(skill), list(known))
        schedule.append(Stretch(None if skill == "random" else int(skill), int(steps)))
    return schedule


def scheduled_skills(schedule: Sequence[Stretch], known: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """Yield the skill of each agent step of an episode. The schedule repeats without end."""
    while True:
        for stretch in schedule:
            skill = int(rng.choice(known)) if stretch.skill is None else stretch.skill
            yield from (skill for _ in range(stretch.steps))


def compose(
    loaded: LoadedRun,
    schedule: Sequence[Stretch],
    *,
    episodes: int,
    seed: int,
    video_folder: Path | None,
    video_size: int = VIDEO_SIZE,
) -> Iterator[ComposedEpisode]:
    """Play episodes on a schedule, which starts again in each episode, and yield each when it is over.

    The first episode's video is schedule.mp4. Raises SimulationError, RenderingError.

    Args:
        seed: decides the starts and the random skills.
        video_folder: where the video is written; None writes none.
        video_size: height and width of the video in pixels.
    """
    agent, rng = loaded.agent, np.random.default_rng(seed)
    with closing(make_environment(loaded.config)) as env:
        for number, start_seed in enumerate(start_seeds(seed, episodes)):
            recorder = VideoRecorder(None if number else video_folder, loaded.fps, size=video_size)
            skills = scheduled_skills(schedule, agent.skills(), rng)
            obs, _ = env.reset(seed=start_seed)
            over, total, steps = False, 0.0, 0
            with recorder.recorded("schedule"):
                while not over:
                    skill = next(skills)
                    action = agent.assess(obs[None], np.array([skill])).action[0]
                    obs, reward, terminated, truncated, _ = env.step(action)
                    over, total, steps = terminated or truncated, total + reward, steps + 1
                    if recorder.recording:
                        recorder.record(env.render(video_size, video_size), [f"skill {skill}  step {steps}"])
            yield ComposedEpisode(start_seed, total, steps)
