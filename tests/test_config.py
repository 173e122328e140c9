"""The configuration: every flag, its default, what is derived from others, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from config import CHANGEABLE, Config, parse_args
from tests.support.paths import ROOT

# flag: (default, another value as text, the same parsed). Floats are told from integers by type.
FLAGS: dict[str, tuple[Any, str, Any]] = {
    "env": ("cartpole_swingup", "walker_walk", "walker_walk"),
    "action_repeat": (4, "2", 2),
    "time_limit": (None, "500", 500),
    "image_size": (84, "64", 64),
    "frame_stack": (3, "4", 4),
    "benchmark": (None, "dreamer", "dreamer"),
    "num_train_steps": (1_000_000, "2000", 2000),
    "num_train_iters": (1, "3", 3),
    "num_seed_steps": (1000, "0", 0),
    "replay_buffer_capacity": (100_000, "5000", 5000),
    "seed": (1, "0", 0),
    "num_skills": (10, "3", 3),
    "skill_embedding_dim": (10, "0", 0),
    "discriminator_encoder": ("separate", "shared", "shared"),
    "precision": ("fp32", "bf16", "bf16"),
    "augmentation": ("shift", "none", "none"),
    "cuda_graphs": (True, "false", False),
    "batch_size": (128, "512", 512),
    "discount": (0.99, "0.9", 0.9),
    "lr": (1e-3, "3e-4", 3e-4),
    "lr_discriminator": (1e-4, "3e-4", 3e-4),
    "image_pad": (4, "0", 0),
    "init_temperature": (0.1, "0.5", 0.5),
    "actor_update_frequency": (2, "1", 1),
    "critic_tau": (0.01, "1", 1.0),
    "critic_target_update_frequency": (2, "4", 4),
    "encoder_feature_dim": (50, "20", 20),
    "hidden_dim": (1024, "64", 64),
    "hidden_depth": (2, "3", 3),
    "log_std_bounds": ((-10.0, 2.0), "-5 1.5", (-5.0, 1.5)),
    "eval_frequency": (5000, "0", 0),
    "num_eval_episodes": (1, "3", 3),  # for each of ten skills; 10 without skills
    "eval_workers": (0, "2", 2),
    "log_frequency_step": (10_000, "7", 7),
    "checkpoint_frequency": (5000, "0", 0),
    "save_replay_buffer": (True, "false", False),
    "deterministic": (False, "true", True),
    "log_save_tb": (True, "false", False),
    "save_video": (True, "false", False),
    "notes": ("", "thought", "thought"),
    "work_dir": ("runs", "elsewhere/runs", "elsewhere/runs"),
}

BELOW_RANGE = {
    **dict.fromkeys(("action_repeat", "time_limit", "frame_stack", "num_train_steps", "num_train_frames"), "0"),
    **dict.fromkeys(("num_train_iters", "replay_buffer_capacity", "batch_size", "image_size", "hidden_dim"), "0"),
    **dict.fromkeys(("encoder_feature_dim", "actor_update_frequency", "critic_target_update_frequency"), "0"),
    **dict.fromkeys(("num_eval_episodes", "log_frequency_step", "lr", "lr_discriminator"), "0"),
    **dict.fromkeys(("init_temperature", "critic_tau"), "0"),
    **dict.fromkeys(("num_seed_steps", "seed", "num_skills", "skill_embedding_dim", "image_pad"), "-1"),
    **dict.fromkeys(("eval_frequency", "eval_workers", "hidden_depth", "checkpoint_frequency"), "-1"),
    **dict.fromkeys(("discount", "extrinsic_reward_coeff", "diayn_intrinsic_reward_coeff"), "-0.1"),
}
ABOVE_RANGE = {"discount": "1.01", "critic_tau": "1.01", "seed": str(2**64)}  # 64 bits are what torch's generators take
INTEGERS = [name for name, (_, _, value) in FLAGS.items() if type(value) is int] + ["num_train_frames"]
COEFFICIENTS = ("extrinsic_reward_coeff", "diayn_intrinsic_reward_coeff")
FLOATS = [name for name, (_, _, value) in FLAGS.items() if type(value) is float] + [*COEFFICIENTS]
BOOLEANS = [name for name, (_, _, value) in FLAGS.items() if type(value) is bool]
CHOICES = {
    "augmentation": ("shift", "cutout", "hflip", "vflip", "rotation", "intensity", "none"),
    "benchmark": ("planet", "dreamer"),
    "discriminator_encoder": ("shared", "separate"),
    "precision": ("fp32", "bf16"),
    "temperature": ("auto", "fixed", "learned"),
}

DERIVED = (
    "device",
    "num_train_frames",
    "temperature",
    "resume",
    "run_name",
    *("finetune_from", "finetune_skill", "finetune_critic"),
    *COEFFICIENTS,
)  # tested further down, resume in test_resume.py

# The unit that --help names, for each flag that counts something.
UNITS = {
    "action_repeat": "frames",
    "time_limit": "frames per episode",
    "frame_stack": "pictures",
    "image_size": "pixels",
    "image_pad": "pixels",
    "num_train_steps": "agent steps",
    "num_train_frames": "frames",
    "num_seed_steps": "agent steps",
    "num_train_iters": "updates per agent step",
    "replay_buffer_capacity": "transitions",
    "batch_size": "transitions",
    "discount": "agent step",
    "actor_update_frequency": "updates",
    "critic_target_update_frequency": "updates",
    "eval_frequency": "agent steps",
    "num_eval_episodes": "episodes",
    "checkpoint_frequency": "agent steps",
    "log_frequency_step": "agent steps",
}

DIAYN_COMMAND = (
    "--task dmc_walker_run --num_skills 10 --num_train_steps 1000000 --encoder_feature_dim 50 --lr 3e-4 "
    "--lr_discriminator 3e-4 --save_video True --log_save_tb True --time_limit 1000 --action_repeat 2 "
    "--framestack 3 --num_eval_episodes 1"
)
DRQ_COMMAND = (
    "--env cartpole_swingup --num_skills 0 --num_train_steps 100000 --encoder_feature_dim 50 --lr 1e-3 "
    "--save_video --log_save_tb"
)
HEAVY = ("torch", "dm_control", "mujoco", "numpy", "cv2", "gymnasium", "tensorboard")


def parse(line: str) -> Config:
    return parse_args(shlex.split(line))


def test_a_shell_completes_flags(tmp_path: Path) -> None:
    """As bash asks argcomplete: the words that fit what is on the line so far."""
    answer, line = tmp_path / "answer", "train.py --num_sk"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\n"}
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    subprocess.run([sys.executable, str(ROOT / "train.py")], env=environment, timeout=60)
    assert answer.read_text().split() == ["--num_skills"]


# -- flags and defaults ------------------------------------------------------------------------------------------------


def test_no_flag_is_forgotten() -> None:
    """The tables here know every flag there is."""
    assert {field.name for field in dataclasses.fields(Config)} == {*FLAGS, *DERIVED}


@pytest.mark.parametrize("name", FLAGS)
def test_default(name: str) -> None:
    assert getattr(parse(""), name) == FLAGS[name][0]


@pytest.mark.parametrize("name", FLAGS)
def test_value_given(name: str) -> None:
    _, text, expected = FLAGS[name]
    value = getattr(parse(f"--{name} {text}"), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize(
    ("text", "expected"), [("", True), ("True", True), ("true", True), ("false", False), ("False", False)]
)
def test_booleans(name: str, text: str, expected: bool) -> None:
    """`--save_video`, `--save_video True`, `--save_video false`; a bare one doesn't swallow the flag behind it."""
    config = parse(f"--{name} {text} --seed 7")
    assert getattr(config, name) is expected
    assert config.seed == 7


