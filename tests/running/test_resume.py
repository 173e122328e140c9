"""A run that is stopped and resumed equals the uninterrupted one bit for bit, on the fake environment."""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from running import loop
from running.run import Run
from running.state import save_checkpoint
from tests.support.fake_env import IMAGE_SIZE
from tests.support.runs import (
    CLOCK,
    SeededEnv,
    assert_same,
    played,
    rows,
    start_run,
    state,
    stop_at,
    use_fake_environments,
    without_clock,
)

FLAGS = (
    f"--device cpu --image_size {IMAGE_SIZE} --hidden_dim 16 --encoder_feature_dim 8 --batch_size 4 --num_skills 2 "
    "--num_seed_steps 12 --num_train_steps 90 --replay_buffer_capacity 31 --eval_frequency 25 --num_eval_episodes 2 "
    "--save_video false --log_frequency_step 20 --action_repeat 3"
)
VARIANTS = {
    "DIAYN": "",
    "DrQ": "--num_skills 0",
    "the critic's convolutions": "--discriminator_encoder shared --skill_embedding_dim 0 --precision bf16",
    "learned temperature, kornia": "--temperature learned --augmentation rotation --num_train_iters 2",
}

Start = Callable[..., Run]
Rows = dict[str, list[dict[str, str]]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """`start(flags)` returns a run whose episodes last 3 to 8 steps; `start(resume=folder)` returns a resumed one."""

    def begin(line: str = "", *, resume: Path | None = None) -> Run:
        return start_run(f"--resume {resume} {line}" if resume is not None else f"{FLAGS} --work_dir {tmp_path} {line}")

    use_fake_environments(monkeypatch, lambda: SeededEnv(ragged=True))
    return begin


def stop_in_evaluation(run: Run, at: int) -> None:
    """Let a signal arrive in the first evaluation at or after agent step `at`, after a few steps."""
    play, steps = run.eval_envs.step, 0

    def stepping(action: Any) -> Any:
        nonlocal steps
        steps += run.step >= at
        if steps == 3:
            run.stop.number = signal.SIGINT
        return play(action)

    run.eval_envs.step = stepping  # type: ignore[assignment, method-assign]


def disturb_everything() -> None:
    """Reseed the global generators, as in a new process."""
    random.seed()
    np.random.seed()
    torch.seed()


def tables(run: Run) -> Rows:
    found = {}
    for name in ("train", "eval", "episodes", *(["skills"] if run.config.num_skills else [])):
        found[name] = without_clock(rows(run.folder / f"{name}.csv"))
    return found


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard's files hold, by tag: (frame, value).

    Measured times are left out, and so are gradients, which a resumed run does not have before its first update.
    """
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    # File by file: the order of names is that of writing only for processes that started in different seconds.
    for path in sorted(run.folder.glob("tb/*"), key=lambda path: int(path.suffix[1:])):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0, "histograms": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            timed = tag.endswith(CLOCK)
            if not tag.startswith("time/"):
                found[tag] += [(event.step, 0.0 if timed else event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["histograms"]:
            if not tag.endswith("_grad"):
                found[tag] += [(event.step, event.histogram_value.sum) for event in events.Histograms(tag)]
    return found


def assert_equal_runs(run: Run, undisturbed: Run) -> None:
    assert tables(run) == tables(undisturbed)
    assert_same(state(run), state(undisturbed))
    for _ in range(5):
        assert_same(run.buffer.sample(8)._asdict(), undisturbed.buffer.sample(8)._asdict())
    for each in (run, undisturbed):
        each.close()
    assert curves(run) == curves(undisturbed)


def interrupted(start: Start, line: str, stops: Sequence[Callable[[Run], None]]) -> Run:
    """Return a run that was stopped once by each of `stops` and resumed each time, as in a new process."""
    run = start(line)
    for stop in stops:
        stop(run)
        loop.train(run)
        assert run.stop.number is not None, "it was not stopped"
        assert not run.finished
        run.close()
        disturb_everything()
        run = start(resume=run.folder)
    return played(run)


@pytest.mark.parametrize("line", VARIANTS.values(), ids=VARIANTS.keys())
def test_stopped_and_resumed_equals_uninterrupted(start: Start, line: str) -> None:
    """In the seed steps, within an episode, twice in one episode, before and after the replay buffer is full."""
    undisturbed = played(start(line))
    assert undisturbed.buffer.frames_written > 3 * undisturbed.buffer.frame_capacity / 2
    stops = [lambda run, step=step: stop_at(run, step) for step in (5, 20, 33, 34, 70, 71, 89)]
    assert_equal_runs(interrupted(start, line, stops), undisturbed)


@pytest.mark.parametrize("at", [0, 1, 50])
def test_stopped_in_an_evaluation(start: Start, at: int) -> None:
    """Nothing of the evaluation is logged, and it is repeated."""
    undisturbed = played(start())
    assert_equal_runs(interrupted(start, "", [lambda run: stop_in_evaluation(run, at)]), undisturbed)


def test_stopped_at_every_step(start: Start) -> None:
    line = "--num_train_steps 36 --eval_frequency 10 --num_seed_steps 4"
    undisturbed = played(start(line))
    stops = [lambda run, step=step: stop_at(run, step) for step in range(1, 36)]
    assert_equal_runs(interrupted(start, line, stops), undisturbed)


@pytest.mark.parametrize("frequency", [0, 7, 25, 1000])
def test_killed_and_resumed_from_the_last_checkpoint(start: Start, frequency: int) -> None:
    """What was logged after the checkpoint is cut off and repeated; without a checkpoint the run starts again."""

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
        loop.train(run)
    assert len(tables(run)["train"]) > 10
    run.close()
    disturb_everything()
    again = start(resume=run.folder)
    assert (again.step > 0) == (frequency in (7, 25))
    assert_equal_runs(played(again), undisturbed)


def test_checkpoints_come_when_they_are_due(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first episode end after each multiple of the frequency, after an evaluation, and at the end."""
    made: list[tuple[int, bool]] = []

    def remember(run: Run) -> None:
        made.append((run.step, run.in_progress is None))
        save_checkpoint(run)

    monkeypatch.setattr(loop, "save_checkpoint", remember)
    run = played(start("--checkpoint_frequency 20 --eval_frequency 0"))
    ends = [int(row["step"]) // 3 for row in tables(run)["train"]]
    due = [0, *(next(end for end in ends if end >= multiple) for multiple in (20, 40, 60, 80)), 90]
    assert [step for step, _ in made] == sorted(set(due))
    assert all(between for _, between in made[:-1])

    made.clear()
    run = played(start())
    assert [step for step, _ in made] == [int(row["step"]) // 3 for row in tables(run)["eval"]]


def test_a_stop_past_a_multiple_does_not_delay_the_next_checkpoint(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop's checkpoint was made within an episode, at whose end one is due."""
    line = "--checkpoint_frequency 20 --eval_frequency 0"
    ends = [int(row["step"]) // 3 for row in tables(played(start(line)))["train"]]
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
    made: list[int] = []

    def remember(run: Run) -> None:
        made.append(run.step)
        save_checkpoint(run)

    monkeypatch.setattr(loop, "save_checkpoint", remember)
    played(start(resume=run.folder))
    assert made[0] == due


def test_measured_times_continue(start: Start) -> None:
    """Those of the run and of the episode in progress do not count the time between stop and resume."""
    run = start("--eval_frequency 0")
    stop_at(run, 40)
    loop.train(run)
    assert run.in_progress is not None
    run.stopwatch.started -= 1000
    run.stopwatch.add("update", 900)
    run.in_progress.started -= 100
    save_checkpoint(run)
    run.close()

    again = start(resume=run.folder)
    assert again.in_progress is not None
    assert 1000 < again.stopwatch.elapsed < 1100
    assert 100 < time.perf_counter() - again.in_progress.started < 200
    assert 0.8 < again.stopwatch.shares()["update"] < 0.95


def test_a_finished_run_is_extended(start: Start) -> None:
    """Its episode in progress continues. The evaluation at the end of the smaller budget is additional."""
    longer = played(start("--num_train_steps 90"))
    run = played(start("--num_train_steps 52"))
    assert run.in_progress is not None
    run.close()
    disturb_everything()
    again = played(start("--num_train_steps 90", resume=run.folder))
    found, expected = tables(again), tables(longer)
    assert found["train"] == expected["train"]
    extra = [row for row in found["eval"] if row not in expected["eval"]]
    assert [row["step"] for row in extra] == ["156"]
    assert [row for row in found["eval"] if row not in extra] == expected["eval"]
    assert_same(state(again)["agent"], state(longer)["agent"])


def test_a_finished_run_has_nothing_left_to_do(start: Start) -> None:
    run = played(start())
    before = tables(run)
    run.close()
    again = played(start(resume=run.folder))
    assert tables(again) == before
    assert again.step == run.step


def test_without_the_replay_buffer(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """The run continues with a warning, and makes updates only after num_seed_steps new transitions."""
    line = "--save_replay_buffer false --replay_buffer_capacity 500 --eval_frequency 0"
    run = start(line)
    stop_at(run, 40)
    loop.train(run)
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
    loop.train(again)
    assert again.agent.num_updates == updates
    again.stop.number = None
    played(again)
    assert again.agent.num_updates == updates + 90 - 52
    assert [int(row["episode"]) for row in tables(again)["train"]] == list(range(1, again.episode + 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_gone(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that chose CUDA by default continues on the CPU."""
    run = start()
    stop_at(run, 20)
    played(run).close()
    path = run.folder / "config.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"', 1))
    resumed = start(resume=run.folder)
    assert (resumed.config.device, resumed.step) == ("cpu", 20)
    assert "no CUDA device was found" in capsys.readouterr().err


def test_weights_of_another_device_kind_are_taken_over(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint written on CUDA is resumed here, with other random numbers."""
    run = start()
    stop_at(run, 40)
    loop.train(run)
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
    """With --deterministic, including the device's generators."""
    line = f"--device cuda --deterministic --cuda_graphs {graphs}"
    undisturbed = played(start(line))
    stops = [lambda run, step=step: stop_at(run, step) for step in (20, 34, 71)]
    assert_equal_runs(interrupted(start, line, stops), undisturbed)
