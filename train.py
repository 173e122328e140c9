"""Train DrQ, with DIAYN skills or without, on a DeepMind Control Suite task seen as pixels.

`python train.py --help` lists every flag; README.md explains the outputs. Heavy modules are imported inside the
functions that need them, so that --help and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import itertools
import json
import math
import operator
import os
import re
import shutil
import subprocess
import sys
import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from dmc import DMCEnv, RendererInfo
    from drq import DrQAgent
    from logger import Logger
    from replay_buffer import ReplayBuffer
    from rollouts import Lanes
    from utils import Stopwatch

PLANET_ACTION_REPEATS = {"cartpole": 8, "reacher": 4, "cheetah": 4, "finger": 2, "ball_in_cup": 4, "walker": 2}
DREAMER_ACTION_REPEAT = 2
BENCHMARK_BATCH_SIZE = 512
MAX_SEED = 2**64 - 1  # torch takes no larger one
CUDA_HEADROOM = 6 << 30  # bytes of device memory left to networks and activations, at a batch of 512
AGENT_FLAGS = (  # passed on as they are, under the same names
    *("device", "seed", "augmentation", "image_pad", "lr", "discount", "extrinsic_reward_coeff", "init_temperature"),
    *("actor_update_frequency", "critic_tau", "critic_target_update_frequency", "encoder_feature_dim"),
    *("hidden_dim", "hidden_depth", "log_std_bounds", "precision"),
)
DIAYN_FLAGS = (
    *("num_skills", "skill_embedding_dim", "lr_discriminator", "discriminator_encoder"),
    "diayn_intrinsic_reward_coeff",
)
RECORDED_PACKAGES = ("torch", "numpy", "kornia", "dm_control", "mujoco", "gymnasium", "opencv-python", "tensorboard")


class UserError(Exception):
    """Something the user can mend. The message is one line that names the flag or the thing, and the remedy."""


# -- the configuration: the one home of every flag and its default ---------------------------------------------------


def flag(
    group: str,
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    alias: str | None = None,
    derived: str | None = None,
) -> Any:
    """A Config field. Where the default is None, `derived` says in words how `make_config` or `setup` finds it."""
    limits = {"low": low, "above": above, "high": high}
    metadata = {"group": group, "help": help, "choices": choices, "alias": alias, "derived": derived, **limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run can be told. Build it with `make_config`, which derives and checks."""

    env: str = flag("task", "cartpole_swingup", "task of dm_control.suite, as domain_task", alias="task")
    action_repeat: int = flag("task", 4, "frames (control steps) for which an action is held", low=1)
    time_limit: int = flag("task", None, "frames per episode", low=1, derived="the task's own")
    image_size: int = flag("task", 84, "height and width of an observation, pixels", low=16)
    frame_stack: int = flag("task", 3, "frames in an observation", low=1, alias="framestack")
    benchmark: str = flag(
        "task",
        None,
        "a paper's settings for the chosen task (batch size 512 and its action repeat); flags beside it win",
        choices=("planet", "dreamer"),
        derived="none",
    )

    num_train_steps: int = flag("budget", 1_000_000, "training budget, agent steps", low=1)
    num_train_frames: int = flag(
        "budget",
        None,
        "training budget, frames; instead of --num_train_steps",
        low=1,
        derived="num_train_steps x action_repeat",
    )
    num_seed_steps: int = flag("budget", 1000, "agent steps with random actions before the first update", low=0)
    num_train_iters: int = flag("budget", 1, "updates per agent step", low=1)
    replay_buffer_capacity: int = flag("budget", 100_000, "transitions held (one per agent step)", low=1)
    seed: int = flag(
        "budget", 1, "random seed of everything: weights, task, skills, batches, noise", low=0, high=MAX_SEED
    )
    device: str = flag("budget", None, "cuda, cuda:N or cpu", derived="cuda, or cpu where there is no CUDA device")

    num_skills: int = flag("DIAYN", 10, "number of skills; 0 is plain DrQ", low=0)
    skill_embedding_dim: int = flag("DIAYN", 10, "width of the learned skill embedding; 0 feeds the one-hot", low=0)
    lr_discriminator: float = flag("DIAYN", None, "learning rate of the discriminator", above=0, derived="lr")
    discriminator_encoder: str = flag(
        "DIAYN",
        "shared",
        "convolutions the discriminator reads: the critic's (detached) or its own",
        choices=("shared", "separate"),
    )
    diayn_intrinsic_reward_coeff: float = flag(
        "DIAYN", None, "weight of the intrinsic reward", low=0, derived="1.0 with skills, 0.0 without"
    )
    extrinsic_reward_coeff: float = flag(
        "DIAYN", None, "weight of the task's reward", low=0, derived="0.0 with skills, 1.0 without"
    )

    batch_size: int = flag("DrQ", 128, "transitions per update (the DrQ paper: 512)", low=1)
    discount: float = flag("DrQ", 0.99, "discount factor per agent step", low=0, high=1)
    lr: float = flag("DrQ", 1e-3, "learning rate of actor, critic and temperature", above=0)
    cuda_graphs: bool = flag("DrQ", True, "on CUDA: launch an update as one recorded graph; false runs it step by step")
    precision: str = flag("DrQ", "fp32", "arithmetic of the convolutions; all else is fp32", choices=("fp32", "bf16"))
    augmentation: str = flag(
        "DrQ",
        "shift",
        "image augmentation (paper, appendix E)",
        choices=("shift", "cutout", "hflip", "vflip", "rotation", "intensity", "none"),
    )
    image_pad: int = flag("DrQ", 4, "random shift: at most so many pixels in each direction", low=0)
    temperature: str = flag(
        "DrQ",
        None,
        "entropy temperature alpha: learned (DrQ), fixed at --init_temperature (DIAYN), or by the agent",
        choices=("auto", "fixed", "learned"),
        derived="auto: fixed with skills, learned without",
    )
    init_temperature: float = flag("DrQ", 0.1, "first, or fixed, temperature", above=0)
    actor_update_frequency: int = flag("DrQ", 2, "updates of the critic per update of the actor", low=1)
    critic_tau: float = flag("DrQ", 0.01, "weight of the critic in the target's moving average", above=0, high=1)
    critic_target_update_frequency: int = flag("DrQ", 2, "updates of the critic per update of its target", low=1)
    encoder_feature_dim: int = flag("DrQ", 50, "features behind the convolutions", low=1)
    hidden_dim: int = flag("DrQ", 1024, "units in a hidden layer", low=1)
    hidden_depth: int = flag("DrQ", 2, "hidden layers", low=1)
    log_std_bounds: tuple[float, float] = flag("DrQ", (-10.0, 2.0), "range of the policy's log standard deviation")

    eval_frequency: int = flag("outputs", 5000, "agent steps between evaluations; 0 never evaluates", low=0)
    num_eval_episodes: int = flag(
        "outputs", None, "episodes per evaluation, for each skill", low=1, derived="10 without skills, 1 with"
    )
    eval_workers: int = flag(
        "outputs", 0, "processes that play evaluation episodes side by side; 0 plays them in the training one", low=0
    )
    log_frequency_step: int = flag("outputs", 10_000, "agent steps between histograms in TensorBoard", low=1)
    log_save_tb: bool = flag("outputs", True, "write TensorBoard logs")
    save_video: bool = flag("outputs", True, "write a video of each skill at each evaluation")
    work_dir: str = flag("outputs", "runs", "folder in which run folders are made")