@pytest.mark.parametrize("bounds", ["-10 2", "-10.0 2.0", "-1e1 2"])
def test_negative_bounds(bounds: str) -> None:
    assert parse(f"--log_std_bounds {bounds}").log_std_bounds == (-10.0, 2.0)


@pytest.mark.parametrize(
    ("text", "expected"), [("1e6", 1_000_000), ("100_000", 100_000), ("9007199254740993", 9007199254740993)]
)
def test_whole_numbers(text: str, expected: int) -> None:
    """Also the way people write large ones, and without passing through a float's 53 bits."""
    assert parse(f"--seed {text}").seed == expected


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("--task walker_run", "env", "walker_run"),
        ("--framestack 5", "frame_stack", 5),
        ("--task dmc_walker_run", "env", "walker_run"),
        ("--env dmc_ball_in_cup_catch", "env", "ball_in_cup_catch"),
    ],
)
def test_aliases(line: str, name: str, expected: Any) -> None:
    """A leading dmc_ is accepted and doesn't go into folder names."""
    assert getattr(parse(line), name) == expected


# -- defaults that depend on other flags -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--num_skills 0", "learned"),
        ("--num_skills 3", "fixed"),
        ("--num_skills 0 --temperature auto", "learned"),
        ("--num_skills 3 --temperature auto", "fixed"),
        ("--num_skills 0 --temperature fixed", "fixed"),
        ("--num_skills 3 --temperature learned", "learned"),
    ],
)
def test_temperature(line: str, expected: str) -> None:
    assert parse(line).temperature == expected


