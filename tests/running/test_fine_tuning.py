"""Fine-tuning: a run that starts from the networks and one skill of a pretrained run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluate
import train
from drq import DrQAgent
from errors import UserError
from evaluation.load import load
from evaluation.play import best_skill
from running.run import Run
from tests.support.runs import (
    SMALL_RUN,
    SeededEnv,
    assert_same,
    played,
    rows,
    start_run,
    start_seeds_since,
    state,
    stop_at,
    without_clock,
)

Begin = Callable[[str], Run]


@pytest.fixture
def begin(pretrained: Path, tmp_path: Path) -> Iterator[Begin]:
    """`begin(flags)` returns a run that fine-tunes a skill of the pretrained one, not yet played."""
    begun: list[Run] = []

    def make(line: str = "") -> Run:
        flags = (
            "--device cpu --batch_size 4 --num_seed_steps 5 --num_train_steps 30 --eval_frequency 12 --save_video false"
        )
        given = f"--finetune_from {pretrained} {flags} --log_save_tb false --replay_buffer_capacity 200"
        begun.append(start_run(f"{given} --work_dir {tmp_path} {line}"))
        return begun[-1]

    yield make
    for run in begun:
        run.close()


# -- how it starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["pretrained", "scratch"])
def test_the_networks_that_it_starts_from(begin: Begin, pretrained: Path, critic: str) -> None:
    """Actor, encoder and embeddings always; the Q functions if asked for; no state of the optimizers."""
    source = load(pretrained, "cpu").agent
    agent = begin(f"--finetune_skill 2 --finetune_critic {critic}").agent
    assert type(agent) is DrQAgent
    assert_same(agent.actor.state_dict(), source.actor.state_dict())
    assert_same(agent.critic.encoder.state_dict(), source.critic.encoder.state_dict())
    assert_same(agent.critic.skill.state_dict(), source.critic.skill.state_dict())
    for name in ("head", "q1", "q2"):
        ours, theirs = getattr(agent.critic, name).state_dict(), getattr(source.critic, name).state_dict()
        equal = all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert equal == (critic == "pretrained")
    assert_same(agent.critic_target.state_dict(), agent.critic.state_dict())
    assert all(not optimizer.state_dict()["state"] for optimizer in agent.optimizers().values())
    assert float(agent.log_alpha.detach().exp()) == pytest.approx(0.1)


def test_choosing_the_best_skill_costs_frames(begin: Begin, fake_envs: list[SeededEnv]) -> None:
    """The skills are played from one start. Their frames count in every step column; config.json names the skill."""
    known = len(fake_envs)
    run = begin("")
    eval_envs = [env.played[0] for env in fake_envs[known:] if len(env.played) == 1 and env is not run.env][:4]
    returns = [sum(episode.rewards[: len(episode.actions)]) for episode in eval_envs]
    assert run.frames_before == 3 * sum(len(episode.actions) for episode in eval_envs)
    chosen_on = start_seeds_since(fake_envs, known)
    assert run.agent.skill == int(np.argmax(returns))
    record = json.loads((run.folder / "config.json").read_text())
    assert (record["finetuned_skill"], record["frames_before"]) == (run.agent.skill, run.frames_before)
    played(run)
    steps = [int(row["step"]) for row in rows(run.folder / "eval.csv")]
    assert (steps[0], steps[-1]) == (run.frames_before, run.frames_before + 3 * 30)
    all_starts = start_seeds_since(fake_envs, known)
    assert all_starts.count(chosen_on[0]) == len(chosen_on), "no evaluation uses that start"


def test_what_is_known_is_printed_before_the_choice(
    begin: Begin, pretrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice takes a while. The source's path is the shortest one."""
    monkeypatch.chdir(pretrained.parent.parent)
    source = pretrained.relative_to(pretrained.parent.parent)
    printed: list[str] = []

    def remember(*args: Any, **settings: Any) -> Any:
        printed.extend(capsys.readouterr().out.splitlines())
        return best_skill(*args, **settings)

    monkeypatch.setattr("running.start.best_skill", remember)
    run = begin("")
    assert [line.partition(":")[0] for line in printed[:-1]] == ["device", "replay buffer"]
    assert printed[-1] == f"choosing the best of 4 skills of {source}, by one episode each"
    later = capsys.readouterr().out.splitlines()
    assert later[0].startswith(f"fine-tuning skill {run.agent.skill}, the best of one episode each (0: ")
    assert later[1:] == [
        f"the choice took {run.frames_before} frames, which every step in the outputs counts",
        f"outputs: {run.folder}",
    ]


