"""The real program on dm_control's pixels, as a subprocess: short runs, whose outputs are read with other tools."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from running.columns import HEADLINE
from tests.support.flags import DIAYN_COMMAND, DRQ_COMMAND
from tests.support.processes import Child, ColdChild, run_folder

pytestmark = pytest.mark.slow

# 100 agent steps in episodes of 10 (80 frames); updates from step 70 on, so in the last three episodes.
SHORT = (
    "--device cpu --env cartpole_swingup --action_repeat 8 --time_limit 80 --num_train_steps 100 --num_seed_steps 70 "
    "--batch_size 8 --hidden_dim 32 --replay_buffer_capacity 1000 --eval_frequency 50 --num_eval_episodes 2 "
    "--log_frequency_step 45"
)
EPISODE_STEPS = 10
EVALUATED = (0, 400, 800)  # frames

UPDATE_COLUMNS = ["batch_reward", "actor_loss", "actor_entropy", "actor_target_entropy", "critic_loss"]
UPDATE_COLUMNS += ["alpha_loss", "alpha_value"]
SKILL_UPDATE_COLUMNS = ["discriminator_loss", "discriminator_accuracy", "intrinsic_reward"]
TRAIN_COLUMNS = {"episode", "step", "episode_reward", "duration", "fps", *UPDATE_COLUMNS}
SKILL_COLUMNS = {"skill_id", "episode_intrinsic_reward_sum", *SKILL_UPDATE_COLUMNS}
EVAL_SKILL_COLUMNS = {"episode_intrinsic_reward_sum", "discriminator_accuracy", "mutual_information_bound"}
EVAL_SKILL_COLUMNS |= {"mutual_information_bound_second_half", "effective_skills", "cells_visited"}
EPISODE_COLUMNS = ["type", "episode", "step", "duration", "episode_extrinsic_reward", "skill_id"]
EPISODE_COLUMNS += ["episode_intrinsic_reward_sum"]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has finished."""

    folder: Path
    stdout: str
    stderr: str
    num_skills: int

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv")

    def videos(self, *frames: int) -> set[str]:
        """Return the names of the videos of evaluations at these frames."""
        names = [f"_skill{skill}" for skill in range(self.num_skills)] + ["_skills"] if self.num_skills else [""]
        return {f"{frame:08}{name}.mp4" for frame in frames for name in names}


def finish(line: str, place: Path, num_skills: int, kind: type[Child] = Child) -> Finished:
    child = kind(f"{line} --work_dir {place / 'runs'}", place / "output").finish()
    return Finished(run_folder(place / "runs"), child.stdout, child.stderr, num_skills)


