"""The plain baseline: the updates of DrQ and DIAYN in simple PyTorch, as a reference for the agents and for benchmarks.

It uses float32 images in contiguous NCHW, one forward pass per view, metrics that are read back at once, and a replay
buffer of full stacks. It shares no code with the agents; only its parameters have the same names, so that weights can
be copied. Small agents and random batches for tests are at the end.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal
from torch.distributions.transforms import TanhTransform

from diayn import DIAYNAgent
from drq import DrQAgent, Views
from replay_buffer import Batch
from running.columns import NO_SKILL


class Encoder(nn.Module):
    """Images (N, C, H, W) with values 0 to 255 to features, flattened in NCHW order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, stride=2), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 3, stride=1), nn.ReLU()]
        self.convs = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255.0
        return self.convs(x.to(next(self.parameters()).dtype)).flatten(1)


class SkillCode(nn.Module):
    """A learned table of skills, or one-hot vectors if `embedding_dim` is 0."""

    def __init__(self, num_skills: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_skills = num_skills
        self.table = nn.Embedding(num_skills, embedding_dim) if embedding_dim else None

    def forward(self, skill: torch.Tensor) -> torch.Tensor:
        return self.table(skill) if self.table is not None else F.one_hot(skill, self.num_skills).float()


class Network(nn.Module):
    """Base of actor, critic and discriminator: the head and, with skills, a skill code next to its output."""

    def __init__(self, conv_dim: int, feature_dim: int, num_skills: int = 0, embedding_dim: int = 0) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(conv_dim, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())
        self.skill = SkillCode(num_skills, embedding_dim) if num_skills else None
        self.width = feature_dim + ((embedding_dim or num_skills) if num_skills else 0)

    def join(self, features: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
        x = self.head(features)
        return x if self.skill is None else torch.cat([x, self.skill(skill)], dim=1)


class Critic(Network):
    """Q1 and Q2, and the encoder that they own."""

    def __init__(self, channels: int, action_dim: int, hidden: Sequence[int], *sizes: int) -> None:
        super().__init__(*sizes)
        self.encoder = Encoder(channels)
        self.q1 = mlp([self.width + action_dim, *hidden, 1])
        self.q2 = mlp([self.width + action_dim, *hidden, 1])

    def forward(
        self, features: torch.Tensor, skill: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([self.join(features, skill), action], dim=1)
        return self.q1(x)[:, 0], self.q2(x)[:, 0]


class Actor(Network):
    """The squashed Gaussian policy. Returns the action that `noise` selects and its log-probability."""

    def __init__(
        self, action_dim: int, log_std_bounds: tuple[float, float], hidden: Sequence[int], *sizes: int
    ) -> None:
        super().__init__(*sizes)
        self.action_dim, self.log_std_bounds = action_dim, log_std_bounds
        self.policy = mlp([self.width, *hidden, 2 * action_dim])

    def forward(
        self, features: torch.Tensor, skill: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.policy(self.join(features, skill))
        mean, log_std = output[:, : self.action_dim], output[:, self.action_dim :]
        low, high = self.log_std_bounds
        std = (low + (high - low) * (log_std.tanh() + 1) / 2).exp()
        x = mean + std * noise
        action = x.tanh()
        log_prob = Normal(mean, std, validate_args=False).log_prob(x) - TanhTransform().log_abs_det_jacobian(x, action)
        return action, log_prob.sum(dim=1)


class Discriminator(Network):
    """Logits over skills, with or without an encoder of its own."""

    def __init__(self, channels: int, num_skills: int, hidden: Sequence[int], *sizes: int, separate: bool) -> None:
        super().__init__(*sizes)
        self.encoder = Encoder(channels) if separate else None
        self.classifier = mlp([self.width, *hidden, num_skills])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.head(features))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class OracleAgent(nn.Module):
    """DrQ, or DIAYN if `num_skills` > 0, with the arguments of the real agents. `load` one of those before use.

    `update` augments a batch itself, with kornia. `learn` takes the augmented views and the noise of a `Views`.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        action_dim: int,
        *,
        device: torch.device | str = "cpu",
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
        lr_discriminator: float = 1e-3,
        discriminator_encoder: str = "separate",
        diayn_intrinsic_reward_coeff: float = 1.0,
    ) -> None:
        super().__init__()
        self.action_dim, self.num_skills = action_dim, num_skills
        self.discount, self.critic_tau = discount, critic_tau
        self.extrinsic_coeff, self.intrinsic_coeff = extrinsic_reward_coeff, diayn_intrinsic_reward_coeff
        self.actor_update_frequency = actor_update_frequency
        self.critic_target_update_frequency = critic_target_update_frequency
        self.num_updates = 0
        self.augment = nn.Sequential(
            nn.ReplicationPad2d(image_pad), kornia.augmentation.RandomCrop((obs_shape[1], obs_shape[2]))
        )

        channels, hidden = obs_shape[0], [hidden_dim] * hidden_depth
        self.conv_shape = Encoder(channels).convs(torch.zeros(1, *obs_shape)).shape[1:]
        sizes = (self.conv_shape.numel(), encoder_feature_dim)
        skill_sizes = (num_skills, skill_embedding_dim)
        self.critic = Critic(channels, action_dim, hidden, *sizes, *skill_sizes)
        self.critic_target = copy.deepcopy(self.critic)
        self.actor = Actor(action_dim, log_std_bounds, hidden, *sizes, *skill_sizes)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(init_temperature)))
        self.discriminator = None
        if num_skills:
            separate = discriminator_encoder == "separate"
            self.discriminator = Discriminator(channels, num_skills, hidden, *sizes, separate=separate)
        self.to(device)

        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=lr) if learn_temperature else None
        if self.discriminator is not None:
            self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr_discriminator)

    def translate(self, agent: DrQAgent) -> dict[str, torch.Tensor]:
        """Return an agent's weights as a state of this one: the heads' columns go from (H, W, filter) to NCHW order."""
        filters, height, width = self.conv_shape
        state = {"log_alpha": agent.log_alpha.detach().clone()}
        for network, module in {**agent.modules(), "critic_target": agent.critic_target}.items():
            for name, value in module.state_dict().items():
                if name == "head.0.weight":
                    value = value.view(-1, height, width, filters).permute(0, 3, 1, 2).flatten(1)
                state[f"{network}.{name}"] = value.clone(memory_format=torch.contiguous_format)
        return state

    def load(self, agent: DrQAgent) -> OracleAgent:
        """Copy the weights of an agent."""
        self.load_state_dict(self.translate(agent))
        return self

    def update(self, batch: Batch) -> dict[str, float]:
        """Update on a batch as the replay buffer returns it."""
        obs, next_obs = batch.obs.float().contiguous(), batch.next_obs.float().contiguous()
        metrics = self._learn(
            obs=[self.augment(obs), self.augment(obs)],
            action=batch.action,
            reward=batch.reward,
            next_obs=[self.augment(next_obs), self.augment(next_obs)],
            terminated=batch.terminated,
            skill=batch.skill,
            next_noise=[torch.randn_like(batch.action), torch.randn_like(batch.action)],
            noise=torch.randn_like(batch.action),
        )
        return {"batch_reward": batch.reward.mean().item(), **metrics}

    def learn(self, views: Views) -> dict[str, float]:
        """Update on the views and the noise that an agent uses."""
        rows = len(views.reward)
        inputs: dict[str, Any] = views._asdict()
        del inputs["recent"]  # its discriminator learns from the batch of the critic
        inputs["obs"] = [view.contiguous() for view in views.obs.split(rows)]
        inputs["next_obs"] = [view.contiguous() for view in views.next_obs.split(rows)]
        inputs["next_noise"] = views.next_noise.split(rows)
        return self._learn(**inputs)

    def _learn(
        self,
        obs: Sequence[torch.Tensor],
        action: torch.Tensor,
        reward: torch.Tensor,
        next_obs: Sequence[torch.Tensor],
        terminated: torch.Tensor,
        skill: torch.Tensor,
        next_noise: Sequence[torch.Tensor],
        noise: torch.Tensor,
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        reward = self.extrinsic_coeff * reward
        if self.discriminator is not None:
            metrics |= self._update_discriminator(next_obs[0], skill)
            with torch.no_grad():
                log_q = self._discriminate(next_obs[0]).log_softmax(dim=1)
                intrinsic = log_q.gather(1, skill[:, None])[:, 0] + math.log(self.num_skills)
            reward = reward + self.intrinsic_coeff * intrinsic
            metrics["intrinsic_reward"] = intrinsic.mean().item()

        with torch.no_grad():
            values = []
            for images, view_noise in zip(next_obs, next_noise, strict=True):
                next_action, log_prob = self.actor(self.critic.encoder(images), skill, view_noise)
                q1, q2 = self.critic_target(self.critic_target.encoder(images), skill, next_action)
                values.append(torch.min(q1, q2) - self.log_alpha.exp() * log_prob)
            target = reward + self.discount * (1 - terminated) * torch.stack(values).mean(dim=0)
        losses = []
        for images in obs:
            for q in self.critic(self.critic.encoder(images), skill, action):
                losses.append((q - target).square().mean())
        metrics["critic_loss"] = self._step(self.critic_optimizer, torch.stack(losses).sum())

        if self.num_updates % self.actor_update_frequency == 0:
            metrics |= self._update_actor_and_alpha(obs[0], skill, noise)
        if self.num_updates % self.critic_target_update_frequency == 0:
            with torch.no_grad():
                for online, slow in zip(self.critic.parameters(), self.critic_target.parameters(), strict=True):
                    slow.copy_(self.critic_tau * online + (1 - self.critic_tau) * slow)
        self.num_updates += 1
        return metrics

    def _update_actor_and_alpha(self, obs: torch.Tensor, skill: torch.Tensor, noise: torch.Tensor) -> dict[str, float]:
        action, log_prob = self.actor(self.critic.encoder(obs).detach(), skill, noise)
        q1, q2 = self.critic(self.critic.encoder(obs).detach(), skill, action)
        alpha = self.log_alpha.exp().detach()
        actor_loss = self._step(self.actor_optimizer, (alpha * log_prob - torch.min(q1, q2)).mean())

        entropy, target_entropy = -log_prob.detach(), -float(self.action_dim)
        alpha_loss = (self.log_alpha.exp() * (entropy - target_entropy)).mean()
        if self.alpha_optimizer is not None:
            self._step(self.alpha_optimizer, alpha_loss)
        return {
            "actor_loss": actor_loss,
            "actor_entropy": entropy.mean().item(),
            "actor_target_entropy": target_entropy,
            "alpha_loss": alpha_loss.item(),
            "alpha_value": self.log_alpha.exp().item(),
        }

    def _discriminate(self, images: torch.Tensor) -> torch.Tensor:
        assert self.discriminator is not None
        if self.discriminator.encoder is not None:
            return self.discriminator(self.discriminator.encoder(images))
        return self.discriminator(self.critic.encoder(images).detach())

    def _update_discriminator(self, images: torch.Tensor, skill: torch.Tensor) -> dict[str, float]:
        logits = self._discriminate(images)
        loss = -logits.log_softmax(dim=1).gather(1, skill[:, None]).mean()
        accuracy = (logits.argmax(dim=1) == skill).float().mean().item()
        return {
            "discriminator_loss": self._step(self.discriminator_optimizer, loss),
            "discriminator_accuracy": accuracy,
        }

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


class FullStackReplay:
    """A ring buffer of transitions that stores both stacked observations of each."""

    def __init__(
        self,
        capacity: int,
        obs_shape: tuple[int, ...],
        action_dim: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.capacity, self.device = capacity, torch.device(device)
        self.added = 0
        self.rng = np.random.default_rng(seed)
        self.obs, self.next_obs = (np.empty((capacity, *obs_shape), np.uint8) for _ in range(2))
        self.action = np.empty((capacity, action_dim), np.float32)
        self.reward, self.terminated = (np.empty(capacity, np.float32) for _ in range(2))
        self.skill = np.empty(capacity, np.int64)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: float,
        next_obs: np.ndarray,
        terminated: bool,
        skill: int = NO_SKILL,
    ) -> None:
        row = self.added % self.capacity
        self.obs[row], self.next_obs[row] = obs, next_obs
        self.action[row], self.reward[row] = action, reward
        self.terminated[row], self.skill[row] = terminated, skill
        self.added += 1

    def sample(self, batch_size: int) -> Batch:
        rows = self.rng.integers(len(self), size=batch_size)
        return Batch(*(torch.as_tensor(getattr(self, field)[rows], device=self.device) for field in Batch._fields))


METRICS = (  # that the oracle computes; an agent may have more
    *("batch_reward", "critic_loss", "actor_loss", "actor_entropy", "actor_target_entropy", "alpha_loss"),
    *("alpha_value", "discriminator_loss", "discriminator_accuracy", "intrinsic_reward"),
)
OBS_SHAPE, ACTION_DIM = (6, 24, 28), 2  # not square, to detect transposed images
SMALL: dict[str, Any] = {"device": "cpu", "encoder_feature_dim": 8, "hidden_dim": 16}
SMALL_DIAYN: dict[str, Any] = {
    "num_skills": 4,
    "skill_embedding_dim": 3,
    "lr_discriminator": 1e-3,
    "extrinsic_reward_coeff": 0.0,
    "learn_temperature": False,
}


def small_drq(obs_shape: tuple[int, ...] = OBS_SHAPE, seed: int = 0, **settings: Any) -> DrQAgent:
    """Return a DrQ agent with small networks."""
    torch.manual_seed(seed)
    return DrQAgent(obs_shape, ACTION_DIM, seed=seed, **{**SMALL, **settings})


def small_diayn(obs_shape: tuple[int, ...] = OBS_SHAPE, seed: int = 0, **settings: Any) -> DIAYNAgent:
    """Return a DIAYN agent with small networks."""
    torch.manual_seed(seed)
    return DIAYNAgent(obs_shape, ACTION_DIM, seed=seed, **{**SMALL, **SMALL_DIAYN, **settings})


def random_batch(
    size: int = 8,
    obs_shape: tuple[int, ...] = OBS_SHAPE,
    action_dim: int = ACTION_DIM,
    num_skills: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Batch:
    """Return a batch of noise; about a quarter of the transitions are terminated."""
    rng = np.random.default_rng(seed)
    arrays = (
        rng.integers(256, size=(size, *obs_shape), dtype=np.uint8),
        rng.uniform(-1, 1, (size, action_dim)).astype(np.float32),
        rng.normal(size=size).astype(np.float32),
        rng.integers(256, size=(size, *obs_shape), dtype=np.uint8),
        (rng.random(size) < 0.25).astype(np.float32),
        rng.integers(num_skills, size=size) if num_skills else np.full(size, NO_SKILL),
    )
    return Batch(*(torch.from_numpy(array).to(device) for array in arrays))
