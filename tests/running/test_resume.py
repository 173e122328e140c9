"""A run that is stopped and resumed equals the uninterrupted one bit for bit."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from errors import UserError
from running import loop
from running.loop import train
from running.run import Run
from running.state import save_checkpoint
from running.stored_config import CONFIG_FILE
from tests.support.labs import Start, assert_same_run, disturb_random_streams, interrupted, stop_in_evaluation, tables
from tests.support.runs import assert_same, played, state, stop_at

VARIANTS = {
    "DIAYN": "",
    "DrQ": "--num_skills 0",
    "the critic's convolutions": "--discriminator_encoder shared --skill_embedding_dim 0 --precision bf16",
    "an ensemble with a window": "--discriminator_ensemble 2 --disdain_coeff 0.5 --discriminator_window 9",
    "stratified skills, fewer updates": "--num_skills 5 --skill_sampling stratified --agent_steps_per_update 3",
    "learned temperature, kornia": "--temperature learned --augmentation rotation --num_train_iters 2",
}


@pytest.mark.parametrize("line", VARIANTS.values(), ids=VARIANTS.keys())
def test_stopped_and_resumed_equals_uninterrupted(start: Start, line: str) -> None:
    """Stops in the seed steps, within an episode, twice in one episode, before and after the ring has wrapped."""
    undisturbed = played(start(line))
    assert undisturbed.buffer.frames_written > 3 * undisturbed.buffer.frame_capacity / 2
    stops = [lambda run, step=step: stop_at(run, step) for step in (5, 20, 33, 34, 70, 71, 89)]
    assert_same_run(interrupted(start, line, stops), undisturbed)


@pytest.mark.parametrize("at", [0, 1, 50])
def test_stopped_in_an_evaluation(start: Start, at: int) -> None:
    """Nothing of it is written, and it is repeated."""
    undisturbed = played(start())
    assert_same_run(interrupted(start, "", [lambda run: stop_in_evaluation(run, at)]), undisturbed)


@pytest.mark.slow
def test_stopped_at_every_step(start: Start) -> None:
    line = "--num_train_steps 36 --eval_frequency 10 --num_seed_steps 4"
    undisturbed = played(start(line))
    stops = [lambda run, step=step: stop_at(run, step) for step in range(1, 36)]
    assert_same_run(interrupted(start, line, stops), undisturbed)


@pytest.mark.parametrize("frequency", [0, 7, 25, 1000])
@pytest.mark.slow
def test_killed_and_resumed_from_the_last_checkpoint(start: Start, frequency: int) -> None:
    """What was written after the checkpoint is cut off and written again; without one the run starts again."""

    class Killed(BaseException):
        pass

    line = f"--checkpoint_frequency {frequency}"
    undisturbed = played(start(line))
    run = start(line)
    play = run.env.step

    def step(action: np.ndarray) -> Any:
        if run.step == 77:
            raise Killed
        return play(action)

    run.env.step = step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(run)
    assert len(tables(run)["train"]) > 10
    run.close()
    disturb_random_streams()
    again = start(resume=run.folder)
    assert (again.step > 0) == (frequency in (7, 25))
    assert_same_run(played(again), undisturbed)


@pytest.fixture
def checkpoints_made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The checkpoints that are written: agent step, and whether it is between episodes."""
    made: list[tuple[int, bool]] = []

    def remember(run: Run) -> None:
        made.append((run.step, run.in_progress is None))
        save_checkpoint(run)

    monkeypatch.setattr(loop, "save_checkpoint", remember)
    return made


