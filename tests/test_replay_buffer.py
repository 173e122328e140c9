"""The replay buffer against a reference that keeps every stacked observation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import replay_buffer
from replay_buffer import Batch, ReplayBuffer, _pack, _unpack
from running.columns import NO_SKILL
from utils import upload

FRAME_SHAPE = (2, 2, 3)
ACTION_DIM = 2


class Transition(NamedTuple):
    """One transition as it was added, and the number of the oldest frame in its observation."""

    obs: np.ndarray
    action: np.ndarray
    reward: float
    next_obs: np.ndarray
    terminated: bool
    skill: int
    oldest_frame: int


class Recorder:
    """Adds random transitions to a replay buffer and keeps all of them.

    The first pixels of every frame hold its number, in two channels. The first action component of a transition is its
    number, which identifies it in a batch.
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
        """Return the newest `capacity` transitions whose frames are all among the newest `frame_capacity`."""
        oldest = self.frame_count - self.buffer.frame_capacity
        return [t for t in self.transitions[-self.buffer.capacity :] if t.oldest_frame >= oldest]

    def check(self) -> None:
        """Check that the buffer returns exactly the transitions that it has to hold, as they were added."""
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
    """Check that consecutive batches contain exactly these transitions in this order."""
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


@settings(deadline=None)  # no time limit
@given(capacity=st.integers(1, 40), frame_stack=st.integers(1, 4), episodes=episodes)
def test_buffer_equals_reference(capacity: int, frame_stack: int, episodes: list[tuple[int, bool, int]]) -> None:
    """Random episodes, including empty ones and ones shorter than the stack, in rings of any size."""
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
    """For such episodes the additional frames suffice: the newest `capacity` transitions are always held."""
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
    """Their first frames take room in the ring. No overwritten frame is ever returned."""
    recorder = Recorder(capacity=128)
    for _ in range(300 // length):
        recorder.episode(length, terminated=True)
        recorder.check()
    ring = 128 + 128 // 64  # frames; an episode stores `length` transitions in `length + 1` of them
    assert ring * length / (length + 1) - 3 <= len(recorder.buffer) < 128


def test_a_frame_is_stored_once() -> None:
    """100,000 transitions take less memory than storing both stacks of 9 channels, by a factor of at least 5.8."""
    needed = ReplayBuffer.bytes_needed(100_000, (3, 84, 84), 3, action_dim=6)
    both_stacks = 100_000 * 2 * 9 * 84 * 84
    assert both_stacks / needed > 5.8


def test_bytes_needed_is_what_the_buffer_takes() -> None:
    buffer = ReplayBuffer(1000, FRAME_SHAPE, 3, ACTION_DIM)
    taken = buffer._frames.nbytes + sum(array.nbytes for array in buffer._rows.values())
    assert ReplayBuffer.bytes_needed(1000, FRAME_SHAPE, 3, ACTION_DIM) == taken


def test_sampling_is_uniform_over_what_is_held() -> None:
    """All held transitions are equally likely, also after the ring has wrapped and transitions were dropped."""
    recorder = Recorder(capacity=64, seed=1)
    for _ in range(24):
        recorder.episode(7)
    held = len(recorder.buffer)
    assert 50 <= held < 64
    numbers = recorder.buffer.sample(300 * held).action[:, 0].long().numpy()
    counts = np.bincount(numbers - (len(recorder.transitions) - held), minlength=held)
    assert len(counts) == held
    degrees = held - 1  # chi-square has mean `degrees` and variance 2 * `degrees`
    assert chi_square(counts) < degrees + 3.1 * np.sqrt(2 * degrees) + 4  # about p = 0.001


@pytest.mark.parametrize("newest", [1, 20, 1000])
def test_sampling_from_the_newest(newest: int) -> None:
    """Uniform over the window, or over all that is held if it is smaller."""
    recorder = Recorder(capacity=64, seed=1)
    for _ in range(24):
        recorder.episode(7)
    held = min(newest, len(recorder.buffer))
    numbers = recorder.buffer.sample(300 * held, newest).action[:, 0].long().numpy()
    counts = np.bincount(numbers - (len(recorder.transitions) - held), minlength=held)
    assert len(counts) == held
    assert held == 1 or chi_square(counts) < held - 1 + 3.1 * np.sqrt(2 * (held - 1)) + 4  # about p = 0.001


def test_sampling_is_with_replacement() -> None:
    recorder = Recorder(capacity=10)
    recorder.episode(3)
    assert len(recorder.buffer.sample(50).reward) == 50


def test_same_seed_gives_the_same_batches() -> None:
    """`recent` draws no random number."""
    recorders = [Recorder(capacity=50, seed=seed) for seed in (1, 1, 2)]
    for recorder in recorders:
        recorder.episode(40)
    assert_equal(list(recorders[1].buffer.recent(40, 7)), recorders[1].transitions)
    one, same, other = (recorder.buffer.sample(32) for recorder in recorders)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.action, other.action)


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(0, 4, []), (3, 4, [3]), (8, 4, [4, 4]), (9, 4, [4, 4, 1])])
def test_recent_yields_batches_oldest_first(count: int, batch_size: int, sizes: list[int]) -> None:
    recorder = Recorder(capacity=10)
    recorder.episode(20)
    batches = list(recorder.buffer.recent(count, batch_size))
    assert [len(batch.reward) for batch in batches] == sizes
    assert_equal(batches, recorder.transitions[20 - count :])


