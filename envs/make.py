"""The environment that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from config import Config, Role
from dmc import DMCEnv
from envs.gym_env import GymPixelEnv
from envs.pixel_env import PixelEnv
from envs.tasks import split_prefix
from errors import TaskError, UserError
from utils import check_memory

KINDS: dict[str, Callable[..., PixelEnv]] = {"gym": GymPixelEnv}  # by the prefix of --env, which is in envs/tasks.py
BYTES_PER_VALUE = 8  # of an observation: itself, its frames, and the bounds of its space


def make_environment(config: Config) -> PixelEnv:
    """Return the task `config.env` as pixels. Raises UserError if it does not exist or does not fit the other flags.

    The renderer must have been chosen before (see `envs.renderer`).
    """
    prefix, name = split_prefix(config)
    observation = 3 * config.frame_stack * config.image_size**2
    what = f"--image_size {config.image_size} with --frame_stack {config.frame_stack}"
    check_memory({what: observation * BYTES_PER_VALUE})
    try:
        settings = config.kwargs(Role.ENVIRONMENT)
        env = KINDS[prefix](name, **settings) if prefix else DMCEnv(name, floor=config.floor, **settings)
    except TaskError as error:
        raise UserError(f"--env: {error}") from error
    longest = env.max_episode_steps
    if longest is None:
        raise UserError(f"--env {config.env} has no time limit of its own; give --time_limit")
    if config.replay_buffer_capacity < longest:
        raise UserError(f"--replay_buffer_capacity must hold one episode, which is {longest} agent steps")
    limit = "" if config.time_limit is None else f" with --time_limit {config.time_limit}"
    what = f"--image_size {config.image_size}{limit}: an episode of {longest} agent steps"
    check_memory({what: longest * 3 * config.image_size**2})
    return env
