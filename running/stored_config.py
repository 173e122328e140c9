"""Configurations that build on another run's config.json: resumed, fine-tuned, or started from a template.

Standard library only.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from config import (
    FIELDS,
    MAX_INTEGER,
    TYPES,
    Config,
    Role,
    check_value,
    flags_with,
    shown_value,
)
from errors import UserError
from running.atomic_files import read_file
from running.derivation import DEFAULT_CHECKPOINT_FREQUENCY, derive, make_config, preset_settings
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from running.presets import BENCHMARKS, names_in

CONFIG_FILE = "config.json"  # in a run's folder
LATEST = "latest"  # the folder beside the runs of a task that has links to the parts of the newest one
NAMED_RUNS = 5  # runs that a message names
RESUMABLE = frozenset(flags_with(Role.RESUMABLE))
RENAMED = {field.metadata["alias"]: name for name, field in FIELDS.items() if field.metadata["alias"]}


def config_from(given: Mapping[str, Any]) -> Config:
    """Return the Config of the flags that were given, including --config, --resume and --finetune_from.

    Raises UserError.
    """
    if "config" in given and "resume" in given:
        raise UserError("--config and --resume exclude each other: a resumed run keeps its settings")
    given = with_template(given)
    if "resume" in given:
        return resumed_config(given)
    if given.get("finetune_from") is None:
        return make_config(given)
    inherited = inherited_flags(given)
    return make_config({**given, "finetune_from": str(real_run(given["finetune_from"]))}, inherited)


def resumed_config(given: Mapping[str, Any]) -> Config:
    """Return the Config of the run in `given["resume"]`, changed by the flags beside it. Raises UserError."""
    folder = Path(given["resume"])
    stored = read_flags(folder, "resume")
    # Of the flags that its preset sets now, those that did not exist when the run started have their defaults.
    kept = {name: FIELDS[name].default for name in preset_settings(stored)}
    kept |= {name: value for name, value in stored.items() if name != "num_train_frames" and value is not None}
    if stored.get("device") == "cuda":  # the default device, or asked for: choose again
        kept.pop("device")
    derived = stored.get("eval_frequency") or DEFAULT_CHECKPOINT_FREQUENCY
    if given.get("eval_frequency") and stored.get("checkpoint_frequency") == derived:
        kept.pop("checkpoint_frequency")  # at every evaluation, of which there may have been none
    if "num_train_frames" in given:
        kept.pop("num_train_steps", None)
    owner = f"the run in {folder}"
    fine_tuning = {name: given[name] for name in flags_with(Role.FINE_TUNING) if name in given}
    _refuse_changes(stored, fine_tuning, owner)
    config = make_config({**kept, **given})
    refuse_changes(stored, config, owner)
    return config


def refuse_changes(stored: Mapping[str, Any], config: Config, owner: str) -> None:
    """Raise UserError if the config differs from stored flags in one that a resumed run may not change.

    Args:
        owner: whose flags they are, for the message.
    """
    _refuse_changes(stored, {name: getattr(config, name) for name in FIELDS}, owner)


def _refuse_changes(stored: Mapping[str, Any], values: Mapping[str, Any], owner: str) -> None:
    stored = with_todays_names(stored)
    for name, new in values.items():
        old = stored.get(name)
        if name not in RESUMABLE and name in stored and new != old:
            raise UserError(
                f"--{name} {shown_value(new)} differs from {owner}, which has {shown_value(old)}; a resumed run keeps "
                "its settings: leave the flag out, or start a new run"
            )


def inherited_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a fine-tuned run has from its source. Raises UserError if `given` contradicts it."""
    folder = Path(given["finetune_from"])
    stored = read_flags(folder, "finetune_from")
    if stored.get("finetune_from"):
        raise UserError(f"--finetune_from {folder}: that run was itself fine-tuned; name the run it started from")
    if not stored.get("num_skills"):
        raise UserError(f"--finetune_from {folder}: that run has no skills; name one with --num_skills above 0")
    inherited = {name: stored[name] for name in flags_with(Role.INHERITED | Role.NETWORK) if name in stored}
    for name in flags_with(Role.NETWORK):
        if name in given and _plain(given[name]) != _plain(inherited.get(name, given[name])):
            raise UserError(
                f"--{name}: the networks of {folder} have {shown_value(inherited[name])}; leave the flag out"
            )
    return inherited


