"""DIAYN on top of DrQ: skills, the discriminator that tells them apart, and the reward it pays.

Paper: Diversity Is All You Need (Eysenbach, Gupta, Ibarz, Levine; ICLR 2019), https://arxiv.org/abs/1802.06070
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from drq import DrQAgent, Encoder, Metrics, Sizes, Views, make_head
from replay_buffer import Batch
from utils import mlp, to_channels_last, weight_init


class Discriminator(nn.Module):
    """q_phi(z | s'): which skill led to this observation. It sees the stacked next observation, never an action.

    `encoder` None: it reads the convolutional features that it is handed (shared, detached). Otherwise it has
    convolutions of its own, trained by its own loss.
    """

    def __init__(self, conv_dim: int, sizes: Sizes, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = make_head(conv_dim, sizes.encoder_feature_dim)
        self.classifier = mlp(sizes.encoder_feature_dim, sizes.hidden_dim, sizes.num_skills, sizes.hidden_depth)
        self.apply(weight_init)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_skills) from convolutional features (N, conv_dim)."""
        return self.classifier(self.head(features))


class DIAYNAgent(DrQAgent):
    """DrQ whose actor and critic are conditioned on a skill and whose reward is the discriminator's.

    Args:
        num_skills: K; p(z) is uniform and stays so.
        skill_embedding_dim: width of the learned embedding; 0 feeds the one-hot vector.
        lr_discriminator: Adam's learning rate for the discriminator.
        discriminator_encoder: "separate" has convolutions of its own; "shared" reads the critic's, which say ever less
            where the reward is the discriminator's alone and still small (results/skills).
        diayn_intrinsic_reward_coeff: weight of r_int, which is added to the weighted environment's reward.
        drq: everything else as `DrQAgent` takes it.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        action_dim: int,
        *,
        num_skills: int,
        skill_embedding_dim: int,
        lr_discriminator: float,
        discriminator_encoder: str = "separate",
        diayn_intrinsic_reward_coeff: float = 1.0,
        encoder_feature_dim: int = 50,
        hidden_dim: int = 1024,
        hidden_depth: int = 2,
        precision: str = "fp32",
        **drq: Any,
    ) -> None:
        sizes = Sizes(encoder_feature_dim, hidden_dim, hidden_depth, num_skills, skill_embedding_dim)
        super().__init__(obs_shape, action_dim, precision=precision, **sizes._asdict(), **drq)
        self.num_skills, self.intrinsic_coeff = num_skills, diayn_intrinsic_reward_coeff
        own_encoder = Encoder(obs_shape, precision) if discriminator_encoder == "separate" else None
        self.discriminator = Discriminator(self.critic.encoder.feature_dim, sizes, own_encoder)
        to_channels_last(self.discriminator.to(self.device))
        self.discriminator_optimizer = self.make_optimizer(self.discriminator.parameters(), lr_discriminator)

    def skills(self) -> list[int]:
        return list(range(self.num_skills))

    def sample_skill(self, rng: np.random.Generator) -> int:
        """z ~ p(z), uniform (paper, section 3.2: learning p(z) would let it collapse)."""
        return int(rng.integers(self.num_skills))

    @torch.no_grad()
    def assess_features(
        self, obs: torch.Tensor, features: torch.Tensor, skill: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        action, _, _ = super().assess_features(obs, features, skill)
        logits = self.classify(obs, features)
        return action, self.intrinsic_reward(logits, skill), logits.argmax(dim=1)

    @torch.no_grad()
    def intrinsic_return(self, episode: Iterable[Batch]) -> float:
        rewards = (self.intrinsic_reward(self.classify(part.next_obs), part.skill) for part in episode)
        return float(sum(reward.sum() for reward in rewards))

    @torch.no_grad()
    def assess_log_likelihood(self, obs: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """log q_phi(z | s') of every skill, float32 (N, K), for observations uint8 (N, C, H, W)."""
        parts = (self.classify(self._to_device(obs[i : i + batch_size])) for i in range(0, len(obs), batch_size))
        return torch.cat([logits.log_softmax(dim=1) for logits in parts]).cpu().numpy()

    def intrinsic_reward(self, logits: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
        """log q_phi(z|s') - log p(z) (eq. 3): 0 at chance, at most log K; nats, (N,)."""
        return math.log(self.num_skills) - F.cross_entropy(logits, skill, reduction="none")

    def classify(self, images: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """q_phi's logits (N, K) for images (N, C, H, W). No gradient reaches the critic's encoder.

        A shared discriminator takes the critic's features of these images where they are there already.
        """
        if self.discriminator.encoder is not None:
            features = self.discriminator.encoder(images)
        elif features is None:
            with torch.no_grad():
                features = self.critic.encoder(images)
        return self.discriminator(features)

    def learn_from(self, views: Views, next_features: torch.Tensor) -> Metrics:
        """Update the discriminator, relabel the reward with what it says now, and let DrQ learn from that."""
        first = slice(len(views.reward))  # the first view of each next observation
        next_obs, features = views.next_obs[first], next_features[first]
        metrics = self.update_discriminator(self.classify(next_obs, features), views.skill)
        with torch.no_grad():
            intrinsic = self.intrinsic_reward(self.classify(next_obs, features), views.skill)
        metrics["intrinsic_reward"] = intrinsic.mean()
        views = views._replace(reward=views.reward + self.intrinsic_coeff * intrinsic)
        return metrics | super().learn_from(views, next_features)

    def update_discriminator(self, logits: torch.Tensor, skill: torch.Tensor) -> Metrics:
        """One step on the cross-entropy of q_phi(z | s'); accuracy is of before the step."""
        loss = F.cross_entropy(logits, skill)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimizer.step()
        accuracy = (logits.detach().argmax(dim=1) == skill).float().mean()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, torch.optim.Adam]:
        return {**super().optimizers(), "discriminator": self.discriminator_optimizer}
