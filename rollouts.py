"""Episodes of the deterministic policy, several at a time: one forward pass serves a step of all of them."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from dmc import SimulationError
from logger import Episode
from replay_buffer import NO_SKILL
from video import FAILURES, VideoRecorder

if TYPE_CHECKING:
    from drq import DrQAgent

Lanes = AsyncVectorEnv | SyncVectorEnv
MAX_LANES = 16  # environments side by side in one process, each with a rendering context of its own


@dataclass
class Trace:
    """What happens in an episode of T steps, filled by `play`. Lists of T + 1 begin with what the reset returned."""

    picture_every: int = 0  # steps; 0 keeps none
    actions: list[np.ndarray] = field(default_factory=list)  # float32 (action_dim,), T
    rewards: list[float] = field(default_factory=list)  # the task's, T
    named: list[int] = field(default_factory=list)  # the skill that the discriminator takes an observation for, T + 1
    states: list[np.ndarray] = field(default_factory=list)  # of the physics, T + 1; none where an environment has none
    centres: list[np.ndarray] = field(default_factory=list)  # of mass, (x, y, z), metres; likewise
    pictures: list[np.ndarray] = field(default_factory=list)  # newest frames, uint8 (3, H, W)


class Start(NamedTuple):
    """An episode to play. The recorder, where there is one, has been started and is stopped by `play`."""

    skill: int
    seed: int
    recorder: VideoRecorder | None = None
    trace: Trace | None = None


class Parked(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """An environment that waits, once its episode is over, for the others of its vector: nothing moves, reward 0.

    `info["over"]` tells; neither `terminated` nor `truncated` does, as a vector would reset the environment then. An
    episode whose physics become unstable is over too, with a warning: one policy's bad luck doesn't end a run.
    """

    filmed = False  # whether `picture` draws: a vector asks all its environments or none

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self._newest = np.empty(0, np.uint8)  # the newest observation
        self._last: np.ndarray | None = None  # the final one, once there is one

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._last = None
        self._newest, info = self.env.reset(seed=seed, options=options)
        return self._newest, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._last is not None:
            return self._last, 0.0, False, False, {"over": True}
        try:
            self._newest, reward, terminated, truncated, _ = self.env.step(action)
        except SimulationError as error:
            print(f"warning: an evaluation episode ends early: {error}", file=sys.stderr)
            reward, terminated, truncated = 0.0, True, False
        if terminated or truncated:
            self._last = self._newest
        return self._newest, float(reward), False, False, {"over": terminated or truncated}

    def measure(self) -> tuple[np.ndarray, np.ndarray] | None:
        """State and centre of mass, as `DMCEnv.measure` has them; None where the environment has no such thing."""
        measure = getattr(self.env, "measure", None)
        return measure() if measure is not None else None

    def picture(self, height: int, width: int) -> np.ndarray | None:
        """The scene as it is now, uint8 RGB (height, width, 3); None where nobody films it."""
        return self.env.render(height, width) if self.filmed else None  # type: ignore[call-arg, return-value]


def make_lanes(factory: Callable[[], gymnasium.Env[Any, Any]], episodes: int, workers: int) -> Lanes:
    """Environments for `episodes` episodes at a time, or an even part of that: at most MAX_LANES, or `workers`.

    `workers` 0 steps them one after the other in this process; otherwise each has a process of its own, spawned, as a
    process forked with a rendering context would hang.
    """
    rounds = math.ceil(episodes / (workers or MAX_LANES))
    count = math.ceil(episodes / rounds)
    if workers:
        return AsyncVectorEnv([partial(_of_worker, factory, os.getpid())] * count, context="spawn")
    return SyncVectorEnv([lambda: Parked(factory())] * count)


def close_lanes(lanes: Lanes) -> None:
    """Close the environments; worker processes that don't answer are killed."""
    try:
        lanes.close()
    except Exception:  # a worker died, or was in the middle of something
        for process in getattr(lanes, "processes", ()):
            process.kill()


def _of_worker(factory: Callable[[], gymnasium.Env[Any, Any]], owner: int) -> Parked:
    """An environment in a process of its own, which leaves Ctrl-C and a cluster's SIGTERM to the training process."""
    if os.getpid() != owner:  # the vector also makes one in the training process, to look at
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return Parked(factory())


def play(
    agent: DrQAgent, lanes: Lanes, starts: Sequence[Start], *, between_steps: Callable[[], None] = lambda: None
) -> list[Episode]:
    """Play every start to its end. The results don't depend on how many lanes there are.

    An episode's duration is its share of the time that the episodes beside it took too. `between_steps` may raise, to
    break off.
    """
    results: list[Episode] = []
    for first in range(0, len(starts), lanes.num_envs):
        results += _play_round(agent, lanes, starts[first : first + lanes.num_envs], between_steps)
    return results


