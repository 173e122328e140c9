"""DIAYN: the intrinsic reward, the discriminator's training, skills, and evaluation."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diayn import DIAYNAgent, disagreement, ensemble_mean
from drq import Metrics, Views
from replay_buffer import ReplayBuffer
from tests.support.oracle import ACTION_DIM, OBS_SHAPE, SMALL_DIAYN, random_batch, small_diayn

NUM_SKILLS = SMALL_DIAYN["num_skills"]  # 4
both_encoders = pytest.mark.parametrize("discriminator_encoder", ["shared", "separate"])


def fix_logits(agent: DIAYNAgent, logits: list[float]) -> None:
    """Let the discriminator return these logits for every image, until it is trained."""
    last = agent.discriminator.classifier[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor(logits)


def random_images(size: int = 8) -> torch.Tensor:
    return random_batch(size).next_obs


def discriminator_step(agent: DIAYNAgent, next_obs: torch.Tensor, skill: torch.Tensor) -> Metrics:
    return agent.update_discriminator(agent.member_logits(next_obs), skill)


COLORS = np.random.default_rng(0).integers(256, size=(NUM_SKILLS, OBS_SHAPE[0], 1, 1), dtype=np.uint8)


def color_per_skill(skill: torch.Tensor) -> torch.Tensor:
    """Return images (N, C, H, W) of a single color, which depends on the skill only."""
    return torch.from_numpy(COLORS)[skill].expand(-1, *OBS_SHAPE).contiguous()


# -- the intrinsic reward ----------------------------------------------------------------------------------------------


@both_encoders
def test_reward_is_zero_at_chance_level(discriminator_encoder: str) -> None:
    agent = small_diayn(discriminator_encoder=discriminator_encoder)
    fix_logits(agent, [0.7] * NUM_SKILLS)
    reward = agent.intrinsic_reward(agent.classify(random_images()), torch.arange(8) % NUM_SKILLS)
    torch.testing.assert_close(reward, torch.zeros(8), atol=1e-6, rtol=0)


def test_reward_of_a_perfect_discriminator_is_log_k() -> None:
    agent = small_diayn()
    fix_logits(agent, [0.0, 0.0, 1000.0, 0.0])
    reward = agent.intrinsic_reward(agent.classify(random_images()), torch.full((8,), 2))
    torch.testing.assert_close(reward, torch.full((8,), math.log(NUM_SKILLS)))


PROBABILITIES = [1 / 2, 1 / 4, 1 / 8, 1 / 8]  # of the four skills
LOGITS = [math.log(probability) for probability in PROBABILITIES]


def test_reward_of_given_probabilities() -> None:
    """log q(z) - log p(z), with p(z) = 1/4."""
    agent = small_diayn()
    fix_logits(agent, LOGITS)
    reward = agent.intrinsic_reward(agent.classify(random_images(4)), torch.arange(4))
    expected = [math.log(probability) - math.log(1 / 4) for probability in PROBABILITIES]
    torch.testing.assert_close(reward, torch.tensor(expected))


@pytest.mark.parametrize("num_skills", [1, 2, 10, 100])
def test_reward_never_exceeds_log_k(num_skills: int) -> None:
    agent = small_diayn(num_skills=num_skills)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 10.0, 1000.0):
        logits = scale * torch.randn(1000, num_skills, generator=generator)
        reward = agent.intrinsic_reward(logits, torch.randint(num_skills, (1000,), generator=generator))
        assert reward.isfinite().all()
        assert reward.max() <= math.log(num_skills) + 1e-6
        best = agent.intrinsic_reward(logits, logits.argmax(dim=1))
        assert best.min() >= -1e-6, "the most likely skill has at least the probability of chance"


@both_encoders
@pytest.mark.parametrize(("extrinsic", "intrinsic"), [(0.0, 1.0), (1.0, 0.0), (0.5, 2.0)])
def test_training_reward_is_the_weighted_sum(
    extrinsic: float, intrinsic: float, discriminator_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The critic gets the intrinsic reward of the first view, computed after the discriminator's step."""
    seen: list[torch.Tensor] = []

    def spy(views: Views, reward: torch.Tensor, next_features: torch.Tensor) -> Metrics:
        with torch.no_grad():  # the critic, whose encoder may be shared, is not updated yet
            log_q = F.log_softmax(agent.classify(views.next_obs[: len(views.reward)]), dim=1)
        r_int = log_q[torch.arange(len(views.skill)), views.skill] + math.log(NUM_SKILLS)
        seen.extend([reward, r_int])
        return update_critic(views, reward, next_features)

    agent = small_diayn(
        discriminator_encoder=discriminator_encoder,
        extrinsic_reward_coeff=extrinsic,
        diayn_intrinsic_reward_coeff=intrinsic,
        lr_discriminator=1e-2,
    )
    update_critic = agent.update_critic
    monkeypatch.setattr(agent, "update_critic", spy)
    batch = random_batch(num_skills=NUM_SKILLS)
    metrics = agent.update(batch)
    reward, r_int = seen
    assert r_int.abs().min() > 1e-4
    torch.testing.assert_close(reward, extrinsic * batch.reward + intrinsic * r_int)
    assert metrics["intrinsic_reward"].item() == pytest.approx(r_int.mean().item(), rel=1e-4)
    assert metrics["batch_reward"].item() == pytest.approx(batch.reward.mean().item())


