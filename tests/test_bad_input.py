"""Bad input for the real program: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT, Mount
from tests.support.processes import Child

SMALL = (
    "--image_size 24 --time_limit 8 --action_repeat 2 --num_train_steps 6 --num_seed_steps 4 --num_skills 2 "
    "--batch_size 2 --hidden_dim 8 --encoder_feature_dim 4 --num_eval_episodes 1 --replay_buffer_capacity 100 "
    "--save_video false"
)


RunTrain = Callable[..., Child]


@pytest.fixture
def run_train(tmp_path_factory: pytest.TempPathFactory) -> RunTrain:
    """`run_train(flags, work_dir, variable=value, ...)` runs train.py with SMALL to its end."""

    def run(line: str, work_dir: Path | str, **environment: str) -> Child:
        place = tmp_path_factory.mktemp("output") / "child"
        child = Child(f"{SMALL} {line} --work_dir {work_dir}", place, **environment)
        child.wait()
        return child

    return run


def assert_refused(child: Child | subprocess.CompletedProcess[str], *patterns: str) -> None:
    """Check for exit code 2, no traceback, and a last line on stderr in which each pattern is found."""
    assert child.returncode == 2, child.stderr
    assert "Traceback" not in child.stderr
    last = child.stderr.splitlines()[-1]
    assert last.startswith("train.py: error: ")
    for pattern in patterns:
        assert re.search(pattern, last), last


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("program", "line", "words"),
    [
        ("train", "--env walker_wlak", "--env: dm_control.suite has no task 'walker_wlak'; did you mean walker_walk"),
        ("train", "--task dmc_cartpole", "--task: dm_control.suite has no task 'cartpole'; did you mean cartpole_"),
        ("train", "--framestack 0", "--framestack must be at least 1; got 0"),
        ("train", "--env humanoid --device cpu", "did you mean humanoid_"),
        ("train", "--env gm:Ant-v5", "--env gm:Ant-v5: unknown prefix gm:; give gym: or, for a suite task, none"),
        ("train", "--floor coloured", "--env: cartpole_swingup has no walking body"),
        ("train", "--device nonsense", "--device must be cuda, cuda:N or cpu; got nonsense"),
        ("train", "--num_skills -1", "--num_skills must be at least 0; got -1"),
        ("evaluate", "{run} --skills 9", "--skills: the run has the skills 0 to 3; got 9"),
        ("evaluate", "{run}/checkpoint --skill_schedule 9:5", "--skill_schedule: the run has the skills 0 to 3; got 9"),
        ("evaluate", "{run} --skills 0 2", "unrecognized arguments: 2; write a list as 3,7 and quote blanks"),
        ("evaluate", "{run} --refit -1", "argument --refit: must be from 3 to 999999; got -1"),
        ("evaluate", "{run}/config.json", "config.json is not a checkpoint; name a run's folder, its snapshots or"),
        ("train", "--work_dir ''", "argument --work_dir: the value is empty; is a variable of the shell not set?"),
        ("plot", "{run} --out=", "argument --out: the value is empty; is a variable of the shell not set?"),
        ("evaluate", "''", "an argument is empty; is a variable of the shell not set?"),
        ("evaluate", "{run} --skills x", "--skills must be all, best or numbers such as 3,7; got x"),
        ("evaluate", "{run}/typo", "/typo; name a run's folder, its snapshots or snapshots/N.pt"),
        ("report", "{run} {run}/typo", "/typo is not a folder; name a run's folder, or one above it"),
        ("plot", "{run}/typo", "/typo is not a folder; name a run's folder, or one above it"),
        ("evaluate", "{run} --device gpu", "--device must be cuda, cuda:N or cpu; got gpu"),
        ("sweep", "--task=walker_wlak --seed 1 2", "--task: dm_control.suite has no task 'walker_wlak'"),
        ("sweep", "--env walker_wlak --seed 1 2", "dm_control.suite has no task 'walker_wlak'"),
        ("benchmark", "--env walker_wlak", "dm_control.suite has no task 'walker_wlak'"),
    ],
)
def test_a_mistyped_value_is_answered_at_once(program: str, line: str, words: str, tmp_path: Path) -> None:
    """In one line, before anything is imported that takes seconds, such as torch."""
    (tmp_path / "config.json").write_text('{"flags": {"num_skills": 4}}')
    (tmp_path / "checkpoint").mkdir()
    checked = f"""
import sys
from {program} import main
try:
    code = main({shlex.split(line.format(run=tmp_path))!r})
except SystemExit as error:
    code = error.code
