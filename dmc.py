"""DeepMind Control Suite tasks as pixels.

`python dmc.py` checks that a renderer works on this machine and says what to install if none does;
`python dmc.py --tasks` lists the tasks.

dm_control binds its renderer when it is first imported. This module imports it on first use, so that
`envs.renderer.choose_renderer` only has to be called before the first environment is made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dm_control.rl.control import PhysicsError

from console.arguments import Parser
from console.streams import tolerant_output
from envs.cells import GRIDS
from envs.floor import color_floor
from envs.pixel_env import Measurement, PixelEnv
from envs.renderer import choose_renderer, do_without_renderer
from envs.tasks import check_floor, look_up
from errors import RenderingError, SimulationError

UNBOUNDED = 1e10  # mujoco.mjMAXVAL: dm_control's bound of an actuator without limits


def resolve_task(name: str) -> tuple[str, str]:
    """Return the suite's (domain, task) for a name, from the suite's own list; see `look_up`. Raises TaskError."""
    return look_up(name, suite_tasks())


def suite_tasks() -> dict[str, tuple[str, str]]:
    """Return (domain, task) of every task of the suite, by the name that `--env` takes."""
    from dm_control import suite

    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


class DMCEnv(PixelEnv):
    """A task of dm_control.suite as stacked pixels. An episode really ends when dm_control's discount is 0.

    Args:
        name: the task; see `resolve_task`.
        time_limit: frames (control steps) per episode; None keeps the task's own limit.
        floor: "coloured" replaces the floor of a walking body by one whose color shows where it is (`envs.floor`).
        camera: index of the model's camera; None selects 0, or 2 for quadruped (the camera that follows it).
        pixels: image_size, frame_stack and action_repeat; see `PixelEnv`.

    Raises:
        TaskError: there is no such task, or it has no such floor.
    """

    def __init__(
        self,
        name: str,
        *,
        time_limit: int | None = None,
        floor: str = "suite",
        camera: int | None = None,
        **pixels: int,
    ) -> None:
        from dm_control import mujoco, suite

        self._new_camera = mujoco.Camera
        domain, task = resolve_task(name)
        # The task draws from this stream; reset(seed=...) restarts it. LQR draws its model here, hence a fixed seed.
        self._random = np.random.RandomState(0)
        # A given limit is checked by this class: at its own limit, dm_control ignores that the task has ended.
        own_limit = {} if time_limit is None else {"time_limit": math.inf}
        self._env = suite.load(domain, task, task_kwargs={"random": self._random, **own_limit})
        check_floor(name, domain, floor)
        if floor == "coloured":
            color_floor(self.physics.model)
        self._camera_id = (2 if domain == "quadruped" else 0) if camera is None else camera
        self.cell_grid = GRIDS.get(domain)
        model = self._env.physics.model
        free = (model.jnt_type == mujoco.wrapper.mjbindings.enums.mjtJoint.mjJNT_HINGE) & (model.jnt_limited == 0)
        self.angles = model.jnt_qposadr[free].tolist()
        self._cameras: dict[tuple[int, int], Any] = {}
        spec = self._env.action_spec()
        bounded = (spec.minimum > -UNBOUNDED) & (spec.maximum < UNBOUNDED)
        super().__init__(
            np.where(bounded, spec.minimum, -1.0),
            np.where(bounded, spec.maximum, 1.0),
            frame_limit=self._env._step_limit if time_limit is None else time_limit,  # may be infinity
            frame_rate=1 / self._env.control_timestep(),
            **pixels,
        )

    @property
    def physics(self) -> Any:
        """dm_control's physics, for measurements. Do not step it: the episode would become inconsistent."""
        return self._env.physics

    def measure(self) -> Measurement:
        return Measurement(
            state=self.physics.get_state().copy(),
            center=np.array(self.physics.data.subtree_com[0]),
            position=np.empty(0) if self.cell_grid is None else self.cell_grid.read(self.physics),
        )

    def state(self) -> dict[str, Any]:
        state = self._random.get_state(legacy=False)
        return {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._random.set_state(dict(state))

    def close(self) -> None:
        self._cameras.clear()
        self._env.close()

    def _restart(self, seed: int | None) -> None:
        if seed is not None:
            self._random.seed(seed % 2**32)
        self._env.reset()

    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        try:
            time_step = self._env.step(control)
        except PhysicsError as error:
            raise SimulationError(f"the physics became unstable ({str(error).splitlines()[0]})") from error
        over = time_step.last()
        limit = over or self._env._step_count >= self.frame_limit
        return time_step.reward or 0.0, over and time_step.discount == 0.0, limit

    def _draw(self, height: int, width: int) -> np.ndarray:
        buffer = self.physics.model.vis.global_
        if height > buffer.offheight or width > buffer.offwidth:  # the model's offscreen buffer, usually 640 x 480
            buffer.offheight, buffer.offwidth = max(height, buffer.offheight), max(width, buffer.offwidth)
            self._free_contexts()  # the next ones have the new size
        if (height, width) not in self._cameras:  # `Physics.render` would make a new camera for every picture
            self._cameras[height, width] = self._new_camera(self.physics, height, width, self._camera_id)
        return np.array(self._cameras[height, width].render())  # a copy: the camera reuses its buffer

    def _free_contexts(self) -> None:
        self._cameras.clear()
        if self.physics._contexts:
            self.physics._free_rendering_contexts()


def main(argv: Sequence[str] | None = None) -> int:
    """Check the renderer, or list the tasks. Returns the exit code: 2 if no renderer works."""
    parser = Parser(prog="dmc.py", description="Find a renderer that works on this machine.")
    parser.add_argument("--tasks", action="store_true", help="list the suite's tasks instead, as --env takes them")
    if parser.parse_args(argv).tasks:
        do_without_renderer()
        print(*sorted(suite_tasks()), sep="\n")
        return 0
    try:
        info = choose_renderer()
    except RenderingError as error:
        print(f"dmc.py: error: {error}", file=sys.stderr)
        return 2
    print(f"rendering works: MUJOCO_GL={info.backend}, {info.name}")
    return 0


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
