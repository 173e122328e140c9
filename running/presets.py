"""The settings that --preset stands for. Standard library only.

To change what a preset sets, change this table; docs/skills.md names the runs behind the settings of `skills`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errors import UserError

# planet and dreamer are the benchmarks of the DrQ paper, with the action repeats of PlaNet and Dreamer.
PLANET_ACTION_REPEATS = {"cartpole": 8, "reacher": 4, "cheetah": 4, "finger": 2, "ball_in_cup": 4, "walker": 2}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "planet": {"batch_size": 512},  # and the action repeat of the task's domain
    "dreamer": {"batch_size": 512, "action_repeat": 2},
    "skills": {  # without skills it sets nothing
        "skill_sampling": "stratified",
        "skill_embedding_init": "orthogonal",
        "lr_discriminator": 1e-4,
        "critic_target_update_frequency": 1,
        "temperature": "learned",
    },
}
BENCHMARKS = ("planet", "dreamer")
COMBINATIONS = tuple(f"{name}+skills" for name in BENCHMARKS)


def names_in(preset: str | None) -> tuple[str, ...]:
    """Return the names in a value of --preset, which may be two joined by +."""
    return tuple(preset.split("+")) if preset else ()


def settings_of(preset: str | None, task: str, *, with_skills: bool, action_repeat_is_given: bool) -> dict[str, Any]:
    """Return the flags that --preset sets for a task. Raises UserError."""
    settings: dict[str, Any] = {}
    for name in names_in(preset):
        if name != "skills" or with_skills:
            settings |= PRESETS.get(name, {})
        if name == "planet":
            settings |= _planet_action_repeat(task, action_repeat_is_given)
    return settings


def _planet_action_repeat(task: str, is_given: bool) -> dict[str, int]:
    for domain, repeat in PLANET_ACTION_REPEATS.items():
        if task.startswith(f"{domain}_"):
            return {"action_repeat": repeat}
    if is_given:
        return {}
    raise UserError(
        f"--preset planet has no action repeat for --env {task} (only for {', '.join(PLANET_ACTION_REPEATS)}); "
        "give --action_repeat beside it"
    )
