"""config.json of another run: what a resumed run may change, what a fine-tuned run or a template takes from it, and
files that are damaged or crafted."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

import train
from config import TYPES, Config
from errors import UserError
from running.names import MANIFEST_FILE
from running.stored_config import CONFIG_FILE, RESUMABLE, checked_config
from tests.support.command_lines import command_lines, parsed
from tests.support.disk import checkpoint_files, copy_of, read_json, snapshot
from tests.support.flags import FLAGS
from tests.support.fuzz import fuzz
from tests.support.labs import FINISHED_STEPS
from tests.support.program import assert_refused, call, parse, resume

Template = Callable[[str], list[str]]

FIXED = [name for name in TYPES if name not in RESUMABLE]
OTHER_VALUES = {
    **{name: text for name, (_, text, _) in FLAGS.items()},
    "lr_discriminator": "5e-4",
    "temperature": "learned",
    "extrinsic_reward_coeff": "0.5",
    "diayn_intrinsic_reward_coeff": "0.5",
    "disdain_coeff": "0.5 --discriminator_ensemble 2",
    "num_train_frames": "400",
    "eval_frequency": "10",
    "finetune_from": "elsewhere",
    "finetune_skill": "1",
    "finetune_critic": "scratch",
    "finetune_snapshot": "0",
    "run_name": "another",
}


def store(folder: Path, config: Config) -> Path:
    """Write the config.json of a run with this Config; return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"flags": dataclasses.asdict(config)}))
    return folder


def differing(first: Config, second: Config) -> set[str]:
    return {name for name in TYPES if getattr(first, name) != getattr(second, name)}


# -- what a resumed run may change -------------------------------------------------------------------------------------


def test_what_a_resumed_run_may_change() -> None:
    """The tests below follow the program's table, so the list is spelled out here."""
    budget = {"num_train_steps", "num_train_frames", "device", "deterministic", "cuda_graphs", "resume"}
    written = {"eval_frequency", "num_eval_episodes", "eval_workers", "log_frequency_step", "log_save_tb", "save_video"}
    kept = {"checkpoint_frequency", "save_replay_buffer", "snapshot_frequency", "notes", "track"}
    assert budget | written | kept == RESUMABLE
    assert set(TYPES) - set(OTHER_VALUES) == {"device", "resume"}


@pytest.mark.parametrize("name", FIXED)
def test_refuses_a_change(finished: Path, name: str) -> None:
    before = snapshot(finished)
    for flag in {name, {"env": "task", "frame_stack": "framestack"}.get(name, name)}:
        answer = resume(finished, f"--{flag}", *OTHER_VALUES[name].split())
        assert_refused(answer, f"--{flag}")
        assert "differs" in answer.lines[0]
        assert len(answer.lines) == 1
    assert snapshot(finished) == before


@pytest.mark.parametrize("name", sorted(RESUMABLE - {"device", "resume"}))
def test_takes_a_change(finished: Path, name: str) -> None:
    before = parse(f"--resume {finished}")
    value = str(not getattr(before, name)) if TYPES[name] is bool else OTHER_VALUES[name]
    config = parse(f"--resume {finished} --{name} {value}")
    budget = {"num_train_steps", "num_train_frames"}
    assert differing(before, config) == (budget if name in budget else {name})


def test_the_tracker_of_a_run_that_stored_none(finished: Path) -> None:
    """A version stored null for it."""
    with copy_of(finished) as folder:
        record = read_json(folder / CONFIG_FILE)
        record["flags"]["track"] = None
        (folder / CONFIG_FILE).write_text(json.dumps(record))
        assert parse(f"--resume {folder}").track == "none"


