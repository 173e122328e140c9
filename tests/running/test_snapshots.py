"""Snapshots: when they are written, what they hold, and how they are evaluated and fine-tuned."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import evaluate
import train
from errors import RenderingError, RunError, UserError
from evaluation import over_snapshots, refit
from evaluation.figures import Figure
from evaluation.load import load
from evaluation.over_snapshots import draw_measures
from evaluation.record import read_evaluation_record
from running import loop
from running.checkpoint import Checkpoints
from running.names import frame_name
from running.run import Run
from running.snapshots import snapshot_frames
from tests.support.labs import Prepare
from tests.support.runs import SMALL_RUN, SeededEnv, assert_same, rows


@pytest.fixture(scope="module")
def run(fake_envs: list[SeededEnv], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with four skills and snapshots."""
    work_dir = tmp_path_factory.mktemp("snapshots")
    line = f"{SMALL_RUN} --num_skills 4 --snapshot_frequency 10 --work_dir {work_dir} --run_name skills"
    assert train.main(shlex.split(line)) == 0
    return work_dir / "cartpole_swingup" / "skills"


@pytest.fixture
def shipped(run: Path, tmp_path: Path) -> Path:
    """A folder with what is shipped of a run: its config.json and its last snapshot."""
    last = f"{snapshot_frames(run)[-1]}.pt"
    (tmp_path / "shipped" / "snapshots").mkdir(parents=True)
    for name in ("config.json", f"snapshots/{last}"):
        shutil.copy(run / name, tmp_path / "shipped" / name)
    return tmp_path / "shipped"


@pytest.mark.parametrize(
    ("frequency", "budget", "expected"),
    [(10, 40, [0, 14, 21, 35, 40]), (20, 63, [0, 21, 42, 63]), (100, 25, [0, 25]), (0, 40, [])],
)
def test_written_when_due(prepare: Prepare, frequency: int, budget: int, expected: list[int]) -> None:
    """Before training, at the first episode end at or after each multiple of the frequency, and at the end."""
    flags = f"--snapshot_frequency {frequency} --num_train_steps {budget} --num_seed_steps {budget} --action_repeat 2"
    lab = prepare(flags, episode_length=7).play()
    assert snapshot_frames(lab.folder) == [2 * step for step in expected]


def test_killed_after_a_snapshot_and_before_the_first_checkpoint(prepare: Prepare) -> None:
    """The run starts again, as without snapshots."""
    flags = "--snapshot_frequency 10 --num_train_steps 40 --eval_frequency 0"
    whole, killed = (prepare(flags, episode_length=7).play() for _ in range(2))
    killed.run.close()
    shutil.rmtree(killed.folder / "checkpoint")
    again = prepare(f"--resume {killed.folder} {flags}", episode_length=7)
    assert again.run.step == 0
    again.play()
    assert len(rows(again.folder / "train.csv")) == len(rows(whole.folder / "train.csv")) == 5
    assert snapshot_frames(again.folder) == snapshot_frames(whole.folder)


def test_the_networks_of_that_moment(run: Path) -> None:
    frames = snapshot_frames(run)
    agents = [load(run / "snapshots" / f"{frame}.pt", "cpu") for frame in (frames[0], frames[-1])]
    assert [agent.frame for agent in agents] == [0, frames[-1]]
    last = load(run, "cpu")
    assert last.frame == frames[-1]
    for name, module in last.agent.modules().items():
        assert_same(agents[1].agent.modules()[name].state_dict(), module.state_dict())
        first = agents[0].agent.modules()[name].parameters()
        same = [torch.equal(a, b) for a, b in zip(first, module.parameters(), strict=True)]
        assert not all(same), "the first snapshot is of the untrained networks"


def test_no_replay_and_no_optimizers(run: Path) -> None:
    state = torch.load(run / "snapshots" / f"{snapshot_frames(run)[-1]}.pt", weights_only=True)
    assert set(state) == {"flags", "counters", "agent"}
    assert set(state["agent"]["modules"]) == {"actor", "critic", "discriminator"}
    assert set(state["agent"]) == {"skill", "log_alpha", "modules"}


def test_a_resumed_run_has_the_same_snapshots(prepare: Prepare) -> None:
    flags = "--snapshot_frequency 10 --num_train_steps 40 --eval_frequency 0"
    whole = prepare(flags, episode_length=7).play()
    stopped = prepare(f"{flags} --num_train_steps 24", episode_length=7).play()  # within the fourth episode
    assert snapshot_frames(stopped.folder) == [0, 14 * 4, 21 * 4, 24 * 4]
    stopped.run.close()
    resumed = prepare(f"--resume {stopped.folder} --num_train_steps 40", episode_length=7).play()
    assert snapshot_frames(whole.folder) == [step * 4 for step in (0, 14, 21, 35, 40)]
    for frame in snapshot_frames(whole.folder):
        ours, theirs = (load(lab.folder / "snapshots" / f"{frame}.pt", "cpu").agent for lab in (whole, resumed))
        assert_same(ours.weights(), theirs.weights())