@pytest.mark.parametrize(
    ("line", "extrinsic", "intrinsic"),
    [
        ("--num_skills 3", 0.0, 1.0),
        ("--num_skills 0", 1.0, 0.0),
        ("--num_skills 3 --extrinsic_reward_coeff 0.5", 0.5, 1.0),
        ("--num_skills 3 --extrinsic_reward_coeff 1 --diayn_intrinsic_reward_coeff 0", 1.0, 0.0),
        ("--num_skills 0 --extrinsic_reward_coeff 2", 2.0, 0.0),
    ],
)
def test_reward_coefficients(line: str, extrinsic: float, intrinsic: float) -> None:
    config = parse(line)
    assert (config.extrinsic_reward_coeff, config.diayn_intrinsic_reward_coeff) == (extrinsic, intrinsic)


@pytest.mark.parametrize(("line", "episodes"), [("", 1), ("--num_skills 0", 10), ("--num_eval_episodes 4", 4)])
def test_evaluation_episodes(line: str, episodes: int) -> None:
    """Ten skills with an episode each cost as much as DrQ's ten episodes."""
    assert parse(line).num_eval_episodes == episodes


@pytest.mark.parametrize(
    ("line", "steps", "frames"),
    [
        ("--num_train_steps 300 --action_repeat 8", 300, 2400),
        ("--num_train_frames 2400 --action_repeat 8", 300, 2400),
        ("--num_train_frames 100 --action_repeat 8", 12, 96),  # a budget is not exceeded
        ("--num_train_frames 500000 --benchmark planet --env cartpole_swingup", 62_500, 500_000),
    ],
)
def test_budget(line: str, steps: int, frames: int) -> None:
    config = parse(line)
    assert (config.num_train_steps, config.num_train_frames) == (steps, frames)


PLANET = {
    "finger_spin": 2,
    "cartpole_swingup": 8,
    "reacher_easy": 4,
    "cheetah_run": 4,
    "walker_walk": 2,
    "ball_in_cup_catch": 4,
}


@pytest.mark.parametrize("prefix", ["", "dmc_"])
@pytest.mark.parametrize("task", PLANET)
def test_planet(task: str, prefix: str) -> None:
    config = parse(f"--benchmark planet --task {prefix}{task}")
    assert (config.action_repeat, config.batch_size) == (PLANET[task], 512)


@pytest.mark.parametrize("task", [*PLANET, "humanoid_CMU_run"])
def test_dreamer(task: str) -> None:
    config = parse(f"--env {task} --benchmark dreamer")
    assert (config.action_repeat, config.batch_size) == (2, 512)


@pytest.mark.parametrize(
    ("line", "repeat", "batch_size"),
    [
        ("--benchmark planet --action_repeat 3", 3, 512),
        ("--batch_size 64 --benchmark planet", 8, 64),
        ("--action_repeat 4 --batch_size 128 --benchmark dreamer", 4, 128),  # also where they equal the defaults
        ("--benchmark planet --env humanoid_run --action_repeat 3", 3, 512),
    ],
)
def test_flags_beside_a_benchmark_win(line: str, repeat: int, batch_size: int) -> None:
    config = parse(line)
    assert (config.action_repeat, config.batch_size) == (repeat, batch_size)


