"""The benchmarks: update, replay buffer, rendering, evaluation, the whole loop, and checkpoints."""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from augmentations import RandomShift
from benchmarks.contest import Row, contest, milliseconds, rows
from dmc import DMCEnv
from drq import DrQAgent
from envs.make import make_environment
from envs.parallel import make_eval_envs
from envs.pixel_env import PixelEnv
from evaluation.play import Start, play
from logger import Meters
from replay_buffer import ReplayBuffer
from running.build import make_agent
from running.columns import update_metrics
from running.derivation import make_config
from running.loop import train
from running.run import Run
from running.start import open_run
from running.state import save_checkpoint
from tests.support.oracle import FullStackReplay, OracleAgent

OBS_SHAPE, FRAME_SHAPE = (9, 84, 84), (3, 84, 84)
ACTION_DIM = 6  # in the update and replay benchmarks
FILLED = 2000  # transitions in the replay buffers
Played = tuple[np.ndarray, list[tuple[Any, ...]]]  # an episode: first observation, arguments of `ReplayBuffer.add`


# -- ours and the baseline -------------------------------------------------------------------------------------------


def make_ours(args: argparse.Namespace, action_dim: int = ACTION_DIM, **flags: Any) -> DrQAgent:
    """Return our agent. Its weights do not depend on precision and graphs."""
    torch.manual_seed(0)
    config = make_config({"num_skills": args.num_skills, "device": args.device, **flags})
    return make_agent(config, OBS_SHAPE, action_dim)


def make_oracle(args: argparse.Namespace, action_dim: int = ACTION_DIM, **settings: Any) -> OracleAgent:
    """Return the baseline with the same weights."""
    if args.num_skills:
        settings |= {"num_skills": args.num_skills, "skill_embedding_dim": 10}
        settings |= {"extrinsic_reward_coeff": 0.0, "learn_temperature": False}
    oracle = OracleAgent(OBS_SHAPE, action_dim, device=args.device, **settings)
    return oracle.load(make_ours(args, action_dim, cuda_graphs=False))


def filled_buffers(args: argparse.Namespace, action_dim: int = ACTION_DIM) -> tuple[ReplayBuffer, FullStackReplay]:
    """Return our replay buffer and the baseline's with the same random transitions."""
    rng = np.random.default_rng(0)
    ours = ReplayBuffer(FILLED, FRAME_SHAPE, 3, action_dim, device=args.device, storage=args.device)
    plain = FullStackReplay(FILLED, OBS_SHAPE, action_dim, device=args.device)
    obs = np.tile(rng.integers(256, size=FRAME_SHAPE, dtype=np.uint8), (3, 1, 1))
    ours.start_episode(obs)
    for step in range(FILLED):
        next_obs = np.concatenate([obs[3:], rng.integers(256, size=FRAME_SHAPE, dtype=np.uint8)])
        action, skill = rng.uniform(-1, 1, action_dim).astype(np.float32), step % max(args.num_skills, 1)
        ours.add(action, float(rng.random()), next_obs, False, skill)
        plain.add(obs, action, float(rng.random()), next_obs, False, skill)
        obs = next_obs
    return ours, plain


@contextmanager
def ieee_products() -> Iterator[None]:
    """Compute without TF32 in convolutions and matrix products."""
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # by default, flags() disables cuDNN
            yield
    finally:
        torch.set_float32_matmul_precision(usual)


def gradient_gap(args: argparse.Namespace) -> float:
    """Return the largest relative distance between a loss, or a tensor's gradient, in ours and in the baseline.

    Weights and views are the same, and steps too small to change a weight. Critic and discriminator are compared in an
    odd update, the actor in an even one, whose later losses also reach the baseline's critic. TF32 is off: its rounding
    in one of the two alone would look like a difference. Losses below 0.1 are compared as if they were 0.1.
    """
    still: dict[str, Any] = {"lr": 1e-30, "lr_discriminator": 1e-30}
    views = make_ours(args, cuda_graphs=False).make_views(filled_buffers(args)[0].sample(32))
    gaps = []
    with ieee_products():
        for parity, networks in ((1, ("critic", "discriminator")), (0, ("actor",))):
            agent, oracle = make_ours(args, cuda_graphs=False, **still), make_oracle(args, **still)
            agent.num_updates = oracle.num_updates = parity
            metrics, expected = agent.learn(views), oracle.learn(views)
            gaps += [abs(float(metrics[name]) - value) / max(abs(value), 0.1) for name, value in expected.items()]
            for network in agent.modules().keys() & networks:
                plain = dict(getattr(oracle, network).named_parameters())
                for name, parameter in agent.modules()[network].named_parameters():
                    if name != "head.0.weight":  # its columns are in another order
                        ours, theirs = parameter.grad, plain[name].grad
                        gaps.append(float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)))
    return max(gaps)


# -- benchmarks ------------------------------------------------------------------------------------------------------


