"""report.py: what is on the page, for every kind of run, and that a browser shows it."""

from __future__ import annotations

import fcntl
import html
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from matplotlib.figure import Figure

import report
from evaluation.report_files import settings_of
from running.columns import EPISODE_COLUMNS, REFIT_COLUMNS, SKILL_COLUMNS, SUMMARY_COLUMNS, csv_columns
from running.csv_files import csv_lines, header
from running.derivation import make_config
from tests.support.browser import CHROMIUM, browser
from tests.support.damage import damaged_json, damaged_table
from tests.support.fuzz import check_all, fast_and_slow
from tests.support.paths import ROOT, Mount
from tests.support.program import Answer, call
from video import VideoRecorder

BOUND, ACCURACY, SECOND_HALF = (
    *("mutual_information_bound", "discriminator_accuracy"),
    "mutual_information_bound_second_half",
)
STEPS = (0, 4000, 8000)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(csv_lines([header(columns), *rows], columns, path.name))


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((40, 60, 3), 200, np.uint8))


def write_video(folder: Path, name: str) -> None:
    recorder = VideoRecorder(folder, 25.0)
    with recorder.recorded(name):
        for brightness in range(0, 250, 10):
            recorder.record(np.full((64, 64, 3), brightness, np.uint8))


def skill_rows(count: int, **more: Any) -> list[dict[str, Any]]:
    measures = {BOUND: 1.25, SECOND_HALF: 1.5, ACCURACY: 0.75, "cells_visited": 6}
    return [
        {"skill_id": k, "episodes": 2, "episode_extrinsic_reward": 10.0 * k, **measures, **more} for k in range(count)
    ]


def write_run(
    folder: Path,
    num_skills: int = 3,
    steps: Sequence[int] = STEPS,
    *,
    shift: float = 0.0,
    media: bool = False,
    **flags: Any,
) -> Path:
    """Write what a run with evaluations at these frames leaves. Returns are 100, 200, ... and `shift`."""
    config = make_config({"num_skills": num_skills, "num_train_steps": 2000, "num_eval_episodes": 2, **flags})
    record = {"flags": vars(config), "versions": {"torch": "9.9"}, "device": "a device", "git_commit": "abc123"}
    columns = csv_columns(with_skills=num_skills > 0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record))
    more = {BOUND: 0.5, ACCURACY: 0.75, SECOND_HALF: 0.75, "effective_skills": 1.6, "cells_visited": 17}
    evaluations = [
        {"episode": n, "step": step, "episode_reward": 100.0 * (n + 1) + shift, **(more if num_skills else {})}
        for n, step in enumerate(steps)
    ]
    write_table(folder / "eval.csv", columns["eval.csv"], evaluations)
    write_table(folder / "train.csv", columns["train.csv"], [{"episode": 1, "step": 1000, "episode_reward": 7.5}])
    write_table(folder / "episodes.csv", EPISODE_COLUMNS, [{"type": "train", "duration": 3725.0}])
    if num_skills:
        rows = [row for step in steps for row in skill_rows(num_skills, step=step)]
        write_table(folder / "skills.csv", SKILL_COLUMNS, rows)
    if media and steps:
        for step in (steps[0], steps[-1]):
            for name in [f"{step}_skill{k}" for k in range(num_skills)] or [str(step)]:
                write_video(folder / "video", name)
            for name in ("contact_sheet", "confusion_matrix", "trajectories") if num_skills else ():
                write_picture(folder / "skills" / f"{step}_{name}.png")
    return folder


def write_evaluation(folder: Path) -> Path:
    """Write what evaluate.py with --controls and --refit leaves, for three skills."""
    write_table(folder / "skills.csv", SKILL_COLUMNS, skill_rows(3, step=8000))
    policies = [
        {"policy": policy, "step": 8000, "skills": 3, "episodes": 2, "cells_visited": cells}
        for policy, cells in (("trained", 41), ("untrained", 12), ("random", 33))
    ]
    write_table(folder / "summary.csv", SUMMARY_COLUMNS, policies)
    refit = [
        {"policy": "trained", "discriminator": name, BOUND: 0.875, "episodes_test": 9} for name in ("agent", "states")
    ]
    write_table(folder / "refit.csv", REFIT_COLUMNS, refit)
    for skill in range(3):
        write_video(folder, f"skill{skill}")
    write_picture(folder / "trajectories.png")
    return folder


