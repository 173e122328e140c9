"""The update: ours beside the plain baseline, with the same weights and transitions."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from augmentations import RandomShift
from benchmarks.contest import Row, contest
from diayn import DIAYNAgent
from drq import DrQAgent
from logger import Meters
from replay_buffer import ReplayBuffer
from running.columns import update_metrics
from tests.support.oracle import FullStackReplay, OracleAgent

OBS_SHAPE = (9, 84, 84)
FRAME_SHAPE = (3, 84, 84)
FILLED = 2000  # transitions in the replay buffers


def bench_update(args: argparse.Namespace) -> Iterator[Row]:
    """Time one update with its batch: even ones, which also update actor and target, and odd ones."""
    gap = gradient_gap(args)
    print(f"largest relative difference between a gradient of ours and the baseline's: {gap:.1e}")
    if gap > 1e-2:
        raise SystemExit("the gradients do not agree; the timings would compare different computations")
    ours, plain = filled_buffers(args)
    agents: dict[str, Any] = {
        "baseline": make_oracle(args),
        "baseline, fast crop": make_oracle(args, fast_crop=True),
        "ours fp32": make_agent(args),
        "ours bf16": make_agent(args, precision="bf16"),
    }
    if args.device != "cpu":
        agents["ours fp32, no graphs"] = make_agent(args, graphs=False)

    def one_update(agent: Any, batch_size: int, parity: int) -> Callable[[], None]:
        meters = Meters(update_metrics(with_skills=True))

        def run() -> None:
            agent.num_updates = parity
            if isinstance(agent, OracleAgent):
                agent.update(plain.sample(batch_size))  # reads every metric at once
            else:
                meters.add(agent.update(ours.sample(batch_size)))

        return run

    for batch_size in args.batch_size:
        both: dict[str, list[Row]] = {}
        for parity, name in enumerate(("even", "odd")):
            variants = {variant: one_update(agent, batch_size, parity) for variant, agent in agents.items()}
            for row in contest(args, f"{name}, batch {batch_size}", variants):
                both.setdefault(row["variant"], []).append(row)
                yield row
        first = statistics.mean(row["median_ms"] for row in both["baseline"])
        for variant, rows in both.items():
            mean = {key: statistics.mean(row[key] for row in rows) for key in ("median_ms", "low_ms", "high_ms")}
            yield {"case": f"mean, batch {batch_size}", "variant": variant, **mean, "ratio": first / mean["median_ms"]}


def make_agent(args: argparse.Namespace, *, precision: str = "fp32", graphs: bool = True) -> DrQAgent:
    """Return our agent. Its weights depend on neither precision nor graphs."""
    torch.manual_seed(0)
    settings: Row = {"device": args.device, "seed": 0, "precision": precision}
    if args.num_skills:
        settings |= {"num_skills": args.num_skills, "skill_embedding_dim": 10, "lr_discriminator": 1e-3}
        settings |= {"extrinsic_reward_coeff": 0.0, "learn_temperature": False}
    agent = (DIAYNAgent if args.num_skills else DrQAgent)(OBS_SHAPE, args.action_dim, **settings)
    if args.device != "cpu" and graphs:
        agent.use_cuda_graphs()
    return agent


class FastCrop(nn.Module):
    """Our random shift as a module."""

    def __init__(self, shift: RandomShift) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.shift(images).contiguous()


def make_oracle(args: argparse.Namespace, *, fast_crop: bool = False) -> OracleAgent:
    """Return the baseline with the same weights, if asked for with our crop instead of kornia's."""
    settings: Row = {"device": args.device}
    if args.num_skills:
        settings |= {"num_skills": args.num_skills, "skill_embedding_dim": 10}
        settings |= {"extrinsic_reward_coeff": 0.0, "learn_temperature": False}
    oracle = OracleAgent(OBS_SHAPE, args.action_dim, **settings).load(make_agent(args, graphs=False))
    if fast_crop:
        oracle.augment = nn.Sequential(FastCrop(RandomShift(4, torch.Generator(args.device).manual_seed(0))))
    return oracle


def filled_buffers(args: argparse.Namespace) -> tuple[ReplayBuffer, FullStackReplay]:
    """Return our replay buffer and the baseline's with the same random transitions."""
    rng = np.random.default_rng(0)
    ours = ReplayBuffer(FILLED, FRAME_SHAPE, 3, args.action_dim, device=args.device, storage=args.device)
    plain = FullStackReplay(FILLED, OBS_SHAPE, args.action_dim, device=args.device)
    obs = np.tile(rng.integers(256, size=FRAME_SHAPE, dtype=np.uint8), (3, 1, 1))
    ours.start_episode(obs)
    for step in range(FILLED):
        next_obs = np.concatenate([obs[3:], rng.integers(256, size=FRAME_SHAPE, dtype=np.uint8)])
        action, skill = rng.uniform(-1, 1, args.action_dim).astype(np.float32), step % max(args.num_skills, 1)
        ours.add(action, float(rng.random()), next_obs, False, skill)
        plain.add(obs, action, float(rng.random()), next_obs, False, skill)
        obs = next_obs
    return ours, plain


def gradient_gap(args: argparse.Namespace) -> float:
    """Return the largest relative distance between a tensor's gradient in ours and in the baseline.

    Weights and views are the same. Critic and discriminator are compared in an odd update, the actor in a step of its
    own: after the critic's step the weights differ, as Adam's first step turns rounding errors of tiny gradients into
    whole steps. TF32 is off in convolutions: its rounding in one of the two alone would look like a difference.
    """
    rounding = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return _gradient_gap(args)
    finally:
        torch.backends.cudnn.allow_tf32 = rounding


def _gradient_gap(args: argparse.Namespace) -> float:
    views = make_agent(args, graphs=False).make_views(filled_buffers(args)[0].sample(32))
    gaps = []
    for networks in (["critic", "discriminator"], ["actor"]):
        agent, oracle = make_agent(args, graphs=False), make_oracle(args)
        if networks == ["actor"]:
            agent.update_actor_and_alpha(views)
            oracle._update_actor_and_alpha(views.obs[:32].contiguous(), views.skill, views.noise)
        else:
            agent.num_updates = oracle.num_updates = 1
            agent.learn(views)
            oracle.learn(views)
        for name in networks:
            if name in agent.modules():
                plain = dict(getattr(oracle, name).named_parameters())
                for parameter_name, parameter in agent.modules()[name].named_parameters():
                    if parameter_name != "head.0.weight":  # its columns are in another order
                        ours, theirs = parameter.grad, plain[parameter_name].grad
                        gaps.append(float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)))
    return max(gaps)
