"""The pixel environment, held against dm_control driven by hand; and the choice of the renderer."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import dmc

TASKS = {  # name: domain, task, camera
    "cartpole_swingup": ("cartpole", "swingup", 0),
    "ball_in_cup_catch": ("ball_in_cup", "catch", 0),
    "quadruped_walk": ("quadruped", "walk", 2),
    "quadruped_escape": ("quadruped", "escape", 2),  # a reset uploads a new terrain to the renderer
    "humanoid_CMU_run": ("humanoid_CMU", "run", 0),
    "point_mass_easy": ("point_mass", "easy", 0),
}
MakeEnv = Callable[..., dmc.DMCEnv]


@pytest.fixture(scope="session", autouse=True)
def renderer() -> dmc.RendererInfo:
    """Before anything here imports dm_control, which binds its renderer then."""
    return dmc.choose_renderer()


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Builds a DMCEnv, and closes it after the test."""
    made: list[dmc.DMCEnv] = []

    def make(name: str = "cartpole_swingup", **settings: Any) -> dmc.DMCEnv:
        made.append(dmc.DMCEnv(name, **settings))
        return made[-1]

    yield make
    for env in made:
        env.close()


class Twin:
    """The same task in dm_control's own hands, with the same seed."""

    def __init__(self, name: str, seed: int, **task_kwargs: Any) -> None:
        from dm_control import suite

        domain, task, self.camera = TASKS[name]
        self.env = suite.load(domain, task, task_kwargs={"random": seed, **task_kwargs})
        self.env.reset()

    def control(self, action: np.ndarray) -> np.ndarray:
        spec = self.env.action_spec()
        return spec.minimum + (np.asarray(action, np.float64) + 1) / 2 * (spec.maximum - spec.minimum)

    def step(self, action: np.ndarray, repeat: int) -> float:
        """`repeat` control steps, or up to the episode's end; the sum of their rewards."""
        total = 0.0
        for _ in range(repeat):
            time_step = self.env.step(self.control(action))
            total += time_step.reward
            if time_step.last():
                break
        return total

    def picture(self, height: int = 84, width: int = 84, camera: int | None = None) -> np.ndarray:
        return self.env.physics.render(height, width, camera_id=self.camera if camera is None else camera)