def make(*words: Path | str) -> Answer:
    return call([str(word) for word in words], report.main)


def page_of(*words: Path | str, out: Path) -> str:
    assert make(*words, "--out", out) == Answer(0, [])
    return out.read_text()


def text_of(page: str) -> str:
    """Return the text that a reader sees, with single spaces."""
    body = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


# -- what is on the page -----------------------------------------------------------------------------------------------


def test_a_run_with_skills(tmp_path: Path) -> None:
    run = write_run(tmp_path / "skills", media=True, batch_size=32, notes="a remark")
    write_video(run / "video", "9000_skill3")  # of an evaluation that is not over
    page = page_of(run, out=tmp_path / "page.html")
    text = text_of(page)
    assert "cartpole_swingup, DIAYN, 3 skills, seed 1" in text
    assert "finished" in text
    assert "8,000 of 8,000" in text
    assert "1 h 2 min" in text
    for fact in ("torch 9.9", "a device", "abc123", "a remark", "--batch_size 32 default: 128"):
        assert fact in text
    assert "--lr " not in text, "it has its default"
    assert "Return 300.0 before training: 100.0" in text
    for shown in (
        "Bound 0.50 nats",
        "Effective skills 1.6 of 3",
        "Accuracy 0.75",
        "Cells visited 17",
        "1.10 tells all 3",
    ):
        assert shown in text
    for skill in range(3):
        assert f"skill {skill} return {10 * skill}.0 bound 1.25 second half 1.50 accuracy 0.75 cells 6" in text
    assert page.count('src="data:video/mp4;base64,') == 3, "those of the last evaluation"
    assert page.count('src="data:image/png;base64,') == 3
    assert page.count('src="data:image/svg+xml;base64,') == 4, "return, bound, accuracy, returns of skills"
    assert "evaluate.py RUN --controls plays them" in text
    assert "cartpole_swingup" in text.partition("Not measured")[0]


def test_figures_that_are_rounded_to_zero_have_no_minus(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "drq", 0, shift=-300.0001), out=tmp_path / "page.html")
    assert "Return 0.0 " in text_of(page)
    assert "DrQ: 0.00 at frame 8,000" in text_of(page)


def test_a_run_without_skills(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "drq", 0, media=True), out=tmp_path / "page.html")
    text = text_of(page)
    assert "cartpole_swingup, DrQ, seed 1" in text
    assert "Return 300.0" in text
    assert "higher is better" in text
    assert page.count("<video ") == 1
    for word in ("Bound", "iscriminator", "Contact sheet", "Play all"):
        assert word not in text


def test_before_the_first_evaluation(tmp_path: Path) -> None:
    text = text_of(page_of(write_run(tmp_path / "begun", steps=()), out=tmp_path / "page.html"))
    assert "Last finished episode: episode 1, return 7.5" in text
    assert "there is no evaluation yet" in text
    assert "Learning curves" not in text


def write_training(run: Path, num_skills: int = 3) -> None:
    """Write a train.csv with two episodes before the first update and two after it."""
    losses = {"critic_loss": 2.0, "actor_loss": -3.0, "discriminator_loss": 1.0, ACCURACY: 0.5}
    rows = [
        {"episode": n, "step": 500 * n, "episode_reward": 10.0 * n, **(losses if n > 2 else {})} for n in (1, 2, 3, 4)
    ]
    columns = csv_columns(with_skills=num_skills > 0)["train.csv"]
    known = [{name: value for name, value in row.items() if name in columns} for row in rows]
    write_table(run / "train.csv", columns, known)


CURVE = 'src="data:image/svg+xml;base64,'


