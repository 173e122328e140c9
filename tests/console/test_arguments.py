"""The command line: how flags are written, what --help says, and what is refused in one line."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import benchmark
import evaluate
import plot
import report
import sweep
import train
from console.arguments import Parser, add_flags, boolean, integer
from errors import one_line
from tests.support.flags import (
    ABOVE_RANGE,
    BELOW_RANGE,
    BOOLEANS,
    CHOICES,
    DERIVED,
    DIAYN_COMMAND,
    DRQ_COMMAND,
    FLAGS,
    FLOATS,
    INTEGERS,
)
from tests.support.paths import ROOT
from tests.support.program import assert_names, parse

HEAVY = ("torch", "dm_control", "mujoco", "numpy", "cv2", "gymnasium", "tensorboard")
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
    "agent_steps_per_update": "agent steps between updates",
    "discriminator_window": "transitions",
    "num_train_iters": "updates per agent step",
    "replay_buffer_capacity": "transitions",
    "batch_size": "transitions",
    "discount": "agent step",
    "actor_update_frequency": "updates",
    "critic_target_update_frequency": "updates",
    "eval_frequency": "agent steps",
    "num_eval_episodes": "episodes",
    "checkpoint_frequency": "agent steps",
    "snapshot_frequency": "agent steps",
    "log_frequency_step": "agent steps",
}


# -- values ------------------------------------------------------------------------------------------------------------


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
    """`--save_video`, `--save_video True` and `--save_video false`; a bare one does not take the next flag's place."""
    config = parse(f"--{name} {text} --seed 7")
    assert getattr(config, name) is expected
    assert config.seed == 7


@pytest.mark.parametrize(
    ("words", "expected"), [(("true", "YES", "1", "on"), True), (("false", "No", "0", "OFF"), False)]
)
def test_words_of_a_boolean(words: tuple[str, ...], expected: bool) -> None:
    assert {boolean(word) for word in words} == {expected}


@pytest.mark.parametrize("bounds", ["-10 2", "-10.0 2.0", "-1e1 2"])
def test_negative_bounds(bounds: str) -> None:
    assert parse(f"--log_std_bounds {bounds}").log_std_bounds == (-10.0, 2.0)


@pytest.mark.parametrize(
    ("text", "expected"), [("1e6", 1_000_000), ("100_000", 100_000), ("9007199254740993", 9007199254740993)]
)
def test_whole_numbers(text: str, expected: int) -> None:
    """Also with an exponent, and without passing through a float of 53 bits."""
    assert parse(f"--seed {text}").seed == integer(text) == expected


@pytest.mark.parametrize("text", ["1.5", "many", "nan", "inf", "", "1e400", "0x10"])
def test_not_a_whole_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number"):
        integer(text)


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
    assert getattr(parse(line), name) == expected


def test_example_commands() -> None:
    diayn, drq = parse(DIAYN_COMMAND), parse(DRQ_COMMAND)
    assert (diayn.env, diayn.num_skills, diayn.num_train_steps, diayn.time_limit) == ("walker_run", 10, 10**6, 1000)
    assert (diayn.lr, diayn.lr_discriminator, diayn.encoder_feature_dim) == (3e-4, 3e-4, 50)
    assert (diayn.action_repeat, diayn.frame_stack, diayn.num_eval_episodes) == (2, 3, 1)
    assert diayn.save_video is diayn.log_save_tb is True
    assert (drq.env, drq.num_skills, drq.num_train_steps, drq.lr) == ("cartpole_swingup", 0, 100_000, 1e-3)
    assert drq.save_video is drq.log_save_tb is True


def test_only_the_flags_that_are_given() -> None:
    parser = Parser()
    add_flags(parser)
    assert vars(parser.parse_args([])) == {}
    given = vars(parser.parse_args(shlex.split("--lr 0.5 --save_video --config a/b.json")))
    assert given == {"lr": 0.5, "save_video": True, "config": Path("a/b.json")}


def test_several_values() -> None:
    """As sweep.py takes them; a switch may have none."""
    parser = Parser()
    add_flags(parser, several=True, without=("resume",))
    line = "--seed 1 2e0 --save_video --env walker_walk walker_run"
    given = {"seed": [1, 2], "save_video": [], "env": ["walker_walk", "walker_run"]}
    assert vars(parser.parse_args(shlex.split(line))) == given
    with pytest.raises(SystemExit):
        parser.parse_args(["--resume", "x"])


# -- help and completion -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    """What --help says of each flag, from a process that imports nothing heavy to answer it."""
    script = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try:\n"
        "    runpy.run_path('train.py', run_name='__main__')\n"
        "finally:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    environment = {**os.environ, "COLUMNS": "500", "NO_COLOR": "1"}
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "[]\n")
    entries = re.split(r"\n +--(?=\w)", child.stdout)[1:]
    # Up to Python 3.12 an entry starts with `env NAME, --task NAME`, later with `env, --task NAME`.
    return {re.split(r"\W", entry, maxsplit=1)[0]: entry for entry in entries}


