"""The networks of the agents, and the actor-critic that owns, saves and loads them.

The networks are conditioned on a skill z. Without DIAYN the skill has width 0: nothing is concatenated, and no
parameter and no random number belongs to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from cuda_graphs import CudaGraphs, Outputs
from running.columns import NO_SKILL
from utils import load_adam_state

NUM_FILTERS = 32
STRIDES = (2, 1, 1, 1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of --precision


# -- building blocks ---------------------------------------------------------------------------------------------------


class Architecture(NamedTuple):
    """What an agent's networks are built from."""

    obs_shape: tuple[int, ...]  # (C, H, W) of the stacked observation
    action_dim: int
    encoder_feature_dim: int
    hidden_dim: int
    hidden_depth: int
    num_skills: int  # 0: no skill
    skill_embedding_dim: int  # 0: one-hot vectors
    log_std_bounds: tuple[float, float]
    precision: str  # "fp32" or "bf16", of the convolutions and of the linear layer behind them
    skill_embedding_init: str = "normal"  # or "orthogonal"


def mlp(in_dim: int, hidden_dim: int, out_dim: int, hidden_depth: int) -> nn.Sequential:
    """Return `hidden_depth` ReLU layers of `hidden_dim` units, followed by a linear layer to `out_dim`."""
    layers: list[nn.Module] = []
    for _ in range(hidden_depth):
        layers += [nn.Linear(in_dim, hidden_dim), nn.ReLU()]
        in_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