@pytest.mark.parametrize(("num_skills", "curves"), [(3, 5), (0, 3)])
@pytest.mark.parametrize("steps", [(0,), ()])
def test_one_evaluation_makes_no_curves(tmp_path: Path, num_skills: int, curves: int, steps: Sequence[int]) -> None:
    """Nor does none. Those of the training episodes are drawn: return, accuracy, losses."""
    run = write_run(tmp_path / "begun", num_skills, steps)
    page = page_of(run, out=tmp_path / "page.html")
    assert CURVE not in page, "one episode is no curve either"
    write_training(run, num_skills)
    page = page_of(run, out=tmp_path / "page.html")
    assert page.count(CURVE) == curves
    assert "Learning curves" not in text_of(page)
    assert "40.00 at frame 2,000 (1 seed)" in text_of(page)
    assert ("There is one evaluation so far, at frame 0; the next is due at the end of" in text_of(page)) == bool(steps)


def test_a_single_evaluation_beside_curves(tmp_path: Path) -> None:
    """It is a point among the curves of other runs, and its run shows its training."""
    write_run(tmp_path / "runs" / "long", 0)
    write_training(write_run(tmp_path / "runs" / "short", 0, (0,), precision="bf16"), 0)
    page = page_of(tmp_path / "runs", out=tmp_path / "page.html")
    assert page.count(CURVE) == 1 + 3
    assert "(precision bf16): 100.00 at frame 0 (1 seed)" in text_of(page)


@pytest.mark.parametrize(
    ("step", "flags", "before", "due"),
    [
        (0, {"eval_frequency": 1000}, None, "the episode that reaches frame 4,000"),
        (4400, {"eval_frequency": 1000}, None, "training, at frame 8,000"),
        (0, {"eval_frequency": 5000}, None, "training, at frame 8,000"),
        (1000, {"eval_frequency": 500}, 1000, "the episode that reaches frame 3,000"),
        (8000, {"eval_frequency": 1000}, None, None),
        (4000, {"eval_frequency": 0}, None, None),
    ],
)
def test_when_the_next_evaluation_is_due(
    tmp_path: Path, step: int, flags: dict[str, Any], before: int | None, due: str | None
) -> None:
    run = write_run(tmp_path / "run", 0, (step,), **flags)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "frames_before": before}))
    text = text_of(page_of(run, out=tmp_path / "page.html"))
    if due is None:
        assert f"There is one evaluation, at frame {step:,}. " in text
    else:
        assert f"There is one evaluation so far, at frame {step:,}; the next is due at the end of {due}. " in text


@pytest.mark.parametrize(("step", "state"), [(2000, "finished"), (1999, "not running"), ("x", "not running")])
def test_a_run_without_evaluations_ends_within_an_episode(tmp_path: Path, step: object, state: str) -> None:
    """The tables have its last whole episode, the checkpoint its end."""
    run = write_run(tmp_path / "run", 0, (), eval_frequency=0)
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "manifest.json").write_text(json.dumps({"step": step}))
    assert f"What was run {state}" in text_of(page_of(run, out=tmp_path / "page.html"))


def test_the_frames_that_chose_a_skill_are_not_of_the_budget(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tuned", 0, (9000, 12000))
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "frames_before": 9000}))
    text = text_of(page_of(run, out=tmp_path / "page.html"))
    assert "12,000 of 17,000" in text
    assert "What was run not running" in text


def test_only_the_untrained_agent_was_evaluated(tmp_path: Path) -> None:
    text = text_of(page_of(write_run(tmp_path / "begun", steps=(0,)), out=tmp_path / "page.html"))
    assert "the only evaluation is of the untrained agent" in text
    assert "the tables reach frame 1,000 of 8,000" in text


