"""The view: the table, the status line, durations."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from sweeping.record import Progress
from sweeping.view import View, duration, open_view, status, table
from tests.support.sweeps import sweep_of_seeds


def test_the_table_shows_running_runs_first(tmp_path: Path) -> None:
    sweep = sweep_of_seeds(tmp_path, seeds=range(20))
    sweep.trials[19].state, sweep.trials[19].progress = "running", Progress(1000, 10.0, 1.0, 2.0)
    sweep.trials[19].frames = 4000
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(sweep, height=18))
    assert "20 runs: 1 running, 19 waiting; 10 frames/s" in captured.get()
    rows = [line for line in captured.get().splitlines() if "seed=" in line]
    assert len(rows) == 10
    assert all(word in rows[0] for word in ("seed=19", "running", "1,000", "4,000", "5 min"))


def test_the_table_has_last_and_best_return_in_their_columns(tmp_path: Path) -> None:
    sweep = sweep_of_seeds(tmp_path, seeds=(1,))
    sweep.trials[0].progress = Progress(1000, 10.0, 11.0, 22.0, 0.5)
    columns = {str(column.header): list(column.cells) for column in table(sweep, height=18).columns}
    assert (columns["return"], columns["best"], columns["MI"]) == (["11"], ["22"], ["0.5"])


def test_durations() -> None:
    assert [duration(s) for s in (7, 61, 3600 + 300, 100 * 3600)] == ["7 s", "1 min", "1 h 5 min", "4 d 4 h"]


def test_time_left_is_that_of_running_and_waiting_runs_at_the_current_speed(tmp_path: Path) -> None:
    sweep = sweep_of_seeds(tmp_path, seeds=(1, 2, 3))
    states = ("running", "waiting", "finished")
    measured = (Progress(1000, 10.0), Progress(), Progress(2000, 90.0))
    for trial, state, progress in zip(sweep.trials, states, measured, strict=True):
        trial.state, trial.progress, trial.frames = state, progress, 2000
    assert status(sweep).endswith("10 frames/s, 5 min left")


def test_lines_on_an_output_that_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of_seeds(tmp_path)
    sweep.trials[0].state = "finished"
    with open_view(sweep) as view:
        view.event(sweep.trials[1], "started on here")
        view.update(sweep)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" cartpole_swingup/seed=1: finished before")
    assert second.endswith(" cartpole_swingup/seed=2: started on here")


def test_a_closed_pipe_does_not_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    sweep = sweep_of_seeds(tmp_path)
    monkeypatch.setattr("builtins.print", closed)
    View(sweep, None).event(sweep.trials[0], "started")
