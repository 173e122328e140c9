"""The table of flags.

A flag is declared once, as a field of `Config`: type, default, limits, meaning, and its `Role`s, from which other
modules derive their lists. Standard library only, so that --help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
import os
import re
import typing
from collections.abc import Sequence
from typing import Any

from errors import UserError
from running.presets import COMBINATIONS, PRESETS

MAX_SEED = 2**64 - 1  # the largest seed that torch accepts
MAX_INTEGER = 2**63 - 1  # of every other integer flag


class Role(enum.Flag):
    """What a flag is for. `flags_with(role)` lists the flags that have a role."""

    NONE = 0
    ENVIRONMENT = enum.auto()  # keyword argument of the environment
    AGENT = enum.auto()  # keyword argument of DrQAgent
    DIAYN = enum.auto()  # keyword argument of DIAYNAgent; `make_agent` also gives DrQAgent those of the skill's input
    WITH_SKILLS = enum.auto()  # read beside the agent; without skills it has no effect
    NETWORK = enum.auto()  # shape of observations or networks: a fine-tuned run must have its source's value
    INHERITED = enum.auto()  # a fine-tuned run has its source's value unless the flag is given
    FINE_TUNING = enum.auto()  # how a run is fine-tuned
    RESUMABLE = enum.auto()  # a resumed run may change it
    SAME_EXPERIMENT = enum.auto()  # runs that differ in it are still runs of one experiment
    OF_ONE_RUN = enum.auto()  # belongs to one run: --config does not take it from the other run
    PLACED_BY_SWEEP = enum.auto()  # sweep.py sets it for each of its runs
    FOLLOWS_SKILLS = enum.auto()  # its default depends on whether there are skills


def flags_of(group: str) -> Any:
    """Return a function that declares a flag, to be listed by --help under the heading `group`."""

    def flag(
        default: Any,
        help: str,
        role: Role = Role.NONE,
        *,
        low: float | None = None,  # the smallest value
        above: float | None = None,  # a value that all others exceed
        high: float | None = None,  # the largest value
        choices: Sequence[str] = (),
        alias: str | None = None,
        derived: str | None = None,  # if the default is None: what is derived in its place, in words
        metavar: str = "NAME",  # how --help shows the value of a text
    ) -> Any:
        limits = {"low": low, "above": above, "high": high}
        facts = {"group": group, "help": help, "role": role, "choices": choices, "alias": alias, "derived": derived}
        return dataclasses.field(default=default, metadata={**facts, **limits, "metavar": metavar})

    return flag


task, budget, diayn, tuning, drq, outputs = map(flags_of, ("task", "budget", "DIAYN", "fine-tuning", "DrQ", "outputs"))


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. Build it with `make_config`, which derives defaults and checks values."""

    env: str = task(
        "cartpole_swingup",
        "dm_control.suite task, as domain_task (python dmc.py --tasks), or gym:ID for a Gymnasium environment",
        Role.INHERITED,
        alias="task",
    )
    action_repeat: int = task(
        4, "frames (control steps) for which an action is held", Role.ENVIRONMENT | Role.INHERITED, low=1
    )
    time_limit: int = task(
        None, "frames per episode", Role.ENVIRONMENT | Role.INHERITED, low=1, derived="the task's own"
    )
    image_size: int = task(
        84, "height and width of an observation, pixels", Role.ENVIRONMENT | Role.NETWORK, low=16, high=4096
    )
    frame_stack: int = task(
        3,
        "pictures in an observation, one per agent step",
        Role.ENVIRONMENT | Role.NETWORK,
        low=1,
        alias="framestack",
    )
    floor: str = task(
        "suite",
        "floor of the suite's walking bodies: the suite's, or one whose color shows where the body is",
        Role.INHERITED,
        choices=("suite", "coloured"),
    )
    preset: str = task(
        None,
        "settings for a purpose: a benchmark's batch size and action repeat for the task, those that experiments "
        "recommend for skills, or both; flags given beside it win",
        Role.SAME_EXPERIMENT,
        choices=(*PRESETS, *COMBINATIONS),
        alias="benchmark",
        derived="none",
    )

    num_train_steps: int = budget(1_000_000, "training budget, agent steps", Role.RESUMABLE, low=1)
    num_train_frames: int = budget(
        None,
        "training budget, frames; instead of --num_train_steps",
        Role.RESUMABLE,
        low=1,
        derived="num_train_steps x action_repeat",
    )
    num_seed_steps: int = budget(1000, "agent steps with random actions before the first update", low=0)
    agent_steps_per_update: int = budget(
        1, "agent steps between updates, of which --num_train_iters are made each time", low=1
    )
    num_train_iters: int = budget(1, "updates per agent step that makes updates", low=1)
    replay_buffer_capacity: int = budget(100_000, "transitions held (one per agent step)", low=1)
    seed: int = budget(
        1, "random seed of weights, task, skills, batches and noise", Role.SAME_EXPERIMENT, low=0, high=MAX_SEED
    )
    device: str = budget(
        None,
        "cuda, cuda:N or cpu",
        Role.AGENT | Role.RESUMABLE | Role.OF_ONE_RUN,
        derived="cuda, or cpu when there is no CUDA device",
    )
    deterministic: bool = budget(
        False, "on CUDA: the same numbers in every run, more slowly; the CPU's always are the same", Role.RESUMABLE
    )

    num_skills: int = diayn(
        10, "number of skills; 0 is plain DrQ", Role.DIAYN | Role.NETWORK | Role.FOLLOWS_SKILLS, low=0
    )
    skill_embedding_dim: int = diayn(
        10, "width of the learned skill embedding; 0 feeds the one-hot", Role.DIAYN | Role.NETWORK, low=0
    )
    skill_embedding_init: str = diayn(
        "normal",
        "initial skill embedding: standard normal, or orthogonal rows of the same expected square norm",
        Role.DIAYN,
        choices=("normal", "orthogonal"),
    )
    skill_sampling: str = diayn(
        "uniform",
        "skill of a training episode: drawn anew each time, or all skills in random order before any is repeated",
        Role.DIAYN,
        choices=("uniform", "stratified"),
    )
    lr_discriminator: float = diayn(
        None, "learning rate of the discriminator", Role.DIAYN, above=0, derived="the value of --lr"
    )
    discriminator_encoder: str = diayn(
        "separate",
        "convolutions that the discriminator reads: the critic's (detached) or its own",
        Role.DIAYN,
        choices=("shared", "separate"),
    )
    disdain_coeff: float = diayn(
        0.0,
        "weight of the ensemble's disagreement, a bonus for unknown states (DISDAIN, not part of DIAYN); above 0 also "
        "clips negative intrinsic rewards to 0",
        Role.DIAYN,
        low=0,
    )
    discriminator_ensemble: int = diayn(
        1,
        "number of discriminators, which differ in their initial weights and whose probabilities are averaged",
        Role.DIAYN,
        low=1,
        high=1000,
    )
    discriminator_window: int = diayn(
        None,
        "newest transitions that the discriminator learns from, in a batch of its own",
        Role.WITH_SKILLS,
        low=1,
        derived="it learns from the batch of the critic",
    )
    intrinsic_reward_from: str = diayn(
        "after",
        "compute the intrinsic reward after the discriminator's update on the batch, or before (saves a forward pass)",
        Role.DIAYN,
        choices=("before", "after"),
    )
    diayn_intrinsic_reward_coeff: float = diayn(
        None,
        "weight of the intrinsic reward",
        Role.DIAYN | Role.FOLLOWS_SKILLS,
        low=0,
        derived="1.0 with skills, 0.0 without",
    )
    extrinsic_reward_coeff: float = diayn(
        None,
        "weight of the task's reward",
        Role.AGENT | Role.FOLLOWS_SKILLS,
        low=0,
        derived="0.0 with skills, 1.0 without",
    )

    finetune_from: str = tuning(
        None,
        "a run with skills whose networks this run starts from",
        Role.FINE_TUNING | Role.SAME_EXPERIMENT | Role.OF_ONE_RUN,
        derived="none",
        metavar="RUN",
    )
    finetune_skill: str = tuning(
        "best",
        "the skill to train further: a number, or the best by return on this task",
        Role.FINE_TUNING | Role.OF_ONE_RUN,
        metavar="best|N",
    )
    finetune_snapshot: int = tuning(
        None,
        "frame of the run's snapshot to start from",
        Role.FINE_TUNING | Role.OF_ONE_RUN,
        low=0,
        derived="its last checkpoint",
    )
    finetune_critic: str = tuning(
        "pretrained",
        "Q functions to start from: the source run's, trained on its intrinsic reward, or new ones",
        Role.FINE_TUNING | Role.OF_ONE_RUN,
        choices=("pretrained", "scratch"),
    )

    batch_size: int = drq(128, "transitions per update (the DrQ paper: 512)", low=1)
    discount: float = drq(0.99, "discount factor per agent step", Role.AGENT, low=0, high=1)
    lr: float = drq(1e-3, "learning rate of actor, critic and temperature", Role.AGENT, above=0)
    cuda_graphs: bool = drq(
        True, "on CUDA: launch an update as one recorded graph; false launches each kernel", Role.RESUMABLE
    )
    precision: str = drq(
        "fp32",
        "arithmetic of convolutions and the layer behind them; else fp32. On CUDA, fp32 products are computed in TF32",
        Role.AGENT,
        choices=("fp32", "bf16"),
    )
    augmentation: str = drq(
        "shift",
        "image augmentation (paper, appendix E)",
        Role.AGENT,
        choices=("shift", "cutout", "hflip", "vflip", "rotation", "intensity", "none"),
    )
    image_pad: int = drq(
        None,
        "largest random shift in each direction, pixels",
        Role.AGENT,
        low=0,
        high=4096,
        derived="round(4 image_size / 84): 4 at 84 pixels",
    )
    temperature: str = drq(
        None,
        "entropy temperature alpha: learned, starting from --init_temperature (DrQ), or fixed at it (DIAYN)",
        Role.FOLLOWS_SKILLS,
        choices=("auto", "fixed", "learned"),
        derived="auto: fixed with skills, learned without",
    )
    init_temperature: float = drq(0.1, "initial, or fixed, temperature", Role.AGENT, above=0)
    actor_update_frequency: int = drq(2, "critic updates per update of the actor", Role.AGENT, low=1)
    critic_tau: float = drq(0.01, "weight of the critic in the target's moving average", Role.AGENT, above=0, high=1)
    critic_target_update_frequency: int = drq(2, "critic updates per update of its target", Role.AGENT, low=1)
    encoder_feature_dim: int = drq(50, "features behind the convolutions", Role.AGENT | Role.NETWORK, low=1)
    hidden_dim: int = drq(1024, "units in a hidden layer", Role.AGENT | Role.NETWORK, low=1)
    hidden_depth: int = drq(2, "hidden layers", Role.AGENT | Role.NETWORK, low=1, high=1000)
    log_std_bounds: tuple[float, float] = drq(
        (-10.0, 2.0),
        "range of the policy's log standard deviation",
        Role.AGENT | Role.NETWORK,
        low=-80,
        high=80,  # exp(88.8) is infinite in float32
    )

    eval_frequency: int = outputs(
        5000,
        "agent steps between evaluations, each at the next end of an episode; also one when the run ends. 0: never",
        Role.RESUMABLE,
        low=0,
    )
    num_eval_episodes: int = outputs(
        None,
        "episodes per evaluation, for each skill",
        Role.RESUMABLE,
        low=1,
        derived="10 without skills, 1 with",
    )
    eval_workers: int = outputs(
        0, "processes that play evaluation episodes side by side; 0: in the training process", Role.RESUMABLE, low=0
    )
    log_frequency_step: int = outputs(10_000, "agent steps between histograms in TensorBoard", Role.RESUMABLE, low=1)
    log_save_tb: bool = outputs(True, "write TensorBoard logs", Role.RESUMABLE)
    track: str = outputs(
        None,
        "record the run with this tracker too (pip install -r requirements-track.txt)",
        Role.RESUMABLE,
        choices=("none", "wandb", "trackio"),
        derived="none",
    )
    save_video: bool = outputs(True, "write a video of each skill at each evaluation", Role.RESUMABLE)
    checkpoint_frequency: int = outputs(
        None,
        "agent steps between checkpoints; 0: only when the run stops",
        Role.RESUMABLE,
        low=0,
        derived="at every evaluation",
    )
    snapshot_frequency: int = outputs(
        0,
        "agent steps between snapshots (the networks of that moment, kept), each at the next end of an episode; also "
        "one when the run ends. 0: never",
        Role.RESUMABLE,
        low=0,
    )
    save_replay_buffer: bool = outputs(
        True, "keep the replay buffer in the checkpoints, for an exact resume", Role.RESUMABLE
    )
    work_dir: str = outputs(
        "runs", "folder in which run folders are made", Role.SAME_EXPERIMENT | Role.PLACED_BY_SWEEP, metavar="FOLDER"
    )
    run_name: str = outputs(
        None,
        "name of the run's folder; if it is taken, -run2 and so on is appended",
        Role.SAME_EXPERIMENT | Role.OF_ONE_RUN | Role.PLACED_BY_SWEEP,
        derived="<date>_<time>_seed<seed>",
    )
    notes: str = outputs("", "free text, kept in config.json", Role.RESUMABLE | Role.OF_ONE_RUN, metavar="TEXT")
    resume: str = outputs(
        None,
        "resume the run in this folder, with its own flags",
        Role.RESUMABLE | Role.OF_ONE_RUN | Role.PLACED_BY_SWEEP,
        derived="a new run",
        metavar="RUN",
    )

    @property
    def learns_skills(self) -> bool:
        """Whether there is a discriminator: with skills, unless one of them is fine-tuned."""
        return self.num_skills > 0 and self.finetune_from is None

    def kwargs(self, role: Role) -> dict[str, Any]:
        """Return the flags with this role as keyword arguments."""
        return {name: getattr(self, name) for name in flags_with(role)}


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)