def test_settings_and_weights_alone(tmp_path: Path) -> None:
    """As in results/pretrained."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"flags": vars(make_config({"num_skills": 3}))}))
    text = text_of(page_of(tmp_path / "run", out=tmp_path / "page.html"))
    assert "DIAYN, 3 skills" in text
    assert "no tables" in text
    assert " 0 of " not in text


def test_tables_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "drq", 0)
    (run / "config.json").unlink()
    warning = f"warning: {run} has no config.json: it is taken for plain DrQ with seed 0"
    assert make(run, "--out", tmp_path / "page.html") == Answer(0, [warning])
    text = text_of((tmp_path / "page.html").read_text())
    assert "Return 300.0" in text
    assert "there is no config.json" in text


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    """Measures that its tables lack are named, unless they follow from others."""
    run = write_run(tmp_path / "old")
    old = ("episode", "step", "episode_reward", "episode_intrinsic_reward_sum", ACCURACY, BOUND)
    row = {"episode": 1, "step": 8000, "episode_reward": 5.0, ACCURACY: 0.5, BOUND: 0.5}
    write_table(run / "eval.csv", old, [row])
    kept = ("step", "skill_id", "episodes", "episode_extrinsic_reward", BOUND, *SKILL_COLUMNS[-2:], "accuracy_at_start")
    write_table(run / "skills.csv", kept, [{"step": 8000, "skill_id": 0, "episode_extrinsic_reward": 2.5, BOUND: 0.25}])
    record = json.loads((run / "config.json").read_text())
    record["flags"] |= {"benchmark": record["flags"].pop("preset"), "of_another_version": 3}
    (run / "config.json").write_text(json.dumps(record))
    text = text_of(page_of(run, out=tmp_path / "page.html"))
    assert "Effective skills 1.6 of 3" in text
    assert "skill 0 return 2.5 bound 0.25" in text
    assert "Bound (second half), Cells visited: not in this run's tables" in text


@pytest.mark.parametrize(("locked", "steps", "state"), [(True, STEPS, "running"), (False, STEPS[:2], "not running")])
def test_the_state_of_a_run(tmp_path: Path, locked: bool, steps: Sequence[int], state: str) -> None:
    run = write_run(tmp_path / "run", steps=steps)
    with (run / ".lock").open("w") as file:
        if locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        assert f"What was run {state}" in text_of(page_of(run, out=tmp_path / "page.html"))


def test_several_seeds_and_settings(tmp_path: Path) -> None:
    """Seeds of one setting are one curve with an interval; what all runs share is said once."""
    for seed in range(5):
        write_run(tmp_path / "runs" / f"s{seed}", seed=seed, shift=float(seed), batch_size=32)
    write_run(tmp_path / "runs" / "other", seed=9, batch_size=32, precision="bf16")
    text = text_of(page_of(tmp_path / "runs", out=tmp_path / "page.html"))
    assert re.search(
        r"precision fp32\): 302.00 at frame 8,000 \(mean of 5 seeds, interval 30\d.\d\d to 30\d.\d\d\)", text
    )
    assert "precision bf16): 300.00 at frame 8,000 (1 seed)" in text
    assert text.count("--batch_size 32") == 1
    assert text.count("--precision bf16") == 1
    few = re.search(r"Chance between seeds.*?\((.*?)\)\.", text)
    assert few is not None
    assert few[1] == "DIAYN, 3 skills (precision bf16): 1 seed"


def test_beside_the_controls(tmp_path: Path) -> None:
    run, evaluation = write_run(tmp_path / "run"), write_evaluation(tmp_path / "evaluation")
    page = page_of("--evaluation", evaluation, run, out=tmp_path / "page.html")
    text = text_of(page)
    assert re.search(r"trained 3 . 2 - 41 - - untrained 3 . 2 - 12 - - random 3 . 2 - 33 - - ", text)
    assert re.search(r"trained agent 0.88 - trained states 0.88 - ", text)
    assert page.count("<video ") == 3
    assert "--controls plays them" not in text
    assert "--refit 10" not in text
    assert "The folder does not record of which run it is." in text
    table = pd.read_csv(evaluation / "summary.csv")
    table[table["policy"] == "trained"].to_csv(evaluation / "summary.csv", index=False)
    text = text_of(page_of("--evaluation", evaluation, run, out=tmp_path / "page.html"))
    assert "Beside the controls" not in text, "none was played"
    assert "--controls plays them" in text


def test_an_evaluation_without_skills(tmp_path: Path) -> None:
    """evaluate.py writes the number -1 for the skill."""
    run, folder = write_run(tmp_path / "run", 0), tmp_path / "evaluation"
    write_table(
        folder / "skills.csv", SKILL_COLUMNS, [{"step": 8000, "skill_id": -1, "episode_extrinsic_reward": 71.5}]
    )
    write_video(folder, "policy")
    page = page_of("--evaluation", folder, run, out=tmp_path / "page.html")
    assert page.count("<video ") == 1
    assert re.search(r"policy .*?71\.5", text_of(page))


def test_an_evaluation_answers_for_its_own_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, seed=number) for number, name in enumerate(("a", "b"))]
    evaluation = write_evaluation(tmp_path / "evaluation")
    record = {"run": "runs/cartpole_swingup/a", "arguments": {}, "flags": {"env": "cartpole_swingup"}}
    (evaluation / "evaluation.json").write_text(json.dumps(record))
    text = text_of(page_of("--evaluation", evaluation, *runs, out=tmp_path / "page.html"))
    assert text.count("--refit 10") == 1, "of the other one"


def test_what_was_evaluated_is_named(tmp_path: Path) -> None:
    """Where the folder records it. One of another task does not fit."""
    run, evaluation = write_run(tmp_path / "run"), write_evaluation(tmp_path / "evaluation")
    record = {"run": "runs/cartpole_swingup/<run>", "arguments": {"time_limit": 400, "controls": True}}
    for env in ("cartpole_swingup", "walker_walk"):
        (evaluation / "evaluation.json").write_text(json.dumps({**record, "flags": {"env": env}}))
        answer = make(run, "--evaluation", evaluation, "--out", tmp_path / "page.html")
        if env == "walker_walk":
            refused(answer, f"--evaluation {evaluation} is of walker_walk, the runs are of cartpole_swingup")
    text = text_of((tmp_path / "page.html").read_text())
    assert "Written by evaluate.py runs/cartpole_swingup/<run> --time_limit 400 --controls ." in text


def test_flags_that_follow_from_others_are_no_settings(tmp_path: Path) -> None:
    """Those that a preset sets are, and say so."""

    class Stored:
        flags = vars(make_config({"preset": "planet", "num_skills": 3, "lr": 2e-3, "image_size": 48, "seed": 4}))
        settings: Mapping[str, Any] = {}

    found = {s.name: (s.value, s.default, s.by_preset) for s in settings_of(Stored())}  # type: ignore[arg-type]
    assert found == {
        "preset": ("planet", "none", False),
        "action_repeat": ("8", "4", True),
        "batch_size": ("512", "128", True),
        "num_skills": ("3", "10", False),
        "lr": ("0.002", "0.001", False),
        "image_size": ("48", "84", False),
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"num_skills": 1, "extrinsic_reward_coeff": 0.5}, {"num_skills": "1", "extrinsic_reward_coeff": "0.5"}),
        (
            {"finetune_from": "runs/a", "finetune_skill": "2", "num_eval_episodes": 1},
            {"finetune_from": "runs/a", "finetune_skill": "2", "num_eval_episodes": "1"},
        ),
        (
            {"finetune_from": "runs/a", "finetune_critic": "scratch"},
            {"finetune_from": "runs/a", "finetune_critic": "scratch"},
        ),
    ],
)
def test_only_flags_that_differ_from_what_others_imply_are_settings(
    flags: dict[str, Any], expected: dict[str, str]
) -> None:
    class Stored:
        settings: Mapping[str, Any] = {}

    Stored.flags = vars(make_config(flags))  # type: ignore[attr-defined]
    assert {setting.name: setting.value for setting in settings_of(Stored())} == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [None, "NVIDIA H100"])
def test_the_device_is_a_fact_and_no_setting(tmp_path: Path, name: str | None) -> None:
    """config.json has the device that was used; it does not tell whether it was asked for."""
    run = write_run(tmp_path / "run", 0, device="cpu")
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "device": name}))
    text = text_of(page_of(run, out=tmp_path / "page.html"))
    assert f" device {name or 'cpu'} " in text
    assert "--device" not in text


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    mark = "<script>alert(1)</script>"
    run = write_run(tmp_path / "a<b>&\"'", notes=mark)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps({**record, "device": mark, "versions": {mark: mark}, "git_commit": [mark]})
    )
    page = page_of(run, "--evaluation", write_evaluation(tmp_path / "<i>x"), out=tmp_path / "page.html")
    assert page.count("<script") == 1, "its own"
    assert "a<b>" not in page
    assert "<i>x" not in page
    assert text_of(page).count("alert(1)") >= 3


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(answer: Answer, *named: str) -> None:
    assert answer.code == 2
    (line,) = answer.lines
    assert line.startswith("report.py: error: ")
    for name in named:
        assert name in line


@pytest.mark.parametrize("name", ["eval.csv", "skills.csv", "train.csv", "episodes.csv", "config.json"])
def test_a_damaged_table(tmp_path: Path, name: str) -> None:
    """It is named. Beside other runs, only its run is left out."""
    bad, good = write_run(tmp_path / "runs" / "bad"), write_run(tmp_path / "runs" / "good", seed=2)
    (bad / name).write_text("episode,step,skill_id,duration,episode_reward\nx,x,x,x,x\n")
    refused(make(bad, "--out", tmp_path / "page.html"), str(bad / name))
    assert not (tmp_path / "page.html").exists()
    answer = make(bad, good, "--out", tmp_path / "page.html")
    assert answer.code == 0
    assert [line for line in answer.lines if line.startswith(f"left out: {bad / name}")] == answer.lines


def test_damaged_media_are_named_on_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", media=True)
    (run / "video" / "8000_skill1.mp4").write_bytes(b"")
    (run / "skills" / "8000_contact_sheet.png").write_text("no picture")
    page = page_of(run, out=tmp_path / "page.html")
    assert page.count("<video ") == 2
    shown = text_of(page).partition("Not shown")[2]
    assert "8000_skill1.mp4 is damaged" in shown
    assert "8000_contact_sheet.png is damaged" in shown


def test_media_that_are_too_large_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", media=True)
    size = (run / "video" / "8000_skill0.mp4").stat().st_size
    monkeypatch.setattr("evaluation.report_files.LARGEST_MEDIA", size + 1)
    page = page_of(run, out=tmp_path / "page.html")
    assert page.count("<video ") == 1
    assert "8000_skill1.mp4: File too large" in text_of(page)


@pytest.mark.parametrize("trouble", ["nowhere", "empty", "not of evaluate.py", "a run"])
def test_bad_folders(tmp_path: Path, trouble: str) -> None:
    run, other = write_run(tmp_path / "run"), tmp_path / trouble
    if trouble != "nowhere":
        other.mkdir()
    if trouble in ("nowhere", "empty"):
        refused(make(other, "--out", tmp_path / "page.html"), str(other))
    else:
        other = run if trouble == "a run" else other
        refused(make(run, "--evaluation", other, "--out", tmp_path / "page.html"), f"--evaluation {other}")
    assert not (tmp_path / "page.html").exists()


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "new" / "page.html"
    assert "finished" in page_of(run, out=out)
    assert "finished" in page_of(run, out=out)
    out.write_text("<html>of the user")
    refused(make(run, "--out", out), f"--out {out} exists and is not a report")
    assert out.read_text() == "<html>of the user"
    (tmp_path / "folder.html").mkdir()
    refused(make(run, "--out", tmp_path / "folder.html"), "folder.html")
    refused(make(run, "--out", run / "eval.csv"), "must be a file whose name ends in .html")
    refused(make(run, "--out", run / "eval.csv" / "page.html"), "--out")


def test_a_full_disk(tmp_path: Path, mount: Mount) -> None:
    run, disk = write_run(tmp_path / "run"), mount("size=8k")
    refused(make(run, "--out", disk / "page.html"), "page.html", "No space left")
    assert list(disk.iterdir()) == []


@pytest.mark.slow
def test_from_any_folder(tmp_path: Path) -> None:
    """As a program of its own, with the default path."""
    write_run(tmp_path / "runs" / "first", 0)
    command = [sys.executable, str(ROOT / "report.py"), "runs/first"]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert re.fullmatch(r"reports/cartpole_swingup_first.html: [1-9]\d* KB\n", child.stdout)
    assert (tmp_path / "reports" / "cartpole_swingup_first.html").exists()


FILES = ("config.json", "eval.csv", "skills.csv", "train.csv", "episodes.csv")


@fast_and_slow(100, 300)
def test_any_damage(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged run is shown, or refused in one line. Figures are composed but not drawn, which takes the time."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **settings: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    run, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    whole = {name: (run / name).read_bytes() for name in FILES}

    def check(files: tuple[bytes, ...]) -> None:
        out.unlink(missing_ok=True)
        for name, data in zip(FILES, files, strict=True):
            (run / name).write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = make(run, "--out", out)
        if answer.code == 0:
            assert text_of(out.read_text()).count("Not measured") == 1
        else:
            refused(answer, str(run))
            assert not out.exists()

    damages = (damaged_json(json.loads(whole["config.json"])), *(damaged_table(whole[name]) for name in FILES[1:]))
    files = st.tuples(*(st.just(whole[name]) | damage for name, damage in zip(FILES, damages, strict=True)))
    check_all(examples, check, files=files)


# -- in a browser ------------------------------------------------------------------------------------------------------

PLAYED = """Promise.all([...document.querySelectorAll("video")].map(video => new Promise((done, failed) => {
    video.ontimeupdate = () => { if (video.currentTime > 0) done([video.videoWidth, video.muted]); };
    video.onerror = () => failed(video.error.message);
    if (video.error) video.onerror();
    setTimeout(() => failed("does not play"), 300000);
})))"""
PICTURES = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"


@needs_chromium
@pytest.mark.parametrize("num_skills", [3, 0])
def test_in_a_browser(tmp_path: Path, num_skills: int) -> None:
    """Every video plays, pictures load, nothing is requested from elsewhere, and a phone need not scroll sideways."""
    run = write_run(tmp_path / "run", num_skills, media=True, notes="a_long_word" * 20)
    words: list[Path | str] = ["--evaluation", write_evaluation(tmp_path / "evaluation")] if num_skills else []
    page_of(run, *words, out=tmp_path / "page.html")
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "page.html", 360, 700)
        assert page.evaluate(TOO_WIDE) <= 0
        page.open(tmp_path / "page.html")
        assert page.evaluate(TOO_WIDE) <= 0
        pictures = page.evaluate(PICTURES)
        assert len(pictures) == (3 + 1 + 3 + 1 if num_skills else 1)
        assert all(pictures)
        assert page.complaints == []
        start = "for (const b of document.querySelectorAll('button')) b.click();" if num_skills else "video.play();"
        played = page.evaluate(f"const video = document.querySelector('video'), all = {PLAYED}; {start} all")
        assert played == [[64, True]] * (6 if num_skills else 1)
        assert page.evaluate("document.querySelector('video').controls") is False
        hover = "document.querySelector('video').dispatchEvent(new MouseEvent('mouseenter'))"
        assert page.evaluate(f"{hover}; document.querySelector('video').controls") is True
        assert page.complaints == []
        assert {address.partition(":")[0] for address in page.requests} <= {"file", "data", "blob"}


@needs_chromium
def test_the_browser_complains(tmp_path: Path) -> None:
    """What the test above relies on."""
    faults = ("<script>console.error('x')</script>", "<script>throw new Error('x')</script>", "<img src=nowhere.png>")
    with browser(tmp_path / "profile") as page:
        for number, fault in enumerate(faults, start=1):
            (tmp_path / f"{number}.html").write_text(f"<!doctype html><link rel=icon href=data:,>{fault}")
            page.complaints.clear()
            page.open(tmp_path / f"{number}.html")
            assert page.complaints, fault
