"""The record: sweep.json, summary.csv, and the progress read from the runs' files."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import sweep
from errors import UserError
from sweeping.record import Progress, Sweep, read_log, read_progress, resumed_sweep
from sweeping.view import status, table
from tests.support.damage import damaged_json, damaged_table
from tests.support.fuzz import check_all, fast_and_slow
from tests.support.program import call
from tests.support.sweeps import sweep_of_seeds


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = sweep_of_seeds(tmp_path)
    written.trials[0].state, written.trials[0].attempts, written.trials[1].message = "finished", 2, "one\ntwo"
    written.write()
    assert Sweep.read(tmp_path) == written


def test_unfinished_runs_of_a_resumed_sweep_wait(tmp_path: Path) -> None:
    written = sweep_of_seeds(tmp_path)
    for trial, state in zip(written.trials, ("finished", "failed"), strict=True):
        trial.state, trial.failures, trial.message = state, 2, "why"
    written.write()
    resumed = resumed_sweep(tmp_path, {"max_failures": 7, "cpus_per_run": 2.0})
    assert [(trial.state, trial.failures, trial.message) for trial in resumed.trials] == [
        ("finished", 2, "why"),
        ("waiting", 0, ""),
    ]
    assert (resumed.max_failures, resumed.cpus_per_run, resumed.gpus_per_run) == (7, 2.0, None)


def test_sweep_json_has_format_1(tmp_path: Path) -> None:
    """Sweeps that an earlier version wrote can be resumed."""
    written = sweep_of_seeds(tmp_path, seeds=[3], memory_per_run=1.5)
    written.write()
    assert json.loads((tmp_path / "sweep.json").read_text()) == {
        **{"format": 1, "cpus_per_run": 1.0, "gpus_per_run": None, "memory_per_run": 1.5, "max_failures": 1},
        "needs_memory": 1.0,
        "runs": [
            {
                **{"name": "run", "env": "cartpole_swingup", "settings": {"seed": "3"}, "arguments": ["--seed", "3"]},
                **{"frames": 4_000_000, "state": "waiting", "attempts": 0, "failures": 0, "seconds": 0.0, "host": ""},
                "message": "",
            }
        ],
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, "sweep.json is damaged") for text in ("", "[]", "{}", '{"format": 1, "runs": 3}')),
        ('{"format": 1, "runs": [{"x": 1}]}', "sweep.json is damaged"),
        ('{"format": 99}', "of another version"),
        (None, "there is no sweep.json in it"),
    ],
)
def test_an_unusable_record_is_refused(text: str | None, expected: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        Sweep.read(tmp_path)


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda r: r.update(runs=[]), "it has no runs", id="no runs"),
        pytest.param(lambda r: r.update(runs=None), "it has no runs", id="runs null"),
        pytest.param(lambda r: r["runs"].append(r["runs"][0]), "two runs have the same folder", id="a run twice"),
        pytest.param(lambda r: r["runs"][1].update(name="../../x"), r"runs\[1\].name must be letters", id="outside"),
        pytest.param(lambda r: r["runs"][1].update(env=".."), r"runs\[1\].env must be letters", id="env outside"),
        pytest.param(lambda r: r["runs"][1].update(name="x" * 999), "at most 200 bytes", id="long name"),
        pytest.param(lambda r: r["runs"][1].update(name=3), r"runs\[1\].name is 3", id="number for a name"),
        pytest.param(lambda r: r["runs"][0].update(progress=5), r"runs\[0\] is no run", id="what is only in memory"),
        pytest.param(lambda r: r["runs"][0].pop("frames"), r"runs\[0\] is no run", id="no frames"),
        pytest.param(lambda r: r["runs"][0].update(frames="many"), r"runs\[0\].frames is 'many'", id="frames in words"),
        pytest.param(lambda r: r["runs"][0].update(frames=-1), r"runs\[0\].frames is -1", id="negative frames"),
        pytest.param(lambda r: r["runs"][0].update(frames=True), r"runs\[0\].frames is True", id="frames true"),
        pytest.param(lambda r: r["runs"][0].update(failures=1.5), r"runs\[0\].failures is 1.5", id="half a failure"),
        pytest.param(lambda r: r["runs"][0].update(seconds=math.nan), r"runs\[0\].seconds is nan", id="seconds NaN"),
        pytest.param(lambda r: r["runs"][0].update(state="done"), r"runs\[0\].state is 'done'", id="unknown state"),
        pytest.param(lambda r: r["runs"][0].update(arguments=[1]), r"runs\[0\].arguments", id="number for a word"),
        pytest.param(lambda r: r["runs"][0].update(arguments=["\0"]), r"runs\[0\].arguments", id="NUL"),
        pytest.param(lambda r: r["runs"][0].update(host="\ud800"), r"runs\[0\].host", id="lone surrogate"),
        pytest.param(lambda r: r["runs"][0].update(settings={"seed": 1}), r"runs\[0\].settings", id="setting a number"),
        pytest.param(lambda r: r["runs"][0].update(settings={}), "the runs have different flags", id="other flags"),
        pytest.param(lambda r: r.update(runs=[[]]), r"runs\[0\] is no run", id="list for a run"),
        pytest.param(lambda r: r.update(cpus_per_run=0), "--cpus_per_run must be at least 0.01", id="no cores"),
        pytest.param(lambda r: r.update(cpus_per_run=None), "cpus_per_run is None", id="cores null"),
        pytest.param(lambda r: r.update(gpus_per_run=1.5), "--gpus_per_run must be whole", id="one and a half GPUs"),
        pytest.param(lambda r: r.update(max_failures=1.5), "max_failures is 1.5", id="half a try"),
        pytest.param(lambda r: r.update(max_failures=10**30), "max_failures is 1000", id="too many tries"),
        pytest.param(lambda r: r.update(memory_per_run="2"), "memory_per_run is '2'", id="memory in words"),
        pytest.param(lambda r: r.update(needs_memory=math.inf), "needs_memory is inf", id="infinite memory"),
        pytest.param(lambda r: r.pop("needs_memory"), "lacks some", id="no memory"),
        pytest.param(lambda r: r.update(folder="/x"), "unknown fields", id="a folder"),
        pytest.param(lambda r: r.update(trials=[]), "unknown fields", id="trials"),
    ],
)
def test_a_damaged_record_says_where(change: Change, expected: str, tmp_path: Path) -> None:
    sweep_of_seeds(tmp_path).write()
    record = json.loads((tmp_path / "sweep.json").read_text())
    change(record)
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"sweep.json is damaged .*{expected}.*restore it, or start a new sweep"):
        Sweep.read(tmp_path)


RUN_CONFIG = {"flags": {"seed": 1}, "frames_before": 100}
TABLES = {
    "train.csv": b"episode,step,fps\n1,400,20.5\n2,800,30.5\n",
    "eval.csv": b"episode,step,episode_reward,mutual_information_bound\n0,0,5,0.1\n1,400,9,0.2\n",
}


def damaged_run() -> SearchStrategy[dict[str, bytes]]:
    """Draw the files of a run, some of them damaged."""
    damaged = {name: st.just(table) | damaged_table(table) for name, table in TABLES.items()}
    config = st.just(json.dumps(RUN_CONFIG).encode()) | damaged_json(RUN_CONFIG)
    return st.fixed_dictionaries({"config.json": config, **damaged})


@fast_and_slow(300, 400)
def test_any_damaged_sweep(examples: int, tmp_path: Path) -> None:
    """A damaged sweep.json is refused in one line, or can be listed, shown and written again; no run is elsewhere.

    A damaged file of a run never ends the sweep.
    """
    place = Path(os.path.realpath(tmp_path))
    sweep_of_seeds(place).write()
    run = place / "cartpole_swingup" / "seed=1"
    run.mkdir(parents=True)
    whole = json.loads((place / "sweep.json").read_text())

    def check(record: bytes, files: dict[str, bytes]) -> None:
        (place / "sweep.json").write_bytes(record)
        for name, data in files.items():
            (run / name).write_bytes(data)
        answer = call(["--resume", str(tmp_path), "--dry_run"], sweep.main)
        assert len(answer.lines) == 1
        if answer.code == 0:
            resumed = resumed_sweep(place, {})
            assert all(trial.folder(place).parent.parent == place for trial in resumed.trials)
            resumed.write()
            assert resumed_sweep(place, {}) == resumed
            for trial in resumed.trials:
                trial.state = "running"
            assert status(resumed)
            assert table(resumed, 40).row_count == len(resumed.trials)
        else:
            assert answer.code == 2
            assert answer.lines[0].startswith("sweep.py: error: --resume ")
            assert (place / "sweep.json").read_bytes() == record

    records = st.just(json.dumps(whole).encode()) | damaged_json(whole)
    check_all(examples, check, record=records, files=damaged_run())


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "[" * 100_000, '{"frames_before": "x"}', '{"frames_before": 1e999}', "\0", ""]
)
def test_a_runs_damaged_config_leaves_the_progress_unchanged(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("episode,step,fps\n1,100,20.5\n")
    (tmp_path / "config.json").write_text(text)
    before = Progress(7, 1.0)
    assert read_progress(tmp_path, before) is before


def test_progress_is_read_from_the_complete_rows(tmp_path: Path) -> None:
    before = Progress(7)
    assert read_progress(tmp_path, before).frame == 0
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train.csv").write_text("episode,step,fps\n1,100,20.5\n2,200,30.5\n3,3")
    (tmp_path / "eval.csv").write_text(
        "episode,step,episode_reward,mutual_information_bound\n0,0,5,0.1\n1,100,9,0.2\n2,150,7,0.3\n4,200,1e"
    )
    progress = read_progress(tmp_path, before)
    measured = (progress.frame, progress.fps, progress.last_return, progress.best_return, progress.bound)
    assert measured == (200, 30.5, 7, 9, 0.3)
    (tmp_path / "eval.csv").write_text("episode,step,episode_reward\n0,400,5\n")
    assert read_progress(tmp_path, before).frame == 400
    assert math.isnan(read_progress(tmp_path, before).bound)


def test_progress_is_read_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    rows = "".join(f"{n},{100 * n},{n}\n" for n in range(1, 20000))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train.csv").write_text(f"episode,step,fps\n{rows}20000,2000")
    progress = read_progress(tmp_path, Progress())
    assert (progress.frame, progress.fps) == (1999900, 19999.0)


def test_frames_before_fine_tuning_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("episode,step,fps\n1,12000,1\n")
    (tmp_path / "config.json").write_text('{"frames_before": 10000}')
    assert read_progress(tmp_path, Progress()).frame == 2000


def test_the_last_episode_counts_although_the_budget_cuts_it_off(tmp_path: Path) -> None:
    """It has no row, and without evaluations nothing else has the last frame."""
    (tmp_path / "config.json").write_text('{"frames_before": 10000, "flags": {"action_repeat": 4}}')
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "manifest.json").write_text('{"step": 700}')
    assert read_progress(tmp_path, Progress()).frame == 2800
    (tmp_path / "train.csv").write_text("episode,step,fps\n1,12000,1\n")
    assert read_progress(tmp_path, Progress()).frame == 2800


@pytest.mark.parametrize("row", ["1,\0\0,3", "1,1e,3", "1", "1,2,x", "1,2,inf", "1,2,1e-320", f"1,{10**40},3"])
def test_a_torn_row_leaves_the_progress_unchanged(row: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"episode,step,fps\n{row}\n")
    before = Progress(7, 1.0)
    assert read_progress(tmp_path, before) is before


def test_the_summary_has_a_row_for_each_run(tmp_path: Path) -> None:
    written = sweep_of_seeds(tmp_path)
    first, second = written.trials
    first.state, first.seconds, first.host, first.progress = "finished", 12.34, "a", Progress(100, 5.0, 1.5, 2.5, 0.25)
    second.state, second.failures, second.message = "failed", 2, "last, but\none"
    written.write()
    with (tmp_path / "summary.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert one == {
        **{"run": "cartpole_swingup/seed=1", "seed": "1", "state": "finished", "frames": "100", "last_return": "1.5"},
        **{"best_return": "2.5", "mutual_information_bound": "0.25", "wall_seconds": "12", "failures": "0"},
        **{"host": "a", "message": ""},
    }
    first_columns = ["run", "seed", "state", "frames", "last_return", "best_return", "mutual_information_bound"]
    assert list(one) == [*first_columns, "wall_seconds", "failures", "host", "message"]
    assert (two["state"], two["failures"], two["message"], two["last_return"]) == ("failed", "2", "last, but\none", "")


def test_wall_time_includes_the_current_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = sweep_of_seeds(tmp_path).trials[0]
    trial.seconds, trial.started_at = 5.0, 100.0
    monkeypatch.setattr(time, "monotonic", lambda: 107.0)
    assert trial.wall_seconds == 12.0


def test_host_and_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert read_log(log) == ("", "")
    log.write_text("host the")
    assert read_log(log) == ("", "")
    log.write_text("host there\n$ python train.py\n" + "".join(f"line {n}\n\n" for n in range(9)))
    assert read_log(log) == ("there", "\n".join(f"line {n}" for n in range(4, 9)))
