"""DrQ's parts and its update: augmentations, networks, losses by hand, who gets gradient, and what changes when."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import ACTION_DIM, OBS_SHAPE, random_batch, small_diayn, small_drq
from torch import nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from config import Config
from drq import DrQAgent, Encoder, RandomShift, SquashedGaussian, Views, make_augmentation
from utils import frozen, soft_update

PAD = 4


def random_shift(pad: int = PAD, seed: int = 0) -> RandomShift:
    return RandomShift(pad, torch.Generator().manual_seed(seed))


def observation(seed: int = 0) -> np.ndarray:
    return random_batch(size=1, seed=seed).obs[0].numpy()


def parameters(agent: DrQAgent) -> dict[str, torch.Tensor]:
    """Everything the agent holds that could be trained, by name."""
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
    """The parameters that a backward pass reached; none of them may have got nothing but zeros."""
    reached = {name: value.grad for name, value in parameters(agent).items() if value.grad is not None}
    assert all(gradient.any() for gradient in reached.values())
    return set(reached)


def next_features(agent: DrQAgent, views: Views) -> torch.Tensor:
    with torch.no_grad():
        return agent.critic.encoder(views.next_obs)


# -- augmentations -----------------------------------------------------------------------------------------------------


def test_random_shift_is_replicate_pad_and_crop_at_every_offset() -> None:
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    images = random_batch(size=len(offsets)).obs
    padded = F.pad(images.float(), (PAD, PAD, PAD, PAD), mode="replicate")
    _, height, width = OBS_SHAPE
    pairs = zip(padded, offsets.tolist(), strict=True)
    expected = torch.stack([image[:, dy : dy + height, dx : dx + width] for image, (dy, dx) in pairs])
    shifted = random_shift().crop(images, offsets)
    assert shifted.dtype == torch.uint8
    assert shifted.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(shifted.float(), expected)


def test_random_shift_draws_one_offset_per_image_over_the_whole_range() -> None:
    """A pixel that holds its own position tells, from the middle of the shifted image, what the offset was."""
    length = 16
    position = torch.arange(length * length, dtype=torch.uint8).view(1, 1, length, length)
    images = position.expand(3000, 3, length, length)
    shifted = random_shift()(images)
    assert shifted.shape == images.shape
    assert torch.equal(shifted, shifted[:, :1].expand_as(shifted)), "channels moved apart"
    middle = shifted[:, 0, 8, 8].long()
    dy, dx = middle // length - 8, middle % length - 8
    offsets, counts = torch.stack([dy, dx]).unique(dim=1, return_counts=True)
    assert offsets.shape == (2, 81)
    assert offsets.min() == -PAD
    assert offsets.max() == PAD
    expected = len(images) / 81
    assert ((counts - expected).square() / expected).sum() < 124.8  # chi-square, 80 degrees of freedom, p = 0.001


def test_random_shift_without_padding_changes_nothing() -> None:
    images = random_batch().obs
    assert torch.equal(random_shift(pad=0)(images), images)


def test_random_shift_follows_its_generator_only() -> None:
    images = random_batch().obs
    torch.manual_seed(0)
    first = random_shift(seed=3)(images)
    torch.manual_seed(1)
    assert torch.equal(random_shift(seed=3)(images), first)
    assert not torch.equal(random_shift(seed=4)(images), first)


def one_factor_near_1(image: torch.Tensor, view: torch.Tensor) -> bool:
    """One factor for the whole image, from 0.9 to 1.1: 5 % noise, clamped at two standard deviations."""
    factor = view / image
    return bool((factor - factor.mean()).abs().max() < 1e-5 and (factor - 1.0).abs().max() < 0.1 + 1e-5)


def middle_stays(image: torch.Tensor, view: torch.Tensor) -> bool:
    middle = (slice(None), slice(11, 13), slice(13, 15))
    return bool((view[middle] - image[middle]).abs().max() < 64)


EXPECTED_CHANGE: dict[str, Callable[[torch.Tensor, torch.Tensor], bool]] = {
    "hflip": lambda image, view: torch.equal(view, image.flip(2)),
    "vflip": lambda image, view: torch.equal(view, image.flip(1)),
    "cutout": lambda image, view: bool(((view == image) | (view == 0)).all()),
    "rotation": middle_stays,
    "intensity": one_factor_near_1,
}


@pytest.mark.parametrize("name", EXPECTED_CHANGE)
def test_kornia_augmentation(name: str) -> None:
    """Shape and range stay, some images change, and those in the way that the name says."""
    torch.manual_seed(0)
    images = random_batch(size=64).obs.clamp(min=1)
    augmented = make_augmentation(name, PAD, torch.Generator())(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.float32
    assert augmented.min() >= 0
    assert augmented.max() <= (281 if name == "intensity" else 255)
    pairs = list(zip(images.float(), augmented, strict=True))
    different = [(image, view) for image, view in pairs if not torch.equal(image, view)]
    assert different
    assert len(different) < len(pairs) or name in ("rotation", "intensity")
    assert all(EXPECTED_CHANGE[name](image, view) for image, view in different)


@pytest.mark.parametrize(("name", "share"), [("cutout", 0.5), ("hflip", 0.1), ("vflip", 0.1)])
def test_share_of_images_that_kornia_changes(name: str, share: float) -> None:
    """The paper's settings (appendix E)."""
    torch.manual_seed(0)
    images = torch.randint(1, 256, (1000, 3, 8, 8))
    different = (make_augmentation(name, PAD, torch.Generator())(images) != images).flatten(1).any(dim=1)
    assert float(different.float().mean()) == pytest.approx(share, abs=0.05)