def best_skill(
    agent: DrQAgent, lanes: Lanes, skills: Sequence[int], seeds: Sequence[int]
) -> tuple[int, dict[int, float], int]:
    """The skill with the highest mean return over episodes from these starts, all means, and the agent steps played."""
    results = play(agent, lanes, [Start(skill, seed) for seed in seeds for skill in skills])
    returns = {
        skill: sum(result.extrinsic_reward for result in results if result.skill == skill) / len(seeds)
        for skill in skills
    }
    return max(returns, key=lambda skill: returns[skill]), returns, sum(result.length for result in results)


def _play_round(
    agent: DrQAgent, lanes: Lanes, starts: Sequence[Start], between_steps: Callable[[], None]
) -> list[Episode]:
    began, count = time.perf_counter(), len(starts)
    # A round with fewer starts than lanes fills up with repetitions, whose results nobody asks for.
    seeds = [starts[lane % count].seed for lane in range(lanes.num_envs)]
    skills = np.array([starts[lane % count].skill for lane in range(lanes.num_envs)])
    length, recognised, extrinsic, intrinsic = np.zeros((4, lanes.num_envs))
    over = np.zeros(lanes.num_envs, bool)
    obs, _ = lanes.reset(seed=seeds)  # type: ignore[arg-type]  # gymnasium's vectors take one each
    action, _, named = agent.assess(obs, skills)
    _trace(lanes, starts, over, length, obs, named)
    while not over.all():
        between_steps()
        for lane, start in enumerate(starts):
            if start.trace is not None and not over[lane]:
                start.trace.actions.append(action[lane].copy())
        obs, reward, _, _, info = lanes.step(action)
        for lane, start in enumerate(starts):
            if start.trace is not None and not over[lane]:
                start.trace.rewards.append(float(reward[lane]))
        action, r_int, named = agent.assess(obs, skills)
        length += ~over
        extrinsic += reward
        intrinsic += np.where(over, 0.0, r_int)
        recognised += ~over & (named == skills) & (skills != NO_SKILL)
        _trace(lanes, starts, over, length, obs, named)
        _record(lanes, starts, over, length, named, r_int, intrinsic)
        over |= info["over"]
    duration = (time.perf_counter() - began) / count
    return [
        Episode(
            duration=duration,
            extrinsic_reward=float(extrinsic[lane]),
            skill=start.skill,
            intrinsic_reward_sum=float(intrinsic[lane]),
            discriminator_accuracy=float(recognised[lane] / length[lane]),
            mutual_information_bound=float(intrinsic[lane] / length[lane]),
            length=int(length[lane]),
        )
        for lane, start in enumerate(starts)
    ]


def _trace(
    lanes: Lanes, starts: Sequence[Start], over: np.ndarray, length: np.ndarray, obs: np.ndarray, named: np.ndarray
) -> None:
    """Add what there is now to the traces of the episodes that are still going."""
    going = [(lane, start.trace) for lane, start in enumerate(starts) if start.trace is not None and not over[lane]]
    if not going:
        return
    measured = lanes.call("measure")
    for lane, trace in going:
        trace.named.append(int(named[lane]))
        if measured[lane] is not None:
            state, centre = measured[lane]
            trace.states.append(state)
            trace.centres.append(centre)
        if trace.picture_every and length[lane] % trace.picture_every == 0:
            trace.pictures.append(obs[lane, -3:].copy())


def _record(
    lanes: Lanes,
    starts: Sequence[Start],
    over: np.ndarray,
    length: np.ndarray,
    named: np.ndarray,
    r_int: np.ndarray,
    intrinsic: np.ndarray,
) -> None:
    """Add the scene as it is now to the videos of the episodes that are still going."""
    going = [
        (lane, start.skill, start.recorder)
        for lane, start in enumerate(starts)
        if start.recorder is not None and start.recorder.recording and not over[lane]
    ]
    if not going:
        return
    try:
        size, filmed = going[0][2].size, {lane for lane, _, _ in going}
        lanes.set_attr("filmed", [lane in filmed for lane in range(lanes.num_envs)])
        frames = lanes.call("picture", size, size)
    except FAILURES as error:
        for _, _, recorder in going:
            recorder.give_up(error)
        return
    for lane, skill, recorder in going:
        text = [f"skill {skill}  step {length[lane]:.0f}"] if skill != NO_SKILL else []
        if named[lane] != NO_SKILL:  # there is a discriminator
            text.append(f"r_int {r_int[lane]:.3f}  sum {intrinsic[lane]:.1f}")
        recorder.record(frames[lane], text)
