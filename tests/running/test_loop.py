"""The training loop: when it evaluates, what it stores, updates and writes, and what it does when something fails."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diayn import DIAYNAgent
from drq import DrQAgent, Views
from errors import RenderingError, RunError, SimulationError
from replay_buffer import Batch, ReplayBuffer
from running import loop
from running.columns import SKILL_COLUMNS
from running.run import Run
from running.state import save_checkpoint
from tests.support.labs import Prepare, numbers
from tests.support.runs import RecordingEnv, without_clock

NEWEST = -3  # the channel of a stack that holds its newest frame's first channel: the number of the fake's episode


def log_q(agent: DrQAgent, observations: list[np.ndarray]) -> torch.Tensor:
    """Return log q_phi(z | s') of every skill, (N, K), computed from the networks alone."""
    assert isinstance(agent, DIAYNAgent)
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
    """Before training, at the first episode end at or after each multiple of the frequency, and at the end."""
    flags = f"--num_skills 0 --eval_frequency {frequency} --num_train_steps {budget} --num_seed_steps {budget}"
    lab = prepare(f"{flags} --action_repeat {action_repeat}", episode_length=length).play()
    assert lab.steps("eval") == [step * action_repeat for step in expected]
    assert [int(row["episode"]) for row in lab.rows("eval")] == [step // length for step in expected]


@pytest.mark.parametrize("num_skills", [0, 2])
def test_evaluation_leaves_training_alone(prepare: Prepare, num_skills: int) -> None:
    """However often it comes, the weights are the same to the bit, and so is train.csv."""
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
    """They have the same seeds, so if actions are ignored, every skill gets the same rewards."""
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


def test_evaluation_has_its_own_seeds(prepare: Prepare) -> None:
    """Training is seeded once, and none of its starts is evaluated."""
    lab = prepare("--eval_frequency 10 --num_eval_episodes 3 --seed 5").play()
    assert lab.env.seeds == [5, None, None]
    seeds = {played.seed for played in lab.evaluated()}
    assert len(seeds) >= 3
    assert not seeds & set(lab.env.seeds)


def test_same_seed_same_numbers(prepare: Prepare) -> None:
    first, second, other = (
        prepare(f"--seed {seed} --eval_frequency 10 --num_train_steps 40", ragged=True).play() for seed in (3, 3, 4)
    )
    for name in ("train", "eval", "episodes"):
        assert without_clock(first.rows(name)) == without_clock(second.rows(name))
    rows, others = first.rows("train"), other.rows("train")
    for column in ("episode_reward", "episode_intrinsic_reward_sum", "critic_loss"):
        assert not {row[column] for row in rows if row[column]} & {row[column] for row in others if row[column]}


# -- what is written ---------------------------------------------------------------------------------------------------


def test_returns_are_in_their_own_rows(prepare: Prepare) -> None:
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
    """In CSV files, TensorBoard and the names of videos: agent steps times the action repeat, here 3."""
    flags = "--action_repeat 3 --eval_frequency 15 --log_frequency_step 8 --save_video --log_save_tb"
    lab = prepare(flags, episode_length=10).play()
    assert lab.steps("train") == [30, 60, 90]
    assert lab.steps("eval") == [0, 60, 90]
    assert [int(row["step"]) for row in lab.episodes("train")] == [30, 60, 90]
    assert [int(row["step"]) for row in lab.episodes("eval")] == [0, 0, 60, 60, 90, 90]
    names = {f"{frame:08}_{name}.mp4" for frame in (0, 60, 90) for name in ("skill0", "skill1", "skills")}
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
    lab = prepare("--eval_frequency 10 --action_repeat 3", pictures=True).play()
    assert (lab.folder / "skills.csv").read_text().splitlines()[0] == ",".join(SKILL_COLUMNS)
    assert [(row["step"], row["skill_id"]) for row in lab.rows("skills")] == [
        (frame, skill) for frame in ("0", "30", "60", "90") for skill in ("0", "1")
    ]
    names = {f"{frame:08}_{name}.png" for frame in (0, 30, 60, 90) for name in ("confusion_matrix", "contact_sheet")}
    assert {path.name for path in (lab.folder / "skills").iterdir()} == names
    assert not (lab.folder / "video").exists(), "--save_video false"


def test_clips_have_their_tags(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard has each skill's own video under its name, at the environment's frame rate."""
    lab = prepare("--eval_frequency 100 --save_video --log_save_tb")
    shown: list[tuple[str, str, float]] = []
    monkeypatch.setattr(
        lab.run.logger, "video", lambda tag, path, fps, step: shown.append((path.stem, f"{step:08}_{tag}", fps))
    )
    lab.play()
    assert len(shown) == 2 * 3
    assert all(stem == tag and fps == 20 for stem, tag, fps in shown)
    for path in (lab.folder / "video").iterdir():
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(20)


def test_clock_of_a_run(prepare: Prepare, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations are seconds of this run that do not overlap; shares add up to one; progress counts frames."""
    lab, began = prepare("--eval_frequency 30"), time.perf_counter()
    frames: list[int] = []
    monkeypatch.setattr(lab.run.logger, "progress", lambda frame, seconds: frames.append(frame))
    lab.env.render_seconds = 1e9
    lab.play()
    elapsed = time.perf_counter() - began
    durations = numbers(lab.rows("episodes"), "duration")
    assert 0 < min(durations) <= sum(durations) < elapsed
    assert frames == [4 * step for step in range(1, 31)]
    shares = lab.run.time_shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["environment"] == 0, "all of its time was spent rendering"
    assert "done: 120 frames in " in capsys.readouterr().out


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_discriminator_figures_of_an_evaluation(prepare: Prepare, encoder: str) -> None:
    """Accuracy, E[log q] + log K and intrinsic sums equal those of the final networks on the final episodes."""
    flags = f"--num_skills 3 --eval_frequency 100 --num_eval_episodes 2 --discriminator_encoder {encoder}"
    lab = prepare(f"{flags} --num_train_steps 60 --lr_discriminator 1e-2", ragged=True).play()
    rows, last = lab.episodes("eval")[-6:], lab.rows("eval")[-1]
    by_return = {round(sum(played.rewards), 9): played for played in lab.evaluated()}
    intrinsic, recognized = [], []  # of each episode, by step
    for row in rows:
        played, skill = by_return[round(float(row["episode_extrinsic_reward"]), 9)], int(row["skill_id"])
        log_probs = log_q(lab.run.agent, played.observations[1:])
        intrinsic.append(log_probs[:, skill].numpy() + math.log(3))
        recognized.append((log_probs.argmax(dim=1) == skill).numpy())
    assert len({len(steps) for steps in intrinsic}) > 1  # else a mean over episodes would equal one over steps
    sums, rewards = [steps.sum() for steps in intrinsic], np.concatenate(intrinsic)
    assert numbers(rows, "episode_intrinsic_reward_sum") == pytest.approx(sums, abs=1e-4)
    assert float(last["episode_intrinsic_reward_sum"]) == pytest.approx(np.mean(sums), abs=1e-4)
    assert float(last["mutual_information_bound"]) == pytest.approx(rewards.mean(), abs=1e-5)
    assert float(last["discriminator_accuracy"]) == pytest.approx(np.concatenate(recognized).mean())
    assert np.abs(rewards).max() > 0.05


@pytest.mark.parametrize("encoder", ["shared", "separate"])
def test_intrinsic_sum_of_a_training_episode(prepare: Prepare, encoder: str) -> None:
    """It equals that of the networks at the episode's end; the episode is no multiple of the batch."""
    flags = f"--num_skills 3 --lr_discriminator 1e-2 --discriminator_encoder {encoder}"
    lab = prepare(f"{flags} --num_train_steps 33", episode_length=11).play()
    last = lab.rows("train")[-1]
    log_probs = log_q(lab.run.agent, lab.env.played[-1].observations[1:])
    expected = float((log_probs[:, int(last["skill_id"])] + math.log(3)).sum())
    assert abs(expected) > 0.05
    assert float(last["episode_intrinsic_reward_sum"]) == pytest.approx(expected, abs=1e-4)
    assert lab.episodes("train")[-1]["episode_intrinsic_reward_sum"] == last["episode_intrinsic_reward_sum"]


# -- acting, updating, storing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_skills", [0, 2])
@pytest.mark.parametrize(
    ("budget", "seed_steps", "iterations", "expected"),
    [(30, 10, 1, 20), (30, 10, 3, 60), (12, 30, 1, 0), (20, 0, 1, 19)],  # an empty buffer allows no update
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
    """`num_train_iters` for each agent step after `num_seed_steps`; they change every tensor of every network."""
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


@pytest.mark.parametrize(
    ("seed_steps", "every", "expected"),
    [(10, 1, range(10, 30)), (10, 4, (12, 16, 20, 24, 28)), (0, 8, (8, 16, 24)), (16, 8, (16, 24)), (10, 40, ())],
)
def test_steps_that_make_updates(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, seed_steps: int, every: int, expected: Sequence[int]
) -> None:
    """Multiples of `agent_steps_per_update` from `num_seed_steps` on, when there is a transition to learn from.

    The progress bar times these only.
    """
    lab = prepare(f"--num_seed_steps {seed_steps} --agent_steps_per_update {every} --num_train_iters 2")
    update, steps, timed = lab.run.agent.update, [], []

    def spy(batch: Batch) -> dict[str, torch.Tensor]:
        steps.append(lab.run.step)
        return update(batch)

    def progress(frame: int, seconds: float | None) -> None:
        timed.extend([] if seconds is None else [frame])

    monkeypatch.setattr(lab.run.agent, "update", spy)
    monkeypatch.setattr(lab.run.logger, "progress", progress)
    lab.play()
    assert steps == [step for step in expected for _ in range(2)]
    assert timed == [lab.run.frame_at(step + 1) for step in expected]


@pytest.mark.parametrize("num_skills", [0, 2])
def test_the_discriminators_batch_is_new(prepare: Prepare, monkeypatch: pytest.MonkeyPatch, num_skills: int) -> None:
    """All of it is among the newest transitions, and without skills there is none."""
    lab, given = prepare(f"--discriminator_window 3 --num_skills {num_skills}", episode_length=7), []
    update = lab.run.agent.update

    def spy(batch: Batch, *recent: Batch) -> dict[str, torch.Tensor]:
        newest = next(lab.run.buffer.recent(3, 3))
        for own in recent:
            assert len(own.reward) == 4
            assert set(own.reward.tolist()) <= set(newest.reward.tolist())
        given.append((batch, *recent))
        return update(batch, *recent)

    monkeypatch.setattr(lab.run.agent, "update", spy)
    lab.play()
    assert {len(batches) for batches in given} == {1 + (num_skills > 0)}
    assert len({tuple(batch.reward.tolist()) for batch, *_ in given}) > 10


def test_the_bonus_of_an_ensemble_is_logged(prepare: Prepare) -> None:
    """Its column is the last one, and it is there only if there is a bonus."""
    ensemble = "--discriminator_ensemble 2"
    tables = [
        prepare(f"{ensemble} {more}", episode_length=7).play().rows("train") for more in ("--disdain_coeff 1", "")
    ]
    assert [*tables[1][0], "disdain_bonus"] == list(tables[0][0])
    assert all(float(row["disdain_bonus"]) > 0 for row in tables[0] if row["discriminator_loss"])
    assert any(row["discriminator_loss"] for row in tables[0])


def test_every_update_has_its_own_batch(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """An update sees the transitions of finished steps only, so it can run beside the environment's step."""
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


def test_transitions_are_what_was_played(prepare: Prepare) -> None:
    """A transition has the observations before and after its action, within one episode, and that action's reward."""
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
    """One skill acts from start to end, is stored with each transition, and is written to both files."""
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
    """The base agent, without parameters or random numbers for skills, and skill -1 in every file."""
    lab = prepare("--num_skills 0 --eval_frequency 10")
    drawn = lab.run.skill_rng.bit_generator.state
    lab.play()
    assert type(lab.run.agent) is DrQAgent
    assert not [key for key in lab.weights() if "skill" in key]
    assert lab.run.skill_rng.bit_generator.state == drawn
    assert {row["skill_id"] for row in lab.rows("episodes")} == {"-1"}
    assert set(lab.stored().skill.tolist()) == {-1}
    assert all(float(row["episode_intrinsic_reward_sum"]) == 0 for row in lab.rows("episodes"))


def test_by_default_skills_learn_from_the_discriminator_alone(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward is log q + log K without the task's, and the temperature stays at 0.1."""
    lab, rewards = prepare(), []
    update_critic = DrQAgent.update_critic

    def spy(agent: DIAYNAgent, views: Views, reward: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            logits = agent.classify(views.next_obs[: len(reward)])
        rewards.append((reward, agent.intrinsic_reward(logits, views.skill)))
        return update_critic(agent, views, reward, features)

    monkeypatch.setattr(DrQAgent, "update_critic", spy)
    lab.play()
    assert len(rewards) == 20
    for reward, intrinsic in rewards:
        torch.testing.assert_close(reward, intrinsic, rtol=1e-4, atol=1e-5)
    assert float(lab.run.agent.log_alpha.exp()) == pytest.approx(0.1)


def test_skills_are_drawn_from_their_own_stream(prepare: Prepare) -> None:
    lab = prepare()
    drawn = lab.run.skill_rng.bit_generator.state
    assert isinstance(lab.play().run.agent, DIAYNAgent)
    assert lab.run.skill_rng.bit_generator.state != drawn


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["no folder", "no picture"])
def test_training_continues_when_a_video_fails(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> np.ndarray:
        raise RenderingError("the renderer is gone")

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


def test_a_batch_that_does_not_fit_in_memory_names_its_flag(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(buffer: ReplayBuffer, batch_size: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(ReplayBuffer, "sample", fail)
    with pytest.raises(RunError, match="not enough memory for an update of --batch_size 4; choose a smaller"):
        prepare().play()


def test_an_evaluation_leaves_no_figures(prepare: Prepare) -> None:
    """Python by itself would collect their cycles of objects only after dozens of evaluations."""
    gc.collect()
    prepare("--eval_frequency 10", pictures=True).play()
    assert not [found for found in gc.get_objects() if type(found) is Figure]


def test_other_errors_of_an_update_are_raised(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(agent: DrQAgent, batch: Batch) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(DrQAgent, "update", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        prepare().play()


@pytest.mark.parametrize("failing", [1, 6])
def test_an_unstable_training_episode(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failing: int
) -> None:
    """It ends before the failing step, with a row, and the run continues; in a first step the run ends."""
    step = RecordingEnv.step

    def break_down(env: RecordingEnv, action: np.ndarray) -> Any:
        if env.episode == 1 and env.steps + 1 == failing:
            raise SimulationError("the physics became unstable (a test)")
        return step(env, action)

    lab = prepare(episode_length=10)
    monkeypatch.setattr(RecordingEnv, "step", break_down)
    if failing == 1:
        with pytest.raises(RunError, match=r"unstable .* first step, by frame 40; .* start a new run"):
            lab.play()
        return
    lab.play()
    assert lab.steps("train") == [40, 60, 100]
    assert [len(episode.actions) for episode in lab.env.played] == [10, 5, 10, 5]
    assert len(lab.run.buffer) == 30
    assert capsys.readouterr().err.count("warning: a training episode ends early, by frame 60: the physics") == 1


def test_actions_that_are_not_finite_end_the_run(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the last good checkpoint, and none is written after it."""
    lab = prepare("--checkpoint_frequency 10")
    monkeypatch.setattr(lab.run.agent, "act", lambda *_, **__: np.array([np.nan, 0], np.float32))
    message = r"the policy's action became infinite or not a number by frame 40; last good checkpoint of frame 40: "
    with pytest.raises(RunError, match=message):
        lab.play()
    assert lab.run.checkpoints.step == 10


def test_weights_that_are_not_finite_end_the_run_before_their_histogram(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard has no histogram of them, and would raise an error of its own."""
    lab = prepare("--log_save_tb --log_frequency_step 1 --num_seed_steps 5")
    update = lab.run.agent.update

    def diverge(*batches: Batch) -> Any:
        metrics = update(*batches)
        with torch.no_grad():
            next(lab.run.agent.actor.parameters()).fill_(float("inf"))
        return metrics

    monkeypatch.setattr(lab.run.agent, "update", diverge)
    with pytest.raises(RunError, match=r"weights became infinite or not a number by frame 24; last good checkpoint of"):
        lab.play()


@pytest.mark.parametrize("steps", [13, 20])
def test_the_last_state_is_saved_once(prepare: Prepare, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Whether the budget ends within an episode or with it."""
    saved: list[int] = []

    def remember(run: Run) -> None:
        saved.append(run.step)
        save_checkpoint(run)

    monkeypatch.setattr(loop, "save_checkpoint", remember)
    prepare(f"--num_train_steps {steps} --checkpoint_frequency 10").play()
    assert saved == sorted({0, 10, steps})