CONFIG_TYPES = typing.get_type_hints(Config)


def make_config(given: Mapping[str, Any]) -> Config:
    """A Config from the flags that were given: benchmark presets, derived defaults, checks.

    Raises UserError, naming the flag, for what is out of range or contradicts itself.
    """
    values: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}
    values |= _benchmark_settings(given)
    values |= given
    values["env"] = values["env"].removeprefix("dmc_")
    for field in dataclasses.fields(Config):
        _check(field, values[field.name])

    with_skills = values["num_skills"] > 0
    if values["temperature"] in (None, "auto"):
        values["temperature"] = "fixed" if with_skills else "learned"
    for name, default in (
        ("lr_discriminator", values["lr"]),
        ("num_eval_episodes", 1 if with_skills else 10),
        ("diayn_intrinsic_reward_coeff", 1.0 if with_skills else 0.0),
        ("extrinsic_reward_coeff", 0.0 if with_skills else 1.0),
    ):
        values[name] = default if values[name] is None else values[name]

    repeat = values["action_repeat"]
    if "num_train_frames" in given:
        if "num_train_steps" in given:
            raise UserError("--num_train_frames and --num_train_steps exclude each other; give one of them")
        values["num_train_steps"] = values["num_train_frames"] // repeat
        if not values["num_train_steps"]:
            raise UserError(f"--num_train_frames must be at least --action_repeat, which is {repeat}")
    values["num_train_frames"] = values["num_train_steps"] * repeat
    low, high = values["log_std_bounds"]
    if low >= high:
        raise UserError(f"--log_std_bounds: the first must be smaller than the second; got {low} {high}")
    if not values["extrinsic_reward_coeff"] and not (with_skills and values["diayn_intrinsic_reward_coeff"]):
        raise UserError(
            "--extrinsic_reward_coeff 0 leaves no reward; give it above 0, or --num_skills and "
            "--diayn_intrinsic_reward_coeff"
        )
    return Config(**values)


