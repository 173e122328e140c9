"""Tasks of the suite as pixels, compared with dm_control used directly; and the command `python dmc.py`."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dmc import DMCEnv, resolve_task, suite_tasks
from envs.renderer import RendererInfo
from envs.tasks import SUITE_LIMIT
from errors import SimulationError, TaskError
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("renderer")

TASKS = {  # name: domain, task, camera
    "cartpole_swingup": ("cartpole", "swingup", 0),
    "ball_in_cup_catch": ("ball_in_cup", "catch", 0),
    "quadruped_walk": ("quadruped", "walk", 2),
    "quadruped_escape": ("quadruped", "escape", 2),  # each reset uploads a new terrain to the renderer
    "humanoid_CMU_run": ("humanoid_CMU", "run", 0),
    "point_mass_easy": ("point_mass", "easy", 0),
}
MakeEnv = Callable[..., DMCEnv]


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Make environments, and close them after the test."""
    made: list[DMCEnv] = []

    def make(name: str = "cartpole_swingup", **settings: Any) -> DMCEnv:
        made.append(DMCEnv(name, **settings))
        return made[-1]

    yield make
    for env in made:
        env.close()


class Twin:
    """The same task with the same seed, used through dm_control directly."""

    def __init__(self, name: str, seed: int, **task_kwargs: Any) -> None:
        from dm_control import suite

        domain, task, self.camera = TASKS[name]
        self.env = suite.load(domain, task, task_kwargs={"random": seed, **task_kwargs})
        self.env.reset()

    def control(self, action: np.ndarray) -> np.ndarray:
        spec = self.env.action_spec()
        return spec.minimum + (np.asarray(action, np.float64) + 1) / 2 * (spec.maximum - spec.minimum)

    def step(self, action: np.ndarray, repeat: int) -> float:
        """Take `repeat` control steps, or fewer if the episode ends. Return the sum of their rewards."""
        total = 0.0
        for _ in range(repeat):
            time_step = self.env.step(self.control(action))
            total += time_step.reward
            if time_step.last():
                break
        return total

    def picture(self, height: int = 84, width: int = 84, camera: int | None = None) -> np.ndarray:
        return self.env.physics.render(height, width, camera_id=self.camera if camera is None else camera)


