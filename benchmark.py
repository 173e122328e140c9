"""How fast the parts are, side by side with the plain baseline of tests/support/oracle.py, in one process.

python benchmark.py update|loop|replay|eval|render|checkpoint|all [--device cuda] [--batch_size 128 512] [--out FILE]

Variants take turns, block by block, so that a machine whose speed drifts drifts for all of them; what is printed is the
median over blocks and the range. A block ends when the device is done. Sampling and the metrics' way to the logger
count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does, and before torch is imported

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import dmc
import runs
import train
from augmentations import RandomShift
from config import UserError, make_config
from diayn import DIAYNAgent
from drq import DrQAgent
from logger import Meters
from replay_buffer import ReplayBuffer
from rollouts import Start, make_lanes, play
from tests.support.oracle import FullStackReplay, OracleAgent
from utils import keep_freed_memory

OBS_SHAPE, FILLED = (9, 84, 84), 2000  # observations, and transitions in the buffers
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=(*BENCHMARKS, "all"), default="all", help="takes minutes each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:N or cpu")
    parser.add_argument("--batch_size", type=positive, nargs="+", default=[128], help="of update, loop and replay")
    parser.add_argument("--num_skills", type=int, default=0, help="skills in the update and loop benchmarks")
    parser.add_argument("--blocks", type=positive, default=5, help="blocks per variant")
    parser.add_argument("--steps", type=positive, default=4, help="updates, or steps, in a block")
    parser.add_argument("--env", default="cartpole_swingup", help="task of the loop, eval and render benchmarks")
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    args = parser.parse_args(argv)
    args.action_dim = 6
    renderer = dmc.choose_renderer()
    try:
        args.device = runs.choose_device(args.device)
        dmc.resolve_task(args.env)
    except UserError as error:
        parser.error(str(error))
    except dmc.TaskError as error:
        parser.error(f"--env: {error}")
    record: Row = {"machine": machine(args.device, renderer), "load_before": os.getloadavg(), "results": []}
    for name in BENCHMARKS if args.what == "all" else [args.what]:
        for row in BENCHMARKS[name](argparse.Namespace(**vars(args))):  # one of its own, which it may change
            record["results"].append({"benchmark": name, **row})
    record["load_after"] = os.getloadavg()
    print(f"\n{record['machine']}\nload before {record['load_before']}, after {record['load_after']}\n")
    print(table(record["results"]))
    if args.out:
        args.out.write_text(json.dumps(record, indent=2, default=str) + "\n")
    return 0


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on; got {text!r}")
    return int(text)


def machine(device: str, renderer: dmc.RendererInfo) -> Row:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "renderer": f"{renderer.backend}, {renderer.name}",
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        **{package: version(package) for package in ("torch", "mujoco", "dm_control", "numpy")},
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    cells = [["benchmark", "case", "variant", "median ms", "range ms", "against the first", "remarks"]]
    for row in rows:
        timing = [f"{row['median_ms']:.2f}", f"{row['low_ms']:.2f} to {row['high_ms']:.2f}", f"{row['ratio']:.2f}x"]
        cells.append([row["benchmark"], row["case"], row["variant"], *timing, row.get("remarks", "")])
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def contest(
    args: argparse.Namespace, case: str, variants: Mapping[str, Callable[..., object]], steps: int | None = None
) -> list[Row]:
    """Time the variants in turn; `ratio` is the first one's median over this one's. Warm-up is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with tqdm(total=(args.blocks + 1) * len(variants), desc=case, leave=False, disable=None) as bar:
        for block in range(args.blocks + 1):
            for name, run in variants.items():
                # glibc's own limit, at its highest, for the baseline: keeping more is one of our measures.
                keep_freed_memory(32 << 20 if name.startswith("baseline") else 1 << 30)
                synchronize(args.device)
                began = time.perf_counter()
                for _ in range(steps or args.steps):
                    run()
                synchronize(args.device)
                if block:  # the first one warms up
                    times[name].append((time.perf_counter() - began) / (steps or args.steps) * 1e3)
                bar.update()
    first = statistics.median(next(iter(times.values())))
    return [
        {
            "case": case,
            "variant": name,
            "median_ms": statistics.median(values),
            "low_ms": min(values),
            "high_ms": max(values),
            "ratio": first / statistics.median(values),
        }
        for name, values in times.items()
    ]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


# -- update ------------------------------------------------------------------------------------------------------------


def make_agent(args: argparse.Namespace, *, precision: str = "fp32", graphs: bool = True) -> DrQAgent:
    """Our agent with the seed's weights, which do not depend on precision or graphs."""
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
    """The baseline with the same weights; with our crop instead of kornia's where `fast_crop`."""
    settings: Row = {"device": args.device}
    if args.num_skills:
        settings |= {"num_skills": args.num_skills, "skill_embedding_dim": 10}
        settings |= {"extrinsic_reward_coeff": 0.0, "learn_temperature": False}
    oracle = OracleAgent(OBS_SHAPE, args.action_dim, **settings).load(make_agent(args, graphs=False))
    if fast_crop:
        oracle.augment = nn.Sequential(FastCrop(RandomShift(4, torch.Generator(args.device).manual_seed(0))))
    return oracle