print(code, {{"torch", "dm_control", "mujoco", "numpy", "ray"}} & set(sys.modules))
"""
    child = subprocess.run([sys.executable, "-c", checked], cwd=ROOT, capture_output=True, text=True)
    assert child.stdout == "2 set()\n", child.stderr
    (answer,) = child.stderr.splitlines()
    assert answer.startswith(f"{program}.py: error: ")
    assert words in answer


@pytest.mark.parametrize(
    ("line", "environment", "patterns"),
    [
        ("--replay_buffer_capacity 1e9", {}, ("--replay_buffer_capacity", r"need\w* [\d,.]+ GB", r"[\d.]+ GB .*free")),
        ("--replay_buffer_capacity 3", {}, ("--replay_buffer_capacity", r"\b4\b")),  # an episode has 4 agent steps
        ("--device cuda", {}, ("--device cuda", "cpu")),
        ("--device cuda:1", {}, ("--device cuda:1", "cpu")),
        ("", {"MUJOCO_GL": "nonsense"}, ("MUJOCO_GL", "nonsense", "unset|install")),
    ],
)
def test_refused(
    line: str, environment: dict[str, str], patterns: tuple[str, ...], run_train: RunTrain, tmp_path: Path
) -> None:
    """The last line names the flag and the remedy; neither the run's folder nor its parents are made."""
    assert_refused(run_train(line, tmp_path / "new" / "runs", **environment), *patterns)
    assert contents(tmp_path) == []


def test_work_dir_is_a_file(run_train: RunTrain, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert_refused(run_train("", file), "--work_dir", str(file))
    assert file.read_text() == "mine"
    assert contents(tmp_path) == ["file"]


@pytest.mark.slow
def test_work_dir_unwritable(run_train: RunTrain) -> None:
    """The worker processes for evaluation have already been started then."""
    assert_refused(run_train("--eval_workers 2", "/proc/runs"), "--work_dir /proc/runs")


@pytest.mark.parametrize("options", ["ro", "size=4k"])
@pytest.mark.slow
def test_workers_without_shared_memory(options: str, tmp_path: Path) -> None:
    """/dev/shm is replaced for this process alone; only root can do that."""
    mounted = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("no permission to mount a file system")
    remedy = "they need a /dev/shm that is writable and not full: fix that, or give --eval_workers 0"
    words = shlex.split(f"{SMALL} --eval_workers 2 --device cpu --work_dir {tmp_path / 'runs'}")
    command = [*prefix, sys.executable, str(ROOT / "train.py"), *words]
    assert_refused(subprocess.run(command, capture_output=True, text=True), "--eval_workers 2: ", remedy)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(("options", "free_kb"), [("size=64k", 12), ("size=64k,nr_inodes=4", 64)])
def test_disk_full_at_the_start(options: str, free_kb: int, run_train: RunTrain, mount: Mount) -> None:
    """There is no space for the run's first files, or for its folder: everything that was made is removed."""
    disk = mount(options)
    (disk / "filler").write_bytes(bytes(1024 * (64 - free_kb)))
    assert_refused(run_train("", disk / "new" / "runs"), "--work_dir", "space|full")
    assert contents(disk) == ["filler"]


def test_disk_full_leaves_the_users_folder(run_train: RunTrain, mount: Mount) -> None:
    """An empty --work_dir that existed before is not removed."""
    disk = mount("size=64k")
    (disk / "runs").mkdir()
    (disk / "filler").write_bytes(bytes(1024 * 64))
    assert_refused(run_train("", disk / "runs"), "--work_dir")
    assert contents(disk) == ["filler", "runs"]


def test_disk_full_while_training(run_train: RunTrain, mount: Mount) -> None:
    """A CSV that cannot grow ends the run; what was written before stays."""
    disk = mount("size=32k")
    line = "--log_save_tb false --num_train_steps 140 --num_seed_steps 100 --time_limit 2"
    assert_refused(
        run_train(f"{line} --eval_frequency 0 --checkpoint_frequency 0", disk), r"full at \S+\.csv", "--resume"
    )
    (table,) = disk.glob("*/2*/train.csv")
    lines = table.read_text().splitlines(keepends=True)
    assert lines[0].startswith("episode,step,episode_reward")
    assert all(row.endswith("\n") and row.count(",") == lines[0].count(",") for row in lines)


def test_tensorboard_may_run_out_of_disk(run_train: RunTrain, mount: Mount) -> None:
    """It ends with a warning, and the run continues to its end, where there is no space for the checkpoint."""
    disk = mount("size=64k")
    line = "--num_train_steps 40 --num_seed_steps 2 --log_frequency_step 1 --hidden_dim 64 --eval_frequency 0"
    child = run_train(f"{line} --checkpoint_frequency 0", disk)
    assert "no more TensorBoard logs" in child.stderr
    assert_refused(child, "full at .*/checkpoint/")
    (table,) = disk.glob("*/2*/train.csv")
    assert len(table.read_text().splitlines()) == 1 + 40 // 4


def test_without_cuda_the_default_is_the_cpu(run_train: RunTrain, tmp_path: Path) -> None:
    """If no device was asked for, a missing one is only a warning."""
    child = run_train("", tmp_path)
    assert child.returncode == 0, child.stderr
    (warning,) = [line for line in child.stderr.splitlines() if "CUDA" in line]
    assert warning.startswith("warning: ")
    assert "CPU" in warning
    (record,) = tmp_path.glob("*/2*/config.json")
    assert json.loads(record.read_text())["device"] == "cpu"
