"""Grids in which coverage is counted: on made-up positions, and in every domain of the suite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dmc import DMCEnv, suite_tasks
from envs.cells import GRIDS, CellGrid, Coordinate
from envs.renderer import RendererInfo
from errors import SimulationError


@functools.cache
def tasks() -> dict[str, str]:
    """Return a task of each domain."""
    return {domain: name for name, (domain, _) in suite_tasks().items()}


@pytest.fixture(autouse=True)
def drawn_once(renderer: RendererInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this needs pictures, which take most of the time."""
    monkeypatch.setattr(DMCEnv, "_draw", lambda self, height, width: np.zeros((height, width, 3), np.uint8))


def make(domain: str, **settings: Any) -> DMCEnv:
    env = DMCEnv(tasks()[domain], image_size=16, time_limit=100, **settings)
    env.reset(seed=1)
    return env


def test_cells_end_at_multiples_of_their_size() -> None:
    grid = CellGrid((Coordinate("x", "m", 0.5), Coordinate("y", "m", 2.0)), lambda physics: physics)
    positions = np.array([[0.0, 0.0], [0.49, 1.9], [0.5, 0.0], [-0.01, 0.0], [0.0, -0.01], [0.2, 0.1]])
    assert grid.cells(positions) == {(0, 0), (1, 0), (-1, 0), (0, -1)}


def test_an_angle_has_the_same_cell_after_a_turn() -> None:
    grid = CellGrid((Coordinate("angle", "rad", math.pi / 6, periodic=True),), lambda physics: physics)
    for angle in (-3.0, -0.1, 0.1, 3.1):
        turned = [grid.read([angle + 2 * math.pi * turns]) for turns in (-2, 0, 1)]
        np.testing.assert_allclose(turned, angle)
        assert len(grid.cells(np.array(turned))) == 1
    circle = np.array([grid.read([angle]) for angle in np.linspace(0, 20, 500)])
    assert len(grid.cells(circle)) == 12


def test_every_domain_but_one_has_a_grid() -> None:
    assert tasks().keys() - GRIDS.keys() == {"lqr"}
    assert make("lqr").measure().position.shape == (0,)


@pytest.mark.parametrize("domain", GRIDS)
def test_a_grid_fits_its_domain(domain: str) -> None:
    """Its coordinates are in the physics, and random actions change one of them at least."""
    env = make(domain)
    assert env.cell_grid is GRIDS[domain]
    positions = [env.measure().position]
    assert positions[0].shape == (len(GRIDS[domain].coordinates),)
    rng = np.random.default_rng(0)
    for _ in range(20):
        try:
            env.step(rng.uniform(-1, 1, env.action_space.shape or ()))
        except SimulationError:
            break
        positions.append(env.measure().position)
    assert np.ptp(positions, axis=0).max() > 1e-4
    assert GRIDS[domain].cells(np.array(positions))


def at(domain: str, **joints: float) -> set[tuple[int, ...]]:
    """Return the cell of a body with these joints."""
    env = make(domain)
    with env.physics.reset_context():
        for name, value in joints.items():
            env.physics.named.data.qpos[name] = value
    return GRIDS[domain].cells(env.measure().position[None])


CELLS: dict[str, Callable[[], set[tuple[int, ...]]]] = {
    "(4, 3)": lambda: at("cartpole", slider=0.9, hinge_1=math.radians(100)),
    "(-5, -4)": lambda: at("cartpole", slider=-0.9, hinge_1=math.radians(-100 - 360)),
    "(3,)": lambda: at("walker", rootx=3.4),
    "(-4,)": lambda: at("cheetah", rootx=-3.4),
    "(2, 2)": lambda: at("reacher", shoulder=0.0, wrist=math.radians(90)),
    "(-3, 4)": lambda: at("point_mass", root_x=-0.12, root_y=0.24),
    "(1, 0)": lambda: at("pendulum", hinge=math.radians(45)),
}


@pytest.mark.parametrize("cell", CELLS)
def test_the_cell_of_a_known_place(cell: str) -> None:
    assert str(*CELLS[cell]()) == cell