def _plain(value: Any) -> Any:
    """Return a pair of numbers as a tuple, also if the command line or JSON made it a list."""
    return tuple(value) if isinstance(value, list) else value


def with_template(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, with the settings of --config's run below them. Raises UserError."""
    flags = {name: value for name, value in given.items() if name != "config"}
    settings = template(given["config"]) if "config" in given else {}
    for new, old in (("num_train_frames", "num_train_steps"), ("num_train_steps", "num_train_frames")):
        if new in flags:
            settings.pop(old, None)
    if "preset" in flags:
        for name in preset_settings({**settings, **flags}):
            settings.pop(name, None)
    if "finetune_from" in flags:  # the source run decides these
        for name in flags_with(Role.INHERITED | Role.NETWORK):
            settings.pop(name, None)
    skills = flags.get("num_skills", 0 if "finetune_from" in flags else settings.get("num_skills"))
    if skills == 0:  # derive the rewards again, for a run without skills
        for name in ("diayn_intrinsic_reward_coeff", "extrinsic_reward_coeff"):
            settings.pop(name, None)
    return {**settings, **flags}


def template(path: Path) -> dict[str, Any]:
    """Return the settings of a run for another to start from, given its folder or config.json. Raises UserError."""
    path = path / CONFIG_FILE if os.path.isdir(path) else path  # unlike is_dir, False for any name
    stored = read_flags(path.parent, "config", path.name)
    if stored.get("finetune_from"):
        raise UserError(f"--config {path}: a fine-tuned run cannot be a template; name the run it started from")
    # Of the two budgets keep one: a benchmark's is in frames, as its action repeat depends on the task.
    is_benchmark = any(name in BENCHMARKS for name in names_in(stored.get("preset")))
    budget = "num_train_steps" if is_benchmark else "num_train_frames"
    left_out = {*flags_with(Role.OF_ONE_RUN), budget}
    values = {name: value for name, value in stored.items() if value is not None and name not in left_out}
    # Values that follow from other flags are derived again, unless they differ from what would be derived.
    derived = {name for name in values if FIELDS[name].metadata["derived"]} - {"preset"}
    derived |= preset_settings(values).keys()
    again = derive({name: value for name, value in values.items() if name not in derived})
    return {name: value for name, value in values.items() if name not in derived or value != again[name]}


def read_flags(folder: Path, source: str, name: str = CONFIG_FILE) -> dict[str, Any]:
    """Return the flags in a run's config.json, with types and ranges checked.

    Args:
        source: the flag that named the folder, for the message of the UserError that is raised.
    """
    path = folder / name
    place = f"--{source}: {path}"
    try:
        flags = checked_flags(_flags_in(path, place), place)
        _check_ranges(flags, place)
        return flags
    except FileNotFoundError:
        raise UserError(f"--{source}: there is no {path}; {name_a_run(folder)}") from None


def known_flags(path: Path) -> dict[str, Any]:
    """Return the flags in a config.json that this version knows, with types and ranges checked.

    Raises UserError or OSError, which name the file; FileNotFoundError if there is none.
    """
    flags = with_todays_names(_flags_in(path, str(path)))
    flags = {name: value for name, value in flags.items() if name in TYPES}
    flags = checked_flags(flags, str(path))
    _check_ranges(flags, str(path))
    return flags


def _flags_in(path: Path, place: str) -> dict[str, Any]:
    """Return the flags in a config.json as they are. Raises FileNotFoundError, UserError."""
    flags = read_record(path, place).get("flags")
    if not isinstance(flags, dict):
        raise UserError(f"{place} has no flags; restore it, or start a new run")
    return flags


def saved_step(folder: Path) -> int:
    """Return the agent step of a run's checkpoint; 0 if there is none that can be read."""
    path = folder / CHECKPOINT_FOLDER / MANIFEST_FILE
    with suppress(FileNotFoundError, UserError):
        step = read_record(path, str(path)).get("step")
        return step if type(step) is int and 0 <= step <= MAX_INTEGER else 0
    return 0


def read_record(path: Path, place: str) -> dict[str, Any]:
    """Return what a config.json holds, of which nothing is checked. Raises FileNotFoundError, UserError.

    Args:
        place: the file's name, for the message.
    """
    try:
        record = json.loads(read_file(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}; name a run's folder") from error
    except (ValueError, RecursionError):
        raise UserError(f"{place} is damaged, or not a run's; restore it, or start a new run") from None
    return record if isinstance(record, dict) else {}


def real_run(folder: Path | str) -> Path:
    """Return the absolute path of a run's folder, also if it is given as `latest`. Raises UserError."""
    try:
        real = Path(os.path.realpath(folder))
    except ValueError:
        raise UserError(f"{str(folder)!r} cannot be the name of a folder; name a run's") from None
    if real.name == LATEST and (real / CONFIG_FILE).is_symlink():
        return Path(os.path.realpath(real / CONFIG_FILE)).parent
    return real


def check_folders(places: Iterable[Path]) -> None:
    """Raise UserError if a place where runs are to be looked for is not a folder."""
    for place in places:
        if not os.path.isdir(place):  # unlike Path.is_dir, False for any name
            raise UserError(f"{place} is not a folder; name a run's folder, or one above it")


def name_a_run(folder: Path) -> str:
    """Return what to do if the folder is not a run's, naming the runs in it."""
    runs: list[Path] = []
    for depth in ("*", "*/*"):  # runs of one task; of several
        found = [path for path in folder.glob(f"{depth}/{CONFIG_FILE}") if not path.is_symlink()]
        runs = runs or sorted(path.parent for path in found if not path.parent.is_symlink())
    if not runs:
        return "name a run's folder"
    more = f" or {len(runs) - NAMED_RUNS} more" if len(runs) > NAMED_RUNS else ""
    return f"name one of the runs in it: {', '.join(map(str, runs[-NAMED_RUNS:]))}{more}"


def checked_config(flags: Mapping[str, Any], place: str) -> Config:
    """Return the Config of flags that another run stored. Raises UserError if a value is impossible.

    Args:
        flags: by name; those that are missing have their defaults.
        place: where they were stored, for the message.
    """
    values: dict[str, Any] = {name: field.default for name, field in FIELDS.items()}
    values |= checked_flags(flags, place)
    _check_ranges(values, place)
    return Config(**values)


def _check_ranges(flags: Mapping[str, Any], place: str) -> None:
    try:
        for name, value in flags.items():
            check_value(name, value)
    except UserError as error:
        raise UserError(f"{place} is damaged: {error}") from error


def checked_flags(flags: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return flags that another run stored, with today's names and their types checked. Raises UserError."""
    return {name: _stored_value(place, name, value) for name, value in with_todays_names(flags).items()}


def with_todays_names(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags that another run stored; a renamed flag's former name is its alias."""
    return {RENAMED.get(name, name): value for name, value in flags.items()}


def _stored_value(place: str, name: str, value: Any) -> Any:
    """Return a flag's value as read from JSON, after checking its type."""
    if name not in TYPES:
        raise UserError(f"{place} has a flag {name!r} that this version does not know; use its version")
    kind = TYPES[name]
    if value is None and FIELDS[name].metadata["derived"]:
        return None
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))
    numbers = {int: type(value) is int, float: _is_number(value), tuple[float, float]: is_pair}
    fits = numbers[kind] if kind in numbers else isinstance(value, kind)
    if not fits:
        raise UserError(f"{place} is damaged: {name} is {reprlib.repr(value)}; restore it, or start a new run")
    if is_pair:
        return tuple(map(float, value))
    return float(value) if kind is float else value


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) <= MAX_INTEGER)
