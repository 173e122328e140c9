"""Episodes of the deterministic policy, several at a time: one forward pass serves a step of all of them.

`play` plays episodes, `film` every skill from the same starts with a video of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from envs.parallel import EvalEnvs
from errors import WorkerError
from logger import Episode
from replay_buffer import NO_SKILL
from video import VIDEO_SIZE, VideoRecorder

if TYPE_CHECKING:
    from drq import DrQAgent


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


def play(
    agent: DrQAgent, lanes: EvalEnvs, starts: Sequence[Start], *, between_steps: Callable[[], object] = lambda: None
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
    lanes: EvalEnvs,
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
    lanes: EvalEnvs,
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
    agent: DrQAgent, lanes: EvalEnvs, starts: Sequence[Start], between_steps: Callable[[], object]
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
    lanes: EvalEnvs,
    starts: Sequence[Start],
    over: np.ndarray,
    length: np.ndarray,
    obs: np.ndarray,
    predicted: np.ndarray,
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
    lanes: EvalEnvs,
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
    lanes.set_attr("recording", [lane in filmed for lane in range(lanes.num_envs)])
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
