"""--preset: what each one sets, alone, combined, and beside other flags and runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from config import FIELDS
from running import presets
from running.derivation import make_config, preset_settings
from running.presets import BENCHMARKS, COMBINATIONS, PRESETS, names_in
from running.stored_config import CONFIG_FILE, checked_config, known_flags
from tests.support.program import parse

SKILLS = PRESETS["skills"]
UNKNOWN_TASKS = ("humanoid_CMU_run", "gym:Pendulum-v1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a run with skills."""
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"flags": dataclasses.asdict(parse("--num_skills 4"))}))
    return tmp_path


def test_every_preset_sets_flags_to_values_they_can_have() -> None:
    for name, settings in PRESETS.items():
        assert set(settings) <= set(FIELDS) - {"preset", "env", "num_skills"}
        make_config(settings)
        assert names_in(name) == (name,)
    assert names_in(None) == ()


@pytest.mark.parametrize("env", ["cartpole_swingup", *UNKNOWN_TASKS])
def test_skills_need_no_known_task(env: str) -> None:
    config = make_config({"preset": "skills", "env": env})
    expected = dataclasses.asdict(make_config({**SKILLS, "env": env})) | {"preset": "skills"}
    assert dataclasses.asdict(config) == expected


def test_a_flag_beside_the_preset_wins() -> None:
    config = parse("--preset skills --skill_sampling uniform --lr 3e-4")
    assert config.skill_sampling == "uniform"
    assert config.lr_discriminator == SKILLS["lr_discriminator"]


@pytest.mark.parametrize("preset", COMBINATIONS)
def test_two_presets(preset: str) -> None:
    benchmark, _, skills = preset.partition("+")
    assert benchmark in BENCHMARKS
    both = preset_settings({"preset": benchmark}) | preset_settings({"preset": skills})
    assert preset_settings({"preset": preset}) == both
    assert both.keys() == {"batch_size", "action_repeat", *SKILLS}


@pytest.mark.parametrize("line", ["--num_skills 0", "--finetune_from {source}"])
def test_without_skills_their_preset_sets_nothing(source: Path, line: str) -> None:
    """Plain DrQ stays plain, and so does a single skill that is trained on the task."""
    line = line.format(source=source)
    changed = dataclasses.asdict(parse(f"{line} --preset skills")) | {"preset": None}
    assert changed == dataclasses.asdict(parse(line))


@pytest.mark.parametrize("flag", ["--preset", "--benchmark"])
def test_the_former_name_is_an_alias(flag: str) -> None:
    assert parse(f"{flag} planet") == make_config({"preset": "planet"})


def stored(folder: Path, line: str, **changes: Any) -> dict[str, Any]:
    """Write the config.json of a run with these flags and changes, where ... leaves a flag out; return its flags."""
    flags = {**dataclasses.asdict(parse(line)), **changes}
    flags = {name: value for name, value in flags.items() if value is not ...}
    (folder / CONFIG_FILE).write_text(json.dumps({"flags": flags}))
    return flags


def test_a_run_of_before_the_new_name(tmp_path: Path) -> None:
    """It is resumed, also with the flag repeated, can be evaluated, and can be a template."""
    flags = stored(tmp_path, "--preset planet --env walker_walk", preset=..., benchmark="planet")
    for line in ("", "--benchmark planet", "--preset planet"):
        config = parse(f"--resume {tmp_path} {line}")
        assert (config.preset, config.batch_size, config.action_repeat) == ("planet", 512, 2)
    assert checked_config(flags, "a checkpoint").preset == known_flags(tmp_path / CONFIG_FILE)["preset"] == "planet"
    config = parse(f"--config {tmp_path / CONFIG_FILE} --env cheetah_run")
    assert (config.preset, config.batch_size, config.action_repeat) == ("planet", 512, 4)


def test_a_resumed_run_keeps_what_its_preset_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the preset has other values now, or sets a flag that did not exist then."""
    flags = stored(tmp_path, "--preset planet+skills", intrinsic_reward_from=...)
    now = {"lr_discriminator": 0.5, "discount": 0.5, "intrinsic_reward_from": "before"}
    monkeypatch.setitem(presets.PRESETS, "skills", now)
    assert parse("--preset skills").discount == 0.5
    config = dataclasses.asdict(parse(f"--resume {tmp_path}"))
    assert {name: config[name] for name in flags if name not in ("resume", "log_std_bounds")} == {
        name: value for name, value in flags.items() if name not in ("resume", "log_std_bounds")
    }
    assert config["intrinsic_reward_from"] == "after"


def test_a_preset_beside_a_template_replaces_its_settings(tmp_path: Path) -> None:
    stored(tmp_path, "--lr_discriminator 0.5 --critic_target_update_frequency 7 --hidden_dim 9")
    config = parse(f"--config {tmp_path / CONFIG_FILE} --preset skills --lr_discriminator 0.25")
    assert (config.skill_sampling, config.critic_target_update_frequency) == ("stratified", 1)
    assert (config.lr_discriminator, config.hidden_dim) == (0.25, 9)
