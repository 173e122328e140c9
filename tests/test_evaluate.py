"""evaluate.py on the fake environment: what is played, what is written, and what stays unchanged."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import evaluate
import utils
from diayn import DIAYNAgent
from drq import Assessment
from envs.cells import CellGrid, Coordinate
from envs.pixel_env import Measurement
from errors import RenderingError, UserError
from evaluation import command, skill_pictures
from evaluation.command import output_name
from evaluation.load import load
from tests.support.disk import no_space
from tests.support.paths import ROOT, Mount
from tests.support.runs import SeededEnv, rows, start_seeds_since
from video import VideoRecorder, read_video

RunEvaluate = Callable[[str], Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- skills ------------------------------------------------------------------------------------------------------------


def test_every_skill_from_the_same_starts(
    run_evaluate: RunEvaluate, pretrained: Path, fake_envs: list[SeededEnv], capsys: pytest.CaptureFixture[str]
) -> None:
    """A row and a video for each skill, and a video of all. The run's folder is not changed."""
    before, known = contents(pretrained), len(fake_envs)
    out = run_evaluate("--episodes 3 --seed 7 --video_size 64")
    table = rows(out / "skills.csv")
    assert [row["skill_id"] for row in table] == ["0", "1", "2", "3"]
    assert {row["episodes"] for row in table} == {"3"}
    assert {row["step"] for row in table} == {"120"}
    bound, later = (
        sum(float(row[name]) for row in table) / 4
        for name in ("mutual_information_bound", "mutual_information_bound_second_half")
    )
    printed = capsys.readouterr().out
    assert f" (chance 0.250)\nbound in nats: {bound:.3f} of at most 1.386, in the second half {later:.3f}\n" in printed
    assert f"effective number of skills: {np.exp(bound):.2f} of 4" in printed
    deciles = rows(out / "deciles.csv")
    assert [(row["skill_id"], row["decile"]) for row in deciles] == [
        (f"{skill}", f"{decile}") for skill in range(4) for decile in range(1, 11)
    ]
    assert {row["step"] for row in deciles} == {"120"}
    seeds = start_seeds_since(fake_envs, known)
    assert len(seeds) == 12
    assert {seeds.count(seed) for seed in seeds} == {4}
    for skill in range(4):
        assert next(read_video(out / f"skill{skill}.mp4")).shape == (64, 64, 3)
    assert next(read_video(out / "skills.mp4")).shape == (128, 128, 3)
    for name in ("confusion_matrix", "contact_sheet"):
        picture = cv2.imread(str(out / f"{name}.png"))
        assert picture is not None
        assert picture.std() > 10
    assert contents(pretrained) == before


