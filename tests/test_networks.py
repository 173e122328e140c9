"""Networks and their building blocks, the policy's distribution, and what an `ActorCritic` saves and loads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from drq import DrQAgent
from networks import Encoder, SkillEmbedding, SquashedGaussian, mlp, soft_update, weight_init
from tests.support.oracle import ACTION_DIM, random_batch, small_diayn, small_drq

# -- building blocks ---------------------------------------------------------------------------------------------------


def test_mlp_has_a_relu_after_each_hidden_layer_and_none_at_the_end() -> None:
    layers = list(mlp(in_dim=3, hidden_dim=5, out_dim=2, hidden_depth=2))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == [(5, 3), (5, 5), (2, 5)]


def test_initial_weights_are_orthogonal_and_biases_zero() -> None:
    """Rows or columns, whichever are fewer, are orthonormal: their products are the identity, for convolutions twice
    the identity because of the gain sqrt 2.
    """
    layers = [
        layer
        for module in small_diayn(discriminator_encoder="separate").modules().values()
        for layer in module.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    critic, actor, discriminator = 4 + 1 + 3 + 3, 1 + 3, 4 + 1 + 3  # convolutions, head, MLPs
    assert len(layers) == critic + actor + discriminator
    for layer in layers:
        weight = layer.weight.detach().flatten(1)
        products = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        scale = 2.0 if isinstance(layer, nn.Conv2d) else 1.0
        torch.testing.assert_close(products, scale * torch.eye(len(products)), atol=1e-4, rtol=0)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_soft_update() -> None:
    online, target = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, weight, bias in ((online, 1.0, 8.0), (target, 3.0, 0.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    soft_update(online, target, tau=0.25)
    assert target.weight.item() == 0.25 * 1.0 + 0.75 * 3.0
    assert target.bias.item() == 0.25 * 8.0 + 0.75 * 0.0
    assert [online.weight.item(), online.bias.item()] == [1.0, 8.0]


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_skills", "embedding_dim", "width", "num_parameters"),
    [(0, 0, 0, 0), (0, 3, 0, 0), (4, 3, 3, 12), (4, 0, 4, 0)],
)
def test_skill_embedding(num_skills: int, embedding_dim: int, width: int, num_parameters: int) -> None:
    """Nothing without skills, a table of 4 x 3 weights, or the one-hot code of 4 skills without any weight."""
    embedding = SkillEmbedding(num_skills, embedding_dim)
    skill = torch.tensor([2, 0]) if num_skills else torch.tensor([-1, -1])
    vectors = embedding(skill)
    assert embedding.width == width
    assert vectors.shape == (2, width)
    assert vectors.dtype == torch.float32
    assert sum(parameter.numel() for parameter in embedding.parameters()) == num_parameters
    if num_skills and not embedding_dim:
        assert vectors.tolist() == [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("num_skills", "width"), [(4, 6), (6, 6), (1, 3), (8, 3), (5, 1)])
def test_orthogonal_skill_embedding(num_skills: int, width: int) -> None:
    """Rows of norm sqrt(width), orthogonal to those of the same block of `width` rows."""
    table = SkillEmbedding(num_skills, width, "orthogonal")(torch.arange(num_skills))
    assert table.shape == (num_skills, width)
    products = table @ table.T / width
    torch.testing.assert_close(products.diagonal(), torch.ones(num_skills))
    for start in range(0, num_skills, width):
        block = products[start : start + width, start : start + width]
        torch.testing.assert_close(block, torch.eye(len(block)))


def test_orthogonal_skill_embeddings_of_an_agent() -> None:
    """Actor and critic draw different ones, and the target critic gets a copy."""
    agent = small_diayn(skill_embedding_dim=5, skill_embedding_init="orthogonal")
    skills = torch.arange(agent.num_skills)
    tables = [network.skill(skills).detach() for network in (agent.actor, agent.critic, agent.critic_target)]
    for table in tables:
        torch.testing.assert_close(table @ table.T, 5.0 * torch.eye(len(table)))
    assert not torch.equal(tables[0], tables[1])
    assert torch.equal(tables[1], tables[2])


def test_encoder_has_39200_features_at_84_pixels() -> None:
    encoder = Encoder((9, 84, 84))
    features = encoder(torch.zeros(1, 9, 84, 84, dtype=torch.uint8))
    assert encoder.conv_dim == 39_200
    assert features.shape == (1, 39_200)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["shift", "cutout", "intensity"])
def test_images_are_scaled_once_and_not_modified(name: str, precision: str) -> None:
    """An update encodes scaled views more than once. Augmentations return different dtypes and memory formats."""
    agent, batch = small_drq(augmentation=name, precision=precision), random_batch()
    batch = batch._replace(obs=batch.obs.contiguous(memory_format=torch.channels_last))
    images, encoder = agent.make_views(batch).obs, agent.critic.encoder
    before, scaled = images.clone(), encoder.scale(images)
    assert torch.equal(images, before)
    assert scaled.dtype == encoder.dtype
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(scaled.float(), images.float() / 255.0, rtol=2.0**-7 * (precision == "bf16"), atol=0.0)
    before = scaled.clone()
    features = encoder(scaled)
    assert torch.equal(scaled, before)
    if name == "shift":
        assert torch.equal(encoder(images), features)
        one_kernel = torch.div(images, 255.0, out=torch.empty_like(scaled))  # as on CUDA
        assert torch.equal(one_kernel, scaled)


def test_what_bf16_computes() -> None:
    """Convolutions and the layer behind them; its output, weights and gradients are float32. Close to float32."""
    images = random_batch().obs
    agent, exact = small_drq(precision="bf16").critic, small_drq().critic
    features, expected = agent.encoder(images), exact.encoder(images)
    assert (features.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
    product = agent.head[0](features)
    assert product.dtype == torch.float32
    assert torch.equal(product, product.bfloat16().float())
    assert not torch.equal(product, agent.head[0](features.float()))
    for ours, theirs in ((features.float(), expected), (product, exact.head[0](expected))):
        assert 0 < (ours - theirs).norm() < 0.02 * theirs.norm()


def test_bf16_leaves_weights_and_gradients_in_float32() -> None:
    agent = small_drq(precision="bf16")
    agent.update(random_batch())
    for value in agent.critic.parameters():
        assert value.grad is not None
        assert value.dtype == value.grad.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [24, 48, 84])
@pytest.mark.parametrize("count", [1, 2, 4, 33])
def test_relus_of_convolutions_change_nothing(
    count: int, size: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are computed together with the convolutions: features and gradients are those of separate layers."""
    encoder = Encoder((9, size, size), precision)
    encoder.apply(weight_init)
    images = torch.randint(0, 256, (count, 9, size, size), dtype=torch.uint8)
    weights = torch.randn(count, encoder.conv_dim).to(encoder.dtype)

    def features_and_gradients() -> list[torch.Tensor]:
        features = encoder(images)
        gradients = torch.autograd.grad((features * weights).sum(), list(encoder.parameters()))
        with torch.no_grad():
            return [features, encoder(images), *gradients]

    together = features_and_gradients()
    monkeypatch.setattr("networks.can_fuse_relu", lambda images: False)
    for first, second in zip(together, features_and_gradients(), strict=True):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
        assert first.count_nonzero() > 0
    assert together[0].count_nonzero() < together[0].numel()


