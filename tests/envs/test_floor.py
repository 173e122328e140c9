"""The floor that shows where a body is."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from dmc import DMCEnv, suite_tasks
from envs.floor import floor_texture
from envs.tasks import WALKING


def picture(env: DMCEnv, axis: int, distance: float) -> np.ndarray:
    """Return a picture, float (H, W, 3), of the body at its start, moved by `distance` meters along x or y."""
    env.reset(seed=3)
    env.physics.data.qpos[axis] += distance
    env.physics.forward()
    return env.render(48, 48).astype(float)


AXES = {"walker": (1,), "hopper": (0,), "cheetah": (0,)}  # of the body's place in qpos: x of bodies in a plane


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("domain", WALKING)
@pytest.mark.slow
def test_places_look_different(domain: str) -> None:
    """A step of four meters, two periods of the suite's floor, shows with the colored floor only."""
    name = next(name for name, (of, _) in suite_tasks().items() if of == domain and name != "quadruped_escape")
    for axis in AXES.get(domain, (0, 1)):
        change = {}
        for floor in ("suite", "coloured"):
            with closing(DMCEnv(name, floor=floor)) as env:
                change[floor] = np.abs(picture(env, axis, 0.0) - picture(env, axis, 4.0)).mean()
        assert change["coloured"] > change["suite"] + 1


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("name", ["walker_walk", "hopper_hop"])
def test_colors_repeat_after_40_meters(name: str) -> None:
    with closing(DMCEnv(name, floor="coloured")) as env:
        (axis,) = AXES[name.split("_")[0]]
        first, half, whole = (picture(env, axis, distance) for distance in (0.0, 20.0, 40.0))
    assert np.abs(first - half).mean() > 10 * np.abs(first - whole).mean()


def test_the_texture_has_no_seam() -> None:
    """Its first row and column differ from the last ones no more than neighbors do, apart from the checkerboard."""
    texture = floor_texture(300, 300, 40.0).astype(int)
    for axis in (0, 1):
        lines = texture if axis == 0 else texture.swapaxes(0, 1)
        steps = [np.abs(lines[i] - lines[i - 1]).max() for i in range(300)]
        assert steps[0] <= max(steps[1:])
    assert len(np.unique(texture.reshape(-1, 3), axis=0)) > 1000
