"""Replay buffer, rendering, evaluation, the whole loop, and checkpoints."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.contest import Row, contest, milliseconds, timing
from benchmarks.update import FRAME_SHAPE, OBS_SHAPE, filled_buffers, make_agent, make_oracle
from config import make_config
from dmc import DMCEnv
from envs.make import make_environment
from envs.parallel import make_eval_envs
from envs.pixel_env import PixelEnv
from evaluation.play import Start, play
from logger import Meters
from replay_buffer import ReplayBuffer
from running.build import make_agent as agent_of
from running.columns import update_metrics
from running.loop import train
from running.run import Run
from running.start import open_run
from running.state import save_checkpoint
from tests.support.oracle import FullStackReplay


def bench_replay(args: argparse.Namespace) -> Iterator[Row]:
    """Time drawing a batch from full stacks and from frames stored once, with the memory of 100,000 transitions."""
    ours, plain = filled_buffers(args)
    stacks = 2 * int(np.prod(OBS_SHAPE)) + 4 * args.action_dim + 16
    sizes = {
        "full stacks": 100_000 * stacks,
        "frames once": ReplayBuffer.bytes_needed(100_000, FRAME_SHAPE, 3, args.action_dim),
    }
    for batch_size in args.batch_size:
        buffers: dict[str, ReplayBuffer | FullStackReplay] = {"full stacks": plain, "frames once": ours}
        variants = {name: partial(buffer.sample, batch_size) for name, buffer in buffers.items()}
        for row in contest(args, f"sample {batch_size}", variants, steps=20):
            yield {**row, "remarks": f"{sizes[row['variant']] / 1e9:.2f} GB at 100,000 transitions"}


def bench_render(args: argparse.Namespace) -> Iterator[Row]:
    """Time one picture with a new camera each time, as dm_control's own render does, and with the camera kept."""
    env = DMCEnv(args.env)
    env.reset(seed=0)
    variants = {"new camera": lambda: env.physics.render(84, 84, camera_id=0), "kept camera": env.render}
    yield from contest(args, f"84 x 84, {args.env}", variants, steps=50)


def bench_eval(args: argparse.Namespace) -> Iterator[Row]:
    """Time an episode of each of ten skills: one after the other, side by side, and in worker processes."""
    config = make_config({"env": args.env, "action_repeat": 8, "device": args.device})
    torch.manual_seed(0)
    agent = agent_of(config, OBS_SHAPE, DMCEnv(args.env).action_space.shape[0])
    starts = [Start(skill, 0) for skill in agent.skills()]
    workers = max(2, min(len(starts), (os.cpu_count() or 2) - 1))
    factory = partial(make_environment, config)
    eval_envs = {
        "one after the other": make_eval_envs(factory, 1, 0),
        "side by side": make_eval_envs(factory, len(starts), 0),
        f"{workers} processes": make_eval_envs(factory, len(starts), workers),
    }
    variants = {name: partial(play, agent, envs, starts) for name, envs in eval_envs.items()}
    yield from contest(args, f"{len(starts)} episodes, {args.env}", variants, steps=1)
    for envs in eval_envs.values():
        envs.close()


def bench_loop(args: argparse.Namespace) -> Iterator[Row]:
    """Time a step of the whole loop on the real task, ours and the baseline's; then the parts of a short run."""
    env, plain_env = DMCEnv(args.env, action_repeat=4), DMCEnv(args.env, action_repeat=4)
    args.action_dim = action_dim = env.action_space.shape[0]
    batch_size = args.batch_size[0]
    agent, oracle = make_agent(args), make_oracle(args)
    ours, plain = filled_buffers(args)
    meters = Meters(update_metrics(with_skills=True))
    state: Row = {"obs": env.reset(seed=0)[0], "plain": plain_env.reset(seed=0)[0]}
    ours.start_episode(state["obs"])
    plain_env.render = lambda *_: plain_env.physics.render(84, 84, camera_id=0)  # type: ignore[method-assign]

    def our_step() -> None:
        action = agent.act(state["obs"], 0, sample=True)
        meters.add(agent.update(ours.sample(batch_size)))
        state["obs"], reward, terminated, truncated, _ = env.step(action)
        ours.add(action, reward, state["obs"], terminated, 0)
        if terminated or truncated:
            state["obs"] = env.reset()[0]
            ours.start_episode(state["obs"])

    def plain_step() -> None:
        obs = torch.as_tensor(state["plain"][None], device=args.device)
        with torch.no_grad():
            features = oracle.critic.encoder(obs)
            skill = torch.zeros(1, dtype=torch.int64, device=args.device)
            action = oracle.actor(features, skill, torch.randn(1, action_dim, device=args.device))[0][0].cpu().numpy()
        oracle.update(plain.sample(batch_size))
        next_obs, reward, terminated, truncated, _ = plain_env.step(action)
        plain.add(state["plain"], action, reward, next_obs, terminated, 0)
        state["plain"] = plain_env.reset()[0] if terminated or truncated else next_obs

    still = np.zeros(action_dim, np.float32)
    variants = {
        "baseline loop": plain_step,
        "our loop": our_step,
        "our update alone": lambda: meters.add(agent.update(ours.sample(batch_size))),
        "our environment alone": lambda: env.step(still),
    }
    yield from contest(args, f"{args.env}, batch {batch_size}", variants)
    yield _shares_of_a_run(args)