def _benchmark_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    benchmark = given.get("benchmark")
    if benchmark is None:
        return {}
    if benchmark == "dreamer":
        return {"batch_size": BENCHMARK_BATCH_SIZE, "action_repeat": DREAMER_ACTION_REPEAT}
    task = str(given.get("env", "cartpole_swingup")).removeprefix("dmc_")
    for domain, repeat in PLANET_ACTION_REPEATS.items():
        if task.startswith(f"{domain}_"):
            return {"batch_size": BENCHMARK_BATCH_SIZE, "action_repeat": repeat}
    if "action_repeat" in given:
        return {"batch_size": BENCHMARK_BATCH_SIZE}
    raise UserError(
        f"--benchmark planet has no action repeat for --env {task} (only for {', '.join(PLANET_ACTION_REPEATS)}); "
        "give --action_repeat beside it"
    )


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise UserError where a value is out of its flag's range."""
    if value is None:
        return
    bounds = (("low", "at least", operator.ge), ("above", "above", operator.gt), ("high", "at most", operator.le))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"--{field.name} must be a finite number; got {number}")
        for key, words, holds in bounds:
            bound = field.metadata[key]
            if bound is not None and not holds(number, bound):
                raise UserError(f"--{field.name} must be {words} {bound}; got {number}")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"--{field.name} must be one of {', '.join(choices)}; got {value}")


# -- the command line ------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and to which -1e1 is a number."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> typing.NoReturn:
        unknown = re.match(r"unrecognized arguments: --?([\w-]+)", message)
        if unknown:
            nearest = difflib.get_close_matches(unknown.group(1), CONFIG_TYPES, n=1)
            message += f"; did you mean --{nearest[0]}?" if nearest else "; see --help"
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The command line as a Config. Bad input ends the program with one line and exit code 2."""
    parser = _Parser(
        prog="train.py",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # so that the namespace holds what was given, and nothing else
        epilog="An agent step is one action; a frame is one control step of the task: frames = agent steps x action "
        "repeat. Every step column, axis and file name of the outputs counts frames.",
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        meta = field.metadata
        group = groups.setdefault(meta["group"], None) or parser.add_argument_group(meta["group"])
        groups[meta["group"]] = group
        names = [f"--{name}" for name in (field.name, meta["alias"]) if name]
        shown = meta["derived"] or _shown(field.default)
        options: dict[str, Any] = {"dest": field.name, "help": f"{meta['help']} (default: {shown})"}
        group.add_argument(*names, **options, **_argument_type(CONFIG_TYPES[field.name], meta["choices"]))
    given = vars(parser.parse_args(argv))
    if "log_std_bounds" in given:
        given["log_std_bounds"] = tuple(given["log_std_bounds"])
    try:
        return make_config(given)
    except UserError as error:
        parser.error(str(error))


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _argument_type(kind: Any, choices: Sequence[str]) -> dict[str, Any]:
    """argparse's options for a Config field's type."""
    if kind is bool:
        return {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
    if kind is int:
        return {"type": _integer, "metavar": "N"}
    if kind is float:
        return {"type": float, "metavar": "X"}
    if choices:
        return {"choices": choices}
    if kind is str:
        return {"metavar": "NAME"}
    return {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}


def _boolean(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"must be true or false; got {text!r}")
    return words[text.lower()]


def _integer(text: str) -> int:
    """A whole number, also as 1e6 or 100_000."""
    for kind in (int, float):  # int first: it is exact
        try:
            if kind(text) == int(kind(text)):
                return int(kind(text))
        except (ValueError, OverflowError):
            continue
    raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")


# -- what a run is made of ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """The parts that the loop plays together, and how far it has come."""

    config: Config
    folder: Path
    agent: DrQAgent
    env: DMCEnv
    lanes: Lanes  # evaluation's own environments
    buffer: ReplayBuffer
    logger: Logger
    skill_rng: np.random.Generator
    stopwatch: Stopwatch
    step: int = 0  # agent steps so far; whatever is written down counts frames
    episode: int = 0  # finished training episodes
    episode_over: bool = True
    evaluated: int = -1  # agent step of the last evaluation

    @property
    def frame(self) -> int:
        return self.step * self.config.action_repeat


def make_agent(config: Config, obs_shape: tuple[int, ...], action_dim: int) -> DrQAgent:
    """DIAYN where there are skills, else plain DrQ."""
    from diayn import DIAYNAgent
    from drq import DrQAgent

    settings: dict[str, Any] = {
        "learn_temperature": config.temperature == "learned",
        **{name: getattr(config, name) for name in AGENT_FLAGS},
    }
    agent: DrQAgent
    if config.num_skills:
        agent = DIAYNAgent(obs_shape, action_dim, **settings, **{name: getattr(config, name) for name in DIAYN_FLAGS})
    else:
        agent = DrQAgent(obs_shape, action_dim, **settings)
    if config.device != "cpu" and config.cuda_graphs:
        agent.use_cuda_graphs()
    return agent


def choose_device(wanted: str | None) -> str:
    """The device to use. Raises UserError where the one asked for does not exist."""
    import torch

    if wanted is None:
        if torch.cuda.is_available():
            return "cuda"
        print("warning: no CUDA device was found; training on the CPU (--device cpu says so)", file=sys.stderr)
        return "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise UserError(f"--device must be cuda, cuda:N or cpu; got {wanted}")
    if wanted != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(wanted.partition(":")[2] or 0):
            raise UserError(f"--device {wanted}: CUDA devices found here: {count}; use --device cpu or another index")
    return wanted


def free_memory() -> int:
    """Bytes that this process may still take: the system's, or its control group's where that is tighter."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return int(free)


