"""What follows from the flags that were given: defaults, budget, benchmarks, and what contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from errors import UserError
from running.derivation import compared_flags, make_config
from tests.support.program import assert_names


def assert_refused(given: Mapping[str, Any], *named: str) -> None:
    """Check that the flags are refused in one line that holds each of `named` as a word."""
    with pytest.raises(UserError) as caught:
        make_config(given)
    message = str(caught.value)
    assert "\n" not in message
    assert_names(message, *named)


# -- defaults that depend on other flags -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_skills": 0}, "learned"),
        ({"num_skills": 3}, "fixed"),
        ({"num_skills": 0, "temperature": "auto"}, "learned"),
        ({"num_skills": 3, "temperature": "auto"}, "fixed"),
        ({"num_skills": 0, "temperature": "fixed"}, "fixed"),
        ({"num_skills": 3, "temperature": "learned"}, "learned"),
        ({"num_skills": 3, "finetune_from": "a run"}, "learned"),
    ],
)
def test_temperature(given: dict[str, Any], expected: str) -> None:
    assert make_config(given).temperature == expected


@pytest.mark.parametrize(
    ("given", "extrinsic", "intrinsic"),
    [
        ({"num_skills": 3}, 0.0, 1.0),
        ({"num_skills": 0}, 1.0, 0.0),
        ({"num_skills": 3, "extrinsic_reward_coeff": 0.5}, 0.5, 1.0),
        ({"num_skills": 3, "extrinsic_reward_coeff": 1.0, "diayn_intrinsic_reward_coeff": 0.0}, 1.0, 0.0),
        ({"num_skills": 0, "extrinsic_reward_coeff": 2.0}, 2.0, 0.0),
        ({"num_skills": 1, "extrinsic_reward_coeff": 1.0}, 1.0, 1.0),
        ({"num_skills": 3, "finetune_from": "a run"}, 1.0, 0.0),
        ({"diayn_intrinsic_reward_coeff": 0.0, "disdain_coeff": 1.0, "discriminator_ensemble": 2}, 0.0, 0.0),
    ],
)
def test_reward_coefficients(given: dict[str, Any], extrinsic: float, intrinsic: float) -> None:
    config = make_config(given)
    assert (config.extrinsic_reward_coeff, config.diayn_intrinsic_reward_coeff) == (extrinsic, intrinsic)


@pytest.mark.parametrize(("num_skills", "expected"), [(0, False), (1, True), (3, True)])
def test_a_run_with_skills_learns_them(num_skills: int, expected: bool) -> None:
    given = {"num_skills": num_skills, "extrinsic_reward_coeff": 1.0}
    assert make_config(given).learns_skills == expected
    if num_skills:
        assert not make_config({**given, "finetune_from": "a run"}).learns_skills


@pytest.mark.parametrize(
    ("given", "episodes"), [({}, 1), ({"num_skills": 0}, 10), ({"num_eval_episodes": 4}, 4), ({"num_skills": 2}, 1)]
)
def test_evaluation_episodes(given: dict[str, Any], episodes: int) -> None:
    """Ten skills with one episode each cost as much as ten episodes of DrQ."""
    assert make_config(given).num_eval_episodes == episodes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 5000),
        ({"eval_frequency": 100}, 100),
        ({"eval_frequency": 0}, 5000),
        ({"eval_frequency": 100, "checkpoint_frequency": 0}, 0),
        ({"eval_frequency": 100, "checkpoint_frequency": 7}, 7),
    ],
)
def test_checkpoints_are_written_at_every_evaluation(given: dict[str, Any], expected: int) -> None:
    assert make_config(given).checkpoint_frequency == expected


def test_the_discriminator_learns_at_the_agents_rate_by_default() -> None:
    assert make_config({"lr": 3e-4}).lr_discriminator == 3e-4
    assert make_config({"lr": 3e-4, "lr_discriminator": 1e-4}).lr_discriminator == 1e-4


@pytest.mark.parametrize(("image_size", "pad"), [(84, 4), (64, 3), (48, 2), (32, 2), (24, 1), (16, 1), (168, 8)])
def test_the_shift_grows_with_the_image(image_size: int, pad: int) -> None:
    """As a share of the picture it stays DrQ's: round(4 image_size / 84)."""
    assert make_config({"image_size": image_size}).image_pad == pad
    assert make_config({"image_size": image_size, "image_pad": 4}).image_pad == 4


@pytest.mark.parametrize(
    ("given", "steps", "frames"),
    [
        ({"num_train_steps": 300, "action_repeat": 8}, 300, 2400),
        ({"num_train_frames": 2400, "action_repeat": 8}, 300, 2400),
        ({"num_train_frames": 100, "action_repeat": 8}, 12, 96),  # a budget is not exceeded
        ({"num_train_frames": 110, "action_repeat": 8}, 13, 104),
        ({"num_train_frames": 500_000, "preset": "planet"}, 62_500, 500_000),  # cartpole's action repeat is 8
    ],
)
def test_budget(given: dict[str, Any], steps: int, frames: int) -> None:
    config = make_config(given)
    assert (config.num_train_steps, config.num_train_frames) == (steps, frames)


