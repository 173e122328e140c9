"""Discriminators that are fitted to fresh episodes: what they see, how they are chosen, and on what they are tested."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import evaluate
from augmentations import make_augmentation
from config import FIELDS
from diayn import DIAYNAgent
from envs.pixel_env import Measurement
from errors import UserError
from evaluation import refit
from evaluation.chosen_skills import FEWEST_REFIT
from evaluation.imitate import stack_frames
from evaluation.load import load
from evaluation.play import Start, Trace, bytes_of_traces
from evaluation.refit import (
    Examples,
    PixelDiscriminator,
    Split,
    assess,
    check_memory_for_refit,
    distinct_seeds,
    draw,
    fit,
    pixel_examples,
    split,
    state_examples,
)
from networks import mlp
from tests.support.runs import SeededEnv, rows, start_seeds_since

RunEvaluate = Callable[[str], Path]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for a few updates only, if a run is played."""
    monkeypatch.setattr(refit, "UPDATES", {"pixels": 20, "states": 40})


# -- episodes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "sizes"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (10, (5, 2, 3)), (100, (50, 20, 30))])
def test_every_start_is_in_one_part(count: int, sizes: tuple[int, ...]) -> None:
    seeds = distinct_seeds(7, count)
    parts = split(seeds)
    assert tuple(map(len, parts)) == sizes
    assert [seed for part in parts for seed in part] == seeds
    assert len(set(seeds)) == count
    assert max(seeds) < 2**31, "a larger seed may start like another one"
    assert not set(seeds) & set(distinct_seeds(8, count))


def start(skill: int, states: list[list[float]] | None = None, pictures: int = 0) -> Start:
    frames = [np.full((3, 4, 4), 10 * skill + step, np.uint8) for step in range(pictures)]
    return Start(skill, 0, trace=Trace(states=[np.array(state) for state in states or []], pictures=frames))


def test_pixels_are_the_stacked_observations() -> None:
    """As the agent saw them after each step: the first ones repeat the frame of the reset."""
    starts = [start(2, pictures=6), start(5, pictures=3)]
    examples = pixel_examples(starts, 3)
    assert examples.skill.tolist() == [2] * 5 + [5] * 2
    seen = examples.inputs(np.array([6, 0, 3, 0]))
    expected = np.concatenate([stack_frames(np.array(one.trace.pictures), 3) for one in starts])
    np.testing.assert_array_equal(seen, expected[[6, 0, 3, 0]])


