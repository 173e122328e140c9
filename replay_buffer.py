"""The replay buffer: every frame stored once, stacks put together when a batch is drawn."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from utils import to_device

PACKED_TOGETHER = 256  # frames of a checkpoint that are packed as one
NO_SKILL = -1  # the skill id of runs without DIAYN, here and in every file


class Batch(NamedTuple):
    """B transitions, as `ReplayBuffer.sample` returns them, all on one device."""

    obs: torch.Tensor  # uint8 (B, channels * frame_stack, H, W), channels_last in memory
    action: torch.Tensor  # float32 (B, action_dim)
    reward: torch.Tensor  # float32 (B,), summed over the action repeat
    next_obs: torch.Tensor  # like obs
    terminated: torch.Tensor  # float32 (B,): 1 where the episode really ended, 0 at time limits
    skill: torch.Tensor  # int64 (B,), NO_SKILL without DIAYN


class ReplayBuffer:
    """A ring of the newest transitions with uniform sampling over exactly those that are complete.

    An episode of T transitions has T + 1 frames: `start_episode` stores the first and `add` one more each. Every
    frame has a running number and lives in slot number % frame_capacity. Each transition keeps the numbers of the
    `frame_stack + 1` frames that its two stacks are made of, so an episode's edge (its first frame repeated) needs
    no rule at sampling. The ring holds capacity / 64 frames more than transitions, which pays for the first frames
    of episodes of 64 steps or longer; where episodes are shorter, the oldest transitions are dropped as soon as one
    of their frames is overwritten.

    Args:
        capacity: transitions held at most.
        frame_shape: one frame, (channels, H, W); uint8.
        frame_stack: frames in an observation.
        action_dim: length of an action.
        device: where sampled batches go.
        storage: where the frames lie: `device` itself, or the CPU for a CUDA device with too little memory.
        seed: of the stream that picks the batches.

    Raises:
        MemoryError: the frames do not fit; the message says how much is needed.
    """

    def __init__(
        self,
        capacity: int,
        frame_shape: tuple[int, ...],
        frame_stack: int,
        action_dim: int,
        *,
        device: torch.device | str = "cpu",
        storage: torch.device | str = "cpu",
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        self.capacity, self.frame_stack = capacity, frame_stack
        self.device, self.storage = torch.device(device), torch.device(storage)
        self.frame_capacity = _frame_capacity(capacity, frame_stack)
        self._rng = np.random.default_rng(seed)
        try:
            # Not zeroed: in host memory the system hands pages out only as the ring fills.
            self._frames = torch.empty((self.frame_capacity, *frame_shape), dtype=torch.uint8, device=self.storage)
        except RuntimeError as error:
            needed = self.bytes_needed(capacity, frame_shape, frame_stack, action_dim)
            raise MemoryError(f"the replay buffer needs {needed / 1e9:.2f} GB") from error
        self._stacks = np.zeros((capacity, frame_stack + 1), np.int64)  # frame numbers, oldest first
        self._action = np.zeros((capacity, action_dim), np.float32)
        self._reward = np.zeros(capacity, np.float32)
        self._terminated = np.zeros(capacity, np.float32)
        self._skill = np.zeros(capacity, np.int64)
        self._written = 0  # frames so far, over the whole run
        self._added = 0  # transitions so far, over the whole run
        self._size = 0  # transitions held: numbers _added - _size to _added - 1
        self._current: list[int] = []  # frame numbers of the running episode's newest stack

    @staticmethod
    def bytes_needed(capacity: int, frame_shape: tuple[int, ...], frame_stack: int, action_dim: int) -> int:
        """Memory of a full buffer, in bytes."""
        frames = _frame_capacity(capacity, frame_stack) * int(np.prod(frame_shape))
        return frames + capacity * (8 * (frame_stack + 1) + 4 * action_dim + 4 + 4 + 8)

    def __len__(self) -> int:
        return self._size

    def start_episode(self, obs: np.ndarray) -> None:
        """Take in the observation that a reset returned: uint8 (channels * frame_stack, H, W), one frame repeated."""
        self._current = [self._store_frame(obs)] * self.frame_stack

    def add(
        self, action: np.ndarray, reward: float, next_obs: np.ndarray, terminated: bool, skill: int = NO_SKILL
    ) -> None:
        """Take in one step of the running episode. Of `next_obs` only the newest frame is stored."""
        numbers = [*self._current, self._store_frame(next_obs)]
        self._current = numbers[1:]
        row = self._added % self.capacity
        self._stacks[row] = numbers
        self._action[row], self._reward[row] = action, reward
        self._terminated[row], self._skill[row] = terminated, skill
        self._added += 1
        self._size = min(self._size + 1, self.capacity)

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch uniformly and with replacement."""
        if not self._size:
            raise ValueError("the replay buffer is empty")
        return self._gather(self._added - self._size + self._rng.integers(self._size, size=batch_size))

    def recent(self, count: int, batch_size: int) -> Iterator[Batch]:
        """The newest `count` transitions, oldest first, in batches of at most `batch_size`; draws no random number."""
        if count > self._size:
            raise ValueError(f"{count} transitions asked for, {self._size} held")
        for start in range(self._added - count, self._added, batch_size):
            yield self._gather(np.arange(start, min(start + batch_size, self._added)))

    # -- checkpoints ----------------------------------------------------------------------------------------------

    @property
    def frames_written(self) -> int:
        """Frames taken in so far; the next one gets this number."""
        return self._written

    @property
    def oldest_frame(self) -> int:
        """Frames with a lower number are overwritten."""
        return max(0, self._written - self.frame_capacity)

    def state_dict(self) -> dict[str, Any]:
        """All but the transitions themselves, as plain data."""
        books = {"written": self._written, "added": self._added, "size": self._size}
        return {**books, "current": list(self._current), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an equal buffer; `load_transitions` brings the rest, oldest first."""
        self._written, self._added, self._size = state["written"], state["added"], state["size"]
        self._current = list(state["current"])
        self._rng.bit_generator.state = state["rng"]

    def load_rng(self, state: Mapping[str, Any]) -> None:
        """Take over only the random stream of a `state_dict`."""
        self._rng.bit_generator.state = state["rng"]

    def transitions_since(self, frame: int) -> dict[str, Any]:
        """The frames from this number on, packed, and the transitions that end in them: tensors and plain data."""
        frame = max(frame, self.oldest_frame)
        rows = np.arange(self._added - self._size, self._added) % self.capacity
        rows = rows[self._stacks[rows, -1] >= frame]
        arrays = {name: torch.from_numpy(array[rows]) for name, array in self._arrays().items()}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # zlib lets other threads run
            packed = list(pool.map(self._pack, self._slots(frame, self._written)))  # copied no earlier than packed
        return {**arrays, "first": self._added - len(rows), "frame": frame, "end": self._written, "frames": packed}

    def load_transitions(self, part: Mapping[str, Any]) -> None:
        """Take in what `transitions_since` gave. Raises ValueError where it is no part of this buffer."""
        count = len(part["reward"])
        if not 0 <= part["frame"] <= part["end"] <= self._written:
            raise ValueError("frames that this buffer never had")
        if part["end"] - part["frame"] > PACKED_TOGETHER * len(part["frames"]):
            raise ValueError("frames are missing")
        if not 0 <= part["first"] <= part["first"] + count <= self._added:
            raise ValueError("transitions that this buffer never had")
        places = list(self._slots(part["frame"], part["end"]))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            shapes = [(len(slots), *self._frames.shape[1:]) for slots in places]
            for slots, frames in zip(places, pool.map(_unpack, part["frames"], shapes), strict=True):
                self._frames[slots] = frames.to(self.storage)
        numbers = np.arange(part["first"], part["first"] + count)
        numbers = numbers[numbers >= self._added - self._size]
        for name, array in self._arrays().items():
            array[numbers % self.capacity] = part[name].numpy()[count - len(numbers) :]
        stacks = self._stacks[numbers % self.capacity]
        if stacks.size and not (self.oldest_frame <= stacks.min() <= stacks.max() < self._written):
            raise ValueError("transitions of frames that this buffer doesn't hold")

    def _pack(self, slots: torch.Tensor) -> torch.Tensor:
        return _pack(self._frames[slots].cpu())

    def _slots(self, first: int, end: int) -> Iterator[torch.Tensor]:
        """The slots of the frames from number `first` to `end` - 1, PACKED_TOGETHER at a time."""
        for start in range(first, end, PACKED_TOGETHER):
            numbers = torch.arange(start, min(start + PACKED_TOGETHER, end))
            yield (numbers % self.frame_capacity).to(self.storage)

    def _arrays(self) -> dict[str, np.ndarray]:
        """A row for each transition, by name."""
        return {
            "stacks": self._stacks,
            "action": self._action,
            "reward": self._reward,
            "terminated": self._terminated,
            "skill": self._skill,
        }

    def _store_frame(self, obs: np.ndarray) -> int:
        channels = self._frames.shape[1]
        self._frames[self._written % self.frame_capacity] = to_device(obs[-channels:], self.storage)
        self._written += 1
        # Drop the transitions that need a frame that is no longer there.
        while self._size and self._stacks[(self._added - self._size) % self.capacity, 0] < self.oldest_frame:
            self._size -= 1
        return self._written - 1

    def _gather(self, numbers: np.ndarray) -> Batch:
        rows = numbers % self.capacity
        slots = to_device(self._stacks[rows] % self.frame_capacity, self.storage)
        flat = self._frames.view(self.frame_capacity, -1).index_select(0, slots.flatten())
        if self.storage != self.device:  # pinned, so that the copy doesn't wait for what the device is doing
            flat = flat.pin_memory().to(self.device, non_blocking=True)
        frames = flat.view(len(rows), self.frame_stack + 1, *self._frames.shape[1:])  # (B, S + 1, C, H, W)

        def to(array: np.ndarray) -> torch.Tensor:
            return to_device(array[rows], self.device)

        def stack(part: torch.Tensor) -> torch.Tensor:
            return part.flatten(1, 2).contiguous(memory_format=torch.channels_last)

        return Batch(
            obs=stack(frames[:, :-1]),
            action=to(self._action),
            reward=to(self._reward),
            next_obs=stack(frames[:, 1:]),
            terminated=to(self._terminated),
            skill=to(self._skill),
        )


def _frame_capacity(capacity: int, frame_stack: int) -> int:
    return capacity + capacity // 64 + frame_stack + 1


def _pack(frames: torch.Tensor) -> torch.Tensor:
    """uint8 frames (N, C, H, W) in the order of play as uint8 bytes (M,): differences to the frame before, then zlib.

    Most of a picture stays where it is from one frame to the next: a quarter to a twentieth of the bytes.
    """
    changes = frames.clone()
    changes[1:] -= frames[:-1]
    return torch.frombuffer(bytearray(zlib.compress(changes.numpy().tobytes(), 1)), dtype=torch.uint8)


def _unpack(packed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The frames that `_pack` took. Raises ValueError where the bytes don't give frames of that shape."""
    size = int(np.prod(shape))
    try:
        data = zlib.decompressobj().decompress(packed.numpy().tobytes(), size)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes of frames instead of {size}")
    frames = np.frombuffer(bytearray(data), np.uint8).reshape(shape)
    for before, frame in itertools.pairwise(frames):
        frame += before
    return torch.from_numpy(frames)
