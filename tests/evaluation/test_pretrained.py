"""The trained agent in results/pretrained: complete, small, and as good as its page says."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

import evaluate
from envs.renderer import RendererInfo
from evaluation.load import load
from running.checkpoint import load_file
from running.snapshots import snapshot_frames
from running.stored_config import CONFIG_FILE
from tests.support.disk import read_json
from tests.support.paths import ROOT
from train import parse_args

PRETRAINED = ROOT / "results" / "pretrained" / "cartpole_swingup"
LARGEST = 10_000_000  # bytes
LEAST_BOUND = 2.0  # nats, on starts that training did not use; 2.14 was measured

pytestmark = pytest.mark.usefixtures("renderer")


def test_config_and_weights_only() -> None:
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    (frame,) = snapshot_frames(PRETRAINED)
    assert {str(path.relative_to(PRETRAINED)) for path in files} == {"config.json", f"snapshots/{frame}.pt"}
    assert sum(path.stat().st_size for path in files) < LARGEST


def test_no_path_of_the_machine_that_trained_it() -> None:
    (snapshot,) = (PRETRAINED / "snapshots").glob("*.pt")
    stored = {"config.json": read_json(PRETRAINED / CONFIG_FILE)["flags"], "snapshot": load_file(snapshot)["flags"]}
    for name, flags in stored.items():
        assert [flag for flag, value in flags.items() if Path(str(value)).is_absolute()] == [], name


def test_it_is_loaded_like_any_run() -> None:
    loaded = load(PRETRAINED, "cpu")
    assert loaded.config.env == "cartpole_swingup"
    assert loaded.agent.skills() == list(range(10))
    assert loaded.frame == snapshot_frames(PRETRAINED)[-1]


def test_episodes_of_another_length(tmp_path: Path) -> None:
    """Also one that the run's replay buffer could not hold."""
    assert load(PRETRAINED, "cpu", time_limit=1_000_000).max_episode_steps == 125_000
    words = [str(PRETRAINED), "--skills", "3", "--time_limit", "17", "--no_video", "--save_trajectories"]
    assert evaluate.main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "skill3_episode0.npz") as data:
        assert data["actions"].shape == (3, 1), "of eight frames each, the last of one"


def test_it_can_be_fine_tuned(tmp_path: Path) -> None:
    config = parse_args(["--finetune_from", str(PRETRAINED), "--finetune_skill", "3", "--work_dir", str(tmp_path)])
    assert (config.num_skills, config.image_size, config.action_repeat) == (10, 48, 8)


@pytest.fixture
def shadows_of_the_suite(renderer: RendererInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's own, as in the pictures on which the agent was trained; other tests have coarser ones."""
    from dm_control import suite

    folder = Path(suite.__file__).parent
    assets = {name: (folder / name).read_bytes() for name in suite.common.ASSETS}
    assert assets != suite.common.ASSETS
    monkeypatch.setattr(suite.common, "ASSETS", assets)


@pytest.mark.slow
@pytest.mark.usefixtures("shadows_of_the_suite")
def test_its_skills_can_be_told_apart(tmp_path: Path) -> None:
    shutil.copytree(PRETRAINED, tmp_path / "agent")
    line = ["--device", "cpu", "--no_video", "--seed", "7", "--out", str(tmp_path / "out")]
    assert evaluate.main([str(tmp_path / "agent"), *line]) == 0
    with (tmp_path / "out" / "skills.csv").open() as file:
        bounds = [float(row["mutual_information_bound"]) for row in csv.DictReader(file)]
    assert len(bounds) == 10
    assert sum(bounds) / len(bounds) > LEAST_BOUND
