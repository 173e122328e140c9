"""The training loop, evaluation and run folder, played on the fake environment with tiny networks; and the layering."""

from __future__ import annotations

import ast
import csv
import dataclasses
import errno
import gc
import inspect
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import run_folder
import runs
import torch

import envs.make
import envs.renderer
import train
from config import Config, UserError, parse_args
from diayn import DIAYNAgent
from drq import DrQAgent, Views
from envs.renderer import RendererInfo
from errors import SimulationError
from replay_buffer import Batch
from tests.support.fake_env import IMAGE_SIZE
from tests.support.paths import ROOT
from tests.support.runs import Played, RecordingEnv, Row, without_clock
from utils import free_memory

EVERY_AGENT_FLAG = (  # none at its default
    "--device cpu --augmentation none --image_pad 2 --lr 0.02 --discount 0.5 --extrinsic_reward_coeff 0.7 "
    "--init_temperature 0.3 --actor_update_frequency 3 --critic_tau 0.2 --critic_target_update_frequency 5 "
    "--encoder_feature_dim 7 --hidden_dim 9 --hidden_depth 1 --log_std_bounds -4 1 --precision bf16"
)
EVERY_DIAYN_FLAG = (
    f"{EVERY_AGENT_FLAG} --num_skills 3 --skill_embedding_dim 4 --lr_discriminator 0.03 --discriminator_encoder shared "
    "--diayn_intrinsic_reward_coeff 0.6"
)
TINY = (
    f"--device cpu --image_size {IMAGE_SIZE} --hidden_dim 16 --encoder_feature_dim 8 --batch_size 4 --num_skills 2 "
    "--num_seed_steps 10 --num_train_steps 30 --replay_buffer_capacity 500 --eval_frequency 0 --num_eval_episodes 1 "
    "--save_video false --log_save_tb false"
)
NEWEST = -3  # the channel of a stack that holds its newest frame's first channel: the fake's episode number


