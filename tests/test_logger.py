"""What a run records: CSV files that are complete at any time, console lines, the progress bar, TensorBoard."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from evaluation import skill_report
from evaluation.play import Trace
from logger import Episode, Logger, Meters
from running.columns import CONSOLE, EVAL_LINE, HEADLINE, TRAIN_LINE, TRAIN_SKILL_LINE, update_metrics
from running.csv_files import CsvFile
from tests.support.paths import ROOT
from tests.support.terminal import open_terminal, read_terminal
from video import CLIP_SIZE, VIDEO_SIZE, VideoRecorder

DRQ_COLUMNS = "episode,step,episode_reward,duration,batch_reward,actor_loss,actor_entropy,actor_target_entropy"
DRQ_COLUMNS += ",critic_loss,alpha_loss,alpha_value"
EPISODES_HEADER = "type,episode,step,duration,episode_extrinsic_reward,skill_id,episode_intrinsic_reward_sum"
HEADERS = {
    ("train.csv", False): f"{DRQ_COLUMNS},fps",
    ("train.csv", True): f"{DRQ_COLUMNS},fps,skill_id,episode_intrinsic_reward_sum"
    ",discriminator_loss,discriminator_accuracy,intrinsic_reward",
    ("eval.csv", False): "episode,step,episode_reward",
    ("eval.csv", True): "episode,step,episode_reward"
    ",episode_intrinsic_reward_sum,discriminator_accuracy,mutual_information_bound"
    ",mutual_information_bound_second_half,effective_skills,cells_visited",
    ("episodes.csv", False): EPISODES_HEADER,
    ("episodes.csv", True): EPISODES_HEADER,
}
CRITIC = {"batch_reward": 0.5, "critic_loss": 2.0}
ACTOR = {"actor_loss": -3.0, "actor_entropy": 1.5, "actor_target_entropy": -2.0, "alpha_loss": 0.25, "alpha_value": 0.1}
DISCRIMINATOR = {"discriminator_loss": 2.25, "discriminator_accuracy": 0.125, "intrinsic_reward": -0.75}
METRICS = update_metrics(with_skills=True)
MakeLogger = Callable[..., Logger]


@pytest.fixture
def make_logger(tmp_path: Path) -> Iterator[MakeLogger]:
    """`make_logger()` returns a Logger in tmp_path, which is closed after the test."""
    made: list[Logger] = []

    def make(*, with_skills: bool = False, tensorboard: bool = False, **settings: Any) -> Logger:
        settings = {"total_frames": 1000, **settings}
        made.append(Logger(tmp_path, with_skills=with_skills, tensorboard=tensorboard, **settings))
        return made[-1]

    yield make
    for logger in made:
        logger.close()


def tensors(values: dict[str, float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


def eval_results() -> list[Episode]:
    """Return two episodes of each of two skills, of different lengths."""
    return [
        Episode(1.0, 10.0, 0, 4.0, 1.0, length=10),
        Episode(1.0, 30.0, 0, -6.0, 0.5, length=10),
        Episode(2.0, 50.0, 1, 1.0, 0.0, length=20),
        Episode(0.5, 70.0, 1, 2.0, 0.25, length=40),
    ]


def skill_rows() -> list[dict[str, Any]]:
    """Return the rows of skills.csv for these episodes, without states of the physics."""
    played = {
        skill: [(result, Trace(predicted=[0])) for result in eval_results() if result.skill == skill]
        for skill in (0, 1)
    }
    return skill_report.skill_rows(played)


def measures(with_skills: bool = True) -> dict[str, Any]:
    """Return what the logger is told about the skills of these episodes."""
    return {"skills": skill_rows(), "overall": skill_report.overall(skill_rows())} if with_skills else {}


# -- means of metrics --------------------------------------------------------------------------------------------------


def test_meters_are_means_over_the_updates_that_had_the_metric() -> None:
    """The actor's metrics come with every second update only."""
    meters = Meters(METRICS)
    for number, critic_loss in enumerate([1.0, 2.0, 6.0, 7.0]):
        meters.add(tensors({"critic_loss": critic_loss} | ({} if number % 2 else {"actor_loss": critic_loss * 10})))
    assert meters.read() == {"critic_loss": 4.0, "actor_loss": 35.0}


