"""Faults of the real program on dm_control's pixels: kills, stops, full disks, renderers and losses that fail.

Afterwards `--resume` gives what the uninterrupted run gives: the same rows, weights, replay buffer and random states.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import train
from config import Config
from dmc import DMCEnv
from envs.make import make_environment
from envs.pixel_env import PixelEnv
from envs.renderer import RendererInfo
from errors import RenderingError
from running import build, loop
from running.checkpoint import Checkpoints
from running.names import CHECKPOINT_FOLDER, MANIFEST_FILE
from running.run import Run
from tests.support.compare import (
    assert_equal_runs,
    checkpoint_step,
    column,
    differences,
    leftovers,
    state,
    steps,
    table,
    tables,
)
from tests.support.paths import Mount
from tests.support.processes import (
    ACTION_REPEAT,
    EPISODE_STEPS,
    PATIENCE,
    SMALL,
    Child,
    ColdChild,
    Launch,
    launching,
    run_folder,
)

SEED = 1
MOMENTS = {"start": 2, "checkpoint": 3, "evaluation": 2, "anywhere": 5}  # kills at each
NO_EVALUATION = "--eval_frequency 1000"  # but the first and the last

Undisturbed = Callable[[str], Path]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    yield from launching(Child, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """`undisturbed(flags)` returns the folder of a run with SMALL and these flags that was never interrupted."""
    done: dict[str, Path] = {}

    def folder(line: str) -> Path:
        if line not in done:
            place = tmp_path_factory.mktemp("undisturbed")
            Child(f"{SMALL} {line} --work_dir {place / 'runs'}", place / "child").finish()
            done[line] = run_folder(place / "runs")
        return done[line]

    return folder


# -- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kills(launch: Launch, tmp_path: Path) -> None:
    """SIGKILL at the start, in an episode, an evaluation or a checkpoint: the run still ends as the undisturbed one."""
    line = f"{SMALL} --num_train_steps 240 --eval_frequency 40 --checkpoint_frequency 8 --replay_buffer_capacity 100"
    reference = ColdChild(f"{line} --work_dir {tmp_path / 'reference'}", tmp_path / "cold")
    rng, work_dir = random.Random(SEED), tmp_path / "killed"
    moments = [moment for moment, count in MOMENTS.items() for _ in range(count)]
    rng.shuffle(moments)
    hits: list[str] = []
    for moment in moments:
        found = sorted(work_dir.glob("*/2*/config.json"))
        child = launch(f"--resume {found[0].parent}" if found else f"{line} --work_dir {work_dir}")
        wait_for_moment(child, moment, work_dir, rng)
        checkpoints = len(list(work_dir.glob(f"*/2*/checkpoint/{MANIFEST_FILE}")))
        if not child.running:
            child.finish()
            break
        child.kill()
        assert child.returncode == -signal.SIGKILL
        assert "Traceback" not in child.stderr, child.stderr
        hits.append(f"{moment}, {checkpoints} checkpoint, {child.stdout.splitlines()[-1:]}")
    context = f"seed {SEED}; the kills hit: {hits}"
    folder = sorted(work_dir.glob("*/2*/config.json"))[0].parent
    launch(f"--resume {folder}").finish()
    reference.finish()
    assert len(hits) >= 8, context
    assert any(", 1 checkpoint" in hit for hit in hits), context
    assert steps(folder, "train") == list(range(16, 481, 16)), context
    assert_equal_runs(folder, run_folder(tmp_path / "reference"), context)


def wait_for_moment(child: Child, moment: str, work_dir: Path, rng: random.Random) -> None:
    """Wait for the moment of a kill. What is waited for are events, so the machine's speed does not matter."""
    if moment == "start":
        seconds = rng.uniform(0.02, 1.5)
        child.until(lambda: cpu_seconds(child) > seconds or "outputs:" in child.stdout)
        return
    child.until_says("outputs:")
    if moment == "checkpoint":
        number = newest_checkpoint(work_dir) + rng.randint(2, 4)
        child.until(lambda: newest_checkpoint(work_dir) >= number)
    elif moment == "evaluation":
        child.until(lambda: re.search(r"\| train \| E: \d+ \| S: \d*0 [^\n]*\n$", child.stdout))
        seconds = cpu_seconds(child) + rng.uniform(0, 0.2)
        child.until(lambda: cpu_seconds(child) > seconds)
    else:
        episodes, seconds = rng.randint(0, 2), rng.uniform(0, 0.1)
        child.until(lambda: child.stdout.count("| train |") >= episodes)
        seconds += cpu_seconds(child)
        child.until(lambda: cpu_seconds(child) > seconds)