def episode_ends(run: Run) -> list[int]:
    return [int(row["step"]) // run.config.action_repeat for row in tables(run)["train"]]


def test_checkpoints_are_written_when_they_are_due(start: Start, checkpoints_made: list[tuple[int, bool]]) -> None:
    """At the first episode end after each multiple of the frequency, and at the end."""
    run = played(start("--checkpoint_frequency 20 --eval_frequency 0"))
    ends = episode_ends(run)
    due = [0, *(next(end for end in ends if end >= multiple) for multiple in (20, 40, 60, 80)), 90]
    assert [step for step, _ in checkpoints_made] == sorted(set(due))
    assert all(between for _, between in checkpoints_made[:-1])


def test_by_default_there_is_a_checkpoint_at_every_evaluation(
    start: Start, checkpoints_made: list[tuple[int, bool]]
) -> None:
    run = played(start())
    assert [step for step, _ in checkpoints_made] == [int(row["step"]) // 3 for row in tables(run)["eval"]]


def test_a_stop_after_a_multiple_does_not_postpone_the_next_checkpoint(
    start: Start, checkpoints_made: list[tuple[int, bool]]
) -> None:
    """The stop's checkpoint is within an episode, at whose end one is due."""
    line = "--checkpoint_frequency 20 --eval_frequency 0"
    ends = episode_ends(played(start(line)))
    due, multiple = next(
        (end, multiple)
        for before, end in pairwise(ends)
        for multiple in (20, 40, 60, 80)
        if before < multiple and multiple + 1 < end
    )
    run = start(line)
    stop_at(run, multiple + 1)
    played(run).close()
    assert run.saved[0] == multiple + 1
    checkpoints_made.clear()
    played(start(resume=run.folder))
    assert checkpoints_made[0] == (due, True)


def test_the_clocks_continue(start: Start) -> None:
    """The time between a stop and a resume counts neither for the run nor for the episode in progress."""
    run = start("--eval_frequency 0")
    stop_at(run, 40)
    train(run)
    assert run.in_progress is not None
    run.stopwatch.started -= 1000
    run.stopwatch.add("update", 900)
    run.in_progress.started -= 100
    before = time.perf_counter()
    save_checkpoint(run)
    run.close()

    again = start(resume=run.folder)
    passed = time.perf_counter() - before + 100  # with what the run itself took
    assert again.in_progress is not None
    assert 1000 < again.stopwatch.elapsed < 1000 + passed
    assert 100 < time.perf_counter() - again.in_progress.started < 100 + passed
    assert 0.8 < again.stopwatch.shares()["update"] < 0.95


@pytest.mark.slow
def test_a_finished_run_is_extended(start: Start) -> None:
    """Its unfinished episode continues. The evaluation at the end of the smaller budget is the only extra row."""
    longer = played(start("--num_train_steps 90"))
    run = played(start("--num_train_steps 52"))
    assert run.in_progress is not None
    run.close()
    disturb_random_streams()
    again = played(start("--num_train_steps 90", resume=run.folder))
    found, expected = tables(again), tables(longer)
    assert found["train"] == expected["train"]
    extra = [row for row in found["eval"] if row not in expected["eval"]]
    assert [row["step"] for row in extra] == ["156"]
    assert [row for row in found["eval"] if row not in extra] == expected["eval"]
    assert_same(state(again)["agent"], state(longer)["agent"])


def test_the_folder_has_the_same_name(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relative below the working folder, so that a resumed run names itself as the first one did."""
    monkeypatch.chdir(tmp_path)
    run = start("--num_train_steps 20 --work_dir runs --run_name first")
    run.close()
    again = start(resume=Path("runs/cartpole_swingup/latest"))
    assert again.folder == run.folder == Path("runs/cartpole_swingup/first")
    assert again.resume_command == run.resume_command
    assert capsys.readouterr().out.count("outputs: runs/cartpole_swingup/first\n") == 2
    monkeypatch.chdir(again.folder)
    again.close()
    assert start(resume=Path(".")).folder == tmp_path / again.folder, "the working folder itself would have no name"


def test_a_budget_that_is_used_up_is_refused(start: Start) -> None:
    """The record of the run keeps its budget."""
    run = played(start("--num_train_steps 20"))
    run.close()
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"^the budget of 12 agent steps is less than the 20 that .* has made"):
        start("--num_train_steps 12", resume=run.folder)
    assert (run.folder / "config.json").read_bytes() == before


def test_a_finished_run_has_nothing_left_to_do(start: Start) -> None:
    run = played(start())
    before = tables(run)
    run.close()
    again = played(start(resume=run.folder))
    assert tables(again) == before
    assert again.step == run.step


def test_without_the_replay_buffer(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning says what changes; updates start after num_seed_steps new transitions."""
    line = "--save_replay_buffer false --replay_buffer_capacity 500 --eval_frequency 0"
    run = start(line)
    stop_at(run, 40)
    train(run)
    updates, held = run.agent.num_updates, run.in_progress
    assert held is not None
    run.close()
    assert not list(run.folder.glob("checkpoint/replay*"))
    capsys.readouterr()

    again = start(resume=run.folder)
    assert "replay buffer was not saved" in capsys.readouterr().err
    assert len(again.buffer) == len(held.actions) > 0  # the unfinished episode's
    refilled, stored = (next(each.buffer.recent(*[len(held.actions)] * 2)) for each in (again, run))
    assert_same(refilled._asdict(), stored._asdict())
    stop_at(again, 40 + 12)
    train(again)
    assert again.agent.num_updates == updates
    again.stop.number = None
    played(again)
    assert again.agent.num_updates == updates + 90 - 52
    assert [int(row["episode"]) for row in tables(again)["train"]] == list(range(1, again.episode + 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_gone(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that had chosen CUDA by default continues without it."""
    run = start()
    stop_at(run, 20)
    played(run).close()
    path: Path = run.folder / CONFIG_FILE
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"', 1))
    resumed = start(resume=run.folder)
    assert (resumed.config.device, resumed.step) == ("cpu", 20)
    assert "no CUDA device was found" in capsys.readouterr().err


def test_a_checkpoint_of_another_kind_of_device(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint written on CUDA continues here with its weights, and with other random numbers."""
    run = start()
    stop_at(run, 40)
    train(run)
    run.close()
    saved = run.checkpoints.read()
    assert saved is not None
    saved["agent"] |= {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}
    run.checkpoints.write(run.step, saved, None)
    again = start(resume=run.folder)
    assert "another kind of device" in capsys.readouterr().err
    assert_same(state(again)["agent"]["modules"], saved["agent"]["modules"])
    played(again)
    assert again.finished


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_stopped_and_resumed_on_cuda(start: Start, graphs: str) -> None:
    """With --deterministic; the device's generators are restored too."""
    line = f"--device cuda --deterministic --cuda_graphs {graphs}"
    undisturbed = played(start(line))
    stops = [lambda run, step=step: stop_at(run, step) for step in (20, 34, 71)]
    assert_same_run(interrupted(start, line, stops), undisturbed)