@both_encoders
def test_reward_from_before_the_discriminators_step(
    discriminator_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of the discriminator that has not seen the batch yet; no second forward pass is made."""
    agent = small_diayn(
        intrinsic_reward_from="before", discriminator_encoder=discriminator_encoder, lr_discriminator=1e-2
    )
    batch, generator = random_batch(num_skills=NUM_SKILLS), agent.generator.get_state()
    view = agent.make_views(batch).next_obs[: len(batch.skill)]
    agent.generator.set_state(generator)
    with torch.no_grad():
        expected = -F.cross_entropy(agent.classify(view), batch.skill) + math.log(NUM_SKILLS)
    member_logits, calls = agent.member_logits, []

    def spy(images: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(images)
        return member_logits(images, features)

    monkeypatch.setattr(agent, "member_logits", spy)
    metrics = agent.update(batch)
    assert metrics["intrinsic_reward"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["discriminator_loss"].item() == pytest.approx(math.log(NUM_SKILLS) - expected.item(), rel=1e-5)
    assert len(calls) == 1


@both_encoders
@pytest.mark.parametrize("reward_from", ["before", "after"])
def test_a_discriminator_with_a_batch_of_its_own(discriminator_encoder: str, reward_from: str) -> None:
    """It learns from one view of that batch, the reward is that of the critic's, and nothing else changes."""
    batch, recent = (random_batch(num_skills=NUM_SKILLS, seed=seed) for seed in (1, 2))
    settings: dict[str, Any] = {"discriminator_encoder": discriminator_encoder, "lr_discriminator": 1e-2}
    agent, by_hand = (small_diayn(intrinsic_reward_from=reward_from, **settings) for _ in range(2))
    views = by_hand.make_views(batch, recent)
    recent_obs, recent_skill = views.recent
    assert recent_obs.shape == recent.next_obs.shape
    assert torch.equal(recent_skill, recent.skill)
    next_obs, expected = views.next_obs[: len(batch.skill)], []
    for step in (False, True):
        if step:
            learned = by_hand.update_discriminator(by_hand.member_logits(recent_obs), recent_skill)
        with torch.no_grad():
            expected.append(by_hand.intrinsic_reward(by_hand.classify(next_obs), batch.skill).mean().item())
    metrics = agent.update(batch, recent)
    assert abs(expected[1] - expected[0]) > 1e-4
    assert metrics["intrinsic_reward"].item() == pytest.approx(expected[reward_from == "after"], rel=1e-4)
    assert metrics["discriminator_loss"].item() == pytest.approx(learned["discriminator_loss"].item(), rel=1e-5)
    for value, expected_value in zip(agent.discriminator.parameters(), by_hand.discriminator.parameters(), strict=True):
        torch.testing.assert_close(value, expected_value)
    without = small_diayn(**settings).make_views(batch)
    pairs = zip(views[:-1], without[:-1], strict=True)
    assert all(torch.equal(*pair) for pair in pairs), "its random numbers come after the others"


def test_reward_is_that_of_the_newest_discriminator() -> None:
    """It rises when the discriminator learns from the same batch again and again."""
    agent, batch = small_diayn(), random_batch(num_skills=NUM_SKILLS)
    fix_logits(agent, [0.0] * NUM_SKILLS)
    rewards = [agent.update(batch)["intrinsic_reward"].item() for _ in range(5)]
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0] + 1e-3


