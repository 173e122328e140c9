"""Checks that need the environment itself. This module imports what a run imports: use it in a process of its own."""

from __future__ import annotations

from pathlib import Path

from config import Config
from envs.make import make_environment
from envs.renderer import do_without_renderer
from errors import CheckpointError, UserError
from replay_buffer import ReplayBuffer
from running.checkpoint import read_newest


def replay_buffer_bytes(config: Config) -> int:
    """Check the run's environment and the run that it is fine-tuned from. Return the memory of its replay buffer.

    Nothing is drawn, as the machine that starts a sweep may have no renderer. Raises UserError.
    """
    do_without_renderer()
    env = make_environment(config)
    channels, height, width = env.observation_space.shape or ()
    (action_dim,) = env.action_space.shape or ()
    env.close()
    if config.finetune_from is not None:
        check_source(config.finetune_from)
    frame_shape = (channels // config.frame_stack, height, width)
    return ReplayBuffer.bytes_needed(config.replay_buffer_capacity, frame_shape, config.frame_stack, action_dim)


def check_source(folder: str) -> None:
    """Raise UserError unless a run can be fine-tuned from the one in this folder."""
    try:
        if read_newest(Path(folder)) is None:
            raise UserError(f"--finetune_from {folder}: that run has no checkpoint yet")
    except CheckpointError as error:
        raise UserError(f"--finetune_from {folder}: {error}") from error