def test_reading_meters_resets_them() -> None:
    meters = Meters(METRICS)
    assert meters.read() == {}
    meters.add(tensors({"critic_loss": 3.0, "actor_loss": 1.0}))
    meters.read()
    assert meters.read() == {}
    meters.add(tensors({"critic_loss": 5.0}))
    assert meters.read() == {"critic_loss": 5.0}


def test_meters_do_not_share_memory_with_their_sources() -> None:
    """An agent may return the same tensor again with the next value in it."""
    meters, value = Meters(METRICS), torch.tensor(2.0)
    for number in (2.0, 4.0, 9.0):
        value.fill_(number)
        meters.add({"critic_loss": value})
        assert value.item() == number
    value.fill_(100.0)
    assert meters.read() == {"critic_loss": 5.0}


# -- CSV files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_skills", [False, True])
@pytest.mark.parametrize("name", ["train.csv", "eval.csv", "episodes.csv"])
def test_header(name: str, with_skills: bool, make_logger: MakeLogger, tmp_path: Path) -> None:
    """It is written at once, so that pandas reads the file before there is a row."""
    make_logger(with_skills=with_skills)
    header = HEADERS[name, with_skills]
    assert (tmp_path / name).read_text() == header + "\n"
    empty = pd.read_csv(tmp_path / name)
    assert list(empty.columns) == header.split(",")
    assert len(empty) == 0