def test_without_skills_networks_have_no_skill_input() -> None:
    """The inputs are the 8 features of the small agents, and for Q also the action."""
    agent = small_drq()
    assert not [name for module in agent.modules().values() for name, _ in module.named_parameters() if "skill" in name]
    assert agent.critic.q1[0].in_features == 8 + ACTION_DIM
    assert agent.actor.policy[0].in_features == 8


# -- the policy's distribution -----------------------------------------------------------------------------------------


def test_log_prob_equals_that_of_a_tanh_transformed_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(64, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    action, log_prob = SquashedGaussian(mean, log_std).sample(noise)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    precise = action.abs().amax(dim=1) < 0.999  # closer to 1 the reference's atanh loses precision
    assert precise.sum() > 32
    torch.testing.assert_close(action, (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_prob[precise], reference.log_prob(action).sum(dim=1)[precise])
    assert torch.equal(SquashedGaussian(mean, log_std).mode(), mean.tanh())


@pytest.mark.parametrize("x", [-100.0, -30.0, 30.0, 100.0])
def test_log_prob_and_its_gradient_are_finite_where_tanh_is_saturated(x: float) -> None:
    """From |x| = 30 on, tanh is 1 in float32 and the log determinant is 2 (log 2 - |x|)."""
    mean = torch.tensor([[x]], requires_grad=True)
    action, log_prob = SquashedGaussian(mean, torch.zeros(1, 1)).sample(torch.zeros(1, 1))
    log_prob.sum().backward()
    assert action.abs() == 1
    gaussian, log_det = -0.5 * math.log(2 * math.pi), 2 * (math.log(2) - abs(x))
    assert log_prob.item() == pytest.approx(gaussian - log_det)
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(math.copysign(2.0, x))


def test_log_std_is_squashed_into_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """tanh of the network's log-std outputs is -1 and 1 in the first row, and 0 and 0.5 in the second."""
    agent = small_drq(log_std_bounds=(-7.0, 1.0))
    mean = [[0.5, -0.5], [2.0, 3.0]]
    raw_log_std = [[-1000.0, 1000.0], [0.0, math.atanh(0.5)]]
    output = torch.cat([torch.tensor(mean), torch.tensor(raw_log_std)], dim=1)
    monkeypatch.setattr(agent.actor.policy, "forward", lambda _: output)
    policy = agent.actor(torch.zeros(2, agent.critic.encoder.conv_dim), torch.tensor([-1, -1]))
    torch.testing.assert_close(policy.mean, torch.tensor(mean))
    middle, half_range = -3.0, 4.0
    expected = [[-7.0, 1.0], [middle, middle + 0.5 * half_range]]
    torch.testing.assert_close(policy.log_std, torch.tensor(expected))


# -- actor-critic ------------------------------------------------------------------------------------------------------


def learned(agent: DrQAgent) -> dict[str, Any]:
    state = agent.state_dict()
    return {name: state[name] for name in ("modules", "optimizers", "log_alpha", "generator", "num_updates")}


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_target_critic_starts_as_a_separate_copy() -> None:
    agent = small_drq()
    for online, target in zip(agent.critic.parameters(), agent.critic_target.parameters(), strict=True):
        assert torch.equal(online, target)
        assert online.data_ptr() != target.data_ptr()
        assert not target.requires_grad


def test_seed_argument_seeds_the_generator() -> None:
    first, same, other = (small_drq(seed=seed).generator.get_state() for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_histograms_contain_every_trained_weight_and_its_gradient() -> None:
    agent = small_drq()
    weights = {
        f"{network}/{name.replace('.', '_')}": value
        for network, module in agent.modules().items()
        for name, value in module.named_parameters()
    }
    assert dict(agent.histograms()).keys() == weights.keys(), "no gradients before the first update"
    agent.update(random_batch())
    histograms = dict(agent.histograms())
    assert histograms.keys() == weights.keys() | {f"{path}_grad" for path in weights}
    for path, value in weights.items():
        assert torch.equal(histograms[path], value)
        assert not histograms[path].requires_grad
        assert value.grad is not None
        assert torch.equal(histograms[f"{path}_grad"], value.grad)


@pytest.mark.parametrize("make_agent", [small_drq, small_diayn])
def test_load_state_dict_continues_another_agents_training(make_agent: Callable[..., DrQAgent]) -> None:
    """The next update and the next action are the same, bit for bit."""
    agent, other = make_agent(), make_agent(seed=9)
    for update in range(3):
        agent.update(random_batch(num_skills=4, seed=update))
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for one in (agent, other):
        one.update(random_batch(num_skills=4, seed=3))
    obs = random_batch(1).obs[0].numpy()
    assert (agent.act(obs, 1, sample=True) == other.act(obs, 1, sample=True)).all()
    assert_equal(learned(other), learned(agent))


def test_loaded_agents_share_no_memory() -> None:
    agent, other = small_diayn(), small_diayn(seed=9)
    agent.update(random_batch(num_skills=4))
    other.load_state_dict(agent.state_dict())
    before = copy.deepcopy(learned(agent))
    other.update(random_batch(num_skills=4))
    assert_equal(learned(agent), before)


def test_load_state_dict_keeps_the_optimizers_hyperparameters() -> None:
    agent, other = small_drq(lr=1e-3), small_drq(lr=1e-4)
    agent.update(random_batch())
    other.load_state_dict(agent.state_dict())
    assert [optimizer.param_groups[0]["lr"] for optimizer in other.optimizers().values()] == [1e-4] * 3


@pytest.mark.parametrize("critic", [False, True])
def test_load_pretrained(critic: bool) -> None:
    """Actor, encoder and skill table are copied; the critic's head and Q functions only if asked for."""
    agent, pretrained = small_diayn(seed=1), small_diayn(seed=2)
    pretrained.update(random_batch(num_skills=4))
    before = copy.deepcopy(agent.critic.state_dict())
    agent.load_pretrained(pretrained.state_dict(), critic=critic)
    assert_equal(agent.actor.state_dict(), pretrained.actor.state_dict())
    for name, value in agent.critic.state_dict().items():
        copied = critic or name.startswith(("encoder.", "skill."))
        assert torch.equal(value, (pretrained.critic.state_dict() if copied else before)[name]), name
    assert_equal(agent.critic_target.state_dict(), agent.critic.state_dict())
    assert not agent.optimizers()["actor"].state


def test_names_in_a_state_dict() -> None:
    """Checkpoints of earlier versions contain these names."""
    state = small_diayn(discriminator_encoder="separate", learn_temperature=True).state_dict()
    assert set(state) == {"device", "num_updates", "skill", "log_alpha", "generator", "modules", "optimizers"}
    assert set(state["modules"]) == {"actor", "critic", "critic_target", "discriminator"}
    assert set(state["optimizers"]) == {"actor", "critic", "alpha", "discriminator"}
    convs = {f"encoder.convs.{index}" for index in (0, 2, 4, 6)}
    head = {"head.0", "head.1"}
    layers = {
        "actor": head | {"policy.0", "policy.2", "policy.4"},
        "critic": convs | head | {f"{q}.{index}" for q in ("q1", "q2") for index in (0, 2, 4)},
        "discriminator": convs | head | {"classifier.0", "classifier.2", "classifier.4"},
    }
    for network, names in layers.items():
        expected = {f"{name}.{parameter}" for name in names for parameter in ("weight", "bias")}
        assert set(state["modules"][network]) - {"skill.table.weight"} == expected
        assert ("skill.table.weight" in state["modules"][network]) == (network != "discriminator")
    assert set(state["modules"]["critic_target"]) == set(state["modules"]["critic"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_is_finite_checks_every_weight(value: float) -> None:
    agent = small_diayn()
    assert agent.is_finite()
    weights = [*agent.discriminator.parameters(), *agent.critic_target.parameters(), agent.log_alpha]
    for weight in (weights[0], weights[-2], weights[-1]):
        before = weight.detach().clone()
        weight.data[(0,) * weight.dim()] = value
        assert not agent.is_finite()
        weight.data.copy_(before)
    assert agent.is_finite()
