"""Play episodes, several side by side: one forward pass serves a step of all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from console.numbers import shown_number
from drq import Assessment, DrQAgent
from envs.parallel import EvalEnvs
from errors import WorkerError
from logger import Episode
from running.columns import NO_SKILL
from running.names import padded
from video import VideoRecorder

Actions = Literal["mode", "sampled", "uniform"]  # the policy's mode, samples of it, or uniformly random ones
BYTES_PER_STEP = 200  # of a trace: an array, two numbers and their places in lists


@dataclass
class Trace:
    """What happens in an episode of T steps, filled by `play`. Lists of length T + 1 begin with the reset's entry."""

    picture_every: int = 0  # agent steps between pictures, of which the last step has one too; 0 keeps none
    actions: list[np.ndarray] = field(default_factory=list)  # float32 (action_dim,), T entries
    rewards: list[float] = field(default_factory=list)  # the task's, T entries
    intrinsic: list[float] = field(default_factory=list)  # rewards in nats, T entries; 0 without a discriminator
    predicted: list[int] = field(default_factory=list)  # T + 1 skills; NO_SKILL without a discriminator
    states: list[np.ndarray] = field(default_factory=list)  # of the physics, T + 1 entries; empty if there are none
    centers: list[np.ndarray] = field(default_factory=list)  # centers of mass (x, y, z) in meters, as many as states
    positions: list[np.ndarray] = field(default_factory=list)  # in the coordinates of the cell grid, as many as states
    pictures: list[np.ndarray] = field(default_factory=list)  # newest frames, uint8 (3, H, W)
    picture_steps: list[int] = field(default_factory=list)  # the agent step of each picture


def bytes_of_traces(episodes: int, steps: int, image_size: int, *, all_pictures: bool = False) -> int:
    """Return the memory that the traces of so many episodes of so many agent steps take at least."""
    pictures = steps + 1 if all_pictures else 1
    return episodes * (BYTES_PER_STEP * steps + pictures * 3 * image_size**2)


@dataclass
class Start:
    """An episode to play. The caller starts the recorder before; `play` stops it when the episode is over."""

    skill: int
    seed: int  # of the environment's reset
    recorder: VideoRecorder | None = None
    video: Path | None = None  # what the recorder wrote
    trace: Trace = field(default_factory=Trace)


def play(
    agent: DrQAgent,
    eval_envs: EvalEnvs,
    starts: Sequence[Start],
    *,
    actions: Actions = "mode",
    between_steps: Callable[[], object] = lambda: None,
) -> list[Episode]:
    """Play every start to the end of its episode and return the episodes in the same order.

    The results do not depend on the number of environments, except for `duration`: episodes that are played side by
    side share their time equally. Random actions depend only on the seed and the skill of their start.

    `between_steps` is called before each step; an exception that it raises ends the evaluation. Raises WorkerError if a
    worker process died, RenderingError if an observation cannot be drawn, EnvError if an environment failed.
    """
    episodes: list[Episode] = []
    try:
        for first in range(0, len(starts), eval_envs.num_envs):
            together = starts[first : first + eval_envs.num_envs]
            episodes += _Round(agent, eval_envs, together, actions).play(between_steps)
            for start in together:  # now, so that there are never more encoders than environments
                if start.recorder is not None:
                    start.video = start.recorder.stop()
    except (EOFError, ConnectionError) as error:
        raise WorkerError("an evaluation process died; if memory is short, try fewer --eval_workers") from error
    return episodes


def steps_to_play(episodes: int, eval_envs: EvalEnvs, max_episode_steps: int) -> int:
    """Return how often `play` calls `between_steps` at most."""
    return math.ceil(episodes / eval_envs.num_envs) * max_episode_steps


def best_skill(
    agent: DrQAgent,
    eval_envs: EvalEnvs,
    skills: Sequence[int],
    seeds: Sequence[int],
    *,
    actions: Actions = "mode",
    between_steps: Callable[[], object] = lambda: None,
) -> tuple[int, dict[int, float], int]:
    """Play every skill from the same starts.

    Return the skill with the highest mean return, the mean return of each, and the number of agent steps played.
    """
    starts = [Start(skill, seed) for seed in seeds for skill in skills]
    episodes = play(agent, eval_envs, starts, actions=actions, between_steps=between_steps)
    returns = {
        skill: sum(episode.extrinsic_reward for episode in episodes if episode.skill == skill) / len(seeds)
        for skill in skills
    }
    return max(returns, key=lambda skill: returns[skill]), returns, sum(episode.length for episode in episodes)


def skill_name(skill: int, count: int = 1) -> str:
    """Return the name of one of `count` skills in files, which sort by it; "policy" for NO_SKILL."""
    return "policy" if skill == NO_SKILL else f"skill{padded(skill, count - 1)}"


def start_seeds(entropy: int | Sequence[int], count: int) -> list[int]:
    """Return the reset seeds of `count` evaluation episodes."""
    return np.random.SeedSequence(entropy).generate_state(count).tolist()