@pytest.mark.parametrize("with_skills", [False, True])
def test_files_are_complete_between_rows(with_skills: bool, make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(with_skills=with_skills)
    for number in range(1, 4):
        logger.update(tensors(CRITIC | ACTOR))
        logger.train_episode(number, number * 100, Episode(2.0, number * 1.5, skill=number), frames=100)
        logger.evaluation(number, number * 100, eval_results(), **measures(with_skills))
        for name, rows in (("train", number), ("eval", number), ("episodes", 5 * number)):
            content = table(tmp_path, name)
            assert len(content) == rows
            assert list(content.columns) == HEADERS[f"{name}.csv", with_skills].split(",")
            assert (tmp_path / f"{name}.csv").read_text().endswith("\n")


def test_train_rows_with_skills(make_logger: MakeLogger, tmp_path: Path) -> None:
    """Each row has its own episode's return, skill and metrics; fps is of the episode's own duration."""
    logger = make_logger(with_skills=True)
    for critic_loss in (1.0, 3.0):
        logger.update(tensors({**CRITIC, **ACTOR, **DISCRIMINATOR, "critic_loss": critic_loss}))
    logger.train_episode(1, 200, Episode(4.0, 11.5, skill=3, intrinsic_reward_sum=-7.25, length=50), frames=200)
    logger.update(tensors({**CRITIC, **DISCRIMINATOR, "critic_loss": 7.0}))
    logger.train_episode(2, 500, Episode(2.0, 22.5, skill=0, intrinsic_reward_sum=1.5, length=75), frames=300)
    rows = table(tmp_path, "train").to_dict("records")
    first = {"episode": 1, "step": 200, "episode_reward": 11.5, "duration": 4.0, "fps": 50.0, "skill_id": 3}
    first |= {**CRITIC, **ACTOR, **DISCRIMINATOR, "critic_loss": 2.0, "episode_intrinsic_reward_sum": -7.25}
    second = {"episode": 2, "step": 500, "episode_reward": 22.5, "duration": 2.0, "fps": 150.0, "skill_id": 0}
    second |= {**CRITIC, **dict.fromkeys(ACTOR, np.nan), **DISCRIMINATOR, "critic_loss": 7.0}
    second |= {"episode_intrinsic_reward_sum": 1.5}
    for row, expected in zip(rows, (first, second), strict=True):
        assert row == pytest.approx(expected, nan_ok=True)


def test_late_metrics_leave_earlier_cells_empty(make_logger: MakeLogger, tmp_path: Path) -> None:
    """There is no update in the first episode, and none of the actor before the third."""
    logger = make_logger()
    for number, metrics in enumerate(({}, CRITIC, CRITIC | ACTOR), start=1):
        if metrics:
            logger.update(tensors(metrics))
        logger.train_episode(number, number * 100, Episode(1.0, 5.0), frames=100)
    content = table(tmp_path, "train")
    assert content.critic_loss.isna().tolist() == [True, False, False]
    assert content.actor_loss.isna().tolist() == [True, True, False]
    assert content.actor_loss[2] == -3.0
    assert content.fps.tolist() == [100.0] * 3
    assert {line.count(",") for line in (tmp_path / "train.csv").read_text().splitlines()} == {11}


def test_eval_row_with_skills(make_logger: MakeLogger, tmp_path: Path) -> None:
    """Returns are means over episodes; the discriminator's figures are means over a skill's steps, then over skills."""
    make_logger(with_skills=True).evaluation(7, 2800, eval_results(), **measures())
    (row,) = table(tmp_path, "eval").to_dict("records")
    for name in ("mutual_information_bound_second_half", "cells_visited"):
        assert np.isnan(row.pop(name)), "there are no traces of these episodes"
    bound = (-2 / 20 + 3 / 60) / 2
    assert row == {
        "episode": 7,
        "step": 2800,
        "episode_reward": 40.0,
        "episode_intrinsic_reward_sum": 0.25,
        "discriminator_accuracy": pytest.approx((15 / 20 + 10 / 60) / 2),
        "mutual_information_bound": pytest.approx(bound),
        "effective_skills": pytest.approx(np.exp(bound)),
    }


def test_measures_that_are_missing(make_logger: MakeLogger, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their cells are empty, and the console does not show them."""
    overall = {"discriminator_accuracy": 0.25, "mutual_information_bound": None}
    make_logger(with_skills=True).evaluation(7, 2800, eval_results(), skills=skill_rows(), overall=overall)
    (row,) = table(tmp_path, "eval").to_dict("records")
    assert row["discriminator_accuracy"] == 0.25
    assert np.isnan(row["mutual_information_bound"])
    assert np.isnan(row["effective_skills"])
    assert capsys.readouterr().out.endswith("| R: 40 | DACC: 0.25\n")


def test_eval_row_without_skills(make_logger: MakeLogger, tmp_path: Path) -> None:
    make_logger().evaluation(7, 2800, [Episode(1.0, 10.0, length=5), Episode(1.0, 20.0, length=15)])
    assert table(tmp_path, "eval").to_dict("records") == [{"episode": 7, "step": 2800, "episode_reward": 15.0}]


def test_episodes_file_has_a_row_per_episode(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(with_skills=True)
    logger.train_episode(1, 400, Episode(2.0, 5.5, skill=4, intrinsic_reward_sum=-1.5), frames=400)
    logger.evaluation(1, 400, eval_results())
    assert (tmp_path / "episodes.csv").read_text().splitlines()[1:] == [
        "train,1,400,2.0,5.5,4,-1.5",
        "eval,1,400,1.0,10.0,0,4.0",
        "eval,1,400,1.0,30.0,0,-6.0",
        "eval,1,400,2.0,50.0,1,1.0",
        "eval,1,400,0.5,70.0,1,2.0",
    ]


def test_episodes_file_without_skills(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger()
    logger.train_episode(1, 400, Episode(2.0, 5.5), frames=400)
    logger.evaluation(1, 400, [Episode(1.0, 10.0)])
    rows = (tmp_path / "episodes.csv").read_text().splitlines()[1:]
    assert rows == ["train,1,400,2.0,5.5,-1,0.0", "eval,1,400,1.0,10.0,-1,0.0"]


def test_a_row_may_leave_columns_out(tmp_path: Path) -> None:
    file = CsvFile(tmp_path / "a.csv", ("one", "two"))
    file.write({"two": 2})
    file.write({"one": 1.5})
    assert (tmp_path / "a.csv").read_text() == "one,two\n,2\n1.5,\n"
    file.close()


# -- columns that are not declared -------------------------------------------------------------------------------------


def test_a_column_that_the_file_does_not_have_raises(tmp_path: Path) -> None:
    file = CsvFile(tmp_path / "a.csv", ("one", "two"))
    with pytest.raises(ValueError, match=r"three: no such column of .*a.csv"):
        file.write({"two": 2, "three": 3})
    assert (tmp_path / "a.csv").read_text() == "one,two\n"
    file.close()


@pytest.mark.parametrize("with_skills", [False, True])
def test_an_undeclared_metric_raises(with_skills: bool, make_logger: MakeLogger, tmp_path: Path) -> None:
    """Also in a later update, and DIAYN's in a run without skills."""
    logger = make_logger(with_skills=with_skills)
    logger.update(tensors(CRITIC))
    with pytest.raises(ValueError, match="gradient_norm: no such metric"):
        logger.update(tensors({**CRITIC, "gradient_norm": 1.0}))
    if not with_skills:
        with pytest.raises(ValueError, match="discriminator_loss, discriminator_accuracy, intrinsic_reward"):
            logger.update(tensors(CRITIC | DISCRIMINATOR))
    logger.train_episode(1, 100, Episode(1.0, 5.0), frames=100)
    assert table(tmp_path, "train").critic_loss.tolist() == [2.0]


def test_an_undeclared_column_of_skills_raises(make_logger: MakeLogger) -> None:
    rows = [{**row, "speed": 1.0} for row in skill_rows()]
    with pytest.raises(ValueError, match=r"speed: no such column of .*skills.csv"):
        make_logger(with_skills=True).evaluation(1, 400, eval_results(), skills=rows)


def run_child(source: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", source], env=environment, **options)


def test_the_error_of_a_full_disk_names_the_file() -> None:
    """Also if nothing of a row can be written, when Python's own error has no file name."""
    with pytest.raises(OSError, match="No space left on device: '/dev/full'") as caught:
        CsvFile(Path("/dev/full"), ("one", "two"))
    assert caught.value.errno == errno.ENOSPC


def test_rows_are_there_after_a_kill(tmp_path: Path) -> None:
    source = f"""
import os, signal
from pathlib import Path
from logger import Episode, Logger
logger = Logger(Path({str(tmp_path)!r}), with_skills=True, tensorboard=False, total_frames=1000)
for number in range(1, 4):
    logger.train_episode(number, number * 100, Episode(1.0, 5.0, skill=number), frames=100)
    logger.evaluation(number, number * 100, [Episode(1.0, 7.0, skill=0)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = run_child(source, stdout=subprocess.DEVNULL)
    assert child.wait() == -signal.SIGKILL
    assert table(tmp_path, "train").skill_id.tolist() == [1, 2, 3]
    assert table(tmp_path, "eval").episode_reward.tolist() == [7.0] * 3
    assert table(tmp_path, "episodes").type.tolist() == ["train", "eval"] * 3


# -- the console -------------------------------------------------------------------------------------------------------

BEGUN = "| train | E: 5 | S: 5000 | R: 11.44 | D: 66.8 s"
DRQ_LINE = f"{BEGUN} | BR: 0.5 | ALOSS: -3 | CLOSS: 2 | TVAL: 0.1 | AENT: 1.5"


@pytest.mark.parametrize(
    ("with_skills", "metrics", "line"),
    [
        (False, CRITIC | ACTOR, DRQ_LINE),
        (False, {}, BEGUN),
        (False, CRITIC, f"{BEGUN} | BR: 0.5 | CLOSS: 2"),
        (True, CRITIC | ACTOR | DISCRIMINATOR, f"{BEGUN} | ALOSS: -3 | CLOSS: 2 | SKILL: 3 | IR: -7.25 | DACC: 0.12"),
        (True, {}, f"{BEGUN} | SKILL: 3 | IR: -7.25"),
    ],
)
def test_train_line(
    with_skills: bool,
    metrics: dict[str, float],
    line: str,
    make_logger: MakeLogger,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """DrQ's line, or DIAYN's, without what there is no value for yet."""
    logger = make_logger(with_skills=with_skills)
    if metrics:
        logger.update(tensors(metrics))
    skill = {"skill": 3, "intrinsic_reward_sum": -7.25} if with_skills else {}
    logger.train_episode(5, 5000, Episode(66.8123, 11.43594, **skill), frames=1000)  # type: ignore[arg-type]
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    ("with_skills", "appended"), [(False, ""), (True, " | IR: 0.25 | DACC: 0.46 | MI: -0.025 | EFF: 1.0")]
)
def test_eval_line(
    with_skills: bool, appended: str, make_logger: MakeLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    make_logger(with_skills=with_skills).evaluation(20, 20000, eval_results(), **measures(with_skills))
    assert capsys.readouterr().out == f"| eval  | E: 20 | S: 20000 | R: 40{appended}\n"


def test_a_bound_that_is_rounded_to_zero_has_no_minus(
    make_logger: MakeLogger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = make_logger(with_skills=True)
    logger.evaluation(0, 0, eval_results(), overall={"mutual_information_bound": -0.0002})
    assert " | MI: 0.000\n" in capsys.readouterr().out
    assert table(tmp_path, "eval")["mutual_information_bound"].tolist() == [-0.0002]


@pytest.mark.parametrize("with_skills", [False, True])
def test_lines_of_the_console_have_at_most_120_characters(
    with_skills: bool, make_logger: MakeLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with unusual numbers; at usual ones nothing is left out."""
    logger = make_logger(with_skills=with_skills)
    usual = dict.fromkeys(update_metrics(with_skills), -1.23456)
    wide = dict.fromkeys(usual, -1.23456e-30)
    for metrics, number, value in ((usual, 200, -987.654321), (wide, 10**12, -1.23456e30)):
        logger.update(tensors(metrics))
        logger.train_episode(number, 8 * number, Episode(number / 10, value, number, value), frames=1000)
    first, second = capsys.readouterr().out.splitlines()
    assert max(len(first), len(second)) <= 120
    shown = TRAIN_SKILL_LINE if with_skills else TRAIN_LINE
    assert [part.partition(":")[0] for part in first.split(" | ")[1:]] == [CONSOLE[name][0] for name in shown]
    assert second.startswith("| train | E: 1000000000000 | S: 8000000000000 | R: -1.235e+30 |")


def test_every_label_is_explained() -> None:
    """In one table, with the lines that have it, in the order of the declaration. No two labels are equal."""
    text = (ROOT / "docs" / "outputs.md").read_text()
    listed = re.findall(r"^\| `([A-Z]+)` \| ([\w ,]+) \| `(\w+)` \| \S.* \|$", text, re.MULTILINE)
    lines = {"train": {*TRAIN_LINE, *TRAIN_SKILL_LINE}, "eval": {*EVAL_LINE}}

    def where(name: str) -> str:
        kinds = [kind for kind, columns in lines.items() if name in columns]
        return "both" if len(kinds) == 2 else kinds[0]

    assert [(label, line.partition(",")[0], name) for label, line, name in listed] == [
        (label, where(name), name) for name, (label, _) in CONSOLE.items()
    ]
    assert len({label for label, *_ in listed}) == len(listed)


def test_no_progress_bar_without_a_terminal(make_logger: MakeLogger, capfd: pytest.CaptureFixture[str]) -> None:
    logger = make_logger()
    for step in (100, 200):
        logger.status("evaluating skill0")
        logger.progress(step)
    logger.close()
    assert capfd.readouterr() == ("", "")


def test_progress_bar_on_a_terminal() -> None:
    """It shows training, without frames before it, and is on stderr. Lines go to stdout, without the bar."""
    source = """
import pathlib, tempfile
from logger import Episode, Logger
folder = tempfile.TemporaryDirectory()
budget = {"total_frames": 1000, "frames_before": 9000, "step": 9100}
logger = Logger(pathlib.Path(folder.name), with_skills=False, tensorboard=False, **budget)
for step in range(9200, 9600, 50):
    logger.progress(step, step / 100)
logger.status("evaluating skill7")
logger.status("")
logger.train_episode(1, 500, Episode(1.0, 5.0), frames=500)
logger.close()
"""
    terminal, side = open_terminal(24, 120)
    child = run_child(source, stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    shown = read_terminal(terminal)
    printed = child.communicate()[0].decode()
    assert child.returncode == 0, shown
    bars = re.findall(r"9000 frames to choose: +(\d+)%\|[^\r]*?(\d+)/1000 \[\d\d:\d\d(.*?)\]", shown)
    assert bars[0] == ("10", "100", "")
    assert bars[-1] == ("55", "550", ", 100 frames/s, 00:04 left")
    assert "evaluating skill7" in shown
    assert printed.startswith("| train | E: 1 | S: 500 ")
    assert len(printed.splitlines()) == 1


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def read_events(folder: Path) -> Any:
    """Return what TensorBoard's own reader finds."""
    everything = {"scalars": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(folder / "tb"), size_guidance=everything).Reload()


def scalars(events: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_scalars_of_drq(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(tensorboard=True)
    logger.train_episode(1, 400, Episode(2.0, 5.5), frames=400)
    logger.update(tensors(CRITIC | ACTOR))
    logger.train_episode(2, 1000, Episode(3.0, 6.5), frames=600)
    logger.evaluation(2, 1000, [Episode(1.0, 10.0, length=5), Episode(1.5, 20.0, length=5)])
    logger.close()
    found = scalars(read_events(tmp_path))
    expected: dict[str, Any] = {f"train/{n}": [(1000, pytest.approx(v))] for n, v in (CRITIC | ACTOR).items()}
    expected |= {
        "train/episode_reward": [(400, 5.5), (1000, 6.5)],
        "train/duration": [(400, 2.0), (1000, 3.0)],
        "train/fps": [(400, 200.0), (1000, 200.0)],
        "eval/episode_reward": [(1000, 15.0)],
        "eval_more/duration": [(1000, 2.5)],
    }
    assert found == expected


def test_tensorboard_has_a_tag_per_skill(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(with_skills=True, tensorboard=True)
    logger.train_episode(1, 400, Episode(2.0, 5.5, skill=1, intrinsic_reward_sum=3.0), frames=400)
    logger.update(tensors(CRITIC | DISCRIMINATOR))
    logger.train_episode(2, 800, Episode(2.0, 6.5, skill=0, intrinsic_reward_sum=-4.0), frames=400)
    logger.evaluation(2, 800, eval_results(), **measures(), more={"bound_by_decile": {"03": 0.5}})
    logger.close()
    found = scalars(read_events(tmp_path))
    expected = {
        "train/episode_intrinsic_reward_sum": [(400, 3.0), (800, -4.0)],
        "skill_train_episode_intrinsic_reward_sum/skill_0": [(800, -4.0)],
        "skill_train_episode_intrinsic_reward_sum/skill_1": [(400, 3.0)],
        "train/discriminator_loss": [(800, 2.25)],
        "train/discriminator_accuracy": [(800, 0.125)],
        "train/intrinsic_reward": [(800, -0.75)],
        "eval/episode_reward": [(800, 40.0)],
        "skill_episode_reward/skill_0": [(800, 20.0)],
        "skill_episode_reward/skill_1": [(800, 60.0)],
        "eval_more/episode_intrinsic_reward_sum": [(800, 0.25)],
        "skill_episode_intrinsic_reward_sum/skill_0": [(800, -1.0)],
        "skill_episode_intrinsic_reward_sum/skill_1": [(800, 1.5)],
        "eval_more/discriminator_accuracy": [(800, pytest.approx(11 / 24))],
        "skill_discriminator_accuracy/skill_1": [(800, pytest.approx(10 / 60))],
        "eval/effective_skills": [(800, pytest.approx(np.exp(-0.025)))],
        "eval_bound_by_decile/03": [(800, 0.5)],
        "eval/mutual_information_bound": [(800, pytest.approx(-0.025))],
        "skill_mutual_information_bound/skill_1": [(800, pytest.approx(0.05))],
    }
    assert {tag: found.get(tag) for tag in expected} == expected
    assert not [tag for tag in found if "skill_id" in tag or "displacement" in tag or "distance" in tag]
    headline = {tag.partition("/")[2] for tag in found if tag.startswith("eval/")}
    assert headline == set(HEADLINE) - {"cells_visited", "mutual_information_bound_second_half"}, "not measured here"


def test_tensorboard_compares_runs_by_flags(make_logger: MakeLogger, tmp_path: Path) -> None:
    """The tab HParams has the flags, and the headline of eval/."""
    make_logger(tensorboard=True, flags={"lr": 0.001, "env": "walker_run", "time_limit": "None"}).close()
    events = read_events(tmp_path)
    assert set(events.PluginTagToContent("hparams")) == {EXPERIMENT_TAG, SESSION_START_INFO_TAG}
    experiment, begun = (
        HParamsPluginData.FromString(events.PluginTagToContent("hparams")[tag])
        for tag in (EXPERIMENT_TAG, SESSION_START_INFO_TAG)
    )
    values = begun.session_start_info.hparams
    assert (values["lr"].number_value, values["env"].string_value) == (0.001, "walker_run")
    assert {info.name for info in experiment.experiment.hparam_infos} == {"lr", "env", "time_limit"}
    shown = [info.name.tag for info in experiment.experiment.metric_infos]
    assert shown == [f"eval/{name}" for name in HEADLINE]


def test_tensorboard_has_charts_of_several_tags(make_logger: MakeLogger, tmp_path: Path) -> None:
    """Each finds the tags of a run with skills."""
    logger = make_logger(with_skills=True, tensorboard=True)
    logger.update(tensors(CRITIC | ACTOR | DISCRIMINATOR))
    logger.train_episode(2, 800, Episode(2.0, 6.5, skill=0, intrinsic_reward_sum=-4.0), frames=400)
    overall = {**measures()["overall"], "cells_visited": 3, "mutual_information_bound_second_half": 0.5}
    deciles = {"mutual_information_bound_by_decile": {"01": 0.5}}
    logger.evaluation(2, 800, eval_results(), skills=skill_rows(), overall=overall, more=deciles)
    logger.close()
    events = read_events(tmp_path)
    (layout,) = (Layout.FromString(event.tensor_proto.string_val[0]) for event in events.Tensors(CONFIG_SUMMARY_TAG))
    charts = {(part.title, chart.title): chart.multiline.tag for part in layout.category for chart in part.chart}
    assert len(charts) == 12
    for title, patterns in charts.items():
        tags = [tag for tag in events.Tags()["scalars"] for pattern in patterns if re.search(pattern, tag)]
        assert tags, title


def test_tensorboard_has_histograms(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(tensorboard=True)
    values = torch.linspace(-1.0, 3.0, 101)
    logger.histograms([("actor/weight", values), ("critic/bias", torch.zeros(7))], step=4000)
    logger.histograms([("actor/weight", values * 2)], step=8000)
    logger.close()
    events = read_events(tmp_path)
    assert set(events.Tags()["histograms"]) == {"weights_actor/weight", "weights_critic/bias"}
    first, second = events.Histograms("weights_actor/weight")
    assert (first.step, second.step) == (4000, 8000)
    assert (first.histogram_value.min, first.histogram_value.max, first.histogram_value.num) == (-1.0, 3.0, 101)
    assert second.histogram_value.max == 6.0


def test_tensorboard_has_the_moving_clip(make_logger: MakeLogger, tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, fps=25.0)
    recorder.start("4000_skill2")
    for value in range(0, 250, 25):
        recorder.record(np.full((64, 96, 3), value, np.uint8))
    path = recorder.stop()
    assert path is not None
    logger = make_logger(tensorboard=True)
    logger.video("skill2", path, recorder.fps, 4000)
    logger.close()
    events = read_events(tmp_path)
    assert events.Tags()["images"] == ["video/skill2"]
    (event,) = events.Images("video/skill2")
    height, width = (side * CLIP_SIZE // VIDEO_SIZE for side in (64, 96))
    assert (event.step, event.height, event.width) == (4000, height, width)
    pictures = Image.open(io.BytesIO(event.encoded_image_string))
    assert (pictures.format, pictures.size, getattr(pictures, "n_frames", 1)) == ("GIF", (width, height), 10)
    levels = []
    for number in range(10):
        pictures.seek(number)
        levels.append(np.array(pictures.convert("RGB")).mean())
    np.testing.assert_allclose(levels, range(0, 250, 25), atol=12)


def test_a_picture_is_the_same_in_file_and_tensorboard(make_logger: MakeLogger, tmp_path: Path) -> None:
    """In the file, whose name has the frame, and in TensorBoard. Red stays red."""
    picture = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    logger = make_logger(with_skills=True, tensorboard=True)
    logger.picture("contact_sheet", picture, 4000)
    logger.close()
    (event,) = read_events(tmp_path).Images("skills/contact_sheet")
    assert (event.step, event.height, event.width) == (4000, 20, 30)
    for source in (tmp_path / "skills" / "00004000_contact_sheet.png", io.BytesIO(event.encoded_image_string)):
        np.testing.assert_array_equal(np.array(Image.open(source).convert("RGB")), picture)


def test_without_tensorboard_there_is_no_folder(make_logger: MakeLogger, tmp_path: Path) -> None:
    logger = make_logger(with_skills=True)
    logger.train_episode(1, 400, Episode(2.0, 5.5, skill=0), frames=400)
    logger.evaluation(1, 400, eval_results())
    logger.histograms([("actor/weight", torch.zeros(3))], step=400)
    logger.video("skill0", tmp_path / "missing.mp4", 25.0, 400)
    logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes.csv", "eval.csv", "skills.csv", "train.csv"]
