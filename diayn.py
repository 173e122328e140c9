"""DIAYN on top of DrQ: skills, the discriminator that tells them apart, and the intrinsic reward it gives.

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

from drq import DrQAgent, Metrics, Views
from networks import Encoder, Sizes, make_head, mlp, to_channels_last, weight_init
from replay_buffer import Batch
from utils import make_adam, minimize


class Discriminator(nn.Module):
    """q_phi(z | s'): which skill led to this stacked next observation. It never sees an action.

    Args:
        conv_dim: number of convolutional features.
        encoder: convolutions of its own, trained by the discriminator's loss. None: it receives the critic's features,
            detached.
    """

    def __init__(self, conv_dim: int, sizes: Sizes, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = make_head(conv_dim, sizes.encoder_feature_dim)
        self.classifier = mlp(sizes.encoder_feature_dim, sizes.hidden_dim, sizes.num_skills, sizes.hidden_depth)
        self.apply(weight_init)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_skills) given convolutional features (N, conv_dim)."""
        return self.classifier(self.head(features))


class DIAYNAgent(DrQAgent):
    """DrQ with actor and critic conditioned on a skill, and an intrinsic reward from the discriminator.

    Args:
        num_skills: K. The prior p(z) is uniform and fixed.
        skill_embedding_dim: width of the learned embedding; 0 uses one-hot vectors.
        lr_discriminator: Adam's learning rate for the discriminator.
        discriminator_encoder: "separate" has convolutions of its own; "shared" uses the critic's, which become less
            and less informative when the only reward is a small intrinsic one (results/skills).
        diayn_intrinsic_reward_coeff: weight of the intrinsic reward, which is added to the weighted extrinsic reward.
        drq: the other arguments of `DrQAgent`.
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
        self.discriminator_optimizer = make_adam(self.discriminator.parameters(), lr_discriminator)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, torch.optim.Adam]:
        return {**super().optimizers(), "discriminator": self.discriminator_optimizer}

    def skills(self) -> list[int]:
        return list(range(self.num_skills))

    def sample_skill(self, rng: np.random.Generator) -> int:
        """Draw z from the uniform p(z). A learned p(z) would collapse to a few skills (paper, section 3.2)."""
        return int(rng.integers(self.num_skills))

    # -- what the discriminator says ------------------------------------------------------------------------------

    def classify(self, images: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Return q_phi's logits (N, K) for images (N, C, H, W). No gradient reaches the critic's encoder.

        `features` are the critic's features of these images; a shared discriminator computes them if they are missing.
        """
        if self.discriminator.encoder is not None:
            features = self.discriminator.encoder(images)
        elif features is None:
            with torch.no_grad():
                features = self.critic.encoder(images)
        return self.discriminator(features)

    def intrinsic_reward(self, logits: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
        """Return log q_phi(z|s') - log p(z) (eq. 3) in nats, (N,): 0 at chance level, at most log K."""
        return math.log(self.num_skills) - F.cross_entropy(logits, skill, reduction="none")

    def discriminate(
        self, obs: torch.Tensor, features: torch.Tensor, skill: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.classify(obs, features)
        return self.intrinsic_reward(logits, skill), logits.argmax(dim=1)

    @torch.no_grad()
    def intrinsic_return(self, episode: Iterable[Batch]) -> float:
        rewards = (self.intrinsic_reward(self.classify(part.next_obs), part.skill) for part in episode)
        return float(sum(reward.sum() for reward in rewards))

    @torch.no_grad()
    def log_likelihood(self, obs: np.ndarray, batch_size: int = 128) -> np.ndarray:
        """Return log q_phi(z | s') of every skill, float32 (N, K), for observations uint8 (N, C, H, W)."""
        parts = (self.classify(self._to_device(obs[i : i + batch_size])) for i in range(0, len(obs), batch_size))
        return torch.cat([logits.log_softmax(dim=1) for logits in parts]).cpu().numpy()

    # -- learning -------------------------------------------------------------------------------------------------

    def rewards(self, views: Views, next_features: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Update the discriminator on the first view of next_obs, and add the intrinsic reward that it gives then."""
        first = slice(len(views.reward))
        next_obs, features = views.next_obs[first], next_features[first]
        metrics = self.update_discriminator(self.classify(next_obs, features), views.skill)
        with torch.no_grad():
            intrinsic_reward = self.intrinsic_reward(self.classify(next_obs, features), views.skill)
        metrics["intrinsic_reward"] = intrinsic_reward.mean()
        extrinsic_reward, _ = super().rewards(views, next_features)
        return extrinsic_reward + self.intrinsic_coeff * intrinsic_reward, metrics

    def update_discriminator(self, logits: torch.Tensor, skill: torch.Tensor) -> Metrics:
        """Take one step on the cross-entropy of q_phi(z | s'). The accuracy is that before the step."""
        loss = F.cross_entropy(logits, skill)
        minimize(loss, self.discriminator_optimizer)
        accuracy = (logits.detach().argmax(dim=1) == skill).float().mean()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}