def test_states_are_scaled_and_turns_do_not_count() -> None:
    """Entry 1 is an angle. The scale is that of the training episodes; an entry that is constant there is left out."""
    rng = np.random.default_rng(0)
    place, angle = rng.normal(5.0, 3.0, 40), rng.uniform(-3.0, 3.0, 40)
    parts = []
    for turns in (0, 0, 4):
        states = np.stack([place, angle + 2 * math.pi * turns, np.full(40, 9.0)], axis=1)
        parts.append([start(3, states.tolist())])
    train, _, test = state_examples(Split(*parts), [1])
    everything = np.arange(39)
    assert train.inputs(everything).shape == (39, 3)
    np.testing.assert_allclose(train.inputs(everything), test.inputs(everything), atol=1e-5)
    np.testing.assert_allclose(train.inputs(everything).mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(train.inputs(everything).std(axis=0), 1.0, atol=1e-6)
    assert test.skill.tolist() == [3] * 39
    plain = state_examples(Split(*parts), [])
    assert np.abs(plain.train.inputs(everything) - plain.test.inputs(everything)).max() > 1


# -- discriminators ----------------------------------------------------------------------------------------------------


def points(skills: int, count: int, spread: float, seed: int) -> Examples:
    """Return points around a place for each skill, on a line."""
    rng = np.random.default_rng(seed)
    skill = np.repeat(np.arange(skills), count)
    places = (skill + spread * rng.normal(size=skill.size))[:, None].astype(np.float32)
    return Examples(skill, places.__getitem__)


def test_the_score_against_a_plain_computation() -> None:
    """Every skill has the same weight, however many steps it has."""
    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    skill = np.array([0] * 700 + [1] * 20 + [2] * 3)
    values = np.random.default_rng(0).normal(size=(723, 1)).astype(np.float32)
    score = assess(model, Examples(skill, values.__getitem__), np.arange(723))
    log_q = model(torch.from_numpy(values)).detach().log_softmax(1).numpy()
    own = [log_q[skill == each] for each in range(3)]
    assert score.bound == pytest.approx(np.mean([rows[:, each].mean() for each, rows in enumerate(own)]) + math.log(3))
    assert score.accuracy == pytest.approx(np.mean([(rows.argmax(1) == each).mean() for each, rows in enumerate(own)]))


def test_draws_are_uniform_over_skills() -> None:
    skill = np.array([0, 1, 0, 0, 2, 0, 0, 0, 2])
    rows = draw(skill, 30000, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(skill[rows]) / 30000, 1 / 3, atol=0.02)
    np.testing.assert_allclose(np.bincount(rows)[[4, 8]] / 30000, 1 / 6, atol=0.02)


def test_skills_that_differ_are_told_apart_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four skills at different places are at the ceiling; at the same place the bound stays at chance, not below."""
    monkeypatch.setattr(refit, "UPDATES", {"states": 400})
    bounds = []
    for spread in (0.05, 1000.0):
        torch.manual_seed(0)
        model = mlp(1, 64, 4, 2)
        examples = Split(*(points(4, 60, spread, seed) for seed in range(3)))
        fit(model, examples, make_augmentation("none", 0, torch.Generator()), "states", np.random.default_rng(0))
        bounds.append(assess(model, examples.test, np.arange(240)).bound)
    assert bounds[0] == pytest.approx(math.log(4), abs=0.05)
    assert -0.1 < bounds[1] < 0.1


def test_the_best_weights_in_validation_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The skills are exchanged in validation, so every update makes it worse."""
    monkeypatch.setattr(refit, "UPDATES", {"states": 60})
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    skill = np.repeat([0, 1], 50)
    places = (2.0 * skill[:, None] - 1.0).astype(np.float32)
    train, exchanged = (Examples(labels, places.__getitem__) for labels in (skill, 1 - skill))
    none = make_augmentation("none", 0, torch.Generator())
    assert fit(model, Split(train, exchanged, train), none, "states", np.random.default_rng(0)) == 0
    assert torch.equal(model.weight, torch.zeros(2, 1))
    assert fit(model, Split(train, train, train), none, "states", np.random.default_rng(0)) == 60
    assert model.weight[1] > 0 > model.weight[0]


def test_the_pixel_discriminator_is_built_like_the_agents(pretrained: Path) -> None:
    agent = load(pretrained, "cpu").agent
    assert isinstance(agent, DIAYNAgent)
    own = {name: value.shape for name, value in agent.discriminator.state_dict().items()}
    new = {name.removeprefix("discriminator."): v.shape for name, v in PixelDiscriminator(agent).state_dict().items()}
    assert new == own


@pytest.mark.parametrize("augmentation", FIELDS["augmentation"].metadata["choices"])
def test_augmented_pictures_are_scaled_as_others(pretrained: Path, augmentation: str) -> None:
    """Some augmentations return float32, in the range of the pictures."""
    agent = load(pretrained, "cpu").agent
    assert isinstance(agent, DIAYNAgent)
    model, seen = PixelDiscriminator(agent), []
    model.encoder.convs[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
    images = torch.full((4, *agent.arch.obs_shape), 200, dtype=torch.uint8)
    with torch.enable_grad(), pytest.MonkeyPatch.context() as patches:
        patches.setattr("networks.can_fuse_relu", lambda x: False)
        model(make_augmentation(augmentation, 1, torch.Generator().manual_seed(0))(images))
    assert 0.4 < seen[0].max() < 1.2


# -- evaluate.py -------------------------------------------------------------------------------------------------------


def test_refit_of_a_run(
    run_evaluate: RunEvaluate,
    fake_envs: list[SeededEnv],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each start is played once with each skill. A second time gives the same numbers, with other episodes others."""
    measured = lambda env: Measurement(env.frames[-1][:, 0, 0].astype(float), np.zeros(3), np.empty(0))  # noqa: E731
    monkeypatch.setattr(SeededEnv, "measure", measured)
    known = len(fake_envs)
    out = run_evaluate("--no_video --refit 4 --seed 5")
    seeds = start_seeds_since(fake_envs, known)
    assert {seed: seeds.count(seed) for seed in distinct_seeds(5, 4)} == dict.fromkeys(distinct_seeds(5, 4), 4)
    first = rows(out / "refit.csv")
    assert [row["discriminator"] for row in first] == ["agent", "pixels", "states"]
    counts = ("episodes_train", "episodes_validation", "episodes_test")
    assert [tuple(row[name] for name in counts) for row in first] == [("", "", "4"), *[("8", "4", "4")] * 2]
    for row in first:
        assert float(row["mutual_information_bound"]) <= math.log(4)
        assert (row["policy"], row["step"]) == ("trained", "120")
    assert "--refit 4: 16 episodes with all pictures need 336 KB, " in capsys.readouterr().out
    assert rows(run_evaluate("--no_video --refit 4 --seed 5") / "refit.csv") == first
    assert rows(run_evaluate("--no_video --refit 4 --seed 6") / "refit.csv") != first


def test_refit_beside_the_untrained_agent(run_evaluate: RunEvaluate) -> None:
    """Without states of the physics there is no discriminator of them."""
    table = rows(run_evaluate("--no_video --refit 3 --controls") / "refit.csv")
    assert [(row["policy"], row["step"], row["discriminator"]) for row in table] == [
        *(("trained", "120", name) for name in ("agent", "pixels")),
        *(("untrained", "0", name) for name in ("agent", "pixels")),
    ]


def test_the_agents_own_row_is_of_the_test_episodes(pretrained: Path, fake_envs: list[SeededEnv]) -> None:
    loaded = load(pretrained, "cpu")
    assert isinstance(loaded.agent, DIAYNAgent)
    own = refit.refit(loaded, loaded.agent, 5, 9, "mode")[0]
    tested = loaded.evaluate(range(4), split(distinct_seeds(9, 5)).test, video_folder=None)
    for name in ("mutual_information_bound", "discriminator_accuracy"):
        assert own[name] == pytest.approx(tested.overall[name])


def test_pictures_that_do_not_fit_in_memory(
    pretrained: Path, tmp_path: Path, fake_envs: list[SeededEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before anything is played."""
    loaded = load(pretrained, "cpu")
    one = bytes_of_traces(4, 10, 24, all_pictures=True)
    monkeypatch.setattr(refit, "free_memory", lambda: 8 * one)
    with pytest.raises(UserError, match=r"--refit 20: 80 episodes with all pictures need .*B are free; try 6$"):
        check_memory_for_refit(loaded, 20)
    monkeypatch.setattr(refit, "free_memory", lambda: 2 * one)
    known = len(fake_envs)
    out = tmp_path / "out"
    assert evaluate.main([str(pretrained), "--refit", "20", "--device", "cpu", "--out", str(out)]) == 2
    assert not start_seeds_since(fake_envs, known)
    assert not out.exists()


@pytest.mark.usefixtures("fake_envs")
def test_flags_that_are_refused(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused: dict[str, Any] = {
        f"--refit {FEWEST_REFIT - 1}": f"must be from {FEWEST_REFIT} to 999999",
        "--refit 5 --skills 1": "--refit plays all skills",
    }
    for line, words in refused.items():
        with pytest.raises(SystemExit):
            evaluate.parse_args([str(pretrained), *line.split()])
        assert words in capsys.readouterr().err
