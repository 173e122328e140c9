"""evaluate.py and fine-tuning, on the fake environment: what is played, written down, and left alone."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import envs.make
import envs.renderer
import evaluate
import rollouts
import runs
import train
from config import Config, parse_args
from diayn import DIAYNAgent
from drq import DrQAgent
from envs.renderer import RendererInfo
from tests.support.fake_env import IMAGE_SIZE
from tests.test_resume import SeededEnv, assert_same, played, state, stop_at
from video import VideoRecorder, read_video

SMALL = (
    f"--device cpu --image_size {IMAGE_SIZE} --hidden_dim 16 --encoder_feature_dim 8 --batch_size 4 "
    "--num_seed_steps 12 --num_train_steps 40 --replay_buffer_capacity 200 --eval_frequency 25 --action_repeat 3 "
    "--save_video false --log_save_tb false"
)

Evaluate = Callable[..., Path]


@pytest.fixture(scope="module")
def fakes() -> Iterator[list[SeededEnv]]:
    """The fake environment in dm_control's place; in the list the environments appear as they are made."""
    made: list[SeededEnv] = []

    def make(config: Config) -> SeededEnv:
        made.append(SeededEnv(ragged=True))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs.make, "make_environment", make)
        patch.setattr(envs.renderer, "choose_renderer", lambda: RendererInfo("fake", "a fake renderer"))
        yield made


