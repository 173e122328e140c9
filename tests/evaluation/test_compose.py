"""Episodes in which the skill changes on a schedule."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errors import UserError
from evaluation.chosen_skills import parse_schedule
from evaluation.compose import scheduled_skills
from tests.support.runs import SeededEnv
from video import VideoRecorder, read_video

RunEvaluate = Callable[[str], Path]


def test_a_schedule_repeats() -> None:
    schedule = parse_schedule("3:2,1:1", [0, 1, 2, 3])
    assert schedule == [(3, 2), (1, 1)]
    skills = scheduled_skills(schedule, [0, 1, 2, 3], np.random.default_rng(0))
    assert list(islice(skills, 7)) == [3, 3, 1, 3, 3, 1, 3]


def test_random_skills_are_drawn_once_per_stretch() -> None:
    schedule = parse_schedule("random:2", range(4))
    assert schedule == [(None, 2)]
    skills = list(islice(scheduled_skills(schedule, range(4), np.random.default_rng(0)), 40))
    assert skills[::2] == skills[1::2]
    assert set(skills) == {0, 1, 2, 3}


@pytest.mark.parametrize("text", ["3", "3:", "3:0", "3:x", "x:3", "-1:3", "3:5,", "random", "9:10"])
def test_schedules_that_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--skill_schedule"):
        parse_schedule(text, range(4))


def test_a_run_without_skills_has_no_schedule() -> None:
    with pytest.raises(UserError, match="the run has no skills"):
        parse_schedule("0:5", [-1])


@pytest.mark.parametrize(("schedule", "expected"), [("3:2,1:1", [3, 3, 1]), ("0:100", [0] * 3), ("random:2", None)])
def test_the_skills_that_are_played(
    run_evaluate: RunEvaluate,
    fake_envs: list[SeededEnv],
    assessed_skills: list[int],
    schedule: str,
    expected: list[int] | None,
) -> None:
    """The schedule repeats within an episode, and starts again in the next one."""
    out = run_evaluate(f"--skill_schedule {schedule} --episodes 4 --video_size 32")
    lengths = [len(episode.actions) for episode in fake_envs[-1].played]
    assert sum(lengths) == len(assessed_skills) >= 12
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        own = assessed_skills[end - length : end]
        if expected is not None:
            assert own == (expected * 3)[:length]
        else:
            assert all(one == other for one, other in zip(own[::2], own[1::2], strict=False))
    assert expected is not None or len(set(assessed_skills)) > 1
    assert len(list(read_video(out / "schedule.mp4"))) >= 3


def test_the_seed_decides_a_random_schedule(run_evaluate: RunEvaluate, assessed_skills: list[int]) -> None:
    drawn = []
    for seed in (1, 2, 1):
        assessed_skills.clear()
        run_evaluate(f"--no_video --episodes 5 --skill_schedule random:1 --seed {seed}")
        drawn.append(list(assessed_skills))
    assert drawn[0] == drawn[2]
    assert drawn[0][:12] != drawn[1][:12]


def test_returns_and_video(
    run_evaluate: RunEvaluate,
    fake_envs: list[SeededEnv],
    assessed_skills: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The return is the whole episode's. Each picture shows the skill that led to it; only the first is recorded."""
    shown: list[tuple[int, str]] = []

    def record(self: VideoRecorder, frame: np.ndarray, text: Any = ()) -> None:
        shown.append((int(frame[0, 0, 1]), text[0]))

    monkeypatch.setattr(VideoRecorder, "record", record)
    run_evaluate("--skill_schedule 3:1,1:1 --episodes 2")
    episodes = fake_envs[-1].played
    found = [(float(r), int(n)) for r, n in re.findall(r"return (\S+) in (\d+) agent", capsys.readouterr().out)]
    for (value, length), episode in zip(found, episodes, strict=True):
        assert length == len(episode.actions)
        assert value == pytest.approx(sum(episode.rewards[:length]), abs=0.006)
    first = len(episodes[0].actions)
    assert shown == [(n, f"skill {assessed_skills[n - 1]}  step {n}") for n in range(1, first + 1)]
