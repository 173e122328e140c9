"""sweep.py: what is run, that it equals the runs by hand whatever happens on the way, and what is written about it."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from files import LOCK_FILE, in_use, locked
from stop import StopRequest

import config
import plot
import sweep
import sweep_record
from sweep_record import Progress, Sweep, Trial, View, duration, look
from tests.support.paths import ROOT
from tests.test_faults import SMALL, Child, Launch, assert_equal_runs, launching

PATIENCE = 300.0
# Long enough to be caught in the middle, with a checkpoint soon and often.
LONG = f"{SMALL} --num_train_steps 200 --eval_frequency 100 --checkpoint_frequency 20"


def planned(line: str) -> list[tuple[Trial, config.Config]]:
    return sweep.plan(sweep.parse_args(shlex.split(line)).values)


def a_sweep(folder: Path, seeds: Sequence[int] = (1, 2), **options: Any) -> Sweep:
    device = f"--device {options.pop('device')}" if "device" in options else ""
    trials = [trial for trial, _ in planned(f"--seed {' '.join(map(str, seeds))} {device}")]
    settings = {"cpus_per_run": 1.0, "gpus_per_run": None, "memory_per_run": None, "max_failures": 1}
    return Sweep(folder, trials, **{**settings, "needs_memory": 1.0, **options})


# -- the plan ------------------------------------------------------------------------------------------------------


def test_every_combination_once() -> None:
    runs = planned("--env walker_walk cartpole_swingup --num_skills 0 10 --seed 1 2 3 --lr 3e-4")
    assert len(runs) == 12
    assert len({(trial.env, trial.name) for trial, _ in runs}) == 12
    assert {(c.env, c.num_skills, c.seed) for _, c in runs} == {
        (env, skills, seed) for env in ("walker_walk", "cartpole_swingup") for skills in (0, 10) for seed in (1, 2, 3)
    }
    assert {c.lr for _, c in runs} == {3e-4}
    assert runs[0][0].name == "num_skills=0_seed=1"


@pytest.mark.parametrize(
    "line",
    [
        "--env walker_walk cheetah_run --benchmark planet --save_video --seed 1e2 7",
        "--log_std_bounds -10 2 -5 2 --save_video true false --num_skills 3",
        "--num_train_frames 1000 2000 --lr_discriminator 3e-4 1e-3 --time_limit 400",
        "--notes 'two words' --augmentation none shift",
        "--notes=-x --seed 1 2",
    ],
)
def test_the_commands_are_what_train_takes(line: str) -> None:
    """What is started has the settings that were checked."""
    for trial, expected in planned(line):
        assert config.parse_args(trial.arguments) == expected
        assert config.parse_args(trial.command(Path("runs"))[1:]).run_name == trial.name
        assert trial.frames == expected.num_train_frames


def test_a_template_holds_for_all_runs(tmp_path: Path) -> None:
    template = tmp_path / "config.json"
    template.write_text(json.dumps({"flags": {"batch_size": 7, "num_skills": 4, "lr": 0.5}}))
    runs = planned(f"--config {template} --seed 1 2 --lr 0.25")
    assert [(c.seed, c.batch_size, c.num_skills, c.lr) for _, c in runs] == [(1, 7, 4, 0.25), (2, 7, 4, 0.25)]
    assert config.parse_args(runs[0][0].arguments) == runs[0][1]


def test_a_run_to_begin_with_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"flags": {"num_skills": 4}}))
    monkeypatch.chdir(tmp_path)
    ((trial, _),) = planned("--finetune_from .")
    assert trial.arguments == ["--finetune_from", str(tmp_path)]


def test_long_names_are_cut() -> None:
    """A file's name has 255 bytes at most, and the number at its end tells the runs apart."""
    flags = "--encoder_feature_dim 50 60 --critic_target_update_frequency 1 2 --actor_update_frequency 1 2"
    runs = planned(f"{flags} --skill_embedding_dim 0 10 --discriminator_encoder shared separate --seed 1 2 3")
    names = {trial.name for trial, _ in runs}
    assert len(names) == 96
    assert all(len(name) < 120 for name in names)
    assert len(planned("--notes " + "\u6f22" * 100 + " x")[0][0].name) < 120


