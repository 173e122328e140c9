"""What the checks of gpu_check.py share: their sizes, agents, and the comparison of results."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drq import DrQAgent
from running.build import make_agent
from running.derivation import make_config

Measured = dict[str, Any]  # what a check returns: figures for the report

ACTION_DIM, NUM_SKILLS = 6, 10
SKILLS = {"num_skills": NUM_SKILLS}
AGENTS: dict[str, dict[str, Any]] = {
    "DrQ": {"num_skills": 0},
    "DIAYN, shared convolutions": {**SKILLS, "discriminator_encoder": "shared"},
    "DIAYN, separate convolutions": {**SKILLS, "discriminator_encoder": "separate"},
    "DIAYN, one-hot skills": {**SKILLS, "skill_embedding_dim": 0, "intrinsic_reward_from": "before"},
    "DIAYN, all options": {
        **SKILLS,
        "discriminator_ensemble": 3,
        "disdain_coeff": 1.0,
        "discriminator_window": 1000,
        "temperature": "learned",
    },
}

assert_equal = partial(torch.testing.assert_close, rtol=0.0, atol=0.0)  # to the bit


@dataclasses.dataclass(frozen=True)
class Setup:
    """The device and the sizes of the checks.

    Args:
        judged: whether times, memory, returns and the renderer decide; in a rehearsal they are only measured.
        image_size, networks: of the agents that the checks build. The benchmarks have sizes of their own.
        batch_size, odd_size: transitions of an update; another, unusual number of them.
        ring_capacity, ring_image: transitions and frame size of the large replay buffer.
        ring_elements: what its frames must exceed.
        bench_sizes, blocks, steps: batch sizes of the timings, blocks per variant, steps per block.
        memory_sizes: batch sizes whose memory is measured.
        run: flags of the short runs of train.py.
        stop_after: episodes after which one of them is stopped.
        learning: flags of the run that learns.
        ends: when the check must be over, time.time().
        scratch: folder for files that checks share.
    """

    device: str
    judged: bool
    image_size: int
    networks: Mapping[str, int]
    batch_size: int
    odd_size: int
    ring_capacity: int
    ring_image: int
    ring_elements: int
    bench_sizes: tuple[int, ...]
    blocks: int
    steps: int
    memory_sizes: tuple[int, ...]
    run: str
    stop_after: int
    learning: str
    ends: float = 0.0
    scratch: Path = Path()

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        return 9, self.image_size, self.image_size

    def agent(self, **flags: Any) -> DrQAgent:
        """Return an agent without CUDA graphs. Its weights depend only on the sizes."""
        torch.manual_seed(0)
        config = make_config({"device": self.device, "cuda_graphs": False, **self.networks, **flags})
        return make_agent(config, self.obs_shape, ACTION_DIM)

    def bench_args(self, **changes: Any) -> argparse.Namespace:
        """Return what benchmark.py passes to the benchmarks."""
        values: dict[str, Any] = {"device": self.device, "num_skills": 0, "env": "cartpole_swingup"}
        values |= {"batch_size": list(self.bench_sizes), "blocks": self.blocks, "steps": self.steps}
        return argparse.Namespace(**{**values, **changes})


# The defaults of a run, on CUDA. Episodes of 125 agent steps: the short runs have six, and a ring that wraps.
FULL = Setup(
    device="cuda",
    judged=True,
    image_size=84,
    networks={},
    batch_size=128,
    odd_size=77,
    ring_capacity=100_000,
    ring_image=84,
    ring_elements=2**31,
    bench_sizes=(128, 512),
    blocks=3,
    steps=20,
    memory_sizes=(128, 512),
    run=(
        "--env cartpole_swingup --action_repeat 8 --num_train_steps 750 --num_seed_steps 150 --num_skills 2 "
        "--replay_buffer_capacity 400 --eval_frequency 250 --checkpoint_frequency 125 --num_eval_episodes 1 "
        "--log_frequency_step 100 --save_video false --deterministic"
    ),
    stop_after=3,
    learning=(
        "--env cartpole_swingup --action_repeat 8 --num_train_steps 10000 --num_skills 0 --precision bf16 "
        "--eval_frequency 1250 --num_eval_episodes 3 --save_video false --seed 1"
    ),
)
# Small sizes on the CPU. Episodes of 8 agent steps.
TINY = (
    "--env cartpole_swingup --image_size 24 --time_limit 16 --action_repeat 2 --num_seed_steps 20 --batch_size 4 "
    "--hidden_dim 8 --encoder_feature_dim 4 --num_eval_episodes 1 --save_video false"
)
REHEARSAL = Setup(
    device="cpu",
    judged=False,
    image_size=24,
    networks={"hidden_dim": 16, "encoder_feature_dim": 8},
    batch_size=4,
    odd_size=3,
    ring_capacity=1500,
    ring_image=16,
    ring_elements=0,
    bench_sizes=(2,),
    blocks=1,
    steps=1,
    memory_sizes=(4,),
    run=(
        f"{TINY} --num_train_steps 200 --num_skills 2 --replay_buffer_capacity 60 --eval_frequency 80 "
        "--checkpoint_frequency 50 --log_frequency_step 50 --deterministic"
    ),
    stop_after=5,
    learning=f"{TINY} --num_train_steps 40 --num_skills 0 --precision bf16 --eval_frequency 16",
)


def require(condition: object, reason: str) -> None:
    """Raise AssertionError with the reason if the condition is false."""
    if not condition:
        raise AssertionError(reason)


@contextmanager
def named(case: str) -> Iterator[None]:
    """Within the block, put the case in front of the message of an error."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        raise AssertionError(f"{case}: {kind}{error}") from error
