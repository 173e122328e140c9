"""The environment that a configuration names."""

from __future__ import annotations

import pickle
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from config import Config
from dmc import DMCEnv
from envs.gym_env import GymPixelEnv
from envs.make import make_environment
from errors import UserError
from running.derivation import make_config

pytestmark = pytest.mark.usefixtures("renderer")


def config(**flags: Any) -> Config:
    return make_config({"env": "cartpole_swingup", "device": "cpu", **flags})


@pytest.mark.parametrize(
    ("env", "kind"),
    [("cartpole_swingup", DMCEnv), ("dmc_walker_run", DMCEnv), ("gym:InvertedPendulum-v5", GymPixelEnv)],
)
def test_the_name_decides_the_class(env: str, kind: type) -> None:
    with closing(make_environment(config(env=env))) as made:
        assert type(made) is kind


@pytest.mark.parametrize("env", ["cartpole_swingup", "gym:InvertedPendulum-v5"])
def test_flags_reach_the_environment(env: str) -> None:
    """20 frames in repeats of 8: three agent steps."""
    flags = {"image_size": 40, "frame_stack": 2, "action_repeat": 8, "time_limit": 20}
    with closing(make_environment(config(env=env, **flags))) as made:
        assert made.observation_space.shape == (6, 40, 40)
        assert made.max_episode_steps == 3


def test_the_floor_of_a_walking_body() -> None:
    colored, plain = (make_environment(config(env="walker_walk", floor=floor)) for floor in ("coloured", "suite"))
    with closing(colored), closing(plain):
        assert (colored.reset(seed=1)[0] != plain.reset(seed=1)[0]).any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"env": "walker_rum"}, r"--env: .*'walker_rum'; did you mean walker_run"),
        ({"env": "gym:Nothing-v0"}, r"--env: gymnasium cannot make 'Nothing-v0'"),
        ({"env": "pont:reach"}, r"--env pont:reach: unknown prefix pont:; give gym: or"),
        ({"env": "cartpole_swingup", "floor": "coloured"}, r"--env: cartpole_swingup has no walking body \(cheetah, "),
        ({"env": "gym:InvertedPendulum-v5", "floor": "coloured"}, r"--floor coloured: --env gym:.* leave the flag out"),
        ({"frame_stack": 10**9}, r"--image_size 84 with --frame_stack 1000000000 needs .*; choose a smaller value"),
        ({"frame_stack": 2**63 - 1, "image_size": 4096}, r"--frame_stack 9223372036854775807 needs"),
        (
            {"time_limit": 10**15, "replay_buffer_capacity": 10**15},
            r"--image_size \d+ with --time_limit 1000000000000000: an episode of 250000000000000 agent steps needs at "
            r"least [\d,]+",
        ),
        (
            {"time_limit": 20, "action_repeat": 10**9},
            r"--env: an episode has 20 frames, an action takes \d+; give a smaller --action_repeat",
        ),
        ({"env": "lqr_lqr_2_1"}, r"--env lqr_lqr_2_1 has no time limit of its own; give --time_limit"),
        (
            {"action_repeat": 4, "replay_buffer_capacity": 249},
            r"--replay_buffer_capacity must hold one episode, which is 250 agent steps",
        ),
    ],
)
def test_what_does_not_fit_is_a_user_error(flags: dict[str, Any], message: str) -> None:
    """Cartpole's own limit is 1000 frames."""
    with pytest.raises(UserError, match=message):
        make_environment(config(**flags))


def test_a_replay_buffer_of_exactly_one_episode_is_enough() -> None:
    with closing(make_environment(config(action_repeat=4, replay_buffer_capacity=250))) as made:
        assert made.max_episode_steps == 250


def test_the_factory_of_worker_processes_can_be_pickled() -> None:
    factory = pickle.loads(pickle.dumps(partial(make_environment, config(time_limit=16))))
    with closing(factory()) as made:
        assert made.max_episode_steps == 4
