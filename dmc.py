"""DeepMind Control Suite tasks seen as pixels, as a `gymnasium.Env`.

dm_control and MUJOCO_GL are used in this module only. dm_control binds its renderer when it is first imported, so
`choose_renderer` comes before everything else here. `python dmc.py` checks the renderer of this machine and says
what to install where there is none; `python dmc.py --tasks` lists the tasks.
"""

from __future__ import annotations

import abc
import argparse
import difflib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

BACKENDS = ("egl", "osmesa")  # tried in this order where MUJOCO_GL is unset
SOFTWARE_RENDERERS = re.compile("llvmpipe|softpipe|swrast|osmesa", re.IGNORECASE)
UNBOUNDED = 1e10  # mujoco.mjMAXVAL, how dm_control writes "no limit" of an actuator
INSTALL_HINT = "apt-get install libegl1 libgl1 libgl1-mesa-dri libglib2.0-0, or a GPU driver with EGL"

# Draws one frame in a process of its own: a broken OpenGL may abort the process that tries it. A box before a dark
# background, so that a working renderer can't give a picture of one colour.
_PROBE = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/>'
    '<geom type="box" size=".2 .2 .2" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    contrast = int(renderer.render().max()) - int(renderer.render().min())
    from OpenGL import GL
    name = GL.glGetString(GL.GL_RENDERER)
print(json.dumps({"name": name.decode() if name else "unknown", "contrast": contrast}))
"""


class TaskError(ValueError):
    """There is no such task, or it doesn't suit; the message says what would."""


class RenderingError(RuntimeError):
    """No OpenGL renderer works, or a picture can't be drawn; the message says what was tried."""


class SimulationError(RuntimeError):
    """The physics became unstable: the episode can't go on. The message is one line."""


class RendererInfo(NamedTuple):
    """A renderer that has drawn a picture in this environment."""

    backend: str  # the value of MUJOCO_GL
    name: str  # OpenGL's name of the device, such as "llvmpipe (LLVM 15.0.6, 256 bits)"

    @property
    def is_software(self) -> bool:
        return bool(SOFTWARE_RENDERERS.search(self.name))


def _probe(backend: str) -> RendererInfo:
    """Render one frame with `backend` in a child process. Raises RenderingError with one line on failure."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    command = [sys.executable, "-c", _PROBE]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise RenderingError(f"{backend}: no picture within {error.timeout:.0f} s") from None
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        complaints = child.stderr.strip().splitlines()
        reason = complaints[-1].strip() if complaints else f"the test process ended with code {child.returncode}"
        raise RenderingError(f"{backend}: {reason}")
    report = json.loads(lines[-1])
    if not report["contrast"]:
        raise RenderingError(f"{backend}: the picture has one colour only ({report['name']})")
    return RendererInfo(backend, report["name"])


def choose_renderer() -> RendererInfo:
    """Find an OpenGL backend that really renders, and set MUJOCO_GL to it.

    The user's MUJOCO_GL wins; else EGL, else OSMesa. Raises RenderingError where none works.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    failures = []
    for backend in (wanted,) if wanted else BACKENDS:
        try:
            info = _probe(backend)
        except RenderingError as error:
            failures.append(str(error))
        else:
            os.environ["MUJOCO_GL"] = backend
            return info
    what = "MUJOCO_GL, set by you, does not render" if wanted else "no OpenGL renderer works"
    hint = f"unset MUJOCO_GL, or {INSTALL_HINT}" if wanted else INSTALL_HINT
    raise RenderingError(f"{what} [{'; '.join(failures)}]; try: {hint}")


def do_without_renderer() -> None:
    """Let tasks be made, and never drawn, in a process that has not imported dm_control yet."""
    os.environ["MUJOCO_GL"] = "disable"


def may_draw() -> bool:
    """Whether `do_without_renderer` has not been called here."""
    return os.environ.get("MUJOCO_GL") != "disable"