def _shares_of_a_run(args: argparse.Namespace) -> Row:
    """Train a short run, and return the share of time that each part took, logging included."""
    flags = {"env": args.env, "action_repeat": 8, "num_skills": 4, "num_train_steps": 375, "num_seed_steps": 125}
    flags |= {"batch_size": args.batch_size[0], "eval_frequency": 0, "log_frequency_step": 250, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(make_config({**flags, "work_dir": folder}), args.renderer)
        started = time.perf_counter()
        train(run)
        step = (time.perf_counter() - started) / 375 * 1e3
        shares = run.time_shares()
        run.close()
    remarks = ", ".join(f"{part} {share:.1%}" for part, share in sorted(shares.items(), key=lambda item: -item[1]))
    case = {"case": "shares of a real run", "variant": "one run, 375 steps", "remarks": remarks}
    return {**case, **timing([step], step)}


def bench_checkpoint(args: argparse.Namespace) -> Iterator[Row]:
    """Time checkpoints of a full-sized run with 100,000 transitions: all of them new, 5,000, none; and a resume."""
    flags = {"env": args.env, "num_skills": args.num_skills, "save_video": False, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(make_config({**flags, "work_dir": folder}), args.renderer)
        episodes = [list(random_episode(run.env)) for _ in range(8)]  # real pictures, stored repeatedly
        run.env.reset(seed=0)
        fill(run, episodes, 100_000)
        for _ in range(2):  # gives the optimizers a state to save
            run.agent.update(run.buffer.sample(8))
        timings: dict[str, list[float]] = {"all": [milliseconds(lambda: save_checkpoint(run))]}
        pieces = {"all": list((run.folder / "checkpoint").glob("replay_*"))}
        for _ in range(args.blocks):
            for name, new in (("5,000 new", 5_000), ("no new", 0)):
                fill(run, episodes, new)
                timings.setdefault(name, []).append(milliseconds(lambda: save_checkpoint(run)))
                pieces[name] = sorted((run.folder / "checkpoint").glob("replay_*"), key=os.path.getmtime)[-1:]
        state = max(path.stat().st_size for path in run.folder.glob("checkpoint/state_*"))
        run.close()
        again: list[Run] = []
        resumed = make_config({**flags, "work_dir": folder, "resume": str(run.folder)})
        timings["set-up and reading back"] = [milliseconds(lambda: again.append(open_run(resumed, args.renderer)))]
        again[0].close()
        first = statistics.median(timings["all"])
        for name, values in timings.items():
            size = sum(path.stat().st_size for path in pieces.get(name, []) if path.exists())
            remarks = f"state {state / 1e6:.0f} MB, replay {size / 1e6:.0f} MB"
            case = {"case": f"100,000 transitions, {args.env}", "variant": name, "remarks": remarks}
            yield {**case, **timing(values, first)}


def random_episode(env: PixelEnv) -> Iterator[tuple[Any, ...]]:
    """Yield (None, first observation), then (action, reward, observation, terminated) for each step."""
    obs, _ = env.reset()
    yield None, obs
    over = False
    while not over:
        action = env.action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        yield action, reward, obs, terminated


def fill(run: Run, episodes: Sequence[Sequence[tuple[Any, ...]]], transitions: int) -> None:
    """Add at least so many transitions, of whole episodes, to the run's replay buffer."""
    while transitions > 0:
        for (_, first), *steps in episodes:
            run.buffer.start_episode(first)
            for action, reward, obs, terminated in steps:
                run.buffer.add(action, reward, obs, terminated, 0)
            transitions -= len(steps)
            if transitions <= 0:
                return
