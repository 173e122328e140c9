"""Checks of the numbers that a CUDA device computes: graphs, gradients, augmentations, evaluation, replay buffer.

Each check returns what it measured, and raises an exception if the device does not pass.
"""

from __future__ import annotations

import copy
import gc
import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu_setup import ACTION_DIM, AGENTS, NUM_SKILLS, SKILLS, Measured, Setup, assert_equal, named, require
from benchmarks.parts import gradient_gap
from config import FIELDS
from drq import DrQAgent
from errors import RunError
from logger import Meters
from replay_buffer import Batch, ReplayBuffer
from running.build import make_deterministic, out_of_memory_is_an_error
from running.columns import update_metrics
from tests.support.oracle import random_batch

LARGEST_GAP = 1e-3  # between losses and gradients and the baseline's, relative
LARGEST_ROW_GAP = 0.05  # of actions and intrinsic rewards, between evaluations of different numbers of rows
EPISODE = 125  # transitions of an episode in the large replay buffer
PAST_THE_END = 600  # frames that are stored after it is full


# -- agents ------------------------------------------------------------------------------------------------------------


def graphs(setup: Setup) -> Measured:
    """Updates, actions and assessments from CUDA graphs equal direct ones to the bit, in deterministic mode.

    For every agent and precision, an even or odd first update, actor frequencies 2 and 3, batch sizes that change and
    return, and after loading a state.
    """
    make_deterministic()
    cases = list(itertools.product(AGENTS, ("fp32", "bf16"), ((0, 2), (1, 2), (0, 3))))
    for name, precision, (first, frequency) in cases:
        with named(f"{name}, {precision}, first update {first}, actor frequency {frequency}"):
            flags = {**AGENTS[name], "precision": precision, "actor_update_frequency": frequency}
            direct, graphed = setup.agent(**flags), setup.agent(**flags)
            graphed.use_cuda_graphs()
            compare(setup, direct, graphed, first, window="discriminator_window" in flags)
        del direct, graphed
        gc.collect()
        torch.cuda.empty_cache()  # each agent had a memory pool of its own
    return {"cases": len(cases)}


def compare(setup: Setup, direct: DrQAgent, graphed: DrQAgent, first: int, *, window: bool) -> None:
    """Give both agents the same batches and assert that they stay equal.

    `first` is the number of the first update. With `window`, the discriminator has a batch of its own.
    """

    def make_batch(size: int, seed: int) -> Batch:
        return random_batch(size, setup.obs_shape, ACTION_DIM, NUM_SKILLS, seed, setup.device)

    agents = (direct, graphed)
    for agent in agents:
        agent.num_updates = first
    for number, size in enumerate([setup.batch_size] * 6 + [setup.odd_size] * 2 + [setup.batch_size]):
        batches = [make_batch(size, seed) for seed in ((number, 100 + number) if window else (number,))]
        with named(f"update {number}"):
            assert_equal(*(outputs(agent, *batches) for agent in agents))
        if number == 3:
            state = copy.deepcopy(direct.state_dict())
    assert_equal(*(learned(agent) for agent in agents))
    with named("after loading a state"):
        for agent in agents:
            agent.load_state_dict(state)
            agent.update(*batches)
        assert_equal(*(learned(agent) for agent in agents))


def outputs(agent: DrQAgent, batch: Batch, *recent: Batch) -> dict[str, Any]:
    """Update the agent and return what it gives out: metrics, gradients and weights, an action, an assessment."""
    metrics = agent.update(batch, *recent)
    obs, skill = batch.obs.cpu().numpy(), batch.skill.cpu().numpy()
    rows = len(obs) // 2
    return {
        "metrics": metrics,
        "weights and gradients": dict(agent.histograms()),
        "action": agent.act(obs[0], int(skill[0]), sample=True),
        "assessment": list(agent.assess(obs[:rows], skill[:rows])),
    }