def actions(env: DMCEnv, number: int, seed: int = 0) -> np.ndarray:
    shape = (number, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def frames(obs: np.ndarray) -> list[np.ndarray]:
    """Return the frames of a stack, oldest first, as pictures (H, W, 3)."""
    return [frame.transpose(1, 2, 0) for frame in np.split(obs, len(obs) // 3)]


def episode(env: DMCEnv, seed: int | None, between: Callable[[], object] = lambda: None) -> list[np.ndarray]:
    """Return the first and last observation, the rewards and the physics states of three steps after a reset."""
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


def play(env: DMCEnv) -> list[tuple[bool, bool]]:
    """Play an episode to its end. Return (terminated, truncated) of every step."""
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

    assert [resolve_task(f"{prefix}{domain}_{task}") for domain, task in suite.ALL_TASKS] == list(suite.ALL_TASKS)


@pytest.mark.parametrize(
    ("name", "close"),
    [("walker_rum", "walker_run"), ("dmc_ball_in_cup", "ball_in_cup_catch"), ("humanoid_cmu_run", "humanoid_CMU_run")],
)
def test_unknown_task_names_the_closest_ones(name: str, close: str) -> None:
    with pytest.raises(TaskError) as caught:
        DMCEnv(name)
    message = str(caught.value)
    assert name in message
    assert close in message
    assert "\n" not in message


def test_unknown_task_unlike_all_others_still_names_one() -> None:
    with pytest.raises(TaskError, match="cartpole_swingup"):
        resolve_task("0123456789")


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_pixels_equal_dm_controls_own(name: str, make_env: MakeEnv) -> None:
    """Equal bit by bit over steps and resets, although the camera is kept."""
    env, twin = make_env(name, action_repeat=2), Twin(name, seed=7)
    assert env.frame_limit == (math.inf if name.startswith("lqr_") else SUITE_LIMIT)
    for seed in (7, None):  # the second episode continues the random stream
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
    """The model's buffer is 640 x 480. Pictures of other sizes, and cameras made before, do not change."""
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
    """Quadruped's bounds on each of four legs: [-1, 1.1] for lift, [-0.8, 0.8] for extend, [-1, 1] for yaw."""
    env = make_env("quadruped_walk")
    limits = env.physics.model.actuator_ctrlrange
    assert sorted(set(map(tuple, limits.tolist()))) == [(-1.0, 1.0), (-1.0, 1.1), (-0.8, 0.8)]
    assert env.action_space.low.tolist() == [-1.0] * 12
    assert env.action_space.high.tolist() == [1.0] * 12
    by_limit = {  # bounds: control for the actions -1, -0.5, 0, 1, and 3, which is clipped
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
    """The LQR tasks have none; MuJoCo writes them as 1e10."""
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
    """10 frames in repeats of 4 are 4, 4 and 2 frames."""
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
    """The limit never terminates, neither in the first episode nor in the second."""
    env = make_env(action_repeat=action_repeat, time_limit=time_limit)
    assert env.max_episode_steps == steps
    for _ in range(2):
        assert play(env) == [(False, False)] * (steps - 1) + [(False, True)]
        assert env.physics.time() == pytest.approx(frames * 0.01)


@pytest.mark.parametrize("time_limit", [None, 6])
def test_real_end_terminates(time_limit: int | None, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discount 0 in frame 6, in repeats of 4 (4 and 2 frames); also if the time limit is reached in the same frame."""
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
    """In the same environment and in another, also if a task draws its model (LQR's stiffness) when it is made."""
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


def play_after_reset(env: DMCEnv) -> list[tuple[np.ndarray, float]]:
    """Play four steps of a new episode with fixed actions. Return pictures and rewards."""
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
    """A resumed run relies on this for its unfinished episode. The state survives JSON."""
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
    """Training gives the same episodes with an evaluation between and beside them; NumPy's global stream is unused."""
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
def test_any_seed_is_accepted(seed: int, make_env: MakeEnv) -> None:
    env = make_env()
    assert same(episode(env, seed), episode(env, seed))


def test_gymnasiums_checker_finds_no_problem(make_env: MakeEnv) -> None:
    from gymnasium.utils.env_checker import check_env

    env = make_env(action_repeat=4, time_limit=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker would make the environment again for each render mode, but this one is not registered.
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(env)


# -- measurements and failures ---------------------------------------------------------------------------------------


def test_measure_gives_the_state_and_the_center_of_all_mass(make_env: MakeEnv) -> None:
    """In a task with two separate bodies."""
    env = make_env("ball_in_cup_catch", image_size=32, action_repeat=4)
    env.reset(seed=3)
    env.step(np.array([1.0, -0.5]))
    model, data = env.physics.model, env.physics.data
    center = (model.body_mass[:, None] * data.xipos).sum(axis=0) / model.body_mass.sum()
    measured = env.measure()
    np.testing.assert_array_equal(measured.state, env.physics.get_state())
    np.testing.assert_allclose(measured.center, center, atol=1e-9)


def test_unstable_physics_are_a_simulation_error(make_env: MakeEnv) -> None:
    env = make_env(image_size=32)
    env.reset(seed=1)
    env.physics.data.qpos[0] = np.inf
    with pytest.raises(SimulationError, match=r"^the physics became unstable \(.*\)$"):
        env.step(np.zeros(1, np.float32))
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs)


# -- the command line ------------------------------------------------------------------------------------------------


def test_check_from_the_command_line(renderer: RendererInfo) -> None:
    child = check({**os.environ, "MUJOCO_GL": renderer.backend})
    assert child.returncode == 0
    assert renderer.name in child.stdout
    assert child.stderr == ""


def test_failing_check_from_the_command_line() -> None:
    child = check({**os.environ, "MUJOCO_GL": "nonsense"})
    assert child.returncode == 2
    assert child.stderr.startswith("dmc.py: error: no picture can be drawn with MUJOCO_GL=nonsense")
    assert len(child.stderr.splitlines()) == 1


def check(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "dmc.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_tasks_from_the_command_line() -> None:
    """In the form that --env takes, in a process that cannot draw."""
    command = [sys.executable, "dmc.py", "--tasks"]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "DISPLAY": ""})
    names = child.stdout.split()
    assert {"cartpole_swingup", "ball_in_cup_catch", "walker_walk"} < set(names)
    assert names == sorted(suite_tasks())
