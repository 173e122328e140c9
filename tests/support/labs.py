"""Runs on fake environments: what a run leaves, runs that are interrupted, and their comparison bit by bit."""

from __future__ import annotations

import dataclasses
import random
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replay_buffer import Batch
from running.loop import train
from running.run import Run
from tests.support.fake_env import IMAGE_SIZE
from tests.support.runs import CLOCK, Played, RecordingEnv, Row, assert_same, played, rows, state, without_clock

TINY = (
    f"--device cpu --image_size {IMAGE_SIZE} --hidden_dim 16 --encoder_feature_dim 8 --batch_size 4 --num_skills 2 "
    "--num_seed_steps 10 --num_train_steps 30 --replay_buffer_capacity 500 --eval_frequency 0 --num_eval_episodes 1 "
    "--save_video false --log_save_tb false"
)
START_FLAGS = (  # of the fixture `start`; the replay buffer wraps around
    f"--device cpu --image_size {IMAGE_SIZE} --hidden_dim 16 --encoder_feature_dim 8 --batch_size 4 --num_skills 2 "
    "--num_seed_steps 12 --num_train_steps 90 --replay_buffer_capacity 31 --eval_frequency 25 --num_eval_episodes 2 "
    "--save_video false --log_frequency_step 20 --action_repeat 3"
)
FINISHED_STEPS = 25  # agent steps of the fixture `finished`: it ends in the middle of its third episode
# Files of its checkpoint. The first one, at step 0, had no frame for a piece of the replay buffer.
FINISHED_FILES = ("manifest.json", "replay_2.pt", "replay_3.pt", "replay_4.pt", "state_4.pt")

Start = Callable[..., Run]  # the fixture `start`


class StrictEnv(RecordingEnv):
    """Refuses a crafted action with the exception that dm_control raises, not with an assertion."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError("not an action")
        return super().step(action)


@dataclasses.dataclass
class Lab:
    """A run on fake environments, and what it leaves."""

    run: Run
    env: RecordingEnv
    eval_envs: list[RecordingEnv]
    folder: Path

    def play(self) -> Lab:
        train(self.run)
        self.run.logger.close()
        return self

    def rows(self, name: str) -> list[Row]:
        return rows(self.folder / f"{name}.csv")

    def episodes(self, kind: str) -> list[Row]:
        return [row for row in self.rows("episodes") if row["type"] == kind]

    def steps(self, name: str) -> list[int]:
        return [int(row["step"]) for row in self.rows(name)]

    def evaluated(self) -> list[Played]:
        """Return all evaluation episodes, in no particular order."""
        return [played for env in self.eval_envs for played in env.played]

    def weights(self) -> dict[str, torch.Tensor]:
        agent = self.run.agent
        modules = {**agent.modules(), "critic_target": agent.critic_target}
        named = {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
        return {key: value.clone() for key, value in {**named, "log_alpha": agent.log_alpha.detach()}.items()}

    def stored(self) -> Batch:
        """Return all transitions, oldest first."""
        count = len(self.run.buffer)
        return next(iter(self.run.buffer.recent(count, count)))


Prepare = Callable[..., Lab]  # the fixture `prepare`
Fakes = Callable[..., list[RecordingEnv]]  # the fixture `fakes`


def numbers(table: list[Row], column: str) -> list[float]:
    return [float(row[column]) for row in table]


# -- stops -------------------------------------------------------------------------------------------------------------


def stop_in_evaluation(run: Run, at: int) -> None:
    """Let a signal arrive in the first evaluation from agent step `at` on, after a few steps."""
    play, steps = run.eval_envs.step, 0

    def stepping(action: Any) -> Any:
        nonlocal steps
        steps += run.step >= at
        if steps == 3:
            run.stop.number = signal.SIGINT
        return play(action)

    run.eval_envs.step = stepping  # type: ignore[assignment, method-assign]


def disturb_random_streams() -> None:
    """Reseed the global generators: another process starts with other random numbers."""
    random.seed()
    np.random.seed()
    torch.seed()


def interrupted(start: Start, line: str, stops: Sequence[Callable[[Run], None]]) -> Run:
    """Return a run that was stopped once by each of `stops` and resumed each time, with no state in common."""
    run = start(line)
    for stop in stops:
        stop(run)
        train(run)
        assert run.stop.number is not None, "the stop never came"
        assert not run.finished
        run.close()
        disturb_random_streams()
        run = start(resume=run.folder)
    return played(run)


# -- comparison --------------------------------------------------------------------------------------------------------


def tables(run: Run) -> dict[str, list[Row]]:
    """Return the rows of all CSVs, without the clock's columns."""
    names = ("train", "eval", "episodes", *(["skills"] if run.config.num_skills else []))
    return {name: without_clock(rows(run.folder / f"{name}.csv")) for name in names}


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard's curves by tag: (frame, value), with sums for histograms.

    Values of the clock are left out. So are gradients: a resumed run has none before its first update.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    # File by file: the order of their names is that of their processes only if those began in different seconds.
    for path in sorted(run.folder.glob("tb/*"), key=lambda path: int(path.suffix[1:])):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "histograms": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            timed = tag.endswith(CLOCK)
            if not tag.startswith("time/"):
                found[tag] += [(event.step, 0.0 if timed else event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["histograms"]:
            if not tag.endswith("_grad"):
                found[tag] += [(event.step, event.histogram_value.sum) for event in events.Histograms(tag)]
    return found


def assert_same_run(run: Run, undisturbed: Run) -> None:
    """Check that two runs left the same CSVs, curves, state and replay buffer. Closes both."""
    assert tables(run) == tables(undisturbed)
    assert_same(state(run), state(undisturbed))
    for _ in range(5):
        assert_same(run.buffer.sample(8)._asdict(), undisturbed.buffer.sample(8)._asdict())
    for each in (run, undisturbed):
        each.close()
    assert curves(run) == curves(undisturbed)


def same(first: Any, second: Any) -> bool:
    """Return whether two nested values are equal in values and types, tensors bit by bit, NaN included."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and _bytes(first) == _bytes(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
