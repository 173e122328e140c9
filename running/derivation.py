"""The pure derivation of a run's configuration from the flags that were given. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from config import FIELDS, Config, Role, check_device, check_value, flags_with, shown_value
from errors import UserError
from running.names import check_name
from running.presets import settings_of

DEFAULT_CHECKPOINT_FREQUENCY = 5000  # agent steps, when the run never evaluates


def make_config(given: Mapping[str, Any], inherited: Mapping[str, Any] | None = None) -> Config:
    """Return the Config of the flags that were given: preset, derived defaults, checks. Reads no files.

    Args:
        given: flags by name; all others get their defaults.
        inherited: for a new fine-tuned run, the flags that it has from its source.

    Raises:
        UserError: a value is out of range or contradicts another. The message names the flag.
    """
    values = derive(given, inherited)
    check_device(values["device"])
    check_name("run_name", values["run_name"])
    with_skills = _has_skills(values)
    _check_rewards(values, with_skills)
    if with_skills and values["disdain_coeff"] and values["discriminator_ensemble"] < 2:
        raise UserError(
            "--disdain_coeff rewards the disagreement of an ensemble: give --discriminator_ensemble 2 or more beside it"
        )
    return Config(**values)


def derive(given: Mapping[str, Any], inherited: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of all flags, given some of them. Whether these make sense together, `make_config` checks.

    Raises UserError: a value is out of range, or those that others are derived from contradict each other.
    """
    values: dict[str, Any] = {name: field.default for name, field in FIELDS.items()}
    inherited = inherited or {}
    values |= {**preset_settings({**inherited, **given}), **inherited, **given}
    values["env"] = values["env"].removeprefix("dmc_")
    values["log_std_bounds"] = tuple(values["log_std_bounds"])
    for name, value in values.items():
        check_value(name, value)
    _check_fine_tuning(values)
    _derive_defaults(values, _has_skills(values))
    _derive_budget(values, given)
    return values


def compared_flags(config: Config) -> dict[str, float | str]:
    """Return the flags by which runs are compared: numbers if they always are numbers, else texts."""
    usual, left_out = make_config({}), flags_with(Role.RESUMABLE | Role.OF_ONE_RUN | Role.PLACED_BY_SWEEP)
    values = {name: getattr(config, name) for name in FIELDS if name not in left_out}
    numbers = {name for name in values if type(getattr(usual, name)) in (int, float)}
    return {name: value if name in numbers else shown_value(value) for name, value in values.items()}


def preset_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that --preset sets beside the flags in `given`, for their task. Raises UserError."""
    preset, env, skills, source = (
        given.get(name, FIELDS[name].default) for name in ("preset", "env", "num_skills", "finetune_from")
    )
    return settings_of(
        preset,
        env.removeprefix("dmc_"),
        with_skills=skills > 0 and source is None,
        action_repeat_is_given="action_repeat" in given,
    )


def _has_skills(values: Mapping[str, Any]) -> bool:
    return values["num_skills"] > 0 and values["finetune_from"] is None


def _derive_defaults(values: dict[str, Any], with_skills: bool) -> None:
    if values["temperature"] in (None, "auto"):
        values["temperature"] = "fixed" if with_skills else "learned"
    for name, default in (
        ("num_eval_episodes", 1 if with_skills else 10),
        ("diayn_intrinsic_reward_coeff", 1.0 if with_skills else 0.0),
        ("extrinsic_reward_coeff", 0.0 if with_skills else 1.0),
        ("lr_discriminator", values["lr"]),
        ("image_pad", round(4 * values["image_size"] / 84)),
        ("track", "none"),
        ("checkpoint_frequency", values["eval_frequency"] or DEFAULT_CHECKPOINT_FREQUENCY),
    ):
        values[name] = default if values[name] is None else values[name]


def _derive_budget(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Make both budgets say the same. Raises UserError."""
    repeat = values["action_repeat"]
    if "num_train_frames" in given:
        if "num_train_steps" in given:
            raise UserError("--num_train_frames and --num_train_steps exclude each other; give one of them")
        values["num_train_steps"] = values["num_train_frames"] // repeat
        if not values["num_train_steps"]:
            raise UserError(f"--num_train_frames must be at least --action_repeat, which is {repeat}")
    values["num_train_frames"] = values["num_train_steps"] * repeat


def _check_fine_tuning(values: Mapping[str, Any]) -> None:
    skill, count = values["finetune_skill"], values["num_skills"]
    if values["finetune_from"] is None:
        if (skill, values["finetune_critic"], values["finetune_snapshot"]) != ("best", "pretrained", None):
            raise UserError(
                "--finetune_skill, --finetune_critic and --finetune_snapshot need --finetune_from, a run with skills"
            )
    elif skill != "best" and not (re.fullmatch(r"\d{1,19}", skill) and int(skill) < count):
        raise UserError(f"--finetune_skill must be best or a skill from 0 to {count - 1}; got {skill}")


def _check_rewards(values: Mapping[str, Any], with_skills: bool) -> None:
    """Raise UserError if the agent would have no reward, or an intrinsic one without skills."""
    intrinsic, extrinsic = values["diayn_intrinsic_reward_coeff"], values["extrinsic_reward_coeff"]
    if intrinsic and not with_skills:
        raise UserError(
            "--diayn_intrinsic_reward_coeff: without skills there is no intrinsic reward; leave the flag out"
        )
    if values["num_skills"] == 1 and with_skills and not extrinsic:
        raise UserError(
            "--num_skills 1 leaves no reward, as there is no other skill to differ from; give 2 or more, 0 for plain "
            "DrQ, or --extrinsic_reward_coeff above 0"
        )
    if not extrinsic and values["finetune_from"] is not None:
        raise UserError(
            "--extrinsic_reward_coeff 0 leaves no reward, as fine-tuning has no intrinsic one; give it above 0"
        )
    if not extrinsic and not (with_skills and (intrinsic or values["disdain_coeff"])):
        raise UserError(
            "--extrinsic_reward_coeff 0 leaves no reward; give it above 0, or --num_skills and "
            "--diayn_intrinsic_reward_coeff"
        )