@pytest.mark.parametrize(("length", "held"), [(20, 10), (1, 7)])
def test_recent_refuses_more_than_is_held(length: int, held: int) -> None:
    """The limit is `capacity`, or fewer transitions after short episodes."""
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


def test_too_little_memory_is_an_error_that_states_how_much_is_needed() -> None:
    with pytest.raises(MemoryError, match=r"the replay buffer needs [\d,]+\.\d\d GB"):
        ReplayBuffer(10**12, (3, 84, 84), 3, 1)


@pytest.mark.parametrize("terminate_at", [None, 5])
def test_skills_and_steps_stay_with_their_transitions(terminate_at: int | None, fake_env: Any) -> None:
    """Across resets and wraps of the ring. Channel 0 of the pixels is the episode, channel 1 the step."""
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_frames_on_a_cuda_device_give_the_same_batches_as_on_the_host() -> None:
    buffers = [
        ReplayBuffer(20, (2, 8, 8), 3, ACTION_DIM, device="cuda", storage=storage) for storage in ("cuda", "cpu")
    ]
    for buffer in buffers:
        rng = np.random.default_rng(0)
        buffer.start_episode(rng.integers(256, size=(6, 8, 8), dtype=np.uint8))
        for _ in range(50):
            obs = rng.integers(256, size=(6, 8, 8), dtype=np.uint8)
            buffer.add(rng.normal(size=ACTION_DIM).astype(np.float32), rng.random(), obs, False, 1)
    for on_device, on_host in zip(buffers[0].sample(16), buffers[1].sample(16), strict=True):
        assert on_device.is_cuda
        assert on_host.is_cuda
        assert torch.equal(on_device, on_host)


# -- compressed frames -------------------------------------------------------------------------------------------------


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 100),
    constant=st.booleans(),
)
def test_packed_frames(shape: tuple[int, ...], seed: int, constant: bool) -> None:
    """Unpacking returns the frames, and packing does not change them."""
    array = np.random.default_rng(seed).integers(256, size=(1, *shape[1:]) if constant else shape, dtype=np.uint8)
    frames = torch.from_numpy(np.broadcast_to(array, shape).copy())
    before = frames.clone()
    unpacked = _unpack(_pack(frames), shape)
    assert unpacked.dtype == torch.uint8
    assert torch.equal(unpacked, before)
    assert torch.equal(frames, before)


def test_packed_frames_that_do_not_fit() -> None:
    shape = (3, 3, 2, 2)
    packed = _pack(torch.zeros(shape, dtype=torch.uint8))
    for wrong in (packed[:-8], packed[:0], packed + 1, _pack(torch.zeros(2, *shape[1:]).byte())):
        with pytest.raises(ValueError, match=r"\w"):
            _unpack(wrong, shape)


def test_frames_that_are_stored_elsewhere_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "cpu:0" stands for another device than "cpu". A batch takes a single upload."""
    uploads: list[int] = []

    def count(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
        uploads.append(len(arrays))
        return upload(arrays, device)

    recorders = [Recorder(50), Recorder(50)]
    recorders[1].buffer.device = torch.device("cpu:0")
    for recorder in recorders:
        recorder.episode(30, terminated=True, skill=2)
    monkeypatch.setattr(replay_buffer, "upload", count)
    for _ in range(3):
        here, elsewhere = (recorder.buffer.sample(16) for recorder in recorders)
        for one, other in zip(here, elsewhere, strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
            assert one.stride() == other.stride()
    assert uploads == [5, 4] * 3