def test_angles_and_intensities_are_each_images_own() -> None:
    """Angles uniform within 5 degrees; factors 1 + 0.05 N(0, 1)."""
    torch.manual_seed(0)
    bright = torch.full((1000, 3, 8, 8), 100.0)
    factors = make_augmentation("intensity", PAD, torch.Generator())(bright)[:, 0, 0, 0] / 100
    assert float(factors.std()) == pytest.approx(0.05, rel=0.15)
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.01)

    ramp = torch.arange(33.0).expand(1000, 1, 33, 33)  # turned, its middle column rises by the angle's sine a row
    middle = make_augmentation("rotation", PAD, torch.Generator())(ramp)[:, 0, :, 16]
    angles = torch.rad2deg(torch.asin((middle[:, 24] - middle[:, 8]).abs() / 16))
    assert 4.5 < float(angles.max()) < 5.1
    assert float(angles.mean()) == pytest.approx(2.5, abs=0.3)


def test_augmentation_none_is_the_identity() -> None:
    images = random_batch().obs
    assert torch.equal(make_augmentation("none", PAD, torch.Generator())(images), images)


@pytest.mark.parametrize("name", Config.__dataclass_fields__["augmentation"].metadata["choices"])
def test_agent_learns_with_every_augmentation(name: str) -> None:
    agent = small_drq(augmentation=name)
    before = copies(agent)
    metrics = agent.update(random_batch())
    assert all(value.isfinite() for value in metrics.values())
    assert changed(agent, before) == set(before)


def test_views_are_two_independent_augmentations() -> None:
    """Rows 0 to B - 1 are the first view of each transition, B to 2B - 1 the second; all else comes once."""
    agent, batch = small_drq(extrinsic_reward_coeff=0.5), random_batch()
    rows = len(batch.reward)
    views = agent.make_views(batch)
    for images in (views.obs, views.next_obs):
        assert images.shape == (2 * rows, *OBS_SHAPE)
        assert images.dtype == torch.uint8
        assert not torch.equal(images[:rows], images[rows:])
    assert views.next_noise.shape == (2 * rows, ACTION_DIM)
    assert views.noise.shape == (rows, ACTION_DIM)
    assert not torch.equal(views.next_noise[:rows], views.next_noise[rows:])
    assert torch.equal(views.reward, 0.5 * batch.reward)

    plain = small_drq(augmentation="none").make_views(batch)
    assert torch.equal(plain.obs, torch.cat([batch.obs, batch.obs]))
    assert torch.equal(plain.next_obs, torch.cat([batch.next_obs, batch.next_obs]))
    for field in ("action", "terminated", "skill"):
        assert torch.equal(getattr(plain, field), getattr(batch, field))


