"""The start of a run: what is printed, what is refused, and that nothing half-made stays."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import envs.make
from dmc import DMCEnv
from envs.renderer import RendererInfo
from errors import UserError
from running import start as start_module
from running.loop import train
from running.start import open_run
from running.stored_config import CONFIG_FILE
from tests.support.command_lines import WORDS
from tests.support.disk import copy_of, no_space, snapshot
from tests.support.fuzz import fuzz
from tests.support.labs import TINY, Fakes, Prepare
from tests.support.program import assert_refused, call, parse, resume
from tests.support.runs import start_run

TASKS = ("../../x", "/x/y", "..", ".", "", "cartpole_swingup/../../x", "dmc_../x", "~/x", "a\nb", "x" * 5000, "a\0b")
TASK_PARTS = ("..", "/", "cartpole", "_", "swingup", "dmc_", "~", "\n", " ", "é", "\0", "$HOME")


def test_a_run_prints_its_device_and_renderer(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    lab = prepare()
    printed = capsys.readouterr().out
    assert "device: cpu; renderer: fake, a fake renderer" in printed
    assert f"outputs: {lab.folder}" in printed


def test_a_budget_without_updates_is_a_warning(
    fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes()
    for line, first in (
        ("29", None),
        ("30", 30),
        ("21 --agent_steps_per_update 29", None),
        ("21 --agent_steps_per_update 20", 40),
        ("0 --agent_steps_per_update 29", None),
        ("0 --agent_steps_per_update 30", 30),
    ):
        start_run(f"{TINY} --num_seed_steps {line} --work_dir {tmp_path}").close()
        warning = f"warning: there will be no updates: the first comes after {first} agent steps, the budget is 30"
        assert (warning in capsys.readouterr().err) == (first is not None)


def test_a_run_that_is_not_closed_keeps_its_files(fakes: Fakes, tmp_path: Path) -> None:
    """For example in a notebook."""
    fakes()
    run = start_run(f"{TINY} --work_dir {tmp_path / 'runs'}")
    train(run)
    folder = run.folder
    run.logger.close()
    del run
    gc.collect()
    assert (folder / "checkpoint" / "manifest.json").exists()
    assert (folder / "train.csv").exists()


def test_nothing_half_made_stays(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder nor its parents, when writing to it fails."""
    fakes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(start_module, "write_config", fail)
    with pytest.raises(UserError, match="--work_dir"):
        start_run(f"{TINY} --work_dir {tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


def test_software_rendering_beside_a_gpu(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is slow, so there is a warning; on a machine without a GPU there is none."""
    fakes()
    renderer = RendererInfo("osmesa", "llvmpipe")
    assert renderer.is_software
    run = open_run(parse(f"{TINY} --work_dir {tmp_path}"), renderer)
    run.close()
    assert capsys.readouterr().err == ""
    run.config = dataclasses.replace(run.config, device="cuda")
    start_module.print_settings(run, renderer, "cuda")
    assert "warning: rendering in software beside a GPU; MUJOCO_GL=egl is faster" in capsys.readouterr().err


def test_refused_input_is_answered_in_one_line(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where it is refused late: no warning and no line about the device stands before it."""
    fakes()
    monkeypatch.setattr(start_module, "choose_device", lambda wanted: "cpu")
    for line in ("--hidden_dim 1e6", "--replay_buffer_capacity 3", "--num_train_steps 1 --batch_size 1e10"):
        with pytest.raises(UserError):
            open_run(parse(f"{TINY} --work_dir {tmp_path} {line}"), RendererInfo("osmesa", "llvmpipe"))
        assert tuple(capsys.readouterr()) == ("", "")


@fuzz(40)
@given(place=WORDS)
@example(place="..")
@example(place="x" * 5000)
@pytest.mark.usefixtures("fake_program")
def test_any_folder_to_resume(place: str) -> None:
    """A folder that holds no run is refused, and nothing is made in it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = call([f"--resume={place}"])
        assert_refused(answer, "--resume")
        assert len(answer.lines) == 1
        assert not any(Path(folder).iterdir())


@fuzz(25)
@given(task=st.sampled_from(TASKS) | st.lists(st.sampled_from(TASK_PARTS), max_size=6).map("".join))
@pytest.mark.usefixtures("renderer", "fake_program")
def test_task_that_is_a_path(task: str) -> None:
    """There is no such task, so it is refused, and nothing is made in --work_dir or elsewhere."""
    if task.removeprefix("dmc_").removeprefix("dmc_") == "cartpole_swingup":
        return
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.make, "DMCEnv", DMCEnv)
        work_dir = Path(place) / "a" / "b" / "runs"
        answer = call([*shlex.split(TINY), f"--env={task}", "--work_dir", str(work_dir)])
        assert_refused(answer, "--env")
        assert not any(Path(place).iterdir())


def test_a_full_disk_on_resume(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is changed, and the run can be resumed when there is room."""
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == CONFIG_FILE:
            raise no_space()
        replace(source, target)

    with copy_of(finished) as folder:
        before = snapshot(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            assert_refused(resume(folder, "--num_train_steps", "40"), "No space left on device")
        assert snapshot(folder) == before
        assert resume(folder, "--num_train_steps", "40") == (0, [])


# -- a refused resume changes nothing ----------------------------------------------------------------------------------


def blocked_by_a_file(path: Path) -> None:
    """Put a file in the place of a folder."""
    if path.is_dir():
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
    path.write_text("mine")


def blocked_by_a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def blocked_by_a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def blocked_by_a_link(path: Path) -> None:
    """Put a link to nowhere in its place."""
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere/at/all")


TB = "--log_save_tb true"
BLOCKED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    **{f"{name}: a folder": (blocked_by_a_folder, name, "") for name in ("train.csv", "eval.csv", "skills.csv")},
    "skills.csv: a pipe": (blocked_by_a_pipe, "skills.csv", ""),
    "skills.csv: a link": (blocked_by_a_link, "skills.csv", ""),
    "tb: a file": (blocked_by_a_file, "tb", TB),
    "tb: a link": (blocked_by_a_link, "tb", TB),
    "events: a folder": (lambda path: path.mkdir(parents=True), "tb/events.out.tfevents.1", ""),
    "skills: a file": (blocked_by_a_file, "skills", ""),
    "video: a file": (blocked_by_a_file, "video", "--save_video true"),
}


@pytest.fixture
def cut_back(fakes: Fakes, tmp_path: Path) -> Path:
    """The folder of a run with TensorBoard whose files have all grown since its last checkpoint."""
    fakes()
    words = shlex.split(f"{TINY} --eval_frequency 20 --log_save_tb true --work_dir {tmp_path / 'runs'}")
    assert call(words).code == 0
    (folder,) = (tmp_path / "runs").glob("*/2*")
    for path in (*folder.glob("*.csv"), *folder.glob("tb/*")):
        with path.open("ab") as file:
            file.write(b"more\n")
    return folder


def assert_refused_unchanged(folder: Path, name: str, line: str) -> None:
    before = snapshot(folder)
    answer = resume(folder, "--num_train_steps", "40", *line.split())
    assert_refused(answer)
    assert str(folder / name) in answer.lines[-1]
    assert snapshot(folder) == before


@pytest.mark.parametrize("case", BLOCKED)
def test_a_refused_resume_changes_nothing(cut_back: Path, case: str) -> None:
    """Neither of the files that are cut back, although only the last one cannot be written. Then the run is resumed."""
    block, name, line = BLOCKED[case]
    if case.startswith("tb: a link"):
        for path in (cut_back / "tb").iterdir():
            path.unlink()
        (cut_back / "tb").rmdir()
    kept = (cut_back / name).read_bytes() if (cut_back / name).is_file() else None
    block(cut_back / name)
    assert_refused_unchanged(cut_back, name, line)
    place = cut_back / name
    place.rmdir() if place.is_dir() else place.unlink()
    if kept is not None:
        place.write_bytes(kept)
    assert resume(cut_back, "--num_train_steps", "40", *line.split()).code == 0


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let nobody change the file or the folder, not even root."""
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", str(path)], capture_output=True).returncode:
        pytest.skip("files cannot be made immutable here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


IMMUTABLE = ("train.csv", "skills.csv", CONFIG_FILE, "tb", "tb/*", "skills", "checkpoint", "checkpoint/state_*")


@pytest.mark.parametrize("name", [*IMMUTABLE, "checkpoint/manifest.json"])
def test_what_is_immutable_is_refused(cut_back: Path, name: str) -> None:
    (path,) = cut_back.glob(name)
    with immutable(path):
        assert_refused_unchanged(cut_back, str(path.relative_to(cut_back)), TB)
    assert resume(cut_back, "--num_train_steps", "40", "--log_save_tb", "true").code == 0


@pytest.mark.parametrize("name", ["tb", "checkpoint", "skills", "skills.csv", CONFIG_FILE])
def test_what_is_mounted_read_only_is_refused(cut_back: Path, name: str) -> None:
    place = str(cut_back / name)
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", place, place], capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        assert_refused_unchanged(cut_back, name, TB)
    finally:
        subprocess.run(["umount", place], check=True)


def test_an_unfinished_video_that_stays_is_no_reason_to_stop(cut_back: Path) -> None:
    (cut_back / "video" / ".0.partial.mp4").mkdir(parents=True)
    assert resume(cut_back, "--num_train_steps", "40").code == 0