def bench_update(args: argparse.Namespace) -> Iterator[Row]:
    """Time one update with its batch: even ones, which also update actor and target, odd ones, and their mean.

    Sampling is included, and passing the metrics to the logger.
    """
    gap = gradient_gap(args)
    print(f"largest relative difference between a loss or gradient of ours and the baseline's: {gap:.1e}")
    if gap > 1e-2:
        raise SystemExit("losses or gradients do not agree; the timings would compare different computations")
    ours, plain = filled_buffers(args)
    shift, fast_crop = RandomShift(4, torch.Generator(args.device).manual_seed(0)), make_oracle(args)
    fast_crop.augment.forward = lambda images: shift(images).contiguous()  # type: ignore[method-assign]
    agents: dict[str, Any] = {
        "baseline": make_oracle(args),
        "baseline, fast crop": fast_crop,
        "ours fp32": make_ours(args),
        "ours bf16": make_ours(args, precision="bf16"),
    }
    if args.device != "cpu":
        agents["ours fp32, no graphs"] = make_ours(args, cuda_graphs=False)
    meters = Meters(update_metrics(with_skills=True))

    def update(agent: Any, batch_size: int, parity: int) -> None:
        agent.num_updates = parity
        if isinstance(agent, OracleAgent):
            agent.update(plain.sample(batch_size))  # reads every metric at once
        else:
            meters.add(agent.update(ours.sample(batch_size)))

    for size in args.batch_size:
        even, odd = (
            contest(args, f"{name}, batch {size}", {key: partial(update, agents[key], size, parity) for key in agents})
            for parity, name in enumerate(("even", "odd"))
        )
        yield from (*even, *odd)
        times = ("median_ms", "low_ms", "high_ms")
        means = [{key: (a[key] + b[key]) / 2 for key in times} for a, b in zip(even, odd, strict=True)]
        for row, mean in zip(even, means, strict=True):
            ratio = means[0]["median_ms"] / mean["median_ms"]
            yield {"case": f"mean, batch {size}", "variant": row["variant"], **mean, "ratio": ratio}


def bench_replay(args: argparse.Namespace) -> Iterator[Row]:
    """Time drawing a batch from full stacks and from frames stored once, with the memory of 100,000 transitions."""
    ours, plain = filled_buffers(args)
    stacks = 100_000 * (2 * int(np.prod(OBS_SHAPE)) + 4 * ACTION_DIM + 16)
    frames = ReplayBuffer.bytes_needed(100_000, FRAME_SHAPE, 3, ACTION_DIM)
    for size in args.batch_size:
        variants = {"full stacks": partial(plain.sample, size), "frames once": partial(ours.sample, size)}
        for row, memory in zip(contest(args, f"sample {size}", variants, steps=20), (stacks, frames), strict=True):
            yield {**row, "remarks": f"{memory / 1e9:.2f} GB at 100,000 transitions"}


def bench_render(args: argparse.Namespace) -> Iterator[Row]:
    """Time one picture with a new camera each time, as dm_control's own render does, and with the camera kept."""
    env = DMCEnv(args.env)
    env.reset(seed=0)
    variants = {"new camera": lambda: env.physics.render(84, 84, camera_id=0), "kept camera": env.render}
    yield from contest(args, f"84 x 84, {args.env}", variants, steps=50)


def bench_eval(args: argparse.Namespace) -> Iterator[Row]:
    """Time an episode of each of ten skills: one after the other, side by side, and in worker processes."""
    config = make_config({"env": args.env, "action_repeat": 8, "device": args.device})
    agent = make_ours(args, DMCEnv(args.env).action_space.shape[0], num_skills=config.num_skills)
    starts = [Start(skill, 0) for skill in agent.skills()]
    workers = max(2, min(len(starts), (os.cpu_count() or 2) - 1))
    factory = partial(make_environment, config)
    in_processes = make_eval_envs(factory, len(starts), workers)
    eval_envs = {
        "one after the other": make_eval_envs(factory, 1, 0),
        "side by side": make_eval_envs(factory, len(starts), 0),
        f"{in_processes.num_envs} processes": in_processes,
    }
    variants = {name: partial(play, agent, envs, starts) for name, envs in eval_envs.items()}
    yield from contest(args, f"{len(starts)} episodes, {args.env}", variants, steps=1)
    for envs in eval_envs.values():
        envs.close()


