"""Use a trained agent from Python.

from evaluation.agent import load_agent, make_env

agent = load_agent("results/pretrained/cartpole_swingup")
env = make_env(agent)
obs, _ = env.reset(seed=0)
action = agent.act(obs, skill=3)
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np

from config import Config
from diayn import DIAYNAgent
from envs.make import make_environment
from envs.pixel_env import PixelEnv
from envs.renderer import choose_renderer, probe
from errors import RenderingError
from evaluation.load import LoadedRun, load

RENDERER_OF_DM_CONTROL = "dm_control._render"  # binds it when dm_control's physics are imported


class LoadedAgent:
    """A trained agent that acts.

    `obs` is always one observation as the environment of `make_env` returns it, uint8 (C, H, W): `frame_stack` RGB
    frames, oldest first. Methods raise ValueError for another shape or dtype, or for a skill that does not exist.
    """

    def __init__(self, run: LoadedRun) -> None:
        self.run = run  # the same, for the functions of `evaluation`

    @property
    def config(self) -> Config:
        """The flags of the run."""
        return self.run.config

    @property
    def frame(self) -> int:
        """How many frames the agent was trained for."""
        return self.run.frame

    def skills(self) -> list[int]:
        """Return the skills, from 0; [-1] without skills, and one skill after fine-tuning."""
        return self.run.agent.skills()

    def act(self, obs: np.ndarray, skill: int | None = None, *, sample: bool = False) -> np.ndarray:
        """Return an action, float32 (action_dim,) in [-1, 1]: the policy's mode, or a sample.

        `skill` may be left out if there is only one.
        """
        return self.run.agent.act(self._checked(obs), self._known(skill), sample=sample)

    def discriminate(self, obs: np.ndarray) -> np.ndarray:
        """Return the discriminator's probability of each skill for having led to `obs`, float32 (num_skills,).

        Raises ValueError if there is no discriminator: without skills, or after fine-tuning.
        """
        agent = self.run.agent
        if not isinstance(agent, DIAYNAgent):
            raise ValueError("this agent has no discriminator: it was trained without skills, or fine-tuned")
        return np.exp(agent.log_likelihood(self._checked(obs)[None])[0])

    def _checked(self, obs: np.ndarray) -> np.ndarray:
        """Return `obs` if it is an observation."""
        shape = self.run.agent.arch.obs_shape
        found = f"{obs.dtype} {obs.shape}" if isinstance(obs, np.ndarray) else type(obs).__name__
        if found != f"uint8 {shape}":
            raise ValueError(f"obs must be an array uint8 {shape}, as an environment of make_env gives it; got {found}")
        return obs

    def _known(self, skill: int | None) -> int:
        """Return the skill if it exists, or the only one for None."""
        skills = self.skills()
        if skill is None and len(skills) == 1:
            return skills[0]
        if not isinstance(skill, (int, np.integer)) or skill not in skills:
            known = f"one of {skills[0]} to {skills[-1]}" if len(skills) > 1 else f"{skills[0]} or left out"
            raise ValueError(f"skill must be {known}; got {skill!r}")
        return int(skill)


def load_agent(place: str | Path, device: str | None = None) -> LoadedAgent:
    """Load an agent from a run's folder, its checkpoint folder, a checkpoint's state or a snapshot.

    Args:
        place: the file or folder.
        device: cuda, cuda:N or cpu; None chooses one.

    Raises:
        UserError: there is no checkpoint, or it or the device cannot be used.
        RenderingError: no OpenGL renderer works, or dm_control was imported before and bound one that does not.
    """
    _use_a_renderer()
    return LoadedAgent(load(Path(place), device))


def make_env(agent: LoadedAgent) -> PixelEnv:
    """Return a new environment of the kind that the agent was trained on, with Gymnasium's interface."""
    return make_environment(agent.config)


@functools.cache
def _use_a_renderer() -> None:
    """Choose the renderer. If dm_control has been imported it has bound one, which must work."""
    bound = sys.modules.get(RENDERER_OF_DM_CONTROL)
    if bound is None:
        choose_renderer()
        return
    backend = bound.BACKEND or "off"
    try:
        probe(backend)
    except RenderingError as error:
        raise RenderingError(
            f"dm_control was imported before load_agent and bound MUJOCO_GL={backend}, which fails [{error}]; "
            "call load_agent before that import, or set MUJOCO_GL in the environment of Python"
        ) from error
