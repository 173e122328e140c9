"""A training run: its parts, its counters, and what is due next."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from config import Config
from drq import DrQAgent
from envs.parallel import EvalEnvs
from envs.pixel_env import PixelEnv
from logger import Logger
from replay_buffer import ReplayBuffer
from running.checkpoint import Checkpoints
from running.signals import StopRequest
from utils import Stopwatch


@dataclasses.dataclass
class EpisodeInProgress:
    """The training episode that is being played."""

    skill: int
    obs: np.ndarray  # newest observation, uint8 (C, H, W)
    env_state: dict[str, Any]  # of the environment, before the episode's reset
    started: float  # time.perf_counter(), shifted by the time between a stop and a resume
    extrinsic_reward: float = 0.0
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    pending_action: np.ndarray | None = None  # chosen but not played yet


@dataclasses.dataclass
class Schedule:
    """When something is due that happens between episodes, such as an evaluation or a checkpoint.

    It is due at the first episode end at or after each multiple of `frequency`. When one is made within an episode, as
    the budget ends or a signal arrives, the next one is still due on time: multiples count from the episode's start.

    Args:
        frequency: agent steps; 0 is never.
        last: agent step of the latest one, -1 before the first.
        counted_from: agent step after which the next multiple makes it due.
    """

    frequency: int
    last: int = -1
    counted_from: int = -1

    def is_due(self, step: int) -> bool:
        """Return whether a multiple of the frequency has been reached. `step` is the end of an episode."""
        return bool(self.frequency) and step // self.frequency > self.counted_from // self.frequency

    def done(self, step: int, episode_start: int) -> None:
        """Record that it was made at `step`, in or after the episode that started at `episode_start`."""
        self.last, self.counted_from = step, episode_start


@dataclasses.dataclass
class Run:
    """The parts that the training loop works with, and how far it has come. Steps are agent steps."""

    config: Config
    agent: DrQAgent
    env: PixelEnv
    eval_envs: EvalEnvs
    buffer: ReplayBuffer
    skill_rng: np.random.Generator
    stopwatch: Stopwatch
    first_update_step: int
    memory: str = ""  # of the replay buffer, in words
    folder: Path = dataclasses.field(init=False)
    checkpoints: Checkpoints = dataclasses.field(init=False)
    logger: Logger = dataclasses.field(init=False)  # opened last, as it truncates the logs of a resumed run
    frames_before: int = 0  # frames played to choose the skill that is fine-tuned
    step: int = 0
    episode: int = 0  # finished training episodes
    in_progress: EpisodeInProgress | None = None  # None between episodes
    evaluations: Schedule = dataclasses.field(init=False)
    checkpointing: Schedule = dataclasses.field(init=False)
    snapshots: Schedule = dataclasses.field(init=False)
    saved: tuple[int, int] = (-1, -1)  # `position` of the last checkpoint
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    resources: ExitStack = dataclasses.field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.evaluations = Schedule(self.config.eval_frequency)
        self.checkpointing = Schedule(self.config.checkpoint_frequency)
        self.snapshots = Schedule(self.config.snapshot_frequency)

    @property
    def frame(self) -> int:
        """The current frame, as written to files."""
        return self.frame_at(self.step)

    def frame_at(self, step: int) -> int:
        """Return the frame that is written to files for an agent step."""
        return self.frames_before + step * self.config.action_repeat

    @property
    def position(self) -> tuple[int, int]:
        """The agent steps of the run and of its latest evaluation: what a checkpoint must not miss."""
        return self.step, self.evaluations.last

    @property
    def episode_start(self) -> int:
        """The agent step at which the episode in progress started, or the next one will."""
        return self.step - (len(self.in_progress.actions) if self.in_progress is not None else 0)

    @property
    def update_is_due(self) -> bool:
        """Whether the step that is about to be played makes updates: every `agent_steps_per_update`-th, counted from 0.

        None does before the first update step, or while the replay buffer is empty.
        """
        if self.step < self.first_update_step or not len(self.buffer):
            return False
        return self.step % self.config.agent_steps_per_update == 0

    @property
    def evaluation_is_due(self) -> bool:
        return self._is_due_now_or_at_the_end(self.evaluations)

    @property
    def snapshot_is_due(self) -> bool:
        return self._is_due_now_or_at_the_end(self.snapshots)

    @property
    def checkpoint_is_due(self) -> bool:
        return self.in_progress is None and self.checkpointing.is_due(self.step)

    def _is_due_now_or_at_the_end(self, schedule: Schedule) -> bool:
        if self.in_progress is None and schedule.is_due(self.step):
            return True
        return bool(schedule.frequency) and self.finished and schedule.last < self.step

    @property
    def finished(self) -> bool:
        """Whether the budget is used up."""
        return self.step >= self.config.num_train_steps

    @property
    def stopped(self) -> bool:
        """Whether a signal asked the run to stop."""
        return self.stop.number is not None

    @property
    def resume_command(self) -> str:
        python = "python" if shutil.which("python") == sys.executable else str(shortest(Path(sys.executable)))
        program = str(shortest(Path(__file__).resolve().parent.parent / "train.py"))
        return shlex.join([python, program, "--resume", str(self.folder)])

    @property
    def seconds_of_steps(self) -> float:
        """The run's time so far, without evaluations and checkpoints."""
        return self.stopwatch.elapsed - sum(
            self.stopwatch.seconds.get(part, 0.0) for part in ("evaluate", "checkpoint")
        )

    def time_shares(self) -> dict[str, float]:
        """Return each part's share of the run's time so far, with rendering apart from the rest of the environment."""
        shares = self.stopwatch.shares()
        if "environment" in shares:
            render = self.env.render_seconds / self.stopwatch.elapsed
            shares["render"] = min(render, shares["environment"])
            shares["environment"] -= shares["render"]
        return shares

    def close(self) -> None:
        """Close files and environments, end worker processes, unlock the folder."""
        self.resources.close()


def shortest(path: Path) -> Path:
    """Return the path relative to the working directory if it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if here in path.parents else path
