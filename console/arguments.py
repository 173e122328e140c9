"""The command line: argparse flags made from the table in config.py, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import FIELDS, TYPES, shown_value
from errors import one_line

UNITS = (
    "An agent step is one action; a frame is one control step of the task: frames = agent steps x action repeat. "
    "Every step column, axis and file name of the outputs counts frames."
)


# What other programs call a flag of ours.
SYNONYMS = {
    **dict.fromkeys(("total_timesteps", "total_steps", "num_timesteps", "timesteps", "num_frames"), "num_train_frames"),
    **dict.fromkeys(("steps", "num_steps", "max_steps", "train_steps"), "num_train_steps"),
    **dict.fromkeys(("learning_rate", "actor_lr", "critic_lr", "policy_lr", "q_lr"), "lr"),
    **dict.fromkeys(("actor_learning_rate", "critic_learning_rate"), "lr"),
    **dict.fromkeys(("env_id", "env_name", "task_name", "domain", "domain_name", "environment"), "env"),
    **dict.fromkeys(("buffer_size", "replay_size", "buffer_capacity", "replay_capacity"), "replay_buffer_capacity"),
    **dict.fromkeys(("learning_starts", "start_steps", "init_steps", "warmup_steps"), "num_seed_steps"),
    "num_seed_frames": "num_seed_steps",
    **dict.fromkeys(("alpha", "ent_coef", "entropy_coef"), "init_temperature"),
    **dict.fromkeys(("skill_dim", "n_skills", "latent_dim", "z_dim"), "num_skills"),
    **dict.fromkeys(("eval_freq", "eval_every", "eval_interval"), "eval_frequency"),
    **dict.fromkeys(("frame_skip", "frameskip"), "action_repeat"),
    **{"gamma": "discount", "tau": "critic_tau", "capture_video": "save_video", "output_dir": "work_dir"},
    **dict.fromkeys(("logdir", "log_dir", "save_dir", "save_path"), "work_dir"),
    **{"exp_name": "run_name", "run_name": "sweep_name", "cuda": "device", "gpu": "device", "use_tb": "log_save_tb"},
}


MAY_BE_EMPTY = ("--notes",)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and which reads -1e1 as a number."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)

    def error(self, message: str) -> typing.NoReturn:
        unknown = re.match(r"unrecognized arguments: (-{0,2})[+~]{0,2}([\w.@/-]+)(=?)", message)  # +, ~: Hydra's
        if unknown:
            dashes, name, assigned = unknown.groups()
            meant = self._known_flag(name)
            if meant is None or f"{dashes}{name}" == f"--{meant}":
                message += "" if dashes or assigned else "; write a list as 3,7 and quote blanks"
                message += "; see --help"
            else:
                message += f"; write --{meant} VALUE" if assigned and not dashes else f"; did you mean --{meant}?"
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            os.getcwd()
        except OSError as error:
            self.error(f"the working folder cannot be used ({error.strerror}); change to one that exists")
        words = sys.argv[1:] if args is None else list(args)
        has_choices = any(action.choices and not action.option_strings for action in self._actions)
        for before, word in zip(["", *words], words, strict=False):
            if re.fullmatch(r"--?[\w-]+=--", word):  # argparse would pass on an empty list as the value
                self.error(f"argument {word.removesuffix('=--')}: -- is not a value")
            flag = word.removesuffix("=") if re.fullmatch(r"--?[\w-]+=", word) else before if not word else None
            if flag is not None and flag not in MAY_BE_EMPTY:  # an empty path would be the working folder
                named = f"argument {flag}: the value" if flag.startswith("-") else "an argument"
                self.error(f"{named} is empty; is a variable of the shell not set?")
            name = re.match(r"--([\w-]+)", word)
            if name and has_choices and f"--{name[1]}" not in self._option_string_actions:
                self.error(f"unrecognized arguments: {word}")  # else its value would be taken for the positional one
        return super().parse_known_args(words, namespace)

    def _known_flag(self, name: str) -> str | None:
        """Return the flag that an unknown name most likely means."""
        known = [option.lstrip("-") for option in self._option_string_actions]
        plain = name.rpartition(".")[2].replace("-", "_").lower()  # such as Hydra's agent.lr
        candidates = [plain, SYNONYMS.get(plain, ""), *difflib.get_close_matches(name, known, n=1, cutoff=0.7)]
        return next((candidate for candidate in candidates if candidate in known), None)


def add_flags(parser: argparse.ArgumentParser, *, several: bool = False, without: Sequence[str] = ()) -> None:
    """Add every flag of a run. The namespace gets only those that are given.

    Args:
        several: each flag takes one or more values.
        without: flags to leave out.
    """
    groups: dict[str, Any] = {}
    for name, field in FIELDS.items():
        if name in without:
            continue
        metadata = field.metadata
        group = metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        names = [f"--{option}" for option in (name, metadata["alias"]) if option]
        options = _argument_type(TYPES[name], metadata)
        if several:  # a switch without a value is true, as in train.py
            options["nargs"] = "*" if options.pop("const", False) else "+"
        shown = metadata["derived"] or shown_value(field.default) or "none"
        options |= {"dest": name, "help": f"{metadata['help']} (default: {shown})", "default": argparse.SUPPRESS}
        groups[group].add_argument(*names, **options)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="take the settings of a run from its folder or config.json; flags given beside it win",
    )


def as_typed(message: str, words: Sequence[str] | None) -> str:
    """Return a message in which a flag has its other name, such as --task for --env, if that was typed.

    Args:
        words: the command line; None is that of this process.
    """
    typed = {word.partition("=")[0] for word in (sys.argv[1:] if words is None else words)}
    for name, field in FIELDS.items():
        alias = field.metadata["alias"]
        if f"--{alias}" in typed:
            message = re.sub(rf"--{name}\b", f"--{alias}", message)
    return message


def complete(parser: argparse.ArgumentParser) -> None:
    """Complete flags in the shell if it asks for that through argcomplete."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _argument_type(kind: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return argparse's options for a flag's type."""
    if kind is bool:
        return {"type": boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
    if kind is int:
        return {"type": integer, "metavar": "N"}
    if kind is float:
        return {"type": float, "metavar": "X"}
    if metadata["choices"]:
        return {"choices": metadata["choices"]}
    if kind is str:
        return {"metavar": metadata["metavar"]}
    return {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}


def boolean(text: str) -> bool:
    """Parse true, yes, 1, on and their opposites."""
    words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"must be true or false; got {text!r}")
    return words[text.lower()]


def integer(text: str) -> int:
    """Parse an integer, also written as 1e6 or 100_000."""
    for kind in (int, float):  # int first, as it is exact
        try:
            if kind(text) == int(kind(text)):
                return int(kind(text))
        except (ValueError, OverflowError):
            continue
    raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}")
