"""plot.py on folders of runs: finished, killed, of several tasks and settings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import plot
from evaluation import curves, panels
from evaluation.runs import read_run
from running.columns import EPISODE_COLUMNS, EVAL_COLUMNS, EVAL_SKILL_COLUMNS, SKILL_COLUMNS
from running.derivation import make_config
from running.names import folder_name

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, returns)` writes a run's CSV files and config.json and returns its folder."""

    def make(
        name: str, returns: list[float], env: str = "cartpole_swingup", num_skills: int = 0, seed: int = 1, **flags: Any
    ) -> Path:
        folder = tmp_path / "runs" / folder_name(env) / name
        folder.mkdir(parents=True)
        config = make_config({"env": env, "num_skills": num_skills, "seed": seed, **flags})
        (folder / "config.json").write_text(json.dumps({"flags": vars(config)}))
        steps = [1000 * number for number in range(len(returns))]
        columns = EVAL_COLUMNS + EVAL_SKILL_COLUMNS * bool(num_skills)
        rows = pd.DataFrame({"episode": range(len(steps)), "step": steps, "episode_reward": returns}, columns=columns)
        if num_skills:
            rows[["discriminator_accuracy", "mutual_information_bound"]] = 0.5, 1.0
        rows.to_csv(folder / "eval.csv", index=False)
        pd.DataFrame(columns=EPISODE_COLUMNS).to_csv(folder / "episodes.csv", index=False)
        if num_skills:
            measures = {"mutual_information_bound": 1.0, "state_distance_within": 0.5, "state_distance_between": 1.5}
            per_skill = [
                {"step": step, "skill_id": skill, "episode_extrinsic_reward": value + skill, **measures}
                for step, value in zip(steps, returns, strict=True)
                for skill in range(num_skills)
            ]
            pd.DataFrame(per_skill, columns=SKILL_COLUMNS).to_csv(folder / "skills.csv", index=False)
        return folder

    return make


def numbers(out: Path, env: str = "cartpole_swingup") -> pd.DataFrame:
    return pd.read_csv(out / f"{env}.csv")


def test_mean_interquartile_mean_and_interval(make_run: MakeRun, tmp_path: Path) -> None:
    values = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 1000.0]
    for seed, value in enumerate(values):
        make_run(f"run{seed}", [0.0, value], seed=seed)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    last = numbers(tmp_path / "out").iloc[-1]
    assert last["mean"] == pytest.approx(np.mean(values), rel=1e-4)
    assert last["interquartile_mean"] == pytest.approx(np.mean(values[2:6]))
    assert last["low"] < last["mean"] < last["high"]
    assert last["low"] > 0
    assert last["seeds"] == 8
    picture = cv2.imread(str(tmp_path / "out" / "cartpole_swingup.png"))
    assert picture is not None
    assert picture.std() > 10
    assert (tmp_path / "out" / "cartpole_swingup.pdf").read_bytes().startswith(b"%PDF")


