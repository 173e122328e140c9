"""DrQ: soft actor-critic from pixels, regularized by image augmentation.

Paper: Image Augmentation Is All You Need (Yarats, Kostrikov, Fergus; ICLR 2021), https://arxiv.org/abs/2004.13649
SAC:   Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018), https://arxiv.org/abs/1812.05905
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from augmentations import make_augmentation
from networks import Actor, ActorCritic, Architecture, Critic, soft_update
from replay_buffer import Batch
from running.columns import NO_SKILL
from utils import make_adam, minimize, upload

Metrics = dict[str, torch.Tensor]  # detached scalars on the agent's device; reading one synchronizes

NUM_VIEWS = 2  # the paper's M (views of obs) and K (views of next_obs)


class Views(NamedTuple):
    """The augmented batch of one update, B transitions, together with all of the update's random numbers.

    Views are concatenated: rows 0 to B - 1 are the first view of each transition, rows B to 2B - 1 the second.
    """

    obs: torch.Tensor  # (M * B, C, H, W)
    action: torch.Tensor  # (B, action_dim)
    reward: torch.Tensor  # (B,), the environment's
    next_obs: torch.Tensor  # (K * B, C, H, W)
    terminated: torch.Tensor  # (B,)
    skill: torch.Tensor  # (B,)
    next_noise: torch.Tensor  # (K * B, action_dim), standard normal: selects the next actions of the target
    noise: torch.Tensor  # (B, action_dim), standard normal: selects the actions of the actor's loss
    # of a batch for the discriminator alone, if there is one: a view of next_obs (B, C, H, W), and the skill (B,)
    recent: tuple[torch.Tensor, ...] = ()

    def map_images(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Views:
        """Return these views with `function` of all images."""
        recent = (function(self.recent[0]), *self.recent[1:]) if self.recent else ()
        return self._replace(obs=function(self.obs), next_obs=function(self.next_obs), recent=recent)


class Assessment(NamedTuple):
    """An agent's answer to N observations in evaluation."""

    action: np.ndarray  # float32 (N, action_dim)
    intrinsic_reward: np.ndarray  # float32 (N,), for reaching these observations; 0 without DIAYN
    predicted: np.ndarray  # int64 (N,), the discriminator's most likely skill; NO_SKILL without DIAYN


