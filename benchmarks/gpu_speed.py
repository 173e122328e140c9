"""What a CUDA machine is and how fast it is: versions, memory, timings beside the baseline, overlap."""

from __future__ import annotations

import gc
import shutil
import subprocess

import torch

from benchmarks.contest import machine as describe
from benchmarks.contest import milliseconds
from benchmarks.gpu_setup import ACTION_DIM, NUM_SKILLS, SKILLS, Measured, Setup, require
from benchmarks.parts import bench_loop, bench_replay, bench_update, filled_buffers, make_ours
from dmc import DMCEnv
from envs.renderer import choose_renderer
from running.build import cuda_headroom
from running.derivation import make_config
from tests.support.oracle import random_batch

LEAST_HIDDEN = 0.3  # share of the shorter of an environment step and an update that must overlap with the other
QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader")


def machine(setup: Setup) -> Measured:
    """The device computes in bf16, and EGL draws on it, not in software."""
    renderer = choose_renderer()
    found = {**describe(setup.device, renderer), "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
    if shutil.which(QUERY[0]):
        found["nvidia-smi"] = subprocess.run(QUERY, capture_output=True, text=True).stdout.strip()
    require(not (setup.judged and renderer.is_software), f"the pictures are drawn in software: {renderer.name}")
    if setup.judged:
        require(torch.cuda.is_bf16_supported(), "the device does not compute in bf16")
    return found


def memory(setup: Setup) -> Measured:
    """Updates, actions and evaluations fit into the memory that is left free beside the replay buffer."""
    found, excess = {}, []
    for size in setup.memory_sizes:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        agent = setup.agent(**SKILLS)
        agent.use_cuda_graphs()
        batch = random_batch(size, setup.obs_shape, ACTION_DIM, NUM_SKILLS, 0, setup.device)
        obs, skill = batch.obs.cpu().numpy(), batch.skill.cpu().numpy()
        for _ in range(4):
            agent.update(batch)
            agent.act(obs[0], 0, sample=True)
            agent.assess(obs[:NUM_SKILLS], skill[:NUM_SKILLS])
        free, total = torch.cuda.mem_get_info()
        libraries = total - free - torch.cuda.memory_reserved()  # and other programs on the device
        used = libraries + torch.cuda.max_memory_reserved()
        headroom = cuda_headroom(make_config({"batch_size": size, "device": setup.device, **setup.networks}))
        found[f"batch {size}"] = {"used_gb": used / 1e9, "libraries_gb": libraries / 1e9, "headroom_gb": headroom / 1e9}
        if used > headroom:
            excess.append(f"batch {size} uses {used / 1e9:.2f} GB, and {headroom / 1e9:.2f} GB are left free for it")
        del agent, batch
    require(not excess, "; ".join(excess))
    return found


def speed(setup: Setup) -> Measured:
    """Update, loop and replay buffer, beside the baseline; an update must not be slower than the baseline's."""
    args = setup.bench_args(renderer=choose_renderer())
    rows = [
        *({"benchmark": "update", **row} for row in bench_update(args)),
        *({"benchmark": "replay", **row} for row in bench_replay(args)),
        *({"benchmark": "loop", **row} for row in bench_loop(args, run_steps=375 if setup.judged else 24)),
    ]
    slow = [row for row in rows if str(row["variant"]).startswith("our") and row["ratio"] < 1]
    named = [f"{row['variant']} ({row['case']}): {row['ratio']:.2f}x" for row in slow]
    require(not (setup.judged and named), f"slower than the baseline: {', '.join(named)}")
    return {"rows": rows}


def overlap(setup: Setup) -> Measured:
    """An environment step and an update run at the same time, as in the training loop; their milliseconds."""
    choose_renderer()
    args = setup.bench_args()
    env = DMCEnv(args.env, action_repeat=4)
    agent, (buffer, _) = make_ours(args, env.action_space.shape[0]), filled_buffers(args, env.action_space.shape[0])
    action = env.action_space.sample()
    env.reset(seed=0)

    def step() -> None:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    def update() -> None:
        agent.update(buffer.sample(args.batch_size[0]))

    def both() -> None:
        update()
        step()
        if setup.device != "cpu":
            torch.cuda.synchronize()  # as choosing the next action does

    for work in (step, update, both):
        milliseconds(work, setup.device, 4)  # warm-up
    alone = {"step_ms": milliseconds(step, setup.device, 10 * args.steps)}
    alone["update_ms"] = milliseconds(update, setup.device, 10 * args.steps)
    together = milliseconds(both, setup.device, 10 * args.steps)
    hidden = (sum(alone.values()) - together) / min(alone.values())
    env.close()
    found = {**alone, "both_ms": together, "hidden_share_of_the_shorter": hidden}
    require(hidden > LEAST_HIDDEN or not setup.judged, f"the environment and the update hardly overlap: {found}")
    return found