def test_names_stay_apart() -> None:
    """Also where a file's name can't tell the values apart."""
    names = [trial.name for trial, _ in planned("--notes 'a b' 'a/b' 'a-b'")]
    assert len(set(names)) == 3
    assert all(config.parse_args(["--run_name", name]).run_name == name for name in names)
    assert [trial.name for trial, _ in planned("--env walker_walk walker_run --seed 3")] == ["run", "run"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
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
        ("--sweep_name a/b", "--sweep_name must be letters"),
        ("--run_name x", "unrecognized arguments: --run_name"),
        ("--env walker_walk dmc_walker_walk", "--env names walker_walk twice"),
        ("--device cuda:1", "--device cuda:1: give cpu or cuda"),
        ("--device gpu", "--device gpu: give cpu or cuda"),
        ("--resume nowhere", "there is no sweep.json in it"),
        ("--resume nowhere --seed 1", "--seed: a resumed sweep keeps its runs"),
        ("--config nowhere.json", "there is no nowhere.json"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    line: str, expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = sweep.main([*shlex.split(line), "--work_dir", str(tmp_path / "runs")])
    except SystemExit as end:
        code = end.code
    said = capfd.readouterr().err
    assert (code, said.count("\n")) == (2, 1), said
    assert expected in said
    assert said.startswith("sweep.py: error: ")
    assert not (tmp_path / "runs").exists()


def test_an_existing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert sweep.main(["--seed", "1", "--work_dir", str(tmp_path), "--sweep_name", "mine"]) == 2
    assert f"go on with --resume {tmp_path / 'mine'}" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["ray", "rich"])
def test_what_is_missing_is_named(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert sweep.main(["--seed", "1", "--work_dir", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert f"a sweep needs {missing}; pip install -r requirements-sweep.txt" in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_only_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"--dry_run --seed 1 2 --num_train_steps 10 --action_repeat 2 --work_dir {tmp_path / 'runs'}"
    assert sweep.main(shlex.split(line)) == 0
    said = capsys.readouterr()
    commands = [shlex.split(command) for command in said.out.splitlines()]
    assert [command[:2] for command in commands] == [["python", "train.py"]] * 2
    assert [config.parse_args(command[2:]).seed for command in commands] == [1, 2]
    assert said.err == "2 runs, 40 frames\n"
    assert list(tmp_path.iterdir()) == []


# -- resources -----------------------------------------------------------------------------------------------------


def test_a_run_gets_the_threads_and_the_gpu_it_was_given() -> None:
    before = {"OMP_NUM_THREADS": "64", "HOME": "h", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    after = sweep.surroundings(before, 3.0, ["2"])
    assert after["HOME"] == "h"
    assert (after["OMP_NUM_THREADS"], after["MKL_NUM_THREADS"], after["LP_NUM_THREADS"]) == ("3", "3", "3")
    assert (after["CUDA_VISIBLE_DEVICES"], after["MUJOCO_EGL_DEVICE_ID"]) == ("2", "2")
    assert sweep.surroundings(before, 0.5, [])["OMP_NUM_THREADS"] == "1"
    without = sweep.surroundings(before, 1.0, [])
    assert without["CUDA_VISIBLE_DEVICES"] == ""
    assert "MUJOCO_EGL_DEVICE_ID" not in without
    assert sweep.surroundings({"MUJOCO_EGL_DEVICE_ID": "5"}, 1.0, ["2"])["MUJOCO_EGL_DEVICE_ID"] == "5"
    assert "MUJOCO_EGL_DEVICE_ID" not in sweep.surroundings({}, 1.0, ["GPU-0a1b"])


def node(**amounts: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"memory": 64e9, **amounts}}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([node(CPU=4)], {}, {"CPU": 1.0, "GPU": 0.0, "memory": 1e9}),
        ([node(CPU=4), node(CPU=2, GPU=2)], {}, {"CPU": 1.0, "GPU": 1.0, "memory": 1e9}),
        ([node(CPU=4, GPU=1)], {"gpus_per_run": 0.25, "memory_per_run": 3.0}, {"CPU": 1, "GPU": 0.25, "memory": 3e9}),
        ([node(CPU=4, GPU=1)], {"device": "cpu"}, {"CPU": 1.0, "GPU": 0.0, "memory": 1e9}),
        ([node(CPU=4)], {"device": "cuda"}, "--device cuda: the runs get no GPU"),
        ([node(CPU=4)], {"cpus_per_run": 8.0}, "--cpus_per_run 8 is more than any node has (4)"),
        ([node(CPU=4)], {"gpus_per_run": 1.0}, "--gpus_per_run 1 is more than any node has (0)"),
        ([node(CPU=4)], {"memory_per_run": 100.0}, "--memory_per_run 100 is more than any node has (64)"),
        (
            [node(CPU=8), node(CPU=1, GPU=1)],
            {"cpus_per_run": 4.0},
            "no node has all of --cpus_per_run 4, --gpus_per_run 1, --memory_per_run 1 together",
        ),
    ],
)
def test_what_ray_is_asked_for(nodes: list[Any], options: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    made = a_sweep(tmp_path, **options)
    if isinstance(expected, dict):
        assert sweep.resources(made, [*nodes, {"Alive": False, "Resources": {"CPU": 99.0}}]) == expected
        return
    with pytest.raises(config.UserError) as caught:
        sweep.resources(made, nodes)
    assert expected in str(caught.value)


def test_memory_follows_the_largest_replay_buffer() -> None:
    small, large = (planned(f"--replay_buffer_capacity {count}")[0][1] for count in (1000, 1_000_000))
    assert sweep.memory_needed([small, large]) == sweep.memory_needed([large]) == pytest.approx(23.17)
    assert sweep.memory_needed([small]) == pytest.approx(2.02)


# -- what is written -----------------------------------------------------------------------------------------------


def test_a_sweep_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    made = a_sweep(tmp_path)
    made.trials[0].state, made.trials[0].attempts, made.trials[1].message = "finished", 2, "one\ntwo"
    made.write()
    assert Sweep.read(tmp_path) == made
    made.trials[1].state = "failed"
    made.write()
    args = sweep.parse_args(["--resume", str(tmp_path), "--max_failures", "7", "--cpus_per_run", "2"])
    again = sweep.resumed_sweep(args)
    assert [trial.state for trial in again.trials] == ["finished", "waiting"]
    assert (again.max_failures, again.cpus_per_run, again.trials[1].message) == (7, 2.0, "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "runs": [{"x": 1}]}', '{"format": 1, "runs": 3}'])
def test_a_damaged_record_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert sweep.main(["--resume", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "sweep.json is damaged" in said


def test_another_version_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text('{"format": 99}')
    assert sweep.main(["--resume", str(tmp_path)]) == 2
    assert "of another version" in capsys.readouterr().err


def test_how_far_a_run_is(tmp_path: Path) -> None:
    nothing = Progress(7)
    assert look(tmp_path, nothing).frame == 0
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train.csv").write_text("episode,step,fps\n1,100,20.5\n2,200,30.5\n3,3")
    (tmp_path / "eval.csv").write_text(
        "episode,step,episode_reward,mutual_information_bound\n0,0,5,0.1\n1,100,9,0.2\n2,150,7,0.3\n4,200,1e"
    )
    seen = look(tmp_path, nothing)
    assert (seen.frame, seen.fps, seen.last_return, seen.best_return, seen.bound) == (200, 30.5, 7, 9, 0.3)
    (tmp_path / "eval.csv").write_text("episode,step,episode_reward\n0,400,5\n")
    assert look(tmp_path, nothing).frame == 400
    assert math.isnan(look(tmp_path, nothing).bound)
    many = "".join(f"{n},{100 * n},{n}\n" for n in range(1, 20000))
    (tmp_path / "train.csv").write_text(f"episode,step,fps\n{many}20000,2000")
    assert (look(tmp_path, nothing).frame, look(tmp_path, nothing).fps) == (1999900, 19999.0)
    (tmp_path / "config.json").write_text('{"frames_before": 10000}')  # the budget doesn't have them
    assert look(tmp_path, nothing).frame == 1989900


@pytest.mark.parametrize("row", ["1,\0\0,3", "1,1e,3", "1", "1,2,x"])
def test_a_torn_row_changes_nothing(row: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"episode,step,fps\n{row}\n")
    before = Progress(7, 1.0)
    assert look(tmp_path, before) is before


def test_durations_read_well() -> None:
    assert [duration(s) for s in (7, 61, 3600 + 300, 100 * 3600)] == ["7 s", "1 min", "1 h 5 min", "4 d 4 h"]


def test_the_summary_has_a_row_a_run(tmp_path: Path) -> None:
    made = a_sweep(tmp_path)
    first, second = made.trials
    first.state, first.seconds, first.host, first.seen = "finished", 12.34, "a", Progress(100, 5.0, 1.5, 2.5, 0.25)
    second.state, second.failures, second.message = "failed", 2, "last, but\none"
    made.write()
    with (tmp_path / "summary.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert one == {
        **{"run": "cartpole_swingup/seed=1", "seed": "1", "state": "finished", "frames": "100", "last_return": "1.5"},
        **{"best_return": "2.5", "mutual_information_bound": "0.25", "wall_seconds": "12", "failures": "0"},
        **{"host": "a", "message": ""},
    }
    assert (two["state"], two["failures"], two["message"], two["last_return"]) == ("failed", "2", "last, but\none", "")


def test_the_table_shows_what_goes_on_first(tmp_path: Path) -> None:
    from rich.console import Console

    made = a_sweep(tmp_path, seeds=range(20))
    made.trials[19].state, made.trials[19].seen = "running", Progress(1000, 10.0, 1.0, 2.0)
    made.trials[19].frames = 4000
    console = Console(width=200)
    with console.capture() as captured:
        console.print(sweep_record.table(made, height=18))
    lines = captured.get().splitlines()
    assert "20 runs: 1 running, 19 waiting; 10 frames/s" in captured.get()
    rows = [line for line in lines if "seed=" in line]
    assert len(rows) == 10
    assert all(word in rows[0] for word in ("seed=19", "running", "1,000", "4,000", "5 min"))


# -- failures ------------------------------------------------------------------------------------------------------


def test_a_run_is_given_up_after_its_last_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = a_sweep(tmp_path, max_failures=2)
    trial, view = made.trials[0], View(made, None)
    trial.attempts = 1
    log = trial.log(tmp_path)
    log.parent.mkdir()
    log.write_text("host there\n$ python train.py\n" + "".join(f"line {n}\n" for n in range(9)))
    states = []
    for ended in ((1, ""), (None, "node died"), (-9, "")):
        sweep.settle(made, trial, ended, stopping=False, view=view)
        states.append((trial.state, trial.failures))
    assert states == [("waiting", 1), ("waiting", 2), ("failed", 3)]
    assert trial.message.splitlines() == [f"line {n}" for n in range(4, 9)]
    assert trial.host == "there"
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(r"to be resumed; exit code 1: line 4\nline 5\nline 6\nline 7\nline 8")
    assert said[1].endswith("to be resumed; node died")
    assert "given up; exit code -9" in said[2]


def test_being_stopped_is_no_failure(tmp_path: Path) -> None:
    made = a_sweep(tmp_path)
    started, waiting = made.trials
    started.folder(tmp_path).mkdir(parents=True)
    for trial in (started, waiting):
        sweep.settle(made, trial, (None, "cancelled"), stopping=True, view=View(made, None))
    assert [(trial.state, trial.failures) for trial in made.trials] == [("stopped", 0), ("waiting", 0)]


def test_a_folder_is_in_use_while_it_is_locked(tmp_path: Path) -> None:
    assert not in_use(tmp_path)
    with locked(tmp_path):
        assert in_use(tmp_path)
    assert (tmp_path / LOCK_FILE).exists()
    assert not in_use(tmp_path)


def test_a_run_without_a_config_begins_again(tmp_path: Path) -> None:
    """What a kill at start-up leaves is in the way of nothing."""
    folder, log = tmp_path / "cartpole_swingup" / "x", tmp_path / "logs" / "x.log"
    folder.mkdir(parents=True)
    (folder / "train.csv").touch()
    line = f"{SMALL} --num_train_steps 30 --work_dir {tmp_path} --run_name x"
    assert sweep.attempt(folder, log, ["train.py", *shlex.split(line)], 1.0, []) == 0
    assert (folder / "config.json").exists()
    assert not folder.with_name("x-run2").exists()
    said = log.read_text()
    assert said.splitlines()[1].startswith("$ python train.py --device cpu")
    assert sweep.attempt(folder, log, ["train.py", *shlex.split(line)], 1.0, []) == 0
    assert "--resume" in log.read_text()


def test_a_checkpoint_without_a_config_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "cartpole_swingup" / "x"
    (folder / "checkpoint").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"put that back"):
        sweep.attempt(folder, tmp_path / "logs" / "x.log", ["train.py"], 1.0, [])
    assert (folder / "checkpoint").exists()


def test_a_run_dies_with_its_worker(tmp_path: Path) -> None:
    """Where the process that started it is killed, its folder is free at once."""
    folder = tmp_path / "cartpole_swingup" / "x"
    line = [*shlex.split(LONG), "--work_dir", str(tmp_path), "--run_name", "x"]
    code = (
        "import sys; from pathlib import Path; root, folder, log, *command = sys.argv[1:]; sys.path.insert(0, root)\n"
        "import sweep; sweep.attempt(Path(folder), Path(log), command, 1.0, [])"
    )
    arguments = [str(ROOT), str(folder), str(tmp_path / "logs" / "x.log"), "train.py", *line]
    worker = subprocess.Popen([sys.executable, "-c", code, *arguments])
    try:
        wait_for(lambda: (folder / "config.json").exists())
        assert in_use(folder)
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: not in_use(folder), 10)


# -- real sweeps ---------------------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Sweeping(Child):
    """`python sweep.py`."""

    PROGRAM = "sweep.py"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Launch]:
    yield from launching(Sweeping, tmp_path)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """`by_hand(flags of one run, of another, ...)`: folders of runs of train.py with nothing around them."""
    done: dict[str, Path] = {}

    def folders(*lines: str) -> list[Path]:
        place = tmp_path_factory.mktemp("by_hand")
        new = {line: place / str(number) for number, line in enumerate(lines) if line not in done}
        children = [Child(f"{line} --work_dir {to}-runs", to) for line, to in new.items()]  # side by side
        for child, (line, to) in zip(children, new.items(), strict=True):
            child.finish()
            (done[line],) = {record.parent.resolve() for record in Path(f"{to}-runs").glob("*/*/config.json")}
        return [done[line] for line in lines]

    return folders


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_four_runs_equal_those_by_hand(start: Launch, by_hand: Callable[..., list[Path]], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    line = SMALL.replace("--num_skills 2", "--num_skills 0 2")
    child = start(f"{line} --seed 1 2 --work_dir {tmp_path} --sweep_name s")
    assert child.wait(PATIENCE) == 0, child.stderr
    assert child.stderr == ""
    rows = summary(folder)
    assert len(rows) == 4
    for skills in (0, 2):
        names = [f"num_skills={skills}_seed={seed}" for seed in (1, 2)]
        hand = SMALL.replace("--num_skills 2", f"--num_skills {skills}")
        references = by_hand(*(f"{hand} --seed {seed} --run_name {name}" for seed, name in enumerate(names, 1)))
        for name, reference in zip(names, references, strict=True):
            assert_equal_runs(folder / "cartpole_swingup" / name, reference, name)
            row = rows[f"cartpole_swingup/{name}"]
            assert (row["state"], row["frames"], row["failures"]) == ("finished", "168", "0")
            assert (row["mutual_information_bound"] == "") == (skills == 0)
    assert len(plot.find_runs([folder])) == 4
    assert plot.main([str(folder), "--out", str(tmp_path / "plots")]) == 0


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(start: Launch, by_hand: Callable[..., list[Path]], tmp_path: Path) -> None:
    """Every run writes a checkpoint; --resume starts what is unfinished; the ends are those of undisturbed runs."""
    folder = tmp_path / "s"
    child = start(f"{LONG} --seed 1 2 --work_dir {tmp_path} --sweep_name s")
    wait_for(lambda: len(under_way(folder)) == 2 or not child.running)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM, child.stderr
    assert "Traceback" not in child.stderr
    assert child.stderr.splitlines()[-1] == f"go on with: python sweep.py --resume {folder}"
    assert [row["state"] for row in summary(folder).values()] == ["stopped", "stopped"]
    assert all("which is saved" in log.read_text() for log in (folder / "logs").iterdir())
    again = start(f"--resume {folder}")
    assert again.wait(PATIENCE) == 0, again.stderr
    assert {row["state"] for row in summary(folder).values()} == {"finished"}
    references = by_hand(*(f"{LONG} --seed {seed} --run_name seed={seed}" for seed in (1, 2)))
    for seed, reference in zip((1, 2), references, strict=True):
        assert_equal_runs(folder / "cartpole_swingup" / f"seed={seed}", reference)
    assert len(list((folder / "logs").iterdir())) == 4  # two attempts each
    assert not [
        trial for trial in sweep.resumed_sweep(sweep.parse_args(["--resume", str(folder)])).trials if waits(trial)
    ]


def waits(trial: Trial) -> bool:
    return trial.state == "waiting"


def under_way(folder: Path) -> list[Path]:
    """Runs that have a checkpoint and an episode behind it."""
    manifests = folder.glob("*/seed=*/checkpoint/manifest.json")  # not through the link to the latest run
    return [path for path in manifests if look(path.parent.parent, Progress()).frame >= 64]


@pytest.mark.slow
def test_a_run_that_always_fails_stops_no_other(start: Launch, tmp_path: Path) -> None:
    child = start(f"{SMALL} --lr 1e-3 1e30 --max_failures 1 --work_dir {tmp_path} --sweep_name s")
    assert child.wait(PATIENCE) == 1, child.stderr
    good, bad = summary(tmp_path / "s").values()
    assert (good["state"], bad["state"], bad["failures"]) == ("finished", "failed", "2")
    assert "became infinite or not a number" in bad["message"]
    assert 1 <= len(bad["message"].splitlines()) <= 5
    assert "given up" in child.stdout


@pytest.mark.slow
def test_a_killed_node_loses_nothing(start: Launch, by_hand: Callable[..., list[Path]], tmp_path: Path) -> None:
    """Two nodes with a run each; one is killed: its run goes on on the other, and ends as if nothing had happened."""
    from ray.cluster_utils import Cluster

    folder, handler = tmp_path / "s", signal.getsignal(signal.SIGTERM)
    machine: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000, "memory": 6_000_000_000}
    machines = Cluster(initialize_head=True, head_node_args=machine)
    try:
        other = machines.add_node(**machine)
        child = start(f"{LONG} --seed 1 2 --address {machines.address} --work_dir {tmp_path} --sweep_name s")
        wait_for(lambda: len(under_way(folder)) == 2 or not child.running)
        assert child.running, child.stderr + child.stdout
        machines.remove_node(other, allow_graceful=False)
        assert child.wait(PATIENCE) == 0, child.stderr
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
    assert child.wait(60) == 2
    assert f"--work_dir {tmp_path / 'file'}: Not a directory; name a folder" in child.stderr
    assert child.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_full_disk_at_the_start_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own, as Ray sets handlers of signals."""
    code = (
        "import errno, sys; sys.path.insert(0, sys.argv[1]); import sweep\n"
        "def full(self): raise OSError(errno.ENOSPC, 'No space left on device', 'sweep.json')\n"
        "sweep.Sweep.write = full; sys.exit(sweep.main(sys.argv[2:]))"
    )
    line = ["--seed", "1", "--work_dir", str(tmp_path / "runs"), "--sweep_name", "s"]
    ended = subprocess.run([sys.executable, "-c", code, str(ROOT), *line], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith("No space left on device; name a folder on a disk with room")
    assert not (tmp_path / "runs" / "s").exists()


@pytest.mark.slow
def test_a_second_sweep_leaves_the_folder_alone(start: Launch, tmp_path: Path) -> None:
    child = start(f"{LONG} --seed 1 --work_dir {tmp_path} --sweep_name s")
    wait_for(lambda: (tmp_path / "s" / "sweep.json").exists() or not child.running)
    second = start(f"--resume {tmp_path / 's'}")
    assert second.wait(60) == 2
    assert "in use by process" in second.stderr
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM


def test_signals_are_announced_in_the_sweeps_words(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest("every run writes a checkpoint") as stop:
        stop.listening = True
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stop.number is not None, 5)
    assert capfd.readouterr().err == "stopping (SIGTERM): every run writes a checkpoint; once more stops at once\n"


def test_time_left_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what runs and what waits, at the speed of what runs."""
    made = a_sweep(tmp_path, seeds=(1, 2, 3))
    for trial, state, seen in zip(
        made.trials,
        ("running", "waiting", "finished"),
        (Progress(1000, 10.0), Progress(), Progress(2000, 90.0)),
        strict=True,
    ):
        trial.state, trial.seen, trial.frames = state, seen, 2000
    assert sweep_record.overall(made).endswith("10 frames/s, 5 min left")
    trial = made.trials[0]
    trial.seconds, trial.began = 5.0, 100.0
    monkeypatch.setattr(time, "monotonic", lambda: 107.0)
    assert trial.wall_seconds == 12.0


def test_the_table_has_last_and_best_return_in_their_columns(tmp_path: Path) -> None:
    made = a_sweep(tmp_path, seeds=(1,))
    made.trials[0].seen = Progress(1000, 10.0, 11.0, 22.0, 0.5)
    columns = {str(column.header): list(column.cells) for column in sweep_record.table(made, height=18).columns}
    assert (columns["return"], columns["best"], columns["MI"]) == (["11"], ["22"], ["0.5"])