def bench_loop(args: argparse.Namespace, run_steps: int = 375) -> Iterator[Row]:
    """Time a step of the whole loop on the real task, ours and the baseline's; then the parts of a short run."""
    env, plain_env = DMCEnv(args.env, action_repeat=4), DMCEnv(args.env, action_repeat=4)
    action_dim, batch_size = env.action_space.shape[0], args.batch_size[0]
    agent, oracle = make_ours(args, action_dim), make_oracle(args, action_dim)
    ours, plain = filled_buffers(args, action_dim)
    meters = Meters(update_metrics(with_skills=True))
    obs, plain_obs = env.reset(seed=0)[0], plain_env.reset(seed=0)[0]
    ours.start_episode(obs)
    plain_env.render = lambda *_: plain_env.physics.render(84, 84, camera_id=0)  # type: ignore[method-assign]

    def our_update() -> None:
        meters.add(agent.update(ours.sample(batch_size)))

    def our_step() -> None:
        nonlocal obs
        action = agent.act(obs, 0, sample=True)
        our_update()
        obs, reward, terminated, truncated, _ = env.step(action)
        ours.add(action, reward, obs, terminated, 0)
        if terminated or truncated:
            obs = env.reset()[0]
            ours.start_episode(obs)

    def plain_step() -> None:
        nonlocal plain_obs
        with torch.no_grad():
            features = oracle.critic.encoder(torch.as_tensor(plain_obs[None], device=args.device))
            skill = torch.zeros(1, dtype=torch.int64, device=args.device)
            action = oracle.actor(features, skill, torch.randn(1, action_dim, device=args.device))[0][0].cpu().numpy()
        oracle.update(plain.sample(batch_size))
        next_obs, reward, terminated, truncated, _ = plain_env.step(action)
        plain.add(plain_obs, action, reward, next_obs, terminated, 0)
        plain_obs = plain_env.reset()[0] if terminated or truncated else next_obs

    variants: dict[str, Callable[[], object]] = {
        "baseline loop": plain_step,
        "our loop": our_step,
        "our update alone": our_update,
        "our environment alone": partial(env.step, np.zeros(action_dim, np.float32)),
    }
    yield from contest(args, f"{args.env}, batch {batch_size}", variants)
    flags = {"env": args.env, "action_repeat": 8, "num_skills": 4, "num_train_steps": run_steps}
    flags |= {"num_seed_steps": run_steps // 3, "batch_size": batch_size, "eval_frequency": 0}
    flags |= {"log_frequency_step": 250, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(make_config({**flags, "work_dir": folder}), args.renderer)
        step = milliseconds(partial(train, run), args.device) / run_steps
        shares = sorted(run.time_shares().items(), key=lambda item: -item[1])
        run.close()
    for row in rows("shares of a real run", {f"one run, {run_steps} steps": [step]}):
        yield {**row, "remarks": ", ".join(f"{part} {share:.1%}" for part, share in shares)}


def bench_checkpoint(args: argparse.Namespace) -> Iterator[Row]:
    """Time checkpoints of a full-sized run with 100,000 transitions: all of them new, 5,000, none; and a resume."""
    flags = {"env": args.env, "num_skills": args.num_skills, "save_video": False, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(make_config({**flags, "work_dir": folder}), args.renderer)
        episodes = [random_episode(run.env) for _ in range(8)]  # real pictures, stored repeatedly
        run.env.reset(seed=0)
        fill(run.buffer, episodes, 100_000)
        for _ in range(2):  # gives the optimizers a state to save
            run.agent.update(run.buffer.sample(8))
        times = {"all": [milliseconds(partial(save_checkpoint, run), args.device)], "5,000 new": [], "no new": []}
        pieces = run.folder.glob("checkpoint/replay_*")
        sizes = {"all": sum(path.stat().st_size for path in pieces), "no new": 0}
        for _ in range(args.blocks):
            fill(run.buffer, episodes, 5_000)
            times["5,000 new"].append(milliseconds(partial(save_checkpoint, run), args.device))
            newest = max(run.folder.glob("checkpoint/replay_*"), key=os.path.getmtime)
            sizes["5,000 new"] = newest.stat().st_size
            times["no new"].append(milliseconds(partial(save_checkpoint, run), args.device))
        state = max(path.stat().st_size for path in run.folder.glob("checkpoint/state_*"))
        run.close()
        resumed = make_config({**flags, "work_dir": folder, "resume": str(run.folder)})
        again: list[Run] = []
        reading = milliseconds(lambda: again.append(open_run(resumed, args.renderer)), args.device)
        again[0].close()
        times["set-up and reading back"] = [reading]
    for row in rows(f"100,000 transitions, {args.env}", times):
        yield {**row, "remarks": f"state {state / 1e6:.0f} MB, replay {sizes.get(row['variant'], 0) / 1e6:.0f} MB"}


def random_episode(env: PixelEnv) -> Played:
    """Play an episode with random actions."""
    first, _ = env.reset()
    steps, over = [], False
    while not over:
        action = env.action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        steps.append((action, reward, obs, terminated, 0))
        over = terminated or truncated
    return first, steps


def fill(buffer: ReplayBuffer, episodes: Sequence[Played], transitions: int) -> None:
    """Add at least so many transitions, of whole episodes, to the replay buffer."""
    for first, steps in itertools.cycle(episodes):
        buffer.start_episode(first)
        for step in steps:
            buffer.add(*step)
        transitions -= len(steps)
        if transitions <= 0:
            return
