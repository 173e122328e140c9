"""`--track`: real records by Weights & Biases and Trackio, both without a network."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import sqlite3
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import train
from drq import DrQAgent
from running.tracker import Tracker
from tests.support.labs import TINY, Fakes
from tests.support.processes import SMALL, Child, Launch, launching, run_folder
from tests.support.runs import rows

VIDEOS = {"video/skill0", "video/skill1", "video/skills"}
PICTURES = {"skills/confusion_matrix", "skills/contact_sheet", "skills/trajectories"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Records stay in tmp_path, and no account or setting of this machine is used."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    yield from launching(Child, tmp_path)


def logged_by_trackio(folder: Path) -> list[tuple[str, int, str, Any]]:
    """Return the record of name, step, tag and value of everything in the only database."""
    (path,) = folder.glob("*.db")
    with sqlite3.connect(path) as database:
        lines = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    return [(run, step, tag, value) for run, step, text in lines for tag, value in json.loads(text).items()]


def stop_and_resume(launch: Launch, line: str, work_dir: Path) -> Path:
    """Stop a run of two skills by a signal after its third episode and resume it to its end. Return its folder."""
    child = launch(f"{SMALL} --save_video true --work_dir {work_dir} {line}")
    child.until_episode(3)
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM, child.stderr
    folder = run_folder(work_dir)
    launch(f"--resume {folder}").finish()
    return folder


@pytest.mark.slow
def test_trackio_has_the_numbers_of_the_tables(launch: Launch, tmp_path: Path) -> None:
    folder = stop_and_resume(launch, "--track trackio", tmp_path / "runs")
    logged = logged_by_trackio(tmp_path / "trackio")
    assert {run.startswith(f"{folder.name}-") for run, *_ in logged} == {True}
    assert len({run for run, *_ in logged}) == 1
    returns = {(step, value) for _, step, tag, value in logged if tag == "train/episode_reward"}
    assert returns == {(int(row["step"]), float(row["episode_reward"])) for row in rows(folder / "train.csv")}
    bounds = {(step, value) for _, step, tag, value in logged if tag == "eval/mutual_information_bound"}
    assert bounds == {(int(row["step"]), float(row["mutual_information_bound"])) for row in rows(folder / "eval.csv")}
    of_videos = {step for _, step, tag, _ in logged if tag == "video/skill1"}
    assert of_videos == {int(row["step"]) for row in rows(folder / "eval.csv")}
    assert {tag for *_, tag, _ in logged} >= VIDEOS | PICTURES
    files = [value["file_path"] for *_, value in logged if isinstance(value, dict)]
    assert files
    assert all((tmp_path / "trackio" / "media" / name).stat().st_size > 100 for name in files)


@pytest.mark.slow
def test_wandb_continues_its_record(launch: Launch, tmp_path: Path) -> None:
    """A resumed run writes to the same record, which wandb joins by its id."""
    folder = stop_and_resume(launch, "--track wandb", tmp_path / "runs")
    records = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(records) == 2
    assert len({path.stem for path in records}) == 1
    for path in records:
        content = path.read_bytes()
        assert all(tag.encode() in content for tag in ("train/episode_reward", "eval/effective_skills", *PICTURES))
        videos = {file.name.partition("_")[0] for file in path.parent.glob("files/media/videos/video/*.mp4")}
        assert {f"video/{name}" for name in videos} == VIDEOS


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_record_that_fails_does_not_stop_training(
    package: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tracker = Tracker(package, tmp_path, group="cartpole_swingup", flags={"seed": 1}, run_id=None)
    capsys.readouterr()
    tracker.scalars("train", {"episode_reward": 1.5}, 1000)
    tracker.video("video/skill0", tmp_path / "missing.mp4", 1000)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: no more records for {package}: ")
    tracker.image("skills/a", np.zeros((8, 8, 3), np.uint8), 2000)
    tracker.close(failed=False)
    assert not capsys.readouterr().err


def test_trackio_cannot_write(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would warn of every picture."""
    media = import_module("trackio.utils").MEDIA_DIR
    media.mkdir(parents=True, exist_ok=True)
    (media / "blocked").touch()
    monkeypatch.setenv("TRACKIO_PROJECT", "blocked")
    tracker = Tracker("trackio", tmp_path, group="cartpole_swingup", flags={}, run_id=None)
    for step in (1000, 2000):
        tracker.image("skills/a", np.zeros((8, 8, 3), np.uint8), step)
    tracker.close(failed=False)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: no more records for trackio: trackio.log() skipped metric 'skills/a': ")


@pytest.mark.parametrize("fails", [False, True])
def test_the_record_of_a_run_that_fails(
    fails: bool, fakes: Fakes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """wandb marks it as failed. The line that says why is the last one."""
    wandb, codes = import_module("wandb"), []

    def finish(exit_code: int | None = None) -> None:
        codes.append(exit_code)
        print("the tracker's farewell", file=sys.stderr)
        wandb.run.finish(exit_code)

    def update(*_: Any) -> Any:
        raise MemoryError

    fakes()
    monkeypatch.setattr(wandb, "finish", finish)
    if fails:
        monkeypatch.setattr(DrQAgent, "update", update)
    assert train.main(shlex.split(f"{TINY} --work_dir {tmp_path / 'runs'} --track wandb")) == int(fails)
    assert codes == [int(fails)]
    assert capfd.readouterr().err.splitlines()[-1].startswith("train.py: error: ") == fails


def test_the_random_stream_stays_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trackio's imports draw from it, but only once in a process."""
    package, before = ModuleType("trackio"), random.getstate()
    package.init = lambda **_: random.random()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", package)
    Tracker("trackio", tmp_path, group="cartpole_swingup", flags={}, run_id=None)
    assert random.getstate() == before


@pytest.mark.slow
def test_a_run_continues_without_its_tracker(launch: Launch, tmp_path: Path) -> None:
    launch(f"{SMALL} --num_train_steps 24 --track wandb --work_dir {tmp_path / 'runs'}").finish()
    folder = run_folder(tmp_path / "runs")
    launch(f"--resume {folder} --num_train_steps 32 --track none").finish()
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


def test_without_an_account_nothing_is_made(launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    child = launch(f"{SMALL} --track wandb --work_dir {tmp_path / 'runs'}")
    assert child.wait() == 2
    assert child.last_line.startswith("train.py: error: --track wandb: ")
    assert child.last_line.endswith("; fix that, or choose --track none")
    assert not (tmp_path / "runs").exists()