class _Round:
    """Episodes that are played side by side, one in each environment."""

    def __init__(self, agent: DrQAgent, eval_envs: EvalEnvs, starts: Sequence[Start], actions: Actions) -> None:
        self.agent, self.eval_envs, self.starts, self.actions = agent, eval_envs, starts, actions
        count = eval_envs.num_envs
        # If there are fewer starts than environments, the others repeat some starts, and their results are ignored.
        repeated = [starts[number % len(starts)] for number in range(count)]
        self.seeds, self.skills = [start.seed for start in repeated], np.array([start.skill for start in repeated])
        self.rngs = [np.random.default_rng([start.seed, start.skill - NO_SKILL]) for start in repeated]
        self.over = np.zeros(count, bool)
        self.length, self.recognized, self.extrinsic, self.intrinsic = np.zeros((4, count))

    def play(self, between_steps: Callable[[], object]) -> list[Episode]:
        began = time.perf_counter()
        obs, _ = self.eval_envs.reset(seed=self.seeds)  # type: ignore[arg-type]  # vectors take a seed for each
        action, _, predicted = self._assess(obs)
        self._trace(obs, predicted, self.over)
        while not self.over.all():
            between_steps()
            obs, reward, _, _, info = self.eval_envs.step(action)
            self.over |= info["unstable"]
            for number, start in self._running():
                start.trace.actions.append(action[number].copy())
                start.trace.rewards.append(float(reward[number]))
            action, r_int, predicted = self._assess(obs)
            self.length += ~self.over
            self.extrinsic += reward
            self.intrinsic += np.where(self.over, 0.0, r_int)
            self.recognized += ~self.over & (predicted == self.skills) & (self.skills != NO_SKILL)
            for number, start in self._running():
                start.trace.intrinsic.append(float(r_int[number]))
            self._trace(obs, predicted, info["over"])
            self._record(predicted, r_int)
            self.over |= info["over"]
        duration = (time.perf_counter() - began) / len(self.starts)
        return [
            Episode(
                duration=duration,
                extrinsic_reward=float(self.extrinsic[number]),
                skill=start.skill,
                intrinsic_reward_sum=float(self.intrinsic[number]),
                discriminator_accuracy=float(self.recognized[number] / max(self.length[number], 1)),
                length=int(self.length[number]),
            )
            for number, start in enumerate(self.starts)
        ]

    def _assess(self, obs: np.ndarray) -> Assessment:
        """Return the next actions, and what the agent says about the observations."""
        (size,) = self.eval_envs.single_action_space.shape or ()
        if self.actions == "sampled":
            noise = np.stack([rng.standard_normal(size, np.float32) for rng in self.rngs])
            return self.agent.assess(obs, self.skills, noise)
        assessment = self.agent.assess(obs, self.skills)
        if self.actions == "uniform":
            action = np.stack([rng.uniform(-1.0, 1.0, size).astype(np.float32) for rng in self.rngs])
            assessment = assessment._replace(action=action)
        return assessment

    def _running(self) -> list[tuple[int, Start]]:
        """Return the episodes that are not over, with the numbers of their environments."""
        return [(number, start) for number, start in enumerate(self.starts) if not self.over[number]]

    def _trace(self, obs: np.ndarray, predicted: np.ndarray, last: np.ndarray) -> None:
        """Append the current observation and state to the traces. `last` says whose episode ends with this step."""
        measured = self.eval_envs.call("measure")
        for number, start in self._running():
            trace = start.trace
            trace.predicted.append(int(predicted[number]))
            if measured[number] is not None:
                trace.states.append(measured[number].state)
                trace.centers.append(measured[number].center)
                trace.positions.append(measured[number].position)
            step = int(self.length[number])
            if trace.picture_every and (step % trace.picture_every == 0 or last[number]):
                trace.pictures.append(obs[number, -3:].copy())
                trace.picture_steps.append(step)

    def _record(self, predicted: np.ndarray, r_int: np.ndarray) -> None:
        """Append the current scene to the videos."""
        recorders = {
            number: start.recorder
            for number, start in self._running()
            if start.recorder is not None and start.recorder.recording
        }
        if not recorders:
            return
        size = next(iter(recorders.values())).size
        self.eval_envs.set_attr("recording", [number in recorders for number in range(self.eval_envs.num_envs)])
        pictures = self.eval_envs.call("picture", size, size)
        for number, recorder in recorders.items():
            picture, skill = pictures[number], self.skills[number]
            if isinstance(picture, str):
                recorder.give_up(picture)
                continue
            text = [f"skill {skill}  step {self.length[number]:.0f}"] if skill != NO_SKILL else []
            if predicted[number] != NO_SKILL:  # there is a discriminator
                now, total = shown_number(r_int[number], ".3f"), shown_number(self.intrinsic[number], ".1f")
                text.append(f"r_int {now}  sum {total}")
            recorder.record(picture, text)