def resolve_task(name: str) -> tuple[str, str]:
    """The suite's (domain, task) for a name such as "ball_in_cup_catch" or "dmc_walker_run".

    Both halves may hold underscores, so the name is matched against the suite's own list. Raises TaskError.
    """
    from dm_control import suite

    tasks = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
    plain = name.removeprefix("dmc_")
    if plain not in tasks:
        nearest = difflib.get_close_matches(plain.lower(), tasks, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "cartpole_swingup is one that exists"
        raise TaskError(f"dm_control.suite has no task {name!r}; {hint}")
    return tasks[plain]


class PixelEnv(gymnasium.Env[np.ndarray, np.ndarray], abc.ABC):
    """What training asks of an environment: stacked pixels, repeated actions, a random stream that can be saved.

    Observations are uint8 `(3 * frame_stack, image_size, image_size)`, RGB, oldest frame first; a reset repeats its
    first frame. Actions are float32 in [-1, 1], scaled to the task's bounds and held for `action_repeat` frames, whose
    rewards are summed; the repeat stops at the episode's end. `terminated` is a real end, `truncated` the time limit,
    through which a value is to be bootstrapped.

    Args:
        low, high: the task's own bounds of an action, float64 (action_dim,).
        frame_limit: frames per episode, `math.inf` without a limit.
        frame_rate: frames per second of the task's time.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own declaration)
    render_mode = "rgb_array"
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.spaces.Box

    def __init__(
        self,
        low: np.ndarray,
        high: np.ndarray,
        *,
        frame_limit: float,
        frame_rate: float,
        image_size: int,
        frame_stack: int,
        action_repeat: int,
    ) -> None:
        self._low, self._high = low, high
        self._image_size, self._action_repeat = image_size, action_repeat
        self._frames: deque[np.ndarray] = deque(maxlen=frame_stack)
        self.render_seconds = 0.0  # spent drawing, since the environment was made
        # agent steps; None without a limit
        self.max_episode_steps = None if math.isinf(frame_limit) else math.ceil(frame_limit / action_repeat)
        self.metadata = {**self.metadata, "render_fps": frame_rate / action_repeat}
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, low.shape, np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (3 * frame_stack, image_size, image_size), np.uint8)

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """What the coming episodes depend on, as plain data: the state of the random stream.

        An episode under way is no part of it: the same actions after the same start lead there again.
        """

    @abc.abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the `state` of an equal environment; `reset` comes next."""

    @abc.abstractmethod
    def _restart(self, seed: int | None) -> None:
        """Begin an episode. A seed restarts the random stream."""

    @abc.abstractmethod
    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        """One frame under `control`, float64 within the bounds: reward, real end, time limit."""

    @abc.abstractmethod
    def _draw(self, height: int, width: int) -> np.ndarray:
        """A new picture of the scene, uint8 RGB `(height, width, 3)`. May raise anything."""

    def _forget_contexts(self) -> None:
        """Let go of what drawing holds, so that it begins anew."""

    def measure(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The physics' state, float64 (n,), and the centre of all mass, (x, y, z) in metres; None where unknown."""
        return None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode. A seed restarts the task's random stream; without one it goes on."""
        super().reset(seed=seed)
        self._restart(seed)
        self._frames.extend([self._frame()] * (self._frames.maxlen or 1))
        return np.concatenate(list(self._frames)), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold `action` for the action repeat, or until the episode ends. Raises SimulationError, RenderingError."""
        unit = (np.clip(np.asarray(action, np.float64), -1.0, 1.0) + 1.0) / 2.0
        control = self._low + unit * (self._high - self._low)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._action_repeat):
            reward, terminated, truncated = self._advance(control)
            total += reward
            if terminated or truncated:
                break
        self._frames.append(self._frame())
        return np.concatenate(list(self._frames)), total, terminated, truncated and not terminated, {}

    def render(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """The scene as it is now: uint8 RGB `(height, width, 3)`, `image_size` square unless told otherwise.

        A failure is tried again, from the beginning. Raises RenderingError where that fails too.
        """
        size = (height or self._image_size, width or self._image_size)
        started = time.perf_counter()
        try:
            picture = self._draw(*size)
        except Exception as first:  # the bindings of OpenGL raise many kinds
            try:
                self._forget_contexts()
                picture = self._draw(*size)
            except Exception as second:
                raise RenderingError(f"drawing a frame failed twice: {first}; tried anew: {second}") from second
            print(f"warning: drawing a frame failed ({first}); it worked when tried anew", file=sys.stderr)
        self.render_seconds += time.perf_counter() - started
        return picture

    def _frame(self) -> np.ndarray:
        return np.ascontiguousarray(self.render().transpose(2, 0, 1))


class DMCEnv(PixelEnv):
    """One task of dm_control.suite as stacked pixels. A real end is where dm_control's discount is 0.

    Args:
        name: task, as `resolve_task` takes it.
        time_limit: frames (control steps) per episode; None keeps the task's own limit.
        camera: index of the model's camera; None takes 0, and 2 for quadruped (the one that follows it).
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int = 84,
        frame_stack: int = 3,
        action_repeat: int = 1,
        time_limit: int | None = None,
        camera: int | None = None,
    ) -> None:
        from dm_control import suite

        domain, task = resolve_task(name)
        # The task draws from it; reset(seed=...) restarts it. Its first seed is fixed, as LQR draws its model here.
        self._random = np.random.RandomState(0)
        task_kwargs: dict[str, Any] = {"random": self._random}
        if time_limit is not None:
            task_kwargs["time_limit"] = math.inf  # counted here, so that it may also exceed the task's own
        self._env = suite.load(domain, task, task_kwargs=task_kwargs)
        self._frame_limit = time_limit or math.inf
        self._frame_count = 0
        self._camera_id = (2 if domain == "quadruped" else 0) if camera is None else camera
        self._cameras: dict[tuple[int, int], Any] = {}
        spec = self._env.action_spec()
        bounded = (spec.minimum > -UNBOUNDED) & (spec.maximum < UNBOUNDED)
        super().__init__(
            np.where(bounded, spec.minimum, -1.0),
            np.where(bounded, spec.maximum, 1.0),
            # dm_control keeps its limit as a number of control steps; infinite where there is none
            frame_limit=self._frame_limit if time_limit is not None else self._env._step_limit,
            frame_rate=1 / self._env.control_timestep(),
            image_size=image_size,
            frame_stack=frame_stack,
            action_repeat=action_repeat,
        )

    @property
    def physics(self) -> Any:
        """dm_control's physics, for measurements; stepping it by hand breaks the episode."""
        return self._env.physics

    def measure(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the bodies are: the physics' state, float64 (n,), and the centre of all mass, (x, y, z) in metres."""
        physics = self._env.physics
        return physics.get_state().copy(), np.array(physics.data.subtree_com[0])

    def state(self) -> dict[str, Any]:
        state = self._random.get_state(legacy=False)
        return {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._random.set_state(dict(state))

    def _restart(self, seed: int | None) -> None:
        if seed is not None:
            self._random.seed(seed % 2**32)
        self._env.reset()
        self._frame_count = 0

    def _advance(self, control: np.ndarray) -> tuple[float, bool, bool]:
        from dm_control.rl.control import PhysicsError

        try:
            time_step = self._env.step(control)
        except PhysicsError as error:
            raise SimulationError(f"the physics became unstable ({str(error).splitlines()[0]})") from error
        self._frame_count += 1
        over = time_step.last()
        limit = over or self._frame_count >= self._frame_limit
        return time_step.reward or 0.0, over and time_step.discount == 0.0, limit

    def close(self) -> None:
        self._cameras.clear()
        self._env.close()

    def _draw(self, height: int, width: int) -> np.ndarray:
        if (height, width) not in self._cameras:
            self._cameras[height, width] = self._new_camera(height, width)
        return np.array(self._cameras[height, width].render())  # a copy: the camera draws into one buffer

    def _forget_contexts(self) -> None:
        """Everything of OpenGL's: physics makes new contexts when they are asked for."""
        self._cameras.clear()
        physics = self._env.physics
        with physics._contexts_lock:
            if physics._contexts:
                physics._free_rendering_contexts()

    def _new_camera(self, height: int, width: int) -> Any:
        """Physics.render builds a camera for every frame and frees it; a kept one gives the same pixels sooner."""
        import mujoco
        from dm_control.mujoco import engine

        physics, buffer = self._env.physics, self._env.physics.model.vis.global_
        if height > buffer.offheight or width > buffer.offwidth:  # the model's offscreen buffer, 640 x 480 as a rule
            buffer.offheight, buffer.offwidth = max(height, buffer.offheight), max(width, buffer.offwidth)
            with physics.contexts.gl.make_current() as context:
                context.call(mujoco.mjr_resizeOffscreen, buffer.offwidth, buffer.offheight, physics.contexts.mujoco.ptr)
        return engine.Camera(physics, height, width, self._camera_id)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Find the renderer that works here.")
    parser.add_argument("--tasks", action="store_true", help="list the suite's tasks instead, as --env takes them")
    if parser.parse_args(argv).tasks:
        do_without_renderer()
        from dm_control import suite

        print(*sorted(f"{domain}_{task}" for domain, task in suite.ALL_TASKS), sep="\n")
        return 0
    try:
        info = choose_renderer()
    except RenderingError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"rendering works: MUJOCO_GL={info.backend}, {info.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
