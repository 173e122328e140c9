"""The table of flags, and the derivation of a Config from the flags that were given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_origin

import pytest

from config import (
    FIELDS,
    MAX_INTEGER,
    TYPES,
    Config,
    Role,
    flags_with,
    make_config,
    shown_value,
)
from errors import UserError
from tests.support.flags import ABOVE_RANGE, BELOW_RANGE, CHOICES, DERIVED, FLAGS, FLOATS
from tests.support.program import assert_names

# flag: (value, names in the message)
Refusal = tuple[dict[str, Any], tuple[str, ...]]


def assert_refused(given: Mapping[str, Any], *named: str) -> None:
    """Check that the flags are refused in one line that holds each of `named` as a word."""
    with pytest.raises(UserError) as caught:
        make_config(given)
    message = str(caught.value)
    assert "\n" not in message
    assert_names(message, *named)


def typed(name: str, text: str) -> Any:
    """Return the text as a value of the flag's type."""
    return TYPES[name](text)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_no_flag_is_forgotten() -> None:
    """The tables of these tests have every flag."""
    assert {field.name for field in dataclasses.fields(Config)} == {*FLAGS, *DERIVED}


@pytest.mark.parametrize("name", FIELDS)
def test_every_flag_is_described(name: str) -> None:
    """Its help says what it is for; a default of None is derived, and says from what; defaults have the right type."""
    field = FIELDS[name]
    assert field.metadata["group"]
    assert len(field.metadata["help"]) > 10
    if field.default is None:
        assert field.metadata["derived"]
    else:
        assert type(field.default) is (get_origin(TYPES[name]) or TYPES[name])
        make_config({name: field.default} if name != "env" else {})


ROLES: dict[Role, set[str]] = {
    Role.NETWORK: {
        *("image_size", "frame_stack", "num_skills", "skill_embedding_dim"),
        *("encoder_feature_dim", "hidden_dim", "hidden_depth", "log_std_bounds"),
    },
    Role.INHERITED: {"env", "action_repeat", "time_limit", "floor"},
    Role.FINE_TUNING: {"finetune_from", "finetune_skill", "finetune_critic", "finetune_snapshot"},
    Role.OF_ONE_RUN: {
        *("device", "finetune_from", "finetune_skill", "finetune_critic", "finetune_snapshot"),
        *("run_name", "notes", "resume"),
    },
    Role.SAME_EXPERIMENT: {"preset", "seed", "finetune_from", "work_dir", "run_name"},
    Role.PLACED_BY_SWEEP: {"work_dir", "run_name", "resume"},
    Role.FOLLOWS_SKILLS: {"num_skills", "temperature", "extrinsic_reward_coeff", "diayn_intrinsic_reward_coeff"},
}  # the agents' and environments' are tested against their parameters, RESUMABLE beside the resumed runs


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_roles(role: Role) -> None:
    assert set(flags_with(role)) == ROLES[role]


def test_flags_with_a_role_are_in_the_order_of_the_table() -> None:
    for role in Role:
        names = flags_with(role)
        assert list(names) == [name for name in FIELDS if name in names]
    assert flags_with(Role.NONE) == ()


def test_flags_with_one_of_two_roles() -> None:
    assert set(flags_with(Role.INHERITED | Role.NETWORK)) == ROLES[Role.INHERITED] | ROLES[Role.NETWORK]


def test_keyword_arguments() -> None:
    config = make_config({"env": "walker_run", "time_limit": 100, "frame_stack": 2})
    expected = {"action_repeat": 4, "time_limit": 100, "image_size": 84, "frame_stack": 2}
    assert config.kwargs(Role.ENVIRONMENT) == expected


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLAGS)
def test_default(name: str) -> None:
    assert getattr(make_config({}), name) == FLAGS[name][0]


@pytest.mark.parametrize("name", FLAGS)
def test_value_given(name: str) -> None:
    value = FLAGS[name][2]
    assert getattr(make_config({name: value}), name) == value


def test_a_config_is_stored_as_json() -> None:
    flags = json.loads(json.dumps(dataclasses.asdict(make_config({"seed": 2**64 - 1, "log_std_bounds": (-5.0, 1.0)}))))
    assert flags["seed"] == 2**64 - 1
    assert flags["log_std_bounds"] == [-5.0, 1.0]
    assert make_config({"log_std_bounds": flags["log_std_bounds"]}).log_std_bounds == (-5.0, 1.0)


@pytest.mark.parametrize(
    ("env", "expected"),
    [("walker_run", "walker_run"), ("dmc_walker_run", "walker_run"), ("gym:Pendulum-v1", "gym:Pendulum-v1")],
)
def test_a_leading_dmc_is_removed(env: str, expected: str) -> None:
    assert make_config({"env": env}).env == expected


@pytest.mark.parametrize(("value", "shown"), [((-10.0, 2.0), "-10.0 2.0"), (3, "3"), (True, "True"), (None, "None")])
def test_shown_value(value: Any, shown: str) -> None:
    assert shown_value(value) == shown


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


@pytest.mark.parametrize(("name", "text"), [*BELOW_RANGE.items(), *ABOVE_RANGE.items()])
def test_out_of_range(name: str, text: str) -> None:
    assert_refused({name: typed(name, text)}, f"--{name}", str(typed(name, text)))


@pytest.mark.parametrize(
    "name", [name for name in FLAGS if TYPES[name] is int and FIELDS[name].metadata["high"] is None]
)
def test_integers_have_64_bits(name: str) -> None:
    assert_refused({name: MAX_INTEGER + 1}, f"--{name}", str(MAX_INTEGER))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FLOATS)
def test_not_finite(name: str, value: float) -> None:
    assert_refused({name: value}, f"--{name}")


@pytest.mark.parametrize("bounds", [(2.0, -10.0), (2.0, 2.0), (float("nan"), 2.0), (-10.0, float("inf"))], ids=str)
def test_bad_bounds(bounds: tuple[float, float]) -> None:
    assert_refused({"log_std_bounds": bounds}, "--log_std_bounds")


def test_choices() -> None:
    choices = {name: field.metadata["choices"] for name, field in FIELDS.items() if field.metadata["choices"]}
    assert choices == CHOICES


@pytest.mark.parametrize("name", CHOICES)
def test_wrong_choice(name: str) -> None:
    assert_refused({name: "nonsense"}, f"--{name}", "nonsense", *CHOICES[name])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "-x", ".hidden", "a b", "a\n", "a:b"])
def test_bad_run_name(name: str) -> None:
    assert_refused({"run_name": name}, "--run_name")


@pytest.mark.parametrize("name", ["a", "seed=1_lr=1e-3", "2024-01-01_seed1", "a.b", "a+b", "é"])
def test_good_run_name(name: str) -> None:
    assert make_config({"run_name": name}).run_name == name


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
    ],
)
def test_contradictions(given: dict[str, Any], named: tuple[str, ...]) -> None:
    assert_refused(given, *named)


def test_a_run_name_fits_a_file_system() -> None:
    assert make_config({"run_name": "x" * 200}).run_name == "x" * 200
    with pytest.raises(UserError, match="--run_name must be at most 200 bytes"):
        make_config({"run_name": "x" * 201})


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
@pytest.mark.parametrize("name", ["work_dir", "notes", "env"])
def test_texts_that_no_file_name_can_hold(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{name}"):
        make_config({name: value})
