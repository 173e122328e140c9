"""Grids over named coordinates of a task, in which the states that skills visit are counted.

Walking bodies have cells of 1 m, as in METRA (Park, Rybkin, Levine; ICLR 2024, https://arxiv.org/abs/2310.08887). For
other bodies the cells are a choice of this program: a fraction of what the body can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ANGLE = math.pi / 6  # radians: twelve cells


@dataclass(frozen=True)
class Coordinate:
    """A coordinate, and the size of a cell along it. A cell ends at each multiple of the size."""

    name: str
    unit: str
    cell: float
    periodic: bool = False  # an angle; it is read as -pi to pi


@dataclass(frozen=True)
class CellGrid:
    """A grid over coordinates that `read` finds in dm_control's physics."""

    coordinates: tuple[Coordinate, ...]
    find: Callable[[Any], Any]
    is_plane: bool = False  # whether the coordinates are a place in a plane

    def read(self, physics: Any) -> np.ndarray:
        """Return the coordinates, float64 `(C,)`."""
        values = np.array(self.find(physics), np.float64).ravel()
        periodic = [coordinate.periodic for coordinate in self.coordinates]
        return np.where(periodic, (values + math.pi) % (2 * math.pi) - math.pi, values)

    def cells(self, positions: np.ndarray) -> set[tuple[int, ...]]:
        """Return the cells in which positions `(N, C)` lie."""
        sizes = [coordinate.cell for coordinate in self.coordinates]
        return set(map(tuple, np.unique(np.floor(positions / sizes).astype(int), axis=0).tolist()))


def _place(kind: str, name: str, axes: str, size: float, what: str) -> CellGrid:
    """Return a grid over the place of a body, geom or site (`kind`: the name of its array) along some axes."""
    coordinates = tuple(Coordinate(f"{what} {axis}", "m", size) for axis in axes)
    return CellGrid(coordinates, lambda physics: getattr(physics.named.data, kind)[name, list(axes)], len(axes) == 2)


def _joints(*joints: tuple[str, Coordinate]) -> CellGrid:
    """Return a grid over the positions of joints."""
    coordinates = tuple(coordinate for _, coordinate in joints)
    return CellGrid(coordinates, lambda physics: [physics.named.data.qpos[name] for name, _ in joints])


def _angle(name: str) -> Coordinate:
    return Coordinate(name, "rad", ANGLE, periodic=True)


_ALONG_A_LINE = _place("xpos", "torso", "x", 1.0, "torso")
_ON_A_FLOOR = _place("xpos", "torso", "xy", 1.0, "torso")
_HAND = _place("site_xpos", "grasp", "xz", 0.1, "hand")

GRIDS: dict[str, CellGrid] = {  # by domain of the suite
    "acrobot": _joints(("shoulder", _angle("shoulder angle")), ("elbow", _angle("elbow angle"))),
    "ball_in_cup": _place("xpos", "ball", "xz", 0.05, "ball"),
    "cartpole": _joints(("slider", Coordinate("cart position", "m", 0.2)), ("hinge_1", _angle("pole angle"))),
    "cheetah": _ALONG_A_LINE,
    "dog": _ON_A_FLOOR,
    "finger": _place("geom_xpos", "fingertip", "xz", 0.05, "fingertip"),
    "fish": _place("xpos", "torso", "xy", 0.1, "torso"),
    "hopper": _ALONG_A_LINE,
    "humanoid": _ON_A_FLOOR,
    "humanoid_CMU": _place("xpos", "root", "xy", 1.0, "root"),
    "manipulator": _HAND,
    "pendulum": CellGrid(
        (_angle("pole angle"), Coordinate("angular velocity", "rad/s", 1.0)),
        lambda physics: [physics.named.data.qpos["hinge"], physics.named.data.qvel["hinge"]],
    ),
    "point_mass": _place("geom_xpos", "pointmass", "xy", 0.05, "mass"),
    "quadruped": _ON_A_FLOOR,
    "reacher": _place("geom_xpos", "finger", "xy", 0.05, "finger"),
    "stacker": _HAND,
    "swimmer": _place("xpos", "head", "xy", 0.1, "head"),
    "walker": _ALONG_A_LINE,
}