def cpu_seconds(child: Child) -> float:
    """Return the CPU time that the child has used."""
    try:
        times = psutil.Process(child.pid).cpu_times()
    except psutil.NoSuchProcess:
        return math.inf
    return times.user + times.system


def newest_checkpoint(work_dir: Path) -> int:
    """Return the serial number of the newest checkpoint of which a file has been begun; 0 without one."""
    names = (path.name for path in work_dir.glob(f"*/2*/{CHECKPOINT_FOLDER}/*_*.pt*"))
    return max((int(name.partition("_")[2].partition(".")[0]) for name in names), default=0)


# -- stops --------------------------------------------------------------------------------------------------------


def assert_stopped(child: Child, number: int, folder: Path) -> int:
    """Check that the signal stopped the run, and return the agent step that was saved."""
    assert child.wait() == 128 + number, child.stderr
    assert "Traceback" not in child.stderr, child.stderr
    printed = re.fullmatch(
        rf"stopped at frame (\d+), which is saved; resume with: \S*python \S*train\.py --resume {folder}",
        child.last_line,
    )
    assert printed, child.stderr
    assert leftovers(folder) == []
    assert checkpoint_step(folder) * ACTION_REPEAT == int(printed[1])
    return checkpoint_step(folder)


def in_evaluation(child: Child, work_dir: Path, frame: int) -> None:
    """Wait until the child records the evaluation at this frame, and halt it there."""
    pattern = f"*/2*/video/.{frame:08d}_skill0.*"
    assert child.until(lambda: list(work_dir.glob(pattern))), child.stderr
    child.halt()
    assert list(work_dir.glob(pattern))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.slow