@pytest.fixture(scope="module")
def pretrained(fakes: list[SeededEnv], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with four skills."""
    work_dir = tmp_path_factory.mktemp("pretrained")
    assert train.main(shlex.split(f"{SMALL} --num_skills 4 --work_dir {work_dir} --run_name skills")) == 0
    return work_dir / "cartpole_swingup" / "skills"


@pytest.fixture
def play(pretrained: Path, tmp_path: Path) -> Evaluate:
    """`play(flags)`: evaluate.py on that run; the folder with its outputs."""

    def call(line: str = "") -> Path:
        arguments = [str(pretrained), "--device", "cpu", "--out", str(tmp_path / "out"), *shlex.split(line)]
        assert evaluate.main(arguments) == 0
        return tmp_path / "out"

    return call


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def starts(fakes: list[SeededEnv], known: int) -> list[int | None]:
    """Of all episodes in environments made since there were `known` of them."""
    return [episode.seed for env in fakes[known:] for episode in env.played]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- evaluate.py -------------------------------------------------------------------------------------------------------


def test_every_skill_from_the_same_starts(
    play: Evaluate, pretrained: Path, fakes: list[SeededEnv], capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each skill, a video of each and of all; the run's folder is not touched."""
    before, known = contents(pretrained), len(fakes)
    out = play("--episodes 3 --seed 7 --video_size 64")
    table = rows(out / "skills.csv")
    assert [row["skill_id"] for row in table] == ["0", "1", "2", "3"]
    assert {row["episodes"] for row in table} == {"3"}
    assert {row["step"] for row in table} == {"120"}
    bound = sum(float(row["mutual_information_bound"]) for row in table) / 4
    assert f"bound {bound:.3f} nats: means over these skills" in capsys.readouterr().out
    seeds = starts(fakes, known)
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


def test_a_checkpoint_serves_as_well_as_its_run(pretrained: Path, tmp_path: Path) -> None:
    (file,) = pretrained.glob("checkpoint/state_*.pt")
    tables = []
    for number, place in enumerate((pretrained, pretrained / "checkpoint", file)):
        out = tmp_path / str(number)
        assert evaluate.main([str(place), "--no_video", "--device", "cpu", "--out", str(out)]) == 0
        tables.append(rows(out / "skills.csv"))
    assert tables[0] == tables[1] == tables[2]


def test_the_best_skill_is_chosen_on_other_starts(play: Evaluate, fakes: list[SeededEnv]) -> None:
    """Or it would look better than it is."""
    known = len(fakes)
    play("--no_video --skills best --episodes 3")
    seeds = starts(fakes, known)
    shown = np.random.SeedSequence(0).generate_state(3).tolist()
    assert len(seeds) == (4 + 1) * 3
    assert all(seeds.count(seed) == 1 for seed in shown), "of the best one alone"


def test_chosen_skills_and_the_best(play: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    everything = {
        row["skill_id"]: float(row["episode_extrinsic_reward"]) for row in rows(play("--no_video") / "skills.csv")
    }
    assert [row["skill_id"] for row in rows(play("--no_video --skills 3,1") / "skills.csv")] == ["3", "1"]
    (best,) = rows(play("--no_video --skills best") / "skills.csv")
    assert best["skill_id"] == max(everything, key=lambda skill: everything[skill])


def test_trajectories_lead_there_again(play: Evaluate) -> None:
    """The actions of a file, played from its seed, give its frames and rewards."""
    out = play("--no_video --skills 2 --episodes 2 --save_trajectories")
    paths = sorted(out.glob("*.npz"))
    assert len(paths) == 2
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


@pytest.fixture
def assessed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The skills that are played, step by step."""
    skills: list[int] = []
    assess = DIAYNAgent.assess

    def remember(agent: DIAYNAgent, obs: np.ndarray, skill: np.ndarray) -> Any:
        skills.extend(skill.tolist())
        return assess(agent, obs, skill)

    monkeypatch.setattr(DIAYNAgent, "assess", remember)
    return skills


@pytest.mark.parametrize(("schedule", "expected"), [("3:2,1:1", [3, 3, 1]), ("0:100", [0] * 3), ("random:2", None)])
def test_schedule(
    play: Evaluate,
    fakes: list[SeededEnv],
    assessed: list[int],
    schedule: str,
    expected: list[int] | None,
) -> None:
    """Skills change when they are told to, over and over, and each episode begins the schedule anew."""
    out = play(f"--skill_schedule {schedule} --episodes 4 --video_size 32")
    lengths = [len(episode.actions) for episode in fakes[-1].played]
    assert sum(lengths) == len(assessed) >= 12
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        own = assessed[end - length : end]
        if expected is not None:
            assert own == (expected * 3)[:length]
        else:
            assert all(one == other for one, other in zip(own[::2], own[1::2], strict=False))
    assert expected is not None or len(set(assessed)) > 1
    assert len(list(read_video(out / "schedule.mp4"))) >= 3


def test_imitation(play: Evaluate, pretrained: Path) -> None:
    """log q of every skill, from the networks alone and the observations that training would have seen."""
    out = play("--no_video --skills 1 --save_trajectories")
    (given,) = out.glob("*.npz")
    learned = evaluate.load(pretrained, "cpu")
    with np.load(given) as data:
        env = SeededEnv(ragged=True)
        env.reset(seed=int(data["seed"]))
        observations = np.stack([env.step(action)[0] for action in data["actions"]])
    with torch.no_grad():
        agent = learned.agent
        assert isinstance(agent, DIAYNAgent)
        assert agent.discriminator.encoder is not None
        features = agent.discriminator.encoder(torch.from_numpy(observations))
        log_q = agent.discriminator(features).log_softmax(dim=1)
    out = play(f"--imitate {given} --video_size 48")
    table = rows(out / "imitation.csv")
    assert [float(row["log_q_mean"]) for row in table] == pytest.approx(log_q.mean(dim=0).tolist(), rel=1e-4)
    assert [float(row["log_q_sum"]) for row in table] == pytest.approx(log_q.sum(dim=0).tolist(), rel=1e-4)
    best = int(log_q.mean(dim=0).argmax())
    frames = list(read_video(out / "imitation.mp4"))
    assert frames[0].shape == (48, 2 * 48, 3)
    assert (out / f"skill{best}.mp4").exists()
    assert len(list(read_video(out / "given.mp4"))) == len(observations)


def test_frames_of_another_size_are_scaled(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(256, size=(5, 3, 40, 60), dtype=np.uint8)
    np.savez(tmp_path / "t.npz", frames=frames)
    config = parse_args(["--image_size", "24"])
    scaled, seed = evaluate.read_frames(tmp_path / "t.npz", config)
    assert scaled.shape == (5, 3, 24, 24)
    assert seed is None
    expected = cv2.resize(frames[2].transpose(1, 2, 0).copy(), (24, 24), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(scaled[2].transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--skills -1", "--skills"),
        ("--skills 9", "--skills"),
        ("--skills good", "--skills"),
        ("--skill_schedule 3", "--skill_schedule"),
        ("--skill_schedule 9:10", "--skill_schedule"),
        ("--skill_schedule 1:0", "--skill_schedule"),
        ("--imitate nowhere.npz", "--imitate"),
        ("--device nonsense", "--device"),
    ],
)
def test_bad_input(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, word: str) -> None:
    out = tmp_path / "out"
    assert evaluate.main([str(pretrained), "--device", "cpu", "--out", str(out), *shlex.split(line)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate.py: error: ")
    assert word in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--skill_schedule 0:5 --save_trajectories", "--save_trajectories has no meaning beside --skill_schedule"),
        ("--imitate some.npz --skills 1", "--skills has no meaning beside --imitate"),
        ("--imitate some.npz --skill_schedule 0:5", "exclude each other"),
        ("--imitate some.npz --episodes 2", "--episodes has no meaning beside --imitate"),
        ("--epsiodes 3", "did you mean --episodes?"),
        ("--episodes 0", "from 1 to 999999"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["some_run", *shlex.split(line)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


def test_frames_of_another_task_are_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "t.npz"
    np.savez(given, frames=np.zeros((5, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8), env="walker_walk")
    assert evaluate.main([str(pretrained), "--device", "cpu", "--imitate", str(given)]) == 2
    assert "its frames are of walker_walk" in capsys.readouterr().err


def test_evaluations_from_other_starts_have_folders_of_their_own() -> None:
    lines = ("", "--episodes 2", "--seed 1", "--seed 1 --episodes 2", "--skills 3,1", "--skill_schedule 1:2,3:4")
    names = [evaluate.mode(evaluate.parse_args(["run", *shlex.split(line)])) for line in lines]
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


@pytest.mark.parametrize("line", ["", "--skill_schedule 0:3"])
def test_ctrl_c_leaves_no_half_made_video(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    steps, step = 0, SeededEnv.step

    def interrupted(env: SeededEnv, action: np.ndarray) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return step(env, action)

    monkeypatch.setattr(SeededEnv, "step", interrupted)
    out = tmp_path / "out"
    arguments = [str(pretrained), "--device", "cpu", "--out", str(out), *shlex.split(line)]
    assert evaluate.main(arguments) == 130
    assert capsys.readouterr().err.endswith("evaluate.py: stopped\n")
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("place", ["nowhere", "empty", "file", "pickle"])
def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], fakes: Any, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"no checkpoint")
    torch.save({"flags": {}}, tmp_path / "pickle")
    assert evaluate.main([str(tmp_path / place), "--device", "cpu"]) == 2
    assert str(tmp_path / place) in capsys.readouterr().err


# -- fine-tuning -------------------------------------------------------------------------------------------------------


@pytest.fixture
def begin(pretrained: Path, tmp_path: Path) -> Iterator[Callable[[str], runs.Run]]:
    """`begin(flags)`: a run that goes on with a skill of the pretrained one, not yet played."""
    begun: list[runs.Run] = []

    def make(line: str = "") -> runs.Run:
        flags = (
            "--device cpu --batch_size 4 --num_seed_steps 5 --num_train_steps 30 --eval_frequency 12 --save_video false"
        )
        given = f"--finetune_from {pretrained} {flags} --log_save_tb false --replay_buffer_capacity 200"
        begun.append(runs.setup(parse_args(shlex.split(f"{given} --work_dir {tmp_path} {line}"))))
        return begun[-1]

    yield make
    for run in begun:
        run.close()


@pytest.mark.parametrize("critic", ["pretrained", "scratch"])
def test_networks_that_are_taken_over(begin: Callable[[str], runs.Run], pretrained: Path, critic: str) -> None:
    """Actor, encoder and embeddings always; the Q functions where told so; nothing of the optimizers."""
    source = evaluate.load(pretrained, "cpu").agent
    agent = begin(f"--finetune_skill 2 --finetune_critic {critic}").agent
    assert type(agent) is DrQAgent
    assert_same(agent.actor.state_dict(), source.actor.state_dict())
    assert_same(agent.critic.encoder.state_dict(), source.critic.encoder.state_dict())
    assert_same(agent.critic.skill.state_dict(), source.critic.skill.state_dict())
    for name in ("head", "q1", "q2"):
        ours, theirs = getattr(agent.critic, name).state_dict(), getattr(source.critic, name).state_dict()
        equal = all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert equal == (critic == "pretrained")
    assert_same(agent.critic_target.state_dict(), agent.critic.state_dict())
    assert all(not optimizer.state_dict()["state"] for optimizer in agent.optimizers().values())
    assert float(agent.log_alpha.detach().exp()) == pytest.approx(0.1)


def test_one_skill_for_the_task_reward(begin: Callable[[str], runs.Run]) -> None:
    run = begin("--finetune_skill 3")
    assert (run.config.extrinsic_reward_coeff, run.config.diayn_intrinsic_reward_coeff) == (1.0, 0.0)
    assert run.config.temperature == "learned"
    assert run.frames_before == 0
    actor = {key: value.clone() for key, value in run.agent.actor.state_dict().items()}
    played(run)
    assert {row["skill_id"] for row in rows(run.folder / "episodes.csv")} == {"3"}
    assert not (run.folder / "skills.csv").exists()
    assert set(run.buffer._skill[: len(run.buffer)]) == {3}
    assert any(not torch.equal(actor[key], value) for key, value in run.agent.actor.state_dict().items())


def test_the_best_skill_costs_frames(begin: Callable[[str], runs.Run], fakes: list[SeededEnv]) -> None:
    """They are played from one start, counted in every step that is written down, and named in config.json."""
    known = len(fakes)
    run = begin("")
    lanes = [env.played[0] for env in fakes[known:] if len(env.played) == 1 and env is not run.env][:4]
    returns = [sum(episode.rewards[: len(episode.actions)]) for episode in lanes]
    assert run.frames_before == 3 * sum(len(episode.actions) for episode in lanes)
    chosen_on = starts(fakes, known)
    assert run.agent.skill == int(np.argmax(returns))
    record = json.loads((run.folder / "config.json").read_text())
    assert (record["finetuned_skill"], record["frames_before"]) == (run.agent.skill, run.frames_before)
    played(run)
    steps = [int(row["step"]) for row in rows(run.folder / "eval.csv")]
    assert (steps[0], steps[-1]) == (run.frames_before, run.frames_before + 3 * 30)
    all_starts = starts(fakes, known)
    assert all_starts.count(chosen_on[0]) == len(chosen_on)  # no evaluation's


def test_killed_before_its_first_checkpoint(begin: Callable[[str], runs.Run]) -> None:
    """It begins again as it began: with the other run's networks and the same skill."""
    undisturbed, run = played(begin("")), begin("")
    run.close()
    again = runs.setup(parse_args(["--resume", str(run.folder)]))
    assert (again.agent.skill, again.frames_before) == (undisturbed.agent.skill, undisturbed.frames_before)
    assert_same(state(played(again)), state(undisturbed))
    again.close()


def test_the_newest_run_as_the_source(begin: Callable[[str], runs.Run], pretrained: Path) -> None:
    """`latest` is followed when it is given, as it leads elsewhere later."""
    run = begin(f"--finetune_from {pretrained.with_name('latest')} --finetune_skill 0")
    assert run.config.finetune_from == str(pretrained.resolve())
    with pytest.raises(SystemExit):
        parse_args(["--finetune_from", str(run.folder)])


def test_it_acts_from_the_first_step(begin: Callable[[str], runs.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[int] = []
    act = DrQAgent.act

    def remember(agent: DrQAgent, obs: np.ndarray, skill: int, *, sample: bool) -> np.ndarray:
        acted.append(skill)
        return act(agent, obs, skill, sample=sample)

    monkeypatch.setattr(DrQAgent, "act", remember)
    run = played(begin("--finetune_skill 0 --eval_frequency 0"))
    assert acted == [0] * 30
    assert run.agent.num_updates == 30 - 5


def test_fine_tuning_is_resumed_to_the_bit(begin: Callable[[str], runs.Run]) -> None:
    undisturbed, run = played(begin("")), begin("")
    stop_at(run, 17)
    train.train(run)
    run.close()
    again = played(runs.setup(parse_args(["--resume", str(run.folder)])))
    assert_same(state(again), state(undisturbed))
    for name in ("train", "eval", "episodes"):
        pairs = zip(rows(again.folder / f"{name}.csv"), rows(undisturbed.folder / f"{name}.csv"), strict=True)
        for one, other in pairs:
            clock = {"duration": "", "fps": ""}
            assert one | clock == other | clock
    again.close()


def test_a_fine_tuned_run_is_evaluated_with_its_skill(begin: Callable[[str], runs.Run], tmp_path: Path) -> None:
    run = played(begin("--finetune_skill 1"))
    run.close()
    assert evaluate.main([str(run.folder), "--no_video", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out" / "skills.csv")
    assert (row["skill_id"], row["discriminator_accuracy"]) == ("1", "")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--finetune_skill 4", "--finetune_skill"),
        ("--finetune_skill good", "--finetune_skill"),
        ("--hidden_dim 32", "--hidden_dim"),
        ("--num_skills 3", "--num_skills"),
        ("--diayn_intrinsic_reward_coeff 1", "--diayn_intrinsic_reward_coeff"),
    ],
)
def test_fine_tuning_refused(pretrained: Path, capsys: pytest.CaptureFixture[str], line: str, word: str) -> None:
    with pytest.raises(SystemExit) as end:
        parse_args(shlex.split(f"--finetune_from {pretrained} {line}"))
    assert end.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_fine_tuning_needs_skills(fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(shlex.split(f"{SMALL} --num_skills 0 --work_dir {tmp_path} --run_name plain")) == 0
    plain = tmp_path / "cartpole_swingup" / "plain"
    for line in (f"--finetune_from {plain}", f"--finetune_from {tmp_path}", "--finetune_skill 3"):
        with pytest.raises(SystemExit):
            parse_args(shlex.split(line))
        assert "--finetune_" in capsys.readouterr().err.splitlines()[-1]
    assert evaluate.main([str(plain), "--imitate", "x.npz", "--device", "cpu"]) == 2
    assert "no discriminator" in capsys.readouterr().err
    assert evaluate.main([str(plain), "--no_video", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    (row,) = rows(tmp_path / "out" / "skills.csv")
    assert (row["skill_id"], row["accuracy_at_start"]) == ("-1", "")


# -- bookkeeping -------------------------------------------------------------------------------------------------------


def test_run_name_notes_and_latest(fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{SMALL} --num_train_steps 5 --eval_frequency 0 --work_dir {tmp_path}"
    for name in ("first", "first"):
        assert train.main(shlex.split(f"{line} --run_name {name} --notes 'a thought'")) == 0
    assert capsys.readouterr().err.count("warning: --run_name first is taken; this run is first-run2\n") == 1
    folder = tmp_path / "cartpole_swingup"
    assert sorted(path.name for path in folder.iterdir()) == ["first", "first-run2", "latest"]
    assert (folder / "latest").resolve() == (folder / "first-run2").resolve()
    assert json.loads((folder / "latest" / "config.json").read_text())["flags"]["notes"] == "a thought"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x\ny"])
def test_run_names_stay_in_their_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--run_name", name])
    assert "--run_name" in capsys.readouterr().err


def test_a_benchmarks_template_serves_another_task(tmp_path: Path) -> None:
    """Its action repeat is the task's, unless it was given; one that no task of the benchmark has stays."""

    def file(line: str) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"flags": vars(parse_args(shlex.split(f"--num_skills 0 {line}")))}))
        return str(path)

    planet = file("--benchmark planet --env cartpole_swingup")
    config = parse_args(["--config", planet, "--env", "walker_walk"])
    assert (config.benchmark, config.action_repeat, config.batch_size) == ("planet", 2, 512)
    assert parse_args(["--config", planet]).action_repeat == 8
    given = file("--benchmark planet --env cartpole_swingup --action_repeat 5 --batch_size 64")
    config = parse_args(["--config", given, "--env", "walker_walk"])
    assert (config.action_repeat, config.batch_size) == (5, 64)
    other = file("--benchmark planet --env hopper_hop --action_repeat 3")
    assert parse_args(["--config", other]).action_repeat == 3


def test_what_a_template_pays_or_builds_for_skills_goes_with_them(pretrained: Path, tmp_path: Path) -> None:
    """Nobody is told to leave out a flag that only the template has."""
    path = tmp_path / "config.json"

    def template(line: str) -> list[str]:
        path.write_text(json.dumps({"flags": vars(parse_args(shlex.split(f"{line} --notes old")))}))
        return ["--config", str(path)]

    paid = template("--num_skills 5 --diayn_intrinsic_reward_coeff 2 --extrinsic_reward_coeff 0.5")
    config = parse_args([*paid, "--num_skills", "0"])
    assert (config.diayn_intrinsic_reward_coeff, config.extrinsic_reward_coeff, config.notes) == (0.0, 1.0, "")
    config = parse_args([*paid, "--num_skills", "6"])
    assert (config.diayn_intrinsic_reward_coeff, config.extrinsic_reward_coeff) == (2.0, 0.5)
    for line in (
        "--num_skills 0 --hidden_dim 32 --lr 0.25",
        "--num_skills 5 --diayn_intrinsic_reward_coeff 2 --lr 0.25",
    ):
        config = parse_args([*template(line), "--finetune_from", str(pretrained)])
        assert (config.num_skills, config.hidden_dim, config.lr) == (4, 16, 0.25)


def test_config_as_a_template(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other run's settings, but for its name; flags beside it win."""
    file = str(pretrained / "config.json")
    derived = parse_args(["--config", file, "--num_skills", "0", "--lr", "0.01"])
    assert (derived.extrinsic_reward_coeff, derived.temperature, derived.num_eval_episodes) == (1.0, "learned", 10)
    assert parse_args(["--config", file, "--benchmark", "planet"]).batch_size == 512
    config = parse_args(["--config", file])
    assert (config.hidden_dim, config.num_skills, config.num_train_steps) == (16, 4, 40)
    assert config.run_name is None
    assert parse_args(["--config", file, "--hidden_dim", "8", "--num_train_frames", "30"]).num_train_steps == 10
    assert parse_args(["--config", file, "--hidden_dim", "8"]).hidden_dim == 8
    for line in (["--config", "nowhere.json"], ["--config", file, "--resume", str(pretrained)]):
        with pytest.raises(SystemExit):
            parse_args(line)
        assert "--config" in capsys.readouterr().err.splitlines()[-1]


# -- evaluate.py: seeds, schedules, imitation, trajectories ------------------------------------------------------------


@pytest.mark.parametrize("line", ["", "--skill_schedule 1:2"])
def test_the_seed_decides_the_starts(play: Evaluate, fakes: list[SeededEnv], line: str) -> None:
    known = len(fakes)
    play(f"--no_video --episodes 2 --seed 7 {line}")
    assert set(starts(fakes, known)) == set(np.random.SeedSequence(7).generate_state(2).tolist())


def test_the_seed_decides_on_which_starts_the_best_is_chosen(play: Evaluate, fakes: list[SeededEnv]) -> None:
    seen = []
    for seed in (0, 7):
        known = len(fakes)
        play(f"--no_video --episodes 2 --skills best --seed {seed}")
        seen.append(set(starts(fakes, known)) - set(np.random.SeedSequence(seed).generate_state(2).tolist()))
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]


def test_the_seed_decides_a_random_schedule(play: Evaluate, assessed: list[int]) -> None:
    drawn = []
    for seed in (1, 2, 1):
        assessed.clear()
        play(f"--no_video --episodes 5 --skill_schedule random:1 --seed {seed}")
        drawn.append(list(assessed))
    assert drawn[0] == drawn[2]
    assert drawn[0][:12] != drawn[1][:12]


def test_a_schedules_return_and_its_video(
    play: Evaluate,
    fakes: list[SeededEnv],
    assessed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The return is the whole episode's; each picture has the skill that led to it, and only the first is filmed."""
    shown: list[tuple[int, str]] = []

    def record(self: VideoRecorder, frame: np.ndarray, text: Any = ()) -> None:
        shown.append((int(frame[0, 0, 1]), text[0]))

    monkeypatch.setattr(VideoRecorder, "record", record)
    play("--skill_schedule 3:1,1:1 --episodes 2")
    episodes = fakes[-1].played
    found = [(float(r), int(n)) for r, n in re.findall(r"return (\S+) in (\d+) agent", capsys.readouterr().out)]
    for (value, length), episode in zip(found, episodes, strict=True):
        assert length == len(episode.actions)
        assert value == pytest.approx(sum(episode.rewards[:length]), abs=0.006)
    first = len(episodes[0].actions)
    assert shown == [(n, f"skill {assessed[n - 1]}  step {n}") for n in range(1, first + 1)]


def test_the_imitation_shows_the_best_skill_from_the_same_start(
    play: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    (given,) = play("--no_video --skills 1 --seed 5 --save_trajectories").glob("*.npz")
    filmed: list[tuple[Any, Any]] = []
    film = rollouts.film

    def spy(agent: Any, lanes: Any, names: Any, seeds: Any, *args: Any, **settings: Any) -> Any:
        filmed.append((dict(names), list(seeds)))
        return film(agent, lanes, names, seeds, *args, **settings)

    monkeypatch.setattr(rollouts, "film", spy)
    says = [-3.0, -2.0, -1.0, -4.0]
    monkeypatch.setattr(DIAYNAgent, "assess_log_likelihood", lambda self, obs: np.tile(says, (len(obs), 1)))
    play(f"--imitate {given} --video_size 32")
    assert filmed == [({2: "skill2"}, [int(np.load(given)["seed"])])]


def test_a_trajectory_has_the_states_and_the_task(play: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeededEnv, "measure", lambda self: (np.array([self.steps, 7.0]), np.zeros(3)))
    (path,) = play("--no_video --skills 1 --save_trajectories").glob("*.npz")
    with np.load(path) as data:
        steps = len(data["actions"])
        assert data["states"].tolist() == [[step, 7.0] for step in range(steps + 1)]
        assert str(data["env"]) == "cartpole_swingup"


def test_videos_play_in_the_tasks_time(pretrained: Path) -> None:
    assert evaluate.load(pretrained, "cpu").fps == SeededEnv.metadata["render_fps"]


def test_the_frames_that_choosing_a_skill_took_count(begin: Callable[[str], runs.Run], tmp_path: Path) -> None:
    run = played(begin(""))
    run.close()
    assert run.frames_before > 0
    assert evaluate.main([str(run.folder), "--no_video", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out" / "skills.csv")[0]["step"] == str(run.frames_before + 3 * 30)
