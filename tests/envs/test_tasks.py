"""Names of tasks, as the source of dm_control.suite has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmc import suite_tasks
from envs import tasks
from envs.make import KINDS
from envs.tasks import PREFIXES, check_task, registered_tasks, without_own_limit
from errors import UserError
from tests.support.program import parse


@pytest.mark.usefixtures("renderer")  # before dm_control is imported
def test_the_source_has_the_tasks_that_the_suite_registers() -> None:
    assert registered_tasks() == suite_tasks()


def test_every_kind_of_environment_has_its_prefix() -> None:
    assert set(PREFIXES) == set(KINDS)


def test_a_suite_that_registers_otherwise_refuses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment itself then says whether there is such a task."""
    config = parse("--env walker_wlak")
    with pytest.raises(UserError, match="walker_walk"):
        check_task(config)
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    check_task(config)


def test_a_name_that_gymnasium_does_not_know() -> None:
    with pytest.raises(UserError, match=r"^--env: gymnasium cannot make 'Pendulm-v1': .* Did you mean: `Pendulum`\?$"):
        check_task(parse("--env gym:Pendulm-v1"))
    check_task(parse("--env gym:Pendulum-v1"))
    check_task(parse("--env gym:no_such_module:Pendulm-v1"))  # the environment itself says so


def test_a_prefix_without_a_name() -> None:
    with pytest.raises(UserError, match=r"^--env gym: names no environment; give gym:ID"):
        check_task(parse("--env gym:"))


@pytest.mark.parametrize(
    ("env", "limit", "expected"),
    [
        ("walker_walk", 1000, None),
        ("dmc_walker_walk", 1000, None),
        ("walker_walk", 999, 999),
        ("walker_walk", None, None),
        ("gym:Pendulum-v1", 1000, 1000),
        ("lqr_lqr_2_1", 1000, 1000),
    ],
)
def test_a_time_limit_that_is_the_tasks_own(env: str, limit: int | None, expected: int | None) -> None:
    assert without_own_limit({"env": env, "time_limit": limit, "lr": 1.0}) == {
        "env": env,
        "time_limit": expected,
        "lr": 1.0,
    }
