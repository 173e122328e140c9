"""The counters of a run: when evaluations and checkpoints are due, frames, positions, shares of time."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from running.loop import start_episode
from running.run import Run, Schedule
from tests.support.labs import Prepare
from tests.support.paths import ROOT

# -- schedules ---------------------------------------------------------------------------------------------------------


def made_at(schedule: Schedule, ends: list[int]) -> list[int]:
    """Return the episode ends at which it is made."""
    made = []
    for end in ends:
        if schedule.is_due(end):
            made.append(end)
            schedule.done(end, end)
    return made


@pytest.mark.parametrize(
    ("frequency", "ends", "expected"),
    [
        (10, [0, 7, 14, 21, 28, 35], [0, 14, 21, 35]),  # due at 10, 20 and 30
        (20, [0, 7, 14, 21, 28, 35, 42], [0, 21, 42]),
        (7, [0, 7, 14, 21], [0, 7, 14, 21]),
        (5, [0, 10, 20, 30], [0, 10, 20, 30]),  # more often than episodes end
        (100, [0, 7, 14, 21], [0]),
        (1, [0, 3, 4], [0, 3, 4]),
        (0, [0, 7, 14, 21], []),
    ],
)
def test_due_at_the_first_end_after_each_multiple(frequency: int, ends: list[int], expected: list[int]) -> None:
    assert made_at(Schedule(frequency), ends) == expected


def test_not_due_twice_at_one_step() -> None:
    schedule = Schedule(10)
    assert schedule.is_due(0)
    schedule.done(0, 0)
    assert not schedule.is_due(0)
    schedule.done(20, 20)
    assert not schedule.is_due(20)


@pytest.mark.parametrize(
    ("stopped", "end", "due"),
    [
        (21, 25, True),  # the multiple 20 was reached within the episode, at whose end it is still due
        (18, 25, True),
        (18, 19, False),  # the episode ends before a multiple
    ],
)
def test_made_within_an_episode(stopped: int, end: int, due: bool) -> None:
    """One that is made because the run stops does not postpone the next one."""
    schedule = Schedule(20, last=0, counted_from=0)
    schedule.done(stopped, episode_start=17)
    assert schedule.last == stopped
    assert schedule.is_due(end) == due


def test_a_schedule_is_restored_from_its_counters() -> None:
    schedule = Schedule(20)
    made_at(schedule, [0, 7, 14, 21])
    schedule.done(33, episode_start=28)
    restored = Schedule(20, last=schedule.last, counted_from=schedule.counted_from)
    assert dataclasses.asdict(restored) == {"frequency": 20, "last": 33, "counted_from": 28}
    assert [restored.is_due(end) for end in (35, 40)] == [False, True]


# -- counters ----------------------------------------------------------------------------------------------------------


def play_steps(run: Run, count: int) -> None:
    """Advance the counters as the loop does."""
    if run.in_progress is None:
        run.in_progress = start_episode(run)
    for _ in range(count):
        run.in_progress.actions.append(np.zeros(2, np.float32))
        run.step += 1


def test_frames_of_a_run(prepare: Prepare) -> None:
    run = prepare("--action_repeat 3").run
    assert run.frame == 0
    run.step = 7
    assert run.frame == 21
    run.frames_before = 100  # a fine-tuned run's, to choose its skill
    assert (run.frame, run.frame_at(2)) == (121, 106)


def test_position_of_a_run(prepare: Prepare) -> None:
    """It changes with every step and every evaluation, so it tells what is not saved yet."""
    run = prepare().run
    assert run.position == (0, -1)
    run.evaluations.done(0, 0)
    assert run.position == (0, 0)
    run.step = 4
    assert run.position == (4, 0)
    assert run.saved != run.position


def test_episode_start(prepare: Prepare) -> None:
    run = prepare().run
    assert run.episode_start == 0
    play_steps(run, 5)
    assert (run.step, run.episode_start) == (5, 0)
    run.in_progress = None
    assert run.episode_start == 5
    play_steps(run, 2)
    assert (run.step, run.episode_start) == (7, 5)


def test_what_is_due(prepare: Prepare) -> None:
    """An evaluation or a checkpoint waits for the episode's end; the budget's end makes an evaluation due at once."""
    run = prepare("--eval_frequency 10 --checkpoint_frequency 5 --num_train_steps 14").run
    assert run.evaluation_is_due
    assert run.checkpoint_is_due
    run.evaluations.done(0, 0)
    run.checkpointing.done(0, 0)
    assert not run.evaluation_is_due
    assert not run.checkpoint_is_due
    play_steps(run, 12)
    assert not run.evaluation_is_due
    assert not run.checkpoint_is_due
    run.in_progress = None
    assert run.evaluation_is_due
    assert run.checkpoint_is_due
    run.evaluations.done(12, 12)
    run.checkpointing.done(12, 12)
    play_steps(run, 2)
    assert run.finished
    assert run.evaluation_is_due
    assert not run.checkpoint_is_due
    run.evaluations.done(14, run.episode_start)
    assert not run.evaluation_is_due


def test_a_run_without_evaluations(prepare: Prepare) -> None:
    run = prepare("--eval_frequency 0 --num_train_steps 12").run
    assert not run.evaluation_is_due
    run.step = 12
    assert run.finished
    assert not run.evaluation_is_due


def test_time_shares(prepare: Prepare) -> None:
    """Rendering is apart from the rest of the environment, and at most all of it."""
    lab = prepare()
    run = lab.run
    run.stopwatch.started -= 100
    run.stopwatch.add("environment", 40)
    run.stopwatch.add("update", 50)
    lab.env.render_seconds = 30.0
    shares = run.time_shares()
    assert shares["environment"] == pytest.approx(0.1, abs=0.01)
    assert shares["render"] == pytest.approx(0.3, abs=0.01)
    assert shares["update"] == pytest.approx(0.5, abs=0.01)
    assert sum(shares.values()) == pytest.approx(1.0)
    lab.env.render_seconds = 1e9
    assert run.time_shares()["environment"] == 0


def test_time_of_steps(prepare: Prepare) -> None:
    """Evaluations and checkpoints are no part of it."""
    run = prepare().run
    before = run.seconds_of_steps
    run.stopwatch.started -= 100
    run.stopwatch.add("environment", 40)
    run.stopwatch.add("evaluate", 30)
    run.stopwatch.add("checkpoint", 20)
    assert 50 <= run.seconds_of_steps - before < 70


def test_resetting_the_environment_counts_as_environment(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the rendering of a reset is not taken from the time of the steps."""
    run = prepare().run
    reset = run.env.reset

    def slow(**options: Any) -> Any:
        run.env.render_seconds += 0.05
        time.sleep(0.1)
        return reset(**options)

    monkeypatch.setattr(run.env, "reset", slow)
    run.in_progress = start_episode(run)
    assert run.stopwatch.seconds["environment"] >= 0.1
    assert run.time_shares()["environment"] > 0


def test_resume_command(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths below the working directory are shown relative to it, and odd names are quoted."""
    run = prepare().run
    monkeypatch.setattr("shutil.which", lambda name: sys.executable)
    monkeypatch.chdir(ROOT)
    assert run.resume_command == f"python train.py --resume {run.folder}"
    run.folder = tmp_path / "a b"
    monkeypatch.chdir(tmp_path)
    assert run.resume_command == f"python {ROOT / 'train.py'} --resume '{run.folder}'"
