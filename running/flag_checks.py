"""Flags that contradict each other. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errors import UserError


def check_fine_tuning(values: Mapping[str, Any]) -> None:
    """Raise UserError if the skill to fine-tune does not exist, or if there is no run to take it from."""
    skill, count = values["finetune_skill"], values["num_skills"]
    if values["finetune_from"] is None:
        if (skill, values["finetune_critic"], values["finetune_snapshot"]) != ("best", "pretrained", None):
            raise UserError(
                "--finetune_skill, --finetune_critic and --finetune_snapshot need --finetune_from, a run with skills"
            )
    elif skill != "best" and not (skill.isdecimal() and int(skill) < count):
        raise UserError(f"--finetune_skill must be best or a skill from 0 to {count - 1}; got {skill}")


def check_rewards(values: Mapping[str, Any], with_skills: bool) -> None:
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
    if not extrinsic and not (with_skills and intrinsic):
        raise UserError(
            "--extrinsic_reward_coeff 0 leaves no reward; give it above 0, or --num_skills and "
            "--diayn_intrinsic_reward_coeff"
        )


def check_ensemble(values: Mapping[str, Any], with_skills: bool) -> None:
    """Raise UserError if a single discriminator would have to disagree with itself."""
    if with_skills and values["disdain_coeff"] and values["discriminator_ensemble"] < 2:
        raise UserError(
            "--disdain_coeff rewards the disagreement of an ensemble: give --discriminator_ensemble 2 or more beside it"
        )


def check_bounds(bounds: tuple[float, float]) -> None:
    """Raise UserError if the range of the policy's log standard deviation is empty."""
    low, high = bounds
    if low >= high:
        raise UserError(f"--log_std_bounds: the first must be smaller than the second; got {low} {high}")
