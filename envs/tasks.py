"""The names of tasks, so that a mistyped one is answered before anything heavy is imported."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from config import Config
from errors import TaskError, UserError, one_line

PREFIXES = ("gym",)  # of --env; suite tasks have none
WALKING = ("cheetah", "dog", "hopper", "humanoid", "humanoid_CMU", "quadruped", "walker")  # domains of the suite
SUITE_LIMIT = 1000  # frames of an episode, in all domains of the suite but lqr, which has no limit
REGISTERED = re.compile(r"^@SUITE\.add\([^)]*\)\s*^def (\w+)\(", re.MULTILINE)  # a task in a domain's module


def check_task(config: Config) -> None:
    """Raise UserError if --env names no task, or a prefix that does not exist, or --floor does not fit.

    An environment that a module of its own registers is not looked for: that would import the module.
    """
    prefix, name = split_prefix(config)
    tasks = {} if prefix else registered_tasks()
    if prefix == "gym" and ":" not in name:
        _check_registered(name)
    elif "cartpole_swingup" in tasks:  # else dm_control is missing, or registers its tasks in another way
        try:
            domain, _ = look_up(config.env, tasks)
            check_floor(config.env, domain, config.floor)
        except TaskError as error:
            raise UserError(f"--env: {error}") from error


def split_prefix(config: Config) -> tuple[str, str]:
    """Return the prefix of --env, "" for a task of the suite, and the name behind it. Raises UserError."""
    prefix, colon, name = config.env.partition(":")
    if not colon:
        return "", config.env
    if prefix not in PREFIXES:
        known = ", ".join(f"{each}:" for each in PREFIXES)
        raise UserError(f"--env {config.env}: unknown prefix {prefix}:; give {known} or, for a suite task, none")
    if not name:
        raise UserError(f"--env {config.env} names no environment; give {prefix}:ID, such as gym:Pendulum-v1")
    if config.floor != "suite":
        raise UserError(f"--floor {config.floor}: --env {config.env} is no task of the suite; leave the flag out")
    return prefix, name


def without_own_limit(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags in which a --time_limit that is the suite task's own is None, the default, which means the same."""
    env = str(flags.get("env"))
    own = None if ":" in env or env.removeprefix("dmc_").startswith("lqr_") else SUITE_LIMIT
    limit = flags.get("time_limit")
    return {**flags, "time_limit": None if limit == own else limit}


def _check_registered(name: str) -> None:
    """Raise UserError if Gymnasium has no environment of that name."""
    import gymnasium  # without torch and mujoco: a few tenths of a second

    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise UserError(f"--env: gymnasium cannot make {name!r}: {one_line(str(error))}") from error


def registered_tasks() -> dict[str, tuple[str, str]]:
    """Return (domain, task) of every task that the source of dm_control.suite registers, by the name of `--env`.

    To import the suite would take half a second, and bind a renderer.
    """
    package = find_spec("dm_control")
    folders = [] if package is None else package.submodule_search_locations or []
    modules = [path for folder in folders for path in sorted(Path(folder, "suite").glob("*.py"))]
    return {
        f"{path.stem}_{task}": (path.stem, task)
        for path in modules
        for task in REGISTERED.findall(path.read_text(encoding="utf-8"))
    }


def look_up(name: str, tasks: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Return (domain, task) for a name such as "ball_in_cup_catch" or "dmc_walker_run".

    Both parts may contain underscores, so the name is looked up. Raises TaskError, which names similar tasks.
    """
    plain = name.removeprefix("dmc_")
    if plain not in tasks:
        nearest = difflib.get_close_matches(plain.lower(), tasks, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "cartpole_swingup is one that exists"
        raise TaskError(f"dm_control.suite has no task {name!r}; {hint}")
    return tasks[plain]


def check_floor(name: str, domain: str, floor: str) -> None:
    """Raise TaskError if the task `name` cannot have the floor."""
    if floor != "suite" and domain not in WALKING:
        raise TaskError(f"{name} has no walking body ({', '.join(WALKING)}) for --floor {floor}; leave it out")
