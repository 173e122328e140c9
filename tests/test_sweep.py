"""The command sweep.py: its answers to bad input, and whole sweeps whose runs equal those made by hand."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

import plot
import sweep
import train
from evaluation.runs import find_runs
from running.signals import StopRequest
from sweeping.record import OPTIONS, Progress, read_progress, resumed_sweep
from tests.support.compare import assert_equal_runs
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE, SMALL, Child, ColdChild, Launch, launching, wait_for

# Long enough to be interrupted, with an early checkpoint and more of them soon.
LONG = f"{SMALL} --num_train_steps 200 --eval_frequency 100 --checkpoint_frequency 20"
SHORT = SMALL.replace("--num_train_steps 68", "--num_train_steps 44")  # 24 updates


def python(code: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Execute code that can import this repository, in a process of its own."""
    code = f"import sys; sys.path.insert(0, sys.argv[1]); del sys.argv[1]\n{code}"
    command = [sys.executable, "-c", code, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


# -- before anything starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "a sweep needs values to combine: give flags of train.py; for a single run, use train.py"),
        ("--seed 1 2 1", "--seed names 1 twice"),
        ("--num_skills 10 -1", "--num_skills must be at least 0; got -1"),
        ("--lr 1e-3 0", "--lr must be above 0"),
        ("--log_std_bounds -10 2 3", "--log_std_bounds takes pairs"),
        ("--env nonsense_task --seed 1 2", "no task 'nonsense_task'"),
        ("--env cartpole_swingup gym:CartPole-v1", "bounded Box"),
        ("--replay_buffer_capacity 10", "--replay_buffer_capacity must hold one episode"),
        ("--cpus_per_run 0", "--cpus_per_run must be at least 0.01"),
        ("--gpus_per_run 1.5", "--gpus_per_run must be whole above 1"),
        ("--max_failures -1", "--max_failures must be at least 0"),
        ("--max_failures 1.5", "--max_failures: must be a whole number"),
        ("--max_failures 1e30", "--max_failures must be a finite number"),
        ("--max_failures x", "--max_failures: must be a whole number"),
        *((f"--{name}=--", f"--{name}: -- is not a value") for name in (*OPTIONS, "seed", "save_video", "address")),
        ("--seed=-- --dry_run", "--seed: -- is not a value"),
        ("--seed -- --dry_run", "--seed: expected at least one argument"),
        *(
            (f"--{name}={value}", f"--{name} must be a finite number; got")
            for name in ("cpus_per_run", "gpus_per_run", "memory_per_run")
            for value in ("nan", "inf", "-inf", "1e400")
        ),
        ("--cpus_per_run -1e-9", "--cpus_per_run must be at least 0.01"),
        ("--gpus_per_run -1", "--gpus_per_run must be at least 0.0"),
        ("--gpus_per_run 1e-9", "--gpus_per_run must be 0 or at least 0.0001"),
        ("--memory_per_run 0", "--memory_per_run must be at least 0.01"),
        (f"--sweep_name {'x' * 300}", "--sweep_name must be at most 200 bytes long; got 300"),
        ("--sweep_name ''", "--sweep_name: the value is empty"),
        ("--sweep_name ..", "--sweep_name must be letters"),
        ("--resume nowhere --dry_run", "there is no sweep.json in it; name a sweep's folder"),
        (f"--resume {ROOT / 'sweep.py'}", "cannot be read: Not a directory; name a sweep's folder"),
        (f"--resume {'x' * 300}", "cannot be read: File name too long; name a sweep's folder"),
        ("--sweep_name a/b", "--sweep_name must be letters"),
        ("--run_name x", "unrecognized arguments: --run_name x; did you mean --sweep_name?"),
        ("--env walker_walk dmc_walker_walk", "--env names walker_walk twice"),
        ("--device cuda:1", "--device cuda:1: give cpu or cuda"),
        ("--device gpu", "--device must be cuda, cuda:N or cpu; got gpu"),
        ("--resume nowhere", "there is no sweep.json in it"),
        ("--resume nowhere --seed 1", "--seed: a resumed sweep keeps its runs"),
        ("--config nowhere.json", "there is no nowhere.json"),
    ],
)
def test_bad_input_is_answered_with_one_line(
    line: str, expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = sweep.main([*shlex.split(line), "--work_dir", str(tmp_path / "runs")])
    except SystemExit as end:
        code = end.code
    printed = capfd.readouterr().err
    assert (code, printed.count("\n")) == (2, 1), printed
    assert expected in printed
    assert printed.startswith("sweep.py: error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dry_run", [(), ("--dry_run",)])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (str(ROOT / "sweep.py"), "Not a directory"),
        (str(ROOT / "sweep.py" / "x"), "Not a directory"),
        (f"/{'x' * 300}", "File name too long"),
        ("/x" * 2000, "File name too long"),
        ("a\0b", "has a character that no name can have"),
        ("a\ud800b", "has a character that no name can have"),
        ("/closed/x", "Permission denied"),
        ("/loop", "Not a directory"),
    ],
)
def test_a_work_dir_that_cannot_be_used(
    place: str,
    reason: str,
    dry_run: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is refused at once, before a task is checked or Ray is started."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    place = re.sub("^/(?=closed|loop)", f"{tmp_path}/", place)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")  # root may write anywhere
    monkeypatch.setattr("sweeping.plan.check_environments", pytest.fail)
    assert sweep.main(["--seed", "1", "--work_dir", place, *dry_run]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep.py: error: --work_dir ")
    assert reason in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["closed", "loop"]


def test_a_damaged_record_is_answered_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    assert sweep.main(["--resume", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "sweep.json is damaged" in printed


def test_an_existing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert sweep.main(["--seed", "1", "--work_dir", str(tmp_path), "--sweep_name", "mine"]) == 2
    assert f"resume it: --resume {tmp_path / 'mine'}" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["ray", "rich"])
def test_a_missing_package_is_named(missing: str, tmp_path: Path) -> None:
    code = f"sys.modules[{missing!r}] = None; import sweep; sys.exit(sweep.main())"
    ended = python(code, ["--seed", "1", "--work_dir", str(tmp_path / "runs")])
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == f"sweep.py: error: a sweep needs {missing}; pip install -r requirements-sweep.txt\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("argument", ["--help", "--seeed"])
def test_parsing_imports_nothing_heavy(argument: str) -> None:
    code = (
        "import sweep\n"
        "try: sweep.main()\n"
        "finally: print('imported', {'torch', 'numpy', 'ray', 'rich', 'dm_control', 'gymnasium'} & sys.modules.keys())"
    )
    ended = python(code, [argument])
    assert ended.returncode == {"--help": 0, "--seeed": 2}[argument]
    assert ended.stdout.splitlines()[-1] == "imported set()"


def test_a_dry_run_only_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"--dry_run --seed 1 2 --num_train_steps 10 --action_repeat 2 --work_dir {tmp_path / 'runs'}"
    assert sweep.main(shlex.split(line)) == 0
    printed = capsys.readouterr()
    commands = [shlex.split(command) for command in printed.out.splitlines()]
    assert [command[:2] for command in commands] == [["python", "train.py"]] * 2
    assert [train.parse_args(command[2:]).seed for command in commands] == [1, 2]
    assert printed.err == "2 runs, 40 frames\n"
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_answered_in_the_sweeps_words(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest("every run writes a checkpoint") as stop:
        stop.listening = True
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stop.number is not None)
    expected = "stopping (SIGTERM): every run writes a checkpoint; a second signal stops at once\n"
    assert capfd.readouterr().err == expected


# -- whole sweeps --------------------------------------------------------------------------------------------------


class Sweeping(ColdChild):
    """`python sweep.py`."""

    PROGRAM = "sweep.py"


@pytest.fixture(autouse=True)
def not_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes give way to all others by default, and so would wait for the other tests."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launch]:
    yield from launching(Sweeping, tmp_path)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """`by_hand(flags of one run, of another, ...)`: folders of runs of train.py without a sweep."""
    done: dict[str, Path] = {}

    def folders(*lines: str) -> list[Path]:
        place = tmp_path_factory.mktemp("by_hand")
        new = {line: place / str(number) for number, line in enumerate(lines) if line not in done}
        children = [Child(f"{line} --work_dir {to}-runs", to) for line, to in new.items()]  # in parallel
        for child, (line, to) in zip(children, new.items(), strict=True):
            child.finish()
            (done[line],) = {record.resolve().parent for record in Path(f"{to}-runs").glob("*/*/config.json")}
        return [done[line] for line in lines]

    return folders


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def interruptible(folder: Path) -> list[Path]:
    """Return the runs that have a checkpoint and an episode after it."""
    manifests = folder.glob("*/seed=*/checkpoint/manifest.json")  # not through the link to the latest run
    return [path for path in manifests if read_progress(path.parent.parent, Progress()).frame >= 64]


@pytest.mark.slow
def test_four_runs_equal_those_by_hand(start: Launch, by_hand: Callable[..., list[Path]], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    line = SHORT.replace("--num_skills 2", "--num_skills 0 2")
    child = start(f"{line} --seed 1 2 --work_dir {tmp_path} --sweep_name s")
    assert child.wait() == 0, child.stderr
    assert child.stderr == ""
    rows = summary(folder)
    assert len(rows) == 4
    for skills in (0, 2):
        names = [f"num_skills={skills}_seed={seed}" for seed in (1, 2)]
        hand = SHORT.replace("--num_skills 2", f"--num_skills {skills}")
        references = by_hand(*(f"{hand} --seed {seed} --run_name {name}" for seed, name in enumerate(names, 1)))
        for name, reference in zip(names, references, strict=True):
            assert_equal_runs(folder / "cartpole_swingup" / name, reference, name)
            row = rows[f"cartpole_swingup/{name}"]
            assert (row["state"], row["frames"], row["failures"]) == ("finished", "88", "0")
            assert (row["mutual_information_bound"] == "") == (skills == 0)
    assert len(find_runs([folder], ["eval.csv"])) == 4
    assert plot.main([str(folder), "--out", str(tmp_path / "plots")]) == 0


@pytest.mark.slow
def test_a_stopped_sweep_is_resumed(start: Launch, by_hand: Callable[..., list[Path]], tmp_path: Path) -> None:
    """Every run writes a checkpoint; --resume starts what is unfinished; the results are those of undisturbed runs."""
    folder = tmp_path / "s"
    child = start(f"{LONG} --seed 1 2 --work_dir {tmp_path} --sweep_name s")
    wait_for(lambda: len(interruptible(folder)) == 2 or not child.running)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM, child.stderr
    assert "Traceback" not in child.stderr
    assert child.stderr.splitlines()[-1] == f"resume with: python sweep.py --resume {folder}"
    assert [row["state"] for row in summary(folder).values()] == ["stopped", "stopped"]
    assert all("which is saved" in log.read_text() for log in (folder / "logs").iterdir())
    again = start(f"--resume {folder}")
    assert again.wait() == 0, again.stderr
    assert {row["state"] for row in summary(folder).values()} == {"finished"}
    references = by_hand(*(f"{LONG} --seed {seed} --run_name seed={seed}" for seed in (1, 2)))
    for seed, reference in zip((1, 2), references, strict=True):
        assert_equal_runs(folder / "cartpole_swingup" / f"seed={seed}", reference)
    assert len(list((folder / "logs").iterdir())) == 4  # two attempts each
    assert {trial.state for trial in resumed_sweep(folder, {}).trials} == {"finished"}


@pytest.mark.slow
def test_a_run_that_always_fails_stops_no_other(start: Launch, tmp_path: Path) -> None:
    child = start(f"{SHORT} --lr 1e-3 1e30 --max_failures 1 --work_dir {tmp_path} --sweep_name s")
    assert child.wait() == 1, child.stderr
    good, bad = summary(tmp_path / "s").values()
    assert (good["state"], bad["state"], bad["failures"]) == ("finished", "failed", "2")
    assert "became infinite or not a number" in bad["message"]
    assert 1 <= len(bad["message"].splitlines()) <= 5
    assert "given up" in child.stdout


@pytest.mark.slow
def test_a_killed_node_loses_nothing(start: Launch, by_hand: Callable[..., list[Path]], tmp_path: Path) -> None:
    """Of two nodes with a run each one is killed: its run is resumed on the other and ends like an undisturbed one."""
    folder, handler = tmp_path / "s", signal.getsignal(signal.SIGTERM)
    machine: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000, "memory": 6_000_000_000}
    machines = Cluster(initialize_head=True, head_node_args=machine)
    try:
        other = machines.add_node(**machine)
        child = start(f"{LONG} --seed 1 2 --address {machines.address} --work_dir {tmp_path} --sweep_name s")
        wait_for(lambda: len(interruptible(folder)) == 2 or not child.running)
        assert child.running, child.stderr + child.stdout
        machines.remove_node(other, allow_graceful=False)
        assert child.wait() == 0, child.stderr
    finally:
        machines.shutdown()
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    rows = summary(folder).values()
    assert {row["state"] for row in rows} == {"finished"}
    assert sorted(row["failures"] for row in rows) == ["0", "1"]
    references = by_hand(*(f"{LONG} --seed {seed} --run_name seed={seed}" for seed in (1, 2)))
    for seed, reference in zip((1, 2), references, strict=True):
        assert_equal_runs(folder / "cartpole_swingup" / f"seed={seed}", reference)


@pytest.mark.slow
def test_a_folder_that_cannot_be_made(start: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    child = start(f"{SMALL} --work_dir {tmp_path / 'file'}")
    assert child.wait() == 2
    assert f"--work_dir {tmp_path / 'file'}: Not a directory; name a folder" in child.stderr
    assert child.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_full_disk_at_the_start_leaves_nothing(tmp_path: Path) -> None:
    """In a separate process, as Ray sets signal handlers."""
    code = (
        "import errno, sweep\n"
        "def full(self): raise OSError(errno.ENOSPC, 'No space left on device', 'sweep.json')\n"
        "sweep.Sweep.write = full; sys.exit(sweep.main())"
    )
    ended = python(code, ["--seed", "1", "--work_dir", str(tmp_path / "runs"), "--sweep_name", "s"])
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith("No space left on device; name a folder on a disk with free space")
    assert not (tmp_path / "runs" / "s").exists()


@pytest.mark.slow
def test_a_second_sweep_leaves_the_folder_alone(start: Launch, tmp_path: Path) -> None:
    child = start(f"{LONG} --seed 1 --work_dir {tmp_path} --sweep_name s")
    wait_for(lambda: (tmp_path / "s" / "sweep.json").exists() or not child.running)
    second = start(f"--resume {tmp_path / 's'}")
    assert second.wait() == 2
    assert "in use by process" in second.stderr
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