def place_replay_buffer(config: Config, frame_shape: tuple[int, ...], action_dim: int) -> str:
    """Print what the replay buffer will need and what is free, and name the device to keep its frames on.

    That is the CUDA device where the frames leave it room for the networks. Raises UserError where nothing has room.
    """
    import torch

    from replay_buffer import ReplayBuffer

    needed = ReplayBuffer.bytes_needed(config.replay_buffer_capacity, frame_shape, config.frame_stack, action_dim)
    if config.device != "cpu":
        free, _ = torch.cuda.mem_get_info(config.device)
        if needed + CUDA_HEADROOM <= free:
            print(f"replay buffer: {needed / 1e9:.2f} GB on the device, of {free / 1e9:.2f} GB free")
            return config.device
        print(
            f"replay buffer: {needed / 1e9:.2f} GB; too much for the device ({free / 1e9:.2f} GB free), so on the host"
        )
    free = free_memory()
    figures = f"{config.replay_buffer_capacity} transitions need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
    if needed > free:
        fitting = int(config.replay_buffer_capacity * free / needed * 0.8)
        raise UserError(f"--replay_buffer_capacity: {figures}; {fitting} would leave some room")
    print(f"replay buffer: {figures}")
    return "cpu"


@contextmanager
def new_run_folder(config: Config) -> Iterator[Path]:
    """A new folder <work_dir>/<env>/<timestamp>_seed<seed>; where the block fails, what was made goes away again."""
    parent = Path(config.work_dir) / config.env
    missing = [place for place in (parent, *parent.parents) if not place.exists()]
    folder = None
    try:
        folder = _make_unique(parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{config.seed}")
        yield folder
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for place in missing:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def _make_unique(folder: Path) -> Path:
    """Make the folder, with a number behind its name where another run took the name first."""
    for number in itertools.count(2):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
            folder = folder.with_name(f"{folder.name.partition('-run')[0]}-run{number}")
        else:
            break
    return folder


def write_config(config: Config, folder: Path, renderer: RendererInfo) -> None:
    """config.json: every flag, and what else it takes to repeat the run."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {"python": sys.version.split()[0]}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    record = {
        "flags": dataclasses.asdict(config),
        "versions": versions,
        "renderer": {"backend": renderer.backend, "name": renderer.name},
        "device": torch.cuda.get_device_name(config.device) if config.device != "cpu" else "cpu",
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        "git_commit": _git_commit(),
    }
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")


def _git_commit() -> str | None:
    """The commit of this source, with "-dirty" where files differ from it; None outside git."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def make_environment(config: Config) -> DMCEnv:
    """The task as pixels. Raises UserError."""
    from dmc import DMCEnv, TaskError

    settings = {name: getattr(config, name) for name in ("image_size", "frame_stack", "action_repeat", "time_limit")}
    try:
        env = DMCEnv(config.env, **settings)
    except TaskError as error:
        raise UserError(f"--env: {error}") from error
    longest = env.max_episode_steps
    if longest is None:
        raise UserError(f"--env {config.env} has no time limit of its own; give --time_limit")
    if config.replay_buffer_capacity < longest:
        raise UserError(f"--replay_buffer_capacity must hold one episode, which is {longest} agent steps")
    return env


def setup(config: Config) -> Run:
    """Check everything that can fail, cheapest first, and only then make the run's folder. Raises UserError."""
    import numpy as np

    from dmc import INSTALL_HINT, RenderingError, choose_renderer

    try:
        import cv2  # noqa: F401  # needs system libraries, which its wheel leaves out
    except ImportError as error:
        raise UserError(f"opencv-python can't be loaded ({error}); try: {INSTALL_HINT}") from error
    try:
        renderer = choose_renderer()
    except RenderingError as error:
        raise UserError(str(error)) from error
    config = dataclasses.replace(config, device=choose_device(config.device))
    print(f"device: {config.device}; renderer: {renderer.backend}, {renderer.name}")
    if renderer.is_software and config.device != "cpu":
        print("warning: pictures are rendered in software beside a GPU; MUJOCO_GL=egl is faster", file=sys.stderr)
    env = make_environment(config)
    obs_shape, action_dim = env.observation_space.shape, env.action_space.shape[0]
    frame_shape = (3, *obs_shape[1:])
    storage = place_replay_buffer(config, frame_shape, action_dim)

    from logger import Logger
    from replay_buffer import ReplayBuffer
    from rollouts import make_lanes
    from utils import Stopwatch, keep_freed_memory, seed_everything

    keep_freed_memory()
    seed_everything(config.seed)
    env.action_space.seed(config.seed)
    agent = make_agent(config, obs_shape, action_dim)
    try:
        buffer = ReplayBuffer(
            config.replay_buffer_capacity,
            frame_shape,
            config.frame_stack,
            action_dim,
            device=config.device,
            storage=storage,
            seed=config.seed,
        )
    except MemoryError as error:
        raise UserError(f"--replay_buffer_capacity: {error}; choose a smaller one") from error
    episodes = len(agent.skills()) * config.num_eval_episodes
    try:
        lanes = make_lanes(partial(make_environment, config), episodes, config.eval_workers)
    except OSError as error:
        raise UserError(f"--eval_workers {config.eval_workers}: {error}; try fewer") from error
    try:
        with new_run_folder(config) as folder:
            write_config(config, folder, renderer)
            logger = Logger(
                folder,
                with_skills=config.num_skills > 0,
                tensorboard=config.log_save_tb,
                total_frames=config.num_train_frames,
            )
    except OSError as error:
        lanes.close()
        reason = error.strerror or error
        raise UserError(f"--work_dir {config.work_dir}: {reason}; name a folder on a disk with room") from error
    print(f"outputs: {folder}")
    return Run(config, folder, agent, env, lanes, buffer, logger, np.random.default_rng(config.seed), Stopwatch())


# -- the loop ----------------------------------------------------------------------------------------------------------


def train(run: Run) -> None:
    """The whole run: episodes, with an evaluation before the first, after the last, and whenever one is due."""
    frequency = run.config.eval_frequency
    evaluate(run)
    while run.step < run.config.num_train_steps:
        train_episode(run)
        if frequency and run.episode_over and run.step // frequency > run.evaluated // frequency:
            evaluate(run)
    if run.evaluated < run.step:
        evaluate(run)
    seconds = time.perf_counter() - run.stopwatch.started
    run.logger.finish(run.frame, seconds, time_shares(run))


def train_episode(run: Run) -> None:
    """One episode with one skill: act, update, step, store. The run's budget may cut it off, and then it has no row."""
    config, agent, env, buffer, logger, clock = run.config, run.agent, run.env, run.buffer, run.logger, run.stopwatch
    began, first_step, episode_return = time.perf_counter(), run.step, 0.0
    obs, _ = env.reset(seed=config.seed if run.step == 0 else None)  # later episodes go on in the task's random stream
    skill = agent.sample_skill(run.skill_rng)
    buffer.start_episode(obs)
    run.episode_over = False
    while not run.episode_over and run.step < config.num_train_steps:
        seeding = run.step < config.num_seed_steps
        with clock("act"):  # on CUDA this is where the last update is waited for
            action = env.action_space.sample() if seeding else agent.act(obs, skill, sample=True)
        if not seeding and len(buffer):
            for _ in range(config.num_train_iters):
                with clock("sample"):
                    batch = buffer.sample(config.batch_size)
                with clock("update"):  # on CUDA it runs on while the environment steps
                    logger.update(agent.update(batch))
        with clock("environment"):
            obs, reward, terminated, truncated, _ = env.step(action)
        buffer.add(action, reward, obs, terminated, skill)
        run.step += 1
        run.episode_over = terminated or truncated
        episode_return += reward
        with clock("log"):
            if run.step % config.log_frequency_step == 0:
                logger.histograms(agent.histograms(), run.frame)
            logger.progress(run.frame)
    if run.episode_over:
        with clock("log"):
            run.episode += 1
            log_episode(run, skill, episode_return, run.step - first_step, time.perf_counter() - began)


def log_episode(run: Run, skill: int, episode_return: float, steps: int, duration: float) -> None:
    """Write down the training episode that has just ended."""
    from logger import Episode

    intrinsic = run.agent.intrinsic_return(run.buffer.recent(steps, run.config.batch_size))
    episode = Episode(
        duration=duration, extrinsic_reward=episode_return, skill=skill, intrinsic_reward_sum=intrinsic, length=steps
    )
    run.logger.train_episode(run.episode, run.frame, episode, steps * run.config.action_repeat)
    run.logger.time_shares(time_shares(run), run.frame)


def time_shares(run: Run) -> dict[str, float]:
    """What share of the run's time each part took so far; drawing pictures is told apart from the rest of a step."""
    shares = run.stopwatch.shares()
    if "environment" in shares:
        render = run.env.render_seconds / (time.perf_counter() - run.stopwatch.started)
        shares["render"] = min(render, shares["environment"])
        shares["environment"] -= shares["render"]
    return shares


def evaluate(run: Run) -> None:
    """Play every skill with the deterministic policy, from the same starts, and log it; a video of each one's first.

    The starts depend on the seed and the step only, and nothing that training uses is touched.
    """
    import numpy as np

    from rollouts import Start, play
    from video import VideoRecorder, gif_clip

    config, logger = run.config, run.logger
    if not config.eval_frequency:
        return
    run.evaluated, frame = run.step, run.frame
    with run.stopwatch("evaluate"):
        logger.status(f"evaluating at frame {frame}")
        seeds = np.random.SeedSequence([config.seed, run.step]).generate_state(config.num_eval_episodes).tolist()
        skills = run.agent.skills()
        folder, fps = run.folder / "video" if config.save_video else None, run.env.metadata["render_fps"]
        recorders = {f"skill{skill}" if config.num_skills else "policy": VideoRecorder(folder, fps) for skill in skills}
        for name, recorder in recorders.items():
            recorder.start(f"{frame}_{name}" if config.num_skills else str(frame))
        starts = [Start(skill, seeds[0], recorder) for skill, recorder in zip(skills, recorders.values(), strict=True)]
        starts += [Start(skill, seed) for seed in seeds[1:] for skill in skills]
        results = play(run.agent, run.lanes, starts)
        videos = {name: recorder.stop() for name, recorder in recorders.items()}
        written = [video for video in videos.values() if video is not None]
        if config.num_skills:
            videos["skills"] = VideoRecorder(folder, fps).tile(f"{frame}_skills", written)
        for name, video in videos.items():
            clip = gif_clip(video, fps) if video is not None and config.log_save_tb else None
            if clip is not None:
                logger.clip(name, *clip, step=frame)
        logger.status("")
        logger.evaluation(run.episode, frame, results)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, set up, train. Returns the exit code: 2 for bad input, after one line that says what to mend."""
    config = parse_args(argv)
    # Before torch is imported: its idle threads would spin on the cores that the software renderer needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        run = setup(config)
    except UserError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    try:
        train(run)
    except KeyboardInterrupt:
        print("interrupted; what was written so far is complete", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"train.py: error: the disk of --work_dir {config.work_dir} is full; make room and start again",
            file=sys.stderr,
        )
        return 2
    finally:
        run.logger.close()
        run.env.close()
        run.lanes.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