def test_continues_with_the_changes(finished: Path) -> None:
    """config.json has them afterwards."""
    line = "--num_train_frames 160 --eval_frequency 10 --num_eval_episodes 2 --checkpoint_frequency 7 --deterministic "
    line += "--save_replay_buffer false --log_frequency_step 7 --cuda_graphs false --device cpu"
    with copy_of(finished) as folder:
        assert resume(folder, *shlex.split(line)) == (0, [])
        flags = read_json(folder / CONFIG_FILE)["flags"]
        given = parse(line)
        assert all(flags[name] == getattr(given, name) for name in ("num_eval_episodes", "eval_frequency", "device"))
        assert flags["num_train_steps"] == 40
        assert flags["resume"] is None
        states = {name for name in checkpoint_files(folder) if name.startswith("state")}
        assert checkpoint_files(folder) == {MANIFEST_FILE, *states}
        assert "0,100" not in (folder / "eval.csv").read_text()
        answer = resume(folder, "--num_train_steps", "45")
        assert answer.code == 0
        assert any("replay buffer" in line for line in answer.lines)


def test_takes_equal_values(finished: Path) -> None:
    """It does not matter how they are written."""
    before = parse(f"--resume {finished}")
    line = "--task dmc_cartpole_swingup --framestack 3 --lr 0.0010 --log_std_bounds -1e1 2 --seed 1e0"
    assert parse(f"--resume {finished} {line} --temperature auto") == before
    for name in FIXED:
        value = getattr(before, name)
        if value is not None:
            words = " ".join(map(str, value)) if isinstance(value, tuple) else value
            assert parse(f"--resume {finished} --{name} {words}") == before


@pytest.mark.parametrize("beside", ["", "--batch_size 64", "--action_repeat 3", "--batch_size 512 --action_repeat 8"])
def test_equal_through_a_benchmark(tmp_path: Path, beside: str) -> None:
    """A run with --benchmark planet is resumed with it, without it, and with the values that it stands for."""
    first = parse(f"--benchmark planet --task dmc_cartpole_swingup {beside}")
    store(tmp_path, first)
    spelled_out = f"--batch_size {first.batch_size} --action_repeat {first.action_repeat}"
    for line in ("", "--benchmark planet", spelled_out, f"--benchmark planet {beside} --env cartpole_swingup"):
        assert differing(first, parse(f"--resume {tmp_path} {line}")) == {"resume"}
    words = ["--resume", str(tmp_path), "--benchmark", "dreamer"]
    assert_refused(call(words, train.parse_args), "--benchmark dreamer")


def test_checkpoints_follow_the_evaluations(tmp_path: Path) -> None:
    """If there is a checkpoint at every evaluation, that stays so when a resumed run evaluates more often."""
    never = "--eval_frequency 0 --checkpoint_frequency 0"
    for line, expected in (("", 50), ("--checkpoint_frequency 0", 0), ("--eval_frequency 0", 50), (never, 0)):
        first = parse(f"--eval_frequency 100 {line}")
        store(tmp_path, first)
        assert parse(f"--resume {tmp_path} --eval_frequency 50").checkpoint_frequency == expected
        for unchanged in ("", "--eval_frequency 0"):
            resumed = parse(f"--resume {tmp_path} {unchanged}")
            assert resumed.checkpoint_frequency == first.checkpoint_frequency


def test_config_without_the_budget(finished: Path) -> None:
    """The budget of the command line is used."""
    with copy_of(finished) as folder:
        record = read_json(folder / CONFIG_FILE)
        del record["flags"]["num_train_steps"]
        (folder / CONFIG_FILE).write_text(json.dumps(record))
        assert resume(folder, "--num_train_frames", "120") == (0, [])
        assert read_json(folder / CONFIG_FILE)["flags"]["num_train_steps"] == 30


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.002), ("seed", 2), ("log_std_bounds", [-9, 2]), ("time_limit", 8)]
)
def test_config_edited_by_hand(finished: Path, name: str, value: Any) -> None:
    """It contradicts the checkpoint."""
    with copy_of(finished) as folder:
        set_flag(folder, name, value)
        before = snapshot(folder)
        answer = resume(folder)
        assert_refused(answer, f"--{name}")
        assert "checkpoint" in answer.lines[-1]
        assert snapshot(folder) == before


@fuzz(120)
@given(words=command_lines(most=2))
def test_any_command_line_beside_resume(finished: Path, words: list[str]) -> None:
    """It is refused in one line, or changes only what may change."""
    before = parse(f"--resume {finished}")
    config = parsed(["--resume", str(finished), *words])
    if config is not None:
        assert differing(before, config) <= RESUMABLE


