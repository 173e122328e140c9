"""A run's folder and its config.json."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

import evaluate
import plot
import train
from config import Config
from envs.renderer import RendererInfo
from errors import UserError
from running.folder import PARTS, git_commit, link_latest, new_run_folder, update_latest, write_config
from running.stored_config import CONFIG_FILE, real_run
from tests.support.disk import copy_of, failing, no_space, read_json, snapshot
from tests.support.labs import TINY, Prepare
from tests.support.paths import ROOT
from tests.support.program import call, parse, resume
from tests.support.runs import RENDERER, SMALL_RUN

GIT = ["-c", "user.name=a", "-c", "user.email=a@b"]

# -- the folder --------------------------------------------------------------------------------------------------------


def test_run_folder(prepare: Prepare, tmp_path: Path) -> None:
    """It is runs/<env>/<timestamp>_seed<seed>; runs that start in the same second have different ones."""
    first, second = prepare("--task dmc_walker_run --seed 7"), prepare("--task dmc_walker_run --seed 7")
    assert first.folder.parent == second.folder.parent == tmp_path / "runs" / "walker_run"
    for lab in (first, second):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_seed7(-run2)?", lab.folder.name)
    assert first.folder != second.folder


@pytest.mark.usefixtures("fake_envs")
def test_name_notes_and_latest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is taken gets a number; `latest` leads to the newest run."""
    line = f"{SMALL_RUN} --num_train_steps 5 --eval_frequency 0 --snapshot_frequency 3 --work_dir {tmp_path}"
    for name in ("first", "first"):
        assert train.main(shlex.split(f"{line} --run_name {name} --notes 'a thought'")) == 0
    assert capsys.readouterr().err.count("warning: --run_name first is taken; this run is first-run2\n") == 1
    folder = tmp_path / "cartpole_swingup"
    assert sorted(path.name for path in folder.iterdir()) == ["first", "first-run2", "latest"]
    assert real_run(folder / "latest") == (folder / "first-run2").resolve()
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        real_run("a\0b")
    assert read_json(folder / "latest" / CONFIG_FILE)["flags"]["notes"] == "a thought"
    linked = {path.name for path in (folder / "latest").iterdir()}
    assert linked == {name for name in PARTS if (folder / "first-run2" / name).exists()} >= {"checkpoint", "snapshots"}


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x\ny"])
def test_names_that_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(["--run_name", name])
    assert "--run_name" in capsys.readouterr().err


def test_a_folder_whose_run_fails_to_start_is_removed(tmp_path: Path) -> None:
    """So are its parents, if they were made for it."""
    (tmp_path / "mine").mkdir()
    for work_dir, left in ((tmp_path / "new" / "runs", ["mine"]), (tmp_path / "mine", ["mine"])):
        config = parse(f"--work_dir {work_dir}")
        with pytest.raises(KeyError), new_run_folder(config) as folder:  # noqa: PT012
            (folder / "file").write_text("")
            raise KeyError
        assert [path.name for path in tmp_path.rglob("*")] == left


