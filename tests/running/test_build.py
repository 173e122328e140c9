"""The parts of a run: which flags reach them, their random streams, device and memory."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config import Role, flags_with
from diayn import DIAYNAgent
from dmc import DMCEnv
from drq import DrQAgent
from envs.gym_env import GymPixelEnv
from errors import RunError, UserError
from running import build
from running.build import (
    choose_device,
    cuda_headroom,
    make_agent,
    make_deterministic,
    make_replay_buffer,
    memory_needed,
    out_of_memory_is_an_error,
    warn_of_cpu,
)
from tests.support.labs import Prepare
from tests.support.program import parse

EVERY_AGENT_FLAG = (  # none has its default
    "--device cpu --augmentation none --image_pad 2 --lr 0.02 --discount 0.5 --extrinsic_reward_coeff 0.7 "
    "--init_temperature 0.3 --actor_update_frequency 3 --critic_tau 0.2 --critic_target_update_frequency 5 "
    "--encoder_feature_dim 7 --hidden_dim 9 --hidden_depth 1 --log_std_bounds -4 1 --precision bf16"
)
EVERY_DIAYN_FLAG = (
    f"{EVERY_AGENT_FLAG} --num_skills 3 --skill_embedding_dim 4 --lr_discriminator 0.03 --discriminator_encoder shared "
    "--diayn_intrinsic_reward_coeff 0.6 --skill_sampling stratified --skill_embedding_init orthogonal "
    "--intrinsic_reward_from before --discriminator_ensemble 2 --disdain_coeff 0.4"
)

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


# -- flags -------------------------------------------------------------------------------------------------------------


def parameters(kind: type) -> set[str]:
    """Return the constructor's parameters; if it passes keyword arguments on, also those of its base class."""
    own = inspect.signature(kind).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
    return set(own) | (parameters(kind.__bases__[0]) if passes_on else set())


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (DrQAgent, f"{EVERY_AGENT_FLAG} --num_skills 0 --temperature fixed"),
        (DIAYNAgent, f"{EVERY_DIAYN_FLAG} --temperature fixed"),
        (DIAYNAgent, f"{EVERY_DIAYN_FLAG} --temperature learned"),
    ],
)
def test_flags_reach_the_agent(agent: type[DrQAgent], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter that is a flag gets its value; the line changes every one of them."""
    config, default = parse(line), parse("--num_skills 0")
    flags = parameters(agent) & set(vars(config)) - {"seed"}
    monkeypatch.setattr(build, agent.__name__, lambda *shapes, **given: given)
    given: Any = make_agent(config, (9, 24, 24), 2)
    assert len(flags) >= 15
    assert {name: given[name] for name in flags} == {name: getattr(config, name) for name in flags}
    assert given["learn_temperature"] == (config.temperature == "learned")
    of_skills = {"num_skills", "skill_embedding_dim", "skill_embedding_init"} if agent is DrQAgent else set()
    changed = {name for name in flags if getattr(config, name) != getattr(default, name)}
    assert flags - of_skills - {"device"} - changed == set(), "EVERY_AGENT_FLAG or EVERY_DIAYN_FLAG must change them"


def test_roles_are_parameters() -> None:
    """A flag with the role of a part is a parameter of that part, and the other way round."""
    flags = set(vars(parse("")))
    agent, diayn = (set(flags_with(role)) for role in (Role.AGENT, Role.DIAYN))
    assert not agent & diayn
    assert agent | diayn == parameters(DIAYNAgent) & flags - {"seed"}
    assert agent <= parameters(DrQAgent)
    for env, own in ((DMCEnv, {"floor"}), (GymPixelEnv, set())):
        assert set(flags_with(Role.ENVIRONMENT)) | own == parameters(env) & flags


@pytest.mark.parametrize(("agent", "num_skills", "count"), [(DrQAgent, 0, 16), (DIAYNAgent, 4, 6)])
def test_defaults_of_the_agents_are_the_flags(agent: type[DrQAgent], num_skills: int, count: int) -> None:
    """DIAYNAgent has its own ones; it passes all other settings on to DrQAgent."""
    config = parse(f"--num_skills {num_skills}")
    flags = {**dataclasses.asdict(config), "learn_temperature": config.temperature == "learned"}
    defaults = {p.name: p.default for p in inspect.signature(agent).parameters.values() if p.default is not p.empty}
    for absent in () if num_skills else ("num_skills", "skill_embedding_dim"):
        assert defaults.pop(absent) == 0
    assert len(defaults) == count
    assert defaults == {name: flags[name] for name in defaults}


# -- random streams ----------------------------------------------------------------------------------------------------


def test_every_stream_follows_the_seed(prepare: Prepare) -> None:
    labs = [prepare(f"--seed {seed} --eval_frequency 10 --num_eval_episodes 2") for seed in (1, 2)]
    streams = [
        (
            lab.run.skill_rng.bit_generator.state,
            lab.run.buffer.state_dict()["rng"],
            lab.run.env.action_space.np_random.bit_generator.state,
            lab.run.agent.generator.initial_seed(),
        )
        for lab in labs
    ]
    assert all(one != other for one, other in zip(*streams, strict=True))
    first, second = ({played.seed for played in lab.play().evaluated()} for lab in labs)
    assert len(first) == len(second) == 2 * 4, "each evaluation has its own starts"
    assert not first & second


def test_the_streams_of_a_run_differ(prepare: Prepare) -> None:
    """Skills, batches, random actions, noise and weights, as each would be drawn first."""
    run = prepare("--seed 7").run
    places = [
        run.skill_rng.bit_generator.state,
        run.buffer.state_dict()["rng"],
        run.env.action_space.np_random.bit_generator.state,
    ]
    assert len({place["state"]["state"] for place in places}) == 3
    assert run.agent.generator.initial_seed() != torch.initial_seed() == 7


def test_random_actions_have_their_own_stream(prepare: Prepare) -> None:
    """A Gymnasium environment gets the seed itself: its starts must not be the random numbers of the actions."""
    run = prepare().run
    streams = [run.env.action_space.np_random, np.random.default_rng(run.config.seed)]
    actions, starts = (stream.random(8).tolist() for stream in streams)
    assert actions != starts


# -- device and memory -------------------------------------------------------------------------------------------------


def test_the_cpu_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_device("cpu") == "cpu"
    assert capsys.readouterr().err == ""


@no_cuda
def test_without_cuda_the_default_is_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_device(None) == "cpu"
    assert capsys.readouterr().err == ""
    for wanted in (None, "cpu"):
        warn_of_cpu(wanted, "cpu")
    assert capsys.readouterr().err.count("warning: no CUDA device was found") == 1


@no_cuda
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_does_not_exist(wanted: str) -> None:
    with pytest.raises(UserError, match=rf"--device {wanted}: .*found here: 0; use --device cpu"):
        choose_device(wanted)


@pytest.mark.parametrize("wanted", ["", "gpu", "cuda:", "cuda:-1", "cuda0", "cpu:0", "CPU", "mps"])
def test_a_device_that_is_misspelled(wanted: str) -> None:
    with pytest.raises(UserError, match="--device must be cuda, cuda:N or cpu"):
        choose_device(wanted)


@pytest.mark.parametrize(("wanted", "expected"), [(None, "high"), ("cuda", "high"), ("cpu", "highest")])
def test_tf32_on_cuda_only(wanted: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products follow cuDNN's convolutions, whose default is TF32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = torch.get_float32_matmul_precision()
    try:
        choose_device(wanted)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_device_memory_that_is_left_free() -> None:
    """It grows with the batch and with the pictures, and is about 5 GB at a batch of 512."""
    lines = ("--batch_size 512", "--batch_size 512 --cuda_graphs false", "--batch_size 512 --image_size 168", "")
    large, direct, sharp, usual = (cuda_headroom(parse(line)) for line in lines)
    assert 5e9 < large < 6e9
    assert usual < direct < large < sharp
    one, several = (cuda_headroom(parse(f"--batch_size 512 --discriminator_ensemble {members}")) for members in (1, 5))
    assert large == one < several


@pytest.mark.usefixtures("deterministic")
def test_deterministic_settings() -> None:
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_memory_of_the_replay_buffer_is_printed(prepare: Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    prepare()
    printed = capsys.readouterr().out
    assert re.search(r"replay buffer: 500 transitions need [\d.]+ [KM]B, [\d.]+ [MG]B are free", printed)


def test_a_replay_buffer_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message proposes a capacity that fits."""
    monkeypatch.setattr(build, "free_memory", lambda: 10**8)
    config = parse("--device cpu --replay_buffer_capacity 100000")
    with pytest.raises(UserError, match=r"--replay_buffer_capacity: 100000 transitions need .*; try \d+$") as caught:
        make_replay_buffer(config, (3, 84, 84), 1)
    proposed = str(caught.value).rpartition(" ")[2]
    make_replay_buffer(parse(f"--device cpu --replay_buffer_capacity {proposed}"), (3, 84, 84), 1)


TOO_LARGE = (
    "--hidden_dim 1e6",
    "--encoder_feature_dim 1e8",
    "--num_skills 1e9",
    "--batch_size 1e10",
    "--num_eval_episodes 1e9",
)


@pytest.mark.parametrize("line", [*TOO_LARGE, "--eval_workers 1e6 --num_eval_episodes 1e5"])
def test_what_does_not_fit_in_memory_is_refused_before_it_is_made(line: str, prepare: Prepare, tmp_path: Path) -> None:
    """The system would end the process instead."""
    flag = re.escape(f"{line.split()[0]} {int(float(line.split()[1]))}")
    with pytest.raises(UserError, match=rf"^{flag} needs at least [\d,.]+ GB, [\d.]+ GB are free; choose a smaller"):
        prepare(line)
    assert list(tmp_path.iterdir()) == []


def test_the_memory_needed_is_no_overestimate() -> None:
    config = parse("--device cpu --hidden_depth 3 --num_skills 1000 --skill_embedding_dim 500")
    agent = make_agent(config, (9, 16, 16), 1)  # small pictures, whose convolutions are not counted
    needed = memory_needed(config, (9, 16, 16), 250)
    trained = sum(parameter.nbytes for module in agent.modules().values() for parameter in module.parameters())
    made = 4 * trained + sum(parameter.nbytes for parameter in agent.critic_target.parameters())
    assert 0.4 * made < needed["--hidden_dim 1024"] + needed["--num_skills 1000"] < made
    assert needed["--batch_size 128"] > 2 * 128 * 9 * 16 * 16  # the observations and the next ones


def test_the_memory_of_an_ensemble_is_no_overestimate() -> None:
    config = parse("--device cpu --hidden_dim 64 --num_skills 3 --discriminator_ensemble 2")
    agent = make_agent(config, (9, 84, 84), 1)
    assert isinstance(agent, DIAYNAgent)
    made = 4 * sum(parameter.nbytes for member in agent.discriminators for parameter in member.parameters())
    assert 0.9 * made < memory_needed(config, (9, 84, 84), 250)["--discriminator_ensemble 2"] < made


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_an_error(error: Exception, reported: bool) -> None:
    with pytest.raises(RunError if reported else type(error)) as caught, out_of_memory_is_an_error("this"):
        raise error
    if reported:
        assert str(caught.value) == "there is not enough memory for this; choose a smaller size"
    else:
        assert caught.value is error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; they need a /dev/shm that is writable"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; they need .*--eval_workers 0$"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; try fewer$"),
        (EOFError(), "a worker process ended at its start; try fewer$"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "a worker process ended at its start; try fewer$"),
    ],
)
def test_workers_that_cannot_be_started(
    error: OSError, expected: str, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(build, "open_eval_envs", fail)
    with pytest.raises(UserError, match=f"^--eval_workers 3: .*{expected}"):
        prepare("--eval_workers 3")
    assert list(tmp_path.iterdir()) == []