def flags_with(role: Role) -> tuple[str, ...]:
    """Return the names of the flags that have the role, in the order of the table."""
    return tuple(name for name, field in FIELDS.items() if field.metadata["role"] & role)


def shown_value(value: Any) -> str:
    """Return a flag's value as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_device(name: str | None) -> None:
    """Raise UserError if no device can have this name."""
    if name is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device must be cuda, cuda:N or cpu; got {name}")


def check_value(name: str, value: Any) -> None:
    """Raise UserError if a value is out of its flag's range, or a text that no file name can hold."""
    if value is None:
        return
    metadata = FIELDS[name].metadata
    if isinstance(value, str):
        if not value and FIELDS[name].default != "":  # an empty path would be the working folder
            raise UserError(f"--{name}: the value is empty")
        what = f"--{name} has a character that no name can have"
        try:
            valid = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError as error:
            valid = False
            if error.encoding != "utf-8":
                what += f" in this locale ({error.encoding}): set PYTHONUTF8=1"
        if not valid:
            raise UserError(f"{what}; got {value!r}")
    bounds = (("low", "at least", operator.ge), ("above", "above", operator.gt), ("high", "at most", operator.le))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"--{name} must be a finite number; got {number}")
        for key, words, holds in bounds:
            bound = metadata[key]
            if key == "high" and bound is None and isinstance(number, int):
                bound = MAX_INTEGER
            if bound is not None and not holds(number, bound):
                raise UserError(f"--{name} must be {words} {bound}; got {number}")
    if isinstance(value, tuple) and value[0] >= value[1]:
        raise UserError(f"--{name}: the first must be smaller than the second; got {value[0]} {value[1]}")
    if metadata["choices"] and value not in metadata["choices"]:
        raise UserError(f"--{name} must be one of {', '.join(metadata['choices'])}; got {value}")