def filled_buffers(args: argparse.Namespace) -> tuple[ReplayBuffer, FullStackReplay]:
    """The same random transitions in our replay buffer and in the baseline's."""
    rng = np.random.default_rng(0)
    frame_shape = (3, *OBS_SHAPE[1:])
    ours = ReplayBuffer(FILLED, frame_shape, 3, args.action_dim, device=args.device, storage=args.device)
    plain = FullStackReplay(FILLED, OBS_SHAPE, args.action_dim, device=args.device)
    obs = np.tile(rng.integers(256, size=frame_shape, dtype=np.uint8), (3, 1, 1))
    ours.start_episode(obs)
    for step in range(FILLED):
        next_obs = np.concatenate([obs[3:], rng.integers(256, size=frame_shape, dtype=np.uint8)])
        action, skill = rng.uniform(-1, 1, args.action_dim).astype(np.float32), step % max(args.num_skills, 1)
        ours.add(action, float(rng.random()), next_obs, False, skill)
        plain.add(obs, action, float(rng.random()), next_obs, False, skill)
        obs = next_obs
    return ours, plain


def gradient_gap(args: argparse.Namespace) -> float:
    """Largest relative distance between a tensor's gradient in ours and in the baseline, at the same weights and views.

    Critic and discriminator from an odd update, the actor from its own step: behind the critic's step the weights are
    no longer the same, as Adam's first step turns the rounding of tiny gradients into whole steps. The convolutions
    are exact on CUDA too: TF32's rounding in one of the two alone would be taken for a difference between them.
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
                    if parameter_name != "head.0.weight":  # its columns lie in another order
                        ours, theirs = parameter.grad, plain[parameter_name].grad
                        gaps.append(float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)))
    return max(gaps)


def bench_update(args: argparse.Namespace) -> Iterator[Row]:
    """One update with its batch: even ones, which also step the actor and move the target, and odd ones."""
    gap = gradient_gap(args)
    print(f"gradients of ours and the baseline's differ by {gap:.1e} at most (relative, per tensor)")
    if gap > 1e-2:
        raise SystemExit("the gradients do not agree; timing them would compare different things")
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
        meters = Meters()

        def run() -> None:
            agent.num_updates = parity
            if isinstance(agent, OracleAgent):
                agent.update(plain.sample(batch_size))  # it reads every metric at once
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


# -- the rest ----------------------------------------------------------------------------------------------------------


def bench_replay(args: argparse.Namespace) -> Iterator[Row]:
    """Drawing a batch, from frames stored once and from full stacks; and the memory of 100,000 transitions."""
    ours, plain = filled_buffers(args)
    stacks = 2 * int(np.prod(OBS_SHAPE)) + 4 * args.action_dim + 16
    sizes = {
        "full stacks": 100_000 * stacks,
        "frames once": ReplayBuffer.bytes_needed(100_000, (3, *OBS_SHAPE[1:]), 3, args.action_dim),
    }
    for batch_size in args.batch_size:
        buffers: dict[str, ReplayBuffer | FullStackReplay] = {"full stacks": plain, "frames once": ours}
        variants = {name: partial(buffer.sample, batch_size) for name, buffer in buffers.items()}
        for row in contest(args, f"sample {batch_size}", variants, steps=20):
            yield {**row, "remarks": f"{sizes[row['variant']] / 1e9:.2f} GB at 100,000 transitions"}


def bench_render(args: argparse.Namespace) -> Iterator[Row]:
    """One picture with the camera kept, and with a new one each time as dm_control's own render makes it."""
    env = dmc.DMCEnv(args.env)
    env.reset(seed=0)
    yield from contest(
        args,
        f"84 x 84, {args.env}",
        {"new camera": lambda: env.physics.render(84, 84, camera_id=0), "kept camera": env.render},
        steps=50,
    )


def bench_eval(args: argparse.Namespace) -> Iterator[Row]:
    """Ten skills, one episode each: one after the other, side by side in one process, and in two or more."""
    config = make_config({"env": args.env, "action_repeat": 8, "device": args.device})
    torch.manual_seed(0)
    agent = runs.make_agent(config, OBS_SHAPE, dmc.DMCEnv(args.env).action_space.shape[0])
    starts = [Start(skill, 0) for skill in agent.skills()]
    workers = max(2, min(len(starts), (os.cpu_count() or 2) - 1))
    lanes = {
        "one after the other": make_lanes(lambda: runs.make_environment(config), 1, 0),
        "side by side": make_lanes(lambda: runs.make_environment(config), len(starts), 0),
        f"{workers} processes": make_lanes(lambda: runs.make_environment(config), len(starts), workers),
    }
    variants = {name: partial(play, agent, envs, starts) for name, envs in lanes.items()}
    yield from contest(args, f"{len(starts)} episodes, {args.env}", variants, steps=1)
    for envs in lanes.values():
        envs.close()


