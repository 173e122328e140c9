"""Play episodes with the deterministic policy, several side by side: one forward pass serves a step of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from drq import DrQAgent
from envs.parallel import EvalEnvs
from errors import WorkerError
from logger import Episode
from replay_buffer import NO_SKILL
from video import VideoRecorder


def do_nothing() -> None:
    """Default for `between_steps`."""


@dataclass
class Trace:
    """What happens in an episode of T steps, filled by `play`. Lists of length T + 1 begin with the reset's entry.

    Attributes:
        picture_every: agent steps between pictures; 0 keeps none.
        actions: float32 `(action_dim,)`, T entries.
        rewards: the task's rewards, T entries.
        predicted: the discriminator's most likely skill, T + 1 entries; NO_SKILL without a discriminator.
        states: states of the physics, T + 1 entries; empty if the environment has none.
        centres: centers of mass, `(x, y, z)` in metres, T + 1 entries; empty if the environment has none.
        pictures: newest frames, uint8 `(3, H, W)`.
    """

    picture_every: int = 0
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    centres: list[np.ndarray] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)


class Start(NamedTuple):
    """An episode to play.

    Attributes:
        skill: the skill to play, or NO_SKILL.
        seed: seed of the environment's reset.
        recorder: records the episode's video if given. The caller starts it before and stops it afterwards.
        trace: filled with what happens in the episode if given.
    """

    skill: int
    seed: int
    recorder: VideoRecorder | None = None
    trace: Trace | None = None


def play(
    agent: DrQAgent,
    eval_envs: EvalEnvs,
    starts: Sequence[Start],
    *,
    between_steps: Callable[[], object] = do_nothing,
) -> list[Episode]:
    """Play every start to the end of its episode and return the episodes in the same order.

    The results do not depend on the number of environments, except for `duration`: episodes that are played side by
    side share their time equally.

    Args:
        between_steps: called before each step; an exception that it raises ends the evaluation.

    Raises:
        WorkerError: a worker process died.
        RenderingError: an observation cannot be drawn.
    """
    episodes: list[Episode] = []
    try:
        for first in range(0, len(starts), eval_envs.num_envs):
            episodes += _Round(agent, eval_envs, starts[first : first + eval_envs.num_envs]).play(between_steps)
    except (EOFError, ConnectionError) as error:
        raise WorkerError("an evaluation process died; if memory is short, try fewer --eval_workers") from error
    return episodes


def best_skill(
    agent: DrQAgent,
    eval_envs: EvalEnvs,
    skills: Sequence[int],
    seeds: Sequence[int],
    *,
    between_steps: Callable[[], object] = do_nothing,
) -> tuple[int, dict[int, float], int]:
    """Play every skill from the same starts, and return the one with the highest mean return.

    Returns:
        The best skill, the mean return of each skill, and the number of agent steps played.
    """
    starts = [Start(skill, seed) for seed in seeds for skill in skills]
    episodes = play(agent, eval_envs, starts, between_steps=between_steps)
    returns = {
        skill: sum(episode.extrinsic_reward for episode in episodes if episode.skill == skill) / len(seeds)
        for skill in skills
    }
    return max(returns, key=lambda skill: returns[skill]), returns, sum(episode.length for episode in episodes)


def skill_name(skill: int) -> str:
    """Return the name of a skill in files and tags; "policy" for NO_SKILL."""
    return "policy" if skill == NO_SKILL else f"skill{skill}"


def start_seeds(entropy: int | Sequence[int], count: int) -> list[int]:
    """Return the reset seeds of `count` evaluation episodes."""
    return np.random.SeedSequence(entropy).generate_state(count).tolist()


class _Round:
    """Episodes that are played side by side, one in each environment."""

    def __init__(self, agent: DrQAgent, eval_envs: EvalEnvs, starts: Sequence[Start]) -> None:
        self.agent, self.eval_envs, self.starts = agent, eval_envs, starts
        count = eval_envs.num_envs
        # If there are fewer starts than environments, the others repeat some starts, and their results are ignored.
        repeated = [starts[number % len(starts)] for number in range(count)]
        self.seeds, self.skills = [start.seed for start in repeated], np.array([start.skill for start in repeated])
        self.over = np.zeros(count, bool)
        self.length, self.recognized, self.extrinsic, self.intrinsic = np.zeros((4, count))

    def play(self, between_steps: Callable[[], object]) -> list[Episode]:
        began = time.perf_counter()
        obs, _ = self.eval_envs.reset(seed=self.seeds)  # type: ignore[arg-type]  # vectors take a seed for each
        action, _, predicted = self.agent.assess(obs, self.skills)
        self._trace(obs, predicted)
        while not self.over.all():
            between_steps()
            obs, reward, _, _, info = self.eval_envs.step(action)
            self.over |= info["unstable"]
            self._trace_step(action, reward)
            action, r_int, predicted = self.agent.assess(obs, self.skills)
            self.length += ~self.over
            self.extrinsic += reward
            self.intrinsic += np.where(self.over, 0.0, r_int)
            self.recognized += ~self.over & (predicted == self.skills) & (self.skills != NO_SKILL)
            self._trace(obs, predicted)
            self._record(predicted, r_int)
            self.over |= info["over"]
        return self._episodes((time.perf_counter() - began) / len(self.starts))

    def _episodes(self, duration: float) -> list[Episode]:
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

    def _traced(self) -> list[tuple[int, Trace]]:
        """Return the traces of the episodes that are not over, with the numbers of their environments."""
        traces = [(number, start.trace) for number, start in enumerate(self.starts) if not self.over[number]]
        return [(number, trace) for number, trace in traces if trace is not None]

    def _trace_step(self, action: np.ndarray, reward: np.ndarray) -> None:
        for number, trace in self._traced():
            trace.actions.append(action[number].copy())
            trace.rewards.append(float(reward[number]))

    def _trace(self, obs: np.ndarray, predicted: np.ndarray) -> None:
        """Append the current observation and state to the traces."""
        traced = self._traced()
        if not traced:
            return
        measured = self.eval_envs.call("measure")
        for number, trace in traced:
            trace.predicted.append(int(predicted[number]))
            if measured[number] is not None:
                state, centre = measured[number]
                trace.states.append(state)
                trace.centres.append(centre)
            if trace.picture_every and self.length[number] % trace.picture_every == 0:
                trace.pictures.append(obs[number, -3:].copy())

    def _record(self, predicted: np.ndarray, r_int: np.ndarray) -> None:
        """Append the current scene to the videos of the episodes that are not over."""
        recorders = {
            number: start.recorder
            for number, start in enumerate(self.starts)
            if start.recorder is not None and start.recorder.recording and not self.over[number]
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
                text.append(f"r_int {r_int[number]:.3f}  sum {self.intrinsic[number]:.1f}")
            recorder.record(picture, text)
