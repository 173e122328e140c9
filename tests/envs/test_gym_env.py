"""Gymnasium environments as pixels, on one that MuJoCo draws."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import envs.gym_env
import train
from envs.gym_env import GymPixelEnv
from errors import RenderingError, SimulationError, TaskError
from tests.support.labs import TINY
from tests.support.processes import Child, Evaluating
from tests.support.program import assert_refused, call
from tests.support.runs import RENDERER, rows

TASK = "InvertedPendulum-v5"

MakeEnv = Callable[..., GymPixelEnv]

pytestmark = pytest.mark.usefixtures("renderer")


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Make environments, and close them after the test."""
    made: list[GymPixelEnv] = []

    def make(name: str = TASK, **settings: int) -> GymPixelEnv:
        made.append(GymPixelEnv(name, **settings))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_spaces_and_stack(make_env: MakeEnv) -> None:
    env = make_env(image_size=40, frame_stack=2)
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs)
    assert obs.shape == (6, 40, 40)
    np.testing.assert_array_equal(obs[:3], obs[3:])
    assert obs.std() > 5, "the picture has only one color"
    following, *_ = env.step(np.ones(1, np.float32))
    np.testing.assert_array_equal(following[:3], obs[3:])
    assert env.render(100, 60).shape == (100, 60, 3)


def test_actions_are_scaled_held_and_rewards_summed(make_env: MakeEnv) -> None:
    """Compared with Gymnasium's environment; its bounds are [-3, 3], and each action is held for two steps."""
    env, plain = make_env(action_repeat=2), gymnasium.make(TASK)
    env.reset(seed=3)
    plain.reset(seed=3)
    for action in (0.5, -1.0, 0.2):
        _, reward, terminated, _, _ = env.step(np.array([action], np.float32))
        expected, over = 0.0, False
        for _ in range(2):
            state, one, over, _, _ = plain.step(np.array([3 * action], np.float32))
            expected += float(one)
        assert reward == pytest.approx(expected)
        assert terminated == over
        inner = env._env.unwrapped
        np.testing.assert_allclose(inner._get_obs(), state, atol=1e-6)  # type: ignore[attr-defined]
    plain.close()


def test_time_limits(make_env: MakeEnv) -> None:
    """7 frames in repeats of 3 are three agent steps. The environment's own limit is 1000 frames."""
    env = make_env(action_repeat=3, time_limit=7)
    assert env.max_episode_steps == 3
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    assert make_env().max_episode_steps == 1000


def test_a_fresh_environment_repeats_an_episode_from_the_state_before_it(make_env: MakeEnv) -> None:
    """States are equal bit by bit, pictures nearly: Gymnasium's camera follows the body with a memory of its own."""
    played = make_env(action_repeat=2)
    played.reset(seed=3)
    played.step(np.ones(1, np.float32))
    state = json.loads(json.dumps(played.state()))
    first, _ = played.reset()
    expected = [first, *(played.step(np.array([a], np.float32))[0] for a in (0.3, -0.8, 0.1))]
    fresh = make_env(action_repeat=2)
    fresh.load_state(state)
    first, _ = fresh.reset()
    found = [first, *(fresh.step(np.array([a], np.float32))[0] for a in (0.3, -0.8, 0.1))]
    np.testing.assert_array_equal(*(env._env.unwrapped._get_obs() for env in (fresh, played)))  # type: ignore[attr-defined]
    assert np.abs(np.array(found, int) - np.array(expected, int)).max() < 16


@pytest.mark.parametrize(("name", "word"), [("CartPole-v1", "Box"), ("Nothing-v0", "Nothing"), ("", "make")])
def test_unusable_environments_are_refused(make_env: MakeEnv, name: str, word: str) -> None:
    with pytest.raises(TaskError, match=word):
        make_env(name)