def test_no_two_views_and_no_two_noises_are_one() -> None:
    """Of equal observations, and over obs and next_obs too; `image_pad` is the agent's."""
    batch = random_batch()
    batch = batch._replace(next_obs=batch.obs)
    views = small_drq().make_views(batch)
    rows = len(batch.reward)
    images = [images[first : first + rows] for images in (views.obs, views.next_obs) for first in (0, rows)]
    assert not any(torch.equal(one, other) for one, other in combinations(images, 2))
    assert len(torch.cat([views.noise, views.next_noise]).unique(dim=0)) == 3 * rows
    assert torch.equal(small_drq(image_pad=0).make_views(batch).obs, torch.cat([batch.obs, batch.obs]))


def test_noise_is_standard_normal() -> None:
    noise = small_drq().make_views(random_batch(size=500)).next_noise
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)


# -- networks ----------------------------------------------------------------------------------------------------------


def test_encoder_has_39200_features_at_84_pixels() -> None:
    encoder = Encoder((9, 84, 84))
    features = encoder(torch.zeros(1, 9, 84, 84, dtype=torch.uint8))
    assert encoder.feature_dim == 39_200
    assert features.shape == (1, 39_200)


@pytest.mark.parametrize("name", ["shift", "cutout", "intensity"])
def test_encoder_leaves_its_images_alone(name: str) -> None:
    """The update looks at a view more than once, of whatever dtype and layout its augmentation makes."""
    agent, batch = small_drq(augmentation=name), random_batch()
    batch = batch._replace(obs=batch.obs.contiguous(memory_format=torch.channels_last))
    views = agent.make_views(batch)
    before = views.obs.clone()
    agent.critic.encoder(views.obs)
    assert torch.equal(views.obs, before)


def test_bf16_encoder_is_float32_outside_the_convolutions() -> None:
    """Features and gradients are float32, and near those of the float32 encoder with the same weights."""
    images = random_batch().obs
    agent = small_drq(precision="bf16")
    exact = small_drq().critic.encoder
    features = agent.critic.encoder(images)
    assert features.dtype == torch.float32
    expected = exact(images)
    assert not torch.equal(features, expected)
    assert (features - expected).norm() < 0.02 * expected.norm()
    agent.update(random_batch())
    for value in agent.critic.parameters():
        assert value.grad is not None
        assert value.dtype == value.grad.dtype == torch.float32


