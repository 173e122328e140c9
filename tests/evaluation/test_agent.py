"""A trained agent, used from Python."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import evaluation.agent
import train
from envs.renderer import RendererInfo
from errors import RenderingError, UserError
from evaluation.agent import LoadedAgent, load_agent, make_env
from evaluation.load import load
from running.columns import NO_SKILL
from tests.support.fake_env import IMAGE_SIZE
from tests.support.runs import RENDERER, SMALL_RUN

SHAPE = (9, IMAGE_SIZE, IMAGE_SIZE)


@pytest.fixture
def obs() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=SHAPE, dtype=np.uint8)


@pytest.fixture(autouse=True)
def without_renderer(monkeypatch: pytest.MonkeyPatch, fake_envs: object) -> None:
    monkeypatch.setattr(evaluation.agent, "_use_a_renderer", lambda: None)


@pytest.fixture
def agent(pretrained: Path) -> LoadedAgent:
    return load_agent(pretrained, "cpu")


@pytest.fixture
def plain_agent(fake_envs: object, tmp_path: Path) -> LoadedAgent:
    """An agent without skills."""
    assert train.main(shlex.split(f"{SMALL_RUN} --num_skills 0 --work_dir {tmp_path} --run_name drq")) == 0
    return load_agent(tmp_path / "cartpole_swingup" / "drq", "cpu")


def test_what_it_knows(agent: LoadedAgent, pretrained: Path) -> None:
    assert agent.skills() == [0, 1, 2, 3]
    assert (agent.config.num_skills, agent.frame) == (4, 40 * 3)
    assert load_agent(str(pretrained), "cpu").frame == agent.frame


def test_actions_are_those_of_the_evaluation(agent: LoadedAgent, pretrained: Path, obs: np.ndarray) -> None:
    expected = load(pretrained, "cpu").agent.assess(np.stack([obs] * 4), np.arange(4)).action
    actions = np.stack([agent.act(obs, skill) for skill in agent.skills()])
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, expected, atol=1e-6)
    assert len(np.unique(actions)) == actions.size


def test_samples_differ_and_modes_do_not(agent: LoadedAgent, obs: np.ndarray) -> None:
    np.testing.assert_array_equal(agent.act(obs, skill=1), agent.act(obs, skill=1))
    samples = np.stack([agent.act(obs, skill=1, sample=True) for _ in range(2)])
    assert not np.array_equal(samples[0], samples[1])
    assert np.abs(samples).max() <= 1.0


def test_the_discriminators_probabilities(agent: LoadedAgent, obs: np.ndarray) -> None:
    probabilities = agent.discriminate(obs)
    assert (probabilities.shape, probabilities.dtype) == ((4,), np.float32)
    assert probabilities.sum() == pytest.approx(1.0)
    rewards = agent.run.agent.assess(np.stack([obs] * 4), np.arange(4)).intrinsic_reward
    np.testing.assert_allclose(np.log(4 * probabilities), rewards, atol=1e-5)


def test_an_agent_without_skills(plain_agent: LoadedAgent, obs: np.ndarray) -> None:
    assert plain_agent.skills() == [NO_SKILL]
    np.testing.assert_array_equal(plain_agent.act(obs), plain_agent.act(obs, NO_SKILL))
    with pytest.raises(ValueError, match="no discriminator"):
        plain_agent.discriminate(obs)
    with pytest.raises(ValueError, match="skill must be -1 or left out; got 0"):
        plain_agent.act(obs, 0)


@pytest.mark.parametrize("skill", [None, 4, -1, 1.0, "1"])
def test_a_skill_that_does_not_exist(agent: LoadedAgent, obs: np.ndarray, skill: Any) -> None:
    with pytest.raises(ValueError, match=f"skill must be one of 0 to 3; got {skill!r}"):
        agent.act(obs, skill)


def test_a_skill_may_be_of_numpy(agent: LoadedAgent, obs: np.ndarray) -> None:
    np.testing.assert_array_equal(agent.act(obs, np.arange(4)[2]), agent.act(obs, 2))


WRONG: dict[str, Any] = {
    "float64": np.zeros(SHAPE),
    "a single frame": np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.uint8),
    "channels last": np.zeros((*SHAPE[1:], 9), np.uint8),
    "a batch": np.zeros((1, *SHAPE), np.uint8),
    "a list": [0],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_observation(agent: LoadedAgent, case: str) -> None:
    for use in (lambda obs: agent.act(obs, 0), agent.discriminate):
        with pytest.raises(ValueError, match=r"obs must be an array uint8 \(9, .*make_env"):
            use(WRONG[case])


def test_the_environment_is_the_runs(agent: LoadedAgent) -> None:
    env = make_env(agent)
    obs, _ = env.reset(seed=0)
    obs, *_ = env.step(agent.act(obs, 0))
    assert obs.shape == SHAPE
    assert make_env(agent) is not env


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run's folder nor a checkpoint"):
        load_agent(tmp_path / "nowhere")


# -- the renderer ------------------------------------------------------------------------------------------------------


class Machine:
    """Chooses and tries renderers, of which only `works` draws."""

    works = "egl"

    def __init__(self) -> None:
        self.chosen = 0

    def choose(self) -> RendererInfo:
        self.chosen += 1
        return RENDERER

    def probe(self, backend: str) -> RendererInfo:
        if backend != self.works:
            raise RenderingError(f"{backend}: no picture")
        return RendererInfo(backend, "a fake renderer")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(evaluation.agent, "choose_renderer", machine.choose)
    monkeypatch.setattr(evaluation.agent, "probe", machine.probe)
    return machine


use_a_renderer = evaluation.agent._use_a_renderer.__wrapped__


def test_a_renderer_is_chosen_before_dm_control_is_imported(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    use_a_renderer()
    assert machine.chosen == 1


@pytest.mark.parametrize("bound", ["egl", "glfw", None])
def test_dm_control_has_bound_one(machine: Machine, monkeypatch: pytest.MonkeyPatch, bound: str | None) -> None:
    """What works is used; what does not is named, with what to do."""
    monkeypatch.setitem(sys.modules, "dm_control._render", SimpleNamespace(BACKEND=bound))
    if bound == machine.works:
        use_a_renderer()
    else:
        with pytest.raises(RenderingError, match=f"bound MUJOCO_GL={bound or 'off'}, which fails .*set MUJOCO_GL"):
            use_a_renderer()
    assert machine.chosen == 0
