"""Every flag of train.py with its default, its limits and its meaning; and the command line that sets them.

Nothing heavy is imported here, so that --help and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import operator
import os
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import UserError as UserError

PLANET_ACTION_REPEATS = {"cartpole": 8, "reacher": 4, "cheetah": 4, "finger": 2, "ball_in_cup": 4, "walker": 2}
DREAMER_ACTION_REPEAT = 2
BENCHMARK_BATCH_SIZE = 512
MAX_SEED = 2**64 - 1  # torch takes no larger one
MAX_NUMBER = 2**63 - 1  # of any other whole number
CHECKPOINTS_WITHOUT_EVALUATIONS = 5000  # agent steps between checkpoints where nothing else says how many
CONFIG_FILE = "config.json"  # in a run's folder
UNITS = (
    "An agent step is one action; a frame is one control step of the task: frames = agent steps x action repeat. "
    "Every step column, axis and file name of the outputs counts frames."
)
DESCRIPTION = "Train DrQ, with DIAYN skills or without, on a DeepMind Control Suite task seen as pixels."


def one_line(message: str) -> str:
    """The message with what would break its line, or do something to a terminal, written as an escape."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)


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

    env: str = flag(
        "task",
        "cartpole_swingup",
        "task of dm_control.suite, as domain_task (python dmc.py --tasks), or gym:ID, one of gymnasium's",
        alias="task",
    )
    action_repeat: int = flag("task", 4, "frames (control steps) for which an action is held", low=1)
    time_limit: int = flag("task", None, "frames per episode", low=1, derived="the task's own")
    image_size: int = flag("task", 84, "height and width of an observation, pixels", low=16)
    frame_stack: int = flag("task", 3, "pictures in an observation, one an agent step", low=1, alias="framestack")
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
    deterministic: bool = flag(
        "budget", False, "on CUDA: the same numbers in every run, more slowly; the CPU's always are"
    )

    num_skills: int = flag("DIAYN", 10, "number of skills; 0 is plain DrQ", low=0)
    skill_embedding_dim: int = flag("DIAYN", 10, "width of the learned skill embedding; 0 feeds the one-hot", low=0)
    lr_discriminator: float = flag("DIAYN", 1e-4, "learning rate of the discriminator, whatever --lr is", above=0)
    discriminator_encoder: str = flag(
        "DIAYN",
        "separate",
        "convolutions the discriminator reads: the critic's (detached) or its own",
        choices=("shared", "separate"),
    )
    diayn_intrinsic_reward_coeff: float = flag(
        "DIAYN", None, "weight of the intrinsic reward", low=0, derived="1.0 with skills, 0.0 without"
    )
    extrinsic_reward_coeff: float = flag(
        "DIAYN", None, "weight of the task's reward", low=0, derived="0.0 with skills, 1.0 without"
    )

    finetune_from: str = flag(
        "fine-tuning", None, "a run with skills whose networks this one begins with", derived="none"
    )
    finetune_skill: str = flag(
        "fine-tuning", "best", "the one skill to go on with: a number, or the best by return on this task"
    )
    finetune_critic: str = flag(
        "fine-tuning",
        "pretrained",
        "Q functions to begin with: the run's, which know its intrinsic reward, or new ones",
        choices=("pretrained", "scratch"),
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
        "entropy temperature alpha: learned from --init_temperature on (DrQ), or fixed at it (DIAYN)",
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

    eval_frequency: int = flag(
        "outputs",
        5000,
        "agent steps between evaluations, which wait for the episode's end; one more ends the run; 0 never evaluates",
        low=0,
    )
    num_eval_episodes: int = flag(
        "outputs", None, "episodes per evaluation, for each skill", low=1, derived="10 without skills, 1 with"
    )
    eval_workers: int = flag(
        "outputs", 0, "processes that play evaluation episodes side by side; 0 plays them in the training one", low=0
    )
    log_frequency_step: int = flag("outputs", 10_000, "agent steps between histograms in TensorBoard", low=1)
    log_save_tb: bool = flag("outputs", True, "write TensorBoard logs")
    save_video: bool = flag("outputs", True, "write a video of each skill at each evaluation")
    checkpoint_frequency: int = flag(
        "outputs",
        None,
        "agent steps between checkpoints; 0 writes them only when the run stops",
        low=0,
        derived="at every evaluation",
    )
    save_replay_buffer: bool = flag("outputs", True, "keep the replay buffer in the checkpoints, for an exact resume")
    work_dir: str = flag("outputs", "runs", "folder in which run folders are made")
    run_name: str = flag(
        "outputs",
        None,
        "name of the run's folder; -run2 and so on follow where it is taken",
        derived="<date>_<time>_seed<seed>",
    )
    notes: str = flag("outputs", "", "anything you want to find in config.json again")
    resume: str = flag("outputs", None, "go on with the run in this folder, under its own flags", derived="a new run")

    @property
    def learns_skills(self) -> bool:
        """Whether there is a discriminator: with skills, unless one of them is fine-tuned."""
        return self.num_skills > 0 and self.finetune_from is None

    @property
    def folder_name(self) -> str:
        return folder_name(self.env)


def folder_name(env: str) -> str:
    """A task's name as a file's or a folder's."""
    return re.sub(r"[^\w.-]+", "_", env)


CONFIG_TYPES = typing.get_type_hints(Config)
# What may change when a run is resumed: its budget, what it writes down, and what it is computed on.
CHANGEABLE = frozenset(
    {
        *("num_train_steps", "num_train_frames", "device", "deterministic", "cuda_graphs", "resume"),
        *("eval_frequency", "num_eval_episodes", "eval_workers", "log_frequency_step", "log_save_tb", "save_video"),
        *("checkpoint_frequency", "save_replay_buffer", "notes"),
    }
)
FINE_TUNING = ("finetune_from", "finetune_skill", "finetune_critic")
# What a fine-tuned run has from the run it begins with: the first may be given otherwise, the second may not.
INHERITED = ("env", "action_repeat", "time_limit")
SHARED_NETWORKS = (
    *("image_size", "frame_stack", "num_skills", "skill_embedding_dim", "encoder_feature_dim", "hidden_dim"),
    *("hidden_depth", "log_std_bounds"),
)


def make_config(given: Mapping[str, Any]) -> Config:
    """A Config from the flags that were given: benchmark presets, derived defaults, checks.

    Raises UserError, naming the flag, for what is out of range or contradicts itself.
    """
    values: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}
    if given.get("finetune_from") is not None and given.get("resume") is None:
        inherited = _inherited(given)
        values |= _benchmark_settings({**inherited, **given}) | inherited
        given = {**given, "finetune_from": str(Path(given["finetune_from"]).resolve())}
    else:
        values |= _benchmark_settings(given)
    values |= given
    values["env"] = values["env"].removeprefix("dmc_")
    for field in dataclasses.fields(Config):
        _check(field, values[field.name])

    with_skills = values["num_skills"] > 0 and values["finetune_from"] is None
    if values["finetune_from"] is not None:
        _check_finetuning(values)
    elif (values["finetune_skill"], values["finetune_critic"]) != ("best", "pretrained"):
        raise UserError("--finetune_skill and --finetune_critic need --finetune_from, a run with skills")
    if values["temperature"] in (None, "auto"):
        values["temperature"] = "fixed" if with_skills else "learned"
    for name, default in (
        ("num_eval_episodes", 1 if with_skills else 10),
        ("diayn_intrinsic_reward_coeff", 1.0 if with_skills else 0.0),
        ("extrinsic_reward_coeff", 0.0 if with_skills else 1.0),
        ("checkpoint_frequency", values["eval_frequency"] or CHECKPOINTS_WITHOUT_EVALUATIONS),
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
    check_name("run_name", values["run_name"])
    if values["diayn_intrinsic_reward_coeff"] and not with_skills:
        raise UserError(
            "--diayn_intrinsic_reward_coeff: without skills to tell apart there is no such reward; leave the flag out"
        )
    if values["num_skills"] == 1 and with_skills and not values["extrinsic_reward_coeff"]:
        raise UserError(
            "--num_skills 1 leaves no reward, as there is no other skill to differ from; give 2 or more, 0 for plain "
            "DrQ, or --extrinsic_reward_coeff above 0"
        )
    low, high = values["log_std_bounds"]
    if low >= high:
        raise UserError(f"--log_std_bounds: the first must be smaller than the second; got {low} {high}")
    if not values["extrinsic_reward_coeff"] and not (with_skills and values["diayn_intrinsic_reward_coeff"]):
        raise UserError(
            "--extrinsic_reward_coeff 0 leaves no reward; give it above 0, or --num_skills and "
            "--diayn_intrinsic_reward_coeff"
        )
    return Config(**values)


def check_name(flag: str, name: str | None) -> None:
    """Raise UserError where a folder can't be called that."""
    if name is not None and not re.fullmatch(r"\w[\w.+=-]*", name):
        raise UserError(f"--{flag} must be letters, digits and _ . + = -; got {name!r}")


def no_room(work_dir: object, error: OSError) -> UserError:
    """What to say where nothing can be written into --work_dir."""
    return UserError(f"--work_dir {work_dir}: {error.strerror or error}; name a folder on a disk with room")


def _inherited(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a fine-tuned run has from the one it begins with. Raises UserError where `given` contradicts it."""
    folder = Path(given["finetune_from"])
    stored = read_flags(folder, "finetune_from")
    if stored.get("finetune_from"):
        raise UserError(f"--finetune_from {folder}: that run was fine-tuned itself; name the run that it began with")
    if not stored.get("num_skills"):
        raise UserError(f"--finetune_from {folder}: that run has no skills; name one with --num_skills above 0")
    inherited = {name: stored[name] for name in (*INHERITED, *SHARED_NETWORKS) if name in stored}
    for name in SHARED_NETWORKS:
        if name in given and given[name] != inherited.get(name, given[name]):
            raise UserError(
                f"--{name}: the networks of {folder} have {shown_value(inherited[name])}; leave the flag out"
            )
    return inherited


def _check_finetuning(values: Mapping[str, Any]) -> None:
    skill, count = values["finetune_skill"], values["num_skills"]
    if skill != "best" and not (skill.isdecimal() and int(skill) < count):
        raise UserError(f"--finetune_skill must be best or a skill from 0 to {count - 1}; got {skill}")


def resumed_config(given: Mapping[str, Any]) -> Config:
    """The Config of the run that `given["resume"]` names, with what may change taken from `given`. Raises UserError."""
    folder = Path(given["resume"])
    stored = read_flags(folder, "resume")
    kept = {name: value for name, value in stored.items() if name != "num_train_frames" and value is not None}
    if stored.get("device") == "cuda":  # which may have been found, not asked for
        kept.pop("device")
    if given.get("eval_frequency") and 0 != stored.get("eval_frequency") == stored.get("checkpoint_frequency"):
        kept.pop("checkpoint_frequency", None)  # at every evaluation, also where those are asked for more often now
    if "num_train_frames" in given:
        kept.pop("num_train_steps", None)
    owner = f"the run in {folder}"
    _refuse_changes(stored, {name: given[name] for name in FINE_TUNING if name in given}, owner)
    config = make_config({**kept, **given})
    refuse_changes(stored, config, owner)
    return config


def refuse_changes(stored: Mapping[str, Any], config: Config, owner: str) -> None:
    """Raise UserError, naming the flag, where the config differs from a run's flags in what may not change."""
    _refuse_changes(stored, {name: getattr(config, name) for name in CONFIG_TYPES}, owner)


def _refuse_changes(stored: Mapping[str, Any], values: Mapping[str, Any], owner: str) -> None:
    for name, new in values.items():
        old = stored.get(name)
        if name not in CHANGEABLE and name in stored and new != old:
            raise UserError(
                f"--{name} {shown_value(new)} differs from {owner}, which has {shown_value(old)}; a resumed run keeps "
                "its settings: leave the flag out, or start a new run"
            )


def template(path: Path) -> dict[str, Any]:
    """The flags in a config.json, to begin another run with. Raises UserError."""
    stored = read_flags(path.parent, "config", path.name)
    if stored.get("finetune_from"):
        raise UserError(f"--config {path}: a fine-tuned run is no template; name the run that it began with")
    # One budget says it all: a benchmark's is in frames, as another task of it may have another action repeat.
    budget = "num_train_steps" if stored.get("benchmark") else "num_train_frames"
    own = ("resume", budget, "run_name", "notes", "device", *FINE_TUNING)  # the other run's alone
    values = {name: value for name, value in stored.items() if value is not None and name not in own}
    # What follows from other flags is derived again, as they may be given otherwise.
    derived = {name for name in values if Config.__dataclass_fields__[name].metadata["derived"]} - {"benchmark"}
    derived |= _benchmark_settings(values).keys()
    again = make_config({name: value for name, value in values.items() if name not in derived})
    return {name: value for name, value in values.items() if name not in derived or value != getattr(again, name)}


def read_flags(folder: Path, source: str, name: str = CONFIG_FILE) -> dict[str, Any]:
    """The flags in a run's config.json, types checked. Raises UserError, which names the flag `source`."""
    path = folder / name
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"--{source}: there is no {path}; name a run's") from None
    except OSError as error:
        raise UserError(f"--{source}: {path} can't be read: {error.strerror}; name a run's") from error
    except (ValueError, RecursionError):
        raise UserError(f"--{source}: {path} is damaged, or no run's; put its text back, or start a new run") from None
    flags = record.get("flags") if isinstance(record, dict) else None
    if not isinstance(flags, dict):
        raise UserError(f"--{source}: {path} has no flags; put its text back, or start a new run")
    return {key: _stored_value(path, source, key, value) for key, value in flags.items()}


def _stored_value(path: Path, source: str, name: str, value: Any) -> Any:
    """A flag's value as JSON has it, checked against the flag's type."""
    kind = CONFIG_TYPES.get(name)
    if kind is None:
        raise UserError(f"--{source}: {path} has a flag {name!r} that this version doesn't know; use its version")
    if value is None and Config.__dataclass_fields__[name].metadata["derived"]:
        return None
    if isinstance(value, list) and len(value) == 2 and all(_is_number(part) for part in value):
        value = tuple(map(float, value))
    numbers = {int: type(value) is int, float: _is_number(value)}
    fits = numbers[kind] if kind in numbers else isinstance(value, typing.get_origin(kind) or kind)
    if not fits:
        raise UserError(f"--{source}: {path} is damaged: {name} is {value!r}; put its text back, or start a new run")
    return float(value) if kind is float else value


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MAX_NUMBER)


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
            if key == "high" and bound is None and isinstance(number, int):
                bound = MAX_NUMBER
            if bound is not None and not holds(number, bound):
                raise UserError(f"--{field.name} must be {words} {bound}; got {number}")
    choices = field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"--{field.name} must be one of {', '.join(choices)}; got {value}")