def actions(env: dmc.DMCEnv, number: int, seed: int = 0) -> np.ndarray:
    shape = (number, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def frames(obs: np.ndarray) -> list[np.ndarray]:
    """A stack's frames, oldest first, as pictures (H, W, 3)."""
    return [frame.transpose(1, 2, 0) for frame in np.split(obs, len(obs) // 3)]


def episode(env: dmc.DMCEnv, seed: int | None, between: Callable[[], object] = lambda: None) -> list[np.ndarray]:
    """The first and last observation, all rewards and all states of a few steps from a reset."""
    first, _ = env.reset(seed=seed)
    rewards, states = [], [env.physics.get_state().copy()]
    for action in actions(env, 3):
        between()
        last, reward, _, _, _ = env.step(action)
        rewards.append(reward)
        states.append(env.physics.get_state().copy())
    return [first, last, np.array(rewards), np.array(states)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def play(env: dmc.DMCEnv) -> list[tuple[bool, bool]]:
    """Step a fresh episode to its end: (terminated, truncated) of every step."""
    env.reset(seed=1)
    ends: list[tuple[bool, bool]] = []
    while not (ends and any(ends[-1])):
        assert len(ends) < 20, "the episode does not end"
        _, _, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        ends.append((terminated, truncated))
    return ends


# -- task names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "dmc_"])
def test_every_task_of_the_suite_resolves(prefix: str) -> None:
    from dm_control import suite

    assert [dmc.resolve_task(f"{prefix}{domain}_{task}") for domain, task in suite.ALL_TASKS] == list(suite.ALL_TASKS)


@pytest.mark.parametrize(
    ("name", "close"),
    [("walker_rum", "walker_run"), ("dmc_ball_in_cup", "ball_in_cup_catch"), ("humanoid_cmu_run", "humanoid_CMU_run")],
)
def test_unknown_task_names_the_closest_ones(name: str, close: str) -> None:
    with pytest.raises(dmc.TaskError) as caught:
        dmc.DMCEnv(name)
    message = str(caught.value)
    assert name in message
    assert close in message
    assert "\n" not in message


def test_unknown_task_far_from_all_still_names_one() -> None:
    with pytest.raises(dmc.TaskError, match="cartpole_swingup"):
        dmc.resolve_task("0123456789")


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_pixels_equal_dm_controls_own(name: str, make_env: MakeEnv) -> None:
    """Bit for bit over steps and resets, though the camera is kept."""
    env, twin = make_env(name, action_repeat=2), Twin(name, seed=7)
    for seed in (7, None):  # the second episode goes on with the random stream
        obs, _ = env.reset(seed=seed)
        assert obs.dtype == np.uint8
        assert env.observation_space.contains(obs)
        assert obs.min() < obs.max()
        np.testing.assert_array_equal(frames(obs), [twin.picture()] * 3)
        for action in actions(env, 2):
            obs = env.step(action)[0]
            twin.step(action, 2)
            np.testing.assert_array_equal(frames(obs)[-1], twin.picture())
        np.testing.assert_array_equal(env.render(120, 160), twin.picture(120, 160))
        twin.env.reset()
    if twin.camera:
        assert not np.array_equal(env.render(), twin.picture(camera=0))


def test_camera_can_be_chosen(make_env: MakeEnv) -> None:
    env, twin = make_env("cartpole_swingup", camera=1), Twin("cartpole_swingup", seed=7)
    env.reset(seed=7)
    np.testing.assert_array_equal(env.render(), twin.picture(camera=1))
    assert not np.array_equal(env.render(), twin.picture(camera=0))


@pytest.mark.parametrize(("height", "width"), [(700, 900), (500, 100), (100, 700)])
def test_render_beyond_the_models_offscreen_buffer(height: int, width: int, make_env: MakeEnv) -> None:
    """The model allows 640 x 480. Pictures of other sizes, and cameras made before, stay as they were."""
    env, twin = make_env(), Twin("cartpole_swingup", seed=7)
    twin.env.physics.model.vis.global_.offheight = twin.env.physics.model.vis.global_.offwidth = 1000
    env.reset(seed=7)
    action = actions(env, 1)[0]
    for _ in range(2):
        np.testing.assert_array_equal(env.render(height, width), twin.picture(height, width))
        np.testing.assert_array_equal(env.render(), twin.picture())
        np.testing.assert_array_equal(frames(env.step(action)[0])[-2], twin.picture())
        twin.step(action, 1)


@pytest.mark.parametrize("stack", [1, 3])
def test_stack_is_oldest_first_and_a_reset_repeats_its_first_frame(stack: int, make_env: MakeEnv) -> None:
    env = make_env(frame_stack=stack, action_repeat=4, image_size=40)
    assert env.observation_space.shape == (3 * stack, 40, 40)
    for _ in range(2):
        obs, _ = env.reset()
        pictures = [env.render()] * stack
        np.testing.assert_array_equal(frames(obs), pictures)
        for action in actions(env, stack + 1):
            obs = env.step(action)[0]
            pictures = [*pictures[1:], env.render()]
            np.testing.assert_array_equal(frames(obs), pictures)
    assert len({picture.tobytes() for picture in pictures}) == stack


def test_returned_pictures_are_the_callers_own(make_env: MakeEnv) -> None:
    env = make_env()
    obs, _ = env.reset(seed=1)
    picture = env.render()
    copies = obs.copy(), picture.copy()
    env.step(actions(env, 1)[0])
    env.render()
    np.testing.assert_array_equal(obs, copies[0])
    np.testing.assert_array_equal(picture, copies[1])


# -- actions and rewards -----------------------------------------------------------------------------------------------


def test_actions_are_scaled_to_the_actuators_bounds(make_env: MakeEnv) -> None:
    """Quadruped's ranges: lift and extend are [-1, 1.1] and [-0.8, 0.8], yaw is [-1, 1], on each of four legs."""
    env = make_env("quadruped_walk")
    limits = env.physics.model.actuator_ctrlrange
    assert sorted(set(map(tuple, limits.tolist()))) == [(-1.0, 1.0), (-1.0, 1.1), (-0.8, 0.8)]
    assert env.action_space.low.tolist() == [-1.0] * 12
    assert env.action_space.high.tolist() == [1.0] * 12
    by_limit = {  # range: control of the actions -1, -0.5, 0, 1, and 3, which is clipped
        (-1.0, 1.0): [-1.0, -0.5, 0.0, 1.0, 1.0],
        (-1.0, 1.1): [-1.0, -0.475, 0.05, 1.1, 1.1],
        (-0.8, 0.8): [-0.8, -0.4, 0.0, 0.8, 0.8],
    }
    env.reset(seed=1)
    for number, value in enumerate([-1.0, -0.5, 0.0, 1.0, 3.0]):
        env.step(np.full(12, value, np.float32))
        expected = [by_limit[tuple(limit)][number] for limit in limits.tolist()]
        np.testing.assert_allclose(env.physics.control(), expected, atol=1e-12)


def test_actuators_without_bounds_take_the_action_as_it_is(make_env: MakeEnv) -> None:
    """The LQR tasks have none; MuJoCo says so with bounds of 1e10."""
    env = make_env("lqr_lqr_2_1")
    env.reset(seed=1)
    env.step(np.array([0.5], np.float32))
    np.testing.assert_allclose(env.physics.control(), [0.5])


@pytest.mark.parametrize("name", ["cartpole_swingup", "quadruped_walk"])
def test_rewards_are_summed_over_the_repeat(name: str, make_env: MakeEnv) -> None:
    env, twin = make_env(name, action_repeat=3), Twin(name, seed=5)
    env.reset(seed=5)
    for action in actions(env, 5):
        _, reward, terminated, truncated, _ = env.step(action)
        assert reward == twin.step(action, 3) > 0
        assert isinstance(reward, float)
        assert (terminated, truncated) == (False, False)


def test_repeat_stops_at_the_episodes_end(make_env: MakeEnv) -> None:
    """10 frames in repeats of 4: 4, 4 and 2."""
    env = make_env("point_mass_easy", action_repeat=4, time_limit=10)
    twin = Twin("point_mass_easy", seed=5, time_limit=10 * 0.02)
    env.reset(seed=5)
    steps = [env.step(action)[1:4] for action in actions(env, 3)]
    assert [step[1:] for step in steps] == [(False, False), (False, False), (False, True)]
    assert [step[0] for step in steps] == [twin.step(action, 4) for action in actions(env, 3)]
    assert env.physics.time() == pytest.approx(10 * 0.02)
    np.testing.assert_array_equal(env.physics.get_state(), twin.env.physics.get_state())


# -- the episode's end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_limit", "action_repeat", "frames", "steps"),
    [
        pytest.param(None, 300, 1000, 4, id="the task's own"),
        pytest.param(10, 1, 10, 10, id="shorter"),
        pytest.param(10, 4, 10, 3, id="shorter, cutting a repeat"),
        pytest.param(12, 4, 12, 3, id="shorter, a multiple of the repeat"),
        pytest.param(1500, 400, 1500, 4, id="longer"),
    ],
)
def test_time_limit_truncates(
    time_limit: int | None, action_repeat: int, frames: int, steps: int, make_env: MakeEnv
) -> None:
    """Never a termination, in a second episode as in the first."""
    env = make_env(action_repeat=action_repeat, time_limit=time_limit)
    assert env.max_episode_steps == steps
    for _ in range(2):
        assert play(env) == [(False, False)] * (steps - 1) + [(False, True)]
        assert env.physics.time() == pytest.approx(frames * 0.01)


@pytest.mark.parametrize("time_limit", [None, 6])
def test_real_end_terminates(time_limit: int | None, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """dm_control's discount 0 in frame 6 of repeats of 4, also where the time limit ends there: 4 and 2 frames."""
    from dm_control.suite import cartpole

    def get_termination(_: Any, physics: Any) -> float | None:
        return 0.0 if physics.time() > 0.055 else None

    monkeypatch.setattr(cartpole.Balance, "get_termination", get_termination)
    env = make_env(action_repeat=4, time_limit=time_limit)
    assert play(env) == [(False, False), (True, False)]
    assert env.physics.time() == pytest.approx(0.06)


def test_end_with_discount_one_is_no_termination(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    from dm_control.suite import cartpole

    monkeypatch.setattr(cartpole.Balance, "get_termination", lambda *_: 1.0)
    assert play(make_env(action_repeat=4)) == [(False, True)]


def test_task_without_a_limit_says_so_and_takes_one(make_env: MakeEnv) -> None:
    assert make_env("lqr_lqr_2_1").max_episode_steps is None
    env = make_env("lqr_lqr_2_1", time_limit=5, action_repeat=2)
    assert env.max_episode_steps == 3
    assert play(env) == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("name", "action_repeat", "fps"), [("cartpole_swingup", 4, 25.0), ("point_mass_easy", 1, 50.0)]
)
def test_render_fps_is_agent_steps_per_second(name: str, action_repeat: int, fps: float, make_env: MakeEnv) -> None:
    env, other = make_env(name, action_repeat=action_repeat), make_env(name, action_repeat=8)
    assert env.metadata["render_fps"] == pytest.approx(fps)
    assert other.metadata["render_fps"] != env.metadata["render_fps"]  # each instance has its own


# -- seeds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ball_in_cup_catch", "lqr_lqr_2_1"])
def test_same_seed_same_episode(name: str, make_env: MakeEnv) -> None:
    """In one environment and in another; also where a task draws its model (LQR's stiffness) as it is built."""
    env, other = make_env(name), make_env(name)
    first = episode(env, seed=3)
    assert not same(first, episode(env, seed=4))
    assert same(first, episode(env, seed=3))
    assert same(first, episode(other, seed=3))


def test_reset_without_seed_continues_the_stream(make_env: MakeEnv) -> None:
    runs = [[episode(env, seed) for seed in (3, None, None)] for env in (make_env(), make_env())]
    assert all(same(one, other) for one, other in zip(*runs, strict=True))
    assert len({states[0].tobytes() for _, _, _, states in runs[0]}) == 3


REPEATABLE = ("cartpole_swingup", "quadruped_escape", "point_mass_hard", "finger_turn_hard", "stacker_stack_2")


def play_after_reset(env: dmc.DMCEnv) -> list[tuple[np.ndarray, float]]:
    """A new episode, with the same actions each time: pictures and rewards."""
    actions = np.random.default_rng(5).uniform(-1, 1, (4, *env.action_space.shape))
    first, _ = env.reset()
    return [(first, 0.0), *((obs, reward) for obs, reward, *_ in map(env.step, actions))]


@pytest.mark.parametrize(
    "name",
    [
        *REPEATABLE,
        *(
            pytest.param(task, marks=pytest.mark.slow)
            for task in ("acrobot_swingup", "fish_swim", "swimmer_swimmer6", "manipulator_bring_ball", "reacher_hard")
        ),
        *(
            pytest.param(task, marks=pytest.mark.slow)
            for task in ("lqr_lqr_2_1", "humanoid_walk", "dog_run", "hopper_hop", "cheetah_run", "walker_walk")
        ),
    ],
)
def test_a_fresh_environment_repeats_an_episode_from_the_state_before_it(name: str, make_env: MakeEnv) -> None:
    """What an unfinished episode of a resumed run rests on. A state survives a checkpoint's plain data."""
    settings: dict[str, Any] = {"image_size": 32, "action_repeat": 2, "time_limit": 1000}
    played = make_env(name, **settings)
    played.reset(seed=3)
    for _ in range(5):
        played.step(np.full(played.action_space.shape, 0.7))
    state = json.loads(json.dumps(played.state()))
    expected = play_after_reset(played)
    fresh = make_env(name, **settings)
    fresh.load_state(state)
    for (obs, reward), (other_obs, other_reward) in zip(expected, play_after_reset(fresh), strict=True):
        assert np.array_equal(obs, other_obs)
        assert reward == other_reward


def test_environments_do_not_disturb_each_other(make_env: MakeEnv) -> None:
    """Training's episodes are the same with an evaluation between and beside them; NumPy's global stream rests."""
    name = "point_mass_easy"
    env, beside = make_env(name), make_env(name)
    expected = [episode(env, seed) for seed in (3, None)]

    def step_beside() -> None:
        beside.step(beside.action_space.sample())
        beside.render(100, 100)

    state = pickle.dumps(np.random.get_state())
    disturbed = [episode(env, 3)]
    episode(beside, 9)
    episode(make_env(name), None)
    disturbed.append(episode(env, None, between=step_beside))
    assert all(same(one, other) for one, other in zip(expected, disturbed, strict=True))
    assert pickle.dumps(np.random.get_state()) == state


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32 + 5])
def test_any_seed_is_taken(seed: int, make_env: MakeEnv) -> None:
    env = make_env()
    assert same(episode(env, seed), episode(env, seed))


def test_gymnasium_finds_nothing_to_mend(make_env: MakeEnv) -> None:
    from gymnasium.utils.env_checker import check_env

    env = make_env(action_repeat=4, time_limit=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It would build the environment anew for each render mode; this one is not registered, so it can't.
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(env)


# -- the renderer ------------------------------------------------------------------------------------------------------


def report(contrast: int) -> str:
    """The source of a probe that draws nothing and reports what it is told to."""
    return f"import json; print(json.dumps({{'name': 'Some GPU', 'contrast': {contrast}}}))"


def fake_probe(working: dict[str, str], tried: list[str]) -> Callable[[str], dmc.RendererInfo]:
    def probe(backend: str) -> dmc.RendererInfo:
        tried.append(backend)
        if backend not in working:
            raise dmc.RenderingError(f"{backend}: broken here")
        return dmc.RendererInfo(backend, working[backend])

    return probe


@pytest.mark.parametrize(
    ("users", "working", "chosen", "tried"),
    [
        (None, ("egl", "osmesa"), "egl", ["egl"]),
        ("", ("egl", "osmesa"), "egl", ["egl"]),
        (None, ("osmesa",), "osmesa", ["egl", "osmesa"]),
        ("osmesa", ("egl", "osmesa"), "osmesa", ["osmesa"]),
        ("glfw", ("egl", "glfw"), "glfw", ["glfw"]),
        ("EGL", ("egl", "osmesa"), "egl", ["egl"]),
    ],
)
def test_users_renderer_wins_then_egl_then_osmesa(
    users: str | None, working: tuple[str, ...], chosen: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", users or "")
    if users is None:
        monkeypatch.delenv("MUJOCO_GL")
    seen: list[str] = []
    monkeypatch.setattr(dmc, "_probe", fake_probe({backend: f"{backend} GPU" for backend in working}, seen))
    assert dmc.choose_renderer() == dmc.RendererInfo(chosen, f"{chosen} GPU")
    assert os.environ["MUJOCO_GL"] == chosen
    assert seen == tried


def test_no_renderer_at_all_names_each_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(dmc, "_probe", fake_probe({}, []))
    with pytest.raises(dmc.RenderingError) as caught:
        dmc.choose_renderer()
    message = str(caught.value)
    assert "egl: broken here" in message
    assert "osmesa: broken here" in message
    assert "apt-get install" in message
    assert "\n" not in message
    assert "MUJOCO_GL" not in os.environ


def test_users_broken_renderer_is_named_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real probe."""
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(dmc.RenderingError, match=r"MUJOCO_GL.*nonsense") as caught:
        dmc.choose_renderer()
    assert "\n" not in str(caught.value)
    assert "unset MUJOCO_GL" in str(caught.value)
    assert os.environ["MUJOCO_GL"] == "nonsense"


@pytest.mark.parametrize(
    ("probe", "complaint"),
    [
        pytest.param(report(0), r"one colour only \(Some GPU\)", id="says that its picture is constant"),
        pytest.param(dmc._PROBE.replace("1 0 0 1", "0 0 0 0"), "one colour only", id="draws a constant picture"),
        pytest.param("import os; os.abort()", "ended with code -6", id="aborts"),
        pytest.param("print('a line'); raise OSError('no GPU')", "OSError: no GPU$", id="raises"),
        pytest.param("", "ended with code 0", id="says nothing"),
    ],
)
def test_probe_fails(probe: str, complaint: str, renderer: dmc.RendererInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe != dmc._PROBE
    monkeypatch.setattr(dmc, "_PROBE", probe)
    with pytest.raises(dmc.RenderingError, match=f"^{renderer.backend}: .*{complaint}") as caught:
        dmc._probe(renderer.backend)
    assert "\n" not in str(caught.value)


def test_probe_succeeds_on_a_picture_with_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmc, "_PROBE", "print('a library greets')\n" + report(1))
    assert dmc._probe("egl") == dmc.RendererInfo("egl", "Some GPU")


def test_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(dmc.RenderingError, match="egl: no picture within"):
        dmc._probe("egl")


@pytest.mark.parametrize(
    ("name", "software"),
    [("llvmpipe (LLVM 15.0.6, 256 bits)", True), ("softpipe", True), ("NVIDIA H100 80GB HBM3/PCIe/SSE2", False)],
)
def test_software_renderers_are_known_by_name(name: str, software: bool) -> None:
    assert dmc.RendererInfo("egl", name).is_software is software


def test_check_from_the_command_line(renderer: dmc.RendererInfo) -> None:
    child = check({**os.environ, "MUJOCO_GL": renderer.backend})
    assert child.returncode == 0
    assert renderer.name in child.stdout
    assert child.stderr == ""


def test_failing_check_from_the_command_line() -> None:
    child = check({**os.environ, "MUJOCO_GL": "nonsense"})
    assert child.returncode == 2
    assert "MUJOCO_GL" in child.stderr
    assert len(child.stderr.splitlines()) == 1


def check(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "dmc.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_only_dmc_touches_dm_control_and_its_renderer() -> None:
    """Elsewhere they are words in messages; an import before `choose_renderer` would bind the wrong renderer."""
    touching = {path.name for path in ROOT.glob("*.py") if _touches_dm_control(path)}
    assert touching == {"dmc.py"}


def _touches_dm_control(path: Path) -> bool:
    """Whether a module imports dm_control or MuJoCo, or uses the variable MUJOCO_GL."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and node.value == "MUJOCO_GL":
            return True
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] in ("dm_control", "mujoco") for name in names):
            return True
    return False


def test_tasks_from_the_command_line() -> None:
    """As --env takes them, in a process that could not draw."""
    command = [sys.executable, "dmc.py", "--tasks"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DISPLAY": ""})
    names = child.stdout.split()
    assert {"cartpole_swingup", "ball_in_cup_catch", "walker_walk"} < set(names)
    assert all(dmc.resolve_task(name) for name in names)


def test_the_centre_is_of_all_mass() -> None:
    """Of a task whose bodies don't hang on one."""
    env = dmc.DMCEnv("ball_in_cup_catch", image_size=32, action_repeat=4)
    env.reset(seed=3)
    env.step(np.array([1.0, -0.5]))
    model, data = env.physics.model, env.physics.data
    centre = (model.body_mass[:, None] * data.xipos).sum(axis=0) / model.body_mass.sum()
    np.testing.assert_allclose(env.measure()[1], centre, atol=1e-9)
    env.close()


@pytest.mark.parametrize("name", ["swrast", "Mesa OSMesa"])
def test_other_software_renderers_are_known(name: str) -> None:
    assert dmc.RendererInfo("osmesa", name).is_software