@dataclasses.dataclass
class Lab:
    """A run on fake environments, and what it leaves behind."""

    run: runs.Run
    env: RecordingEnv
    eval_envs: list[RecordingEnv]
    folder: Path

    def play(self) -> Lab:
        train.train(self.run)
        self.run.logger.close()
        return self

    def rows(self, name: str) -> list[Row]:
        with (self.folder / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def episodes(self, kind: str) -> list[Row]:
        return [row for row in self.rows("episodes") if row["type"] == kind]

    def steps(self, name: str) -> list[int]:
        return [int(row["step"]) for row in self.rows(name)]

    def evaluated(self) -> list[Played]:
        """All evaluation episodes, in no order that matters."""
        return [played for env in self.eval_envs for played in env.played]

    def weights(self) -> dict[str, torch.Tensor]:
        agent = self.run.agent
        modules = {**agent.modules(), "critic_target": agent.critic_target}
        named = {f"{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
        return {key: value.clone() for key, value in {**named, "log_alpha": agent.log_alpha.detach()}.items()}

    def stored(self) -> Batch:
        """All transitions, oldest first."""
        count = len(self.run.buffer)
        return next(iter(self.run.buffer.recent(count, count)))


Prepare = Callable[..., Lab]
Fakes = Callable[..., list[RecordingEnv]]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Puts fakes of the given settings in dm_control's place. In the list that returns they appear as they are made."""

    def install(**settings: Any) -> list[RecordingEnv]:
        made: list[RecordingEnv] = []

        def make(config: Config) -> RecordingEnv:
            made.append(RecordingEnv(**settings))
            return made[-1]

        monkeypatch.setattr(envs.make, "make_environment", make)
        monkeypatch.setattr(envs.renderer, "choose_renderer", lambda: RendererInfo("fake", "a fake renderer"))
        return made

    return install


@pytest.fixture
def prepare(fakes: Fakes, tmp_path: Path) -> Iterator[Prepare]:
    """`prepare(flags, **settings of the environments)`: a run set up and not yet played."""
    labs: list[Lab] = []

    def make(line: str = "", **settings: Any) -> Lab:
        made = fakes(**settings)
        known = set(tmp_path.glob("runs/*/2*"))
        run = runs.setup(parse_args(shlex.split(f"{TINY} --work_dir {tmp_path / 'runs'} {line}")))
        (folder,) = set(tmp_path.glob("runs/*/2*")) - known
        labs.append(Lab(run, cast(RecordingEnv, run.env), [env for env in made if env is not run.env], folder))
        return labs[-1]

    yield make
    for lab in labs:
        lab.run.logger.close()


def numbers(rows: list[Row], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def log_q(agent: DIAYNAgent, observations: list[np.ndarray]) -> torch.Tensor:
    """log q_phi(z | s') of every skill, (N, K), from the networks alone."""
    images = torch.from_numpy(np.stack(observations))
    encoder = agent.discriminator.encoder or agent.critic.encoder
    with torch.no_grad():
        return agent.discriminator(encoder(images)).log_softmax(dim=1)


# -- when it evaluates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_repeat", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize(
    ("length", "frequency", "budget", "expected"),
    [
        (7, 10, 40, [0, 14, 21, 35, 40]),  # due at 10, 20, 30, 40; episodes end at 7, 14, 21, 28, 35
        (7, 20, 63, [0, 21, 42, 63]),
        (10, 5, 30, [0, 10, 20, 30]),  # more often than episodes end, and never twice at one step
        (6, 12, 30, [0, 12, 24, 30]),
        (9, 100, 25, [0, 25]),
    ],
)
def test_evaluates_when_due(
    prepare: Prepare, action_repeat: int, length: int, frequency: int, budget: int, expected: list[int]
) -> None:
    """Before training, at the first episode end after each multiple of the frequency (agent steps), and at the end."""
    flags = f"--num_skills 0 --eval_frequency {frequency} --num_train_steps {budget} --num_seed_steps {budget}"
    lab = prepare(f"{flags} --action_repeat {action_repeat}", episode_length=length).play()
    assert lab.steps("eval") == [step * action_repeat for step in expected]
    assert [int(row["episode"]) for row in lab.rows("eval")] == [step // length for step in expected]


@pytest.mark.parametrize("num_skills", [0, 2])
def test_evaluation_leaves_training_alone(prepare: Prepare, num_skills: int) -> None:
    """Often, seldom or never: the weights are the same to the bit, and so is train.csv."""
    often, seldom, never = (
        prepare(f"--num_skills {num_skills} --eval_frequency {frequency}", episode_length=7).play()
        for frequency in (5, 25, 0)
    )
    assert [len(lab.steps("eval")) for lab in (often, seldom, never)] == [6, 3, 0]
    reference = never.weights()
    for lab in (often, seldom):
        assert without_clock(lab.rows("train")) == without_clock(never.rows("train"))
        weights = lab.weights()
        assert weights.keys() == reference.keys()
        assert all(torch.equal(weights[key], reference[key]) for key in reference)


@pytest.mark.parametrize("num_skills", [0, 3])
def test_every_skill_is_evaluated_from_the_same_starts(prepare: Prepare, num_skills: int) -> None:
    """`num_eval_episodes` for each skill, with seeds in common; an environment that ignores actions then pays alike."""
    lab = prepare(f"--num_skills {num_skills} --eval_frequency 10 --num_eval_episodes 4", blind=True, ragged=True)
    lab.play()
    returns: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in lab.episodes("eval"):
        returns[row["step"], row["skill_id"]].append(row["episode_extrinsic_reward"])
    skills = [str(skill) for skill in range(num_skills)] or ["-1"]
    evaluations = [row["step"] for row in lab.rows("eval")]
    assert set(returns) == {(step, skill) for step in evaluations for skill in skills}
    assert len(evaluations) >= 3
    for step in evaluations:
        assert len(set(returns[step, skills[0]])) == 4
        assert all(returns[step, skill] == returns[step, skills[0]] for skill in skills)


def test_evaluation_has_seeds_of_its_own(prepare: Prepare) -> None:
    """Training's stream is seeded once; no start of it is evaluated."""
    lab = prepare("--eval_frequency 10 --num_eval_episodes 3 --seed 5").play()
    assert lab.env.seeds == [5, None, None]
    seeds = {played.seed for played in lab.evaluated()}
    assert len(seeds) >= 3
    assert not seeds & set(lab.env.seeds)


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_every_stream_follows_the_seed(prepare: Prepare) -> None:
    labs = [prepare(f"--seed {seed} --eval_frequency 10 --num_eval_episodes 2") for seed in (1, 2)]
    streams = [
        (
            lab.run.skill_rng.bit_generator.state,
            lab.run.buffer.state_dict()["rng"],
            lab.run.env.action_space.np_random.bit_generator.state,
            lab.run.agent.generator.initial_seed(),
        )
        for lab in labs
    ]
    assert all(one != other for one, other in zip(*streams, strict=True))
    first, second = ({played.seed for played in lab.play().evaluated()} for lab in labs)
    assert len(first) == len(second) == 2 * 4, "each evaluation has starts of its own"
    assert not first & second


def test_random_actions_have_a_stream_of_their_own(prepare: Prepare) -> None:
    """An environment of gymnasium's has the seed itself: its starts would be the actions' random numbers."""
    run = prepare().run
    streams = [run.env.action_space.np_random, np.random.default_rng(run.config.seed)]
    actions, starts = (stream.random(8).tolist() for stream in streams)
    assert actions != starts


def test_same_seed_same_numbers(prepare: Prepare) -> None:
    first, second, other = (
        prepare(f"--seed {seed} --eval_frequency 10 --num_train_steps 40", ragged=True).play() for seed in (3, 3, 4)
    )
    for name in ("train", "eval", "episodes"):
        assert without_clock(first.rows(name)) == without_clock(second.rows(name))
    rows, others = first.rows("train"), other.rows("train")
    for column in ("episode_reward", "episode_intrinsic_reward_sum", "critic_loss"):
        assert not {row[column] for row in rows if row[column]} & {row[column] for row in others if row[column]}


# -- what is written down ----------------------------------------------------------------------------------------------


def test_returns_stand_on_their_own_rows(prepare: Prepare) -> None:
    lab = prepare("--num_train_steps 60 --eval_frequency 20 --num_eval_episodes 2", ragged=True).play()
    finished = [played for played in lab.env.played if len(played.rewards) == 3 + played.observations[0][-1, 0, 0] % 6]
    expected = [sum(played.rewards) for played in finished]
    assert len(expected) >= 6
    assert numbers(lab.rows("train"), "episode_reward") == pytest.approx(expected)
    assert numbers(lab.episodes("train"), "episode_extrinsic_reward") == pytest.approx(expected)
    assert lab.steps("train") == [4 * int(step) for step in np.cumsum([len(played.rewards) for played in finished])]
    assert numbers(lab.rows("train"), "episode") == list(range(1, len(expected) + 1))

    evaluated = numbers(lab.episodes("eval"), "episode_extrinsic_reward")
    assert sorted(evaluated) == pytest.approx(sorted(sum(played.rewards) for played in lab.evaluated()))
    means = [np.mean(evaluated[first : first + 4]) for first in range(0, len(evaluated), 4)]  # 2 skills, 2 episodes
    assert numbers(lab.rows("eval"), "episode_reward") == pytest.approx(means)


def test_unfinished_episode_has_no_row(prepare: Prepare) -> None:
    lab = prepare("--num_train_steps 25 --eval_frequency 100 --action_repeat 1", episode_length=10).play()
    assert lab.steps("train") == [10, 20]
    assert [row["step"] for row in lab.episodes("train")] == ["10", "20"]
    assert (lab.rows("eval")[-1]["step"], lab.rows("eval")[-1]["episode"]) == ("25", "2")


def test_every_step_counts_frames(prepare: Prepare) -> None:
    """CSV files, TensorBoard and the videos' names: agent steps times the action repeat, here 3."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = "--action_repeat 3 --eval_frequency 15 --log_frequency_step 8 --save_video --log_save_tb"
    lab = prepare(flags, episode_length=10).play()
    assert lab.steps("train") == [30, 60, 90]
    assert lab.steps("eval") == [0, 60, 90]
    assert [int(row["step"]) for row in lab.episodes("train")] == [30, 60, 90]
    assert [int(row["step"]) for row in lab.episodes("eval")] == [0, 0, 60, 60, 90, 90]
    names = {f"{frame}_{name}.mp4" for frame in (0, 60, 90) for name in ("skill0", "skill1", "skills")}
    assert {path.name for path in (lab.folder / "video").iterdir()} == names

    events = EventAccumulator(str(lab.folder / "tb"), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    train_steps = {event.step for tag in tags["scalars"] if tag.startswith("train") for event in events.Scalars(tag)}
    eval_steps = {event.step for tag in tags["scalars"] if tag.startswith("eval") for event in events.Scalars(tag)}
    assert (train_steps, eval_steps) == ({30, 60, 90}, {0, 60, 90})
    assert {event.step for tag in tags["images"] for event in events.Images(tag)} == {0, 60, 90}
    assert {event.step for tag in tags["histograms"] for event in events.Histograms(tag)} == {24, 48, 72}


def test_skills_of_a_run(prepare: Prepare) -> None:
    """skills.csv has a row for each skill and evaluation, and the pictures are named after the frame."""
    lab = prepare("--eval_frequency 10 --action_repeat 3").play()
    columns = (
        "step,skill_id,episodes,episode_extrinsic_reward,episode_intrinsic_reward_sum,discriminator_accuracy,"
        "accuracy_at_start,mutual_information_bound,displacement_x,displacement_y,state_distance_within,"
        "state_distance_between"
    )
    assert (lab.folder / "skills.csv").read_text().splitlines()[0] == columns
    assert [(row["step"], row["skill_id"]) for row in lab.rows("skills")] == [
        (frame, skill) for frame in ("0", "30", "60", "90") for skill in ("0", "1")
    ]
    names = {f"{frame}_{name}.png" for frame in (0, 30, 60, 90) for name in ("confusion_matrix", "contact_sheet")}
    assert {path.name for path in (lab.folder / "skills").iterdir()} == names
    assert not (lab.folder / "video").exists(), "--save_video false"


def test_a_clip_is_the_tags(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard has each skill's own video under its name."""
    lab = prepare("--eval_frequency 100 --save_video --log_save_tb")
    clips: list[tuple[str, str]] = []
    monkeypatch.setattr("video.gif_clip", lambda path, fps: (path.stem,) if fps == 20 else None)
    monkeypatch.setattr(lab.run.logger, "clip", lambda tag, stem, *, step: clips.append((stem, f"{step}_{tag}")))
    lab.play()
    assert len(clips) == 2 * 3
    assert all(stem == tag for stem, tag in clips)
    for path in (lab.folder / "video").iterdir():
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(20), "the environment's"


def test_clock_of_a_run(prepare: Prepare, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations are seconds of this run and no two overlap; shares add up to one; progress counts frames."""
    lab, began = prepare("--eval_frequency 30"), time.perf_counter()
    frames: list[int] = []
    monkeypatch.setattr(lab.run.logger, "progress", frames.append)
    lab.env.render_seconds = 1e9
    lab.play()
    elapsed = time.perf_counter() - began
    durations = numbers(lab.rows("episodes"), "duration")
    assert 0 < min(durations) <= sum(durations) < elapsed
    assert frames == [4 * step for step in range(1, 31)]
    shares = train.time_shares(lab.run)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["environment"] == 0, "all of its time went into pictures"
    assert "done: 120 frames in " in capsys.readouterr().out


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_discriminator_figures_of_an_evaluation(prepare: Prepare, encoder: str) -> None:
    """Accuracy, E[log q] + log K and the intrinsic sums, by hand from the final networks and the final rollouts."""
    flags = f"--num_skills 3 --eval_frequency 100 --num_eval_episodes 2 --discriminator_encoder {encoder}"
    lab = prepare(f"{flags} --num_train_steps 60 --lr_discriminator 1e-2", ragged=True).play()
    rows, last = lab.episodes("eval")[-6:], lab.rows("eval")[-1]
    by_return = {round(sum(played.rewards), 9): played for played in lab.evaluated()}
    intrinsic, recognised = [], []  # of each episode, by step
    for row in rows:
        played, skill = by_return[round(float(row["episode_extrinsic_reward"]), 9)], int(row["skill_id"])
        log_probs = log_q(cast(DIAYNAgent, lab.run.agent), played.observations[1:])
        intrinsic.append(log_probs[:, skill].numpy() + math.log(3))
        recognised.append((log_probs.argmax(dim=1) == skill).numpy())
    assert len({len(steps) for steps in intrinsic}) > 1  # or a mean over episodes would pass for one over steps
    sums, rewards = [steps.sum() for steps in intrinsic], np.concatenate(intrinsic)
    assert numbers(rows, "episode_intrinsic_reward_sum") == pytest.approx(sums, abs=1e-4)
    assert float(last["episode_intrinsic_reward_sum"]) == pytest.approx(np.mean(sums), abs=1e-4)
    assert float(last["mutual_information_bound"]) == pytest.approx(rewards.mean(), abs=1e-5)
    assert float(last["discriminator_accuracy"]) == pytest.approx(np.concatenate(recognised).mean())
    assert np.abs(rewards).max() > 0.05


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_intrinsic_sum_of_a_training_episode(prepare: Prepare, encoder: str) -> None:
    """By hand, from the networks at the episode's end (the last one's are still there); batches needn't divide it."""
    flags = f"--num_skills 3 --lr_discriminator 1e-2 --discriminator_encoder {encoder}"
    lab = prepare(f"{flags} --num_train_steps 33", episode_length=11).play()
    last = lab.rows("train")[-1]
    log_probs = log_q(cast(DIAYNAgent, lab.run.agent), lab.env.played[-1].observations[1:])
    expected = float((log_probs[:, int(last["skill_id"])] + math.log(3)).sum())
    assert abs(expected) > 0.05
    assert float(last["episode_intrinsic_reward_sum"]) == pytest.approx(expected, abs=1e-4)
    assert lab.episodes("train")[-1]["episode_intrinsic_reward_sum"] == last["episode_intrinsic_reward_sum"]


# -- acting, updating, storing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_skills", [0, 2])
@pytest.mark.parametrize(
    ("budget", "seed_steps", "iterations", "expected"),
    [(30, 10, 1, 20), (30, 10, 3, 60), (12, 30, 1, 0), (20, 0, 1, 19)],  # with nothing stored there is no update
)
def test_number_of_updates(
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    num_skills: int,
    budget: int,
    seed_steps: int,
    iterations: int,
    expected: int,
) -> None:
    """`num_train_iters` for each agent step after `num_seed_steps`; each network and each tensor of it is trained."""
    flags = f"--num_train_steps {budget} --num_seed_steps {seed_steps} --num_train_iters {iterations}"
    lab = prepare(f"{flags} --num_skills {num_skills} --temperature learned")
    before, update, sizes = lab.weights(), lab.run.agent.update, []

    def counted(batch: Batch) -> dict[str, torch.Tensor]:
        sizes.append(len(batch.reward))
        return update(batch)

    monkeypatch.setattr(lab.run.agent, "update", counted)
    after = lab.play().weights()
    assert sizes == [4] * expected
    unchanged = {key for key in before if torch.equal(before[key], after[key])}
    assert unchanged == (set() if expected else set(before))


def test_every_update_has_a_batch_of_its_own(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, batches = prepare("--num_train_iters 3"), []
    update = lab.run.agent.update

    def spy(batch: Batch) -> dict[str, torch.Tensor]:
        batches.append(batch.reward.tolist())
        return update(batch)

    monkeypatch.setattr(lab.run.agent, "update", spy)
    lab.play()
    assert len(batches) == 60
    assert len({tuple(batch) for batch in batches}) > 54


def test_acts_on_the_newest_observation(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = prepare("--num_seed_steps 0", episode_length=7)
    act, acted = lab.run.agent.act, 0

    def spy(obs: np.ndarray, skill: int, *, sample: bool) -> np.ndarray:
        nonlocal acted
        np.testing.assert_array_equal(obs, lab.env.played[-1].observations[-1])
        assert sample
        acted += 1
        return act(obs, skill, sample=sample)

    monkeypatch.setattr(lab.run.agent, "act", spy)
    lab.play()
    assert acted == 30


def test_random_actions_are_uniform(prepare: Prepare) -> None:
    lab = prepare("--num_train_steps 200 --num_seed_steps 200", episode_length=50).play()
    actions = np.concatenate([played.actions for played in lab.env.played])
    assert actions.shape == (200, 2)
    assert abs(actions.mean()) < 0.15
    assert actions.std() == pytest.approx(3**-0.5, abs=0.05)


def test_act_then_update_then_step(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an update never depends on the step beside it: it sees as many transitions as steps were finished."""
    lab = prepare("--num_train_iters 2 --num_train_steps 16 --num_seed_steps 5", episode_length=6)
    events: list[str] = []

    def spied(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            if name == "update":
                assert len(lab.run.buffer) == events.count("step")
            events.append(name)
            return function(*args, **kwargs)

        return spy

    for owner, name in ((lab.run.agent, "act"), (lab.run.agent, "update"), (lab.env, "step")):
        monkeypatch.setattr(owner, name, spied(name, getattr(owner, name)))
    lab.play()
    assert events == ["step"] * 5 + ["act", "update", "update", "step"] * 11


def test_stored_is_what_happened(prepare: Prepare) -> None:
    """Each transition joins the two observations around its action, within one episode, and that action's reward."""
    lab = prepare(episode_length=7).play()
    stored, played = lab.stored(), lab.env.played
    obs = np.concatenate([episode.observations[:-1] for episode in played])
    next_obs = np.concatenate([episode.observations[1:] for episode in played])
    np.testing.assert_array_equal(stored.obs.numpy(), obs)
    np.testing.assert_array_equal(stored.next_obs.numpy(), next_obs)
    np.testing.assert_array_equal(stored.action.numpy(), np.concatenate([episode.actions for episode in played]))
    np.testing.assert_allclose(stored.reward.numpy(), np.concatenate([episode.rewards for episode in played]))


@pytest.mark.parametrize(("settings", "end"), [({"episode_length": 5}, 0.0), ({"terminate_at": 5}, 1.0)])
def test_a_time_limit_is_no_termination(prepare: Prepare, settings: dict[str, int], end: float) -> None:
    stored = prepare(**settings).play().stored()
    np.testing.assert_array_equal(stored.terminated.numpy().reshape(-1, 5), [[0.0, 0.0, 0.0, 0.0, end]] * 6)


def test_an_episode_keeps_its_skill(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """One skill from start to end: acted with, stored with each transition, and written to both files."""
    lab = prepare("--num_train_steps 60 --num_seed_steps 0", episode_length=6)
    act, acted = lab.run.agent.act, set()

    def spy(obs: np.ndarray, skill: int, **kwargs: Any) -> np.ndarray:
        acted.add((int(obs[NEWEST, 0, 0]), skill))
        return act(obs, skill, **kwargs)

    monkeypatch.setattr(lab.run.agent, "act", spy)
    lab.play()
    stored = lab.stored()
    pairs = set(zip(stored.next_obs[:, NEWEST, 0, 0].tolist(), stored.skill.tolist(), strict=True))
    written = [(number, int(row["skill_id"])) for number, row in enumerate(lab.episodes("train"))]
    assert acted == pairs == set(written)
    assert len(written) == len(lab.rows("train")) == 10
    assert numbers(lab.rows("train"), "skill_id") == [skill for _, skill in written]
    assert {skill for _, skill in written} == {0, 1}
    assert Counter(lab.stored().skill.tolist()) == Counter(skill for _, skill in written for _ in range(6))


def test_no_skills_is_plain_drq(prepare: Prepare) -> None:
    """The base agent, no parameter for a skill, no draw for one, and -1 in every file."""
    lab = prepare("--num_skills 0 --eval_frequency 10")
    drawn = lab.run.skill_rng.bit_generator.state
    lab.play()
    assert type(lab.run.agent) is DrQAgent
    assert not [key for key in lab.weights() if "skill" in key]
    assert lab.run.skill_rng.bit_generator.state == drawn
    assert {row["skill_id"] for row in lab.rows("episodes")} == {"-1"}
    assert set(lab.stored().skill.tolist()) == {-1}
    assert all(float(row["episode_intrinsic_reward_sum"]) == 0 for row in lab.rows("episodes"))


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (DrQAgent, f"{EVERY_AGENT_FLAG} --num_skills 0 --temperature fixed"),
        (DIAYNAgent, f"{EVERY_DIAYN_FLAG} --temperature fixed"),
        (DIAYNAgent, f"{EVERY_DIAYN_FLAG} --temperature learned"),
    ],
)
def test_flags_reach_the_agent(agent: type[DrQAgent], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, default = parse_args(shlex.split(line)), parse_args(["--num_skills", "0"])
    parameters = {name for kind in (agent, DrQAgent) for name in inspect.signature(kind).parameters}
    monkeypatch.setattr(f"{agent.__module__}.{agent.__name__}", lambda *shapes, **given: given)
    given: Any = runs.make_agent(config, (9, 24, 24), 2)
    flags = parameters & set(vars(config)) - {"seed"}
    assert len(flags) >= 15
    assert {name: given[name] for name in flags} == {name: getattr(config, name) for name in flags}
    assert given["learn_temperature"] == (config.temperature == "learned")
    of_skills = {"num_skills", "skill_embedding_dim"} if agent is DrQAgent else set()
    assert all(getattr(config, name) != getattr(default, name) for name in flags - of_skills - {"device"})


def test_by_default_skills_learn_from_the_discriminator_alone(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward DrQ learns from is log q + log K and nothing of the task's; the temperature stays at 0.1."""
    lab, rewards = prepare(), []
    learn = DrQAgent.learn_from

    def spy(agent: DIAYNAgent, views: Views, next_features: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            logits = agent.classify(views.next_obs[: len(views.reward)])
        rewards.append((views.reward, agent.intrinsic_reward(logits, views.skill)))
        return learn(agent, views, next_features)

    monkeypatch.setattr(DrQAgent, "learn_from", spy)
    lab.play()
    assert len(rewards) == 20
    for reward, intrinsic in rewards:
        torch.testing.assert_close(reward, intrinsic, rtol=1e-4, atol=1e-5)
    assert float(lab.run.agent.log_alpha.exp()) == pytest.approx(0.1)


@pytest.mark.parametrize(("agent", "num_skills"), [(DrQAgent, 0), (DIAYNAgent, 4)])
def test_defaults_of_the_agents_are_the_flags(agent: type[DrQAgent], num_skills: int) -> None:
    config = parse_args(["--num_skills", str(num_skills)])
    flags = {**dataclasses.asdict(config), "learn_temperature": config.temperature == "learned"}
    parameters = inspect.signature(agent).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    for absent in () if num_skills else ("num_skills", "skill_embedding_dim"):
        assert defaults.pop(absent) == 0
    assert len(defaults) >= 6
    assert defaults == {name: flags[name] for name in defaults}


def test_skills_are_drawn_from_their_own_stream(prepare: Prepare) -> None:
    lab = prepare()
    drawn = lab.run.skill_rng.bit_generator.state
    assert isinstance(lab.play().run.agent, DIAYNAgent)
    assert lab.run.skill_rng.bit_generator.state != drawn


def test_no_two_streams_of_a_run_are_one(prepare: Prepare) -> None:
    """Skills, batches, random actions, noise and weights of one seed, as each would be drawn first."""
    run = prepare("--seed 7").run
    places = [
        run.skill_rng.bit_generator.state,
        run.buffer.state_dict()["rng"],
        run.env.action_space.np_random.bit_generator.state,
    ]
    assert len({place["state"]["state"] for place in places}) == 3
    assert run.agent.generator.initial_seed() != torch.initial_seed() == 7


# -- the run's folder --------------------------------------------------------------------------------------------------


def test_run_folder(prepare: Prepare, tmp_path: Path) -> None:
    """runs/<env>/<timestamp>_seed<seed>; runs that start in the same second don't share one."""
    first, second = prepare("--task dmc_walker_run --seed 7"), prepare("--task dmc_walker_run --seed 7")
    assert first.folder.parent == second.folder.parent == tmp_path / "runs" / "walker_run"
    assert re.fullmatch(r"\d{4}-?\d\d-?\d\d\D\d\d-?\d\d-?\d\d_seed7", first.folder.name)
    assert first.folder != second.folder


def test_config_json(prepare: Prepare) -> None:
    lab = prepare("--num_skills 3 --lr 0.002 --log_std_bounds -8 1 --task dmc_walker_run")
    record = json.loads((lab.folder / "config.json").read_text())
    flags = record["flags"]
    assert flags.keys() == {field.name for field in dataclasses.fields(Config)}
    given = {"num_skills": 3, "lr": 0.002, "log_std_bounds": [-8.0, 1.0], "env": "walker_run", "hidden_dim": 16}
    derived = {"diayn_intrinsic_reward_coeff": 1.0, "temperature": "fixed", "extrinsic_reward_coeff": 0.0}
    assert {name: flags[name] for name in (*given, *derived)} == given | derived
    for package in ("torch", "numpy", "kornia", "dm_control", "mujoco", "gymnasium", "opencv-python", "tensorboard"):
        assert record["versions"][package] == version(package)
    assert re.match(r"3\.\d+", record["versions"]["python"])
    assert "a fake renderer" in str(record["renderer"])
    assert record["device"] == "cpu"
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        assert record["git_commit"].removesuffix("-dirty") == git.stdout.strip()
    else:
        assert record["git_commit"] is None


# -- trouble on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["no folder", "no picture"])
def test_a_video_that_fails_stops_nothing(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> np.ndarray:
        raise RuntimeError("the renderer is gone")

    lab = prepare("--save_video --log_save_tb --eval_frequency 10")
    if trouble == "no folder":
        (lab.folder / "video").write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(RecordingEnv, "render", fail)
    lab.play()
    assert lab.steps("eval") == [0, 40, 80, 120]
    assert len(lab.rows("train")) == 3
    assert "warning" in capsys.readouterr().err
    assert not list(lab.folder.rglob("*.mp4"))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), "CPU"])
def test_an_update_without_memory(
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception | str,
) -> None:
    """One line that names the flag; the CPU's error is torch's own."""

    def fail(agent: DrQAgent, batch: Batch) -> Any:
        if isinstance(error, Exception):
            raise error
        return torch.empty(1 << 60, dtype=torch.uint8)

    fakes()
    monkeypatch.setattr(DrQAgent, "update", fail)
    assert train.main(shlex.split(f"{TINY} --work_dir {tmp_path}")) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "there is no memory for an update of --batch_size 4; choose a smaller size" in said


def test_weights_that_are_no_numbers_are_not_saved(prepare: Prepare) -> None:
    run = prepare().run
    with torch.no_grad():
        next(run.agent.actor.parameters()).fill_(torch.nan)
    with pytest.raises(runs.RunError, match="weights became infinite or not a number"):
        runs.save_checkpoint(run)
    assert not list(run.folder.glob("checkpoint/state*"))


def test_other_errors_of_an_update_stay(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(agent: DrQAgent, batch: Batch) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(DrQAgent, "update", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        prepare().play()


@pytest.mark.parametrize(
    ("told", "folder"),
    [
        ("0::/slurm/job_1", "sys/fs/cgroup/slurm/job_1"),
        ("0::/slurm/job_1/step_0", "sys/fs/cgroup/slurm/job_1"),  # the job's limit holds for its steps
        ("0::/docker/4711", "sys/fs/cgroup"),  # what a container sees of its own
        ("5:cpu:/\n4:memory:/job_1\n0::/", "sys/fs/cgroup/memory/job_1"),
    ],
)
def test_free_memory_of_a_control_group(tmp_path: Path, told: str, folder: str) -> None:
    """Its limit, less what it uses, of which files that nobody reads are given up; without a limit the system's."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{told}\n")
    group = tmp_path / folder
    group.mkdir(parents=True)
    old = "memory:" in told
    limit, used = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
    files = {limit: "5000\n", used: "3000\n", "stat": "anon 1000\ninactive_file 800\ntotal_inactive_file 800\n"}
    for name, text in files.items():
        (group / f"memory.{name}").write_text(text)
    assert free_memory(tmp_path) == 5000 - 3000 + 800
    (group / f"memory.{limit}").write_text("9223372036854771712\n" if old else "max\n")
    assert free_memory(tmp_path) > 1e6
    assert free_memory(tmp_path / "none") > 1e6


@pytest.mark.parametrize("failing", [1, 6])
def test_an_unstable_training_episode(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: int
) -> None:
    """It ends before the step that did it, with a row, and the budget is used up all the same; a first step ends it."""
    step = RecordingEnv.step

    def break_down(env: RecordingEnv, action: np.ndarray) -> Any:
        if env.episode == 1 and env.steps + 1 == failing:
            raise SimulationError("the physics became unstable (a test)")
        return step(env, action)

    lab = prepare(episode_length=10)
    monkeypatch.setattr(RecordingEnv, "step", break_down)
    if failing == 1:
        with pytest.raises(runs.RunError, match=r"unstable .* first step, by frame 40; .* start a new run"):
            lab.play()
        return
    lab.play()
    assert lab.steps("train") == [40, 60, 100]
    assert [len(episode.actions) for episode in lab.env.played] == [10, 5, 10, 5]
    assert len(lab.run.buffer) == 30
    assert capsys.readouterr().err.count("warning: a training episode ends early, by frame 60: the physics") == 1


def test_main(fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes()
    assert train.main(shlex.split(f"{TINY} --work_dir {tmp_path} --eval_frequency 20")) == 0
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


def test_a_run_that_nobody_closes_stays(fakes: Fakes, tmp_path: Path) -> None:
    """As in somebody's notebook."""
    fakes()
    run = runs.setup(parse_args(shlex.split(f"{TINY} --work_dir {tmp_path / 'runs'}")))
    train.train(run)
    folder = run.folder
    run.logger.close()
    del run
    gc.collect()
    assert (folder / "checkpoint" / "manifest.json").exists()
    assert (folder / "train.csv").exists()


def test_a_run_says_what_it_runs_on(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    prepare()
    said = capsys.readouterr().out
    assert "device: cpu; renderer: fake, a fake renderer" in said
    assert re.search(r"replay buffer: 500 transitions need [\d.]+ GB, [\d.]+ GB are free", said)


def test_a_budget_without_updates_is_told(fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes()
    for seed_steps, told in ((29, False), (30, True)):
        runs.setup(parse_args(shlex.split(f"{TINY} --num_seed_steps {seed_steps} --work_dir {tmp_path}"))).close()
        assert ("warning: nothing will be learned" in capsys.readouterr().err) == told


def test_nothing_half_made_stays(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong once there is a folder."""
    fakes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("run_folder.write_config", fail)
    with pytest.raises(UserError, match="--work_dir"):
        runs.setup(parse_args(shlex.split(f"{TINY} --work_dir {tmp_path / 'runs'}")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_console_that_nobody_reads(stream: str, tmp_path: Path) -> None:
    """The pipe's other end closes at the first line; the run goes on to its end all the same."""
    flags = shlex.split(f"{TINY} --env pendulum_swingup --time_limit 40 --work_dir {tmp_path / 'runs'}")
    reader, writer = os.pipe()
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writer}
    child = subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, **streams)
    os.close(writer)
    os.close(reader)
    assert child.wait(timeout=120) == 0
    assert list(tmp_path.glob("runs/*/2*/checkpoint/manifest.json"))


def test_interrupt(fakes: Fakes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C: the step is finished, exit code 130, and what was written is whole."""
    step = RecordingEnv.step

    def interrupted(env: RecordingEnv, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if (len(env.played), env.steps) == (3, 4):
            signal.raise_signal(signal.SIGINT)
        return step(env, action)

    fakes(episode_length=10)
    monkeypatch.setattr(RecordingEnv, "step", interrupted)
    assert train.main(shlex.split(f"{TINY} --work_dir {tmp_path}")) == 130
    (file,) = tmp_path.glob("*/2*/train.csv")
    with file.open(newline="") as lines:
        assert [row["step"] for row in csv.DictReader(lines)] == ["40", "80"]
    assert file.read_text().endswith("\n")


# -- how the code is laid out ------------------------------------------------------------------------------------------

LAYERS: dict[str, set[str]] = {
    "benchmark": {
        *("config", "diayn", "dmc", "drq", "envs", "errors", "logger", "replay_buffer", "rollouts", "runs", "train"),
        "utils",
    },
    "sweep": {"config", "files", "stop", "sweep_record", "runs", "checkpoint", "envs"},
    "sweep_record": {"config", "files"},
    "plot": {"config", "logger"},
    "evaluate": {
        *("config", "checkpoint", "envs", "errors", "runs", "diayn", "drq", "logger", "rollouts", "skills", "video"),
        "utils",
    },
    "train": {"config", "runs", "stop", "errors", "logger", "rollouts", "skills", "video"},
    "runs": {
        *("config", "files", "stop", "checkpoint", "run_folder", "dmc", "diayn", "drq", "replay_buffer", "rollouts"),
        *("logger", "video", "utils", "envs", "errors"),
    },
    "run_folder": {"config", "files", "envs"},
    "checkpoint": {"files"},
    "files": {"config"},
    "config": {"errors"},
    "errors": set(),
    "skills": {"logger", "replay_buffer", "rollouts"},
    "stop": set(),
    "rollouts": {"envs", "errors", "drq", "replay_buffer", "logger", "video"},
    "diayn": {"drq", "replay_buffer", "utils"},
    "drq": {"replay_buffer", "graphs", "utils"},
    "logger": {"replay_buffer"},
    "replay_buffer": {"utils"},
    "graphs": set(),
    "dmc": {"envs", "errors"},
    "video": set(),
    "utils": set(),
}
OF_OTHERS = {"argparse", "gymnasium", "dm_control", "mujoco", "tensorboard", "tqdm", "csv", "cv2"}
WAITS_FOR_THE_DEVICE = {"item", "cpu", "tolist", "numpy"}


def imports(module: str) -> set[str]:
    """The top-level names that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("module", LAYERS)
def test_imports_point_downward(module: str) -> None:
    ours = {path.stem for path in ROOT.glob("*.py")}
    assert imports(module) & (ours | {"envs"}) <= LAYERS[module]
    assert set(LAYERS) == ours


@pytest.mark.parametrize("module", ["drq", "diayn"])
def test_agents_know_no_surroundings(module: str) -> None:
    assert not imports(module) & OF_OTHERS


@pytest.mark.parametrize("module", ["drq", "diayn"])
def test_updates_wait_for_nobody(module: str) -> None:
    """Only acting and judging may read a tensor's value; an update leaves its metrics on the device."""
    waiting = {
        function.name
        for function in ast.walk(ast.parse((ROOT / f"{module}.py").read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in WAITS_FOR_THE_DEVICE
    }
    assert waiting <= {"act", "assess", "assess_log_likelihood"}


def test_a_changed_source_is_told_from_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "train.py").write_text("1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))
    clean = run_folder._git_commit()
    (tmp_path / "train.py").write_text("2\n")
    assert run_folder._git_commit() == f"{clean}-dirty"


def test_every_resume_is_written_down_and_other_versions_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renderer = RendererInfo("osmesa", "a renderer")
    run_folder.write_config(parse_args(["--device", "cpu"]), tmp_path, renderer)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    assert record["renderer"] == {"backend": "osmesa", "name": "a renderer"}
    assert {"scipy", "pandas", "imageio-ffmpeg", "psutil"} <= record["versions"].keys()
    record["versions"]["mujoco"] = "0.1"
    path.write_text(json.dumps(record))
    for frame in (100, 200):
        run_folder.write_config(parse_args(["--device", "cpu"]), tmp_path, renderer, resumed_at=frame)
        assert "mujoco 0.1 -> " in capsys.readouterr().err
    resumed = json.loads(path.read_text())["resumed"]
    assert [entry["frame"] for entry in resumed] == [100, 200]
    assert all(entry["versions"]["mujoco"] != "0.1" and entry["device"] == "cpu" for entry in resumed)