@pytest.mark.parametrize("part", ["running.start.best_skill", "running.start.DrQAgent.load_pretrained"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_is_said(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    """Neither a traceback nor, as a state that does not fit would be, the fault of the source run."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(part, fail)
    with pytest.raises(UserError, match=r"^there is not enough memory for the run; end other programs"):
        begin(f"--work_dir {tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_the_choice(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a line before the answer. If the choice is interrupted, the folder is removed."""

    def interrupt(*_: Any, **__: Any) -> None:
        assert (tmp_path / "runs").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("running.start.best_skill", interrupt)
    with pytest.raises(UserError, match="--work_dir /proc/runs"):
        begin("--work_dir /proc/runs")
    assert tuple(capsys.readouterr()) == ("", "")
    with pytest.raises(KeyboardInterrupt):
        begin(f"--work_dir {tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


def test_the_latest_run_as_the_source(begin: Begin, pretrained: Path) -> None:
    """`latest` is resolved when it is given, because it will name another run later."""
    run = begin(f"--finetune_from {pretrained.with_name('latest')} --finetune_skill 0")
    assert run.config.finetune_from == str(pretrained.resolve())
    with pytest.raises(SystemExit):
        train.parse_args(["--finetune_from", str(run.folder)])


# -- how it trains -----------------------------------------------------------------------------------------------------


def test_it_trains_one_skill_on_the_task_reward(begin: Begin) -> None:
    run = begin("--finetune_skill 3")
    assert (run.config.extrinsic_reward_coeff, run.config.diayn_intrinsic_reward_coeff) == (1.0, 0.0)
    assert run.config.temperature == "learned"
    assert run.frames_before == 0
    actor = {key: value.clone() for key, value in run.agent.actor.state_dict().items()}
    played(run)
    assert {row["skill_id"] for row in rows(run.folder / "episodes.csv")} == {"3"}
    assert not (run.folder / "skills.csv").exists()
    assert set(run.buffer._rows["skill"][: len(run.buffer)]) == {3}
    assert any(not torch.equal(actor[key], value) for key, value in run.agent.actor.state_dict().items())


def test_the_policy_acts_from_the_first_step(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no random actions; updates start after --num_seed_steps."""
    acted: list[int] = []
    act = DrQAgent.act

    def remember(agent: DrQAgent, obs: np.ndarray, skill: int, *, sample: bool) -> np.ndarray:
        acted.append(skill)
        return act(agent, obs, skill, sample=sample)

    monkeypatch.setattr(DrQAgent, "act", remember)
    run = played(begin("--finetune_skill 0 --eval_frequency 0"))
    assert acted == [0] * 30
    assert run.agent.num_updates == 30 - 5


# -- how it is resumed -------------------------------------------------------------------------------------------------


def test_stopped_and_resumed_equals_uninterrupted(begin: Begin) -> None:
    undisturbed, run = played(begin("")), begin("")
    stop_at(run, 17)
    played(run).close()
    again = played(start_run(f"--resume {run.folder}"))
    assert_same(state(again), state(undisturbed))
    for name in ("train", "eval", "episodes"):
        tables = [without_clock(rows(one.folder / f"{name}.csv")) for one in (again, undisturbed)]
        assert tables[0] == tables[1]
    again.close()


def test_killed_before_its_first_checkpoint(begin: Begin) -> None:
    """It starts again from the source's networks, with the same skill."""
    undisturbed, run = played(begin("")), begin("")
    run.close()
    again = start_run(f"--resume {run.folder}")
    assert (again.agent.skill, again.frames_before) == (undisturbed.agent.skill, undisturbed.frames_before)
    assert_same(state(played(again)), state(undisturbed))
    again.close()


# -- how it is evaluated -----------------------------------------------------------------------------------------------


def test_evaluate_plays_the_skill_that_was_trained(begin: Begin, tmp_path: Path) -> None:
    run = played(begin("--finetune_skill 1"))
    run.close()
    assert evaluate.main([str(run.folder), "--no_video", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out" / "skills.csv")
    assert (row["skill_id"], row["discriminator_accuracy"]) == ("1", "")


def test_evaluate_counts_the_frames_that_choosing_a_skill_took(begin: Begin, tmp_path: Path) -> None:
    run = played(begin(""))
    run.close()
    assert run.frames_before > 0
    assert evaluate.main([str(run.folder), "--no_video", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out" / "skills.csv")[0]["step"] == str(run.frames_before + 3 * 30)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--finetune_skill 4", "--finetune_skill"),
        ("--finetune_skill good", "--finetune_skill"),
        ("--hidden_dim 32", "--hidden_dim"),
        ("--num_skills 3", "--num_skills"),
        ("--diayn_intrinsic_reward_coeff 1", "--diayn_intrinsic_reward_coeff"),
    ],
)
def test_flags_that_are_refused(pretrained: Path, capsys: pytest.CaptureFixture[str], line: str, word: str) -> None:
    with pytest.raises(SystemExit) as end:
        train.parse_args(shlex.split(f"--finetune_from {pretrained} {line}"))
    assert end.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("fake_envs")
def test_a_run_without_skills_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """evaluate.py plays its policy, but cannot imitate with it."""
    assert train.main(shlex.split(f"{SMALL_RUN} --num_skills 0 --work_dir {tmp_path} --run_name plain")) == 0
    plain = tmp_path / "cartpole_swingup" / "plain"
    for line in (f"--finetune_from {plain}", f"--finetune_from {tmp_path}", "--finetune_skill 3"):
        with pytest.raises(SystemExit):
            train.parse_args(shlex.split(line))
        assert "--finetune_" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate.main([str(plain), "--imitate", "x.npz", "--device", "cpu"]) == 2
    assert "no discriminator" in capsys.readouterr().err
    assert evaluate.main([str(plain), "--no_video", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out" / "skills.csv")
    assert (row["skill_id"], row["mutual_information_bound"]) == ("-1", "")