def conv_features(obs_shape: tuple[int, ...]) -> int:
    """Return the number of features that the convolutions give for an observation (C, H, W)."""
    height, width = obs_shape[1:]
    for stride in STRIDES:
        height, width = ((length - 3) // stride + 1 for length in (height, width))
    return NUM_FILTERS * height * width


class Projection(nn.Linear):
    """A linear layer that computes in the dtype of its input, such as bfloat16, and returns that of its weights."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        return F.linear(features, weight, bias).to(self.weight.dtype)


def make_head(conv_dim: int, feature_dim: int) -> nn.Sequential:
    """Return the bottleneck behind the convolutions: linear layer, LayerNorm, tanh. Every network has its own."""
    return nn.Sequential(Projection(conv_dim, feature_dim), nn.LayerNorm(feature_dim), nn.Tanh())


def weight_init(module: nn.Module) -> None:
    """Initialize with orthogonal weights (gain sqrt 2 for convolutions) and zero biases. Use with `Module.apply`.

    Weights of convolutions become channels_last, the memory format in which convolutions run fastest.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.orthogonal_(module.weight, math.sqrt(2.0) if isinstance(module, nn.Conv2d) else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs


@torch.no_grad()
def soft_update(online: nn.Module, target: nn.Module, tau: float) -> None:
    """Set target <- tau * online + (1 - tau) * target, for all parameters in one fused call."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


# -- networks ----------------------------------------------------------------------------------------------------------


class SkillEmbedding(nn.Module):
    """Map skill ids, int64 (N,), to vectors (N, width): a learned table, a one-hot code, or nothing.

    `num_skills` 0 gives width 0 and no parameter; `embedding_dim` 0 gives one-hot vectors of width `num_skills`.
    `init` is the initial table: "normal" or "orthogonal".
    """

    def __init__(self, num_skills: int, embedding_dim: int, init: str = "normal") -> None:
        super().__init__()
        self.num_skills = num_skills
        self.width = (embedding_dim or num_skills) if num_skills else 0
        self.table = nn.Embedding(num_skills, embedding_dim) if num_skills and embedding_dim else None
        if self.table is not None and init == "orthogonal":
            self.table.weight.data.copy_(orthogonal_rows(num_skills, embedding_dim))

    def forward(self, skill: torch.Tensor) -> torch.Tensor:
        if self.table is not None:
            return self.table(skill)
        if self.num_skills:
            return F.one_hot(skill, self.num_skills).float()
        return torch.empty(len(skill), 0, device=skill.device)


def orthogonal_rows(rows: int, width: int) -> torch.Tensor:
    """Return a random matrix (rows, width) of rows with norm sqrt(width), orthogonal within each block of `width` rows.

    The norm is that of a standard normal row in the root mean square. With more rows than `width` no matrix has
    orthogonal rows; the blocks are then independent of each other.
    """
    blocks = [torch.empty(min(width, rows - start), width) for start in range(0, rows, width)]
    return torch.cat([nn.init.orthogonal_(block, gain=math.sqrt(width)) for block in blocks])


class Encoder(nn.Module):
    """Four 3x3 convolutions with 32 filters: images (N, C, H, W) to flat features (N, conv_dim) in `dtype`.

    Images are uint8, or floating-point if `scale` has converted them. The features are flattened in their memory order
    (height, width, filter), which needs no copy; there are 39,200 of them for 84 x 84 pixels. With `precision` "bf16"
    the convolutions compute in bfloat16, and so are the features; weights and their gradients stay float32.
    """

    def __init__(self, obs_shape: tuple[int, ...], precision: str = "fp32") -> None:
        super().__init__()
        self.dtype = DTYPES[precision]
        channels = obs_shape[0]
        layers: list[nn.Module] = []
        for stride in STRIDES:
            layers += [nn.Conv2d(channels, NUM_FILTERS, kernel_size=3, stride=stride), nn.ReLU(inplace=True)]
            channels = NUM_FILTERS
        self.convs = nn.Sequential(*layers)
        self.conv_dim = conv_features(obs_shape)

    def scale(self, images: torch.Tensor) -> torch.Tensor:
        """Return images with values 0 to 255 in the dtype of the convolutions, with values 0 to 1, channels_last."""
        if images.is_cuda:  # one kernel
            scaled = torch.empty_like(images, dtype=self.dtype, memory_format=torch.channels_last)
            return torch.div(images, 255.0, out=scaled)
        return images.to(self.dtype, memory_format=torch.channels_last, copy=True).div_(255.0)  # two vectorized passes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images if images.is_floating_point() else self.scale(images)
        if can_fuse_relu(x):
            layers = [layer for layer in self.convs if isinstance(layer, nn.Conv2d)]
            if torch.is_grad_enabled():
                parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
                x = ConvolutionsWithReLU.apply(x, layers, *parameters)
            else:
                for layer in layers:
                    x = convolution_with_relu(x, layer)
        else:
            with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
                x = self.convs(x)
        return x.permute(0, 2, 3, 1).flatten(1)


def can_fuse_relu(images: torch.Tensor) -> bool:
    """Return whether `convolution_with_relu` can be used: on a CPU, if torch has oneDNN.

    The numbers are then those of the two one after the other, to the bit. They would not be for a single image, as
    torch computes small convolutions without oneDNN.
    """
    if not images.is_cpu or len(images) == 1:
        return False
    onednn = torch.ops.mkldnn
    if not hasattr(onednn, "_convolution_pointwise"):
        return False
    return images.dtype == torch.float32 or (images.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())


def convolution_with_relu(images: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """Return relu(conv(images)) in one pass, without gradients, by the operator that torch.compile uses on CPUs."""
    assert conv.bias is not None
    weight, bias = conv.weight.to(images.dtype), conv.bias.to(images.dtype)
    return torch.ops.mkldnn._convolution_pointwise(
        images, weight, bias, conv.padding, conv.stride, conv.dilation, conv.groups, "relu", [], ""
    )


class ConvolutionsWithReLU(torch.autograd.Function):
    """Several `convolution_with_relu` with gradients, which are those of separate layers to the bit.

    `apply(images, layers, weight, bias, weight, bias, ...)` takes the parameters of the layers too, so that they get
    their gradients.
    """

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, layers: Sequence[nn.Conv2d], *parameters: torch.Tensor) -> torch.Tensor:
        outputs = [images]
        for layer in layers:
            outputs.append(convolution_with_relu(outputs[-1], layer))
        ctx.layers = layers
        ctx.save_for_backward(*outputs, *parameters[::2])
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        outputs, weights = ctx.saved_tensors[: len(ctx.layers) + 1], ctx.saved_tensors[len(ctx.layers) + 1 :]
        grads: list[torch.Tensor] = []
        for index, layer in reversed(list(enumerate(ctx.layers))):
            output, weight = outputs[index + 1], weights[index]
            if grads:  # then `grad` is a tensor of our own, and ReLU's gradient can take its place
                torch.ops.aten.threshold_backward.grad_input(grad, output, 0, grad_input=grad)
            else:
                grad = torch.ops.aten.threshold_backward(grad, output, 0)
            wanted = [index > 0 or ctx.needs_input_grad[0], True, True]
            tensors = grad, outputs[index], weight.to(grad.dtype)
            settings = [layer.out_channels], layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups
            grad, *own = torch.ops.aten.convolution_backward(*tensors, *settings, wanted)
            grads = [part.to(weight.dtype) for part in own] + grads
        return grad, None, *grads


class Critic(nn.Module):
    """The convolutional encoder, which the critic owns, and two Q functions of (feature, skill, action).

    The skill joins behind the bottleneck: next to 39,200 convolutional features it would have little influence.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.encoder = Encoder(arch.obs_shape, arch.precision)
        self.head = make_head(self.encoder.conv_dim, arch.encoder_feature_dim)
        self.skill = SkillEmbedding(arch.num_skills, arch.skill_embedding_dim, arch.skill_embedding_init)
        width = arch.encoder_feature_dim + self.skill.width + arch.action_dim
        self.q1 = mlp(width, arch.hidden_dim, 1, arch.hidden_depth)
        self.q2 = mlp(width, arch.hidden_dim, 1, arch.hidden_depth)
        self.apply(weight_init)

    def forward(
        self, features: torch.Tensor, skill: torch.Tensor, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Q1 and Q2, each (N,), given the encoder's features (N, conv_dim)."""
        x = torch.cat([self.head(features), self.skill(skill), action], dim=1)
        return self.q1(x).squeeze(1), self.q2(x).squeeze(1)


class SquashedGaussian(NamedTuple):
    """A Gaussian followed by tanh: the policy's distribution over actions. Each field is (N, action_dim)."""

    mean: torch.Tensor
    log_std: torch.Tensor

    def mode(self) -> torch.Tensor:
        """Return the deterministic action: tanh of the mean."""
        return self.mean.tanh()

    def sample(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the action that standard normal `noise` selects and its log-probability (N,), both differentiable.

        log |det| of tanh is computed as 2 (log 2 - x - softplus(-2x)), which is finite for every finite x.
        """
        x = self.mean + self.log_std.exp() * noise
        gaussian = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)
        log_det = 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))
        return x.tanh(), (gaussian - log_det).sum(dim=1)


class Actor(nn.Module):
    """The policy. It receives the critic's convolutional features detached and never trains the encoder."""

    def __init__(self, arch: Architecture, conv_dim: int) -> None:
        super().__init__()
        self.log_std_bounds = arch.log_std_bounds
        self.head = make_head(conv_dim, arch.encoder_feature_dim)
        self.skill = SkillEmbedding(arch.num_skills, arch.skill_embedding_dim, arch.skill_embedding_init)
        width = arch.encoder_feature_dim + self.skill.width
        self.policy = mlp(width, arch.hidden_dim, 2 * arch.action_dim, arch.hidden_depth)
        self.apply(weight_init)

    def forward(self, features: torch.Tensor, skill: torch.Tensor) -> SquashedGaussian:
        x = torch.cat([self.head(features), self.skill(skill)], dim=1)
        mean, log_std = self.policy(x).chunk(2, dim=1)
        low, high = self.log_std_bounds
        return SquashedGaussian(mean, low + 0.5 * (high - low) * (log_std.tanh() + 1.0))


# -- all of an agent's networks ----------------------------------------------------------------------------------------


class ActorCritic:
    """What a soft actor-critic agent learns, and how it is saved, loaded and inspected. Subclasses create it.

    The critic owns the convolutional encoder. The target critic is a deep copy of the critic, encoder included.
    Subclasses that add a network extend `modules` and `optimizers`.
    """

    device: torch.device
    generator: torch.Generator  # source of the agent's random numbers
    critic: Critic
    critic_target: Critic
    actor: Actor
    log_alpha: torch.Tensor
    critic_optimizer: torch.optim.Adam
    actor_optimizer: torch.optim.Adam
    alpha_optimizer: torch.optim.Adam | None  # None if the temperature is fixed
    graphs: CudaGraphs | None = None
    num_updates = 0
    skill = NO_SKILL  # the skill to act with, if the agent fine-tunes a single one

    def modules(self) -> dict[str, nn.Module]:
        """Return the trained networks by name."""
        return {"actor": self.actor, "critic": self.critic}

    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """Return the optimizers by name."""
        optimizers = {"actor": self.actor_optimizer, "critic": self.critic_optimizer}
        return optimizers | ({"alpha": self.alpha_optimizer} if self.alpha_optimizer is not None else {})

    def use_cuda_graphs(self) -> None:
        """From now on run updates, actions and assessments from CUDA graphs: the same kernels in a single launch."""
        self.graphs = CudaGraphs(self._weights(), self.optimizers().values())

    def launch(self, function: Callable[..., Outputs], *inputs: Any, kind: Hashable = None) -> Outputs:
        """Return `function(*inputs)`, with CUDA graphs if they are in use. For `kind` see `CudaGraphs`."""
        return function(*inputs) if self.graphs is None else self.graphs(function, *inputs, kind=kind)

    def weights(self) -> dict[str, Any]:
        """Return what `load_weights` needs to act and to evaluate: the trained networks (no copies) and the skill."""
        modules = {name: module.state_dict() for name, module in self.modules().items()}
        return {"skill": self.skill, "log_alpha": self.log_alpha.detach(), "modules": modules}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that learning changes: the tensors themselves (no copies) and plain data."""
        return {
            "device": self.device.type,
            "num_updates": self.num_updates,
            "skill": self.skill,
            "log_alpha": self.log_alpha.detach(),
            "generator": self.generator.get_state(),
            "modules": {name: module.state_dict() for name, module in self._all_modules().items()},
            "optimizers": {name: optimizer.state_dict()["state"] for name, optimizer in self.optimizers().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the `state_dict` of an agent with the same settings into this one, in place.

        A generator's state cannot be moved to another kind of device; this agent then keeps its own. The optimizers
        keep their own hyperparameters.
        """
        self.load_weights(state)
        self.num_updates = state["num_updates"]
        if state["device"] == self.device.type:
            self.generator.set_state(state["generator"])
        for name, optimizer in self.optimizers().items():
            load_adam_state(optimizer, state["optimizers"][name])

    @torch.no_grad()
    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Copy the `state_dict` or `weights` of an agent with the same settings, in place, without its optimizers.

        Weights have no target critic; the target then becomes a copy of the critic.
        """
        self.skill = state["skill"]
        self.log_alpha.copy_(state["log_alpha"])
        saved = {"critic_target": state["modules"]["critic"], **state["modules"]}
        for name, module in self._all_modules().items():
            module.load_state_dict(saved[name])

    def load_pretrained(self, state: Mapping[str, Any], *, critic: bool) -> None:
        """Copy actor, encoder and skill embeddings from a `state_dict`; with `critic` also the Q functions and head.

        Optimizers and temperature keep their initial state. The target critic becomes a copy of the critic.
        """
        self.actor.load_state_dict(state["modules"]["actor"])
        pretrained = state["modules"]["critic"]
        if not critic:
            pretrained = {k: v for k, v in pretrained.items() if k.startswith(("encoder.", "skill."))}
        self.critic.load_state_dict({**self.critic.state_dict(), **pretrained})
        self.critic_target.load_state_dict(self.critic.state_dict())

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Return whether every weight is finite. This synchronizes with the device."""
        return bool(torch.stack(torch._foreach_norm(self._weights())).isfinite().all())

    def histograms(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and value of every trained weight and, if there is one, of its newest gradient."""
        for name, module in self.modules().items():
            for parameter_name, parameter in module.named_parameters():
                path = f"{name}/{parameter_name.replace('.', '_')}"
                yield path, parameter.detach()
                if parameter.grad is not None:
                    yield f"{path}_grad", parameter.grad

    def _all_modules(self) -> dict[str, nn.Module]:
        return {**self.modules(), "critic_target": self.critic_target}

    def _weights(self) -> list[torch.Tensor]:
        return [*(p for module in self._all_modules().values() for p in module.parameters()), self.log_alpha]
