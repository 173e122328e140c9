"""The plan of a sweep: every combination of the values given for train.py's flags, named and checked before any starts.

Standard library only, except in the process that `check_environments` starts.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import re
import typing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from config import TYPES, Config, Role, flags_with, shown_value
from envs.renderer import do_without_renderer
from envs.tasks import check_task
from errors import CheckpointError, UserError
from running.atomic_files import no_room
from running.stored_config import config_from, with_template
from sweeping.record import Sweep, Trial

CHECKED = (  # by check_environments
    *("env", *flags_with(Role.ENVIRONMENT)),
    *("replay_buffer_capacity", "finetune_from", "finetune_snapshot"),
)
PROCESS_MEMORY = 2.0  # GB, of a run's process beside its replay buffer
MAX_NAME_LENGTH = 100  # characters, of a run's folder


def new_sweep(values: Mapping[str, Sequence[Any]], folder: Path, options: Mapping[str, Any]) -> Sweep:
    """Return the sweep over these values of train.py's flags, checked. Writes nothing. Raises UserError."""
    planned = plan(values)
    folder = Path(os.path.realpath(folder))
    check_place(folder)
    for _, config in planned:
        check_task(config)
    needed = check_environments([config for _, config in planned])
    return Sweep(folder, [trial for trial, _ in planned], round(needed / 1e9 + PROCESS_MEMORY, 2), **options)


def check_place(folder: Path) -> None:
    """Raise UserError if the sweep's folder exists, or certainly cannot be made."""
    try:
        nearest = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if nearest == folder:
            where = f"{folder} exists; choose another, or resume it: --resume {folder}"
            raise UserError(f"--sweep_name {folder.name}: {where}")
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        names, path = os.pathconf(nearest, "PC_NAME_MAX"), os.pathconf(nearest, "PC_PATH_MAX")
        if any(len(os.fsencode(part)) > names for part in folder.parts) or len(os.fsencode(folder)) > path // 2:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise no_room(folder.parent, error) from error


def plan(values: Mapping[str, Any]) -> list[tuple[Trial, Config]]:
    """Return every combination of the values as a run and its Config. Raises UserError."""
    if not values:
        raise UserError("a sweep needs values to combine: give flags of train.py; for a single run, use train.py")
    template = {"config": values["config"]} if "config" in values else {}
    choices = {name: distinct_values(name, given) for name, given in values.items() if name != "config"}
    varied = [name for name, options in choices.items() if len(options) > 1 and name != "env"]
    planned: dict[tuple[str, str], tuple[Trial, Config]] = {}
    for number, combination in enumerate(itertools.product(*choices.values())):
        chosen = dict(zip(choices, combination, strict=True))
        config = config_from({**chosen, **template})
        if config.device not in (None, "cpu", "cuda"):
            raise UserError(f"--device {config.device}: give cpu or cuda; a run only sees the GPUs assigned to it")
        flags = with_template({**chosen, **template})
        if config.finetune_from is not None:
            flags["finetune_from"] = config.finetune_from  # absolute
        shown = "_".join(f"{flag}={'+'.join(as_words(chosen[flag]))}" for flag in varied)
        name = re.sub(r"[^\w.+=-]+", "-", shown, flags=re.ASCII) or "run"
        if len(name) > MAX_NAME_LENGTH or (config.env, name) in planned:  # names can be equal if the values are not
            name = f"{name[:MAX_NAME_LENGTH]}_{number}"
        settings = {flag: " ".join(as_words(value)) for flag, value in chosen.items()}
        arguments: list[str] = []
        for flag, value in flags.items():  # after a space, -x would be read as another flag
            arguments += [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", *as_words(value)]
        planned[config.env, name] = Trial(name, config.env, settings, arguments, config.num_train_frames), config
    return list(planned.values())


def distinct_values(name: str, given: Sequence[Any]) -> list[Any]:
    """Return the values of a flag. Raises UserError if one is repeated."""
    values = list(given) or [True]  # a switch without a value
    if typing.get_origin(TYPES[name]) is tuple:  # two numbers are one value
        if len(values) % 2:
            raise UserError(f"--{name} takes pairs of numbers; got {len(values)}")
        values = list(zip(values[::2], values[1::2], strict=True))
    if name == "env":
        values = [value.removeprefix("dmc_") for value in values]
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"--{name} names {shown_value(value)} twice; each combination is run once")
    return values


def as_words(value: Any) -> list[str]:
    """Return a flag's value as the words of a command line."""
    parts = value if isinstance(value, tuple) else (value,)
    return [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]


def check_environments(configs: Sequence[Config]) -> int:
    """Make each distinct environment once and check each source of fine-tuning, in one separate process.

    Returns the memory of the largest replay buffer, in bytes. Raises UserError.
    """
    distinct = {tuple(getattr(config, name) for name in CHECKED): config for config in configs}
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return max(pool.map(replay_buffer_bytes, distinct.values()))
    except BrokenProcessPool:
        envs = ", ".join(sorted({config.env for config in configs}))
        raise UserError(f"--env: the process that checks {envs} has died; try them with train.py") from None
    except OSError as error:
        remedy = "a process that checks the flags needs a /dev/shm that is writable and not full, and free memory"
        raise UserError(f"the sweep can't be checked: {error}; {remedy}") from error


def replay_buffer_bytes(config: Config) -> int:
    """Check a run's environment and the run that it is fine-tuned from. Return the memory of its replay buffer.

    It imports what a run imports, hence the process of its own. Nothing is drawn, as the machine that starts a sweep
    may have no renderer.
    """
    from envs.make import make_environment
    from replay_buffer import ReplayBuffer
    from running.snapshots import read_pretrained

    do_without_renderer()
    env = make_environment(config)
    obs_shape, (action_dim,) = env.observation_space.shape, env.action_space.shape
    env.close()
    if config.finetune_from is not None:
        try:
            read_pretrained(config)
        except CheckpointError as error:
            raise UserError(f"--finetune_from {config.finetune_from}: {error}") from error
    return ReplayBuffer.bytes_needed(config.replay_buffer_capacity, (3, *obs_shape[1:]), config.frame_stack, action_dim)
