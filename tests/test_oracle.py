"""The agents' updates against the plain baseline's: equal weights and inputs give equal losses and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from augmentations import RandomShift
from drq import DrQAgent, Views
from replay_buffer import Batch, ReplayBuffer
from tests.support.oracle import (
    ACTION_DIM,
    METRICS,
    OBS_SHAPE,
    SMALL,
    SMALL_DIAYN,
    FullStackReplay,
    OracleAgent,
    random_batch,
    small_diayn,
    small_drq,
)

UPDATES = 5
NUM_SKILLS = SMALL_DIAYN["num_skills"]
DRQ: dict[str, dict[str, Any]] = {
    "drq, learned temperature": {},
    "drq, fixed temperature": {"learn_temperature": False},
    "drq, other settings": {
        "actor_update_frequency": 1,
        "critic_target_update_frequency": 3,
        "critic_tau": 0.2,
        "discount": 0.8,
        "lr": 3e-3,
        "init_temperature": 0.7,
        "log_std_bounds": (-5.0, 1.0),
        "hidden_depth": 3,
        "extrinsic_reward_coeff": 2.0,
    },
}
DIAYN: dict[str, dict[str, Any]] = {
    f"diayn, {encoder} encoder, {temperature} temperature, {code}": {
        **SMALL_DIAYN,
        "discriminator_encoder": encoder,
        "learn_temperature": temperature == "learned",
        "skill_embedding_dim": dim,
        "lr_discriminator": 3e-3,
        "extrinsic_reward_coeff": 0.5,
        "diayn_intrinsic_reward_coeff": 0.3,
    }
    for encoder in ("shared", "separate")
    for temperature in ("learned", "fixed")
    for code, dim in (("embedding", 3), ("one-hot", 0))
}
CASES = DRQ | DIAYN


def agent_and_oracle(settings: dict[str, Any]) -> tuple[DrQAgent, OracleAgent]:
    """Return an agent and the oracle with equal weights. The target critic differs from the critic."""
    agent = small_diayn(**settings) if "num_skills" in settings else small_drq(**settings)
    with torch.no_grad():
        for parameter in agent.critic_target.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return agent, OracleAgent(OBS_SHAPE, ACTION_DIM, **{**SMALL, **settings}).load(agent)


def make_double(agent: DrQAgent, oracle: OracleAgent) -> None:
    """Convert both to float64, except that images are divided by 255 in float32."""
    for module in (*agent.modules().values(), agent.critic_target):
        module.double()
        encoder = getattr(module, "encoder", None)
        if encoder is not None:
            encoder.scale = lambda images, scale=encoder.scale: scale(images).double()
    agent.log_alpha.data = agent.log_alpha.data.double()
    oracle.double()


def double(views: Views) -> Views:
    return Views._make(
        value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value for value in views
    )


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def update_both(
    agent: DrQAgent, oracle: OracleAgent, batch: Batch, views: Views, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, float]]:
    """Update both on the same views and return the metrics of both, without those that the oracle never has."""
    monkeypatch.setattr(agent, "make_views", lambda _: views)
    ours = {name: float(value) for name, value in agent.update(batch).items() if name in METRICS}
    monkeypatch.undo()
    return ours, {"batch_reward": float(batch.reward.mean()), **oracle.learn(views)}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_updates_agree_in_double_precision(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five updates, even and odd, each on another batch.

    The tolerance 1e-7 is the last bit of a float32. It is needed if a feature is so close to the middle of two float32
    values that the order of a sum decides how it is rounded. Otherwise both agree to 1e-13.
    """
    agent, oracle = agent_and_oracle(settings)
    make_double(agent, oracle)
    for update in range(UPDATES):
        batch = random_batch(num_skills=settings.get("num_skills", 0), seed=update)
        ours, theirs = update_both(agent, oracle, batch, double(agent.make_views(batch)), monkeypatch)
        assert ours == pytest.approx(theirs, rel=1e-7)
        weights = oracle.translate(agent)
        assert all(value.dtype == torch.float64 for value in weights.values())
        torch.testing.assert_close(weights, dict(oracle.state_dict()), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_updates_agree_in_single_precision(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision that the agents use.

    Losses before the first step agree to 1e-5 and later ones to 2 %. The final weights differ by less than 20 % of the
    distance that they moved. Adam divides a gradient by its own size: if it is almost 0, rounding decides the sign of a
    step of size lr, and everything after the first step depends on that.
    """
    agent, oracle = agent_and_oracle(settings)
    start = flat(oracle.translate(agent))
    batch = random_batch(num_skills=settings.get("num_skills", 0))
    views = agent.make_views(batch)
    for update in range(UPDATES):
        ours, theirs = update_both(agent, oracle, batch, views, monkeypatch)
        assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-3)
        if update == 0:
            first = ["critic_loss"] + ["discriminator_loss"] * ("num_skills" in settings)
            assert [ours[name] for name in first] == pytest.approx([theirs[name] for name in first], rel=1e-5)
    weights, expected = flat(oracle.translate(agent)), flat(dict(oracle.state_dict()))
    assert (weights - expected).norm() < 0.2 * (expected - start).norm()


def test_oracle_update_equals_learn_on_its_own_views() -> None:
    """Without augmentation, `update` is `learn` on two copies of the batch and the noise that it draws."""
    settings = {**SMALL_DIAYN, "extrinsic_reward_coeff": 0.5}
    agent, updating = agent_and_oracle(settings)
    _, learning = agent_and_oracle(settings)
    updating.augment = torch.nn.Sequential()
    batch = random_batch(num_skills=NUM_SKILLS)
    rows = len(batch.reward)

    torch.manual_seed(1)
    updated = updating.update(batch)
    torch.manual_seed(1)
    noise = torch.randn(3 * rows, ACTION_DIM)
    views = Views(
        obs=batch.obs.repeat(2, 1, 1, 1),
        action=batch.action,
        reward=batch.reward,
        next_obs=batch.next_obs.repeat(2, 1, 1, 1),
        terminated=batch.terminated,
        skill=batch.skill,
        next_noise=noise[: 2 * rows],
        noise=noise[2 * rows :],
    )
    assert updated == {"batch_reward": batch.reward.mean().item(), **learning.learn(views)}
    torch.testing.assert_close(dict(updating.state_dict()), dict(learning.state_dict()), rtol=0, atol=0)
    before = updating.translate(agent)
    assert not any(
        torch.equal(value, before[name]) for name, value in updating.named_parameters() if name != "log_alpha"
    )


def test_kornia_augmentation_equals_random_shift() -> None:
    """Every image that the oracle augments equals one of the 81 crops of `RandomShift`, and the offsets vary."""
    oracle = OracleAgent(OBS_SHAPE, ACTION_DIM, **SMALL)
    images = random_batch(size=16).obs
    augmented = oracle.augment(images.float())
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    shift = RandomShift(4, torch.Generator())
    found = []
    for image, view in zip(images, augmented, strict=True):
        crops = shift.crop(image.expand(81, *image.shape), offsets)
        matches = (crops == view).flatten(1).all(dim=1).nonzero().flatten().tolist()
        assert len(matches) == 1
        found += matches
    assert len(set(found)) > 8


def test_full_stack_replay_equals_the_replay_buffer(fake_env: Any) -> None:
    """The same transitions and seed give the same batches; a small ring keeps the newest transitions."""
    env = fake_env(episode_length=7, action_dim=ACTION_DIM)
    obs_shape = env.observation_space.shape
    ours = ReplayBuffer(100, (3, *obs_shape[1:]), 3, ACTION_DIM, seed=5)
    full = FullStackReplay(100, obs_shape, ACTION_DIM, seed=5)
    newest = FullStackReplay(10, obs_shape, ACTION_DIM)
    rng = np.random.default_rng(0)
    for episode in range(4):
        obs, _ = env.reset(seed=episode)
        ours.start_episode(obs)
        done = False
        while not done:
            action = rng.uniform(-1, 1, ACTION_DIM).astype(np.float32)
            next_obs, reward, terminated, done, _ = env.step(action)
            ours.add(action, reward, next_obs, terminated, episode)
            full.add(obs, action, reward, next_obs, terminated, episode)
            newest.add(obs, action, full.added, next_obs, terminated, episode)
            obs = next_obs
    assert len(full) == len(ours) == 28
    assert all(torch.equal(one, other) for one, other in zip(full.sample(32), ours.sample(32), strict=True))
    assert len(newest) == 10
    assert set(newest.sample(200).reward.tolist()) == set(range(19, 29))
