"""The evaluation of skills that training and evaluate.py share."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
import torch

from diayn import DIAYNAgent
from envs.parallel import open_eval_envs
from evaluation.evaluate_skills import Evaluation, evaluate_skills
from evaluation.skill_pictures import SHEET_COLUMNS, picture_interval
from tests.support.fake_env import IMAGE_SIZE, UnevenEnv
from video import VideoRecorder, read_video


def make_agent() -> DIAYNAgent:
    torch.manual_seed(0)
    return DIAYNAgent(
        (9, IMAGE_SIZE, IMAGE_SIZE),
        2,
        num_skills=3,
        skill_embedding_dim=4,
        lr_discriminator=1e-3,
        device="cpu",
        seed=0,
        hidden_dim=16,
    )


def evaluate(
    names: dict[int, str], seeds: list[int], folder: Path | None, *, envs: int = 4, **settings: Any
) -> Evaluation:
    with open_eval_envs(UnevenEnv, envs) as eval_envs:
        settings = {
            "fps": 10.0,
            "max_episode_steps": 32,
            "cell_grid": None,
            "angles": (),
            "video_folder": folder,
            **settings,
        }
        return evaluate_skills(make_agent(), eval_envs, names, seeds, **settings)


def test_videos_and_traces(tmp_path: Path) -> None:
    """A video of each skill's first episode, one of all skills, and a trace of every episode."""
    evaluation = evaluate({0: "zero", 2: "two"}, [5, 4], tmp_path, grid_name="all", video_size=48)
    assert [(start.skill, start.seed) for start in evaluation.starts] == [(0, 5), (2, 5), (0, 4), (2, 4)]
    assert [episode.length for episode in evaluation.episodes] == [8, 8, 7, 7]
    assert evaluation.videos == {0: tmp_path / "zero.mp4", 2: tmp_path / "two.mp4"}
    assert evaluation.grid == tmp_path / "all.mp4"
    assert [frame.shape for frame in read_video(tmp_path / "two.mp4")] == [(48, 48, 3)] * 8
    assert [frame.shape for frame in read_video(tmp_path / "all.mp4")] == [(48, 96, 3)] * 8
    traces = [start.trace for start in evaluation.starts]
    assert [(len(t.actions), len(t.rewards), len(t.predicted)) for t in traces] == [*[(8, 8, 9)] * 2, *[(7, 7, 8)] * 2]


def test_pictures_of_first_episodes_are_kept() -> None:
    """Those at even steps and of the last one, as of an episode of up to 100 steps; the contact sheet has no others."""
    assert picture_interval(100) == 2
    evaluation = evaluate({0: "zero", 2: "two"}, [4, 5], None, max_episode_steps=100)
    assert [start.trace.picture_steps for start in evaluation.starts] == [*[[0, 2, 4, 6, 7]] * 2, [], []]
    assert [len(start.trace.pictures) for start in evaluation.starts] == [5, 5, 0, 0]


def test_without_a_folder_there_are_no_videos() -> None:
    evaluation = evaluate({0: "zero", 2: "two"}, [5], None)
    assert (evaluation.videos, evaluation.grid) == ({}, None)


def test_one_skill_has_no_grid(tmp_path: Path) -> None:
    evaluation = evaluate({1: "one"}, [5], tmp_path)
    assert evaluation.grid is None
    assert [path.name for path in tmp_path.iterdir()] == ["one.mp4"]


def test_all_pictures_can_be_kept() -> None:
    evaluation = evaluate({1: "one"}, [5], None, keep_all_pictures=True)
    assert len(evaluation.starts[0].trace.pictures) == 1 + 8


def test_rows_and_pictures() -> None:
    evaluation = evaluate({0: "a", 1: "b", 2: "c"}, [5, 4], None)
    assert [row["skill_id"] for row in evaluation.rows] == [0, 1, 2]
    for row in evaluation.rows:
        own = [episode for episode in evaluation.episodes if episode.skill == row["skill_id"]]
        assert row["episode_extrinsic_reward"] == pytest.approx(np.mean([one.extrinsic_reward for one in own]))
    pictures = evaluation.pictures(frame=120)
    assert pictures.keys() == {"confusion_matrix", "contact_sheet"}
    assert pictures["contact_sheet"].shape[1] % SHEET_COLUMNS == 44 % SHEET_COLUMNS
    assert all(picture.dtype == np.uint8 and picture.std() > 10 for picture in pictures.values())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_evaluation_leaves_no_video(tmp_path: Path, error: type[BaseException]) -> None:
    steps = 0

    def between_steps() -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise error

    with pytest.raises(error):
        evaluate({0: "zero", 2: "two"}, [5], tmp_path, between_steps=between_steps)
    assert not list(tmp_path.iterdir())


def test_encoders_do_not_grow_with_the_number_of_skills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three videos are recorded in two environments, with at most two encoders at a time."""
    running, most = 0, 0
    start, stop = VideoRecorder.record, VideoRecorder.stop

    def record(recorder: VideoRecorder, *args: Any) -> None:
        nonlocal running, most
        running += recorder._writer is None
        most = max(most, running)
        start(recorder, *args)

    def stopped(recorder: VideoRecorder) -> Path | None:
        nonlocal running
        running -= recorder._writer is not None
        return stop(recorder)

    monkeypatch.setattr(VideoRecorder, "record", record)
    monkeypatch.setattr(VideoRecorder, "stop", stopped)
    evaluation = evaluate({0: "zero", 1: "one", 2: "two"}, [5], tmp_path, envs=2, video_size=48)
    assert (len(evaluation.videos), most, running) == (3, 2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluations_leave_nothing_behind(tmp_path: Path, workers: int) -> None:
    """Neither descriptors nor processes, threads or environments grow in number."""
    agent, counts, process = make_agent(), [], psutil.Process()
    settings: dict[str, Any] = {"fps": 10.0, "max_episode_steps": 32, "cell_grid": None, "angles": (), "video_size": 32}
    with open_eval_envs(UnevenEnv, 3, workers) as eval_envs:
        for number in range(4):
            names = {skill: f"{number}_{skill}" for skill in range(3)}
            folder = tmp_path / str(number)
            evaluation = evaluate_skills(agent, eval_envs, names, [5], video_folder=folder, **settings)
            assert len(evaluation.videos) == 3
            gc.collect()
            environments = sum(issubclass(type(found), gymnasium.Env) for found in gc.get_objects())
            children = len(process.children(recursive=True))
            counts.append((process.num_fds(), children, threading.active_count(), environments))
    assert counts[1:] == [counts[1]] * 3