def test_runs_of_different_lengths_are_compared_on_common_frames(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("long", [0.0, 1.0, 2.0, 3.0], seed=1)
    killed = make_run("killed", [0.0, 3.0], seed=2)
    (killed / "eval.csv").write_text((killed / "eval.csv").read_text().replace("1,1000,", "1,1500,"))
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    table = numbers(tmp_path / "out")
    assert table["frame"].tolist() == [0, 1000, 1500]
    assert table["mean"].tolist() == pytest.approx([0.0, 1.5, 2.25])


def test_a_figure_for_each_task_and_a_group_for_each_setting(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", [1.0, 2.0], seed=1)
    make_run("b", [1.0, 2.0], seed=2)
    make_run("c", [1.0, 2.0], seed=1, precision="bf16")
    make_run("d", [1.0, 2.0], num_skills=4)
    make_run("e", [1.0, 2.0], env="walker_walk", num_skills=3)
    plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["cartpole_swingup.png", "walker_walk.png"]
    seeds = numbers(tmp_path / "out").query("metric == 'episode_reward'").groupby("group")["seeds"].first().to_dict()
    assert sorted(seeds.values()) == [1, 1, 2]
    assert any("bf16" in label for label in seeds)
    assert any("4 skills" in label for label in seeds)
    bound = numbers(tmp_path / "out", "walker_walk").query("metric == 'mutual_information_bound'")
    assert bound["mean"].tolist() == [1.0, 1.0]


def test_a_run_of_a_version_with_other_measures(make_run: MakeRun, tmp_path: Path) -> None:
    """Only the columns that are drawn are needed, and others do not disturb."""
    folder = make_run("a", [1.0, 2.0], num_skills=2)
    table = pd.read_csv(folder / "eval.csv").drop(columns=["effective_skills", "mutual_information_bound_second_half"])
    table.to_csv(folder / "eval.csv", index=False)
    pd.read_csv(folder / "skills.csv").assign(accuracy_at_start=0.5).to_csv(folder / "skills.csv", index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert set(numbers(tmp_path / "out")["metric"]) >= {"mutual_information_bound", "discriminator_accuracy"}


def test_fine_tuned_beside_scratch(make_run: MakeRun, tmp_path: Path) -> None:
    """A fine-tuned run has skills in its flags but not in its tables."""
    make_run("scratch", [1.0, 2.0])
    tuned = make_run("tuned", [3.0, 4.0])
    record = json.loads((tuned / "config.json").read_text())
    record["flags"] |= {"finetune_from": "elsewhere", "num_skills": 4}
    (tuned / "config.json").write_text(json.dumps(record))
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert numbers(tmp_path / "out").groupby("group")["mean"].last().to_dict() == {"DrQ": 2.0, "fine-tuned skill": 4.0}


def test_what_makes_a_group(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names and budgets do not distinguish groups, rewards do. Of two runs with the same seed the longer one counts."""
    make_run("a", [1.0, 2.0], num_skills=3, seed=1, run_name="a")
    make_run("b", [1.0, 2.0, 5.0], num_skills=3, seed=2, run_name="b", num_train_steps=77)
    make_run("c", [7.0], num_skills=3, seed=2)
    make_run("d", [1.0, 2.0], num_skills=3, seed=3, extrinsic_reward_coeff=1.0)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    seeds = numbers(tmp_path / "out").groupby("group")["seeds"].first()
    assert sorted(seeds) == [1, 2]
    assert "c' is left out: '" in capsys.readouterr().err


def test_unusual_names_and_missing_tables(make_run: MakeRun, tmp_path: Path) -> None:
    """A namespaced Gymnasium environment, and a run of a version that had no skills.csv."""
    (make_run("a", [1.0, 2.0], env="gym:ns/Env-v0", num_skills=2) / "skills.csv").unlink()
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "gym_ns_Env-v0.png").exists()


def test_a_run_without_evaluations_and_one_without_config(make_run: MakeRun, tmp_path: Path) -> None:
    empty = make_run("begun", [])
    assert (empty / "eval.csv").read_text().count("\n") == 1
    (make_run("kept", [1.0, 2.0]) / "config.json").unlink()
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert numbers(tmp_path / "out")["seeds"].tolist() == [1, 1]


def test_reference_is_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", [1.0, 2.0])
    reference = tmp_path / "published.csv"
    reference.write_text(
        "step,episode,episode_reward,env,seed\n0,0,500,cartpole_swingup,1\n2000,1,900,cartpole_swingup,1\n"
    )
    pictures = []
    for more in ([], ["--reference", str(reference)]):
        assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *more]) == 0
        pictures.append((tmp_path / "out" / "cartpole_swingup.png").read_bytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize("trouble", ["no folder", "no runs", "no columns", "no table", "no place"])
def test_bad_input(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: str) -> None:
    arguments = [str(make_run("a", [1.0, 2.0])), "--out", str(tmp_path / "out")]
    if trouble == "no folder":
        arguments[0] = str(tmp_path / "nowhere")
    elif trouble == "no runs":
        (tmp_path / "empty").mkdir()
        arguments[0] = str(tmp_path / "empty")
    elif trouble == "no place":
        (tmp_path / "file").write_text("")
        arguments[2] = str(tmp_path / "file")
    else:
        (tmp_path / "r.csv").write_text("a,b\n1,2\n" if trouble == "no columns" else "a\n1,2\n3,4,5,6\n")
        arguments += ["--reference", str(tmp_path / "r.csv")]
    assert plot.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_mean_covers_only_frames_that_all_curves_cover() -> None:
    summary = curves.over_seeds([pd.Series([1.0, 2.0, 3.0], index=[0, 4, 8]), pd.Series([6.0, 8.0], index=[2, 6])])
    assert summary["frame"].tolist() == [2, 4, 6]
    assert summary["mean"].tolist() == [(1.5 + 6) / 2, (2 + 7) / 2, (2.5 + 8) / 2]


def test_over_seeds_alone() -> None:
    summary = curves.over_seeds([pd.Series([1.0, math.pi], index=[0, 8])])
    assert summary["mean"].tolist() == summary["interquartile_mean"].tolist() == [1.0, math.pi]


@pytest.mark.parametrize("seeds", [2, 4, 5])
def test_an_interval_takes_five_seeds(seeds: int) -> None:
    """With two seeds it would be the two values."""
    summary = curves.over_seeds([pd.Series([0.0, float(seed)], index=[0, 8]) for seed in range(seeds)])
    assert summary[["low", "high"]].isna().to_numpy().all() == (seeds < 5)


def test_flags_that_a_run_does_not_read_do_not_distinguish_groups(make_run: MakeRun, tmp_path: Path) -> None:
    """For example the discriminator's flags in plain DrQ."""
    unread = {"discriminator_window": 500, "discriminator_encoder": "shared", "skill_embedding_dim": 5}
    make_run("a", [1.0, 2.0], seed=1, lr_discriminator=1e-3, **unread)
    make_run("b", [3.0, 4.0], seed=2, preset="planet", batch_size=128)
    make_run("c", [1.0, 2.0], seed=1, num_skills=2, lr_discriminator=1e-4)
    make_run("d", [3.0, 4.0], seed=2, num_skills=2)
    for run in (tmp_path / "runs").glob("*/b/config.json"):
        run.write_text(run.read_text().replace('"action_repeat": 8', '"action_repeat": 4'))
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    seeds = numbers(tmp_path / "out").query("metric == 'episode_reward'").groupby("group")["seeds"].first().to_dict()
    assert seeds == {
        "DrQ": 2,
        "DIAYN, 2 skills (lr_discriminator 0.001)": 1,
        "DIAYN, 2 skills (lr_discriminator 0.0001)": 1,
    }


def test_a_label_leaves_out_what_most_groups_share(make_run: MakeRun, tmp_path: Path) -> None:
    """With two groups there is no such value: both are named."""
    changes: list[dict[str, Any]] = [{}, {"batch_size": 32}, {"lr": 1e-4}, {"lr": 1e-4, "batch_size": 32, "seed": 2}]
    folders = [make_run(str(number), [1.0], **{"lr": 1e-3, **change}) for number, change in enumerate(changes[:3])]
    runs = [read_run(folder) for folder in folders]
    labels = [group.label for group in curves.make_groups(runs)]
    assert labels == ["DrQ", "DrQ (batch_size 32)", "DrQ (lr 0.0001)"]
    assert [group.label for group in curves.make_groups(runs[:2])] == ["DrQ (batch_size 128)", "DrQ (batch_size 32)"]
    more = [*runs, read_run(make_run("3", [1.0], **changes[3]))]
    labels = [group.label for group in curves.make_groups(more)]
    assert len(set(labels)) == 4, "each value is had by half of them"


def test_two_fine_tunings_of_one_seed_are_two_samples(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("first", "second"):
        tuned = make_run(name, [1.0, 2.0])
        record = json.loads((tuned / "config.json").read_text())
        record["flags"] |= {"finetune_from": f"runs/{name}", "num_skills": 4}
        (tuned / "config.json").write_text(json.dumps(record))
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert numbers(tmp_path / "out")["seeds"].tolist() == [2, 2]


def test_more_groups_than_colors_look_different(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run{number}", [1.0, 2.0], batch_size=number) for number in range(1, 14)]
    groups = curves.make_groups([run for folder in runs if (run := read_run(folder)) is not None])
    assert len({(group.color, group.style) for group in groups}) == 13


def test_distances_of_one_episode_a_skill(make_run: MakeRun) -> None:
    """There is no distance within a skill then, and the figure has no line or label for it."""
    run = read_run(make_run("one", [1.0], num_skills=3))
    assert run is not None
    for measured, lines in ((0.5, ["other skills", "the same skill"]), (math.nan, ["other skills"])):
        run.skills["state_distance_within"] = measured
        axes = Figure().add_subplot()
        panels.draw_distances(axes, run)
        assert [line.get_label() for line in axes.get_lines()] == [f"states of {name}" for name in lines]
        assert all(line.get_marker() == "o" for line in axes.get_lines()), "a single evaluation is visible as a point"


def test_the_interval_is_of_95_percent() -> None:
    values = np.random.default_rng(0).normal(100, 10, 40)
    last = curves.over_seeds([pd.Series([0.0, value], index=[0, 8]) for value in values]).iloc[-1]
    half = 1.96 * values.std() / math.sqrt(40)
    assert last["high"] - last["mean"] == pytest.approx(half, rel=0.15)
    assert last["mean"] - last["low"] == pytest.approx(half, rel=0.15)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr(panels, "Figure", Kept)
    return made


def heights(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def levels(axes: Axes) -> list[float]:
    """Return the heights of the lines that span the axes."""
    return [heights(line)[0] for line in axes.get_lines() if np.asarray(line.get_xdata()).tolist() == [0, 1]]


def test_what_the_panels_show(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    best = (1.0, 2.0, 3.0, 40.0)
    folders = [make_run(f"s{s}", [0.0, value, value - 1], num_skills=4, seed=s) for s, value in enumerate(best)]
    table = pd.read_csv(folders[0] / "skills.csv")
    table["mutual_information_bound"] = table["step"] / 1000 + table["skill_id"] / 10
    table.to_csv(folders[0] / "skills.csv", index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    returns, bound, accuracy, effective, by_skill, against, _ = figures[0].axes
    lines = returns.get_lines()
    assert heights(lines[0]) == pytest.approx([0.0, 11.5, 10.5]), "the mean"
    assert heights(lines[1]) == pytest.approx([0.0, 2.5, 1.5]), "the interquartile mean"
    assert [heights(line) for line in lines[2:6]] == [[0, 1, 0], [0, 2, 1], [0, 3, 2], [0, 40, 39]]
    assert math.log(4) in levels(bound)
    assert 1 / 4 in levels(accuracy)
    assert accuracy.get_ylim() == (0.0, 1.0)
    assert levels(effective) == [4.0]
    assert heights(effective.get_lines()[0]) == pytest.approx([math.e] * 3), "exp(bound) if it was not written"
    assert levels(returns) == [0.0], "the evaluations at frame 0 are of untrained agents"
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figures[0].axes)
    assert [heights(line) for line in by_skill.get_lines()] == [[k, 1 + k, k] for k in range(4)]
    assert [np.asarray(point.get_offsets()).tolist()[0] for point in against.collections] == [
        pytest.approx([2 + k / 10, k]) for k in range(4)
    ]
    assert [text.get_text() for text in against.texts] == ["0", "1", "2", "3"]
    of_lines = [to_rgba(line.get_color()) for line in by_skill.get_lines()]
    assert [to_rgba(np.asarray(point.get_facecolor())[0]) for point in against.collections] == of_lines
    assert len(set(of_lines)) == 4
    assert by_skill.get_title() == "return of each skill of 's0'"


def test_newer_measures_are_drawn_where_they_were_measured(
    make_run: MakeRun, tmp_path: Path, figures: list[Figure]
) -> None:
    """A run of an older version has none of them, one that was resumed has them in its later rows."""
    make_run("old", [0.0, 1.0, 2.0], num_skills=3, seed=1)
    resumed = make_run("resumed", [0.0, 1.0, 2.0], num_skills=3, seed=2)
    table = pd.read_csv(resumed / "eval.csv")
    table.loc[1:, "mutual_information_bound_second_half"], table.loc[1:, "cells_visited"] = 0.9, 7
    table.to_csv(resumed / "eval.csv", index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    drawn = {axes.get_title(): axes for axes in figures[0].axes}
    few = "(1 of 2 runs)"
    half = drawn[f"bound in the second half of the episode {few}"]
    cells = drawn[f"coverage: cells visited by all skills {few}"]
    assert heights(half.get_lines()[0]) == [0.9, 0.9]
    assert heights(cells.get_lines()[0]) == [7, 7]
    assert (cells.get_ylabel(), half.get_ylabel()) == ("cells", "nats")


def test_seeds_that_share_no_frame_have_no_mean(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    for seed in (1, 2):
        path = make_run(f"s{seed}", [1.0, 2.0], seed=seed) / "eval.csv"
        table = pd.read_csv(path)
        table["step"] += seed * 5000
        table.to_csv(path, index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    mean, *seeds = figures[0].axes[0].get_lines()
    assert mean.get_label() == "DrQ: 2 seeds, no frame in common; each one thin"
    assert heights(mean) == []
    assert [heights(line) for line in seeds[:2]] == [[1, 2], [1, 2]]
    assert numbers(tmp_path / "out").empty


def test_a_seed_with_one_evaluation_is_visible(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    for seed, returns in ((1, [1.0, 2.0]), (2, [3.0])):
        make_run(f"s{seed}", returns, seed=seed)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    _, curve, point = figures[0].axes[0].get_lines()[:3]
    assert (heights(curve), curve.get_marker()) == ([1.0, 2.0], "")
    assert (heights(point), point.get_marker()) == ([3.0], ".")


def test_the_legend_names_only_what_is_drawn(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    for seed in range(5):
        path = make_run(f"s{seed}", [1.0, 2.0], seed=seed) / "eval.csv"
        table = pd.read_csv(path)
        table["step"] += seed * 5000
        table.to_csv(path, index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    _, labels = figures[0].axes[0].get_legend_handles_labels()
    assert labels == ["DrQ: 5 seeds, no frame in common; each one thin"]


def test_training_beside_evaluations(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    """Each point is the mean over the training episodes since the evaluation before."""
    folder = make_run("a", [0.0, 1.0, 2.0], num_skills=2)
    make_run("without", [0.0, 1.0, 2.0], num_skills=2, seed=2)
    accuracies = {250: math.nan, 500: 0.5, 1000: 0.7, 1500: 0.9, 2500: 0.1}  # no update, then one evaluation is open
    table = pd.DataFrame({"episode": range(5), "step": accuracies.keys(), "episode_reward": 1.0})
    table.assign(discriminator_accuracy=accuracies.values()).to_csv(folder / "train.csv", index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    drawn = {axes.get_title(): axes for axes in figures[0].axes}
    (line, *_) = drawn["discriminator accuracy, sampled batches (1 of 2 runs)"].get_lines()
    assert np.asarray(line.get_xdata()).tolist() == [1000, 2000]
    assert heights(line) == pytest.approx([0.6, 0.9])
    assert not any("entropy" in title for title in drawn), "it was not measured"


def test_no_panel_is_empty(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    folder = make_run("a", [1.0, 2.0], num_skills=2)
    table = pd.read_csv(folder / "skills.csv")
    table.assign(state_distance_within=math.nan, state_distance_between=math.nan).to_csv(folder / "skills.csv")
    assert plot.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    (folder / "skills.csv").unlink()
    assert plot.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert [len(figure.axes) for figure in figures] == [6, 4]
    assert all(axes.get_lines() or axes.collections for figure in figures for axes in figure.axes)


def test_one_evaluation_makes_no_curves(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    """The panels show the training episodes then, and the skills at that evaluation."""
    for name, count in (("skills", 2), ("drq", 0)):
        folder = make_run(name, [1.0], num_skills=count)
        training = pd.DataFrame({"episode": [1, 2, 3], "step": [500, 1000, 1500], "episode_reward": [5.0, 6.0, 7.0]})
        training.assign(critic_loss=[math.nan, 2.0, 3.0], discriminator_loss=[math.nan, math.nan, 0.5]).to_csv(
            folder / "train.csv", index=False
        )
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert figures[0].get_suptitle() == "cartpole_swingup: one evaluation of each run so far, at frame 0"
    titles = ["return of training episodes", "loss of the critic", "skills of 'skills', last evaluation"]
    assert [axes.get_title() for axes in figures[0].axes] == titles
    assert [heights(line) for line in figures[0].axes[0].get_lines()] == [[5.0, 6.0, 7.0]] * 2
    assert set(numbers(tmp_path / "out")["metric"]) == {"train/episode_reward", "train/critic_loss"}
    make_run("longer", [1.0, 2.0], seed=2)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert figures[1].axes[0].get_title() == "return of evaluation episodes"
    assert "train/episode_reward" not in set(numbers(tmp_path / "out")["metric"])


def test_a_single_evaluation_is_drawn_beside_levels_and_alone(
    make_run: MakeRun, tmp_path: Path, figures: list[Figure]
) -> None:
    """On an axis up to the end of training."""
    run = make_run("a", [1.0], num_train_steps=2000)
    controls = summary(tmp_path / "controls", ("untrained", 1, 1, 7.0, None), ("random", 1, 1, 8.0, None))
    line = [str(run), "--out", str(tmp_path / "out")]
    assert plot.main(line) == 0
    assert plot.main([*line, "--evaluation", str(controls)]) == 0
    for figure in figures:
        (axes,) = figure.axes
        assert axes.get_title() == "return of evaluation episodes"
        assert axes.get_xlim()[0] == 0
        assert 8000 <= axes.get_xlim()[1] < 9000
    assert levels(figures[1].axes[0]) == [7.0, 8.0]


def summary(folder: Path, *rows: tuple[str, int, int, float, int | None]) -> Path:
    """Write a summary.csv of evaluate.py: policy, skills, episodes of each, return and cells."""
    folder.mkdir()
    columns = ["policy", "skills", "episodes", "episode_extrinsic_reward", "cells_visited"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "summary.csv", index=False)
    return folder


def test_coverage_of_different_numbers_of_episodes(
    make_run: MakeRun, tmp_path: Path, figures: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    """It grows with them, so that their mean says little."""
    for seed, episodes in ((1, 1), (2, 2)):
        run = make_run(f"s{seed}", [1.0, 2.0], num_skills=3, seed=seed, num_eval_episodes=episodes)
        pd.read_csv(run / "eval.csv").assign(cells_visited=5).to_csv(run / "eval.csv", index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "coverage is of 3, 6 episodes" in capsys.readouterr().err


def test_coverage_after_a_resume_with_more_episodes(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """skills.csv has what each evaluation played, config.json what the last one did."""
    run = make_run("a", [1.0, 2.0], num_skills=3, num_eval_episodes=4)
    pd.read_csv(run / "eval.csv").assign(cells_visited=5).to_csv(run / "eval.csv", index=False)
    table = pd.read_csv(run / "skills.csv")
    table["episodes"] = np.where(table["step"] > 0, 4, 1)
    table.to_csv(run / "skills.csv", index=False)
    assert plot.main([str(run), "--out", str(tmp_path / "out")]) == 0
    assert "coverage is of 3, 12 episodes" in capsys.readouterr().err


def test_levels_of_controls(
    make_run: MakeRun, tmp_path: Path, figures: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    """Cells are compared only between equal numbers of episodes."""
    run = make_run("a", [1.0, 2.0], num_skills=3, num_eval_episodes=2)
    pd.read_csv(run / "eval.csv").assign(cells_visited=5).to_csv(run / "eval.csv", index=False)
    trained = ("trained", 3, 2, 9.0, 11)
    same = summary(tmp_path / "same", trained, ("untrained", 3, 2, 7.0, 12), ("random", 3, 2, 8.0, 13))
    more = summary(tmp_path / "more", ("untrained", 3, 5, 7.0, 12), ("random", 3, 5, 8.0, None))
    for place, cells, said in ((same, [12, 13], ""), (more, [], "left out: --evaluation: the cells of 15 episodes")):
        assert plot.main([str(run), "--out", str(tmp_path / "out"), "--evaluation", str(place)]) == 0
        drawn = {axes.get_title(): axes for axes in figures[-1].axes}
        assert levels(drawn["return of evaluation episodes"]) == [7.0, 8.0]
        assert levels(drawn["coverage: cells visited by all skills"]) == cells
        assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("policy", "env", "words"),
    [
        ("trained", "cartpole_swingup", "has no controls; name a folder that evaluate.py --controls wrote"),
        ("random", "walker_walk", "--evaluation has levels of one task, the runs are of cartpole_swingup, walker_walk"),
        (None, "cartpole_swingup", "No such file or directory; name a folder that evaluate.py --controls wrote"),
    ],
)
def test_controls_that_cannot_be_drawn(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str | None, env: str, words: str
) -> None:
    make_run("a", [1.0, 2.0])
    make_run("b", [1.0, 2.0], env=env, seed=2)
    place = tmp_path / "evaluated"
    if policy is not None:
        summary(place, (policy, 1, 2, 7.0, 12))
    line = [str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--evaluation", str(place)]
    assert plot.main(line) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_controls_of_other_episodes_are_no_levels(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = summary(tmp_path / "evaluated", ("random", 1, 2, 7.0, 12))
    (place / "evaluation.json").write_text('{"run": "a", "arguments": {}, "flags": {"time_limit": 500}}')
    line = [str(make_run("a", [1.0, 2.0])), "--out", str(tmp_path / "out"), "--evaluation", str(place)]
    assert plot.main(line) == 2
    assert f"--evaluation {place}: its episodes have --time_limit 500" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_run_is_compared_with_the_controls(make_run: MakeRun, tmp_path: Path) -> None:
    """Also those whose folders have equal names, as in sweeps."""
    places = []
    for number, limit in enumerate((400, 500)):
        place = tmp_path / f"sweep{number}" / "seed=1"
        place.parent.mkdir()
        places.append(make_run(f"run{number}", [1.0, 2.0], time_limit=limit, seed=number).rename(place))
    controls = summary(tmp_path / "evaluated", ("random", 1, 2, 7.0, 12))
    (controls / "evaluation.json").write_text('{"run": "a", "arguments": {}, "flags": {"time_limit": 500}}')
    line = ["--out", str(tmp_path / "out"), "--evaluation", str(controls)]
    assert plot.main([*map(str, places), *line]) == 2
    assert plot.main([str(places[1]), *line]) == 0


def test_the_untrained_level_is_of_untrained_agents(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    """A fine-tuned run begins with a trained one."""
    make_run("scratch", [20.0, 30.0])
    make_run("tuned", [120.0, 130.0], num_skills=2, finetune_from="somewhere", finetune_skill="1")
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert 20.0 in levels(figures[0].axes[0])
    assert 70.0 not in levels(figures[0].axes[0])


def test_the_reference_is_the_tasks_range_and_mean(make_run: MakeRun, tmp_path: Path, figures: list[Figure]) -> None:
    make_run("a", [1.0, 2.0])
    make_run("b", [1.0, 2.0], env="walker_walk")
    published = [
        (env, seed, step, value + add)
        for env, add in (("cartpole_swingup", 0), ("reacher_easy", 500))
        for seed, value in enumerate((1.0, 2.0, 9.0))
        for step in (0, 2000)
    ]
    path = tmp_path / "published.csv"
    pd.DataFrame(published, columns=["env", "seed", "step", "episode_reward"]).to_csv(path, index=False)
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--reference", str(path)]) == 0
    cartpole, walker = (figure.axes[0] for figure in figures)
    band = np.asarray(cartpole.collections[0].get_paths()[0].vertices)[:, 1]
    assert (band.min(), band.max()) == (1.0, 9.0)
    (mean,) = [line for line in cartpole.get_lines() if line.get_label() == "published: mean"]
    assert heights(mean) == [4.0, 4.0]
    assert not [label for label in walker.get_legend_handles_labels()[1] if "published" in label]


def test_folders_do_not_distinguish_groups_and_the_longest_run_counts(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", [1.0], seed=1, work_dir="here")
    make_run("b", [1.0, 2.0, 5.0], seed=1, work_dir="there")
    make_run("c", [3.0, 4.0, 7.0], seed=2, work_dir="elsewhere")
    assert plot.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    table = numbers(tmp_path / "out")
    assert (set(table["seeds"]), table["frame"].tolist(), table["mean"].tolist()) == ({2}, [0, 1000, 2000], [2, 3, 6])
