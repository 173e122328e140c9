"""Episodes of the deterministic policy, several at a time: one forward pass serves a step of all of them.

`play` plays episodes, `film` every skill from the same starts with a video of each.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from dmc import SimulationError
from logger import Episode
from replay_buffer import NO_SKILL
from video import FAILURES, VIDEO_SIZE, VideoRecorder

if TYPE_CHECKING:
    from drq import DrQAgent

Lanes = AsyncVectorEnv | SyncVectorEnv
MAX_LANES = 16  # environments side by side in one process, each with a rendering context of its own


class WorkerError(RuntimeError):
    """A process that plays evaluation episodes is gone."""


@dataclass
class Trace:
    """What happens in an episode of T steps, filled by `play`. Lists of T + 1 begin with what the reset returned."""

    picture_every: int = 0  # steps; 0 keeps none
    actions: list[np.ndarray] = field(default_factory=list)  # float32 (action_dim,), T
    rewards: list[float] = field(default_factory=list)  # the task's, T
    predicted: list[int] = field(
        default_factory=list
    )  # the skill that the discriminator takes an observation for, T + 1
    states: list[np.ndarray] = field(default_factory=list)  # of the physics, T + 1; none where an environment has none
    centres: list[np.ndarray] = field(default_factory=list)  # of mass, (x, y, z), metres; likewise
    pictures: list[np.ndarray] = field(default_factory=list)  # newest frames, uint8 (3, H, W)


class Start(NamedTuple):
    """An episode to play. The recorder, where there is one, has been started; whoever did so stops it afterwards."""

    skill: int
    seed: int
    recorder: VideoRecorder | None = None
    trace: Trace | None = None


class Parked(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """An environment that waits, once its episode is over, for the others of its vector: nothing moves, reward 0.

    `info["over"]` tells; neither `terminated` nor `truncated` does, as a vector would reset the environment then. An
    episode whose physics become unstable is over too, with a warning: one policy's bad luck doesn't end a run. The
    step that did it counts for nothing, as `info["unstable"]` says.
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
            return self._last, 0.0, False, False, {"over": True, "unstable": False}
        reward, over, unstable = 0.0, True, False
        try:
            self._newest, earned, terminated, truncated, _ = self.env.step(action)
            reward, over = float(earned), terminated or truncated
        except SimulationError as error:
            print(f"warning: an evaluation episode ends early: {error}", file=sys.stderr)
            unstable = True
        if over:
            self._last = self._newest
        return self._newest, reward, False, False, {"over": over, "unstable": unstable}

    def measure(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What `PixelEnv.measure` says of the environment."""
        return self.env.measure()  # type: ignore[attr-defined]

    def picture(self, height: int, width: int) -> np.ndarray | str | None:
        """The scene as it is now, uint8 RGB (height, width, 3), or why not, in words; None where nobody films it.

        Nothing is raised, as a vector of processes ends the one that does.
        """
        try:
            return self.env.render(height, width) if self.filmed else None  # type: ignore[call-arg, return-value]
        except FAILURES as error:
            return str(error)


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


@contextmanager
def opened_lanes(factory: Callable[[], gymnasium.Env[Any, Any]], episodes: int, workers: int = 0) -> Iterator[Lanes]:
    """The environments of `make_lanes`, closed at the end; worker processes that don't answer then are killed."""
    lanes = make_lanes(factory, episodes, workers)
    try:
        yield lanes
    finally:
        try:
            lanes.close()
        except Exception:  # a worker died, or was in the middle of something
            for process in getattr(lanes, "processes", ()):
                process.kill()
            lanes.closed = True


def _of_worker(factory: Callable[[], gymnasium.Env[Any, Any]], owner: int) -> Parked:
    """An environment in a process of its own, which leaves Ctrl-C and a cluster's SIGTERM to the training process."""
    if os.getpid() != owner:  # the vector also makes one in the training process, to look at
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return Parked(factory())


def play(
    agent: DrQAgent, lanes: Lanes, starts: Sequence[Start], *, between_steps: Callable[[], object] = lambda: None
) -> list[Episode]:
    """Play every start to its end. The results don't depend on how many lanes there are.

    An episode's duration is its share of the time that the episodes beside it took too. `between_steps` may raise, to
    break off. Raises WorkerError, and RenderingError where observations can't be drawn.
    """
    results: list[Episode] = []
    try:
        for first in range(0, len(starts), lanes.num_envs):
            results += _play_round(agent, lanes, starts[first : first + lanes.num_envs], between_steps)
    except (EOFError, ConnectionError) as error:
        raise WorkerError("an evaluation process died; where memory is short, try fewer --eval_workers") from error
    return results


class Film(NamedTuple):
    """What `film` played: the starts, what came of each, and the videos that could be written."""

    starts: list[Start]
    results: list[Episode]
    videos: dict[int, Path]  # by skill
    grid: Path | None


def film(
    agent: DrQAgent,
    lanes: Lanes,
    names: Mapping[int, str],
    seeds: Sequence[int],
    folder: Path | None,
    fps: float,
    *,
    grid: str = "skills",
    size: int = VIDEO_SIZE,
    picture_every: int = 0,
    between_steps: Callable[[], object] = lambda: None,
) -> Film:
    """Play skills, each from each of these starts, with traces.

    Then `folder`, where it is given, has a video of each skill's first episode, under the skill's name, and where there
    are several skills one of all side by side, which is called `grid`. Whatever is raised leaves no video behind.
    """
    recorders = {skill: VideoRecorder(folder, fps, size=size) for skill in names}
    for skill, recorder in recorders.items():
        recorder.start(names[skill])
    starts = [
        Start(skill, seed, recorder if number == 0 else None, Trace(picture_every))
        for number, seed in enumerate(seeds)
        for skill, recorder in recorders.items()
    ]
    try:
        results = play(agent, lanes, starts, between_steps=between_steps)
    except BaseException:
        for recorder in recorders.values():
            recorder.drop()
        raise
    videos = {skill: recorder.stop() for skill, recorder in recorders.items()}
    written = {skill: path for skill, path in videos.items() if path is not None}
    everything = VideoRecorder(folder, fps, size=size).tile(grid, list(written.values())) if len(names) > 1 else None
    return Film(starts, results, written, everything)


def skill_name(skill: int) -> str:
    """How files and tags name what is played."""
    return "policy" if skill == NO_SKILL else f"skill{skill}"


def best_skill(
    agent: DrQAgent,
    lanes: Lanes,
    skills: Sequence[int],
    seeds: Sequence[int],
    *,
    between_steps: Callable[[], object] = lambda: None,
) -> tuple[int, dict[int, float], int]:
    """The skill with the highest mean return over episodes from these starts, all means, and the agent steps played."""
    starts = [Start(skill, seed) for seed in seeds for skill in skills]
    results = play(agent, lanes, starts, between_steps=between_steps)
    returns = {
        skill: sum(result.extrinsic_reward for result in results if result.skill == skill) / len(seeds)
        for skill in skills
    }
    return max(returns, key=lambda skill: returns[skill]), returns, sum(result.length for result in results)


def _play_round(
    agent: DrQAgent, lanes: Lanes, starts: Sequence[Start], between_steps: Callable[[], object]
) -> list[Episode]:
    began, count = time.perf_counter(), len(starts)
    # A round with fewer starts than lanes fills up with repetitions, whose results nobody asks for.
    seeds = [starts[lane % count].seed for lane in range(lanes.num_envs)]
    skills = np.array([starts[lane % count].skill for lane in range(lanes.num_envs)])
    length, recognised, extrinsic, intrinsic = np.zeros((4, lanes.num_envs))
    over = np.zeros(lanes.num_envs, bool)
    obs, _ = lanes.reset(seed=seeds)  # type: ignore[arg-type]  # gymnasium's vectors take one each
    action, _, predicted = agent.assess(obs, skills)
    _trace(lanes, starts, over, length, obs, predicted)
    while not over.all():
        between_steps()
        obs, reward, _, _, info = lanes.step(action)
        over |= info["unstable"]
        for lane, start in enumerate(starts):
            if start.trace is not None and not over[lane]:
                start.trace.actions.append(action[lane].copy())
                start.trace.rewards.append(float(reward[lane]))
        action, r_int, predicted = agent.assess(obs, skills)
        length += ~over
        extrinsic += reward
        intrinsic += np.where(over, 0.0, r_int)
        recognised += ~over & (predicted == skills) & (skills != NO_SKILL)
        _trace(lanes, starts, over, length, obs, predicted)
        _record(lanes, starts, over, length, predicted, r_int, intrinsic)
        over |= info["over"]
    duration = (time.perf_counter() - began) / count
    return [
        Episode(
            duration=duration,
            extrinsic_reward=float(extrinsic[lane]),
            skill=start.skill,
            intrinsic_reward_sum=float(intrinsic[lane]),
            discriminator_accuracy=float(recognised[lane] / max(length[lane], 1)),
            length=int(length[lane]),
        )
        for lane, start in enumerate(starts)
    ]


def _trace(
    lanes: Lanes, starts: Sequence[Start], over: np.ndarray, length: np.ndarray, obs: np.ndarray, predicted: np.ndarray
) -> None:
    """Add what there is now to the traces of the episodes that are still going."""
    going = [(lane, start.trace) for lane, start in enumerate(starts) if start.trace is not None and not over[lane]]
    if not going:
        return
    measured = lanes.call("measure")
    for lane, trace in going:
        trace.predicted.append(int(predicted[lane]))
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
    predicted: np.ndarray,
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
    size, filmed = going[0][2].size, {lane for lane, _, _ in going}
    lanes.set_attr("filmed", [lane in filmed for lane in range(lanes.num_envs)])
    pictures = lanes.call("picture", size, size)
    for lane, skill, recorder in going:
        picture = pictures[lane]
        if isinstance(picture, str):
            recorder.give_up(picture)
            continue
        text = [f"skill {skill}  step {length[lane]:.0f}"] if skill != NO_SKILL else []
        if predicted[lane] != NO_SKILL:  # there is a discriminator
            text.append(f"r_int {r_int[lane]:.3f}  sum {intrinsic[lane]:.1f}")
        recorder.record(picture, text)
