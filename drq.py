"""DrQ: soft actor-critic from pixels, regularized by image augmentation.

Paper: Image Augmentation Is All You Need (Yarats, Kostrikov, Fergus; ICLR 2021), https://arxiv.org/abs/2004.13649
SAC:   Soft Actor-Critic Algorithms and Applications (Haarnoja et al., 2018), https://arxiv.org/abs/1812.05905

Everything here is written for a policy conditioned on a skill z. Without DIAYN the skill has width 0: nothing is
concatenated, and no parameter and no random number belongs to it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from graphs import Graphed
from replay_buffer import NO_SKILL, Batch
from utils import frozen, mlp, soft_update, to_channels_last, to_device, weight_init

Metrics = dict[str, torch.Tensor]  # detached scalars on the agent's device: nobody waits for them here

NUM_FILTERS = 32
STRIDES = (2, 1, 1, 1)
NUM_VIEWS = 2  # the paper's M (views of obs) and K (views of next_obs)


class RandomShift:
    """Pad by replication, then crop back at a random offset per image, the same for all channels (paper, section 3.1).

    Takes and returns uint8 (N, C, H, W), channels_last in memory. Padding and crop are one gather of whole pixels:
    output (i, j) is input (i + dy - pad, j + dx - pad) with both clamped into the image, exact to the bit.
    """

    def __init__(self, pad: int, generator: torch.Generator) -> None:
        self.pad, self._generator = pad, generator

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        size = (len(images), 2)
        offsets = torch.randint(2 * self.pad + 1, size, generator=self._generator, device=images.device)
        return self.crop(images, offsets)

    def crop(self, images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """The crop at given offsets: int64 (N, 2), rows (dy, dx), each from 0 to 2 * pad."""
        n, channels, height, width = images.shape
        rows, columns = (
            (offsets[:, axis, None] - self.pad + torch.arange(length, device=images.device)).clamp(0, length - 1)
            for axis, length in enumerate((height, width))
        )
        image = torch.arange(n, device=images.device)[:, None, None]
        pixel = (image * height + rows[:, :, None]) * width + columns[:, None, :]  # (N, H, W)
        pixels = images.permute(0, 2, 3, 1).reshape(n * height * width, channels)
        return pixels.index_select(0, pixel.flatten()).view(n, height, width, channels).permute(0, 3, 1, 2)


def make_augmentation(name: str, pad: int, generator: torch.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """An augmentation, as --augmentation names them, as a function of (N, C, H, W) images with values 0 to 255.

    Random shift is ours. The others are the paper's comparison (appendix E) by kornia, with its settings; they return
    float32 and draw from torch's global generator, as kornia does. Raises KeyError for another name.
    """
    if name == "shift":
        return RandomShift(pad, generator)
    if name == "none":
        return lambda images: images
    from kornia import augmentation as K

    augment: Callable[[torch.Tensor], torch.Tensor] = {
        "cutout": K.RandomErasing(p=0.5),
        "hflip": K.RandomHorizontalFlip(p=0.1),
        "vflip": K.RandomVerticalFlip(p=0.1),
        "rotation": K.RandomRotation(degrees=5.0, p=1.0),  # of every image, as kornia did when the paper was written
        "intensity": _intensity,
    }[name]
    return lambda images: augment(images.float())


def _intensity(images: torch.Tensor) -> torch.Tensor:
    """Scale each image by 1 + 0.05 * noise, the Gaussian noise clamped into [-2, 2]."""
    noise = torch.randn(len(images), 1, 1, 1, device=images.device).clamp(-2.0, 2.0)
    return images * (1.0 + 0.05 * noise)


class SkillEmbedding(nn.Module):
    """Skill ids, int64 (N,), to vectors (N, width): a learned table, a one-hot code, or nothing.

    `num_skills` 0 gives width 0 and has no parameter; `embedding_dim` 0 gives the one-hot vector of width num_skills.
    """

    def __init__(self, num_skills: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_skills = num_skills
        self.width = (embedding_dim or num_skills) if num_skills else 0
        self.table = nn.Embedding(num_skills, embedding_dim) if num_skills and embedding_dim else None

    def forward(self, skill: torch.Tensor) -> torch.Tensor:
        if self.table is not None:
            return self.table(skill)
        if self.num_skills:
            return F.one_hot(skill, self.num_skills).float()
        return torch.empty(len(skill), 0, device=skill.device)


class Encoder(nn.Module):
    """Four 3x3 convolutions of 32 filters: (N, C, H, W) with values 0 to 255 to flat float32 features (N, feature_dim).

    The features are flattened as they lie in memory (height, width, filter), which costs no copy; the heads learn
    on any order. 39,200 of them at 84 pixels. With `precision` "bf16" the convolutions compute in bfloat16, on
    float32 weights and to float32 features and gradients: nothing outside them changes.
    """

    def __init__(self, obs_shape: tuple[int, ...], precision: str = "fp32") -> None:
        super().__init__()
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        channels, height, width = obs_shape
        layers: list[nn.Module] = []
        for stride in STRIDES:
            layers += [nn.Conv2d(channels, NUM_FILTERS, kernel_size=3, stride=stride), nn.ReLU(inplace=True)]
            channels = NUM_FILTERS
            height, width = ((length - 3) // stride + 1 for length in (height, width))
        self.convs = nn.Sequential(*layers)
        self.feature_dim = NUM_FILTERS * height * width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            x = images.to(self.dtype, memory_format=torch.channels_last, copy=True).div_(255.0)
            return self.convs(x).permute(0, 2, 3, 1).flatten(1).float()


class Sizes(NamedTuple):
    """How wide and deep the networks behind the convolutions are, and the skill that joins there."""

    encoder_feature_dim: int
    hidden_dim: int
    hidden_depth: int
    num_skills: int  # 0: none joins
    skill_embedding_dim: int  # 0: a one-hot vector


def make_head(conv_dim: int, feature_dim: int) -> nn.Sequential:
    """The bottleneck behind the convolutions: linear, LayerNorm, tanh. One each for actor, critic, target critic."""
    return nn.Sequential(nn.Linear(conv_dim, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())


class Critic(nn.Module):
    """The convolutional encoder, which it owns, and two Q functions of (feature, skill, action).

    The skill joins behind the bottleneck: beside 39,200 convolutional features it would drown.
    """

    def __init__(self, obs_shape: tuple[int, ...], action_dim: int, sizes: Sizes, precision: str) -> None:
        super().__init__()
        self.encoder = Encoder(obs_shape, precision)
        self.head = make_head(self.encoder.feature_dim, sizes.encoder_feature_dim)
        self.skill = SkillEmbedding(sizes.num_skills, sizes.skill_embedding_dim)
        width = sizes.encoder_feature_dim + self.skill.width + action_dim
        self.q1 = mlp(width, sizes.hidden_dim, 1, sizes.hidden_depth)
        self.q2 = mlp(width, sizes.hidden_dim, 1, sizes.hidden_depth)
        self.apply(weight_init)

    def forward(
        self, features: torch.Tensor, skill: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Q1 and Q2, each (N,), from the encoder's features (N, feature_dim)."""
        x = torch.cat([self.head(features), self.skill(skill), action], dim=1)
        return self.q1(x).squeeze(1), self.q2(x).squeeze(1)