def bench_loop(args: argparse.Namespace) -> Iterator[Row]:
    """A step of the whole loop on the real task, ours and the baseline's, and what logging takes of ours."""
    env, plain_env = dmc.DMCEnv(args.env, action_repeat=4), dmc.DMCEnv(args.env, action_repeat=4)
    action_dim = env.action_space.shape[0]
    args.action_dim = action_dim
    batch_size = args.batch_size[0]
    agent, oracle = make_agent(args), make_oracle(args)
    ours, plain = filled_buffers(args)
    meters = Meters()
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
    yield from bench_logging(args)


def bench_logging(args: argparse.Namespace) -> Iterator[Row]:
    """A short real run; the time that CSVs, TensorBoard and histograms took of it."""
    flags = {"env": args.env, "action_repeat": 8, "num_skills": 4, "num_train_steps": 375, "num_seed_steps": 125}
    flags |= {"batch_size": args.batch_size[0], "eval_frequency": 0, "log_frequency_step": 250, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        run = runs.setup(make_config({**flags, "work_dir": folder}))
        began = time.perf_counter()
        train.train(run)
        seconds = time.perf_counter() - began
        shares = train.time_shares(run)
        run.logger.close()
    remarks = ", ".join(f"{part} {share:.1%}" for part, share in sorted(shares.items(), key=lambda item: -item[1]))
    milliseconds = seconds / 375 * 1e3
    row = {"median_ms": milliseconds, "low_ms": milliseconds, "high_ms": milliseconds, "ratio": 1.0}
    yield {"case": "shares of a real run", "variant": "one run, 375 steps", **row, "remarks": remarks}


def bench_checkpoint(args: argparse.Namespace) -> Iterator[Row]:
    """Checkpoints of a full-sized run with 100,000 transitions: all of them, 5,000 new ones, none; and reading back."""
    flags = {"env": args.env, "num_skills": args.num_skills, "save_video": False, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        run = runs.setup(make_config({**flags, "work_dir": folder}))
        episodes = [list(random_episode(run.env)) for _ in range(8)]  # real pictures, played over and over
        run.env.reset(seed=0)
        fill(run, episodes, 100_000)
        for _ in range(2):  # so that the optimizers have something to save
            run.agent.update(run.buffer.sample(8))
        timings: dict[str, list[float]] = {"all": [timed(lambda: runs.save_checkpoint(run))]}
        pieces = {"all": list((run.folder / "checkpoint").glob("replay_*"))}
        for _ in range(args.blocks):
            for name, new in (("5,000 new", 5_000), ("no new", 0)):
                fill(run, episodes, new)
                timings.setdefault(name, []).append(timed(lambda: runs.save_checkpoint(run)))
                pieces[name] = sorted((run.folder / "checkpoint").glob("replay_*"), key=os.path.getmtime)[-1:]
        state = max(path.stat().st_size for path in run.folder.glob("checkpoint/state_*"))
        run.close()
        again: list[runs.Run] = []
        resumed = make_config({**flags, "work_dir": folder, "resume": str(run.folder)})
        timings["set-up and reading back"] = [timed(lambda: again.append(runs.setup(resumed)))]
        again[0].close()
        for name, values in timings.items():
            size = sum(path.stat().st_size for path in pieces.get(name, []) if path.exists())
            figures = {"low_ms": min(values), "high_ms": max(values), "median_ms": statistics.median(values)}
            remarks = f"state {state / 1e6:.0f} MB, replay {size / 1e6:.0f} MB"
            case = f"100,000 transitions, {args.env}"
            yield {
                "case": case,
                "variant": name,
                **figures,
                "ratio": timings["all"][0] / figures["median_ms"],
                "remarks": remarks,
            }


def random_episode(env: dmc.PixelEnv) -> Iterator[tuple[Any, ...]]:
    """(None, first observation), then (action, reward, observation, terminated) for each step."""
    obs, _ = env.reset()
    yield None, obs
    over = False
    while not over:
        action = env.action_space.sample()
        obs, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        yield action, reward, obs, terminated


def fill(run: runs.Run, episodes: Sequence[Sequence[tuple[Any, ...]]], transitions: int) -> None:
    """Give the run's replay buffer so many transitions, of whole episodes."""
    while transitions > 0:
        for (_, first), *steps in episodes:
            run.buffer.start_episode(first)
            for action, reward, obs, terminated in steps:
                run.buffer.add(action, reward, obs, terminated, 0)
            transitions -= len(steps)
            if transitions <= 0:
                return


def timed(work: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "update": bench_update,
    "loop": bench_loop,
    "replay": bench_replay,
    "eval": bench_eval,
    "render": bench_render,
    "checkpoint": bench_checkpoint,
}

if __name__ == "__main__":
    sys.exit(main())