def test_a_failed_evaluation_does_not_lose_the_snapshot(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "--snapshot_frequency 10 --num_train_steps 40 --eval_frequency 10"
    whole = prepare(flags, episode_length=7).play()
    failing = prepare(flags, episode_length=7)

    def fail(run: Run) -> None:
        if run.step == 14:
            raise RenderingError("the renderer is gone")
        evaluate_run(run)

    evaluate_run = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(RunError, match="the renderer is gone"):
        failing.play()
    failing.run.close()
    monkeypatch.undo()
    resumed = prepare(f"--resume {failing.folder} {flags}", episode_length=7).play()
    assert (
        snapshot_frames(resumed.folder) == snapshot_frames(whole.folder) == [step * 4 for step in (0, 14, 21, 35, 40)]
    )


def test_a_finished_run_gets_a_snapshot_later(prepare: Prepare) -> None:
    """Also one that is resumed with snapshots within a run: then at the next multiple, and not where it was resumed."""
    flags = "--num_train_steps 20 --eval_frequency 0"
    finished, stopped = prepare(flags).play(), prepare(f"{flags} --num_train_steps 14", episode_length=7).play()
    for lab in (finished, stopped):
        assert not (lab.folder / "snapshots").exists()
        lab.run.close()
    more = "--snapshot_frequency 20 --num_train_steps"
    assert snapshot_frames(prepare(f"--resume {finished.folder} {more} 20").play().folder) == [20 * 4]
    resumed = prepare(f"--resume {stopped.folder} {more} 30", episode_length=7).play()
    assert snapshot_frames(resumed.folder) == [21 * 4, 30 * 4]


def test_a_run_of_before_there_were_snapshots_is_resumed(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, read = prepare("--num_train_steps 20").play(), Checkpoints.read
    lab.run.close()

    def older(checkpoints: Checkpoints) -> Any:
        state = read(checkpoints)
        assert state is not None
        del state["flags"]["snapshot_frequency"]
        return state

    monkeypatch.setattr(Checkpoints, "read", older)
    assert prepare(f"--resume {lab.folder}").run.snapshots.last == -1


def test_weights_that_are_not_finite_are_not_kept(prepare: Prepare) -> None:
    lab = prepare("--snapshot_frequency 10")
    with torch.no_grad():
        next(lab.run.agent.actor.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match="weights became infinite or not a number"):
        lab.play()
    assert snapshot_frames(lab.folder) == []


def test_a_folder_with_a_snapshot_only_is_evaluated(run: Path, shipped: Path, tmp_path: Path) -> None:
    tables: list[str] = []
    for place in (run, shipped):
        out = tmp_path / f"out{len(tables)}"
        assert evaluate.main([str(place), "--device", "cpu", "--no_video", "--out", str(out)]) == 0
        tables.append((out / "skills.csv").read_text())
    assert tables[0] == tables[1]


def test_a_folder_with_a_snapshot_only_is_fine_tuned(shipped: Path, tmp_path: Path) -> None:
    line = f"{SMALL_RUN} --finetune_from {shipped} --finetune_skill 1 --work_dir {tmp_path} --run_name tuned"
    assert train.main(shlex.split(line)) == 0
    assert rows(tmp_path / "cartpole_swingup" / "tuned" / "eval.csv")


def test_all_snapshots_without_the_checkpoint(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not played, so it need not be whole; nor need the folder be named."""
    (shipped / "checkpoint").mkdir()
    (shipped / "checkpoint" / "manifest.json").write_text("damaged")
    monkeypatch.chdir(shipped / "snapshots")
    assert evaluate.main(shlex.split(f". --device cpu --no_video --out {tmp_path / 'out'}")) == 0
    assert (tmp_path / "out" / "measures.png").exists()


def test_fine_tuning_from_one_of_several(run: Path, tmp_path: Path) -> None:
    """Without updates, the fine-tuned actor stays that of the snapshot."""
    frame = snapshot_frames(run)[1]
    line = f"{SMALL_RUN} --finetune_from {run} --finetune_skill 1 --finetune_snapshot {frame} --num_seed_steps 1000"
    assert train.main(shlex.split(f"{line} --work_dir {tmp_path} --run_name tuned")) == 0
    tuned, source = load(tmp_path / "cartpole_swingup" / "tuned", "cpu"), load(run / f"snapshots/{frame}.pt", "cpu")
    assert_same(tuned.agent.actor.state_dict(), source.agent.actor.state_dict())


def test_refused(run: Path, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line, words in (
        (f"--finetune_from {run} --finetune_snapshot 3", "no snapshot of --finetune_snapshot 3; it has those of the f"),
        (f"--resume {shipped}", "it has snapshots only; evaluate it, or name it in --finetune_from"),
    ):
        given = line if "--resume" in line else f"{line} --device cpu --work_dir {tmp_path / 'runs'}"
        assert train.main(shlex.split(given)) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["cut", "another", "no networks"])
def test_a_damaged_snapshot(shipped: Path, damage: str) -> None:
    (path,) = (shipped / "snapshots").iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        state = torch.load(path, weights_only=True)
        modules = state["agent"]["modules"]
        state["agent"]["modules"] = {"actor": modules["actor"]} if damage == "no networks" else {"a": 1}
        torch.save(state, path)
    with pytest.raises(UserError, match=r"is damaged|does not fit this version"):
        load(shipped, "cpu")


@pytest.mark.slow
def test_all_snapshots_are_evaluated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each into a folder of its own; the measures of all, and the controls once, in one table and one picture."""
    monkeypatch.setattr(refit, "UPDATES", {"pixels": 20, "states": 40})
    frames, out = snapshot_frames(run), tmp_path / "out"
    line = f"{run}/snapshots --device cpu --no_video --controls --refit 3 --out {out}"
    assert evaluate.main(shlex.split(line)) == 0
    summary = rows(out / "summary.csv")
    trained = [row for row in summary if row["policy"] == "trained"]
    assert [int(row["step"]) for row in trained] == frames
    assert sorted(row["policy"] for row in summary if row not in trained) == ["random", "untrained"]
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    assert [path.name for path in folders] == [frame_name(frame) for frame in frames]
    assert [rows(path / "summary.csv")[0] for path in folders] == trained
    records = [read_evaluation_record(path) for path in (out, *folders)]
    sources = ["snapshots", *(f"snapshots/{frame}.pt" for frame in frames)]
    assert [record and record.run.partition("skills/")[2] for record in records] == sources
    assert ["--controls" in record.command for record in records if record] == [True, True, *[False] * len(frames[1:])]
    assert [int(row["step"]) for row in rows(out / "refit.csv") if row["policy"] == "trained"] == sorted(2 * frames)
    assert cv2.imread(str(out / "measures.png")) is not None
    assert capsys.readouterr().out.endswith(f"open first: {out / 'measures.png'}\n")
    alone = tmp_path / "alone"
    assert evaluate.main(shlex.split(f"{run}/snapshots/{frames[1]}.pt --device cpu --no_video --out {alone}")) == 0
    assert rows(alone / "skills.csv") == rows(folders[1] / "skills.csv")
    assert all((path / "refit.csv").exists() for path in (out, *folders))
    assert evaluate.main(shlex.split(f"{run}/snapshots --device cpu --no_video --skills 0 --out {out}")) == 0
    assert not any((path / "refit.csv").exists() for path in (out, *folders)), "of the evaluation before"


def test_a_panel_for_each_measure_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def make_figure(**settings: Any) -> Figure:
        figures.append(Figure(**settings))
        return figures[-1]

    monkeypatch.setattr(over_snapshots, "Figure", make_figure)
    trained = {"policy": "trained", "episode_extrinsic_reward": 1.0, "mutual_information_bound": 0.5}
    summary = [{**trained, "step": 0}, {**trained, "step": 8, "cells_visited": None}]
    controls = [{"policy": name, "step": 0, "episode_extrinsic_reward": 9.0} for name in ("random", "untrained")]
    draw_measures([*summary, *controls])
    returns, bounds = figures[0].axes
    assert [np.size(axes.lines[0].get_xdata()) for axes in (returns, bounds)] == [2, 2]
    assert [text.get_text() for text in returns.texts] == ["random", "untrained"]
    assert not bounds.texts
    assert (returns.get_ylabel(), bounds.get_ylabel()) == ("return of the task", "nats")


@pytest.mark.parametrize("flags", ["--imitate any.npz", "--skill_schedule 0:3"])
def test_one_agent_is_played(run: Path, tmp_path: Path, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert evaluate.main(shlex.split(f"{run}/snapshots --device cpu {flags} --out {out}")) == 2
    assert "name one of the snapshots in" in capsys.readouterr().err
    assert not out.exists()
