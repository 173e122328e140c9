"""Loading a trained agent from a run's folder, its checkpoint folder, or a checkpoint file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from errors import UserError
from evaluation.load import check_skill, load
from tests.support.fake_env import IMAGE_SIZE
from tests.support.runs import SeededEnv


def test_what_is_loaded(pretrained: Path) -> None:
    loaded = load(pretrained, "cpu")
    assert loaded.config.num_skills == 4
    assert loaded.config.device == "cpu"
    assert loaded.agent.skills() == [0, 1, 2, 3]
    assert loaded.frame == 40 * 3
    assert loaded.label.parts == (pretrained.parts[-3], "cartpole_swingup", "skills")
    assert loaded.fps == SeededEnv.metadata["render_fps"]
    assert loaded.max_episode_steps == 10


def test_a_run_its_checkpoint_folder_and_a_file_give_the_same_agent(pretrained: Path) -> None:
    (file,) = pretrained.glob("checkpoint/state_*.pt")
    obs = np.random.default_rng(0).integers(256, size=(4, 9, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    loaded = [load(place, "cpu") for place in (pretrained, pretrained / "checkpoint", file)]
    actions = [one.agent.assess(obs, np.arange(4)).action for one in loaded]
    for action, one in zip(actions[1:], loaded[1:], strict=True):
        np.testing.assert_array_equal(action, actions[0])
        assert one.label == loaded[0].label


@pytest.mark.parametrize("place", ["nowhere", "empty", "file", "pickle"])
@pytest.mark.usefixtures("fake_envs")
def test_what_is_no_run_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"no checkpoint")
    torch.save({"flags": {}}, tmp_path / "pickle")
    with pytest.raises(UserError, match=str(tmp_path / place)):
        load(tmp_path / place, "cpu")


@pytest.mark.parametrize(
    ("known", "words"), [([0, 1, 2], "the skills 0 to 2"), ([5], "skill 5 only"), ([-1], "no skills")]
)
def test_a_skill_that_the_run_does_not_have(known: list[int], words: str) -> None:
    check_skill("skills", known[0], known)
    with pytest.raises(UserError, match=f"--skills: the run has {words}; got 9"):
        check_skill("skills", 9, known)
