"""The record: sweep.json, summary.csv, and the progress read from the runs' files."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import pytest

from errors import UserError
from sweeping.record import Progress, Sweep, read_log, read_progress, resumed_sweep
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


@pytest.mark.parametrize("row", ["1,\0\0,3", "1,1e,3", "1", "1,2,x"])
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