def test_example_commands() -> None:
    diayn, drq = parse(DIAYN_COMMAND), parse(DRQ_COMMAND)
    assert (diayn.env, diayn.num_skills, diayn.num_train_steps, diayn.time_limit) == ("walker_run", 10, 10**6, 1000)
    assert (diayn.lr, diayn.lr_discriminator, diayn.encoder_feature_dim) == (3e-4, 3e-4, 50)
    assert (diayn.action_repeat, diayn.frame_stack, diayn.num_eval_episodes) == (2, 3, 1)
    assert diayn.save_video is diayn.log_save_tb is True
    assert (drq.env, drq.num_skills, drq.num_train_steps, drq.lr) == ("cartpole_swingup", 0, 100_000, 1e-3)
    assert drq.save_video is drq.log_save_tb is True


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    """What --help says of each flag, from a process that imported nothing heavy to say it."""
    script = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('train.py', run_name='__main__')\n"
        "finally:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    environment = {**os.environ, "COLUMNS": "500"}
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (child.returncode, child.stderr) == (0, "[]\n")
    entries = re.split(r"\n +--(?=\w)", child.stdout)[1:]
    return {entry.split()[0]: entry for entry in entries}


@pytest.mark.parametrize("name", [*FLAGS, *DERIVED])
def test_help_describes_flag(help_texts: dict[str, str], name: str) -> None:
    assert "(default: " in help_texts[name]


@pytest.mark.parametrize("name", UNITS)
def test_help_names_unit(help_texts: dict[str, str], name: str) -> None:
    described = help_texts[name].partition("(default")[0]
    assert re.search(rf"\b{UNITS[name]}\b", described)  # and not as a part of the flag's own name


def test_help_names_default_device(help_texts: dict[str, str]) -> None:
    assert re.search(r"\(default: cuda\b", help_texts["device"])


# -- what is refused ---------------------------------------------------------------------------------------------------


def assert_refused(line: str, capsys: pytest.CaptureFixture[str], *named: str) -> None:
    """Exit code 2, one line on stderr that holds every one of `named`, and nothing on stdout."""
    with pytest.raises(SystemExit) as stopped:
        parse(line)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    for words in named:
        assert re.search(rf"(?<!\w){re.escape(words)}(?!\w)", err), err


OUT_OF_RANGE = [*BELOW_RANGE.items(), *ABOVE_RANGE.items()]