def learned(agent: DrQAgent) -> dict[str, Any]:
    """Return what updates change."""
    state = agent.state_dict()
    return {name: state[name] for name in ("modules", "optimizers", "log_alpha", "generator", "num_updates")}


def gradients(setup: Setup) -> Measured:
    """Losses and gradients are those of the plain baseline, without TF32."""
    gaps = {f"num_skills {skills}": gradient_gap(setup.bench_args(num_skills=skills)) for skills in (0, NUM_SKILLS)}
    require(max(gaps.values()) < LARGEST_GAP, f"relative differences to the baseline: {gaps}")
    return gaps


def waits(setup: Setup) -> Measured:
    """Sampling, updating and adding up metrics do not wait for the device, with frames there or on the host."""
    for augmentation, storage, graphed in itertools.product(
        ("shift", "none", "intensity"), (setup.device, "cpu"), (True, False)
    ):
        with named(f"{augmentation}, frames on {storage}, {'graphs' if graphed else 'no graphs'}"):
            agent = setup.agent(**SKILLS, augmentation=augmentation)
            if graphed:
                agent.use_cuda_graphs()
            update_without_waiting(setup, agent, storage)
    return {}


def update_without_waiting(setup: Setup, agent: DrQAgent, storage: str) -> None:
    """Warm up, then update with an exception for every synchronization with the device."""
    frame_shape = (3, *setup.obs_shape[1:])
    buffer = ReplayBuffer(300, frame_shape, 3, ACTION_DIM, device=setup.device, storage=storage)
    obs = np.zeros(setup.obs_shape, np.uint8)
    buffer.start_episode(obs)
    for step in range(200):
        buffer.add(np.zeros(ACTION_DIM, np.float32), 0.0, obs, False, step % NUM_SKILLS)
    meters = Meters(update_metrics(with_skills=True))
    for mode, updates in (("default", 4), ("error", 4)):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for _ in range(updates):
                meters.add(agent.update(buffer.sample(setup.batch_size)))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def augmentations(setup: Setup) -> Measured:
    """An agent can be updated with every augmentation."""
    names = FIELDS["augmentation"].metadata["choices"]
    for name in names:
        with named(name):
            agent = setup.agent(num_skills=0, augmentation=name)
            agent.use_cuda_graphs()
            for number in range(4):
                batch = random_batch(setup.batch_size, setup.obs_shape, ACTION_DIM, 0, number, setup.device)
                metrics = agent.update(batch)
                require(torch.stack(list(metrics.values())).isfinite().all(), f"metrics: {metrics}")
            require(agent.is_finite(), "the weights are not finite")
    return {"augmentations": list(names)}


def evaluation_rows(setup: Setup) -> Measured:
    """An evaluation hardly depends on how many episodes are played at once; whether it does to the bit is measured."""
    gaps = {}
    for precision in ("fp32", "bf16"):
        agent = setup.agent(**SKILLS, precision=precision)
        agent.use_cuda_graphs()
        batch = random_batch(40, setup.obs_shape, ACTION_DIM, NUM_SKILLS, 0)
        obs, skill = batch.obs.numpy(), batch.skill.numpy()
        results = {rows: assessed(agent, obs, skill, rows) for rows in (40, 10, 1)}
        for rows in (10, 1):
            for name, expected in results[40].items():
                gap = float(np.abs(results[rows][name] - expected).max())
                gaps[f"{precision}, {rows} and 40 rows, {name}"] = gap
    require(max(gaps.values()) < LARGEST_ROW_GAP, f"largest differences: {gaps}")
    return gaps


