"""evaluation.json: what evaluate.py played, and what plot.py and report.py make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate
from errors import UserError
from evaluation.record import RECORD_FILE, EvaluationRecord, check_episodes_alike, read_evaluation_record
from tests.support.disk import Crash


def test_what_is_recorded(run_evaluate: Callable[[str], Path], pretrained: Path) -> None:
    """The run, what was asked for, the run's flags with the length that was played, and the environment."""
    out = run_evaluate("--no_video --episodes 2 --time_limit 60 --skills 1,3")
    text = (out / RECORD_FILE).read_text()
    stored = json.loads(text)
    assert str(pretrained.parent) not in text.replace("work_dir", ""), "no path of this machine"
    assert stored["step"] == 120
    assert {"versions", "renderer", "device", "threads", "git_commit"} <= stored.keys()
    record = read_evaluation_record(out)
    assert record is not None
    assert record.run == "/".join(pretrained.parts[-3:])
    assert record.command.startswith(f"evaluate.py {record.run} --")
    assert {word for word in record.command.split() if word.startswith("--")} == {
        *("--no_video", "--episodes", "--time_limit", "--skills", "--device")
    }
    assert (record.flags["num_skills"], record.flags["time_limit"]) == (4, 60)


@pytest.mark.parametrize("line", ["--skill_schedule 1:2", "--imitate {npz}"])
def test_other_kinds_are_recorded_too(run_evaluate: Callable[[str], Path], tmp_path: Path, line: str) -> None:
    npz = tmp_path / "given.npz"
    (run_evaluate("--no_video --skills 2 --save_trajectories") / "skill2_episode0.npz").rename(npz)
    record = read_evaluation_record(run_evaluate(f"--no_video {line.format(npz=npz)}"))
    assert record is not None
    assert line.format(npz=npz.name) in record.command


def test_files_of_an_earlier_evaluation_do_not_stay(run_evaluate: Callable[[str], Path]) -> None:
    """They would be taken for those of the new one. Trajectories, and what others wrote, stay."""
    first = run_evaluate("--video_size 32 --skills best --save_trajectories")
    (first / "notes.txt").write_text("mine")
    (npz,) = first.glob("*.npz")
    out = run_evaluate("--no_video --skills 1,2")
    assert {path.name for path in out.iterdir()} == {
        *("skills.csv", "deciles.csv", "summary.csv", RECORD_FILE, "notes.txt", npz.name)
    }


def test_files_of_others_stay(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds a file of the same name, and no record of an evaluation, is refused."""
    (tmp_path / "skills.csv").write_text("mine")
    assert evaluate.main([str(pretrained), "--no_video", "--skills", "1", "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} holds skills.csv, which may be yours" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("skills.csv", "mine")]


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("fails", ["evaluation.command.write_table", "evaluation.command.print_table"])
def test_an_evaluation_that_failed_can_be_repeated(
    run_evaluate: Callable[[str], Path], tmp_path: Path, there_before: bool, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is that of the files in the folder: without a new file it is the earlier one, or none."""
    line = "--no_video --skills 1,2"
    earlier = (run_evaluate("--no_video --skills 3") / RECORD_FILE).read_bytes() if there_before else None
    with monkeypatch.context() as patch:
        patch.setattr(fails, crash)
        with pytest.raises(Crash):
            run_evaluate(line)
    out = tmp_path / "out"
    if fails.endswith("write_table"):
        assert (out / RECORD_FILE).read_bytes() == earlier if there_before else not out.exists()
    else:
        assert json.loads((out / RECORD_FILE).read_text())["arguments"]["skills"] == "1,2"
    assert run_evaluate(line) == out


def crash(*_: object, **__: object) -> None:
    raise Crash


def test_the_runs_own_length_is_no_other_length(run_evaluate: Callable[[str], Path]) -> None:
    """An episode of the fake environment has 30 frames."""
    limits = [read_evaluation_record(run_evaluate(f"--no_video --time_limit {frames}")) for frames in (30, 60)]
    assert [record and record.flags["time_limit"] for record in limits] == [None, 60]


def test_a_length_below_the_action_repeat(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(pretrained), "--time_limit", "2", "--out", str(tmp_path / "out")]) == 2
    assert "--time_limit must be at least 3, the run's action repeat; got 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_of_older_versions_have_no_record(tmp_path: Path) -> None:
    assert read_evaluation_record(tmp_path) is None
    check_episodes_alike(tmp_path, None, [("a", {"time_limit": 1})])


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"flags": 1}', '{"flags": {"lr": "x"}}', '{"flags": {}}', '{"flags": {}, "run": "a"}']
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(UserError, match=rf"--evaluation: {tmp_path / RECORD_FILE} is damaged.*run evaluate\.py again"):
        read_evaluation_record(tmp_path)


@pytest.mark.parametrize(
    ("flags", "other"),
    [
        ({"env": "walker_walk", "time_limit": 200}, "--env cartpole_swingup, those of 'a' walker_walk"),
        ({"env": "cartpole_swingup", "time_limit": 200}, "--time_limit 400, those of 'a' 200"),
        ({"env": "cartpole_swingup", "time_limit": None}, "--time_limit 400, those of 'a' the task's own"),
        ({"env": "cartpole_swingup", "time_limit": 1000}, "--time_limit 400, those of 'a' the task's own"),
        ({"env": "cartpole_swingup", "time_limit": 400, "lr": 1.0}, None),
        ({}, None),
    ],
)
def test_episodes_of_another_kind(tmp_path: Path, flags: dict[str, Any], other: str | None) -> None:
    record = EvaluationRecord("runs/x/y", {}, {"env": "cartpole_swingup", "time_limit": 400, "lr": 0.001})
    if other is None:
        check_episodes_alike(tmp_path, record, [("'a'", flags)])
        return
    with pytest.raises(UserError, match=f"--evaluation {tmp_path}: its episodes have {other}; name a folder"):
        check_episodes_alike(tmp_path, record, [("'a'", flags)])