@pytest.mark.parametrize(("name", "text"), OUT_OF_RANGE)
def test_out_of_range(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--{name} {text}", capsys, f"--{name}")


@pytest.mark.parametrize("text", ["1.5", "many", "nan", "inf", "''"])
@pytest.mark.parametrize("name", INTEGERS)
def test_no_integer(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--{name} {text}", capsys, f"--{name}")


@pytest.mark.parametrize("text", ["nan", "inf", "=-inf", "little"])
@pytest.mark.parametrize("name", FLOATS)
def test_no_finite_number(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--{name} {text}".replace(" =", "="), capsys, f"--{name}")


@pytest.mark.parametrize("bounds", ["2 -10", "2 2", "nan 2", "-10 inf", "-10", "low high"])
def test_bad_bounds(bounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--log_std_bounds {bounds}", capsys, "--log_std_bounds")


@pytest.mark.parametrize("name", CHOICES)
def test_wrong_choice(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--{name} nonsense", capsys, f"--{name}", "nonsense", *CHOICES[name])


@pytest.mark.parametrize("name", BOOLEANS)
def test_no_boolean(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--{name} maybe", capsys, f"--{name}", "maybe")


@pytest.mark.parametrize("name", ["env", "lr", "seed", "device", "work_dir", "temperature"])
def test_value_missing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(f"--{name}", capsys, f"--{name}")


@pytest.mark.parametrize(
    ("line", "unknown", "meant"),
    [
        ("--num_skils 3", "--num_skils", "--num_skills"),
        ("--encoder-feature-dim 50", "--encoder-feature-dim", "--encoder_feature_dim"),
        ("--lr_discriminater=1e-4", "--lr_discriminater", "--lr_discriminator"),
        ("--num_train_step 5", "--num_train_step", "--num_train_steps"),  # no silent abbreviation
    ],
)
def test_unknown_flag(line: str, unknown: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(line, capsys, unknown, f"did you mean {meant}?".removesuffix("?"))


@pytest.mark.parametrize("line", ["--xyzzy 3", "walker_run"])
def test_unknown_word(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(line, capsys, line.split()[0])


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--num_train_frames 100 --num_train_steps 25", ("--num_train_frames", "--num_train_steps")),
        ("--num_train_frames 7 --action_repeat 8", ("--num_train_frames", "--action_repeat")),
        ("--num_skills 0 --diayn_intrinsic_reward_coeff 1", ("--diayn_intrinsic_reward_coeff", "without skills")),
        ("--diayn_intrinsic_reward_coeff 0", ("--extrinsic_reward_coeff", "--diayn_intrinsic_reward_coeff")),
        ("--num_skills 0 --extrinsic_reward_coeff 0", ("--extrinsic_reward_coeff", "--num_skills")),
        ("--num_skills 1", ("--num_skills 1", "--extrinsic_reward_coeff")),
        ("--benchmark planet --env humanoid_run", ("--benchmark", "humanoid_run", "--action_repeat")),
    ],
)
def test_contradictions(line: str, named: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(line, capsys, *named)


# -- what another run's config.json decides ----------------------------------------------------------------------------


def stored(folder: Path, line: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"flags": vars(parse_args(shlex.split(line)))}))
    return folder


def test_what_a_resumed_run_may_change() -> None:
    """The tests of each flag follow the program's list, so it stands here once more."""
    budget = {"num_train_steps", "num_train_frames", "device", "deterministic", "cuda_graphs", "resume"}
    written = {"eval_frequency", "num_eval_episodes", "eval_workers", "log_frequency_step", "log_save_tb", "save_video"}
    assert budget | written | {"checkpoint_frequency", "save_replay_buffer", "notes"} == CHANGEABLE


def test_a_fine_tuned_runs_episodes_actions_and_policy_are_the_runs(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "--num_skills 4 --time_limit 400 --action_repeat 8 --log_std_bounds -5 1")
    for more in ([], ["--benchmark", "dreamer"]):
        tuned = parse_args(["--finetune_from", str(run), *more])
        assert (tuned.time_limit, tuned.action_repeat, tuned.log_std_bounds) == (400, 8, (-5.0, 1.0))
    assert tuned.batch_size == 512


def test_a_template_does_not_change_how_a_fine_tuned_run_acts(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", "--num_skills 4 --time_limit 400 --action_repeat 8 --env walker_walk")
    template = stored(tmp_path / "other", "--num_skills 0 --lr 0.25") / "config.json"
    tuned = parse_args(["--config", str(template), "--finetune_from", str(run)])
    assert (tuned.lr, tuned.env, tuned.action_repeat) == (0.25, "walker_walk", 8)


def test_a_benchmark_beside_a_template_sets_the_action_repeat(tmp_path: Path) -> None:
    template = stored(tmp_path, "--num_skills 0 --action_repeat 3 --batch_size 7") / "config.json"
    config = parse_args(["--config", str(template), "--benchmark", "planet"])
    assert (config.action_repeat, config.batch_size) == (8, 512)


def test_a_benchmarks_budget_is_in_frames(tmp_path: Path) -> None:
    """Its template means as many frames on a task with another action repeat; flags beside it win."""
    template = stored(tmp_path, "--benchmark planet --num_train_frames 500000 --num_skills 0") / "config.json"
    for line, frames in (
        ("", 500_000),
        ("--env walker_walk", 500_000),
        ("--num_train_steps 100 --env walker_walk", 200),
    ):
        config = parse_args(["--config", str(template), *shlex.split(line)])
        assert config.num_train_frames == frames
        assert config.num_train_steps == frames / config.action_repeat


def test_a_templates_device_is_its_own(tmp_path: Path) -> None:
    template = stored(tmp_path, "--device cpu --lr 0.25") / "config.json"
    assert (parse_args(["--config", str(template)]).device, parse_args(["--config", str(template)]).lr) == (None, 0.25)


def test_a_budget_in_frames_is_not_exceeded() -> None:
    assert parse_args(shlex.split("--num_train_frames 110 --action_repeat 8")).num_train_steps == 13
