"""CUDA graphs compute what direct calls compute: emulated on the CPU, and on a CUDA device if there is one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from cuda_graphs import WARM_UP_RUNS, CudaGraphs
from drq import DrQAgent
from tests.support.emulated_cuda import EmulatedCuda, EmulatedGraph, emulate_cuda_graphs
from tests.support.oracle import random_batch, small_diayn, small_drq
from utils import make_adam

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, deterministic: None) -> str:
    """The CPU with emulated graphs, and a CUDA device with real ones and deterministic sums."""
    if request.param == "cpu":
        emulate_cuda_graphs(monkeypatch)
    else:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    return request.param


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> EmulatedCuda:
    return emulate_cuda_graphs(monkeypatch)


def make_agent(num_skills: int, *, graphs: bool, **settings: Any) -> DrQAgent:
    agent = (small_diayn if num_skills else small_drq)(**settings)
    if graphs:
        agent.use_cuda_graphs()
    return agent


def assert_equal(actual: Any, expected: Any, device: str) -> None:
    """Bit for bit in the emulation; a CUDA device may choose other kernels in a capture."""
    rtol, atol = (0.0, 0.0) if device == "cpu" else (1e-4, 1e-5)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def learned(agent: DrQAgent) -> dict[str, Any]:
    state = agent.state_dict()
    return {name: state[name] for name in ("modules", "optimizers", "log_alpha", "generator", "num_updates")}


# -- agents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("num_skills", "settings"),
    [
        (0, {}),
        (0, {"actor_update_frequency": 3}),
        (4, {"discriminator_encoder": "shared"}),
        (4, {"discriminator_encoder": "separate"}),
        (4, {"discriminator_encoder": "separate", "skill_embedding_dim": 0}),
        (4, {"discriminator_ensemble": 2, "disdain_coeff": 0.5, "intrinsic_reward_from": "before"}),
    ],
)
def test_updates_from_graphs_equal_direct_updates(
    num_skills: int, settings: dict[str, Any], precision: str, first: int, device: str
) -> None:
    """Metrics, newest gradients and all that learning changes, starting with an even or with an odd update."""
    settings = {**settings, "precision": precision, "device": device}
    direct, graphed = (make_agent(num_skills, graphs=graphs, **settings) for graphs in (False, True))
    direct.num_updates = graphed.num_updates = first
    for update in range(6):
        batch = random_batch(num_skills=num_skills, seed=update, device=device)
        assert_equal(graphed.update(batch), direct.update(batch), device)
        assert_equal(dict(graphed.histograms()), dict(direct.histograms()), device)
    assert_equal(learned(graphed), learned(direct), device)


@pytest.mark.parametrize("intrinsic_reward_from", ["before", "after"])
@pytest.mark.parametrize("discriminator_encoder", ["shared", "separate"])
def test_updates_with_a_batch_for_the_discriminator(
    discriminator_encoder: str, intrinsic_reward_from: str, device: str
) -> None:
    settings = {"discriminator_encoder": discriminator_encoder, "intrinsic_reward_from": intrinsic_reward_from}
    direct, graphed = (make_agent(4, graphs=graphs, device=device, **settings) for graphs in (False, True))
    for update in range(4):
        batch, recent = (random_batch(num_skills=4, seed=seed, device=device) for seed in (update, 10 + update))
        assert_equal(graphed.update(batch, recent), direct.update(batch, recent), device)
    assert_equal(learned(graphed), learned(direct), device)


def test_actions_and_assessments_from_graphs_equal_direct_ones(device: str) -> None:
    """Also between updates, and for numbers of rows that change."""
    direct, graphed = (
        make_agent(4, graphs=graphs, discriminator_encoder="shared", device=device) for graphs in (False, True)
    )
    obs = random_batch(5).obs.numpy()
    for sample, rows in ((True, 5), (False, 3), (True, 5)):
        for row in obs:
            action = direct.act(row, 2, sample=sample)
            np.testing.assert_allclose(graphed.act(row, 2, sample=sample), action, atol=1e-5)
        skill = np.arange(rows) % 4
        for actual, expected in zip(graphed.assess(obs[:rows], skill), direct.assess(obs[:rows], skill), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-5)
        for agent in (direct, graphed):
            agent.update(random_batch(num_skills=4, device=device))


def test_a_failed_recording_says_why(emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a failed capture raises an error of its own, which says nothing."""

    @contextlib.contextmanager
    def graph(_: EmulatedGraph, pool: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    calls = 0

    def function(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > WARM_UP_RUNS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        CudaGraphs([], [])(function, torch.zeros(1))


@pytest.mark.parametrize("num_skills", [0, 4])
def test_load_state_dict_after_recording(num_skills: int, device: str) -> None:
    """The graphs continue with the loaded weights and Adam moments, not with those they were recorded with."""
    other = make_agent(num_skills, graphs=False, device=device, seed=9)
    for update in range(5):
        other.update(random_batch(num_skills=num_skills, seed=50 + update, device=device))
    state = copy.deepcopy(other.state_dict())
    direct, graphed = (make_agent(num_skills, graphs=graphs, device=device) for graphs in (False, True))
    for agent in (direct, graphed):
        for update in range(2):
            agent.update(random_batch(num_skills=num_skills, seed=update, device=device))
        agent.load_state_dict(state)
        for update in range(4):
            agent.update(random_batch(num_skills=num_skills, seed=2 + update, device=device))
    assert_equal(learned(graphed), learned(direct), device)


def test_load_state_dict_of_a_new_agent_after_recording(device: str) -> None:
    """A state from before the first update has no Adam moments: those of the graphs return to zero."""
    state = copy.deepcopy(make_agent(0, graphs=False, device=device, seed=9).state_dict())
    direct, graphed = (make_agent(0, graphs=graphs, device=device) for graphs in (False, True))
    graphed.update(random_batch(device=device))
    for agent in (direct, graphed):
        agent.load_state_dict(state)
        agent.update(random_batch(device=device))
    assert_equal(learned(graphed), learned(direct), device)


def test_load_pretrained_after_recording(device: str) -> None:
    state = make_agent(4, graphs=False, device=device, seed=5).state_dict()
    direct, graphed = (make_agent(4, graphs=graphs, device=device) for graphs in (False, True))
    obs = random_batch(1).obs[0].numpy()
    actions = []
    for agent in (direct, graphed):
        agent.act(obs, 1, sample=False)
        agent.load_pretrained(state, critic=True)
        actions.append(agent.act(obs, 1, sample=False))
    np.testing.assert_allclose(actions[1], actions[0], atol=1e-5)


def test_one_recording_per_function_kind_and_shape(emulated: EmulatedCuda) -> None:
    """Even and odd updates, two batch sizes, one action, and assessments of 4 and of 5 observations."""
    agent = make_agent(0, graphs=True)
    obs = random_batch(5).obs.numpy()
    for size in (8, 8, 5, 5, 8, 8):
        agent.update(random_batch(size))
        agent.act(obs[0], -1, sample=True)
        agent.act(obs[0], -1, sample=False)
        agent.assess(obs, np.full(5, -1))
        agent.assess(obs[:4], np.full(4, -1))
    assert emulated.captures == 2 * 2 + 1 + 2


def test_recording_changes_nothing(emulated: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the replay that follows it, an update leaves weights and existing Adam moments as they were."""
    agent = make_agent(4, graphs=True)
    monkeypatch.setattr(EmulatedGraph, "replay", lambda graph: None)
    weights = copy.deepcopy({name: module.state_dict() for name, module in agent.modules().items()})
    agent.update(random_batch(num_skills=4))
    assert_equal({name: module.state_dict() for name, module in agent.modules().items()}, weights, "cpu")
    moments = [v for o in agent.optimizers().values() for state in o.state.values() for v in state.values()]
    assert moments
    assert not any(value.any() for value in moments)

    for value in moments:
        value.fill_(0.5)
    agent.update(random_batch(num_skills=4))
    assert_equal({name: module.state_dict() for name, module in agent.modules().items()}, weights, "cpu")
    assert all((value == 0.5).all() for value in moments)


# -- any function ------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_a_replay_overwrites_the_outputs_of_the_one_before(device: str) -> None:
    def add(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": x + y}

    launch = CudaGraphs([], [])
    one, two = (torch.full((3,), value, device=device) for value in (1.0, 2.0))
    first = launch(add, one, one)["sum"]
    assert first.tolist() == [2.0] * 3
    second = launch(add, one, two)["sum"]
    assert second is first
    assert first.tolist() == [3.0] * 3
    assert one.tolist() == [1.0] * 3, "the inputs were copied"


def test_outputs_outlast_replays_of_other_recordings(device: str) -> None:
    """All recordings share one memory pool."""

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + x

    def square(x: torch.Tensor) -> torch.Tensor:
        return (x + 0.0).square()

    launch, three = CudaGraphs([], []), torch.full((3,), 3.0, device=device)
    launch(square, three)
    total = launch(add, three)
    product = launch(square, three)
    assert launch(add, three) is total
    assert product.tolist() == [9.0] * 3
    assert total.tolist() == [6.0] * 3


def test_gradients_outlast_replays_of_other_recordings(device: str) -> None:
    """They are logged after later actions and evaluations, which are recordings too."""
    agent = make_agent(4, graphs=True, device=device)
    batch = random_batch(num_skills=4, device=device)
    agent.update(batch)
    before = copy.deepcopy(dict(agent.histograms()))
    obs = batch.obs.cpu().numpy()
    agent.act(obs[0], 1, sample=True)
    agent.assess(obs, np.arange(len(obs)) % 4)
    assert_equal(dict(agent.histograms()), before, "cpu")


def test_gradients_are_those_of_the_newest_replay(device: str) -> None:
    """One kind trains both weights, the other only the first: the second weight then keeps its last gradient."""

    def train(inputs: Pair) -> torch.Tensor:
        loss = inputs.x * inputs.y * first * (second if both else 1.0)
        for optimizer in optimizers[: 2 if both else 1]:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers[: 2 if both else 1]:
            optimizer.step()
        return loss.detach()

    first, second = (torch.tensor(value, device=device, requires_grad=True) for value in (3.0, 5.0))
    optimizers = [make_adam([weight], lr=0.0) for weight in (first, second)]
    launch = CudaGraphs([first, second], optimizers)
    gradients = []
    for both, x, y in ((True, 1.0, 1.0), (False, 2.0, 1.0), (True, 1.0, 2.0), (False, 1.0, 7.0)):
        launch(train, Pair(torch.tensor(x, device=device), torch.tensor(y, device=device)), kind=both)
        gradients.append([float(weight.grad) for weight in (first, second) if weight.grad is not None])
    # Both: d/dfirst = x y second, d/dsecond = x y first, with first = 3 and second = 5. Only the first: x y.
    assert gradients == [[5.0, 3.0], [2.0, 3.0], [10.0, 6.0], [7.0, 6.0]]


def test_an_exception_in_the_function_reaches_the_caller(emulated: EmulatedCuda) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        CudaGraphs([], [])(fail, torch.zeros(1))
    assert emulated.captures == 0
