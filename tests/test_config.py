"""The table of flags, and the values that each flag can have."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

import pytest

from config import (
    FIELDS,
    MAX_INTEGER,
    TYPES,
    Config,
    Role,
    flags_with,
    shown_value,
)
from errors import UserError
from running.derivation import make_config
from tests.support.flags import ABOVE_RANGE, BELOW_RANGE, CHOICES, DERIVED, FLAGS, FLOATS
from tests.support.paths import ROOT
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
    Role.WITH_SKILLS: {"discriminator_window"},
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


def test_a_run_name_fits_a_file_system() -> None:
    assert make_config({"run_name": "x" * 200}).run_name == "x" * 200
    with pytest.raises(UserError, match="--run_name must be at most 200 bytes"):
        make_config({"run_name": "x" * 201})


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
@pytest.mark.parametrize("name", ["work_dir", "notes", "env"])
def test_texts_that_no_file_name_can_hold(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{name}"):
        make_config({name: value})


@pytest.mark.parametrize("name", ["work_dir", "env", "run_name"])
def test_empty_texts(name: str) -> None:
    """As a stored value too: an empty path would be the working folder."""
    with pytest.raises(UserError, match=f"--{name}: the value is empty"):
        make_config({name: ""})


def test_letters_that_the_locale_does_not_have(tmp_path: Path) -> None:
    """They may be in a stored path, which another locale wrote."""
    ascii_names = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "a.json").write_text(json.dumps({"flags": {"work_dir": "\u00fc"}}))
    line = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "a.json")]
    answer = subprocess.run(line, env={**os.environ, **ascii_names}, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.endswith(
        "--work_dir has a character that no name can have in this locale (ascii): set PYTHONUTF8=1; got '\\xfc'\n"
    )