@pytest.mark.parametrize("name", ["a b", "é", "-x", "$HOME", "a/../b", "a'b", "a\nb", "\U0001f600"])
@pytest.mark.usefixtures("fake_program")
def test_odd_work_dir(tmp_path: Path, name: str) -> None:
    """Everything is written below it, and the run can be resumed there."""
    work_dir = tmp_path / "new" / name
    words = [*TINY.split(), "--num_train_steps=12", "--num_seed_steps=12", f"--work_dir={work_dir}"]
    assert call(words).code == 0
    (folder,) = work_dir.glob("*/2*")
    outside = {path for path in tmp_path.rglob("*") if not path.resolve().is_relative_to(work_dir.resolve())}
    assert all(path.is_dir() for path in outside)
    assert call([f"--resume={folder}"]) == (0, [])


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    """To its parts, also those that come later. TensorBoard finds each run once."""
    (tmp_path / "latest").symlink_to("first")  # of an older version
    for name in ("first", "second"):
        (tmp_path / name / "tb").mkdir(parents=True)
        (tmp_path / name / "tb" / "events.out.tfevents.1").write_text("")
        (tmp_path / name / CONFIG_FILE).write_text(name)
        link_latest(tmp_path / name)
        assert [path.name for path in (tmp_path / "latest").iterdir()] == [CONFIG_FILE], "no other part is there yet"
        for part in ("video", *(["snapshots"] if name == "first" else [])):
            (tmp_path / name / part).mkdir()
        (tmp_path / name / "video" / "0.mp4").write_text(name)
        update_latest(tmp_path / name)
        update_latest(tmp_path / "first")  # another run, which is still going on
        assert real_run(tmp_path / "latest") == (tmp_path / name).resolve()
        assert (tmp_path / "latest" / "video" / "0.mp4").read_text() == name
        assert (tmp_path / "latest" / "snapshots").is_symlink() == (name == "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]
    assert all(path.is_symlink() and path.name in PARTS for path in (tmp_path / "latest").iterdir())
    shown = {Path(folder).parent.name for folder in GetLogdirSubdirectories(str(tmp_path))}
    assert shown == {"first", "second"}


@pytest.mark.parametrize("own", ["latest", "latest/notes"])
def test_a_users_own_latest_is_kept(own: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text("mine")
    (tmp_path / "run" / CONFIG_FILE).write_text("")
    link_latest(tmp_path / "run")
    update_latest(tmp_path / "run")
    assert (tmp_path / own).read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 3 + own.count("/")


def test_a_link_to_the_run_itself_stays(tmp_path: Path) -> None:
    """As older versions made it. Nothing is written through it."""
    (tmp_path / "run" / "video").mkdir(parents=True)
    (tmp_path / "run" / CONFIG_FILE).write_text("text")
    (tmp_path / "latest").symlink_to("run")
    update_latest(tmp_path / "run")
    assert (tmp_path / "run" / CONFIG_FILE).read_text() == "text"
    assert not any(path.is_symlink() for path in (tmp_path / "run").iterdir())


@pytest.mark.usefixtures("fake_envs")
def test_latest_is_taken_for_the_run_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By every program, and it is not listed beside the run."""
    line = f"{SMALL_RUN} --num_skills 2 --num_train_steps 15 --work_dir {tmp_path} --run_name run"
    assert train.main(shlex.split(line)) == 0
    latest, out = tmp_path / "cartpole_swingup" / "latest", tmp_path / "out"
    assert evaluate.main([str(latest), "--no_video", "--out", str(out)]) == 0
    assert plot.main([str(tmp_path), "--out", str(out)]) == 0
    assert train.main(["--resume", str(latest), "--num_train_steps", "20"]) == 0
    printed = capsys.readouterr()
    assert f"outputs: {latest.with_name('run')}\n" in printed.out
    assert "is left out" not in printed.err
    assert train.main(shlex.split(f"{line} --finetune_from {latest}")) == 0
    assert read_json(latest / CONFIG_FILE)["flags"]["finetune_from"] == str(latest.with_name("run"))
    for place in (latest.parent, tmp_path):
        with pytest.raises(SystemExit):
            train.parse_args(["--resume", str(place)])
        assert f"name one of the runs in it: {latest.with_name('run')}, {latest.with_name('run-run2')}" in (
            capsys.readouterr().err
        )


# -- config.json -------------------------------------------------------------------------------------------------------


def test_config_json(prepare: Prepare) -> None:
    lab = prepare("--num_skills 3 --lr 0.002 --log_std_bounds -8 1 --task dmc_walker_run")
    record = read_json(lab.folder / CONFIG_FILE)
    flags = record["flags"]
    assert flags.keys() == {field.name for field in dataclasses.fields(Config)}
    given = {"num_skills": 3, "lr": 0.002, "log_std_bounds": [-8.0, 1.0], "env": "walker_run", "hidden_dim": 16}
    derived = {"diayn_intrinsic_reward_coeff": 1.0, "temperature": "fixed", "extrinsic_reward_coeff": 0.0}
    assert {name: flags[name] for name in (*given, *derived)} == given | derived
    for package in ("torch", "numpy", "kornia", "dm_control", "mujoco", "gymnasium", "opencv-python", "tensorboard"):
        assert record["versions"][package] == version(package)
    assert {"scipy", "pandas", "imageio-ffmpeg", "psutil"} <= record["versions"].keys()
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["renderer"] == {"backend": "fake", "name": "a fake renderer"}
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        assert record["git_commit"].removesuffix("-dirty") == git.stdout.strip()
    else:
        assert record["git_commit"] is None


def test_the_commit_tells_changed_sources(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    (tmp_path / "train.py").write_text("1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *GIT, *words], check=True)
    clean = git_commit(tmp_path)
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "train.py").write_text("2\n")
    assert git_commit(tmp_path) == f"{clean}-dirty"


def test_every_resume_is_recorded_and_other_versions_cause_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renderer = RendererInfo("osmesa", "a renderer")
    write_config(parse("--device cpu"), tmp_path, renderer)
    path = tmp_path / CONFIG_FILE
    record = read_json(path)
    assert record["renderer"] == {"backend": "osmesa", "name": "a renderer"}
    record["versions"]["mujoco"] = "0.1"
    path.write_text(json.dumps(record))
    for frame in (100, 200):
        write_config(parse("--device cpu"), tmp_path, renderer, resumed_at=frame)
        assert "mujoco 0.1 -> " in capsys.readouterr().err
    resumed = read_json(path)["resumed"]
    assert [entry["frame"] for entry in resumed] == [100, 200]
    assert all(entry["versions"]["mujoco"] != "0.1" and entry["device"] == "cpu" for entry in resumed)


@pytest.mark.parametrize(
    ("stored", "warned"),
    [
        ({"threads": 64}, "threads 64 -> 1"),
        ({"threads": 1}, None),
        ({"threads": None}, "threads None -> 1"),
        ({"device": "NVIDIA H100", "threads": 2}, "device NVIDIA H100 -> cpu, threads 2 -> 1"),
        ({"device": "NVIDIA\nH100"}, r"device NVIDIA\nH100 -> cpu"),
        ({"versions": [], "device": "cpu"}, None),
        ({}, None),  # of an earlier version
    ],
)
def test_other_threads_or_another_device_cause_a_warning(
    stored: dict[str, object], warned: str | None, finished: Path
) -> None:
    assert torch.get_num_threads() == 1  # tests/conftest.py
    with copy_of(finished) as folder:
        record = read_json(folder / CONFIG_FILE)
        record = {name: value for name, value in record.items() if name not in ("threads", "device")}
        (folder / CONFIG_FILE).write_text(json.dumps(record | stored))
        words = "from here on, numbers may differ from those of an uninterrupted run"
        assert resume(folder) == (0, [f"warning: {warned}: {words}"] if warned else [])
        assert read_json(folder / CONFIG_FILE)["resumed"][-1]["threads"] == 1


def test_a_resume_records_what_it_changes(finished: Path) -> None:
    with copy_of(finished) as folder:
        before = read_json(folder / CONFIG_FILE)["flags"]
        assert resume(folder, "--num_train_steps", "50") == (0, [])
        record = read_json(folder / CONFIG_FILE)
        assert record["resumed"][-1]["flags"] == {"num_train_steps": 50, "num_train_frames": 200}
        assert record["flags"] == before | record["resumed"][-1]["flags"]


def test_a_full_disk_leaves_config_json(finished: Path) -> None:
    """It has the old text up to the moment at which the complete new one takes its place."""
    for moment in range(6):
        with copy_of(finished) as folder:
            config, before = parse(f"--resume {folder} --num_train_steps 40"), snapshot(folder)
            with failing(moment, no_space()) as moments, pytest.raises(OSError, match="No space") as caught:
                write_config(config, folder, RENDERER, resumed_at=100)
            assert Path(str(caught.value.filename)).parent == folder
            if "rename" in moments[:-1]:
                assert read_json(folder / CONFIG_FILE)["flags"]["num_train_steps"] == 40
                before[CONFIG_FILE] = (folder / CONFIG_FILE).read_bytes()
            assert snapshot(folder) == before
