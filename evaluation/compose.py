"""Play episodes in which the skill changes on a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import repeat
from pathlib import Path

import numpy as np

from console.numbers import shown_number
from envs.make import make_environment
from evaluation.chosen_skills import SkillSchedule, parse_schedule
from evaluation.load import LoadedRun
from evaluation.play import start_seeds
from video import VideoRecorder


def scheduled_skills(schedule: SkillSchedule, known: Sequence[int], rng: np.random.Generator) -> Iterator[int]:
    """Yield the skill of each agent step of an episode. The schedule repeats without end."""
    while True:
        for skill, steps in schedule:
            yield from repeat(int(rng.choice(known)) if skill is None else skill, steps)


def play_schedule(
    loaded: LoadedRun, text: str, *, episodes: int, seed: int, video_folder: Path | None, video_size: int
) -> Path | None:
    """Play episodes on a schedule (the text that `parse_schedule` reads) and print their returns.

    The schedule starts again in each episode. `seed` decides the starts and the random skills. The first episode's
    video is schedule.mp4, `video_size` pixels high and wide; its path is returned if it was written.
    Raises UserError, SimulationError, RenderingError.
    """
    agent, rng = loaded.agent, np.random.default_rng(seed)
    schedule = parse_schedule(text, agent.skills())
    with closing(make_environment(loaded.config)) as env:
        first = VideoRecorder(video_folder, loaded.fps, size=video_size)
        for number, start_seed in enumerate(start_seeds(seed, episodes)):
            recorder = VideoRecorder(None, loaded.fps) if number else first
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
            print(f"episode from seed {start_seed}: return {shown_number(total, '.2f')} in {steps} agent steps")
    return first.written
