"""Configurations that start from another run's config.json: --config as a template."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from train import parse_args

Template = Callable[[str], list[str]]


@pytest.fixture
def template(tmp_path: Path) -> Template:
    """`template(flags)` writes the config.json of a run and returns the flag that names it."""

    def write(line: str) -> list[str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"flags": vars(parse_args(shlex.split(f"{line} --notes old")))}))
        return ["--config", str(path)]

    return write


def test_a_template_gives_the_settings(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the run's name. Flags beside it win, and what follows from them is derived again."""
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


def test_without_skills_the_rewards_are_derived_again(template: Template) -> None:
    paid = template("--num_skills 5 --diayn_intrinsic_reward_coeff 2 --extrinsic_reward_coeff 0.5")
    config = parse_args([*paid, "--num_skills", "0"])
    assert (config.diayn_intrinsic_reward_coeff, config.extrinsic_reward_coeff, config.notes) == (0.0, 1.0, "")
    config = parse_args([*paid, "--num_skills", "6"])
    assert (config.diayn_intrinsic_reward_coeff, config.extrinsic_reward_coeff) == (2.0, 0.5)


@pytest.mark.parametrize(
    "line",
    ["--num_skills 0 --hidden_dim 32 --lr 0.25", "--num_skills 5 --diayn_intrinsic_reward_coeff 2 --lr 0.25"],
)
def test_a_fine_tuned_run_has_its_networks_from_its_source(template: Template, pretrained: Path, line: str) -> None:
    """The template's network flags and reward coefficients are ignored, not refused."""
    config = parse_args([*template(line), "--finetune_from", str(pretrained)])
    assert (config.num_skills, config.hidden_dim, config.lr) == (4, 16, 0.25)


def test_a_benchmark_is_applied_to_another_task(template: Template) -> None:
    """The action repeat is the new task's, unless the template's was given or the benchmark has none."""
    planet = template("--num_skills 0 --benchmark planet --env cartpole_swingup")
    config = parse_args([*planet, "--env", "walker_walk"])
    assert (config.benchmark, config.action_repeat, config.batch_size) == ("planet", 2, 512)
    assert parse_args(planet).action_repeat == 8
    given = template("--num_skills 0 --benchmark planet --env cartpole_swingup --action_repeat 5 --batch_size 64")
    config = parse_args([*given, "--env", "walker_walk"])
    assert (config.action_repeat, config.batch_size) == (5, 64)
    other = template("--num_skills 0 --benchmark planet --env hopper_hop --action_repeat 3")
    assert parse_args(other).action_repeat == 3
