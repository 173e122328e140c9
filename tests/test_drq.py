"""DrQ: views, actions, losses with given values, which parameters get gradients, and what an update changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from config import Config
from drq import DrQAgent, Metrics, Views
from tests.support.oracle import ACTION_DIM, OBS_SHAPE, random_batch, small_diayn, small_drq


def observation(seed: int = 0) -> np.ndarray:
    return random_batch(size=1, seed=seed).obs[0].numpy()


def parameters(agent: DrQAgent) -> dict[str, torch.Tensor]:
    """Return all parameters of an agent by name, including those of the target critic."""
    networks = {**agent.modules(), "critic_target": agent.critic_target}
    named = {
        f"{network}.{name}": value for network, module in networks.items() for name, value in module.named_parameters()
    }
    return {**named, "log_alpha": agent.log_alpha}


def copies(agent: DrQAgent) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in parameters(agent).items()}


def changed(agent: DrQAgent, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in parameters(agent).items() if not torch.equal(value, before[name])}


def named(agent: DrQAgent, *networks: str) -> set[str]:
    return {name for name in parameters(agent) if name.split(".")[0] in networks}


def with_gradient(agent: DrQAgent) -> set[str]:
    """Return the names of the parameters that have a gradient. Every gradient must have a nonzero element."""
    reached = {name: value.grad for name, value in parameters(agent).items() if value.grad is not None}
    assert all(gradient.any() for gradient in reached.values())
    return set(reached)


def next_features(agent: DrQAgent, views: Views) -> torch.Tensor:
    with torch.no_grad():
        return agent.critic.encoder(views.next_obs)


# -- views -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Config.__dataclass_fields__["augmentation"].metadata["choices"])
def test_agent_learns_with_every_augmentation(name: str) -> None:
    agent = small_drq(augmentation=name)
    before = copies(agent)
    metrics = agent.update(random_batch())
    assert all(value.isfinite() for value in metrics.values())
    assert changed(agent, before) == set(before)


def test_views_are_two_independent_augmentations() -> None:
    """Rows 0 to B - 1 are the first view of each transition, B to 2B - 1 the second; other fields are not repeated."""
    agent, batch = small_drq(), random_batch()
    rows = len(batch.reward)
    views = agent.make_views(batch)
    for images in (views.obs, views.next_obs):
        assert images.shape == (2 * rows, *OBS_SHAPE)
        assert images.dtype == torch.uint8
        assert not torch.equal(images[:rows], images[rows:])
    assert views.next_noise.shape == (2 * rows, ACTION_DIM)
    assert views.noise.shape == (rows, ACTION_DIM)
    assert not torch.equal(views.next_noise[:rows], views.next_noise[rows:])

    plain = small_drq(augmentation="none").make_views(batch)
    assert torch.equal(plain.obs, torch.cat([batch.obs, batch.obs]))
    assert torch.equal(plain.next_obs, torch.cat([batch.next_obs, batch.next_obs]))
    for field in ("action", "reward", "terminated", "skill"):
        assert torch.equal(getattr(plain, field), getattr(batch, field))


def test_all_views_and_noises_differ() -> None:
    """Even if obs and next_obs are the same images: four different views of each, three noises per transition."""
    batch = random_batch()
    batch = batch._replace(next_obs=batch.obs)
    views = small_drq().make_views(batch)
    rows = len(batch.reward)
    images = [images[first : first + rows] for images in (views.obs, views.next_obs) for first in (0, rows)]
    assert not any(torch.equal(one, other) for one, other in combinations(images, 2))
    assert len(torch.cat([views.noise, views.next_noise]).unique(dim=0)) == 3 * rows


def test_image_pad_is_the_largest_shift() -> None:
    """Without padding no image is shifted; with 1 pixel, rows 1 to H - 2 are rows of the original next to them."""
    batch = random_batch()
    assert torch.equal(small_drq(image_pad=0).make_views(batch).obs, torch.cat([batch.obs, batch.obs]))
    view = small_drq(image_pad=1).make_views(batch).obs[0]
    shifts = [batch.obs[0].roll((dy, dx), dims=(1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    inside = (slice(None), slice(1, -1), slice(1, -1))
    assert sum(torch.equal(view[inside], shifted[inside]) for shifted in shifts) == 1


def test_noise_is_standard_normal() -> None:
    noise = small_drq().make_views(random_batch(size=500)).next_noise
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)


# -- acting ------------------------------------------------------------------------------------------------------------


def test_without_skills_the_only_skill_is_minus_1_and_is_not_drawn() -> None:
    agent = small_drq()
    assert agent.skills() == [-1]
    rng = np.random.default_rng(0)
    state = copy.deepcopy(rng.bit_generator.state)
    assert agent.sample_skill(rng, 0) == -1
    assert rng.bit_generator.state == state


def test_deterministic_action_is_the_mode_and_draws_nothing() -> None:
    agent, obs = small_drq(), observation()
    state, global_state = agent.generator.get_state(), torch.get_rng_state()
    with torch.no_grad():
        policy = agent.actor(agent.critic.encoder(torch.from_numpy(obs)[None]), torch.tensor([-1]))
    action = agent.act(obs, -1, sample=False)
    np.testing.assert_array_equal(action, policy.mean.tanh()[0].numpy())
    np.testing.assert_array_equal(action, agent.act(obs, -1, sample=False))
    assert torch.equal(agent.generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_sampled_actions_follow_the_agents_generator() -> None:
    obs = observation()
    agent, twin, other = small_drq(), small_drq(), small_drq()
    other.generator.manual_seed(9)
    global_state = torch.get_rng_state()
    actions = [agent.act(obs, -1, sample=True) for _ in range(2)]
    assert not np.array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions, [twin.act(obs, -1, sample=True) for _ in range(2)])
    assert not np.array_equal(actions[0], other.act(obs, -1, sample=True))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_a_sampled_action_comes_from_the_policy() -> None:
    """It uses the trained encoder, not the target's, and standard normal noise."""
    agent, obs = small_drq(), observation()
    agent.update(random_batch())  # now the encoder and its target differ
    state = agent.generator.get_state()
    action = agent.act(obs, -1, sample=True)
    noise = torch.randn(1, ACTION_DIM, generator=torch.Generator().set_state(state))
    with torch.no_grad():
        policy = agent.actor(agent.critic.encoder(torch.from_numpy(obs)[None]), torch.tensor([-1]))
    np.testing.assert_allclose(action, policy.sample(noise)[0][0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", range(1, 10))
def test_assessment_of_a_row_does_not_depend_on_the_other_rows(rows: int) -> None:
    """Bit for bit. Without skills, intrinsic rewards are 0 and predicted skills -1."""
    agent, obs = small_drq(), random_batch(size=9).obs.numpy()
    everything = agent.assess(obs, np.full(9, -1))
    part = agent.assess(obs[:rows], np.full(rows, -1))
    np.testing.assert_array_equal(part.action, everything.action[:rows])
    assert part.action.shape == (rows, ACTION_DIM)
    assert part.intrinsic_reward.tolist() == [0.0] * rows
    assert part.predicted.tolist() == [-1] * rows
    modes = [agent.act(one, -1, sample=False) for one in obs[:rows]]
    np.testing.assert_allclose(part.action, modes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sample", [False, True])
def test_acting_changes_no_parameter_and_stays_in_range(sample: bool) -> None:
    agent = small_drq(log_std_bounds=(1.0, 2.0))  # standard deviations from e to e^2: tanh saturates
    before = copies(agent)
    actions = [agent.act(observation(seed), -1, sample=sample) for seed in range(50)]
    assert all(action.dtype == np.float32 and action.shape == (ACTION_DIM,) for action in actions)
    assert np.abs(actions).max() <= 1.0
    assert not changed(agent, before)
    assert not with_gradient(agent)


# -- losses with given values ------------------------------------------------------------------------------------------


class FixedPolicy:
    """A policy with given log-probabilities. Its actions are 0."""

    def __init__(self, log_prob: list[float]) -> None:
        self.log_prob = torch.tensor(log_prob)

    def sample(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(noise), self.log_prob


def two_transitions(agent: DrQAgent, terminated: tuple[float, float] = (0.0, 0.0)) -> Views:
    return agent.make_views(random_batch(size=2)._replace(terminated=torch.tensor(terminated)))


def fix_outputs(
    monkeypatch: pytest.MonkeyPatch,
    agent: DrQAgent,
    log_prob: list[float],
    q: dict[str, tuple[list[float], list[float]]],
) -> None:
    """Replace the outputs of the actor and of critics (Q1 and Q2 by name of the network) by constants, one per row."""
    monkeypatch.setattr(agent.actor, "forward", lambda *_: FixedPolicy(log_prob))
    for network, values in q.items():
        outputs = tuple(torch.tensor(value) for value in values)
        monkeypatch.setattr(getattr(agent, network), "forward", lambda *_, outputs=outputs: outputs)


@pytest.mark.parametrize("terminated", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_target_q(terminated: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two transitions with two views each; rows are (view 1: transitions 1, 2; view 2: transitions 1, 2)."""
    alpha, discount = 0.1, 0.9
    agent = small_drq(discount=discount, init_temperature=alpha)
    log_prob = [0.5, -1.0, 1.5, 2.0]
    q1, q2 = [1.0, 2.0, 5.0, 6.0], [3.0, 1.0, 4.0, 9.0]
    smaller_q = [1.0, 1.0, 4.0, 6.0]
    unused = [1e9] * 4
    fix_outputs(monkeypatch, agent, log_prob, {"critic_target": (q1, q2), "critic": (unused, unused)})
    values = [q - alpha * log_pi for q, log_pi in zip(smaller_q, log_prob, strict=True)]
    mean_values = [(values[0] + values[2]) / 2, (values[1] + values[3]) / 2]
    rewards = [1.0, 2.0]
    expected = [
        reward if ended else reward + discount * value
        for reward, ended, value in zip(rewards, terminated, mean_values, strict=True)
    ]

    views = two_transitions(agent, terminated)
    target = agent.target_q(views, torch.tensor(rewards), next_features(agent, views))
    torch.testing.assert_close(target, torch.tensor(expected))
    assert not target.requires_grad


def test_critic_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean squared error to the target for each Q and each view, summed over these four."""
    agent = small_drq()
    target = [1.0, 2.0]
    q1, q2 = [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 4.0]  # the first two values belong to view 1
    q1_errors = (0.0**2 + 0.0**2) / 2 + (2.0**2 + 2.0**2) / 2
    q2_errors = (1.0**2 + 2.0**2) / 2 + (0.0**2 + 2.0**2) / 2
    fix_outputs(monkeypatch, agent, [0.0] * 4, {"critic": (q1, q2)})
    monkeypatch.setattr(agent, "target_q", lambda *_: torch.tensor(target))
    views = two_transitions(agent)
    loss = agent.critic_loss(views, torch.zeros(2), next_features(agent, views))
    assert loss.item() == pytest.approx(q1_errors + q2_errors)


def test_actor_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """mean(alpha log pi - min Q), for the first view only."""
    alpha = 0.2
    agent = small_drq(init_temperature=alpha)
    log_prob = [0.5, -2.0]
    q1, q2 = [2.0, 5.0], [4.0, 3.0]
    fix_outputs(monkeypatch, agent, log_prob, {"critic": (q1, q2)})
    views = two_transitions(agent)
    encoded: list[torch.Tensor] = []
    agent.critic.encoder.register_forward_hook(lambda _, images, features: encoded.extend(images))
    loss, actual_log_prob = agent.actor_loss(views)
    assert loss.item() == pytest.approx(((alpha * 0.5 - 2.0) + (alpha * -2.0 - 3.0)) / 2)
    assert actual_log_prob.tolist() == log_prob
    (images,) = encoded
    assert torch.equal(images, views.obs[:2])


def test_alpha_loss() -> None:
    """alpha * mean(-log pi - target entropy), with target entropy -2 for 2 action dimensions."""
    alpha, target_entropy = 0.1, -2.0
    agent = small_drq(init_temperature=alpha)
    loss = agent.alpha_loss(torch.tensor([-1.0, 3.0]))
    expected = alpha * ((1.0 - target_entropy) + (-3.0 - target_entropy)) / 2
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert agent.log_alpha.grad is not None
    assert agent.log_alpha.grad.item() == pytest.approx(expected), "the derivative of alpha by log alpha is alpha"


# -- which parameters get gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_critic_loss_gives_gradients_to_the_critic_only(make_agent: Callable[..., DrQAgent]) -> None:
    """To all of the critic, including its encoder; not to the target, the actor or the temperature."""
    agent = make_agent(learn_temperature=True)
    views = agent.make_views(random_batch(num_skills=4))
    agent.critic_loss(views, views.reward, agent.critic.encoder(views.next_obs)).backward()
    assert with_gradient(agent) == named(agent, "critic")


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_actor_loss_gives_gradients_to_the_actor_only(make_agent: Callable[..., DrQAgent]) -> None:
    """Not to the critic's encoder, head or Q functions, nor to the temperature. The critic is not left frozen."""
    agent = make_agent(learn_temperature=True)
    loss, log_prob = agent.actor_loss(agent.make_views(random_batch(num_skills=4)))
    loss.backward()
    assert log_prob.shape == (8,)
    assert with_gradient(agent) == named(agent, "actor")
    assert all(parameter.requires_grad for parameter in agent.critic.parameters())


def test_alpha_loss_gives_gradients_to_the_temperature_only() -> None:
    agent = small_drq()
    _, log_prob = agent.actor_loss(agent.make_views(random_batch()))
    assert log_prob.requires_grad
    agent.alpha_loss(log_prob).backward()
    assert with_gradient(agent) == {"log_alpha"}


# -- the update --------------------------------------------------------------------------------------------------------


def test_target_moves_towards_the_critic_after_the_critics_step() -> None:
    agent = small_drq(critic_tau=0.3)
    before = [parameter.clone() for parameter in agent.critic_target.parameters()]
    agent.update(random_batch())
    triples = zip(agent.critic.parameters(), agent.critic_target.parameters(), before, strict=True)
    for online, target, old in triples:
        torch.testing.assert_close(target, 0.3 * online.detach() + 0.7 * old)


@pytest.mark.parametrize(("actor_frequency", "target_frequency"), [(2, 2), (1, 3), (3, 1)])
def test_actor_and_target_are_updated_when_due(actor_frequency: int, target_frequency: int) -> None:
    """The first update steps everything. The actor's metrics are present if actor and temperature are stepped."""
    agent = small_drq(actor_update_frequency=actor_frequency, critic_target_update_frequency=target_frequency)
    for update in range(7):
        before = copies(agent)
        metrics = agent.update(random_batch(seed=update))
        expected = named(agent, "critic")
        actor_metrics = {"actor_loss", "actor_entropy", "actor_target_entropy", "alpha_loss", "alpha_value"}
        if update % actor_frequency == 0:
            expected |= named(agent, "actor", "log_alpha")
        if update % target_frequency == 0:
            expected |= named(agent, "critic_target")
        assert changed(agent, before) == expected
        assert metrics.keys() == {"batch_reward", "critic_loss"} | (
            actor_metrics if update % actor_frequency == 0 else set()
        )


@pytest.mark.parametrize("learn_temperature", [True, False])
def test_update_changes_every_parameter_but_a_fixed_temperature(learn_temperature: bool) -> None:
    agent = small_drq(learn_temperature=learn_temperature, init_temperature=0.3)
    assert agent.log_alpha.requires_grad == learn_temperature
    before = copies(agent)
    metrics = agent.update(random_batch())
    assert changed(agent, before) == set(before) - (set() if learn_temperature else {"log_alpha"})
    assert metrics["alpha_value"].item() == pytest.approx(agent.log_alpha.exp().item())
    if not learn_temperature:
        assert metrics["alpha_value"].item() == pytest.approx(0.3)


@pytest.mark.parametrize(("entropy", "direction"), [(-50.0, 1), (50.0, -1)])
def test_temperature_rises_if_entropy_is_below_its_target_and_falls_if_above(
    entropy: float, direction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = small_drq()
    before = agent.log_alpha.item()
    alpha_loss = agent.alpha_loss
    monkeypatch.setattr(agent, "alpha_loss", lambda log_prob: alpha_loss(torch.full_like(log_prob, -entropy)))
    agent.update(random_batch())
    assert (agent.log_alpha.item() - before) * direction > 0


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_metrics_are_detached_scalars(make_agent: Callable[..., DrQAgent]) -> None:
    metrics = make_agent().update(random_batch(num_skills=4))
    assert len(metrics) >= 7
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert value.isfinite()


@pytest.mark.parametrize("coefficient", [1.0, 3.0])
def test_extrinsic_reward_is_weighted_but_logged_without_weight(
    coefficient: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, batch = small_drq(extrinsic_reward_coeff=coefficient), random_batch()
    update_critic = agent.update_critic
    rewards: list[torch.Tensor] = []

    def spy(views: Views, reward: torch.Tensor, next_features: torch.Tensor) -> Metrics:
        rewards.append(reward)
        return update_critic(views, reward, next_features)

    monkeypatch.setattr(agent, "update_critic", spy)
    metrics = agent.update(batch)
    (reward,) = rewards
    assert torch.equal(reward, coefficient * batch.reward)
    assert metrics["batch_reward"].item() == pytest.approx(batch.reward.mean().item())


def test_actor_target_entropy_is_minus_the_number_of_action_dimensions() -> None:
    assert small_drq().update(random_batch())["actor_target_entropy"].item() == -ACTION_DIM


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_same_seed_gives_the_same_training(make_agent: Callable[..., DrQAgent]) -> None:
    """Bit for bit, and independent of torch's global generator once the weights are initialized."""

    def run(seed: int, global_seed: int) -> dict[str, torch.Tensor]:
        agent = make_agent()
        agent.generator.manual_seed(seed)
        torch.manual_seed(global_seed)
        for update in range(3):
            agent.update(random_batch(num_skills=4, seed=update))
        return copies(agent)

    first, second, third = run(1, 1), run(1, 2), run(2, 1)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["actor.head.0.weight"], third["actor.head.0.weight"])


def test_critic_learns_a_fixed_batch() -> None:
    """If all transitions are terminal, the targets are the rewards, and the critic's loss becomes small."""
    agent, batch = small_drq(augmentation="none", lr=3e-3), random_batch()
    batch = batch._replace(terminated=torch.ones_like(batch.terminated))
    losses = [agent.update(batch)["critic_loss"].item() for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]
