"""The plan: the product of values, names, commands, and the checks before anything starts."""

from __future__ import annotations

import errno
import json
import shlex
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import sweep
import sweeping.plan
import train
from config import Config
from errors import UserError
from replay_buffer import ReplayBuffer
from running.derivation import make_config
from sweeping.plan import check_environments, new_sweep
from tests.support.paths import ROOT
from tests.support.sweeps import planned

PRETRAINED = ROOT / "results" / "pretrained" / "cartpole_swingup"


def test_each_combination_is_planned_once() -> None:
    runs = planned("--env walker_walk cartpole_swingup --num_skills 0 10 --seed 1 2 3 --lr 3e-4")
    assert len(runs) == 12
    assert len({(trial.env, trial.name) for trial, _ in runs}) == 12
    assert {(c.env, c.num_skills, c.seed) for _, c in runs} == {
        (env, skills, seed) for env in ("walker_walk", "cartpole_swingup") for skills in (0, 10) for seed in (1, 2, 3)
    }
    assert {c.lr for _, c in runs} == {3e-4}
    assert runs[0][0].name == "num_skills=0_seed=1"


@pytest.mark.parametrize(
    "line",
    [
        "--env walker_walk cheetah_run --benchmark planet --save_video --seed 1e2 7",
        "--log_std_bounds -10 2 -5 2 --save_video true false --num_skills 3",
        "--num_train_frames 1000 2000 --lr_discriminator 3e-4 1e-3 --time_limit 400",
        "--notes 'two words' --augmentation none shift",
        "--notes=-x --seed 1 2",
    ],
)
def test_train_parses_the_commands_to_the_checked_settings(line: str, tmp_path: Path) -> None:
    for trial, expected in planned(line):
        assert train.parse_args(trial.arguments) == expected
        assert train.parse_args(trial.command(tmp_path)[1:]).run_name == trial.name
        assert trial.frames == expected.num_train_frames


def test_a_template_applies_to_every_run(tmp_path: Path) -> None:
    template = tmp_path / "config.json"
    template.write_text(json.dumps({"flags": {"batch_size": 7, "num_skills": 4, "lr": 0.5}}))
    runs = planned(f"--config {template} --seed 1 2 --lr 0.25")
    assert [(c.seed, c.batch_size, c.num_skills, c.lr) for _, c in runs] == [(1, 7, 4, 0.25), (2, 7, 4, 0.25)]
    assert train.parse_args(runs[0][0].arguments) == runs[0][1]


def test_the_source_of_fine_tuning_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"num_skills": 4}}))
    monkeypatch.chdir(tmp_path)
    ((trial, _),) = planned("--finetune_from .")
    assert trial.arguments == ["--finetune_from", str(tmp_path)]


def test_long_names_are_cut() -> None:
    """A file name has 255 bytes at most; a number at its end distinguishes the runs."""
    flags = "--encoder_feature_dim 50 60 --critic_target_update_frequency 1 2 --actor_update_frequency 1 2"
    runs = planned(f"{flags} --skill_embedding_dim 0 10 --discriminator_encoder shared separate --seed 1 2 3")
    names = {trial.name for trial, _ in runs}
    assert len(names) == 96
    assert all(len(name) < 120 for name in names)
    assert len(planned("--notes " + "\u6f22" * 100 + " x")[0][0].name) < 120


def test_names_are_distinct_even_if_values_differ_only_in_replaced_characters() -> None:
    names = [trial.name for trial, _ in planned("--notes 'a b' 'a/b' 'a-b'")]
    assert len(set(names)) == 3
    assert all(train.parse_args(["--run_name", name]).run_name == name for name in names)
    assert [trial.name for trial, _ in planned("--env walker_walk walker_run --seed 3")] == ["run", "run"]


def buffer(capacity: int) -> Config:
    return make_config({"env": "cartpole_swingup", "time_limit": 400, "replay_buffer_capacity": capacity})


@pytest.mark.slow
def test_memory_follows_the_largest_replay_buffer(tmp_path: Path) -> None:
    expected = ReplayBuffer.bytes_needed(1_000_000, (3, 84, 84), 3, action_dim=1)
    assert check_environments([buffer(1000), buffer(1_000_000)]) == expected
    values = sweep.parse_args(shlex.split("--replay_buffer_capacity 1000 1_000_000")).values
    assert new_sweep(values, tmp_path / "s", {}).needs_memory == round(expected / 1e9 + 2, 2)
    assert not (tmp_path / "s").exists()


def test_memory_depends_on_the_actions_and_pictures_of_the_task() -> None:
    config = make_config({"env": "walker_walk", "image_size": 24, "frame_stack": 2})
    assert check_environments([config]) == ReplayBuffer.bytes_needed(100_000, (3, 24, 24), 2, action_dim=6)


@pytest.mark.parametrize("frames", ["123 480000", "480000 123"])
def test_every_snapshot_to_start_from_is_checked(frames: str) -> None:
    configs = [config for _, config in planned(f"--finetune_from {PRETRAINED} --finetune_snapshot {frames}")]
    with pytest.raises(UserError, match="no snapshot of --finetune_snapshot 123"):
        check_environments(configs)


def test_a_source_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"num_skills": 4}}))
    ((_, config),) = planned(f"--finetune_from {tmp_path}")
    with pytest.raises(UserError, match="that run has no checkpoint yet"):
        check_environments([config])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BrokenProcessPool("gone"), "--env: the process that checks cartpole_swingup has died; try them with train.py"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; .*needs a /dev/shm that is writable"),
    ],
)
def test_a_process_that_cannot_check(error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sweeping.plan, "ProcessPoolExecutor", fail)
    ((_, config),) = planned("--seed 1")
    with pytest.raises(UserError, match=expected):
        check_environments([config])