@pytest.fixture(scope="module", params=[2, 0], ids=["diayn", "drq"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(f"{SHORT} --num_skills {request.param}", tmp_path_factory.mktemp("run"), request.param)


@pytest.fixture(scope="module")
def events(run: Finished) -> EventAccumulator:
    """TensorBoard's own reader, after it has read everything."""
    reader = EventAccumulator(str(run.folder / "tb"), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    return reader.Reload()


def read_frames(path: Path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return np.array(frames)
        frames.append(frame)


def test_files(run: Finished) -> None:
    names = {"train.csv", "eval.csv", "episodes.csv", "tb", "video", "config.json", "checkpoint", ".lock"}
    assert {path.name for path in run.folder.iterdir()} == names | (
        {"skills.csv", "skills"} if run.num_skills else set()
    )
    assert run.folder.parent.name == "cartpole_swingup"
    assert json.loads((run.folder / "config.json").read_text())["flags"]["num_skills"] == run.num_skills


def test_train_csv(run: Finished) -> None:
    table, skills = run.table("train"), run.num_skills > 0
    assert set(table.columns) == TRAIN_COLUMNS | (SKILL_COLUMNS if skills else set())
    assert table["episode"].tolist() == list(range(1, 11))
    assert table["step"].tolist() == list(range(80, 801, 80))
    updated = table["step"] > 70 * 8
    for column in UPDATE_COLUMNS + SKILL_UPDATE_COLUMNS * skills:
        assert table[column].notna().tolist() == updated.tolist()
    assert np.isfinite(table[updated].to_numpy()).all()
    assert (table["duration"] > 0).all()
    np.testing.assert_allclose(table["fps"], 80 / table["duration"])
    assert table["episode_reward"].between(0, EPISODE_STEPS * 8).all()
    assert table["episode_reward"].nunique() == 10


def test_eval_csv(run: Finished) -> None:
    table, episodes = run.table("eval"), run.table("episodes").query("type == 'eval'")
    assert set(table.columns) == {"episode", "step", "episode_reward"} | (
        EVAL_SKILL_COLUMNS if run.num_skills else set()
    )
    assert table["step"].tolist() == list(EVALUATED)
    assert table["episode"].tolist() == [0, 5, 10]
    assert np.isfinite(table.to_numpy()).all()
    np.testing.assert_allclose(table["episode_reward"], episodes.groupby("step")["episode_extrinsic_reward"].mean())


def test_episodes_csv(run: Finished) -> None:
    table, train = run.table("episodes"), run.table("train")
    assert table.columns.tolist() == EPISODE_COLUMNS
    assert not table.isna().to_numpy().any()
    trained, evaluated = table[table["type"] == "train"], table[table["type"] == "eval"]
    assert len(trained) + len(evaluated) == len(table)
    assert trained["episode_extrinsic_reward"].tolist() == train["episode_reward"].tolist()
    assert set(trained["skill_id"]) == (set(range(run.num_skills)) or {-1})
    counts = evaluated.groupby(["step", "skill_id"]).size()
    assert counts.tolist() == [2] * len(EVALUATED) * (run.num_skills or 1)


def test_tensorboard_scalars(run: Finished, events: EventAccumulator) -> None:
    """The CSVs' values under train/, eval/ and eval_more/, and returns and intrinsic sums of each skill, by frame."""
    for prefix in ("train", "eval"):
        table = run.table(prefix).set_index("step")
        for column in table.columns.difference(["episode", "skill_id"]):
            group = "eval_more" if prefix == "eval" and column not in HEADLINE else prefix
            written, expected = events.Scalars(f"{group}/{column}"), table[column].dropna()
            assert [event.step for event in written] == expected.index.tolist()
            np.testing.assert_allclose([event.value for event in written], expected, rtol=1e-5)
    episodes = run.table("episodes")
    per_skill = {"train": ["episode_intrinsic_reward_sum"], "eval": ["episode_intrinsic_reward_sum", "episode_reward"]}
    for skill in range(run.num_skills):
        for prefix, names in per_skill.items():
            own = episodes[(episodes["type"] == prefix) & (episodes["skill_id"] == skill)]
            own = own.rename(columns={"episode_extrinsic_reward": "episode_reward"}).groupby("step")
            for name in names:
                written = events.Scalars(f"skill{'_train' * (prefix == 'train')}_{name}/skill_{skill}")
                assert [event.step for event in written] == list(own.groups)
                np.testing.assert_allclose([event.value for event in written], own[name].mean(), rtol=1e-5)


def test_tensorboard_histograms(run: Finished, events: EventAccumulator) -> None:
    tags = events.Tags()["histograms"]
    for module in ("actor", "critic", *(["discriminator"] if run.num_skills else [])):
        own = [tag for tag in tags if tag.startswith(f"weights_{module}/")]
        assert sum(tag.endswith("_grad") for tag in own) == len(own) / 2 > 0
    for tag in tags:
        expected = [720] if tag.endswith("_grad") else [360, 720]  # there is no gradient before the first update
        assert [event.step for event in events.Histograms(tag)] == expected


def test_tensorboard_clips(run: Finished, events: EventAccumulator) -> None:
    """One clip for each video; its frames differ."""
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("video/")]
    assert len(tags) == len(run.videos(0))
    for tag in tags:
        written = events.Images(tag)
        assert [event.step for event in written] == list(EVALUATED)
        for event in written:
            with Image.open(io.BytesIO(event.encoded_image_string)) as clip:
                assert (clip.format, clip.size) == ("GIF", (event.width, event.height))
                length = getattr(clip, "n_frames", 1)
                assert length > 1
                first = np.asarray(clip.convert("RGB"))
                clip.seek(length - 1)
                assert (first != np.asarray(clip.convert("RGB"))).any()


def test_videos(run: Finished) -> None:
    """One frame for each agent step of the episode; the video of all skills has them side by side."""
    videos = {path.name: read_frames(path) for path in (run.folder / "video").iterdir()}
    assert videos.keys() == run.videos(*EVALUATED)
    for frames in videos.values():
        assert len(frames) == EPISODE_STEPS
        assert frames.std(axis=(1, 2)).min() > 1  # every frame shows something
        assert (frames[0] != frames[-1]).any()
    if run.num_skills:
        single, grid = videos["00000000_skill0.mp4"].shape, videos["00000000_skills.mp4"].shape
        assert grid[1] * grid[2] >= run.num_skills * single[1] * single[2]


def test_console(run: Finished) -> None:
    """DrQ's lines, or DIAYN's, with the values of the updates as soon as there are some."""
    number = r"-?\d+(\.\d+)?(e[+-]\d+)?"
    lines = [line for line in run.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == len(run.table("train")) + len(run.table("eval"))
    labels = ("ALOSS", "CLOSS", "SKILL", "IR", "DACC") if run.num_skills else ("BR", "ALOSS", "CLOSS", "TVAL", "AENT")
    updates = "".join(rf" \| {label}: {number}" for label in labels)
    assert re.match(rf"\| train \| E: 10 \| S: 800 \| R: {number} \| D: {number} s{updates}", lines[-2])
    assert re.match(rf"\| eval  \| E: 10 \| S: 800 \| R: {number}", lines[-1])
    assert "frames/s" not in run.stdout + run.stderr  # no progress bar without a terminal


@pytest.mark.parametrize("run", [2], ids=["diayn"], indirect=True)
def test_same_seed_same_evaluations(run: Finished, tmp_path: Path) -> None:
    again = finish(f"{SHORT} --num_skills 2", tmp_path, 2, ColdChild)
    pd.testing.assert_frame_equal(run.table("eval"), again.table("eval"), check_exact=True)
    for name in ("train", "episodes"):
        first, second = (
            table.drop(columns=["duration", "fps"], errors="ignore") for table in (run.table(name), again.table(name))
        )
        pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.parametrize(
    ("command", "shorter", "env", "num_skills", "last"),
    [
        (DIAYN_COMMAND, "--num_train_steps 8 --num_seed_steps 6 --time_limit 8", "walker_run", 10, 16),
        (DRQ_COMMAND, "--num_train_steps 8 --num_seed_steps 6 --time_limit 16", "cartpole_swingup", 0, 32),
    ],
    ids=["diayn", "drq"],
)
def test_example_command(command: str, shorter: str, env: str, num_skills: int, last: int, tmp_path: Path) -> None:
    """The example commands with networks and batches of full size; only the number of steps is smaller."""
    run = finish(f"{command} {shorter}", tmp_path, num_skills)
    assert run.folder.parent.name == env
    assert np.isfinite(run.table("train").iloc[-1][UPDATE_COLUMNS].astype(float)).all()
    assert run.table("eval")["step"].tolist() == [0, last]
    assert {path.name for path in (run.folder / "video").iterdir()} == run.videos(0, last)
    assert len(run.table("episodes").query("type == 'eval'")) == 2 * 10  # 10 skills once, or one policy 10 times
