"""Build the parts of a run from its Config: device, agent, replay buffer, environments."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from config import Config, Role, check_device
from console.numbers import shown_size
from diayn import DIAYNAgent
from drq import DrQAgent
from envs.make import make_environment
from envs.parallel import open_eval_envs
from errors import RunError, UserError
from evaluation.play import bytes_of_traces
from networks import conv_features
from replay_buffer import ReplayBuffer
from running.run import Run
from utils import (
    Stopwatch,
    check_memory,
    free_memory,
    is_out_of_memory,
    keep_freed_memory,
    seed_everything,
    seed_sequence,
)

BYTES_PER_WEIGHT = 4 * (4 + 1 + 4)  # at least: of a critic and an actor with gradients and Adam's moments, and a target
BYTES_OF_A_TRAINED_WEIGHT = 4 * 4  # with its gradient and Adam's moments
BYTES_PER_PIXEL = 2 + 4 + 4 * 4  # of an observation and the next one, two views of each, and these as float32
WORKER_MEMORY = 300 << 20  # bytes of a process that plays evaluation episodes, at least
CUDA_CONTEXT = 2 << 30  # bytes of device memory for CUDA's libraries, networks and optimizers at the default sizes
CUDA_BYTES_PER_PIXEL = 450  # of activations and gradients, for each transition of a batch: estimated, not measured
CUDA_BYTES_PER_PIXEL_OF_A_MEMBER = 160  # the same, for each discriminator after the first: estimated, not measured
UPDATES_HELD = 2  # with CUDA graphs, the memory of an update is held twice: to warm up, and in the graphs' pool


def build_run(config: Config, resources: ExitStack) -> Run:
    """Return a run at its beginning, without a folder yet. Raises UserError.

    Args:
        resources: closes environments and worker processes.
    """
    env = resources.enter_context(closing(make_environment(config)))
    obs_shape, action_dim = env.observation_space.shape, env.action_space.shape[0]
    check_memory(memory_needed(config, obs_shape, env.max_episode_steps or 1))
    buffer, memory = make_replay_buffer(config, (3, *obs_shape[1:]), action_dim)
    if config.deterministic and config.device != "cpu":
        make_deterministic()
    keep_freed_memory()
    seed_everything(config.seed)
    env.action_space.seed(int(seed_sequence(config.seed, "actions").generate_state(1)[0]))
    try:
        with out_of_memory_is_an_error("networks of that --hidden_dim, --encoder_feature_dim and --num_skills"):
            agent = make_agent(config, obs_shape, action_dim)
    except RunError as error:
        raise UserError(str(error)) from error
    try:
        episodes = len(agent.skills()) * config.num_eval_episodes
        factory = partial(make_environment, config)
        eval_envs = resources.enter_context(open_eval_envs(factory, episodes, config.eval_workers))
    except (OSError, EOFError) as error:
        raise UserError(f"--eval_workers {config.eval_workers}: {why_no_workers(error)}") from error
    return Run(
        config=config,
        agent=agent,
        env=env,
        eval_envs=eval_envs,
        buffer=buffer,
        skill_rng=np.random.default_rng(seed_sequence(config.seed, "skills")),
        stopwatch=Stopwatch(),
        first_update_step=config.num_seed_steps,
        memory=memory,
    )


def memory_needed(config: Config, obs_shape: tuple[int, ...], steps: int) -> dict[str, int]:
    """Return the memory, in bytes, that single flags need at least, beside --replay_buffer_capacity.

    Args:
        steps: of an episode.
    """
    width, pixels = config.hidden_dim, math.prod(obs_shape)
    skills = config.num_skills if config.learns_skills else 1
    episodes = skills * config.num_eval_episodes
    members = config.discriminator_ensemble if config.learns_skills else 0
    head = conv_features(obs_shape) * config.encoder_feature_dim  # most weights of a wide encoder or discriminator
    needs = {}
    if config.device == "cpu":  # a CUDA device reports that its memory is too small
        needs = {
            f"--hidden_dim {width}": max(config.hidden_depth - 1, 0) * width**2 * BYTES_PER_WEIGHT,
            f"--encoder_feature_dim {config.encoder_feature_dim}": head * BYTES_PER_WEIGHT,
            f"--num_skills {config.num_skills}": config.num_skills * config.skill_embedding_dim * BYTES_PER_WEIGHT,
            f"--discriminator_ensemble {members}": members * head * BYTES_OF_A_TRAINED_WEIGHT,
            f"--batch_size {config.batch_size}": config.batch_size * pixels * BYTES_PER_PIXEL,
        }
    needs |= {
        f"--num_eval_episodes {config.num_eval_episodes}": bytes_of_traces(episodes, steps, obs_shape[1]),
        f"--eval_workers {config.eval_workers}": min(config.eval_workers, episodes) * WORKER_MEMORY,
    }
    return needs


def why_no_workers(error: OSError | EOFError) -> str:
    """Return why worker processes could not be started, and what to do."""
    if isinstance(error, (EOFError, ConnectionError)):
        return "a worker process ended at its start; try fewer"
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        return f"{error.strerror}; try fewer"
    return f"{error}; they need a /dev/shm that is writable and not full: fix that, or give --eval_workers 0"


def make_agent(config: Config, obs_shape: tuple[int, ...], action_dim: int) -> DrQAgent:
    """Return a DIAYNAgent if the run learns skills, else a DrQAgent."""
    settings: dict[str, Any] = {
        "seed": int(seed_sequence(config.seed, "agent").generate_state(1)[0]),
        "learn_temperature": config.temperature == "learned",
        **config.kwargs(Role.AGENT),
    }
    agent: DrQAgent
    if config.learns_skills:
        agent = DIAYNAgent(obs_shape, action_dim, **settings, **config.kwargs(Role.DIAYN))
    else:  # a fine-tuned run's networks have inputs for skills, and always get the same one
        inputs = ("num_skills", "skill_embedding_dim", "skill_embedding_init")
        settings |= {name: getattr(config, name) for name in inputs}
        agent = DrQAgent(obs_shape, action_dim, **settings)
    if config.device != "cpu" and config.cuda_graphs:
        agent.use_cuda_graphs()
    return agent


def choose_device(wanted: str | None) -> str:
    """Return the device to use: the one asked for, else CUDA, else the CPU. Raises UserError if it does not exist."""
    check_device(wanted)
    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(wanted.partition(":")[2] or 0):
            remedy = f"use --device cpu{' or another index' if count else ''}"
            raise UserError(f"--device {wanted}: CUDA devices found here: {count}; {remedy}")
        torch.set_float32_matmul_precision("high")  # TF32, which cuDNN's convolutions use by default
    if ":" in wanted:
        torch.cuda.set_device(wanted)  # graphs and streams are created on the current device
    return wanted


def warn_of_cpu(wanted: str | None, chosen: str) -> None:
    """Print a warning if no device was asked for and there is no CUDA device."""
    if wanted is None and chosen == "cpu":
        print("warning: no CUDA device was found; using the CPU (--device cpu silences this)", file=sys.stderr)


def make_deterministic() -> None:
    """Make CUDA compute the same numbers in every run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # never read here
    torch.backends.cudnn.benchmark = False