# -- what decides beside a template or a source run --------------------------------------------------------------------


def test_a_fine_tuned_run_inherits_its_source(tmp_path: Path) -> None:
    """Episodes, actions and policy are the source's, also beside a benchmark."""
    run = store(tmp_path / "run", parse("--num_skills 4 --time_limit 400 --action_repeat 8 --log_std_bounds -5 1"))
    for more in ("", "--log_std_bounds -5 1", "--benchmark dreamer"):
        tuned = parse(f"--finetune_from {run} {more}")
        assert (tuned.time_limit, tuned.action_repeat, tuned.log_std_bounds) == (400, 8, (-5.0, 1.0))
    assert tuned.batch_size == 512


def test_a_template_does_not_change_how_a_fine_tuned_run_acts(tmp_path: Path) -> None:
    run = store(tmp_path / "run", parse("--num_skills 4 --time_limit 400 --action_repeat 8 --env walker_walk"))
    template = store(tmp_path / "other", parse("--num_skills 0 --lr 0.25")) / CONFIG_FILE
    tuned = parse(f"--config {template} --finetune_from {run}")
    assert (tuned.lr, tuned.env, tuned.action_repeat) == (0.25, "walker_walk", 8)


def test_a_benchmark_beside_a_template_sets_the_action_repeat(tmp_path: Path) -> None:
    template = store(tmp_path, parse("--num_skills 0 --action_repeat 3 --batch_size 7")) / CONFIG_FILE
    config = parse(f"--config {template} --benchmark planet")
    assert (config.action_repeat, config.batch_size) == (8, 512)


@pytest.mark.parametrize(
    ("line", "frames"),
    [("", 500_000), ("--env walker_walk", 500_000), ("--num_train_steps 100 --env walker_walk", 200)],
)
def test_the_budget_of_a_benchmark_is_in_frames(tmp_path: Path, line: str, frames: int) -> None:
    """Its template gives as many frames on a task with another action repeat; flags beside it win."""
    template = store(tmp_path, parse("--benchmark planet --num_train_frames 500000 --num_skills 0")) / CONFIG_FILE
    config = parse(f"--config {template} {line}")
    assert config.num_train_frames == frames
    assert config.num_train_steps == frames / config.action_repeat


def test_a_template_does_not_set_the_device(tmp_path: Path) -> None:
    template = store(tmp_path, parse("--device cpu --lr 0.25")) / CONFIG_FILE
    config = parse(f"--config {template}")
    assert (config.device, config.lr) == (None, 0.25)


# -- templates --------------------------------------------------------------------------------------------------------


@pytest.fixture
def template(tmp_path: Path) -> Template:
    """`template(flags)` writes the config.json of a run and returns the flag that names it."""

    def write(line: str) -> list[str]:
        folder = store(tmp_path / "template", parse(f"{line} --notes old"))
        return ["--config", str(folder / CONFIG_FILE)]

    return write