def test_the_last_line_names_what_to_open(
    run_evaluate: RunEvaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A video of all, or the only one, that this call has written; else the contact sheet, or the folder only."""
    for line, video in (
        ("--video_size 32 --save_trajectories", "skills.mp4"),
        ("--video_size 32 --skills 3", "skill3.mp4"),
        ("--video_size 32 --skills best", None),
        ("--video_size 32 --skill_schedule 1:2,3:4 --episodes 2", "schedule.mp4"),
        (f"--video_size 32 --imitate {tmp_path / 'out' / 'skill2_episode0.npz'}", "imitation.mp4"),
        ("--no_video", "contact_sheet.png"),
        ("--no_video --skills 3", None),
        ("--no_video --skill_schedule 1:2", None),
    ):
        out = run_evaluate(line)
        last = capsys.readouterr().out.splitlines()[-1]
        if "best" in line:
            assert re.fullmatch(rf"open first: {out}/skill\d.mp4", last)
        else:
            assert last == (f"outputs: {out}" if video is None else f"open first: {out / video}")


def test_figures_that_are_rounded_to_zero_have_no_minus(
    run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In tables, on videos and pictures. The files have them as they are."""
    assess, draw = DIAYNAgent.assess, skill_pictures.draw_confusion_matrix
    shown: list[str] = []

    def tiny(self: DIAYNAgent, obs: np.ndarray, skill: np.ndarray) -> Assessment:
        return assess(self, obs, skill)._replace(intrinsic_reward=np.full(len(obs), -1e-6, np.float32))

    def remember(matrix: np.ndarray, title: str) -> np.ndarray:
        shown.append(title)
        return draw(matrix, title)

    monkeypatch.setattr(DIAYNAgent, "assess", tiny)
    monkeypatch.setattr(skill_pictures, "draw_confusion_matrix", remember)
    monkeypatch.setattr(VideoRecorder, "record", lambda self, frame, text=(): shown.extend(text))
    out = run_evaluate("")
    shown.append(capsys.readouterr().out)
    text = "\n".join(shown)
    overall = "bound in nats: 0.000 of at most 1.386, in the second half 0.000"
    for figure in ("r_int 0.000  sum 0.0", "bound 0.00 of", overall):
        assert figure in text
    assert "-0.0" not in text
    assert all(-1e-5 < float(row["mutual_information_bound"]) < 0 for row in rows(out / "skills.csv"))


def test_a_checkpoint_gives_the_same_table_as_its_run(pretrained: Path, tmp_path: Path) -> None:
    (file,) = pretrained.glob("checkpoint/state_*.pt")
    tables = []
    for number, place in enumerate((pretrained, pretrained / "checkpoint", file)):
        out = tmp_path / str(number)
        assert evaluate.main([str(place), "--no_video", "--device", "cpu", "--out", str(out)]) == 0
        tables.append(rows(out / "skills.csv"))
    assert tables[0] == tables[1] == tables[2]


def test_chosen_skills_and_the_best(run_evaluate: RunEvaluate) -> None:
    all_rows = rows(run_evaluate("--no_video") / "skills.csv")
    returns = {row["skill_id"]: float(row["episode_extrinsic_reward"]) for row in all_rows}
    assert [row["skill_id"] for row in rows(run_evaluate("--no_video --skills 3,1") / "skills.csv")] == ["3", "1"]
    out = run_evaluate("--no_video --skills best")
    (best,) = rows(out / "skills.csv")
    assert best["skill_id"] == max(returns, key=lambda skill: returns[skill])


def test_the_best_skill_is_chosen_on_other_starts(
    run_evaluate: RunEvaluate, fake_envs: list[SeededEnv], capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise its return would be overestimated. The frames of the choice are counted."""
    known = len(fake_envs)
    out = run_evaluate("--no_video --skills best --episodes 3")
    seeds = start_seeds_since(fake_envs, known)
    evaluated = np.random.SeedSequence(0).generate_state(3).tolist()
    assert len(seeds) == (4 + 1) * 3
    assert all(seeds.count(seed) == 1 for seed in evaluated), "only the best skill is played from these"
    steps = sum(
        len(played.actions)
        for env in fake_envs[known:]
        for played in env.played
        if played.seed is not None and played.seed not in evaluated
    )
    ((best,), (summary,), choice) = (rows(out / f"{name}.csv") for name in ("skills", "summary", "choice"))
    assert int(summary["frames_to_choose"]) == 3 * steps
    assert summary["episode_extrinsic_reward"] == best["episode_extrinsic_reward"]
    assert [row["skill_id"] for row in choice] == ["0", "1", "2", "3"]
    assert best["skill_id"] == max(choice, key=lambda row: float(row["episode_extrinsic_reward"]))["skill_id"]
    assert {row["episodes"] for row in choice} == {"3"}
    value = float(best["episode_extrinsic_reward"])
    text = f"best skill {best['skill_id']}: return {value:.1f} on 3 other starts, chosen in {3 * steps} frames"
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("line", ["", "--skill_schedule 1:2"])
def test_the_seed_decides_the_starts(run_evaluate: RunEvaluate, fake_envs: list[SeededEnv], line: str) -> None:
    known = len(fake_envs)
    run_evaluate(f"--no_video --episodes 2 --seed 7 {line}")
    assert set(start_seeds_since(fake_envs, known)) == set(np.random.SeedSequence(7).generate_state(2).tolist())


def test_the_seed_decides_on_which_starts_the_best_is_chosen(
    run_evaluate: RunEvaluate, fake_envs: list[SeededEnv]
) -> None:
    chosen_on = []
    for seed in (0, 7):
        known = len(fake_envs)
        run_evaluate(f"--no_video --episodes 2 --skills best --seed {seed}")
        evaluated = set(np.random.SeedSequence(seed).generate_state(2).tolist())
        chosen_on.append(set(start_seeds_since(fake_envs, known)) - evaluated)
    assert all(chosen_on)
    assert not chosen_on[0] & chosen_on[1]


# -- samples and controls ----------------------------------------------------------------------------------------------


def test_the_summary_of_a_run(run_evaluate: RunEvaluate) -> None:
    """Its means are those of the table of skills. There is no grid in this environment."""
    out = run_evaluate("--no_video --episodes 2")
    (row,) = rows(out / "summary.csv")
    assert (row["policy"], row["step"], row["skills"], row["episodes"]) == ("trained", "120", "4", "2")
    for name in ("episode_extrinsic_reward", "mutual_information_bound", "discriminator_accuracy"):
        assert float(row[name]) == pytest.approx(np.mean([float(skill[name]) for skill in rows(out / "skills.csv")]))
    assert float(row["effective_skills"]) == pytest.approx(np.exp(float(row["mutual_information_bound"])))
    assert row["cells_visited"] == ""
    (row,) = rows(run_evaluate("--no_video --skills 1,2") / "summary.csv")
    assert row["skills"] == "2"
    assert row["effective_skills"] == "", "two skills of four say nothing about that"


def test_samples_of_the_policy(run_evaluate: RunEvaluate) -> None:
    """They differ from its deterministic actions, and repeating the command repeats them."""
    actions = []
    for line in ("", "--sample", "--sample"):
        out = run_evaluate(f"--no_video --skills 2 --save_trajectories {line}")
        with np.load(next(out.glob("*.npz"))) as data:
            actions.append(data["actions"])
    assert np.abs(actions[0] - actions[1]).max() > 1e-3
    np.testing.assert_array_equal(actions[1], actions[2])


def test_controls_play_as_much_from_the_same_starts(
    run_evaluate: RunEvaluate,
    fake_envs: list[SeededEnv],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = CellGrid((Coordinate("step", "", 2.0),), lambda physics: physics)
    monkeypatch.setattr(SeededEnv, "cell_grid", grid)
    measured = lambda env: Measurement(np.zeros(1), np.zeros(3), np.array([float(env.steps)]))  # noqa: E731
    monkeypatch.setattr(SeededEnv, "measure", measured)
    known = len(fake_envs)
    out = run_evaluate("--no_video --episodes 2 --controls")
    seeds = start_seeds_since(fake_envs, known)
    assert {seeds.count(seed) for seed in seeds} == {3 * 4}
    trained, untrained, random = rows(out / "summary.csv")
    assert [row["policy"] for row in (trained, untrained, random)] == ["trained", "untrained", "random"]
    assert [row["step"] for row in (trained, untrained, random)] == ["120", "0", "0"]
    longest = max(len(played.actions) for env in fake_envs[known:] for played in env.played)
    cells = str(longest // 2 + 1)
    assert [row["cells_visited"] for row in (trained, untrained, random)] == [cells] * 3
    assert f"cells visited in 8 episodes: trained {cells}, untrained {cells}, random {cells}" in capsys.readouterr().out
    assert cv2.imread(str(out / "trajectories.png")) is not None
    assert abs(float(untrained["mutual_information_bound"])) < 0.1
    assert untrained["mutual_information_bound"] != trained["mutual_information_bound"]
    assert random["mutual_information_bound"] == random["discriminator_accuracy"] == ""
    assert len({row["episode_extrinsic_reward"] for row in (trained, untrained, random)}) == 3


# -- trajectories ------------------------------------------------------------------------------------------------------


def test_trajectories_that_do_not_fit_in_memory(
    pretrained: Path, tmp_path: Path, fake_envs: list[SeededEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture of an episode is kept until all have been played."""
    loaded = load(pretrained, "cpu")
    pictures = 4 * (loaded.max_episode_steps + 1) * 3 * loaded.config.image_size**2
    monkeypatch.setattr(utils, "free_memory", lambda: pictures)
    loaded.evaluate(range(4), [1], video_folder=None)
    with pytest.raises(UserError, match=r"^--episodes 1 --save_trajectories needs at least .*; choose a smaller value"):
        loaded.evaluate(range(4), [1], video_folder=None, keep_all_pictures=True)


def test_trajectories_can_be_replayed(run_evaluate: RunEvaluate) -> None:
    """The actions of a file, played from its seed, give its frames and rewards."""
    out = run_evaluate("--no_video --skills 2 --episodes 2 --save_trajectories")
    paths = sorted(out.glob("*.npz"))
    assert [path.name for path in paths] == ["skill2_episode0.npz", "skill2_episode1.npz"]
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            env = SeededEnv(ragged=True)
            obs, _ = env.reset(seed=int(data["seed"]))
            frames, rewards = [obs[-3:]], []
            for action in data["actions"]:
                obs, reward, *_ = env.step(action)
                frames.append(obs[-3:])
                rewards.append(reward)
            np.testing.assert_array_equal(data["frames"], frames)
            np.testing.assert_allclose(data["rewards"], rewards)
            assert int(data["skill"]) == 2


def test_a_trajectory_has_the_states_and_the_task(run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = lambda env: Measurement(np.array([env.steps, 7.0]), np.zeros(3), np.empty(0))  # noqa: E731
    monkeypatch.setattr(SeededEnv, "measure", measured)
    (path,) = run_evaluate("--no_video --skills 1 --save_trajectories").glob("*.npz")
    with np.load(path) as data:
        steps = len(data["actions"])
        assert data["states"].tolist() == [[step, 7.0] for step in range(steps + 1)]
        assert str(data["env"]) == "cartpole_swingup"


# -- output folders ----------------------------------------------------------------------------------------------------


def test_other_evaluations_have_other_folders() -> None:
    lines = (
        "",
        "--episodes 2",
        "--seed 1",
        "--seed 1 --episodes 2",
        "--sample",
        "--skills 3,1",
        "--skill_schedule 1:2,3:4",
    )
    names = [output_name(evaluate.parse_args(["run", *shlex.split(line)])) for line in lines]
    assert names[0] == "skills_all"
    assert len(set(names)) == len(lines)


def test_runs_of_two_sweeps_have_folders_of_their_own(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for sweep in ("a", "b"):
        place = tmp_path / sweep / "cartpole_swingup" / "seed=1"
        shutil.copytree(pretrained, place)
        assert evaluate.main([str(place), "--device", "cpu", "--no_video", "--skills", "1"]) == 0
        frame = int(rows(place / "eval.csv")[-1]["step"])
        assert Path("evaluations", sweep, "cartpole_swingup", f"seed=1_{frame}", "skills_1").is_dir()


LONG_LINES = {
    "schedule": f"--skill_schedule {','.join(f'{part % 4}:{part + 1}' for part in range(60))}",
    "skills": f"--skills {','.join(['0', '1', '2', '3'] * 200)}",
    "trajectory": f"--imitate {'é' * 120}.npz",
}


@pytest.mark.parametrize("kind", LONG_LINES)
def test_long_names_are_cut(kind: str) -> None:
    """Two that differ only at their ends, or in letters that no name can have, still have folders of their own."""
    words = shlex.split(LONG_LINES[kind])
    other = words[1][:-5] + "2.npz" if kind == "trajectory" else f"{words[1][:-1]}2"
    names = [output_name(evaluate.parse_args(["run", words[0], value])) for value in (words[1], other)]
    assert len(set(names)) == 2
    assert all(100 < len(name.encode()) <= 200 for name in names)
    assert all(name.startswith(("schedule_0_1_1_2", "skills_0_1_2", "imitate_éé")) for name in names)


@pytest.mark.parametrize("line", [LONG_LINES["schedule"], LONG_LINES["skills"]])
def test_long_lines_are_played(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs" / "cartpole_swingup" / ("x" * 255)
    shutil.copytree(pretrained, place)
    assert evaluate.main([str(place), "--device", "cpu", "--video_size", "32", *shlex.split(line)]) == 0
    (out,) = (tmp_path / "evaluations").glob("*/*/*/*")
    assert {path.name for path in out.iterdir()} >= {"schedule.mp4"} or (out / "skills.csv").exists()


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "line", "some"),
    [
        ("4k", "--no_video", False),
        ("4k", "", False),
        ("12k", "--no_video --save_trajectories", True),
        ("100k", "--no_video --save_trajectories --episodes 9", True),
        ("64k,nr_inodes=2", "--no_video", False),
    ],
)
def test_a_full_disk(
    pretrained: Path, mount: Mount, capsys: pytest.CaptureFixture[str], size: str, line: str, some: bool
) -> None:
    """The message names a file, and every file that is there is whole."""
    disk = mount(f"size={size}")
    if size == "4k":
        (disk / "filler").write_bytes(bytes(4 << 10))
    out = disk / "out"
    assert evaluate.main([str(pretrained), "--device", "cpu", "--out", str(out), *shlex.split(line)]) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all(warning.startswith("warning: the video ") for warning in warnings)
    assert error.startswith(f"evaluate.py: error: {out}")
    assert "No space left on device; free space, or name another folder with --out" in error
    assert out.exists() == some
    if some:
        assert len(rows(out / "skills.csv")) == 4
    for path in out.glob("*.png"):
        assert cv2.imread(str(path)) is not None
    for path in out.glob("*.npz"):
        with np.load(path) as data:
            assert len(data["frames"]) == len(data["actions"]) + 1
    assert not list(disk.rglob("*.partial"))


def test_a_full_disk_leaves_the_old_files(run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run_evaluate("--no_video --save_trajectories")
    before = contents(out)

    def full(source: Any, target: Any) -> None:
        raise no_space()

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(AssertionError):
        run_evaluate("--no_video --save_trajectories --seed 1")
    assert contents(out) == before


def test_a_run_is_not_overwritten(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own skills.csv has the name of the one that is written here."""
    before = contents(pretrained)
    assert evaluate.main([str(pretrained), "--device", "cpu", "--no_video", "--out", str(pretrained)]) == 2
    assert f"--out {pretrained} is a run's folder" in capsys.readouterr().err
    assert contents(pretrained) == before


@pytest.mark.parametrize("line", ["", "--skill_schedule 0:3", "--skills best"])
def test_a_folder_that_cannot_be_written_is_refused_before_playing(
    pretrained: Path, tmp_path: Path, fake_envs: list[SeededEnv], capsys: pytest.CaptureFixture[str], line: str
) -> None:
    (tmp_path / "file").write_text("mine")
    known = len(fake_envs)
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out"), tmp_path / ("x" * 300)):
        assert evaluate.main([str(pretrained), "--device", "cpu", "--out", str(out), *shlex.split(line)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.endswith("name another folder with --out")
    assert not start_seeds_since(fake_envs, known)
    assert contents(tmp_path) == {str(tmp_path / "file"): b"mine"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", ["", "--skill_schedule 0:3"])
def test_a_stop_leaves_no_unfinished_video(
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    number: int,
) -> None:
    steps, step = 0, SeededEnv.step

    def interrupted(env: SeededEnv, action: np.ndarray) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), number)
        return step(env, action)

    monkeypatch.setattr(SeededEnv, "step", interrupted)
    out = tmp_path / "out"
    arguments = [str(pretrained), "--device", "cpu", "--out", str(out), *shlex.split(line)]
    assert evaluate.main(arguments) == 128 + number
    assert capsys.readouterr().err.endswith("evaluate.py: stopped\n")
    assert not out.exists()


def test_an_interrupted_evaluation_leaves_none_of_the_earlier_files(
    pretrained: Path, run_evaluate: RunEvaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """evaluation.json is already the second one's."""
    out = run_evaluate("--controls")
    assert {"skills.csv", "summary.csv", "skills.mp4"} <= {path.name for path in out.iterdir()}

    def fail(*_: Any) -> None:
        raise RenderingError("no picture")

    monkeypatch.setattr(command, "play_controls", fail)
    arguments = [str(pretrained), "--device", "cpu", "--out", str(out), "--no_video", "--controls", "--episodes", "2"]
    assert evaluate.main(arguments) == 2
    assert {path.name for path in out.iterdir()} == {"evaluation.json", "skills.csv", "deciles.csv"}
    assert {row["episodes"] for row in rows(out / "skills.csv")} == {"2"}


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--skills -1", "--skills"),
        ("--skills 9", "--skills"),
        ("--skills good", "--skills"),
        ("--skill_schedule 3", "--skill_schedule"),
        ("--skill_schedule 9:10", "--skill_schedule"),
        ("--skill_schedule 1:0", "--skill_schedule"),
        (f"--skill_schedule 1:{'9' * 5000}", "--skill_schedule"),
        (f"--skill_schedule {'9' * 5000}:1", "--skill_schedule"),
        ("--skill_schedule ²:1", "--skill_schedule"),
        (f"--skills {'9' * 5000}", "--skills"),
        ("--imitate nowhere.npz", "--imitate"),
        ("--device nonsense", "--device"),
    ],
)
def test_bad_input_is_one_line(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, word: str
) -> None:
    out = tmp_path / "out"
    assert evaluate.main([str(pretrained), "--device", "cpu", "--out", str(out), *shlex.split(line)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate.py: error: ")
    assert word in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--skill_schedule 0:5 --save_trajectories", "--save_trajectories has no effect with --skill_schedule"),
        ("--imitate some.npz --sample", "--sample has no effect with --imitate"),
        ("--skill_schedule 0:5 --controls", "--controls has no effect with --skill_schedule"),
        ("--imitate some.npz --skills 1", "--skills has no effect with --imitate"),
        ("--imitate some.npz --skill_schedule 0:5", "exclude each other"),
        ("--imitate some.npz --episodes 2", "--episodes has no effect with --imitate"),
        ("--epsiodes 3", "did you mean --episodes?"),
        ("--episodes 0", "from 1 to 999999"),
        ("--episodes 1.5", "--episodes: must be a whole number"),
        (f"--episodes {'9' * 5000}", "--episodes: must be a whole number"),
        ("--video_size 4097", "from 1 to 4096"),
        ("--seed -1", "0 or above"),
        (f"--seed {'9' * 5000}", "--seed: must be a whole number"),
    ],
)
def test_flags_that_are_refused(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["some_run", *shlex.split(line)])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize("place", ["nowhere", "empty", "file", "pickle", "loop"])
@pytest.mark.usefixtures("fake_envs")
def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"no checkpoint")
    torch.save({"flags": {}}, tmp_path / "pickle")
    assert evaluate.main([str(tmp_path / place), "--device", "cpu"]) == 2
    assert str(tmp_path / place) in capsys.readouterr().err


@pytest.mark.parametrize(("program", "code"), [("evaluate", "evaluate.parse_args(['run'])"), ("evaluation.report", "")])
def test_parsing_needs_no_torch(program: str, code: str) -> None:
    """--help and a mistyped flag are answered at once; plot.py and report.py never need torch."""
    source = f"import sys, {program}\n{code}\nsys.exit('torch' in sys.modules)"
    child = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