def test_initialisation_is_orthogonal_with_zero_biases() -> None:
    """Rows or columns, whichever are fewer, are orthonormal, times sqrt 2 for convolutions."""
    layers = [
        layer
        for module in small_diayn(discriminator_encoder="separate").modules().values()
        for layer in module.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    assert len(layers) == 4 + 1 + 3 + 3 + 1 + 3 + 4 + 1 + 3  # critic, actor, discriminator
    for layer in layers:
        weight = layer.weight.detach().flatten(1)
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        gain = 2.0 if isinstance(layer, nn.Conv2d) else 1.0
        torch.testing.assert_close(gram, gain * torch.eye(len(gram)), atol=1e-4, rtol=0)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_target_critic_starts_as_a_copy_of_its_own() -> None:
    agent = small_drq()
    for online, slow in zip(agent.critic.parameters(), agent.critic_target.parameters(), strict=True):
        assert torch.equal(online, slow)
        assert online.data_ptr() != slow.data_ptr()
        assert not slow.requires_grad


def test_without_skills_there_is_no_skill_parameter_and_no_draw_for_one() -> None:
    agent = small_drq()
    assert not [name for name in parameters(agent) if "skill" in name]
    assert agent.critic.q1[0].in_features == 8 + ACTION_DIM
    assert agent.actor.policy[0].in_features == 8
    assert agent.skills() == [-1]
    rng = np.random.default_rng(0)
    state = copy.deepcopy(rng.bit_generator.state)
    assert agent.sample_skill(rng) == -1
    assert rng.bit_generator.state == state


def test_log_prob_is_that_of_a_tanh_transformed_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(64, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    action, log_prob = SquashedGaussian(mean, log_std).sample(noise)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    inside = action.abs().amax(dim=1) < 0.999  # the reference's atanh loses its digits beyond
    assert inside.sum() > 32
    torch.testing.assert_close(action, (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_prob[inside], reference.log_prob(action).sum(dim=1)[inside])
    assert torch.equal(SquashedGaussian(mean, log_std).mode(), mean.tanh())


@pytest.mark.parametrize("x", [-100.0, -30.0, 30.0, 100.0])
def test_log_prob_and_its_gradient_are_finite_far_out(x: float) -> None:
    """From |x| = 30 on tanh is 1 in float32; the log determinant is 2 (log 2 - |x|)."""
    mean = torch.tensor([[x]], requires_grad=True)
    action, log_prob = SquashedGaussian(mean, torch.zeros(1, 1)).sample(torch.zeros(1, 1))
    log_prob.sum().backward()
    assert action.abs() == 1
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - abs(x)))
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(math.copysign(2.0, x))


def test_log_std_is_squashed_into_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small_drq(log_std_bounds=(-7.0, 1.0))
    raw = torch.tensor([[0.5, -0.5, -1000.0, 1000.0], [2.0, 3.0, 0.0, math.atanh(0.5)]])
    monkeypatch.setattr(agent.actor.policy, "forward", lambda _: raw)
    policy = agent.actor(torch.zeros(2, agent.critic.encoder.feature_dim), torch.tensor([-1, -1]))
    torch.testing.assert_close(policy.mean, torch.tensor([[0.5, -0.5], [2.0, 3.0]]))
    torch.testing.assert_close(policy.log_std, torch.tensor([[-7.0, 1.0], [-3.0, -1.0]]))


# -- acting ------------------------------------------------------------------------------------------------------------


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


def test_sampled_actions_come_from_the_agents_generator() -> None:
    obs = observation()
    agent, twin, other = small_drq(), small_drq(), small_drq()
    other.generator.manual_seed(9)
    global_state = torch.get_rng_state()
    actions = [agent.act(obs, -1, sample=True) for _ in range(2)]
    assert not np.array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions, [twin.act(obs, -1, sample=True) for _ in range(2)])
    assert not np.array_equal(actions[0], other.act(obs, -1, sample=True))
    assert torch.equal(torch.get_rng_state(), global_state)