@pytest.mark.parametrize("name", [*FLAGS, *DERIVED])
def test_help_describes_flag(help_texts: dict[str, str], name: str) -> None:
    assert "(default: " in help_texts[name]


@pytest.mark.parametrize("name", UNITS)
def test_help_names_unit(help_texts: dict[str, str], name: str) -> None:
    """In the description, not only in the flag's name."""
    described = help_texts[name].partition("(default")[0]
    assert re.search(rf"\b{UNITS[name]}\b", described)


def test_help_names_default_device(help_texts: dict[str, str]) -> None:
    assert re.search(r"\(default: cuda\b", help_texts["device"])


def test_a_shell_completes_flags(tmp_path: Path) -> None:
    """As bash asks argcomplete: the words that fit what has been typed."""
    answer, line = tmp_path / "answer", "train.py --num_sk"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\n"}
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    subprocess.run([sys.executable, str(ROOT / "train.py")], env=environment)
    assert answer.read_text().split() == ["--num_skills"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def assert_refused(line: str, capsys: pytest.CaptureFixture[str], *named: str) -> None:
    """Check for exit code 2 and one line on stderr that holds each of `named` as a word, and no other output."""
    with pytest.raises(SystemExit) as stopped:
        parse(line)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert_names(err, *named)


@pytest.mark.parametrize(("name", "text"), [*BELOW_RANGE.items(), *ABOVE_RANGE.items()])
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
        ("--steps 5", "--steps", "--num_train_steps"),
        ("--gpu 0", "--gpu", "--device"),
    ],
)
def test_unknown_flag(line: str, unknown: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(line, capsys, unknown, f"did you mean {meant}")


@pytest.mark.parametrize("line", ["--xyzzy 3", "walker_run", "--n_envs 4", "xyzzy=3"])
def test_unknown_word(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(line, capsys, line.split()[0], "see --help")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--num_train_frames 100 --num_train_steps 25", ("--num_train_frames", "--num_train_steps")),
        ("--num_skills 1", ("--num_skills 1", "--extrinsic_reward_coeff")),
        ("--config a.json --resume b", ("--config", "--resume")),
    ],
)
def test_contradictions(line: str, named: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """config.py refuses them; the command line shows the message in the same way."""
    assert_refused(line, capsys, *named)


@pytest.mark.parametrize("name", [*FLAGS, "task", "resume", "config"])
def test_two_dashes_are_not_a_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse would hand out an empty list as the value."""
    assert_refused(f"--{name}=--", capsys, f"--{name}", "not a value")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--total_timesteps 5", "--num_train_frames"),
        ("--learning_rate=3e-4", "--lr"),
        ("--gamma 0.9", "--discount"),
        ("--num-skills 3", "--num_skills"),
        ("--env-id walker_walk", "--env"),
        ("task=walker_run", "--task VALUE"),
        ("agent.lr=3e-4", "--lr VALUE"),
        ("+seed=3", "--seed VALUE"),
        ("++agent.lr=3e-4", "--lr VALUE"),
        ("--num_seed_frames 4000", "--num_seed_steps"),
    ],
)
def test_flags_of_other_programs_are_translated(word: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(word, capsys, meant)


@pytest.mark.parametrize("value", ["x" * 5000, "ab " * 1700, "--" + "x" * 5000])
@pytest.mark.parametrize("flag", ["seed", "temperature", "device", "run_name", "resume", "config", "finetune_from", ""])
def test_a_long_value_is_shortened(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.parse_args([f"--{flag}={value}" if flag else value])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < (3500 if " " in value else 700)


def test_punctuation_behind_a_shortened_word_stays() -> None:
    assert one_line(f"no task '{'a' * 500}'; name one") == f"no task '{'a' * 149}[...]'; name one"
    assert one_line(f"{'/a' * 400}: File name too long") == f"{'/a' * 75}[...]: File name too long"
    assert one_line("x" * 299) == "x" * 299


PROGRAMS = ("train.py", "evaluate.py", "plot.py", "report.py", "sweep.py", "benchmark.py", "dmc.py")


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_docstrings(program: str) -> None:
    """Python that is run with -OO removes them; the programs take their descriptions from them."""
    command = [sys.executable, "-OO", str(ROOT / program), "some_run", "--xyzzy"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 2
    assert child.stderr.count("\n") == 1
    assert child.stderr.startswith(f"{program}: error: ")


def test_a_working_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def gone() -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    assert_refused("--seed 1", capsys, "the working folder cannot be used", "change to one that exists")


@pytest.mark.parametrize(
    "program", [train, evaluate, plot, report, sweep, benchmark], ids=lambda program: program.__name__
)
def test_every_help_reads_well(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """No empty or internal default, and no flag whose value is shown as its own name."""
    with pytest.raises(SystemExit) as stopped:
        program.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"\(default:\s*(None|\[.*)?\)", text)
    for name, value in re.findall(r"--(\w+) ([A-Z_]+)\b", text):
        assert value != name.upper(), f"--{name} {value}"
