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
from networks import Architecture, Encoder, make_head, mlp, weight_init
from replay_buffer import Batch
from utils import derived_rng, make_adam, minimize


class Discriminator(nn.Module):
    """q_phi(z | s'): which skill led to this stacked next observation. It never sees an action.

    If `separate`, it has convolutions of its own. Otherwise it receives the critic's features, detached.
    """

    def __init__(self, arch: Architecture, conv_dim: int, *, separate: bool) -> None:
        super().__init__()
        self.encoder = Encoder(arch.obs_shape, arch.precision) if separate else None
        self.head = make_head(conv_dim, arch.encoder_feature_dim)
        self.classifier = mlp(arch.encoder_feature_dim, arch.hidden_dim, arch.num_skills, arch.hidden_depth)
        self.apply(weight_init)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits (N, num_skills) given convolutional features (N, conv_dim)."""
        return self.classifier(self.head(features))


class DIAYNAgent(DrQAgent):
    """DrQ with actor and critic conditioned on a skill, and an intrinsic reward from the discriminator.

    Args:
        num_skills: K. The prior p(z) is uniform and fixed.
        skill_embedding_dim: width of the learned embedding; 0 uses one-hot vectors.
        skill_sampling: "uniform" draws each episode's skill independently, "stratified" plays a permutation of all
            skills in every K episodes.
        discriminator_encoder: "separate" has convolutions of its own; "shared" uses the critic's, which become less
            and less informative when the only reward is a small intrinsic one (results/skills).
        intrinsic_reward_from: "after" computes the intrinsic reward after the discriminator's step on the batch;
            "before" takes it from the logits of that step, as DIAYN's code does, which saves a forward pass.
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
        skill_sampling: str = "uniform",
        discriminator_encoder: str = "separate",
        intrinsic_reward_from: str = "after",
        diayn_intrinsic_reward_coeff: float = 1.0,
        **drq: Any,
    ) -> None:
        super().__init__(obs_shape, action_dim, num_skills=num_skills, skill_embedding_dim=skill_embedding_dim, **drq)
        self.num_skills, self.intrinsic_coeff = num_skills, diayn_intrinsic_reward_coeff
        self.skill_sampling, self.intrinsic_reward_from = skill_sampling, intrinsic_reward_from
        conv_dim, separate = self.critic.encoder.feature_dim, discriminator_encoder == "separate"
        self.discriminator = Discriminator(self.arch, conv_dim, separate=separate).to(self.device)
        self.discriminator_optimizer = make_adam(self.discriminator.parameters(), lr_discriminator)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, torch.optim.Adam]:
        return {**super().optimizers(), "discriminator": self.discriminator_optimizer}

    def skills(self) -> list[int]:
        return list(range(self.num_skills))

    def sample_skill(self, rng: np.random.Generator, episode: int) -> int:
        """Draw z from the uniform p(z). A learned p(z) would collapse to a few skills (paper, section 3.2).

        Stratified sampling takes the episode's place in the permutation of its K episodes, which depends on the seed of
        `rng` and not on its state. A resumed run therefore continues the permutation in which it was stopped.
        """
        if self.skill_sampling == "uniform":
            return int(rng.integers(self.num_skills))
        block, place = divmod(episode, self.num_skills)
        return int(derived_rng(rng, block).permutation(self.num_skills)[place])

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
        parts = torch.from_numpy(obs).split(batch_size)
        return torch.cat([self.classify(part.to(self.device)).log_softmax(dim=1) for part in parts]).cpu().numpy()

    # -- learning -------------------------------------------------------------------------------------------------

    def make_views(self, batch: Batch, recent: Batch | None = None) -> Views:
        """Augment a batch as DrQ does and, if the discriminator gets a batch of its own, `recent`, its next_obs."""
        views = super().make_views(batch)
        return views if recent is None else views._replace(recent=(self.augment(recent.next_obs), recent.skill))

    def rewards(self, views: Views, next_features: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Update the discriminator, and add the intrinsic reward of the first view of next_obs.

        The discriminator learns from the same view, or from `views.recent` if that is not empty.
        """
        rows = len(views.reward)
        rewarded = views.next_obs[:rows], next_features[:rows]
        learned, skill = ((views.recent[0], None), views.recent[1]) if views.recent else (rewarded, views.skill)
        before, logits = None, self.classify(*learned)
        with torch.no_grad():
            if self.intrinsic_reward_from == "before":
                before = self.classify(*rewarded) if views.recent else logits
        metrics = self.update_discriminator(logits, skill)
        with torch.no_grad():
            logits = self.classify(*rewarded) if before is None else before
            intrinsic_reward = self.intrinsic_reward(logits, views.skill)
        metrics["intrinsic_reward"] = intrinsic_reward.mean()
        return self.extrinsic_coeff * views.reward + self.intrinsic_coeff * intrinsic_reward, metrics

    def update_discriminator(self, logits: torch.Tensor, skill: torch.Tensor) -> Metrics:
        """Take one step on the cross-entropy of q_phi(z | s'). The accuracy is that before the step."""
        loss = F.cross_entropy(logits, skill)
        minimize(loss, self.discriminator_optimizer)
        accuracy = (logits.detach().argmax(dim=1) == skill).float().mean()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}
