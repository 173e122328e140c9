"""DIAYN on top of DrQ: skills, the discriminator that tells them apart, and the intrinsic reward it gives.

Paper: Diversity Is All You Need (Eysenbach, Gupta, Ibarz, Levine; ICLR 2019), https://arxiv.org/abs/1802.06070

An extension, off by default: DISDAIN, from Learning More Skills through Optimistic Exploration (Strouse, Baumli,
Warde-Farley, Mnih, Hansen; ICLR 2022), https://arxiv.org/abs/2107.14226. A new state gets a low intrinsic reward, as
the discriminator has not learned it yet. DISDAIN also pays for the disagreement of an ensemble of discriminators, which
is high in new states and vanishes as they are learned.

- As in the authors' code (github.com/google-deepmind/disdain): the members learn from the same batches and differ in
  their initial weights; the loss is the mean of theirs; q(z|s') is the mean of their probabilities; the bonus is the
  entropy of that mean minus the mean of their entropies; the skill's own reward is clipped at 0 from below.
- Choices here: a member is a whole discriminator, with convolutions of its own unless those of the critic are shared
  (behind common convolutions that they train together, members hardly disagree); one critic learns the sum of both
  rewards, for which their code has a Q function each; every step is rewarded, in their code the last of a trajectory;
  metrics and evaluations report the unclipped reward.
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


def ensemble_mean(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (N, K) of the mean of the members' probabilities, given the members' logits (E, N, K)."""
    if len(logits) == 1:
        return logits[0]
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))


def disagreement(logits: torch.Tensor) -> torch.Tensor:
    """Return DISDAIN's bonus (N,) in nats, given the members' logits (E, N, K): H of their mean - mean of their H.

    It is the mutual information of skill and member: 0 if all members agree, however uncertain they are, and at most
    log min(E, K).
    """
    of_mean, of_members = (_entropy(each) for each in (ensemble_mean(logits), logits))
    return (of_mean - of_members.mean(dim=0)).clamp_min(0.0)  # rounding can leave it below 0


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


class DIAYNAgent(DrQAgent):
    """DrQ with actor and critic conditioned on a skill, and an intrinsic reward from the discriminator.

    Args:
        num_skills: K. The prior p(z) is uniform and fixed.
        skill_embedding_dim: width of the learned embedding; 0 uses one-hot vectors.
        skill_sampling: "uniform" draws each episode's skill independently, "stratified" plays a permutation of all
            skills in every K episodes.
        discriminator_encoder: "separate" has convolutions of its own; "shared" uses the critic's, which become less
            and less informative when the only reward is a small intrinsic one (results/skills).
        discriminator_ensemble: E, the number of discriminators whose mean is q_phi.
        disdain_coeff: weight of their disagreement; above 0 the intrinsic reward is clipped at 0 from below.
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
        discriminator_ensemble: int = 1,
        disdain_coeff: float = 0.0,
        intrinsic_reward_from: str = "after",
        diayn_intrinsic_reward_coeff: float = 1.0,
        **drq: Any,
    ) -> None:
        super().__init__(obs_shape, action_dim, num_skills=num_skills, skill_embedding_dim=skill_embedding_dim, **drq)
        self.num_skills, self.intrinsic_coeff = num_skills, diayn_intrinsic_reward_coeff
        self.skill_sampling, self.intrinsic_reward_from = skill_sampling, intrinsic_reward_from
        self.disdain_coeff = disdain_coeff
        conv_dim, separate = self.critic.encoder.conv_dim, discriminator_encoder == "separate"
        self.discriminators = [
            Discriminator(self.arch, conv_dim, separate=separate).to(self.device) for _ in range(discriminator_ensemble)
        ]
        parameters = [parameter for member in self.discriminators for parameter in member.parameters()]
        self.discriminator_optimizer = make_adam(parameters, lr_discriminator)

    @property
    def discriminator(self) -> Discriminator:
        """The discriminator, or the first of an ensemble."""
        return self.discriminators[0]

    def modules(self) -> dict[str, nn.Module]:
        members = {f"discriminator_{i}" if i else "discriminator": each for i, each in enumerate(self.discriminators)}
        return {**super().modules(), **members}

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
        """Return q_phi's logits (N, K) for images (N, C, H, W). For `features` see `member_logits`."""
        return ensemble_mean(self.member_logits(images, features))

    def member_logits(self, images: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits (E, N, K) of the discriminator's members. No gradient reaches the critic's encoder.

        `features` are the critic's features of these images; a shared discriminator computes them if they are missing.
        """
        if features is None and self.discriminator.encoder is None:
            with torch.no_grad():
                features = self.critic.encoder(images)
        members = self.discriminators
        return torch.stack([each(features if each.encoder is None else each.encoder(images)) for each in members])

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
        rows, after = len(views.reward), self.intrinsic_reward_from == "after"
        first_view = views.next_obs[:rows], next_features[:rows]
        learned, skill = ((views.recent[0], None), views.recent[1]) if views.recent else (first_view, views.skill)
        logits = learned_logits = self.member_logits(*learned)
        if views.recent and not after:
            with torch.no_grad():
                logits = self.member_logits(*first_view)
        metrics = self.update_discriminator(learned_logits, skill)
        with torch.no_grad():
            if after:
                logits = self.member_logits(*first_view)
            reward, more = self.training_reward(views, logits)
        return reward, metrics | more

    def training_reward(self, views: Views, logits: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Return the weighted sum of the task's and the intrinsic reward, (N,), given the logits (E, N, K) of s'.

        With DISDAIN the intrinsic reward is clipped at 0, and the bonus for disagreement is added.
        """
        intrinsic_reward = self.intrinsic_reward(ensemble_mean(logits), views.skill)
        metrics = {"intrinsic_reward": intrinsic_reward.mean()}
        if not self.disdain_coeff:
            return self.extrinsic_coeff * views.reward + self.intrinsic_coeff * intrinsic_reward, metrics
        bonus = disagreement(logits)
        metrics["disdain_bonus"] = bonus.mean()
        reward = self.intrinsic_coeff * intrinsic_reward.clamp_min(0.0) + self.disdain_coeff * bonus
        return self.extrinsic_coeff * views.reward + reward, metrics

    def update_discriminator(self, logits: torch.Tensor, skill: torch.Tensor) -> Metrics:
        """Take one step on the mean cross-entropy of the members, given their logits (E, N, K).

        The metrics are those before the step.
        """
        loss = F.cross_entropy(logits.flatten(0, 1), skill.repeat(len(logits)))
        minimize(loss, self.discriminator_optimizer)
        accuracy = (ensemble_mean(logits.detach()).argmax(dim=1) == skill).float().mean()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}