def assessed(agent: DrQAgent, obs: np.ndarray, skill: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Return the actions and intrinsic rewards for all observations, given `rows` at a time."""
    parts = range(0, len(obs), rows)
    answers = [copy.deepcopy(agent.assess(obs[i : i + rows], skill[i : i + rows])) for i in parts]
    names = ("action", "intrinsic_reward")
    return {name: np.concatenate([getattr(answer, name) for answer in answers]) for name in names}


def out_of_memory(setup: Setup) -> Measured:
    """A lack of device memory while a graph is recorded is reported as such."""
    agent = setup.agent(**SKILLS)
    agent.use_cuda_graphs()
    assert agent.graphs is not None
    batch = random_batch(setup.batch_size, setup.obs_shape, ACTION_DIM, NUM_SKILLS, 0, setup.device)
    warm_up, warmed = agent.graphs._warm_up, False

    def warm_up_then_limit(*arguments: Any) -> Any:
        """Leave no memory for what comes next, which is the recording."""
        nonlocal warmed
        results, warmed = warm_up(*arguments), True
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_allocated() / max(total, 1))
        return results

    try:
        with patch.object(agent.graphs, "_warm_up", warm_up_then_limit), out_of_memory_is_an_error("an update"):
            agent.update(batch)
    except RunError as error:
        require(warmed, f"before the recording: {error}")
        return {"message": str(error)}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    raise AssertionError("the recording needed no memory")


# -- replay buffer -----------------------------------------------------------------------------------------------------


def ring(setup: Setup) -> Measured:
    """A full ring gives back every transition, and so does one that is restored from a checkpoint deterministically.

    The frames and the reward of a transition hold the number of its newest frame, the action that of the first frame of
    its episode.
    """
    buffer = make_ring(setup)
    elements = buffer.frame_capacity * 3 * setup.ring_image**2
    require(elements > setup.ring_elements, f"the frames have only {elements} elements")
    fill(buffer, setup.ring_image)
    require(len(buffer) > setup.ring_capacity * 0.99, f"only {len(buffer)} transitions are held")
    for batch in buffer.recent(len(buffer), 1024):
        check_frames(batch)
    check_frames(buffer.sample(512))

    make_deterministic()
    part = buffer.transitions_since(buffer.frames_written - 2 * PAST_THE_END)  # from both ends of the ring
    restored = make_ring(setup)
    restored.load_state_dict(buffer.state_dict())
    restored.load_transitions(part)
    for batch in restored.recent(len(part["reward"]) - buffer.frame_stack, 256):  # the frames of the others are older
        check_frames(batch)
    return {"elements": elements, "transitions": len(buffer), "restored": len(part["reward"])}


def make_ring(setup: Setup) -> ReplayBuffer:
    shape = (3, setup.ring_image, setup.ring_image)
    return ReplayBuffer(setup.ring_capacity, shape, 3, 1, device=setup.device, storage=setup.device)


def fill(buffer: ReplayBuffer, image_size: int) -> None:
    """Store whole episodes until PAST_THE_END frames have been overwritten."""
    obs = np.zeros((9, image_size, image_size), np.uint8)
    while buffer.frames_written < buffer.frame_capacity + PAST_THE_END:
        first = buffer.frames_written
        obs[-3:] = digits(first)
        buffer.start_episode(obs)
        for number in range(first + 1, first + 1 + EPISODE):
            obs[-3:] = digits(number)
            buffer.add(np.full(1, first, np.float32), number, obs, False)


def digits(number: int) -> np.ndarray:
    """Return the number in base 256, lowest digit first: uint8 (3, 1, 1)."""
    return np.array([number & 255, number >> 8 & 255, number >> 16], np.uint8)[:, None, None]


def check_frames(batch: Batch) -> None:
    """Assert that the frames at both ends of each picture are those that the reward and the action name."""
    first, newest = batch.action.long(), batch.reward.long()[:, None]
    ages = torch.tensor([2, 1, 0], device=newest.device)
    values = torch.tensor([1, 256, 256**2], device=newest.device)
    for images, last in ((batch.obs, newest - 1), (batch.next_obs, newest)):
        frames = images.unflatten(1, (3, 3))
        for corner in (0, -1):
            numbers = (frames[..., corner, corner].long() * values).sum(dim=-1)
            assert_equal(numbers, torch.maximum(last - ages, first))