class DrQAgent(ActorCritic):
    """DrQ. `update` takes one gradient step on a batch, `act` chooses one action.

    All randomness comes from a generator of its own, except for the initial weights and the augmentations other than
    "shift" and "none", which draw from torch's global generator.

    Args:
        obs_shape: (C, H, W) of the stacked uint8 observation.
        extrinsic_reward_coeff: weight of the environment's reward.
        learn_temperature: False keeps the temperature at `init_temperature`.
        num_skills, skill_embedding_dim: width of the skill input, 0 without DIAYN.
        skill_embedding_init: "normal" or "orthogonal", the initial learned embedding.
        precision: "fp32" or "bf16", for the convolutions and the linear layer behind them.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        action_dim: int,
        *,
        device: torch.device | str,
        seed: int,
        augmentation: str = "shift",
        image_pad: int = 4,
        lr: float = 1e-3,
        discount: float = 0.99,
        extrinsic_reward_coeff: float = 1.0,
        init_temperature: float = 0.1,
        learn_temperature: bool = True,
        actor_update_frequency: int = 2,
        critic_tau: float = 0.01,
        critic_target_update_frequency: int = 2,
        encoder_feature_dim: int = 50,
        hidden_dim: int = 1024,
        hidden_depth: int = 2,
        log_std_bounds: tuple[float, float] = (-10.0, 2.0),
        num_skills: int = 0,
        skill_embedding_dim: int = 0,
        skill_embedding_init: str = "normal",
        precision: str = "fp32",
    ) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        sizes = (encoder_feature_dim, hidden_dim, hidden_depth, num_skills, skill_embedding_dim)
        self.arch = Architecture(obs_shape, action_dim, *sizes, log_std_bounds, precision, skill_embedding_init)
        self.critic = Critic(self.arch).to(self.device)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = Actor(self.arch, self.critic.encoder.conv_dim).to(self.device)
        self.log_alpha = torch.tensor(math.log(init_temperature), device=self.device, requires_grad=learn_temperature)
        self.critic_optimizer = make_adam(self.critic.parameters(), lr)
        self.actor_optimizer = make_adam(self.actor.parameters(), lr)
        self.alpha_optimizer = make_adam([self.log_alpha], lr) if learn_temperature else None
        self.augment = make_augmentation(augmentation, image_pad, self.generator)
        self.discount, self.critic_tau = discount, critic_tau
        self.extrinsic_coeff = extrinsic_reward_coeff
        self.actor_update_frequency = actor_update_frequency
        self.critic_target_update_frequency = critic_target_update_frequency
        self.action_dim, self.target_entropy = action_dim, -float(action_dim)

    # -- acting and evaluation ------------------------------------------------------------------------------------

    def skills(self) -> list[int]:
        """Return the skills to evaluate. DrQ has a single one, which may be NO_SKILL."""
        return [self.skill]

    def sample_skill(self, rng: np.random.Generator, episode: int) -> int:
        """Return the skill of training episode number `episode`, from 0. DrQ draws no random number for it."""
        return self.skill

    def act(self, obs: np.ndarray, skill: int, *, sample: bool) -> np.ndarray:
        """Return one action, float32 (action_dim,) in [-1, 1], for one observation: sampled, or the policy's mode."""
        noise = self._normal(1) if sample else torch.zeros(1, self.action_dim, device=self.device)
        inputs = upload([obs[None], np.array([skill])], self.device)
        return self.launch(self.policy, *inputs, noise)[0].cpu().numpy()

    @torch.no_grad()
    def policy(self, obs: torch.Tensor, skill: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the actions (N, action_dim) that standard normal noise selects. Noise 0 selects the mode."""
        return self.actor(self.critic.encoder(obs), skill).sample(noise)[0]

    def assess(self, obs: np.ndarray, skill: np.ndarray, noise: np.ndarray | None = None) -> Assessment:
        """Return actions, intrinsic rewards and predicted skills for observations (N, C, H, W).

        The actions are those that standard normal `noise`, float32 (N, action_dim), selects; without it, the modes.
        """
        inputs = upload([obs, skill] if noise is None else [obs, skill, noise], self.device)
        return Assessment(*(value.cpu().numpy() for value in self.launch(self.evaluate, *inputs)))

    @torch.no_grad()
    def evaluate(
        self, obs: torch.Tensor, skill: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the fields of an `Assessment` as tensors. A row's results do not depend on the other rows.

        The networks get a multiple of 4 rows: with fewer, the CPU's matrix product sums in another order, and the last
        bits would depend on how many episodes are played at once.
        """
        count = len(obs)
        rows = torch.arange(count + -count % 4, device=self.device).clamp_max(count - 1)  # repeats the last row
        obs, skill = self.critic.encoder.scale(obs[rows]), skill[rows]
        features = self.critic.encoder(obs)
        policy = self.actor(features, skill)
        action = policy.mode() if noise is None else policy.sample(noise[rows])[0]
        outputs = (action, *self.discriminate(obs, features, skill))
        return tuple(value[:count] for value in outputs)

    def discriminate(
        self, obs: torch.Tensor, features: torch.Tensor, skill: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return intrinsic rewards and predicted skills, each (N,), given images and the critic's features of them."""
        return torch.zeros(len(features), device=self.device), torch.full_like(skill, NO_SKILL)

    def intrinsic_return(self, episode: Iterable[Batch]) -> float:
        """Return the sum of an episode's intrinsic rewards, given in batches; DrQ reads none of them."""
        return 0.0

    # -- learning -------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, *more: Batch) -> Metrics:
        """Take one gradient step on a batch (algorithm 1). Actor metrics are present if the actor was updated.

        `more` are batches that only `make_views` of a subclass takes.
        """
        metrics = self.launch(self.learn, self.make_views(batch, *more), kind=self.due())
        self.num_updates += 1
        return {"batch_reward": batch.reward.mean(), **metrics}

    def make_views(self, batch: Batch) -> Views:
        """Augment a batch, M = K = 2 independent views of each observation, and draw the update's noise.

        `cat` keeps channels_last; `repeat` would not.
        """
        batch = batch._replace(
            obs=self.augment(torch.cat([batch.obs] * NUM_VIEWS)),
            next_obs=self.augment(torch.cat([batch.next_obs] * NUM_VIEWS)),
        )
        rows = len(batch.reward)
        return Views(*batch, next_noise=self._normal(NUM_VIEWS * rows), noise=self._normal(rows))

    def learn(self, views: Views) -> Metrics:
        """Update the networks: a function of the weights and the views, without randomness of its own."""
        views = views.map_images(self.critic.encoder.scale)  # once, for all encoders
        actor_is_due, target_is_due = self.due()
        with torch.no_grad():  # before the critic's step; for the target's actions and a shared discriminator
            next_features = self.critic.encoder(views.next_obs)
        reward, metrics = self.rewards(views, next_features)
        metrics |= self.update_critic(views, reward, next_features)
        if actor_is_due:
            metrics |= self.update_actor_and_alpha(views)
        if target_is_due:
            soft_update(self.critic, self.critic_target, self.critic_tau)
        return metrics

    def due(self) -> tuple[bool, bool]:
        """Return whether the next update also steps actor and temperature, and whether it moves the target."""
        return (
            self.num_updates % self.actor_update_frequency == 0,
            self.num_updates % self.critic_target_update_frequency == 0,
        )

    def rewards(self, views: Views, next_features: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Return the rewards (B,) to learn from, and metrics. The hook by which DIAYN adds its intrinsic reward.

        `next_features` (K * B, conv_dim) are the critic's convolutional features of `views.next_obs`.
        """
        return self.extrinsic_coeff * views.reward, {}

    @torch.no_grad()
    def target_q(self, views: Views, reward: torch.Tensor, next_features: torch.Tensor) -> torch.Tensor:
        """Return y = r + gamma (1 - terminated) * mean over K views of [min Q' - alpha log pi(a'|s')] (eq. 2), (B,)."""
        skill = views.skill.repeat(NUM_VIEWS)
        next_action, log_prob = self.actor(next_features, skill).sample(views.next_noise)
        q1, q2 = self.critic_target(self.critic_target.encoder(views.next_obs), skill, next_action)
        value = torch.min(q1, q2) - self.log_alpha.exp() * log_prob
        return reward + self.discount * (1.0 - views.terminated) * value.view(NUM_VIEWS, -1).mean(dim=0)

    def critic_loss(self, views: Views, reward: torch.Tensor, next_features: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error to y, summed over both Qs and, as in DrQ's code, over the M views (eq. 3)."""
        target = self.target_q(views, reward, next_features).repeat(NUM_VIEWS)
        skill, action = views.skill.repeat(NUM_VIEWS), views.action.repeat(NUM_VIEWS, 1)
        q1, q2 = self.critic(self.critic.encoder(views.obs), skill, action)
        return NUM_VIEWS * (F.mse_loss(q1, target) + F.mse_loss(q2, target))

    def update_critic(self, views: Views, reward: torch.Tensor, next_features: torch.Tensor) -> Metrics:
        """Take one step on the critic's loss, which also trains the encoder."""
        loss = self.critic_loss(views, reward, next_features)
        minimize(loss, self.critic_optimizer)
        return {"critic_loss": loss.detach()}

    def actor_loss(self, views: Views) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean(alpha log pi - min Q) on the first view, and log pi (B,). Only the actor gets gradients."""
        with torch.no_grad():  # after the critic's step; for both actor and critic
            features = self.critic.encoder(views.obs[: len(views.reward)])
        action, log_prob = self.actor(features, views.skill).sample(views.noise)
        self.critic.requires_grad_(False)
        q1, q2 = self.critic(features, views.skill, action)
        self.critic.requires_grad_(True)
        return (self.log_alpha.detach().exp() * log_prob - torch.min(q1, q2)).mean(), log_prob

    def alpha_loss(self, log_prob: torch.Tensor) -> torch.Tensor:
        """Return mean(alpha (-log pi - target entropy)) (SAC, eq. 18). Only the temperature gets gradients."""
        return (self.log_alpha.exp() * (-log_prob.detach() - self.target_entropy)).mean()

    def update_actor_and_alpha(self, views: Views) -> Metrics:
        """Take one step on the actor's loss and, unless the temperature is fixed, one on the temperature's."""
        loss, log_prob = self.actor_loss(views)
        minimize(loss, self.actor_optimizer)
        alpha_loss = self.alpha_loss(log_prob)
        if self.alpha_optimizer is not None:
            minimize(alpha_loss, self.alpha_optimizer)
        return {
            "actor_loss": loss.detach(),
            "actor_entropy": -log_prob.detach().mean(),
            "actor_target_entropy": torch.full_like(alpha_loss.detach(), self.target_entropy),
            "alpha_loss": alpha_loss.detach(),
            "alpha_value": self.log_alpha.detach().exp(),
        }

    def _normal(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self.action_dim, generator=self.generator, device=self.device)