# -- the command line ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and to which -1e1 is a number."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> typing.NoReturn:
        unknown = re.match(r"unrecognized arguments: --?([\w-]+)", message)
        if unknown:
            known = [name.lstrip("-") for name in self._option_string_actions]
            nearest = difflib.get_close_matches(unknown.group(1), known, n=1)
            message += f"; did you mean --{nearest[0]}?" if nearest else "; see --help"
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The command line as a Config. Bad input ends the program with one line and exit code 2."""
    parser = Parser(prog="train.py", description=DESCRIPTION, epilog=UNITS)
    add_flags(parser)
    complete(parser)
    given = vars(parser.parse_args(argv))
    if "log_std_bounds" in given:
        given["log_std_bounds"] = tuple(given["log_std_bounds"])
    try:
        return config_from(given)
    except UserError as error:
        parser.error(str(error))


def add_flags(parser: argparse.ArgumentParser, *, several: bool = False, without: Collection[str] = ()) -> None:
    """Every flag of a run, `several` values each if asked for. The namespace gets those that are given, and no others.

    `without` names flags to leave out.
    """
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        meta = field.metadata
        if field.name in without:
            continue
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        names = [f"--{name}" for name in (field.name, meta["alias"]) if name]
        shown = meta["derived"] or shown_value(field.default)
        options = _argument_type(CONFIG_TYPES[field.name], meta["choices"])
        if several:  # a switch without a value is true, as in train.py
            options["nargs"] = "*" if options.pop("const", False) else "+"
        options |= {"dest": field.name, "help": f"{meta['help']} (default: {shown})", "default": argparse.SUPPRESS}
        groups[meta["group"]].add_argument(*names, **options)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="a run's config.json as a template; flags beside it win",
    )


def config_from(given: Mapping[str, Any]) -> Config:
    """The Config of flags that were given, and of the template or the run that `config` or `resume` names among them.

    Raises UserError.
    """
    if "config" in given and "resume" in given:
        raise UserError("--config and --resume exclude each other: a resumed run has its own settings")
    given = with_template(given)
    return resumed_config(given) if "resume" in given else make_config(given)


def with_template(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, with those of the template in place of `config`. Raises UserError."""
    flags = {name: value for name, value in given.items() if name != "config"}
    beginning = template(given["config"]) if "config" in given else {}
    for new, old in (
        ("num_train_frames", "num_train_steps"),
        ("num_train_steps", "num_train_frames"),
        ("benchmark", "batch_size"),
        ("benchmark", "action_repeat"),
    ):
        if new in flags:
            beginning.pop(old, None)
    if "finetune_from" in flags:  # that run's decide
        beginning = {k: value for k, value in beginning.items() if k not in (*SHARED_NETWORKS, *INHERITED)}
    skills = flags.get("num_skills", 0 if "finetune_from" in flags else beginning.get("num_skills"))
    if skills == 0:  # what the template pays for telling skills apart is paid no longer
        for name in ("diayn_intrinsic_reward_coeff", "extrinsic_reward_coeff"):
            beginning.pop(name, None)
    return {**beginning, **flags}


def complete(parser: argparse.ArgumentParser) -> None:
    """Shell completion, where argcomplete is installed; see README.md."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def shown_value(value: Any) -> str:
    """A flag's value as the command line has it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