def test_a_template_gives_the_settings(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the run's name. Flags beside it win, and what follows from them is derived again."""
    file = str(pretrained / CONFIG_FILE)
    derived = train.parse_args(["--config", file, "--num_skills", "0", "--lr", "0.01"])
    assert (derived.extrinsic_reward_coeff, derived.temperature, derived.num_eval_episodes) == (1.0, "learned", 10)
    assert train.parse_args(["--config", file, "--benchmark", "planet"]).batch_size == 512
    config = train.parse_args(["--config", file])
    assert (config.hidden_dim, config.num_skills, config.num_train_steps) == (16, 4, 40)
    assert config.run_name is None
    assert train.parse_args(["--config", str(pretrained)]) == config
    assert train.parse_args(["--config", file, "--hidden_dim", "8", "--num_train_frames", "30"]).num_train_steps == 10
    assert train.parse_args(["--config", file, "--hidden_dim", "8"]).hidden_dim == 8
    for line in (["--config", "nowhere.json"], ["--config", file, "--resume", str(pretrained)]):
        with pytest.raises(SystemExit):
            train.parse_args(line)
        assert "--config" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("work_dir", ["a\0b", "\ud800"])
def test_a_template_with_an_impossible_folder(template: Template, work_dir: str) -> None:
    words = template("--num_skills 0")
    set_flag(Path(words[1]).parent, "work_dir", work_dir)
    assert_refused(call(words, train.parse_args), "--work_dir")


def test_without_skills_the_rewards_are_derived_again(template: Template) -> None:
    paid = template("--num_skills 5 --diayn_intrinsic_reward_coeff 2 --extrinsic_reward_coeff 0.5")
    config = train.parse_args([*paid, "--num_skills", "0"])
    assert (config.diayn_intrinsic_reward_coeff, config.extrinsic_reward_coeff, config.notes) == (0.0, 1.0, "")
    config = train.parse_args([*paid, "--num_skills", "6"])
    assert (config.diayn_intrinsic_reward_coeff, config.extrinsic_reward_coeff) == (2.0, 0.5)


def test_a_template_with_one_skill(template: Template) -> None:
    """Its reward is the task's, which no other flag implies."""
    alone = template("--num_skills 1 --extrinsic_reward_coeff 1 --lr 0.25")
    config = train.parse_args(alone)
    assert (config.num_skills, config.extrinsic_reward_coeff, config.lr) == (1, 1.0, 0.25)
    assert train.parse_args([*alone, "--extrinsic_reward_coeff", "2"]).extrinsic_reward_coeff == 2.0


@pytest.mark.parametrize(
    "line",
    ["--num_skills 0 --hidden_dim 32 --lr 0.25", "--num_skills 5 --diayn_intrinsic_reward_coeff 2 --lr 0.25"],
)
def test_a_fine_tuned_run_has_its_networks_from_its_source(template: Template, pretrained: Path, line: str) -> None:
    """The template's network flags and reward coefficients are ignored, not refused."""
    config = train.parse_args([*template(line), "--finetune_from", str(pretrained)])
    assert (config.num_skills, config.hidden_dim, config.lr) == (4, 16, 0.25)


def test_a_benchmark_is_applied_to_another_task(template: Template) -> None:
    """The action repeat is the new task's, unless the template's was given or the benchmark has none."""
    planet = template("--num_skills 0 --benchmark planet --env cartpole_swingup")
    config = train.parse_args([*planet, "--env", "walker_walk"])
    assert (config.preset, config.action_repeat, config.batch_size) == ("planet", 2, 512)
    assert train.parse_args(planet).action_repeat == 8
    given = template("--num_skills 0 --benchmark planet --env cartpole_swingup --action_repeat 5 --batch_size 64")
    config = train.parse_args([*given, "--env", "walker_walk"])
    assert (config.action_repeat, config.batch_size) == (5, 64)
    other = template("--num_skills 0 --benchmark planet --env hopper_hop --action_repeat 3")
    assert train.parse_args(other).action_repeat == 3


# -- damaged files -----------------------------------------------------------------------------------------------------


def edited(text: str, name: str, value: str) -> str:
    """Return the text of a config.json with another value of one flag."""
    return re.sub(rf'(?m)^( +"{name}": ).*?(,?)$', rf"\g<1>{value}\g<2>", text, count=1)


def set_flag(folder: Path, name: str, value: Any) -> None:
    record = read_json(folder / CONFIG_FILE)
    record["flags"][name] = value
    (folder / CONFIG_FILE).write_text(json.dumps(record))


BAD_CONFIGS: dict[str, Callable[[str], str | None]] = {
    "empty": lambda text: "",
    "one byte": lambda text: text[:1],
    "half": lambda text: text[: len(text) // 2],
    "without its end": lambda text: text[:-2],
    "missing": lambda text: None,
    "no JSON": lambda text: "flags: 3\n",
    "deep": lambda text: "[" * 10**5,
    "a list": lambda text: "[]",
    "a number": lambda text: "3",
    "null": lambda text: "null",
    "no flags": lambda text: "{}",
    "a list of flags": lambda text: '{"flags": []}',
    "no flags but null": lambda text: '{"flags": null}',
    "an unknown flag": lambda text: text.replace('"lr":', '"xyzzy": 3,\n    "lr":', 1),
    "a flipped flag": lambda text: text.replace('"hidden_dim"', '"hidden_din"', 1),
    "a flipped digit": lambda text: edited(text, "discount", "0.98"),
    "a flipped letter": lambda text: edited(text, "env", '"cartpole_swinguq"'),
    "a flipped quote": lambda text: edited(text, "augmentation", '"shift'),
    "another number": lambda text: edited(text, "hidden_dim", "17"),
    "out of range": lambda text: edited(text, "critic_tau", "1.5"),
    "infinite": lambda text: edited(text, "lr", "Infinity"),
    "no number": lambda text: edited(text, "lr", "NaN"),
    "no whole number": lambda text: edited(text, "seed", "1.0"),
}
NAMED = {
    "an unknown flag": "xyzzy",
    "a flipped flag": "hidden_din",
    "a flipped digit": "--discount",
    "a flipped letter": "--env",
    "another number": "--hidden_dim",
    "out of range": "--critic_tau",
    "infinite": "--lr",
    "no number": "--lr",
    "no whole number": "seed",
}


@pytest.mark.parametrize("damage", BAD_CONFIGS)
def test_damaged_config(finished: Path, damage: str) -> None:
    """One line names the flag or the file, and nothing is changed."""
    with copy_of(finished) as folder:
        path = folder / CONFIG_FILE
        text = BAD_CONFIGS[damage](path.read_text())
        assert text != path.read_text()
        path.unlink() if text is None else path.write_text(text)
        before = snapshot(folder)
        assert_refused(resume(folder), NAMED.get(damage, CONFIG_FILE))
        assert snapshot(folder) == before


@pytest.mark.parametrize("name", TYPES)
def test_flag_of_a_wrong_type(finished: Path, name: str) -> None:
    with copy_of(finished) as folder:
        values: list[Any] = [{}, [], [1], [1, 2, 3], ["a", "b"], 3 if TYPES[name] is str else "text"]
        for value in values:
            set_flag(folder, name, value)
            before = snapshot(folder)
            assert_refused(resume(folder), CONFIG_FILE, name)
            assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["env", "lr", "num_train_steps", "seed"])
def test_deeply_nested_flag(finished: Path, name: str) -> None:
    with copy_of(finished) as folder:
        text = (folder / CONFIG_FILE).read_text()
        for depth in (10, *range(100, 1100, 50)):
            (folder / CONFIG_FILE).write_text(edited(text, name, "[" * depth + "]" * depth))
            assert_refused(resume(folder), CONFIG_FILE)


# -- crafted files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["versions", "resumed"])
@pytest.mark.parametrize("value", [None, 3, [], {}, "text", [[]], {"torch": []}])
def test_rest_of_the_config(finished: Path, name: str, value: Any) -> None:
    """What is not needed to resume does not prevent it."""
    with copy_of(finished) as folder:
        record = read_json(folder / CONFIG_FILE) | {name: value}
        (folder / CONFIG_FILE).write_text(json.dumps(record))
        assert resume(folder).code == 0
        assert read_json(folder / CONFIG_FILE)["resumed"][-1]["frame"] == 4 * FINISHED_STEPS


def test_a_folder_of_runs_names_its_runs(tmp_path: Path) -> None:
    for number in range(7):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / CONFIG_FILE).write_text("{}")
    refused = call(["--resume", str(tmp_path)], train.parse_args)
    assert_refused(refused, "--resume", str(tmp_path / "run6"), "or 2 more")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("action_repeat", 0), ("action_repeat", -4), ("image_size", 10**30), ("lr", math.nan), ("env", 3), ("seed", None)],
)
def test_stored_flags_are_checked_as_given_ones(flag: str, value: Any) -> None:
    flags = {**dataclasses.asdict(parse("")), flag: value}
    with pytest.raises(UserError, match=f"^state_1.pt is damaged: .*{flag}"):
        checked_config(flags, "state_1.pt")
    assert checked_config(dataclasses.asdict(parse("--lr 0.5")), "state_1.pt") == parse("--lr 0.5")
