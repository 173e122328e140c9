"""What only a CUDA device can show: the graphs compute what the eager path computes. Skipped without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle import ACTION_DIM, OBS_SHAPE, random_batch, small_diayn, small_drq

import runs
from drq import DrQAgent
from replay_buffer import ReplayBuffer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def same_sums(deterministic: None) -> None:
    """Or Adam makes a step of another sign of a gradient next to zero that was summed in another order."""
    runs.make_deterministic()


def make_agent(num_skills: int, graphs: bool, **settings: Any) -> DrQAgent:
    agent = (small_diayn if num_skills else small_drq)(device="cuda", **settings)
    if graphs:
        agent.use_cuda_graphs()
    return agent


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("num_skills", "settings"),
    [
        (0, {}),
        (4, {"discriminator_encoder": "shared"}),
        (4, {"discriminator_encoder": "separate"}),
        (4, {"discriminator_encoder": "separate", "skill_embedding_dim": 0}),
    ],
)
def test_graphs_equal_eager(num_skills: int, settings: dict[str, Any], precision: str, first: int) -> None:
    """Same seeds and batches: all that learning changes, metrics and newest gradients, after even and odd updates."""
    eager, graphed = (make_agent(num_skills, graphs, precision=precision, **settings) for graphs in (False, True))
    eager.num_updates = graphed.num_updates = first
    for update in range(6):
        batch = random_batch(num_skills=num_skills, seed=update, device="cuda")
        expected = eager.update(batch)
        metrics = graphed.update(batch)
        assert metrics.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=1e-5)
    expected, state = eager.state_dict(), graphed.state_dict()
    for part in ("modules", "optimizers", "log_alpha", "generator", "num_updates"):
        torch.testing.assert_close(state[part], expected[part], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(graphed.histograms()), dict(eager.histograms()), rtol=1e-4, atol=1e-5)


def test_acting_from_a_graph() -> None:
    eager, graphed = (make_agent(4, graphs, discriminator_encoder="shared") for graphs in (False, True))
    obs = random_batch(5, num_skills=4, device="cpu").obs.numpy()
    for sample in (True, False, True):
        for row in obs:
            action = eager.act(row, 2, sample=sample)
            np.testing.assert_allclose(graphed.act(row, 2, sample=sample), action, atol=1e-5)
    for ours, theirs in zip(graphed.assess(obs, np.arange(5) % 4), eager.assess(obs, np.arange(5) % 4), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_frames_on_the_device_give_the_same_batches() -> None:
    """A ring on the device, and one on the host, sample the same transitions."""
    rings = [ReplayBuffer(20, (2, 8, 8), 3, ACTION_DIM, device="cuda", storage=storage) for storage in ("cuda", "cpu")]
    for ring in rings:
        rng = np.random.default_rng(0)
        ring.start_episode(rng.integers(256, size=(*OBS_SHAPE[:1], 8, 8), dtype=np.uint8))
        for _ in range(50):
            obs = rng.integers(256, size=(*OBS_SHAPE[:1], 8, 8), dtype=np.uint8)
            ring.add(rng.normal(size=ACTION_DIM).astype(np.float32), rng.random(), obs, False, 1)
    for ours, theirs in zip(rings[0].sample(16), rings[1].sample(16), strict=True):
        assert ours.is_cuda
        assert torch.equal(ours, theirs)