class SquashedGaussian(NamedTuple):
    """A Gaussian behind a tanh: the policy's distribution over actions, each field (N, action_dim)."""

    mean: torch.Tensor
    log_std: torch.Tensor

    def mode(self) -> torch.Tensor:
        """The deterministic policy: tanh of the mean."""
        return self.mean.tanh()

    def sample(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The action that standard normal `noise` selects, and its log-probability (N,), both differentiable.

        log det of tanh is the stable 2 (log 2 - x - softplus(-2x)), which never takes the log of a rounded zero.
        """
        x = self.mean + self.log_std.exp() * noise
        gaussian = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)
        log_det = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
        return x.tanh(), (gaussian - log_det).sum(dim=1)


class Actor(nn.Module):
    """The policy on the critic's convolutional features, which it is handed detached."""

    def __init__(self, conv_dim: int, action_dim: int, sizes: Sizes, log_std_bounds: tuple[float, float]) -> None:
        super().__init__()
        self.log_std_bounds = log_std_bounds
        self.head = make_head(conv_dim, sizes.encoder_feature_dim)
        self.skill = SkillEmbedding(sizes.num_skills, sizes.skill_embedding_dim)
        width = sizes.encoder_feature_dim + self.skill.width
        self.policy = mlp(width, sizes.hidden_dim, 2 * action_dim, sizes.hidden_depth)
        self.apply(weight_init)

    def forward(self, features: torch.Tensor, skill: torch.Tensor) -> SquashedGaussian:
        x = torch.cat([self.head(features), self.skill(skill)], dim=1)
        mean, log_std = self.policy(x).chunk(2, dim=1)
        low, high = self.log_std_bounds
        return SquashedGaussian(mean, low + 0.5 * (high - low) * (log_std.tanh() + 1.0))


class Views(NamedTuple):
    """A batch as one update sees it: augmented, with all of the update's random numbers. B = batch size.

    Views lie one after the other: rows 0 to B - 1 are the first view of each transition, B to 2B - 1 the second.
    """

    obs: torch.Tensor  # (M * B, C, H, W)
    action: torch.Tensor  # (B, action_dim)
    reward: torch.Tensor  # (B,)
    next_obs: torch.Tensor  # (K * B, C, H, W)
    terminated: torch.Tensor  # (B,)
    skill: torch.Tensor  # (B,)
    next_noise: torch.Tensor  # (K * B, action_dim), standard normal: selects the next actions of the target
    noise: torch.Tensor  # (B, action_dim), standard normal: selects the actions of the actor's step


class Assessment(NamedTuple):
    """What an agent says of N observations in evaluation."""

    action: np.ndarray  # float32 (N, action_dim), deterministic
    intrinsic_reward: np.ndarray  # float32 (N,), of having arrived here; 0 without DIAYN
    predicted: np.ndarray  # int64 (N,): the skill that the discriminator takes it for; NO_SKILL without DIAYN


class DrQAgent:
    """DrQ. `update` takes one gradient step on a batch, `act` chooses one action.

    The critic owns the encoder and alone trains it. Its target is a deep copy, encoder included. All randomness
    comes from one generator on the agent's device (and, for kornia's augmentations, torch's global one).

    Args:
        obs_shape: (C, H, W) of the stacked uint8 observation.
        extrinsic_reward_coeff: weight of the environment's reward.
        learn_temperature: False keeps alpha at `init_temperature`.
        num_skills, skill_embedding_dim: width of the skill, 0 without DIAYN.
        precision: "fp32" or "bf16", of the convolutions alone.
        seed: of the agent's own generator. Weights come from torch's global one.
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
        precision: str = "fp32",
    ) -> None:
        self.device = torch.device(device)
        self.skill = NO_SKILL  # the one that is acted with, where a skill is fine-tuned
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.augment = make_augmentation(augmentation, image_pad, self.generator)
        self.discount, self.critic_tau = discount, critic_tau
        self.extrinsic_coeff = extrinsic_reward_coeff
        self.actor_update_frequency = actor_update_frequency
        self.critic_target_update_frequency = critic_target_update_frequency
        self.action_dim, self.target_entropy = action_dim, -float(action_dim)
        self.num_updates = 0

        sizes = Sizes(encoder_feature_dim, hidden_dim, hidden_depth, num_skills, skill_embedding_dim)
        self.critic = Critic(obs_shape, action_dim, sizes, precision)
        to_channels_last(self.critic.to(self.device))
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = Actor(self.critic.encoder.feature_dim, action_dim, sizes, log_std_bounds).to(self.device)
        self.log_alpha = torch.tensor(math.log(init_temperature), device=self.device, requires_grad=learn_temperature)

        self._learn: Callable[..., Metrics] = self._learn_from_tensors
        self._policy: Callable[..., dict[str, torch.Tensor]] = self.policy
        self._assess: Callable[..., dict[str, torch.Tensor]] = self.assess_tensors
        self.critic_optimizer = self.make_optimizer(self.critic.parameters(), lr)
        self.actor_optimizer = self.make_optimizer(self.actor.parameters(), lr)
        self.alpha_optimizer = self.make_optimizer([self.log_alpha], lr) if learn_temperature else None

    def make_optimizer(self, parameters: Iterable[torch.Tensor], lr: float) -> torch.optim.Adam:
        """Adam in one fused kernel, which keeps its step count on the device."""
        return torch.optim.Adam(parameters, lr=lr, fused=True)

    def use_cuda_graphs(self) -> None:
        """Replay updates, actions and assessments from CUDA graphs from now on: the same kernels, launched at once."""
        for optimizer in self.optimizers().values():
            for group in optimizer.param_groups:
                group["capturable"] = True
        self._learn = Graphed(
            self._learn_from_tensors,
            kind=self.due,
            modules=list(self._all_modules().values()),
            optimizers=list(self.optimizers().values()),
            extra=[self.log_alpha],
        )
        self._policy = Graphed(self.policy)
        self._assess = Graphed(self.assess_tensors)

    # -- acting ---------------------------------------------------------------------------------------------------

    def skills(self) -> list[int]:
        """The skills to evaluate: the one there is, which may stand for none."""
        return [self.skill]

    def sample_skill(self, rng: np.random.Generator) -> int:
        """The skill of a new episode. Where there is one only, no random number is drawn for it."""
        return self.skill

    def act(self, obs: np.ndarray, skill: int, *, sample: bool) -> np.ndarray:
        """One action, float32 (action_dim,) in [-1, 1], for one observation: drawn, or the policy's mode."""
        noise = self._normal(1) if sample else torch.zeros(1, self.action_dim, device=self.device)
        outputs = self._policy(obs=self._to_device(obs[None]), skill=self._to_device(np.array([skill])), noise=noise)
        return outputs["sample" if sample else "mode"][0].cpu().numpy()

    @torch.no_grad()
    def policy(self, obs: torch.Tensor, skill: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """The actions (N, action_dim) for images (N, C, H, W): the mode, and the ones that the noise selects."""
        distribution = self.actor(self.critic.encoder(obs), skill)
        return {"mode": distribution.mode(), "sample": distribution.sample(noise)[0]}

    def assess(self, obs: np.ndarray, skill: np.ndarray) -> Assessment:
        """What evaluation asks for: the deterministic actions in, and the judgement of, observations (N, C, H, W).

        A row's result does not depend on the rows beside it.
        """
        outputs = self._assess(obs=self._to_device(obs), skill=self._to_device(skill))
        return Assessment(*(value.cpu().numpy() for value in outputs.values()))

    @torch.no_grad()
    def assess_features(
        self, obs: torch.Tensor, features: torch.Tensor, skill: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """An `Assessment` as tensors, given the critic's features. Plain DrQ judges nothing."""
        nothing = torch.zeros(len(features), device=self.device)
        return self.actor(features, skill).mode(), nothing, torch.full_like(skill, NO_SKILL)

    @torch.no_grad()
    def assess_tensors(self, obs: torch.Tensor, skill: torch.Tensor) -> dict[str, torch.Tensor]:
        """An `Assessment` as a dict of tensors.

        The networks work on a multiple of 4 rows: with fewer, the CPU's matrix product would take another order of
        summation, and the last bits would tell how many episodes were played at once.
        """
        rows = torch.arange(-(-len(obs) // 4) * 4, device=self.device).clamp_max(len(obs) - 1)
        images = obs[rows]
        outputs = self.assess_features(images, self.critic.encoder(images), skill[rows])
        return {name: value[: len(obs)] for name, value in zip(Assessment._fields, outputs, strict=True)}

    def intrinsic_return(self, episode: Iterable[Batch]) -> float:
        """Sum of the intrinsic rewards of an episode, which comes in batches. Plain DrQ doesn't even draw them."""
        return 0.0

    # -- learning -------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> Metrics:
        """One update (paper, algorithm 1). Returns detached scalars; the actor's are there when it was updated."""
        metrics = {"batch_reward": batch.reward.mean(), **self._learn(**self.make_views(batch)._asdict())}
        self.num_updates += 1
        return metrics

    def make_views(self, batch: Batch) -> Views:
        """Augment a batch, M = K = 2 independent views of each observation, and draw the update's noise.

        Joined, not repeated: `repeat` would lay the pictures out anew, channel by channel.
        """
        return Views(
            obs=self.augment(torch.cat([batch.obs] * NUM_VIEWS)),
            action=batch.action,
            reward=self.extrinsic_coeff * batch.reward,
            next_obs=self.augment(torch.cat([batch.next_obs] * NUM_VIEWS)),
            terminated=batch.terminated,
            skill=batch.skill,
            next_noise=self._normal(NUM_VIEWS * len(batch.reward)),
            noise=self._normal(len(batch.reward)),
        )

    def learn(self, views: Views) -> Metrics:
        """The update itself, a function of the weights and the views only."""
        with torch.no_grad():  # before the critic's step; one pass serves the next actions and a shared discriminator
            next_features = self.critic.encoder(views.next_obs)
        return self.learn_from(views, next_features)

    def learn_from(self, views: Views, next_features: torch.Tensor) -> Metrics:
        """`learn`, given the critic's convolutional features (K * B, conv_dim) of the next observations."""
        actor_is_due, target_is_due = self.due()
        metrics = self.update_critic(views, next_features)
        if actor_is_due:
            metrics |= self.update_actor_and_alpha(views)
        if target_is_due:
            soft_update(self.critic, self.critic_target, self.critic_tau)
        return metrics

    def _learn_from_tensors(self, **views: torch.Tensor) -> Metrics:
        return self.learn(Views(**views))

    def due(self) -> tuple[bool, bool]:
        """Whether the next update also steps actor and temperature, and whether it moves the target."""
        return (
            self.num_updates % self.actor_update_frequency == 0,
            self.num_updates % self.critic_target_update_frequency == 0,
        )

    @torch.no_grad()
    def target_q(self, views: Views, next_features: torch.Tensor) -> torch.Tensor:
        """y = r + gamma (1 - terminated) mean over K views of [min Q'(s', a') - alpha log pi(a'|s')] (eq. 2); (B,)."""
        skill = views.skill.repeat(NUM_VIEWS)
        policy = self.actor(next_features, skill)
        next_action, log_prob = policy.sample(views.next_noise)
        q1, q2 = self.critic_target(self.critic_target.encoder(views.next_obs), skill, next_action)
        value = torch.min(q1, q2) - self.log_alpha.exp() * log_prob
        return views.reward + self.discount * (1.0 - views.terminated) * value.view(NUM_VIEWS, -1).mean(dim=0)

    def critic_loss(self, views: Views, next_features: torch.Tensor) -> torch.Tensor:
        """Mean squared error to y, summed over both Qs and the M views (eq. 3; DrQ's code sums the views)."""
        target = self.target_q(views, next_features).repeat(NUM_VIEWS)
        skill, action = views.skill.repeat(NUM_VIEWS), views.action.repeat(NUM_VIEWS, 1)
        q1, q2 = self.critic(self.critic.encoder(views.obs), skill, action)
        return NUM_VIEWS * (F.mse_loss(q1, target) + F.mse_loss(q2, target))

    def update_critic(self, views: Views, next_features: torch.Tensor) -> Metrics:
        loss = self.critic_loss(views, next_features)
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimizer.step()
        return {"critic_loss": loss.detach()}

    def actor_loss(self, views: Views) -> tuple[torch.Tensor, torch.Tensor]:
        """mean(alpha log pi - min Q) on the first view of obs, and log pi (B,). Only the actor gets gradient."""
        batch_size = len(views.reward)
        with torch.no_grad():  # the critic's encoder after its step; one pass serves actor and critic
            features = self.critic.encoder(views.obs[:batch_size])
        action, log_prob = self.actor(features, views.skill).sample(views.noise)
        with frozen(self.critic):
            q1, q2 = self.critic(features, views.skill, action)
        return (self.log_alpha.detach().exp() * log_prob - torch.min(q1, q2)).mean(), log_prob

    def alpha_loss(self, log_prob: torch.Tensor) -> torch.Tensor:
        """mean(alpha (-log pi - target entropy)): only the temperature gets gradient (SAC, eq. 18)."""
        return (self.log_alpha.exp() * (-log_prob.detach() - self.target_entropy)).mean()

    def update_actor_and_alpha(self, views: Views) -> Metrics:
        loss, log_prob = self.actor_loss(views)
        self.actor_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.actor_optimizer.step()

        alpha_loss = self.alpha_loss(log_prob)
        if self.alpha_optimizer is not None:
            self.alpha_optimizer.zero_grad(set_to_none=True)
            alpha_loss.backward()
            self.alpha_optimizer.step()
        return {
            "actor_loss": loss.detach(),
            "actor_entropy": -log_prob.detach().mean(),
            "actor_target_entropy": torch.full_like(alpha_loss.detach(), self.target_entropy),
            "alpha_loss": alpha_loss.detach(),
            "alpha_value": self.log_alpha.detach().exp(),
        }

    # -- what others may look at ----------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """The trained networks by name."""
        return {"actor": self.actor, "critic": self.critic}

    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """The optimizers by name."""
        optimizers = {"actor": self.actor_optimizer, "critic": self.critic_optimizer}
        return optimizers | ({"alpha": self.alpha_optimizer} if self.alpha_optimizer is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """All that learning changes: tensors, as they are now and not copied, and plain data."""
        return {
            "device": self.device.type,
            "num_updates": self.num_updates,
            "skill": self.skill,
            "log_alpha": self.log_alpha.detach(),
            "generator": self.generator.get_state(),
            "modules": {name: module.state_dict() for name, module in self._all_modules().items()},
            "optimizers": {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers().items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the `state_dict` of an equal agent, in place; before the first update, so that no graph holds more.

        From another kind of device the generator's state can't be taken over, and this agent's goes on from its seed.
        """
        self.load_weights(state)
        self.num_updates = state["num_updates"]
        if state["device"] == self.device.type:
            self.generator.set_state(state["generator"])
        for name, optimizer in self.optimizers().items():
            groups = optimizer.state_dict()["param_groups"]  # learning rates and kernels are this agent's own
            _check_moments(state["optimizers"][name], groups[0]["params"], optimizer.param_groups[0]["params"])
            optimizer.load_state_dict({"state": state["optimizers"][name], "param_groups": groups})

    @torch.no_grad()
    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Take over the networks, the temperature and the skill of an equal agent's `state_dict`, in place."""
        self.skill = state["skill"]
        self.log_alpha.copy_(state["log_alpha"])
        for name, module in self._all_modules().items():
            module.load_state_dict(state["modules"][name])

    @torch.no_grad()
    def load_pretrained(self, state: Mapping[str, Any], *, critic: bool) -> None:
        """Take over actor, encoder and skill embeddings of a `state_dict`, and the critic's Q functions where told so.

        Optimizers and temperature stay at their beginning, and the target follows the critic.
        """
        self.actor.load_state_dict(state["modules"]["actor"])
        pretrained = state["modules"]["critic"]
        if not critic:
            pretrained = {k: v for k, v in pretrained.items() if k.startswith(("encoder.", "skill."))}
        self.critic.load_state_dict({**self.critic.state_dict(), **pretrained})
        self.critic_target.load_state_dict(self.critic.state_dict())

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether every weight is a finite number. This waits for the device."""
        weights = [p for module in self._all_modules().values() for p in module.parameters()]
        return bool(torch.stack(torch._foreach_norm([*weights, self.log_alpha])).isfinite().all())

    def _all_modules(self) -> dict[str, nn.Module]:
        return {**self.modules(), "critic_target": self.critic_target}

    def histograms(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every trained weight, and its newest gradient where there is one, by name."""
        for name, module in self.modules().items():
            for parameter_name, parameter in module.named_parameters():
                path = f"{name}/{parameter_name.replace('.', '_')}"
                yield path, parameter.detach()
                if parameter.grad is not None:
                    yield f"{path}_grad", parameter.grad

    def _normal(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self.action_dim, generator=self.generator, device=self.device)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self.device)


def _check_moments(state: Mapping[int, Any], numbers: Sequence[int], parameters: Sequence[torch.Tensor]) -> None:
    """Raise ValueError where an Adam's state isn't of these parameters: the fused kernel would write anywhere."""
    if state and set(state) != set(numbers):
        raise ValueError("the optimizer's state is of other parameters")
    for number, parameter in zip(numbers, parameters, strict=True):
        moments = state.get(number, {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter})
        shapes = {name: (value.shape, value.dtype) for name, value in moments.items()}
        as_parameter = (parameter.shape, parameter.dtype)
        if shapes != {"step": (torch.Size(()), torch.float32), "exp_avg": as_parameter, "exp_avg_sq": as_parameter}:
            raise ValueError("the optimizer's state is of other parameters")