def test_a_sampled_action_is_the_policys() -> None:
    """Of the trained encoder, not its target, and of standard normal noise."""
    agent, obs = small_drq(), observation()
    agent.update(random_batch())  # online and target encoder differ now
    state = agent.generator.get_state()
    action = agent.act(obs, -1, sample=True)
    noise = torch.randn(1, ACTION_DIM, generator=torch.Generator().set_state(state))
    with torch.no_grad():
        policy = agent.actor(agent.critic.encoder(torch.from_numpy(obs)[None]), torch.tensor([-1]))
    np.testing.assert_allclose(action, policy.sample(noise)[0][0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", range(1, 10))
def test_assessment_of_a_row_does_not_depend_on_the_rows_beside_it(rows: int) -> None:
    """Bit for bit; without skills nothing is judged."""
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
    agent = small_drq(log_std_bounds=(1.0, 2.0))  # wide enough to reach the ends
    before = copies(agent)
    actions = [agent.act(observation(seed), -1, sample=sample) for seed in range(50)]
    assert all(action.dtype == np.float32 and action.shape == (ACTION_DIM,) for action in actions)
    assert np.abs(actions).max() <= 1.0
    assert not changed(agent, before)
    assert not with_gradient(agent)


# -- losses, by hand ---------------------------------------------------------------------------------------------------


class FixedPolicy:
    """A policy whose actions and log-probabilities are given."""

    def __init__(self, log_prob: list[float]) -> None:
        self.log_prob = torch.tensor(log_prob)

    def sample(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(noise), self.log_prob


def two_transitions(agent: DrQAgent, terminated: tuple[float, float] = (0.0, 0.0)) -> Views:
    batch = random_batch(size=2)
    return agent.make_views(batch._replace(reward=torch.tensor([1.0, 2.0]), terminated=torch.tensor(terminated)))


def fix_outputs(
    monkeypatch: pytest.MonkeyPatch,
    agent: DrQAgent,
    log_prob: list[float],
    q: dict[str, tuple[list[float], list[float]]],
) -> None:
    """Let the actor and critics answer with constants, one for each row they are asked about."""
    monkeypatch.setattr(agent.actor, "forward", lambda *_: FixedPolicy(log_prob))
    for network, values in q.items():
        answers = tuple(torch.tensor(value) for value in values)
        monkeypatch.setattr(getattr(agent, network), "forward", lambda *_, answers=answers: answers)


@pytest.mark.parametrize(
    ("terminated", "expected"),
    [
        ((0.0, 0.0), [1.0 + 0.9 * 2.4, 2.0 + 0.9 * 3.45]),
        ((1.0, 0.0), [1.0, 2.0 + 0.9 * 3.45]),
        ((0.0, 1.0), [1.0 + 0.9 * 2.4, 2.0]),
    ],
)
def test_target_by_hand(
    terminated: tuple[float, float], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """min Q' is 1, 1 in the first view, 4, 6 in the second; at alpha 0.1 the values are 0.95, 1.1 and 3.85, 5.8."""
    agent = small_drq(discount=0.9, init_temperature=0.1)
    fix_outputs(
        monkeypatch,
        agent,
        log_prob=[0.5, -1.0, 1.5, 2.0],
        q={"critic_target": ([1.0, 2.0, 5.0, 6.0], [3.0, 1.0, 4.0, 9.0]), "critic": ([1e9] * 4, [1e9] * 4)},
    )
    views = two_transitions(agent, terminated)
    target = agent.target_q(views, next_features(agent, views))
    torch.testing.assert_close(target, torch.tensor(expected))
    assert not target.requires_grad


def test_critic_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared errors to y = 1, 2: Q1 0, 0 and 4, 4; Q2 1, 4 and 0, 4. Means 0, 4, 2.5, 2, all summed."""
    agent = small_drq()
    fix_outputs(monkeypatch, agent, [0.0] * 4, {"critic": ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 4.0])})
    monkeypatch.setattr(agent, "target_q", lambda *_: torch.tensor([1.0, 2.0]))
    views = two_transitions(agent)
    assert agent.critic_loss(views, next_features(agent, views)).item() == pytest.approx(8.5)


def test_actor_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """alpha log pi is 0.1, -0.4 and min Q 2, 3: the mean of -1.9, -3.4. Only the first view is looked at."""
    agent = small_drq(init_temperature=0.2)
    fix_outputs(monkeypatch, agent, [0.5, -2.0], {"critic": ([2.0, 5.0], [4.0, 3.0])})
    views = two_transitions(agent)
    seen: list[torch.Tensor] = []
    agent.critic.encoder.register_forward_hook(lambda _, images, features: seen.extend(images))
    loss, log_prob = agent.actor_loss(views)
    assert loss.item() == pytest.approx(-2.65)
    assert log_prob.tolist() == [0.5, -2.0]
    assert len(seen) == 1
    assert torch.equal(seen[0], views.obs[:2])


def test_alpha_loss_by_hand() -> None:
    """The target entropy is -2: alpha times the mean of 1 + 2 and -3 + 2."""
    agent = small_drq(init_temperature=0.1)
    loss = agent.alpha_loss(torch.tensor([-1.0, 3.0]))
    assert loss.item() == pytest.approx(0.1)
    loss.backward()
    assert agent.log_alpha.grad is not None
    assert agent.log_alpha.grad.item() == pytest.approx(0.1)


# -- who gets gradient -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_critic_loss_trains_the_critic_alone(make_agent: Callable[..., DrQAgent]) -> None:
    """All of the critic, its encoder included; nothing of the target, the actor, the temperature."""
    agent = make_agent(learn_temperature=True)
    views = agent.make_views(random_batch(num_skills=4))
    agent.critic_loss(views, agent.critic.encoder(views.next_obs)).backward()
    assert with_gradient(agent) == named(agent, "critic")


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_actor_loss_trains_the_actor_alone(make_agent: Callable[..., DrQAgent]) -> None:
    """Nothing of the critic, neither encoder nor head nor Qs, nor the temperature. The critic can learn again after."""
    agent = make_agent(learn_temperature=True)
    loss, log_prob = agent.actor_loss(agent.make_views(random_batch(num_skills=4)))
    loss.backward()
    assert log_prob.shape == (8,)
    assert with_gradient(agent) == named(agent, "actor")
    assert all(parameter.requires_grad for parameter in agent.critic.parameters())


def test_alpha_loss_trains_the_temperature_alone() -> None:
    agent = small_drq()
    _, log_prob = agent.actor_loss(agent.make_views(random_batch()))
    assert log_prob.requires_grad
    agent.alpha_loss(log_prob).backward()
    assert with_gradient(agent) == {"log_alpha"}


def test_frozen_lets_gradient_through_and_thaws_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    x = torch.ones(1, 2, requires_grad=True)

    def fail() -> None:
        with frozen(layer):
            layer(x).sum().backward()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


# -- the update --------------------------------------------------------------------------------------------------------


def test_soft_update_by_hand() -> None:
    online, slow = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, weight, bias in ((online, 1.0, 8.0), (slow, 3.0, 0.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    soft_update(online, slow, tau=0.25)
    assert [slow.weight.item(), slow.bias.item()] == [2.5, 2.0]
    assert [online.weight.item(), online.bias.item()] == [1.0, 8.0]


def test_target_follows_the_critic_after_its_step() -> None:
    agent = small_drq(critic_tau=0.3)
    before = [parameter.clone() for parameter in agent.critic_target.parameters()]
    agent.update(random_batch())
    triples = zip(agent.critic.parameters(), agent.critic_target.parameters(), before, strict=True)
    for online, slow, old in triples:
        torch.testing.assert_close(slow, 0.3 * online.detach() + 0.7 * old)


@pytest.mark.parametrize(("actor_frequency", "target_frequency"), [(2, 2), (1, 3), (3, 1)])
def test_actor_and_target_are_updated_when_due(actor_frequency: int, target_frequency: int) -> None:
    """The first update is due for both. Actor, temperature and their metrics go together; the critic always learns."""
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


@pytest.mark.parametrize(("entropy_of", "direction"), [(-50.0, 1), (50.0, -1)])
def test_temperature_rises_when_entropy_is_below_its_target(
    entropy_of: float, direction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = small_drq()
    before = agent.log_alpha.item()
    alpha_loss = agent.alpha_loss
    monkeypatch.setattr(agent, "alpha_loss", lambda log_prob: alpha_loss(torch.full_like(log_prob, -entropy_of)))
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


def test_metrics_say_what_they_are_called() -> None:
    agent, batch = small_drq(extrinsic_reward_coeff=3.0), random_batch()
    metrics = agent.update(batch)
    assert metrics["batch_reward"].item() == pytest.approx(batch.reward.mean().item())
    assert metrics["actor_target_entropy"].item() == -ACTION_DIM


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_same_seed_same_run(make_agent: Callable[..., DrQAgent]) -> None:
    """Bit for bit, whatever torch's global generator does after the weights are made; another seed differs."""

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


def test_seed_argument_seeds_the_generator() -> None:
    settings: dict[str, Any] = {"device": "cpu", "hidden_dim": 4, "encoder_feature_dim": 4}
    states = [DrQAgent(OBS_SHAPE, ACTION_DIM, seed=seed, **settings).generator.get_state() for seed in (1, 1, 2)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_histograms_hold_every_trained_weight_and_its_gradient() -> None:
    agent = small_drq()
    weights = {name: value for name, value in parameters(agent).items() if name in named(agent, "actor", "critic")}
    assert len(dict(agent.histograms())) == len(weights)
    agent.update(random_batch())
    histograms = dict(agent.histograms())
    assert len(histograms) == 2 * len(weights)
    for name, value in weights.items():
        network, _, rest = name.partition(".")
        path = f"{network}/{rest.replace('.', '_')}"
        assert torch.equal(histograms[path], value)
        assert not histograms[path].requires_grad
        assert value.grad is not None
        assert torch.equal(histograms[f"{path}_grad"], value.grad)


def test_critic_learns_a_fixed_batch() -> None:
    """Rewards of a batch that ends everywhere are the whole target: the critic's loss all but vanishes."""
    agent, batch = small_drq(augmentation="none", lr=3e-3), random_batch()
    batch = batch._replace(terminated=torch.ones_like(batch.terminated))
    losses = [agent.update(batch)["critic_loss"].item() for _ in range(60)]
    assert losses[-1] < 0.05 * losses[0]