def test_inherited_flags() -> None:
    """They win over defaults and presets, and lose to flags that were given."""
    inherited = {"env": "walker_walk", "action_repeat": 8, "hidden_dim": 16}
    config = make_config({"finetune_from": "a run", "preset": "planet", "hidden_dim": 32}, inherited)
    assert (config.env, config.action_repeat, config.hidden_dim, config.batch_size) == ("walker_walk", 8, 32, 512)


# -- presets -----------------------------------------------------------------------------------------------------------

PLANET = {
    "finger_spin": 2,
    "cartpole_swingup": 8,
    "reacher_easy": 4,
    "cheetah_run": 4,
    "walker_walk": 2,
    "ball_in_cup_catch": 4,
}


@pytest.mark.parametrize("prefix", ["", "dmc_"])
@pytest.mark.parametrize("task", PLANET)
def test_planet(task: str, prefix: str) -> None:
    config = make_config({"preset": "planet", "env": f"{prefix}{task}"})
    assert (config.action_repeat, config.batch_size) == (PLANET[task], 512)


@pytest.mark.parametrize("task", [*PLANET, "humanoid_CMU_run"])
def test_dreamer(task: str) -> None:
    config = make_config({"preset": "dreamer", "env": task})
    assert (config.action_repeat, config.batch_size) == (2, 512)


@pytest.mark.parametrize(
    ("given", "repeat", "batch_size"),
    [
        ({"preset": "planet", "action_repeat": 3}, 3, 512),
        ({"preset": "planet", "batch_size": 64}, 8, 64),
        ({"preset": "dreamer", "action_repeat": 4, "batch_size": 128}, 4, 128),  # they equal the defaults
        ({"preset": "planet", "env": "humanoid_run", "action_repeat": 3}, 3, 512),
    ],
)
def test_flags_beside_a_preset_win(given: dict[str, Any], repeat: int, batch_size: int) -> None:
    config = make_config(given)
    assert (config.action_repeat, config.batch_size) == (repeat, batch_size)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_train_frames": 100, "num_train_steps": 25}, ("--num_train_frames", "--num_train_steps")),
        ({"num_train_frames": 7, "action_repeat": 8}, ("--num_train_frames", "--action_repeat")),
        ({"num_skills": 0, "diayn_intrinsic_reward_coeff": 1.0}, ("--diayn_intrinsic_reward_coeff", "without skills")),
        ({"diayn_intrinsic_reward_coeff": 0.0}, ("--extrinsic_reward_coeff", "--diayn_intrinsic_reward_coeff")),
        ({"num_skills": 0, "extrinsic_reward_coeff": 0.0}, ("--extrinsic_reward_coeff", "--num_skills")),
        ({"num_skills": 1}, ("--num_skills 1", "--extrinsic_reward_coeff")),
        ({"disdain_coeff": 1.0}, ("--disdain_coeff", "--discriminator_ensemble")),
        ({"preset": "planet", "env": "humanoid_run"}, ("--preset", "humanoid_run", "--action_repeat")),
        ({"finetune_skill": "3"}, ("--finetune_skill", "--finetune_from")),
        ({"finetune_critic": "scratch"}, ("--finetune_critic", "--finetune_from")),
        ({"finetune_snapshot": 0}, ("--finetune_snapshot", "--finetune_from")),
        ({"finetune_from": "a run", "num_skills": 3, "finetune_skill": "3"}, ("--finetune_skill", "2")),
        ({"finetune_from": "a run", "num_skills": 3, "finetune_skill": "-1"}, ("--finetune_skill",)),
        ({"finetune_from": "a run", "num_skills": 3, "finetune_skill": "9" * 5000}, ("--finetune_skill",)),
    ],
)
def test_contradictions(given: dict[str, Any], named: tuple[str, ...]) -> None:
    assert_refused(given, *named)


def test_flags_by_which_runs_are_compared() -> None:
    """The same ones for every run, as numbers or as texts in all of them; not what belongs to one run."""
    one = compared_flags(make_config({"num_skills": 3, "time_limit": 50, "env": "walker_run", "notes": "mine"}))
    other = compared_flags(make_config({"num_skills": 0, "preset": "planet"}))
    assert [(name, type(value) is str) for name, value in one.items()] == [
        (name, type(value) is str) for name, value in other.items()
    ]
    assert (one["num_skills"], one["time_limit"], one["env"], other["time_limit"]) == (3, "50", "walker_run", "None")
    assert not one.keys() & {"notes", "work_dir", "run_name", "device", "eval_frequency"}
