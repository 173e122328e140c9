"""A run's folder, and config.json in it: what is needed to repeat the run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from config import Config
from envs.renderer import RendererInfo
from errors import one_line
from running.atomic_files import made_folder, read_file, write_file
from running.names import folder_name
from running.stored_config import CONFIG_FILE, LATEST, real_run

RECORDED_PACKAGES = (
    *("torch", "numpy", "kornia", "dm_control", "mujoco", "gymnasium", "opencv-python", "tensorboard"),
    *("imageio-ffmpeg", "scipy", "pandas", "matplotlib", "tqdm", "psutil"),
)
EXACT_PACKAGES = ("torch", "numpy", "dm_control", "mujoco")  # another version may compute other numbers
PARTS = (  # of a run's folder, to which `latest` has links; not tb/
    *(CONFIG_FILE, "train.csv", "eval.csv", "episodes.csv", "skills.csv"),
    *("skills", "video", "checkpoint", "snapshots"),
)


@contextmanager
def new_run_folder(config: Config) -> Iterator[Path]:
    """Make the folder <work_dir>/<env>/<run_name>; if the block fails, remove whatever was made."""
    parent = Path(config.work_dir) / folder_name(config.env)
    with made_folder(parent):
        folder = _make_unique(parent / (config.run_name or f"{datetime.now():%Y-%m-%d_%H-%M-%S}_seed{config.seed}"))
        try:
            if config.run_name not in (None, folder.name):
                print(f"warning: --run_name {config.run_name} is taken; this run is {folder.name}", file=sys.stderr)
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _make_unique(folder: Path) -> Path:
    """Make the folder, with a number appended to its name if that is taken."""
    name = folder.name
    for number in itertools.count(2):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
            folder = folder.with_name(f"{name}-run{number}")
        else:
            break
    return folder


def link_latest(folder: Path) -> None:
    """Let the folder `latest` beside the run's lead to it, if the disk has links. A user's own file or folder is kept.

    It has links to the parts of the run. A link to the run itself would show it in TensorBoard twice.
    """
    latest = folder.with_name(LATEST)
    if folder == latest:
        return
    with suppress(OSError):
        if latest.is_symlink():  # of an older version
            latest.unlink()
        latest.mkdir(exist_ok=True)
        _link_parts(latest, folder)


def update_latest(folder: Path) -> None:
    """Link the parts of the run that have appeared since `link_latest`, if `latest` still leads to the run."""
    latest = folder.with_name(LATEST)
    with suppress(OSError):
        if real_run(latest) == folder.resolve():
            _link_parts(latest, folder)


def _link_parts(latest: Path, folder: Path) -> None:
    """Link the parts that the run has, and remove links to others, unless `latest` has files of the user's own."""
    if not all(path.is_symlink() for path in latest.iterdir()):
        return
    for name in PARTS:
        link, target = latest / name, Path("..", folder.name, name)
        if not (folder / name).exists():
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or link.readlink() != target:
            aside = latest / f".{name}-{folder.name}"
            aside.unlink(missing_ok=True)  # of a process that was killed
            aside.symlink_to(target)
            try:
                os.replace(aside, link)
            except OSError:
                aside.unlink()


def write_config(
    config: Config, folder: Path, renderer: RendererInfo, resumed_at: int | None = None, **more: object
) -> None:
    """Write config.json: every flag, and what else is needed to repeat the run.

    Args:
        resumed_at: for a resumed run, its frame. The changed flags and the environment are appended to the record.
        more: further entries.
    """
    path = folder / CONFIG_FILE
    flags = {**dataclasses.asdict(config), "resume": None}
    environment = recorded_environment(config, renderer)
    record: dict[str, Any] = {"flags": flags, **environment, **more}
    if resumed_at is not None:
        before = json.loads(read_file(path))
        old = before.get("flags", {})
        changed = {name: value for name, value in json.loads(json.dumps(flags)).items() if old.get(name) != value}
        resumed = before.get("resumed")
        _warn_of_changes(before, environment)
        resumed = [
            *(resumed if isinstance(resumed, list) else []),
            {"frame": resumed_at, "flags": changed, **environment},
        ]
        record = {**before, **more, "flags": flags, "resumed": resumed}
    write_file(path, (json.dumps(record, indent=2) + "\n").encode())


def recorded_environment(config: Config, renderer: RendererInfo) -> dict[str, Any]:
    """Return the versions, renderer, device, threads and commit that the run uses."""
    versions = {"python": sys.version.split()[0]}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "versions": versions,
        "renderer": {"backend": renderer.backend, "name": renderer.name},
        "device": torch.cuda.get_device_name(config.device) if config.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),  # of torch, on the CPU
        "tf32": {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32},
        "git_commit": git_commit(Path(__file__).resolve().parent.parent),
    }


def _warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn if what the numbers depend on differs from the record of the run's start, as far as that goes."""
    old, new = (record["versions"] if isinstance(record.get("versions"), dict) else {} for record in (before, now))
    changed = [f"{name} {old[name]} -> {new[name]}" for name in EXACT_PACKAGES if old.get(name, new[name]) != new[name]]
    # On a CUDA device, the CPU's threads compute nothing that is learned.
    for name in ("device", "threads") if now["device"] == "cpu" else ("device",):
        if before.get(name, now[name]) != now[name]:
            changed.append(f"{name} {before[name]} -> {now[name]}")
    if changed:
        what = one_line(", ".join(changed))
        print(f"warning: {what}: from here on, numbers may differ from those of an uninterrupted run", file=sys.stderr)


def git_commit(program: Path) -> str | None:
    """Return the commit of the program, with "-dirty" if files differ from it; None outside a git repository."""
    command = ["git", "-C", str(program), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
