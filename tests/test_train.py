"""train.py as a command: its exit codes and messages. Runs are played on fake environments."""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from diayn import DIAYNAgent
from drq import DrQAgent
from errors import RenderingError, UserError
from replay_buffer import Batch, ReplayBuffer
from running.checkpoint import Checkpoints
from tests.support.disk import copy_of, failing, no_space
from tests.support.labs import FINISHED_STEPS, TINY, Fakes
from tests.support.paths import ROOT
from tests.support.program import assert_refused, resume
from tests.support.runs import RecordingEnv, rows


def words(line: str, work_dir: Path) -> list[str]:
    return shlex.split(f"{TINY} --work_dir {work_dir} {line}")


def test_main(fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes()
    assert train.main(words("--eval_frequency 20", tmp_path)) == 0
    (folder,) = tmp_path.glob("*/2*")
    out, _ = capsys.readouterr()
    assert str(folder) in out
    assert "a fake renderer" in out
    assert re.findall(r"^\| (\w+) +\| E: (\d+) \| S: (\d+) \| R: ", out, re.MULTILINE) == [
        ("eval", "0", "0"),
        ("train", "1", "40"),
        ("train", "2", "80"),
        ("eval", "2", "80"),
        ("train", "3", "120"),
        ("eval", "3", "120"),
    ]


# -- stops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_the_run(
    number: signal.Signals, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any
) -> None:
    """The step is finished and saved, and what was written is complete."""
    step = RecordingEnv.step

    def interrupted(env: RecordingEnv, action: np.ndarray) -> Any:
        if (len(env.played), env.steps) == (3, 4):
            signal.raise_signal(number)
        return step(env, action)

    fakes(episode_length=10)
    monkeypatch.setattr(RecordingEnv, "step", interrupted)
    assert train.main(words("", tmp_path)) == 128 + number
    (file,) = tmp_path.glob("*/2*/train.csv")
    assert [row["step"] for row in rows(file)] == ["40", "80"]
    assert file.read_text().endswith("\n")
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped at frame 100, which is saved; resume with: ")
    assert last.endswith(f" --resume {file.parent}")


@pytest.mark.parametrize("in_an_import", [False, True])
def test_a_signal_before_the_run_starts(
    in_an_import: bool,
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is left behind. A C extension whose import is interrupted raises ImportError."""

    def interrupted() -> Any:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            if in_an_import:
                raise UserError("a package cannot be loaded") from None
            raise

    fakes()
    monkeypatch.setattr(train, "choose_renderer", interrupted)
    assert train.main(words("", tmp_path / "runs")) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped before the run started\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.slow
def test_a_pipe_whose_reader_exits(stream: str, tmp_path: Path) -> None:
    """The run continues to its end."""
    flags = words("--env pendulum_swingup --time_limit 40", tmp_path / "runs")
    reader, writer = os.pipe()
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writer}
    child = subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, **streams)
    os.close(writer)
    os.close(reader)
    assert child.wait() == 0
    assert list(tmp_path.glob("runs/*/2*/checkpoint/manifest.json"))


# -- failures ----------------------------------------------------------------------------------------------------------


def test_no_renderer(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Any:
        raise RenderingError("no renderer works\nhere")

    fakes()
    monkeypatch.setattr(train, "choose_renderer", fail)
    assert train.main(words("", tmp_path / "runs")) == 2
    assert capsys.readouterr().err == "train.py: error: no renderer works\\nhere\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), "CPU"])
def test_an_update_without_memory(
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception | str,
) -> None:
    """One line names the flag; the CPU's error is torch's own."""

    def fail(agent: DrQAgent, batch: Batch) -> Any:
        if isinstance(error, Exception):
            raise error
        return torch.empty(1 << 60, dtype=torch.uint8)

    fakes()
    monkeypatch.setattr(DrQAgent, "update", fail)
    assert train.main(words("", tmp_path)) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "there is not enough memory for an update of --batch_size 4; choose a smaller size" in printed


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (DrQAgent, "act"),
        (DrQAgent, "assess"),
        (DrQAgent, "is_finite"),
        (DIAYNAgent, "intrinsic_return"),
        (ReplayBuffer, "sample"),
    ],
)
def test_a_device_without_memory_anywhere(
    owner: type,
    name: str,
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    fakes()
    monkeypatch.setattr(owner, name, fail)
    assert train.main(words("--eval_frequency 10", tmp_path)) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert re.search(
        r"there is not enough memory for (training|an update of --batch_size 4); choose a smaller", printed
    )


def test_a_full_disk_at_a_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the file and the command that resumes; the checkpoint before is still there."""
    write = Checkpoints.write

    def full(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        with failing(3, no_space()):
            write(self, *args, **kwargs)

    def saved_step(folder: Path) -> int:
        reader = Checkpoints(folder)
        assert reader.read() is not None
        assert list(reader.replay_pieces())
        return reader.step

    with copy_of(finished) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", full)
            answer = resume(folder, "--num_train_steps", "40")
        assert_refused(answer, "full", str(folder), f"--resume {folder}")
        assert saved_step(folder) == FINISHED_STEPS
        assert resume(folder) == (0, [])
        assert saved_step(folder) == 40


def test_a_file_that_cannot_be_written(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the run, which the message names. Other errors are not the user's, and are raised."""

    def denied(name: str) -> Any:
        def write(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

        return write

    with copy_of(finished) as folder:
        path = str(folder / "checkpoint" / "state_5.pt")
        monkeypatch.setattr(Checkpoints, "write", denied(path))
        answer = resume(folder, "--num_train_steps", "40")
        assert_refused(answer, f"{path}: Permission denied; fix that, then resume with", f"--resume {folder}")
        monkeypatch.setattr(Checkpoints, "write", denied("/elsewhere"))
        with pytest.raises(PermissionError):
            resume(folder, "--num_train_steps", "40")