def make_replay_buffer(config: Config, frame_shape: tuple[int, ...], action_dim: int) -> tuple[ReplayBuffer, str]:
    """Return an empty replay buffer, and in words its memory. Raises UserError if there is none for it.

    Args:
        frame_shape: of one frame, (channels, H, W).
    """
    storage, memory = place_replay_buffer(config, frame_shape, action_dim)
    try:
        buffer = ReplayBuffer(
            config.replay_buffer_capacity,
            frame_shape,
            config.frame_stack,
            action_dim,
            device=config.device,
            storage=storage,
            seed=seed_sequence(config.seed, "replay"),
        )
    except MemoryError as error:
        raise UserError(f"--replay_buffer_capacity: {error}; choose a smaller one") from error
    return buffer, memory


def place_replay_buffer(config: Config, frame_shape: tuple[int, ...], action_dim: int) -> tuple[str, str]:
    """Return the device for the replay buffer's frames and, in words, the memory that it needs and what is free.

    The CUDA device is chosen if it then has room for the networks. Raises UserError if there is not enough memory.
    """
    needed = ReplayBuffer.bytes_needed(config.replay_buffer_capacity, frame_shape, config.frame_stack, action_dim)
    size, too_large = shown_size(needed), ""
    if config.device != "cpu":
        free, _ = torch.cuda.mem_get_info(config.device)
        if needed + cuda_headroom(config) <= free:
            return config.device, f"{size} on the device, of {shown_size(free)} free"
        too_large = f"; too much for the device ({shown_size(free)} free), so on the host"
    free = free_memory()
    figures = f"{config.replay_buffer_capacity} transitions need {size}, {shown_size(free)} are free"
    if needed > free:
        fitting = int(config.replay_buffer_capacity * free / needed * 0.8)
        raise UserError(f"--replay_buffer_capacity: {figures}; try {fitting}")
    return "cpu", figures + too_large


def cuda_headroom(config: Config) -> int:
    """Return the bytes of device memory that are left free beside the replay buffer, for everything else."""
    held = UPDATES_HELD if config.cuda_graphs else 1
    members = config.discriminator_ensemble - 1 if config.learns_skills else 0
    per_pixel = CUDA_BYTES_PER_PIXEL + members * CUDA_BYTES_PER_PIXEL_OF_A_MEMBER
    return CUDA_CONTEXT + held * config.batch_size * config.image_size**2 * per_pixel


@contextmanager
def out_of_memory_is_an_error(purpose: str, remedy: str = "choose a smaller size") -> Iterator[None]:
    """Turn a failed allocation on the host or the device into a RunError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"there is not enough memory for {purpose}; {remedy}") from error