# -- training the discriminator ----------------------------------------------------------------------------------------


@both_encoders
def test_discriminator_loss_trains_the_discriminator_only(discriminator_encoder: str) -> None:
    """All of it, including an encoder of its own, but never the critic's encoder."""
    agent = small_diayn(discriminator_encoder=discriminator_encoder, learn_temperature=True)
    before = {name: value.clone() for name, value in agent.discriminator.named_parameters()}
    assert any(name.startswith("encoder.") for name in before) == (discriminator_encoder == "separate")
    others = [*agent.critic.parameters(), *agent.critic_target.parameters(), *agent.actor.parameters(), agent.log_alpha]
    others_before = [value.detach().clone() for value in others]

    discriminator_step(agent, random_images(), torch.arange(8) % NUM_SKILLS)
    for name, value in agent.discriminator.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name
        assert not torch.equal(value, before[name]), name
    assert all(value.grad is None for value in others)
    assert all(torch.equal(value, old) for value, old in zip(others, others_before, strict=True))


@both_encoders
def test_discriminators_step_in_an_update_gives_the_critic_no_gradients(
    discriminator_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not through the features either that an update computes once for target and discriminator."""
    agent = small_diayn(discriminator_encoder=discriminator_encoder)
    update_critic = agent.update_critic
    reached: list[bool] = []

    def spy(*inputs: Any) -> Metrics:
        assert all(value.grad is not None for value in agent.discriminator.parameters())
        reached.extend(value.grad is not None for value in agent.critic.parameters())
        return update_critic(*inputs)

    monkeypatch.setattr(agent, "update_critic", spy)
    agent.update(random_batch(num_skills=NUM_SKILLS))
    assert reached
    assert not any(reached)


@both_encoders
def test_discriminators_step_does_not_affect_the_other_networks(
    discriminator_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an intrinsic reward coefficient of 0 they learn the same with and without it, bit for bit."""
    settings: dict[str, Any] = {
        "discriminator_encoder": discriminator_encoder,
        "diayn_intrinsic_reward_coeff": 0.0,
        "extrinsic_reward_coeff": 1.0,
    }
    agents = [small_diayn(**settings), small_diayn(**settings)]
    monkeypatch.setattr(agents[1], "update_discriminator", lambda *_: {})
    for agent in agents:
        for update in range(3):
            agent.update(random_batch(num_skills=NUM_SKILLS, seed=update))
    for network in ("critic", "critic_target", "actor"):
        pairs = zip(*(getattr(agent, network).parameters() for agent in agents), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_discriminator_loss_and_accuracy() -> None:
    """Mean of -log q(z). It predicts skill 0 for all images, which is right for two of four."""
    agent = small_diayn()
    fix_logits(agent, LOGITS)
    metrics = discriminator_step(agent, random_images(4), torch.tensor([0, 0, 1, 3]))
    loss = -(math.log(1 / 2) + math.log(1 / 2) + math.log(1 / 4) + math.log(1 / 8)) / 4
    assert metrics["discriminator_loss"].item() == pytest.approx(loss)
    assert metrics["discriminator_accuracy"].item() == 2 / 4


@both_encoders
def test_discriminator_learns_separable_skills(discriminator_encoder: str) -> None:
    """Images show one color per skill: after 50 updates it predicts the skill, and r_int is close to log K."""
    agent = small_diayn(
        discriminator_encoder=discriminator_encoder,
        lr=1e-4,
        lr_discriminator=3e-3,
        encoder_feature_dim=16,
        hidden_dim=64,
    )
    for update in range(50):
        batch = random_batch(16, num_skills=NUM_SKILLS, seed=update)
        images = color_per_skill(batch.skill)
        metrics = agent.update(batch._replace(obs=images, next_obs=images))
    assert metrics["discriminator_accuracy"].item() > 0.9
    assert metrics["intrinsic_reward"].item() > 0.8 * math.log(NUM_SKILLS)
    skill = torch.arange(NUM_SKILLS)
    assert (agent.assess(color_per_skill(skill).numpy(), skill.numpy()).predicted == skill.numpy()).all()


def test_lr_discriminator_applies_to_the_discriminator_only() -> None:
    agent = small_diayn(lr=1e-3, lr_discriminator=0.0)
    before = {name: value.clone() for name, value in agent.discriminator.named_parameters()}
    critic_before = [value.clone() for value in agent.critic.parameters()]
    agent.update(random_batch(num_skills=NUM_SKILLS))
    assert all(torch.equal(value, before[name]) for name, value in agent.discriminator.named_parameters())
    assert not any(torch.equal(value, old) for value, old in zip(agent.critic.parameters(), critic_before, strict=True))


# -- skills ------------------------------------------------------------------------------------------------------------


def test_skills_are_sampled_uniformly() -> None:
    agent = small_diayn()
    assert agent.skills() == list(range(NUM_SKILLS))
    rng = np.random.default_rng(0)
    draws = 4000
    counts = np.bincount([agent.sample_skill(rng, episode) for episode in range(draws)], minlength=NUM_SKILLS)
    assert len(counts) == NUM_SKILLS
    expected = draws / NUM_SKILLS
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # the critical value for 3 degrees of freedom and p = 0.001


def test_stratified_sampling_plays_every_skill_once_in_k_episodes() -> None:
    """In another order each time; the marginal of each place in the order is uniform."""
    agent, rng = small_diayn(skill_sampling="stratified"), np.random.default_rng(0)
    blocks = 1000
    drawn = [agent.sample_skill(rng, episode) for episode in range(blocks * NUM_SKILLS)]
    orders = np.array(drawn).reshape(blocks, NUM_SKILLS)
    assert (np.sort(orders, axis=1) == np.arange(NUM_SKILLS)).all()
    for place in range(NUM_SKILLS):
        counts = np.bincount(orders[:, place], minlength=NUM_SKILLS)
        assert ((counts - blocks / NUM_SKILLS) ** 2 / (blocks / NUM_SKILLS)).sum() < 16.27  # p = 0.001
    assert len({tuple(order) for order in orders}) == math.factorial(NUM_SKILLS)


def test_stratified_sampling_depends_on_seed_and_episode_only() -> None:
    agent = small_diayn(skill_sampling="stratified")
    used, fresh, other = np.random.default_rng(1), np.random.default_rng(1), np.random.default_rng(2)
    used.random(5)
    skills = [[agent.sample_skill(rng, episode) for episode in range(40)] for rng in (used, fresh, other)]
    assert skills[0] == skills[1] != skills[2]
    assert agent.sample_skill(fresh, 21) == skills[1][21]


def test_embedding_dim_0_gives_one_hot_vectors() -> None:
    agent = small_diayn(skill_embedding_dim=0)
    skill = torch.tensor([2, 0])
    for network in (agent.actor, agent.critic, agent.critic_target):
        assert torch.equal(network.skill(skill), torch.eye(NUM_SKILLS)[skill])
        assert not list(network.skill.parameters())


def test_actor_and_critic_have_separate_tables_and_the_target_a_copy() -> None:
    agent = small_diayn(skill_embedding_dim=3)
    actor, critic, target = (
        dict(network.named_parameters())["skill.table.weight"]
        for network in (agent.actor, agent.critic, agent.critic_target)
    )
    assert actor.shape == critic.shape == target.shape == (NUM_SKILLS, 3)
    assert len({table.data_ptr() for table in (actor, critic, target)}) == 3
    assert torch.equal(critic, target)
    assert not torch.equal(actor, critic)
    assert actor.requires_grad
    assert critic.requires_grad
    assert not target.requires_grad
    batch = random_batch(num_skills=NUM_SKILLS)
    old = [table.detach().clone() for table in (actor, critic, target)]
    agent.update(batch._replace(skill=torch.full_like(batch.skill, 1)))
    for table, before in zip((actor, critic, target), old, strict=True):
        moved = (table != before).any(dim=1).tolist()
        assert moved == [False, True, False, False], "the batch holds skill 1 only"


@pytest.mark.parametrize("skill_embedding_dim", [0, 3])
@pytest.mark.parametrize("sample", [False, True])
def test_action_depends_on_the_skill(sample: bool, skill_embedding_dim: int) -> None:
    obs = random_images()[0].numpy()
    actions = []
    for skill in range(NUM_SKILLS):
        agent = small_diayn(skill_embedding_dim=skill_embedding_dim)  # a new agent draws the same noise
        actions.append(agent.act(obs, skill, sample=sample))
    assert len(np.unique(np.round(actions, 4), axis=0)) == NUM_SKILLS


@pytest.mark.parametrize("skill_embedding_dim", [0, 3])
def test_value_depends_on_the_skill(skill_embedding_dim: int) -> None:
    agent = small_diayn(skill_embedding_dim=skill_embedding_dim)
    features = agent.critic.encoder(random_images(1)).expand(NUM_SKILLS, -1)
    for q in agent.critic(features, torch.arange(NUM_SKILLS), torch.zeros(NUM_SKILLS, ACTION_DIM)):
        assert len(q.detach().unique()) == NUM_SKILLS


# -- evaluation --------------------------------------------------------------------------------------------------------


@both_encoders
def test_assess_and_intrinsic_return_agree_on_an_episode(discriminator_encoder: str, fake_env: Any) -> None:
    """The sum of rewards step by step, as in evaluation, is the return from the replay buffer, as in training."""
    env = fake_env(episode_length=11, action_dim=ACTION_DIM)
    obs_shape = env.observation_space.shape
    agent = small_diayn(obs_shape, discriminator_encoder=discriminator_encoder)
    buffer = ReplayBuffer(100, (3, *obs_shape[1:]), 3, ACTION_DIM)
    for skill in (3, 1):
        obs, _ = env.reset(seed=skill)
        buffer.start_episode(obs)
        rewards: list[float] = []
        done = False
        while not done:
            action = agent.act(obs, skill, sample=True)
            obs, reward, terminated, done, _ = env.step(action)
            buffer.add(action, reward, obs, terminated, skill)
            rewards.append(float(agent.assess(obs[None], np.array([skill])).intrinsic_reward[0]))
        assert len(rewards) == 11
        assert np.ptp(rewards) > 0
        assert agent.intrinsic_return(buffer.recent(11, 4)) == pytest.approx(sum(rewards), rel=1e-4)


def test_log_likelihood() -> None:
    agent, obs = small_diayn(), random_batch(9).obs
    with torch.no_grad():
        expected = agent.classify(obs).log_softmax(dim=1).numpy()
    assert expected.shape == (9, NUM_SKILLS)
    np.testing.assert_allclose(agent.log_likelihood(obs.numpy()), expected, rtol=1e-4)
    np.testing.assert_allclose(agent.log_likelihood(obs.numpy(), batch_size=4), expected, rtol=1e-4)


def test_a_separate_encoder_has_the_agents_precision() -> None:
    obs = random_images()
    logits = [small_diayn(discriminator_encoder="separate", precision=p).classify(obs) for p in ("fp32", "bf16")]
    assert not torch.equal(*logits)
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.05)


def test_assess_predicts_the_most_likely_skill() -> None:
    """q = 1/8, 5/8, 1/8, 1/8; the intrinsic reward of each skill is log q - log 1/4."""
    agent = small_diayn()
    fix_logits(agent, [math.log(1), math.log(5), math.log(1), math.log(1)])
    assessment = agent.assess(random_images(4).numpy(), np.arange(4))
    assert assessment.predicted.tolist() == [1, 1, 1, 1]
    unlikely, likely = math.log(1 / 8) - math.log(1 / 4), math.log(5 / 8) - math.log(1 / 4)
    assert assessment.intrinsic_reward == pytest.approx([unlikely, likely, unlikely, unlikely])


@both_encoders
def test_assess_agrees_with_act_and_classify(discriminator_encoder: str) -> None:
    """Row by row: the deterministic action for the row's skill, and the intrinsic reward as in an update."""
    agent = small_diayn(discriminator_encoder=discriminator_encoder)
    obs, skill = random_images(6), np.arange(6) % NUM_SKILLS
    assessment = agent.assess(obs.numpy(), skill)
    with torch.no_grad():
        logits = agent.classify(obs)
    reward = agent.intrinsic_reward(logits, torch.from_numpy(skill))
    actions = [agent.act(one, int(z), sample=False) for one, z in zip(obs.numpy(), skill, strict=True)]
    np.testing.assert_allclose(assessment.action, actions, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(assessment.intrinsic_reward, reward.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(assessment.predicted, logits.argmax(dim=1).numpy())


def test_modules_and_histograms_include_the_discriminator() -> None:
    agent = small_diayn(discriminator_encoder="separate")
    assert agent.modules() == {"actor": agent.actor, "critic": agent.critic, "discriminator": agent.discriminator}
    names = {name for name, _ in agent.histograms()}
    assert {"discriminator/encoder_convs_0_weight", "actor/skill_table_weight", "critic/skill_table_weight"} <= names


# -- DISDAIN -----------------------------------------------------------------------------------------------------------


def log_of(*members: list[list[float]]) -> torch.Tensor:
    """Return logits (E, N, K), not normalized, for the probabilities of each member."""
    return torch.tensor(members).clamp_min(1e-30).log() + torch.tensor([[[0.0]], [[7.0]]])


def test_the_ensemble_is_the_mean_of_the_probabilities() -> None:
    logits = log_of([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], [[0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[0.3, 0.225, 0.475], [0.5, 0.0, 0.5]])
    torch.testing.assert_close(ensemble_mean(logits).exp(), expected)
    torch.testing.assert_close(ensemble_mean(logits[:1]), logits[0])


@pytest.mark.parametrize(
    ("one", "other", "bonus"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0),  # both know that they cannot know
        ([0.9, 0.1], [0.9, 0.1], 0.0),
        ([1.0, 0.0], [0.0, 1.0], math.log(2)),  # both are sure, and one is wrong
        ([1.0, 0.0], [0.5, 0.5], 0.75 * math.log(4 / 3) + 0.25 * math.log(4) - 0.5 * math.log(2)),
    ],
)
def test_disagreement(one: list[float], other: list[float], bonus: float) -> None:
    assert disagreement(log_of([one], [other])).item() == pytest.approx(bonus, abs=1e-6)


def test_disagreement_is_within_its_range() -> None:
    for scale in (1e-3, 1.0, 1e3):
        values = disagreement(scale * torch.randn(3, 500, 7, generator=torch.Generator().manual_seed(0)))
        assert values.min() >= 0
        assert values.max() <= math.log(3) + 1e-5


@pytest.mark.parametrize("reward_from", ["before", "after"])
def test_reward_with_disdain(reward_from: str) -> None:
    """The critic gets the weighted sum with the clipped intrinsic reward; the metrics have neither weight nor clip."""
    coefficients: dict[str, Any] = {"extrinsic_reward_coeff": 0.5, "diayn_intrinsic_reward_coeff": 2.0}
    agent = small_diayn(
        **coefficients,
        disdain_coeff=3.0,
        discriminator_ensemble=3,
        intrinsic_reward_from=reward_from,
        lr_discriminator=1e-2,
    )
    batch = random_batch(16, num_skills=NUM_SKILLS)
    views = agent.make_views(batch)
    logits = {"before": agent.member_logits(views.next_obs[:16]).detach()}
    reward, metrics = agent.rewards(views, torch.empty(32, 0))  # with convolutions of its own, it needs no features
    logits["after"] = agent.member_logits(views.next_obs[:16]).detach()

    members = logits[reward_from].softmax(dim=-1)
    r_int = members.mean(dim=0)[torch.arange(16), batch.skill].log() + math.log(NUM_SKILLS)
    of_mean, of_members = (torch.distributions.Categorical(probs).entropy() for probs in (members.mean(dim=0), members))
    bonus = of_mean - of_members.mean(dim=0)
    assert r_int.min() < 0 < r_int.max()
    assert bonus.min() > 0
    torch.testing.assert_close(reward, 0.5 * batch.reward + 2.0 * r_int.clamp(min=0) + 3.0 * bonus)
    assert metrics["intrinsic_reward"].item() == pytest.approx(r_int.mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["disdain_bonus"].item() == pytest.approx(bonus.mean().item(), rel=1e-3)


def test_an_ensemble_without_disdain_has_no_bonus() -> None:
    """The intrinsic reward of the members' mean, negative ones too."""
    agent, batch = small_diayn(discriminator_ensemble=2, intrinsic_reward_from="before"), random_batch(num_skills=4)
    views = agent.make_views(batch)
    with torch.no_grad():
        expected = agent.intrinsic_reward(agent.classify(views.next_obs[:8]), batch.skill)
    reward, metrics = agent.rewards(views, torch.empty(16, 0))
    assert expected.min() < 0
    torch.testing.assert_close(reward, expected)
    assert "disdain_bonus" not in metrics


@both_encoders
def test_members_of_an_ensemble(discriminator_encoder: str) -> None:
    """Each has its own weights and learns; a single one has the names and the weights of runs without ensembles."""
    single, several = (
        small_diayn(discriminator_ensemble=members, discriminator_encoder=discriminator_encoder) for members in (1, 3)
    )
    names = [name for name in several.modules() if name.startswith("discriminator")]
    assert names == ["discriminator", "discriminator_1", "discriminator_2"]
    assert set(single.modules()) == {"actor", "critic", "discriminator"}
    assert_same_weights(single.discriminator, several.discriminator)
    before = [copy.deepcopy(several.modules()[name].state_dict()) for name in names]
    assert all(not torch.equal(before[0][key], before[1][key]) for key in before[0] if "0.weight" in key)
    discriminator_step(several, random_images(4), torch.tensor([0, 1, 2, 3]))
    for name, old in zip(names, before, strict=True):
        changed = {
            key for key, value in several.modules()[name].state_dict().items() if not torch.equal(value, old[key])
        }
        assert changed == set(old), name


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for value, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_disagreement_is_about_what_is_unknown() -> None:
    """The check of the paper: it vanishes where there were many data, also where they cannot tell skills apart.

    Pictures show one color per skill, or a common one. It stays in colors that were never shown.
    """
    agent = small_diayn(discriminator_ensemble=3, lr_discriminator=3e-3, encoder_feature_dim=16, hidden_dim=64)
    colors = np.random.default_rng(3).integers(256, size=(40, OBS_SHAPE[0], 1, 1), dtype=np.uint8)

    def images(numbers: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(colors)[numbers].expand(-1, *OBS_SHAPE).contiguous()

    rng = np.random.default_rng(0)
    for _ in range(200):
        skill = torch.from_numpy(rng.integers(NUM_SKILLS, size=16))
        shown = torch.where(torch.from_numpy(rng.random(16) < 0.3), NUM_SKILLS, skill)
        discriminator_step(agent, images(shown), skill)
    with torch.no_grad():
        logits = agent.member_logits(images(torch.arange(40)))
    bonus, certainty = disagreement(logits), ensemble_mean(logits).softmax(dim=-1).max(dim=-1).values
    known, ambiguous, unknown = bonus[:NUM_SKILLS], bonus[NUM_SKILLS], bonus[NUM_SKILLS + 1 :]
    assert certainty[:NUM_SKILLS].min() > 0.9
    assert certainty[NUM_SKILLS] < 0.5
    assert known.max() < 0.02
    assert ambiguous < 0.02
    assert unknown.mean() > 0.1
