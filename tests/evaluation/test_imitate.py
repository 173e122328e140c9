"""Which skill explains a given trajectory best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from config import make_config
from diayn import DIAYNAgent
from errors import UserError
from evaluation import load as loading
from evaluation.evaluate_skills import evaluate_skills
from evaluation.imitate import read_trajectory, stack_frames
from evaluation.load import load
from tests.support.fake_env import IMAGE_SIZE
from tests.support.runs import SeededEnv, rows
from video import read_video

RunEvaluate = Callable[[str], Path]
CONFIG = make_config({"image_size": IMAGE_SIZE})


def test_likelihoods_and_videos(run_evaluate: RunEvaluate, pretrained: Path) -> None:
    """log q of every skill, from the networks alone and the observations that training would have seen."""
    out = run_evaluate("--no_video --skills 1 --save_trajectories")
    (given,) = out.glob("*.npz")
    with np.load(given) as data:
        env = SeededEnv(ragged=True)
        env.reset(seed=int(data["seed"]))
        observations = np.stack([env.step(action)[0] for action in data["actions"]])
        np.testing.assert_array_equal(stack_frames(data["frames"], 3), observations)
    with torch.no_grad():
        agent = load(pretrained, "cpu").agent
        assert isinstance(agent, DIAYNAgent)
        assert agent.discriminator.encoder is not None
        features = agent.discriminator.encoder(torch.from_numpy(observations))
        log_q = agent.discriminator(features).log_softmax(dim=1)
    out = run_evaluate(f"--imitate {given} --video_size 48")
    table = rows(out / "imitation.csv")
    assert [float(row["log_q_mean"]) for row in table] == pytest.approx(log_q.mean(dim=0).tolist(), rel=1e-4)
    assert [float(row["log_q_sum"]) for row in table] == pytest.approx(log_q.sum(dim=0).tolist(), rel=1e-4)
    best = int(log_q.mean(dim=0).argmax())
    frames = list(read_video(out / "imitation.mp4"))
    assert frames[0].shape == (48, 2 * 48, 3)
    assert (out / f"skill{best}.mp4").exists()
    assert len(list(read_video(out / "given.mp4"))) == len(observations)


def test_the_best_skill_is_recorded_from_the_same_start(
    run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    (given,) = run_evaluate("--no_video --skills 1 --seed 5 --save_trajectories").glob("*.npz")
    recorded: list[tuple[Any, Any]] = []

    def spy(agent: Any, eval_envs: Any, names: Any, seeds: Any, **settings: Any) -> Any:
        recorded.append((dict(names), list(seeds)))
        return evaluate_skills(agent, eval_envs, names, seeds, **settings)

    monkeypatch.setattr(loading, "evaluate_skills", spy)
    likelihoods = [-3.0, -2.0, -1.0, -4.0]
    monkeypatch.setattr(DIAYNAgent, "log_likelihood", lambda self, obs: np.tile(likelihoods, (len(obs), 1)))
    run_evaluate(f"--imitate {given} --video_size 32")
    assert recorded == [({2: "skill2"}, [int(np.load(given)["seed"])])]


def test_frames_of_another_size_are_resized(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(256, size=(5, 3, 40, 60), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", frames=frames)
    resized, seed = read_trajectory(tmp_path / "t.npz", CONFIG)
    assert resized.shape == (5, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert seed is None
    size = (IMAGE_SIZE, IMAGE_SIZE)
    expected = cv2.resize(frames[2].transpose(1, 2, 0).copy(), size, interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(resized[2].transpose(1, 2, 0), expected)


def test_frames_of_another_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, frames=np.zeros((5, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8), env="walker_walk")
    with pytest.raises(UserError, match="its frames are of walker_walk"):
        read_trajectory(path, CONFIG)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(np.zeros((5, 3, 24, 24)), id="float"),
        pytest.param(np.zeros((1, 3, 24, 24), np.uint8), id="no step"),
        pytest.param(np.zeros(2, np.uint8), id="no pictures"),
    ],
)
def test_what_is_no_frames_is_refused(tmp_path: Path, frames: np.ndarray) -> None:
    np.savez(tmp_path / "t.npz", frames=frames)
    with pytest.raises(UserError, match="frames must be uint8"):
        read_trajectory(tmp_path / "t.npz", CONFIG)


def test_what_is_no_trajectory_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", actions=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")
    for name, words in (("other.npz", "holds no trajectory"), ("text.npz", "holds no"), ("nowhere.npz", "No such")):
        with pytest.raises(UserError, match=words):
            read_trajectory(tmp_path / name, CONFIG)
