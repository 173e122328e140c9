"""The replay buffer against a brute-force reference that keeps every stacked observation."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_buffer import NO_SKILL, Batch, ReplayBuffer

FRAME_SHAPE = (2, 2, 3)
ACTION_DIM = 2


class Transition(NamedTuple):
    """One transition as it was put in, and the running number of the oldest frame that its observation shows."""

    obs: np.ndarray
    action: np.ndarray
    reward: float
    next_obs: np.ndarray
    terminated: bool
    skill: int
    oldest_frame: int


class Recorder:
    """Feeds a replay buffer and keeps everything. Every frame holds its running number, in two channels of pixels.

    The first action component is the transition's running number, by which a sampled one is found again.
    """

    def __init__(self, capacity: int, frame_stack: int = 3, seed: int = 0) -> None:
        self.buffer = ReplayBuffer(capacity, FRAME_SHAPE, frame_stack, ACTION_DIM, seed=seed)
        self.frames: deque[tuple[int, np.ndarray]] = deque(maxlen=frame_stack)
        self.frame_count = 0
        self.transitions: list[Transition] = []
        self.rng = np.random.default_rng(0)

    def new_frame(self) -> tuple[int, np.ndarray]:
        number = self.frame_count
        self.frame_count += 1
        pixels = self.rng.integers(256, size=FRAME_SHAPE, dtype=np.uint8)
        pixels[:, 0, 0] = number % 256, number // 256
        return number, pixels

    def stack(self) -> np.ndarray:
        return np.concatenate([pixels for _, pixels in self.frames])

    def reset(self) -> None:
        first = self.new_frame()
        self.frames.extend([first] * (self.frames.maxlen or 1))
        self.buffer.start_episode(self.stack())

    def step(self, terminated: bool = False, skill: int = NO_SKILL) -> None:
        obs, oldest = self.stack(), self.frames[0][0]
        action = np.array([len(self.transitions), self.rng.normal()], np.float32)
        reward = float(np.float32(self.rng.normal()))
        self.frames.append(self.new_frame())
        self.buffer.add(action, reward, self.stack(), terminated, skill)
        self.transitions.append(Transition(obs, action, reward, self.stack(), terminated, skill, oldest))

    def episode(self, length: int, terminated: bool = False, skill: int = NO_SKILL) -> None:
        self.reset()
        for step in range(length):
            self.step(terminated and step == length - 1, skill)

    def held(self) -> list[Transition]:
        """The newest `capacity` transitions whose frames are all among the newest `frame_capacity`."""
        oldest = self.frame_count - self.buffer.frame_capacity
        return [t for t in self.transitions[-self.buffer.capacity :] if t.oldest_frame >= oldest]

    def check(self) -> None:
        """All that the buffer gives is what was put in, and all of what it must still hold."""
        held = self.held()
        assert len(self.buffer) == len(held)
        everything = list(self.buffer.recent(len(held), 5))
        assert [len(batch.reward) for batch in everything[:-1]] == [5] * (len(everything) - 1)
        assert_equal(everything, held)
        if not held:
            return
        batch = self.buffer.sample(16)
        numbers = batch.action[:, 0].long().tolist()
        first = len(self.transitions) - len(held)
        assert min(numbers) >= first
        assert_equal([batch], [self.transitions[number] for number in numbers])


def assert_equal(batches: list[Batch], transitions: list[Transition]) -> None:
    """Batches, one after the other, hold exactly these transitions in this order."""
    assert sum(len(batch.reward) for batch in batches) == len(transitions)
    if not transitions:
        return
    for field, dtype in zip(Batch._fields, ("u1", "f4", "f4", "u1", "f4", "i8"), strict=True):
        stored = np.concatenate([getattr(batch, field).numpy() for batch in batches])
        assert stored.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(stored, np.stack([getattr(t, field) for t in transitions]), err_msg=field)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.mean()
    return float(((counts - expected) ** 2 / expected).sum())


episodes = st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.integers(-1, 5)), min_size=1, max_size=12)


@settings(deadline=None)  # a busy machine is no failure
@given(capacity=st.integers(1, 40), frame_stack=st.integers(1, 4), episodes=episodes)
def test_buffer_equals_brute_force(capacity: int, frame_stack: int, episodes: list[tuple[int, bool, int]]) -> None:
    """Any episodes, also shorter than the stack or none at all, in rings of any size, checked all along."""
    recorder = Recorder(capacity, frame_stack)
    for length, terminated, skill in episodes:
        recorder.reset()
        recorder.check()
        for step in range(length):
            recorder.step(terminated and step == length - 1, skill)
            if step % 3 == 0:
                recorder.check()
        recorder.check()


@pytest.mark.parametrize("capacity", [1, 2, 63, 64, 65, 127, 128, 200])
def test_episodes_of_64_steps_fill_the_ring(capacity: int) -> None:
    """From 64 steps on, first frames cost no transition: the newest `capacity` are always all there."""
    recorder = Recorder(capacity)
    for episode in range(2 + 2 * capacity // 64):
        recorder.reset()
        assert len(recorder.buffer) == min(len(recorder.transitions), capacity)
        for _ in range(64):
            recorder.step(skill=episode)
            assert len(recorder.buffer) == min(len(recorder.transitions), capacity)
    assert len(recorder.transitions) > capacity
    recorder.check()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_episodes_drop_the_oldest_transitions(length: int) -> None:
    """Their first frames take room of the ring, and no frame that was overwritten is ever returned."""
    recorder = Recorder(capacity=128)
    for _ in range(300 // length):
        recorder.episode(length, terminated=True)
        recorder.check()
    ring = 128 + 128 // 64
    assert ring * length / (length + 1) - 3 <= len(recorder.buffer) < 128


def test_a_frame_is_stored_once() -> None:
    """At 100,000 transitions of 84 x 84 x 9 at least 5.8 times less memory than both stacks would take."""
    needed = ReplayBuffer.bytes_needed(100_000, (3, 84, 84), 3, action_dim=6)
    assert 2 * 100_000 * 9 * 84 * 84 / needed > 5.8


def test_bytes_needed_is_what_the_buffer_takes() -> None:
    buffer = ReplayBuffer(1000, FRAME_SHAPE, 3, ACTION_DIM)
    taken = sum(value.nbytes for value in vars(buffer).values() if isinstance(value, (np.ndarray, torch.Tensor)))
    assert ReplayBuffer.bytes_needed(1000, FRAME_SHAPE, 3, ACTION_DIM) == taken


def test_sampling_is_uniform_over_what_is_held() -> None:
    """After the ring has wrapped, and with some transitions dropped: all held ones are equally likely."""
    recorder = Recorder(capacity=64, seed=1)
    for _ in range(24):
        recorder.episode(7)
    held = len(recorder.buffer)
    assert 50 <= held < 64
    numbers = recorder.buffer.sample(300 * held).action[:, 0].long().numpy()
    counts = np.bincount(numbers - (len(recorder.transitions) - held), minlength=held)
    assert len(counts) == held
    assert chi_square(counts) < held - 1 + 3.1 * np.sqrt(2 * (held - 1)) + 4  # about p = 0.001


def test_sampling_is_with_replacement() -> None:
    recorder = Recorder(capacity=10)
    recorder.episode(3)
    assert len(recorder.buffer.sample(50).reward) == 50


def test_same_seed_same_batches_and_recent_draws_nothing() -> None:
    recorders = [Recorder(capacity=50, seed=seed) for seed in (1, 1, 2)]
    for recorder in recorders:
        recorder.episode(40)
    assert_equal(list(recorders[1].buffer.recent(40, 7)), recorders[1].transitions)
    one, same, other = (recorder.buffer.sample(32) for recorder in recorders)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.action, other.action)


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(0, 4, []), (3, 4, [3]), (8, 4, [4, 4]), (9, 4, [4, 4, 1])])
def test_recent_comes_oldest_first_in_batches(count: int, batch_size: int, sizes: list[int]) -> None:
    recorder = Recorder(capacity=10)
    recorder.episode(20)
    batches = list(recorder.buffer.recent(count, batch_size))
    assert [len(batch.reward) for batch in batches] == sizes
    assert_equal(batches, recorder.transitions[20 - count :])


@pytest.mark.parametrize(("length", "held"), [(20, 10), (1, 7)])
def test_recent_refuses_more_than_is_held(length: int, held: int) -> None:
    """Whether `capacity` sets the limit or the frames of short episodes do."""
    recorder = Recorder(capacity=10)
    for _ in range(20):
        recorder.episode(length)
    assert len(recorder.buffer) == held
    with pytest.raises(ValueError, match=f"{held + 1} transitions asked for, {held} held"):
        list(recorder.buffer.recent(held + 1, 4))


def test_empty_buffer_refuses_to_sample() -> None:
    recorder = Recorder(capacity=10)
    with pytest.raises(ValueError, match="empty"):
        recorder.buffer.sample(1)
    recorder.reset()
    with pytest.raises(ValueError, match="empty"):
        recorder.buffer.sample(1)
    assert len(recorder.buffer) == 0


def test_observations_are_uint8_and_channels_last() -> None:
    recorder = Recorder(capacity=10)
    recorder.episode(5)
    batch = recorder.buffer.sample(4)
    for images in (batch.obs, batch.next_obs):
        assert images.shape == (4, 6, 2, 3)
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert not images.is_contiguous()


def test_memory_that_does_not_exist_is_an_error_that_says_how_much() -> None:
    with pytest.raises(MemoryError, match=r"the replay buffer needs \d+\.\d\d GB"):
        ReplayBuffer(10**12, (3, 84, 84), 3, 1)


@pytest.mark.parametrize("terminate_at", [None, 5])
def test_skills_and_steps_stay_with_their_transitions(terminate_at: int | None, fake_env: Any) -> None:
    """Across resets and the ring's wrap, read off the pixels: channel 0 is the episode, channel 1 the step."""
    env = fake_env(episode_length=7, terminate_at=terminate_at, image_size=4, action_dim=ACTION_DIM)
    buffer = ReplayBuffer(100, (3, 4, 4), 3, ACTION_DIM)
    env.action_space.seed(0)
    last_step = terminate_at or 7
    for episode in range(40):
        obs, _ = env.reset(seed=episode)
        buffer.start_episode(obs)
        done = False
        while not done:
            action = env.action_space.sample()
            obs, reward, terminated, truncated, _ = env.step(action)
            buffer.add(action, reward, obs, terminated, skill=episode % 6)
            done = terminated or truncated
    assert 40 * last_step > 100 > len(buffer) > 70

    batch = buffer.sample(500)
    obs_frames, next_frames = (images[:, :, 0, 0].reshape(-1, 3, 3).long() for images in (batch.obs, batch.next_obs))
    episodes, steps = obs_frames[:, -1, 0], obs_frames[:, -1, 1]
    assert steps.unique().tolist() == list(range(last_step))
    assert torch.equal(batch.skill, episodes % 6)
    for frames, newest in ((obs_frames, steps), (next_frames, steps + 1)):
        for age in range(3):
            assert torch.equal(frames[:, -1 - age, 0], episodes)
            assert torch.equal(frames[:, -1 - age, 1], (newest - age).clamp(min=0))
    assert torch.equal(batch.terminated, ((steps == last_step - 1) & (terminate_at is not None)).float())
    torch.testing.assert_close(batch.reward, batch.action[:, 0] + next_frames[:, -1, 2] / 256)