def test_an_environment_that_cannot_draw_is_refused_at_once(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some environments import their renderer only when they draw. A process that may not draw does not try."""

    def render(_: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("painter is not installed\nat all")

    monkeypatch.setattr(gymnasium.Wrapper, "render", render)
    with pytest.raises(TaskError, match=r"cannot draw itself: painter is not installed; pip install"):
        make_env()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert make_env().action_space.shape == (1,)


def test_drawing_is_tried_again(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second failure, or an array that is not an RGB picture, is a RenderingError."""
    env = make_env()
    first, _ = env.reset(seed=0)
    draw, failures = env._env.render, [OSError("lost"), OSError("lost again")]

    def render() -> object:
        if failures:
            raise failures.pop()
        return draw()

    monkeypatch.setattr(env._env, "render", render)
    with pytest.raises(RenderingError, match="failed twice: lost again; on the second attempt: lost"):
        env.render()
    failures.append(OSError("lost"))
    assert env.render().shape == (first.shape[1], first.shape[2], 3)
    monkeypatch.setattr(env._env, "render", lambda: None)
    with pytest.raises(RenderingError, match="not an RGB picture"):
        env.render()


@pytest.mark.slow
def test_a_run_and_its_evaluation(tmp_path: Path) -> None:
    """The real programs: train with skills up to a budget, resume with a larger one, evaluate."""
    small = "--image_size 32 --hidden_dim 16 --batch_size 4 --num_seed_steps 20 --num_skills 2 --num_train_steps 40"
    Child(f"--env gym:{TASK} {small} --work_dir {tmp_path}", tmp_path / "first").finish()
    folder = tmp_path / "gym_InvertedPendulum-v5" / "latest"
    Child(f"--resume {folder} --num_train_steps 50", tmp_path / "second").finish()
    assert (folder / "eval.csv").read_text().splitlines()[-1].split(",")[1] == "200"
    Evaluating(f"{folder} --out {tmp_path / 'evaluated'}", tmp_path / "third").finish()
    assert len((tmp_path / "evaluated" / "skills.csv").read_text().splitlines()) == 3
    assert (tmp_path / "evaluated" / "skills.mp4").stat().st_size > 1000


def test_a_real_end_is_not_a_time_limit(make_env: MakeEnv) -> None:
    """The pole falls over."""
    env = make_env(action_repeat=2)
    env.reset(seed=0)
    for _ in range(200):
        _, _, terminated, truncated, _ = env.step(np.ones(1, np.float32))
        if terminated or truncated:
            break
    assert (terminated, truncated) == (True, False)


def test_pixels_are_rgb_and_upright(make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of two colors, one above the other, scaled down from 64 x 64."""
    env = make_env(image_size=32)
    env.reset(seed=0)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32], picture[32:] = (200, 100, 50), (10, 20, 30)
    monkeypatch.setattr(env._env, "render", lambda: picture)
    obs, *_ = env.step(np.zeros(1, np.float32))
    assert obs[-3:, 0, 0].tolist() == [200, 100, 50]
    assert obs[-3:, -1, 0].tolist() == [10, 20, 30]


def test_videos_play_in_real_time(make_env: MakeEnv) -> None:
    """The environment's own frame rate, divided by the action repeat."""
    own = gymnasium.make(TASK, render_mode="rgb_array")
    assert make_env(action_repeat=2).metadata["render_fps"] == own.metadata["render_fps"] / 2 != 15
    own.close()


# -- what an environment answers ---------------------------------------------------------------------------------------


def box(low: float = -1.0, high: float = 1.0, shape: tuple[int, ...] = (2,), **more: Any) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(low, high, shape, **more)


def box_of_nan() -> gymnasium.spaces.Box:
    """Return a Box as only a faulty environment makes it."""
    space = box()
    space.low[0] = np.nan
    return space


class PaintedEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Paints its own pictures, without a renderer. Keyword arguments replace what it answers.

    Args:
        picture, reward: what render() and step() return; functions are called.
        reset_answer, step_answer: of the whole method; None is the usual one.
        fps: the metadata's render_fps.
    """

    observation_space = box()

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        space: gymnasium.Space[Any] | None = None,
        picture: Any = lambda: np.full((40, 30, 3), 90, np.uint8),
        reward: Any = 0.5,
        reset_answer: Any = None,
        step_answer: Any = None,
        **metadata: Any,
    ) -> None:
        self.render_mode = render_mode
        self.action_space = box() if space is None else space
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 20, **metadata}
        self.answers = {"picture": picture, "reward": reward, "reset": reset_answer, "step": step_answer}

    def answer(self, name: str) -> Any:
        value = self.answers[name]
        return value() if callable(value) else value

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return (np.zeros(2), {}) if self.answers["reset"] is None else self.answer("reset")

    def step(self, action: np.ndarray) -> Any:
        if self.answers["step"] is not None:
            return self.answer("step")
        return np.zeros(2), self.answer("reward"), False, False, {}

    def render(self) -> Any:
        return self.answer("picture")


Paint = Callable[..., str]
painted = itertools.count()


@pytest.fixture
def paint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paint]:
    """`paint(**answers)` registers a PaintedEnv with a time limit of 20 frames and returns its id."""
    monkeypatch.setattr(train, "choose_renderer", lambda: RENDERER)
    names: list[str] = []

    def make(limit: int | None = 20, **answers: Any) -> str:
        names.append(f"Painted{next(painted)}-v0")
        gymnasium.register(names[-1], entry_point=PaintedEnv, max_episode_steps=limit, kwargs=answers)
        return names[-1]

    yield make
    for name in names:
        del gymnasium.registry[name]


def fail(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param({"picture": np.ones((9, 9, 3))}, "float64 values; they must be uint8.*multiply", id="in [0, 1]"),
        pytest.param({"picture": np.full((9, 9, 3), 200.0)}, "float64 values; they must be uint8", id="float, to 255"),
        pytest.param({"picture": np.ones((9, 9, 3), np.float32)}, "float32 values", id="float32 picture"),
        pytest.param({"picture": np.ones((9, 9, 3), np.int64)}, "int64 values", id="integer picture"),
        pytest.param({"picture": np.ones((9, 9, 3), bool)}, "bool values", id="picture of bool"),
        pytest.param({"picture": np.ones((9, 9), np.uint8)}, r"shape \(9, 9\), not an RGB", id="gray picture"),
        pytest.param({"picture": np.ones((9, 9, 4), np.uint8)}, r"shape \(9, 9, 4\), not an RGB", id="RGBA"),
        pytest.param({"picture": np.ones((3, 9, 9), np.uint8)}, r"shape \(3, 9, 9\), not an RGB", id="channels first"),
        pytest.param({"picture": np.ones((0, 9, 3), np.uint8)}, r"shape \(0, 9, 3\), not an RGB", id="empty picture"),
        pytest.param({"picture": None}, r"cannot draw itself: .*shape \(\)", id="no picture"),
        pytest.param({"picture": []}, r"cannot draw itself: .*shape \(0,\)", id="list of no picture"),
        pytest.param({"picture": fail(KeyError())}, "cannot draw itself: KeyError", id="error without a message"),
        pytest.param({"reward": np.zeros(2)}, r"stepped: .*shape \(2,\); it must return one number", id="two rewards"),
        pytest.param({"reward": np.zeros(0)}, r"stepped: .*shape \(0,\)", id="empty reward"),
        pytest.param({"reward": math.nan}, "stepped: step.* returned the reward nan", id="reward NaN"),
        pytest.param({"reward": math.inf}, "stepped: step.* returned the reward inf", id="reward infinite"),
        pytest.param({"reward": None}, "cannot be stepped: ", id="no reward"),
        pytest.param({"reward": "much"}, "cannot be stepped: ", id="reward in words"),
        pytest.param(
            {"step_answer": (0, 0.0, False, {})}, "stepped: .*must return observation, reward", id="step of 4"
        ),
        pytest.param({"step_answer": 0}, "cannot be stepped: ", id="step of nothing"),
        pytest.param({"step_answer": (0, 0.0, np.zeros(2, bool), False, {})}, "cannot be stepped: ", id="two ends"),
        pytest.param({"step_answer": fail(OSError("lost\nfor good"))}, "cannot be stepped: lost$", id="step fails"),
        pytest.param({"step_answer": fail(SystemExit(3))}, "cannot be stepped: 3", id="step exits"),
        pytest.param(
            {"reset_answer": np.zeros(2)}, "be reset: .*must return an observation and a dict", id="reset of 1"
        ),
        pytest.param(
            {"reset_answer": (1, {}, 2)}, "be reset: .*must return an observation and a dict", id="reset of 3"
        ),
        pytest.param({"reset_answer": fail(TypeError("no seed"))}, "cannot be reset: no seed", id="reset fails"),
        pytest.param({"space": box(-3.4e38, 3.4e38)}, "finite bounds, for example by .*TransformAction", id="3.4e38"),
        pytest.param({"space": box(-math.inf, math.inf)}, "finite bounds", id="infinite bounds"),
        pytest.param({"space": box(-1, 1e10)}, "finite bounds", id="one bound of 1e10"),
        pytest.param({"space": box_of_nan()}, "finite bounds", id="a bound is NaN"),
        pytest.param({"space": box(shape=(0,))}, "and there is none", id="no actions"),
        pytest.param({"space": box(shape=())}, "one dimension", id="scalar action"),
        pytest.param({"space": box(shape=(2, 2))}, "one dimension", id="matrix of actions"),
        pytest.param({"space": box(0, 5, dtype=np.int64)}, "Box of floats", id="whole numbers"),
        pytest.param({"space": gymnasium.spaces.Dict({"a": box()})}, "Box of floats", id="dict of actions"),
        pytest.param({"render_modes": None}, "no render mode rgb_array", id="no render modes"),
        pytest.param({"render_modes": ["human"]}, "no render mode rgb_array", id="a window only"),
        pytest.param({"limit": 0}, "cannot make .*give --time_limit", id="no time"),
        pytest.param({"limit": -5}, "give --time_limit", id="negative time limit"),
        pytest.param({"limit": -1}, "give --time_limit", id="no time limit"),
        pytest.param({"limit": None}, "has no time limit of its own; give --time_limit", id="time limit None"),
        pytest.param({"limit": 2.5}, "give --time_limit", id="time limit no whole number"),
        pytest.param({"colour": 3, "render_fps": None, "nonsense": box, "space": 3}, "Box of floats", id="space of 3"),
    ],
)
def test_an_environment_is_tried_before_anything_is_made(
    answers: dict[str, Any], expected: str, paint: Paint, tmp_path: Path
) -> None:
    words = [*shlex.split(TINY), "--env", f"gym:{paint(**answers)}", "--work_dir", str(tmp_path / "runs")]
    answer = call(words)
    assert_refused(answer)
    (line,) = answer.lines
    assert line.startswith("train.py: error: --env")
    assert re.search(expected, line), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param({}, id="as it should be"),
        pytest.param({"reward": np.ones(1)}, id="reward of shape (1,)"),
        pytest.param({"reward": np.float32(0.5)}, id="NumPy's number"),
        pytest.param({"reward": np.ones((1, 1), int)}, id="reward of shape (1, 1)"),
        pytest.param({"reward": [2]}, id="reward in a list"),
        pytest.param({"step_answer": (None, 1.0, np.zeros(1, bool), np.bool_(False), None)}, id="ends of NumPy"),
        pytest.param({"picture": lambda: np.zeros((30, 20, 3), np.uint8)[::-1]}, id="picture upside down in memory"),
        pytest.param({"space": box(0, 1e6, dtype=np.float64)}, id="wide bounds"),
    ],
)
def test_a_run_on_an_environment_that_fits(answers: dict[str, Any], paint: Paint, tmp_path: Path) -> None:
    words = [*shlex.split(TINY), "--env", f"gym:{paint(**answers)}", "--num_seed_steps=4", "--num_train_steps=25"]
    assert call([*words, "--time_limit=20", "--action_repeat=2", "--work_dir", str(tmp_path)]) == (0, [])
    (folder,) = tmp_path.glob("*/2*")
    assert call(["--resume", str(folder), "--num_train_steps=27"]) == (0, [])


@pytest.mark.parametrize("kind", [ConnectionError, SystemExit])
@pytest.mark.parametrize("lost", [20, 75])
def test_an_exception_of_the_environment_costs_no_training(
    lost: int, kind: type[BaseException], paint: Paint, tmp_path: Path
) -> None:
    """In an evaluation or in training: the run ends with a checkpoint and one line, and can be resumed."""
    calls = itertools.count()

    def reward() -> float:
        if next(calls) == lost:
            raise kind("the simulator is gone")
        return 0.5

    words = [*shlex.split(TINY), "--env", f"gym:{paint(reward=reward)}", "--time_limit=20", "--action_repeat=1"]
    answer = call([*words, "--eval_frequency=25", "--work_dir", str(tmp_path)])
    assert (answer.code, len(answer.lines)) == (1, 1)
    expected = rf"step\(\) raised {kind.__name__}: the simulator is gone; saved up to frame \d+"
    assert re.search(expected, answer.lines[0])
    (folder,) = tmp_path.glob("*/2*")
    assert call(["--resume", str(folder)]) == (0, [])
    assert [row["step"] for row in rows(folder / "eval.csv")] == ["0", "30"]


def test_an_episode_of_50_frames_counts_56(paint: Paint, tmp_path: Path) -> None:
    """With an action repeat of 8, as docs/outputs.md says: seven agent steps, of which the last has 2 frames."""
    name = paint(reward=1.0)
    words = [*shlex.split(TINY), "--env", f"gym:{name}", "--time_limit=50", "--action_repeat=8", "--num_train_steps=7"]
    assert call([*words, "--num_seed_steps=7", "--eval_frequency=0", "--work_dir", str(tmp_path)]).code == 0
    (row,) = rows(next(tmp_path.glob("*/2*/train.csv")))
    assert (row["step"], float(row["episode_reward"])) == ("56", 50.0)


@pytest.mark.parametrize("fps", [None, 0, -5, math.nan, math.inf, "fast", [], 10**400])
def test_a_useless_frame_rate_is_replaced(
    fps: Any, paint: Paint, make_env: MakeEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one warning, however many environments are made; None is how some write that there is none."""
    envs.gym_env._warn_once.cache_clear()
    name = paint(render_fps=fps)
    assert [make_env(name, action_repeat=2).metadata["render_fps"] for _ in range(2)] == [15.0, 15.0]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (fps is not None)
    assert all("render_fps" in line and "play at 30" in line for line in lines)


def test_a_reward_that_becomes_infinite_ends_the_episode(paint: Paint, make_env: MakeEnv) -> None:
    rewards = [1.0]
    env = make_env(paint(reward=lambda: rewards[-1]))
    env.reset(seed=0)
    rewards.append(math.inf)
    with pytest.raises(SimulationError, match="the reward inf"):
        env.step(np.zeros(2, np.float32))


def test_an_environment_with_its_own_random_numbers_is_refused(
    paint: Paint, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint could not hold them."""
    for odd in (np.random.RandomState(0), np.random.Generator(np.random.MT19937(0))):
        monkeypatch.setattr(PaintedEnv, "np_random", odd)
        with pytest.raises(TaskError, match=r"cannot be resumed.*default generator"):
            make_env(paint())


def test_nothing_is_tried_without_a_renderer(paint: Paint, make_env: MakeEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep is planned on machines that may have none."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert make_env(paint(picture=fail(OSError("drawn")))).max_episode_steps == 20


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "1 / 0", "def"])
def test_a_module_that_cannot_be_imported(
    code: str, make_env: MakeEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_environment.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_environment", raising=False)
    with pytest.raises(TaskError, match="gymnasium cannot make 'broken_environment:X-v0': "):
        make_env("broken_environment:X-v0")


def test_other_environments_do_not_change_pictures(make_env: MakeEnv) -> None:
    """Neither one that is closed, as gymnasium's AsyncVectorEnv makes one, nor one of another model."""
    env = make_env(image_size=32)
    env.reset(seed=1)
    expected = env.render(32, 32)
    GymPixelEnv(TASK, image_size=32).close()
    np.testing.assert_array_equal(env.render(32, 32), expected)
    other = make_env("InvertedDoublePendulum-v5", image_size=32)
    other.reset(seed=1)
    np.testing.assert_array_equal(env.render(32, 32), expected)
    assert (other.render(32, 32) != expected).any()
