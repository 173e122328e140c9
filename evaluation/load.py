"""Load a trained agent from a run's checkpoint, with what is needed to play it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

from config import Config
from drq import DrQAgent
from envs.cells import CellGrid
from envs.make import make_environment
from envs.parallel import MAX_EVAL_ENVS, EvalEnvs, open_eval_envs
from envs.pixel_env import PixelEnv
from errors import CheckpointError, RenderingError, UserError
from evaluation.evaluate_skills import Evaluation, evaluate_skills
from evaluation.play import bytes_of_traces, skill_name
from running.build import choose_device, make_agent, out_of_memory_is_an_error, warn_of_cpu
from running.checkpoint import load_file
from running.columns import NO_SKILL
from running.names import CHECKPOINT_FOLDER, SNAPSHOT_FOLDER
from running.progress import ProgressBar
from running.snapshots import read_networks
from running.state import INVALID_STATE, read_counters
from running.stored_config import checked_config, name_a_run, real_run
from utils import check_memory, seed_everything


@dataclasses.dataclass
class LoadedRun:
    """A run as its checkpoint has it, without what only training needs."""

    config: Config  # on the device that was asked for, with the time limit that was asked for
    agent: DrQAgent
    frame: int  # frames of training
    label: Path  # the last parts of the run's path, <work_dir>/<task>/<run>
    source: Path  # the same, and within it the file that was named
    flags: Mapping[str, Any]  # of the run, with the time limit that was asked for
    fps: float  # frames per second of a video that plays in the task's time
    max_episode_steps: int  # agent steps
    cell_grid: CellGrid | None  # in which coverage is counted
    angles: Sequence[int]  # entries of the state of the physics that are angles without limits

    def bar(self, what: str, episodes: int) -> ProgressBar:
        """Return a progress bar for playing so many episodes, which may end early."""
        steps = math.ceil(episodes / MAX_EVAL_ENVS) * self.max_episode_steps
        return ProgressBar(steps, unit="steps", what=what)

    def open_eval_envs(self, episodes: int) -> AbstractContextManager[EvalEnvs]:
        """Return the environments in which `episodes` episodes can be played, as a context manager."""
        return open_eval_envs(partial(make_environment, self.config), episodes)

    def evaluate(
        self,
        skills: Sequence[int],
        seeds: Sequence[int],
        *,
        agent: DrQAgent | None = None,
        asked_by: str | None = None,
        **settings: Any,
    ) -> Evaluation:
        """Play each skill of the agent, or of another one, from each start.

        Raises UserError if the memory does not suffice.

        Args:
            asked_by: the flag that asks for it, for that message.
            settings: see `evaluate_skills`.
        """
        all_pictures = settings.get("keep_all_pictures", False)
        sizes = len(skills) * len(seeds), self.max_episode_steps, self.config.image_size
        what = asked_by or f"--episodes {len(seeds)}{' --save_trajectories' if all_pictures else ''}"
        check_memory({what: bytes_of_traces(*sizes, all_pictures=all_pictures)})
        names = {skill: skill_name(skill, self.config.num_skills) for skill in skills}
        settings |= {"fps": self.fps, "max_episode_steps": self.max_episode_steps}
        settings |= {"cell_grid": self.cell_grid, "angles": self.angles}
        with self.open_eval_envs(len(skills) * len(seeds)) as eval_envs:
            return evaluate_skills(agent or self.agent, eval_envs, names, seeds, **settings)

    def untrained_agent(self) -> DrQAgent:
        """Return the agent as the run made it, before any update."""
        seed_everything(self.config.seed)
        agent = make_agent(self.config, self.agent.arch.obs_shape, self.agent.arch.action_dim)
        agent.skill = self.agent.skill
        return agent


def load(place: Path, device: str | None, *, time_limit: int | None = None) -> LoadedRun:
    """Load an agent from a run's folder, its checkpoint folder, a checkpoint's state or a snapshot.

    Raises UserError if there is no checkpoint, or if it cannot be used.

    Args:
        place: the file or folder.
        device: cuda[:N] or cpu; None chooses one.
        time_limit: frames of an episode that is played; None keeps the run's.
    """
    place = real_run(place)
    folder = place.parent if place.is_file() else place
    run = folder.parent if folder.name in (CHECKPOINT_FOLDER, SNAPSHOT_FOLDER) else folder
    try:
        if not run.is_dir():
            raise UserError(f"{run} is neither a run's folder nor a checkpoint; name one")
        state = load_file(place) if place.is_file() else read_networks(run)
        if state is None:
            raise UserError(f"{run} has no checkpoint; {name_a_run(run)}, or wait for its first evaluation")
        config = checked_config(state["flags"], f"{place}: the checkpoint")
        flags = dataclasses.asdict(config)
        config = dataclasses.replace(config, device=choose_device(device), cuda_graphs=False)
        _check_sizes(config, state["agent"])
        env = _environment_of(config, place)
        if time_limit not in (None, env.frame_limit):
            env.close()
            flags["time_limit"] = time_limit
            config = _with_time_limit(config, time_limit)
            env = _environment_of(config, place)
        with closing(env), out_of_memory_is_an_error("the networks", "end other programs, or name another --device"):
            agent = make_agent(config, env.observation_space.shape, env.action_space.shape[0])
            agent.load_weights(state["agent"])
            if not agent.is_finite():
                raise UserError(f"{place}: the checkpoint has weights that are not finite; name another one")
        counters, label = read_counters(state), Path(*run.relative_to(run.anchor).parts[-3:])
        warn_of_cpu(device, config.device)
        return LoadedRun(
            config=config,
            agent=agent,
            frame=counters["frames_before"] + counters["step"] * config.action_repeat,
            label=label,
            source=label / place.relative_to(run) if place.is_file() else label,
            flags=flags,
            fps=env.metadata["render_fps"],
            max_episode_steps=env.max_episode_steps or 1,
            cell_grid=env.cell_grid,
            angles=env.angles,
        )
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except RenderingError:
        raise
    except INVALID_STATE as error:
        raise UserError(f"{place}: the checkpoint does not fit this version of the program") from error


def _environment_of(config: Config, place: Path) -> PixelEnv:
    """Return the environment of a stored config. Raises UserError, which names the file or folder that has it."""
    try:
        return make_environment(config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _with_time_limit(config: Config, time_limit: int) -> Config:
    """Return the config with another time limit. No replay buffer is made, so its capacity is no limit."""
    if time_limit < config.action_repeat:
        least = f"{config.action_repeat}, the run's action repeat"
        raise UserError(f"--time_limit must be at least {least}; got {time_limit}")
    capacity = max(config.replay_buffer_capacity, time_limit)
    return dataclasses.replace(config, time_limit=time_limit, replay_buffer_capacity=capacity)


def _check_sizes(config: Config, agent: Mapping[str, Any]) -> None:
    """Raise ValueError unless the weights and the skill of an agent fit the config, as far as that shows in advance.

    To build an agent of a damaged size could take all memory.
    """
    tensors = [tensor for module in agent["modules"].values() for tensor in module.values()]
    stored = sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in tensors)
    depth, width = config.hidden_depth, config.hidden_dim
    layers = max(depth - 1, 0) * width**2 + depth + config.encoder_feature_dim
    members = config.discriminator_ensemble if config.learns_skills else 1
    others = (config.image_size**2, config.frame_stack, width, config.num_skills)
    if max(layers * members, *others, config.skill_embedding_dim if config.num_skills else 0) > stored:
        raise ValueError("the networks have other sizes")
    lowest = 0 if config.num_skills and not config.learns_skills else NO_SKILL
    if type(agent["skill"]) is not int or not lowest <= agent["skill"] < max(config.num_skills, 1):
        raise ValueError("there is no such skill")