def test_stop_in_training(number: signal.Signals, launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    child = launch(f"{SMALL} --work_dir {tmp_path}")
    child.until_episode(4)
    os.kill(child.pid, number)
    folder = run_folder(tmp_path)
    assert 4 * EPISODE_STEPS <= assert_stopped(child, number, folder) < 68
    launch(f"--resume {folder}").finish()
    assert_equal_runs(folder, undisturbed(""))


@pytest.mark.slow
def test_stop_in_evaluation(launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """The evaluation ends without a trace, and is repeated when the run is resumed."""
    child = launch(f"{SMALL} --save_video true --work_dir {tmp_path}")
    in_evaluation(child, tmp_path, 48)
    os.kill(child.pid, signal.SIGTERM)
    child.go_on()
    folder = run_folder(tmp_path)
    assert assert_stopped(child, signal.SIGTERM, folder) == 24
    assert steps(folder, "eval") == [0]
    videos = {f"{name}.mp4" for name in ("00000000_skill0", "00000000_skill1", "00000000_skills")}
    assert {path.name for path in (folder / "video").iterdir()} == videos
    launch(f"--resume {folder} --save_video false").finish()
    assert_equal_runs(folder, undisturbed(""))


@pytest.mark.slow
def test_stop_in_the_last_evaluation(launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """It is all that is left to do after a resume; then the run is finished."""
    child = launch(f"{SMALL} {NO_EVALUATION} --save_video true --work_dir {tmp_path}")
    in_evaluation(child, tmp_path, 136)
    os.kill(child.pid, signal.SIGINT)
    child.go_on()
    folder = run_folder(tmp_path)
    assert assert_stopped(child, signal.SIGINT, folder) == 68
    launch(f"--resume {folder} --save_video false").finish()
    assert tables(folder) == tables(undisturbed(NO_EVALUATION))
    assert_equal_runs(folder, undisturbed(NO_EVALUATION))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.slow
def test_second_signal(number: signal.Signals, launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """It ends the process in the middle of a long step. The last checkpoint is resumed."""
    line = "--num_train_steps 17 --num_seed_steps 16 --checkpoint_frequency 8 --num_train_iters 150"
    child = launch(f"{SMALL} {line} --work_dir {tmp_path}")
    child.until_episode(2)
    folder = run_folder(tmp_path)
    manifest = folder / CHECKPOINT_FOLDER / MANIFEST_FILE  # replaced atomically, unlike the rest of the checkpoint
    assert child.until(lambda: json.loads(manifest.read_bytes())["step"] == 16)
    before = cpu_seconds(child)
    assert child.until(lambda: cpu_seconds(child) > before + 0.2)  # past the checkpoint, within the step's updates
    os.kill(child.pid, signal.SIGINT)
    assert child.until(lambda: "stopping" in child.stderr), "the first signal was not noticed"
    os.kill(child.pid, number)
    assert child.wait() == 128 + number
    assert "stopped" not in child.stderr, "the step was over before the second signal"
    assert "Traceback" not in child.stderr
    assert checkpoint_step(folder) == 16
    launch(f"--resume {folder}").finish()
    assert_equal_runs(folder, undisturbed(line))


@pytest.mark.slow
def test_stop_with_workers(launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """A signal to the whole process group, as by a terminal's Ctrl-C, while worker processes evaluate."""
    child = launch(f"{SMALL} --eval_workers 2 --save_video true --work_dir {tmp_path}")
    in_evaluation(child, tmp_path, 0)
    others = psutil.Process(child.pid).children(recursive=True)
    assert len(others) >= 2
    os.killpg(child.pid, signal.SIGINT)
    child.go_on()
    folder = run_folder(tmp_path)
    assert assert_stopped(child, signal.SIGINT, folder) == 0
    _, alive = psutil.wait_procs(others, timeout=PATIENCE)
    assert alive == []
    launch(f"--resume {folder} --eval_workers 0 --save_video false").finish()
    assert_equal_runs(folder, undisturbed(""))


# -- two processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["continued", "killed"])
def test_folder_in_use(killed: bool, launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """A second process is refused and changes nothing; when the first one dies, the folder is free."""
    first = launch(f"{SMALL} --work_dir {tmp_path}")
    first.until_episode(4)
    first.halt()
    folder = run_folder(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    second = launch(f"--resume {folder}")
    assert second.wait() == 2
    assert re.fullmatch(f"train.py: error: {folder} is in use by process {first.pid} on .+", second.last_line)
    assert "Traceback" not in second.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    if killed:
        first.kill()
        launch(f"--resume {folder}").finish()
    else:
        first.go_on()
        first.finish()
    assert_equal_runs(folder, undisturbed(""))


# -- full disks ----------------------------------------------------------------------------------------------------


def fill(disk: Path, spare: int = 0) -> Path:
    """Write a file that leaves only `spare` bytes on the disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - spare))
    return filler


def assert_disk_full(child: Child, folder: Path, place: str) -> None:
    """Check for one line that names a path and the command that resumes. What was written before is complete."""
    assert child.wait() == 2, child.stderr
    assert "Traceback" not in child.stderr, child.stderr
    pattern = (
        rf"train\.py: error: the disk is full at {folder}{place}; free space, then resume with: .*--resume {folder}"
    )
    assert re.fullmatch(pattern, child.last_line), child.stderr
    assert all("warning" in line for line in child.stderr.splitlines()[:-1]), child.stderr
    assert tables(folder)
    assert leftovers(folder) == []


@pytest.mark.slow
def test_disk_fills_up_at_a_checkpoint(mount: Mount, launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    disk = mount("size=6m")
    child = launch(f"{SMALL} --log_save_tb false --work_dir {disk}")
    child.until_episode(4)
    child.halt()
    filler = fill(disk, spare=100 << 10)
    child.go_on()
    folder = run_folder(disk)
    assert_disk_full(child, folder, "/checkpoint/.+")
    assert checkpoint_step(folder) in (24, 40)
    filler.unlink()
    launch(f"--resume {folder}").finish()
    assert_equal_runs(folder, undisturbed(""), tensorboard=False)


@pytest.mark.slow
def test_disk_fills_up_at_a_csv(mount: Mount, launch: Launch, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """TensorBoard ends with a warning. A resume before there is space is refused and changes nothing."""
    disk = mount("size=6m")
    line = "--time_limit 4 --num_train_steps 130 --eval_frequency 1000 --checkpoint_frequency 60"
    child = launch(f"{SMALL} {line} --work_dir {disk}")
    child.until_says("| S: 124 ")  # 2 agent steps after the checkpoint
    child.halt()
    fill(disk)
    child.go_on()
    folder = run_folder(disk)
    assert_disk_full(child, folder, r"(/\w+\.csv)?")
    assert "no more TensorBoard logs" in child.stderr
    assert checkpoint_step(folder) == 60
    again = launch(f"--resume {folder}")
    assert again.wait() == 2, again.stderr
    assert "Traceback" not in again.stderr, again.stderr
    assert checkpoint_step(folder) == 60
    subprocess.run(["mount", "-o", "remount,size=12m", str(disk)], check=True)
    launch(f"--resume {folder}").finish()
    assert_equal_runs(folder, undisturbed(line), tensorboard=False)


# -- a renderer that fails -----------------------------------------------------------------------------------------


def break_drawing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[DMCEnv], bool]) -> None:
    draw = DMCEnv._draw

    def maybe(self: DMCEnv, height: int, width: int) -> np.ndarray:
        if fails(self):
            raise RuntimeError("the context is lost")
        return draw(self, height, width)

    monkeypatch.setattr(DMCEnv, "_draw", maybe)


@pytest.fixture
def environment(renderer: RendererInfo) -> Iterator[Callable[[], DMCEnv]]:
    """`environment()` makes a small real one."""
    made: list[DMCEnv] = []

    def make() -> DMCEnv:
        made.append(DMCEnv("cartpole_swingup", image_size=24, action_repeat=2, time_limit=16))
        return made[-1]

    yield make
    for env in made:
        env.close()


def play(env: DMCEnv) -> list[np.ndarray]:
    """Return all pictures of two episodes with the same actions."""
    pictures = []
    for seed in (1, None):
        pictures.append(env.reset(seed=seed)[0])
        pictures += [env.step(np.array([action], np.float32))[0] for action in np.linspace(-1, 1, EPISODE_STEPS)]
    return pictures


@pytest.mark.parametrize("failing", [0, 5, 9], ids=["first", "step", "reset"])
def test_drawing_fails_once(
    failing: int,
    environment: Callable[[], DMCEnv],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second attempt uses a new context, and the pictures are the same."""
    expected, env = play(environment()), environment()
    calls, contexts = iter(range(1000)), []  # the contexts themselves, as an id may come again

    def fails(self: DMCEnv) -> bool:
        contexts.append(self.physics.contexts.gl)
        return next(calls) == failing

    break_drawing(monkeypatch, fails)
    np.testing.assert_array_equal(play(env), expected)
    assert len(contexts) == len(expected) + 1
    assert (len(set(contexts[: failing + 1])), len(set(contexts[failing + 1 :]))) == (1, 1)
    assert contexts[failing] is not contexts[failing + 1]
    assert capsys.readouterr().err.count("the second attempt succeeded") == 1


def test_drawing_fails_twice(environment: Callable[[], DMCEnv], monkeypatch: pytest.MonkeyPatch) -> None:
    env = environment()
    env.reset(seed=1)
    break_drawing(monkeypatch, lambda _: True)
    with pytest.raises(RenderingError, match=r"twice: the context is lost; on the second attempt: the context is lost"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "saved"), [("step", 28), ("reset", 24), ("evaluation", 24)])
def test_training_without_a_renderer(
    moment: str,
    saved: int,
    tmp_path: Path,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run is saved where it is. When drawing works again, it is resumed exactly."""
    environments: list[PixelEnv] = []
    drawn: Counter[int] = Counter()
    due = 3 * (EPISODE_STEPS + 1) + {"step": 5, "reset": 0, "evaluation": 0}[moment]  # pictures of three episodes

    def make(config: Config) -> PixelEnv:
        environments.append(make_environment(config))
        return environments[-1]

    def fails(env: PixelEnv) -> bool:
        number = environments.index(env)  # 0 is training's
        if drawn[0] >= due and (number > 0) == (moment == "evaluation"):
            return True
        drawn[number] += 1
        return False

    with monkeypatch.context() as patches:
        patches.setattr(build, "make_environment", make)
        break_drawing(patches, fails)
        arguments = shlex.split(f"{SMALL} --work_dir {tmp_path}")
        if moment == "reset":
            arguments += NO_EVALUATION.split()
        assert train.main(arguments) == 1
    folder = run_folder(tmp_path)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: error: drawing a frame failed twice: the context is lost")
    assert f"saved up to frame {saved * ACTION_REPEAT}" in last
    assert re.search(rf"resume with: \S+ \S*train\.py --resume {folder}$", last)
    assert checkpoint_step(folder) == saved
    assert train.main(["--resume", str(folder)]) == 0
    assert_equal_runs(folder, undisturbed(NO_EVALUATION if moment == "reset" else ""))


# -- losses that are not finite ------------------------------------------------------------------------------------


def tensors(content: Any) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from tensors(value)


@pytest.mark.slow
@pytest.mark.parametrize("first_update", [20, 23], ids=["in_an_episode", "before_a_checkpoint"])
def test_losses_become_nan(first_update: int, launch: Launch, tmp_path: Path) -> None:
    """One line names the loss, the frame and the last good checkpoint, whose weights are all finite."""
    line = f"--lr 1e30 --num_seed_steps {first_update} --checkpoint_frequency 8 --eval_frequency 0"
    child = launch(f"{SMALL} {line} --work_dir {tmp_path}")
    assert child.wait() == 1, child.stderr
    assert "Traceback" not in child.stderr, child.stderr
    folder = run_folder(tmp_path)
    frame = checkpoint_step(folder) * ACTION_REPEAT
    pattern = (
        rf"train\.py: error: .*(_loss|action)\b.* became infinite or not a number by frame \d+; "
        rf"last good checkpoint of frame {frame}: {folder}.*"
    )
    assert re.fullmatch(pattern, child.last_line), child.stderr
    found = Checkpoints(folder).read()
    assert found is not None
    assert all(torch.isfinite(tensor).all() for tensor in tensors(found["agent"]))


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
def test_an_unstable_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], for_good: bool
) -> None:
    """The episode ends there, with a row, and the run continues; if a first step fails, the run ends."""
    step, steps_made = DMCEnv.step, Counter[int]()
    fails = 24 + 5 + 1  # the sixth step of the fourth episode

    def break_physics(env: DMCEnv, action: np.ndarray) -> Any:
        steps_made[0] += 1
        if steps_made[0] == fails or (for_good and steps_made[0] > fails):
            env.physics.data.qpos[0] = np.inf
        return step(env, action)

    monkeypatch.setattr(DMCEnv, "step", break_physics)
    arguments = f"{SMALL} {NO_EVALUATION} --num_seed_steps 68 --checkpoint_frequency 16 --work_dir {tmp_path}"

    def skip_evaluation(run: Run) -> None:
        run.evaluations.done(run.step, run.episode_start)

    monkeypatch.setattr(loop, "evaluate", skip_evaluation)
    assert train.main(shlex.split(arguments)) == int(for_good)
    folder = run_folder(tmp_path)
    printed = capsys.readouterr().err.splitlines()
    unstable = r"the physics became unstable \(.*\)"
    warnings = [
        line for line in printed if re.fullmatch(rf"warning: a training .* early, by frame 58: {unstable}", line)
    ]
    assert len(warnings) == 1, printed
    ends = steps(folder, "train")
    frame = checkpoint_step(folder) * ACTION_REPEAT
    if for_good:
        assert ends == [16, 32, 48, 58]
        assert re.fullmatch(
            rf"train\.py: error: {unstable} in an episode's first step, by frame 58; "
            rf"last good checkpoint of frame {frame}: {folder}/checkpoint; start a new run with .*",
            printed[-1],
        ), printed
    else:
        assert ends == [16, 32, 48, *range(58, 137, 16)]
    assert frame == (32 if for_good else 136)


# -- a resume that changes something -------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_the_replay_buffer(launch: Launch, tmp_path: Path) -> None:
    """The resumed run prints what changes, and fills a new buffer before it updates again."""
    child = launch(f"{SMALL} --num_train_steps 84 --save_replay_buffer false --work_dir {tmp_path}")
    child.until_episode(4)
    os.kill(child.pid, signal.SIGINT)
    folder = run_folder(tmp_path)
    stopped = assert_stopped(child, signal.SIGINT, folder)
    assert not list((folder / "checkpoint").glob("replay_*"))
    before = tables(folder)
    again = launch(f"--resume {folder}").finish()
    warning = r"warning: the replay buffer was not saved: .* no updates for 20 agent steps; it will differ"
    assert re.search(warning, again.stderr)
    assert {name: rows[: len(before[name])] for name, rows in tables(folder).items()} == before
    ends = list(range(EPISODE_STEPS, 84, EPISODE_STEPS))
    assert steps(folder, "train") == [step * ACTION_REPEAT for step in ends]
    updated = {end: cell != "" for end, cell in zip(ends, column(folder, "train", "critic_loss"), strict=True)}
    later = [end for end in ends if end - EPISODE_STEPS >= stopped]
    assert [updated[end] for end in later] == [end > stopped + 20 for end in later]
    assert not all(updated[end] for end in later)
    assert updated[ends[-1]]


@pytest.fixture(scope="module")
def extended(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 68 agent steps, which end within an episode, resumed with that budget and then with 120 steps."""
    place = tmp_path_factory.mktemp("extended")
    folder = Path(shutil.copytree(undisturbed(""), place / "run"))
    Child(f"--resume {folder}", place / "same").finish()
    for name in ("train", "eval", "episodes"):
        assert (folder / f"{name}.csv").read_bytes() == (undisturbed("") / f"{name}.csv").read_bytes()
    assert_equal_runs(folder, undisturbed(""))
    Child(f"--resume {folder} --num_train_steps 120", place / "more").finish()
    return folder


@pytest.mark.slow
def test_larger_budget(extended: Path, undisturbed: Undisturbed) -> None:
    """A finished run continues its unfinished episode; with its own budget there was nothing to do."""
    longer = undisturbed("--num_train_steps 120")
    assert table(extended / "train.csv") == table(longer / "train.csv")
    for part in ("agent", "transitions", "random", "action_space", "skills", "environment", "underway"):
        assert list(differences(state(extended)[part], state(longer)[part])) == []
    assert json.loads((extended / "config.json").read_text())["flags"]["num_train_steps"] == 120


@pytest.mark.slow
def test_larger_budget_evaluations(extended: Path, undisturbed: Undisturbed) -> None:
    """They are those of the larger budget, and one at the end of the smaller budget."""
    longer = undisturbed("--num_train_steps 120")
    end = str(68 * ACTION_REPEAT)
    rows = table(extended / "eval.csv")
    assert [row for row in rows if row[1] != end] == table(longer / "eval.csv")
    assert sum(row[1] == end for row in rows) == 1
