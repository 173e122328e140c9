"""The replay buffer: stores every frame once and assembles stacked observations when a batch is sampled."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from console.numbers import shown_size
from running.columns import NO_SKILL
from utils import host_memory, to_device, upload

PACKED_TOGETHER = 256  # frames that a checkpoint compresses as one block


class Batch(NamedTuple):
    """B transitions, as `ReplayBuffer.sample` returns them, all on one device."""

    obs: torch.Tensor  # uint8 (B, channels * frame_stack, H, W), channels_last in memory
    action: torch.Tensor  # float32 (B, action_dim)
    reward: torch.Tensor  # float32 (B,), summed over the action repeat
    next_obs: torch.Tensor  # like obs
    terminated: torch.Tensor  # float32 (B,): 1 if the episode terminated, 0 otherwise and at time limits
    skill: torch.Tensor  # int64 (B,), NO_SKILL without DIAYN


class ReplayBuffer:
    """A ring buffer of the newest transitions, with uniform sampling over all that are complete.

    An episode of T transitions has T + 1 frames: `start_episode` stores the first, and each `add` stores one more.
    Frames are numbered consecutively over the whole run; frame n is stored in slot n % frame_capacity. Each transition
    keeps the numbers of the `frame_stack + 1` frames of its two stacks, so that sampling needs no special case at the
    start of an episode, where the first frame is repeated. The ring has room for capacity / 64 more frames than
    transitions, enough for the first frames of episodes of 64 or more steps. If episodes are shorter, the oldest
    transitions are dropped as soon as one of their frames is overwritten.

    Args:
        capacity: maximum number of transitions.
        frame_shape: (channels, H, W) of one uint8 frame; `frame_stack` of them are an observation.
        device: device of the sampled batches.
        storage: device of the stored frames: `device`, or the CPU if a CUDA device has too little memory.
        seed: seed of the random stream that samples the batches.

    Raises:
        MemoryError: the frames do not fit into memory; the message states how much is needed.
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
            # Not zeroed, so that host memory is only used as the ring fills.
            self._frames = torch.empty((self.frame_capacity, *frame_shape), dtype=torch.uint8, device=self.storage)
        except RuntimeError as error:
            needed = self.bytes_needed(capacity, frame_shape, frame_stack, action_dim)
            raise MemoryError(f"the replay buffer needs {shown_size(needed)}") from error
        self._rows: dict[str, np.ndarray] = {  # one row for each transition
            "stacks": np.zeros((capacity, frame_stack + 1), np.int64),  # frame numbers, oldest first
            "action": np.zeros((capacity, action_dim), np.float32),
            "reward": np.zeros(capacity, np.float32),
            "terminated": np.zeros(capacity, np.float32),
            "skill": np.zeros(capacity, np.int64),
        }
        self.frames_written = 0  # over the whole run; also the number of the next frame
        self._added = 0  # transitions added over the whole run
        self._size = 0  # transitions held: those with numbers _added - _size to _added - 1
        self._current: list[int] = []  # frame numbers of the current episode's newest stack

    @staticmethod
    def bytes_needed(capacity: int, frame_shape: tuple[int, ...], frame_stack: int, action_dim: int) -> int:
        """Return the memory of a full buffer in bytes."""
        frames = _frame_capacity(capacity, frame_stack) * int(np.prod(frame_shape))
        return frames + capacity * (8 * (frame_stack + 1) + 4 * action_dim + 4 + 4 + 8)

    def __len__(self) -> int:
        return self._size

    def start_episode(self, obs: np.ndarray) -> None:
        """Store the observation that a reset returned: uint8 (channels * frame_stack, H, W), one frame repeated."""
        self._current = [self._store_frame(obs)] * self.frame_stack

    def add(
        self, action: np.ndarray, reward: float, next_obs: np.ndarray, terminated: bool, skill: int = NO_SKILL
    ) -> None:
        """Store one transition of the current episode. Only the newest frame of `next_obs` is stored."""
        numbers = [*self._current, self._store_frame(next_obs)]
        self._current = numbers[1:]
        for array, value in zip(self._rows.values(), (numbers, action, reward, terminated, skill), strict=True):
            array[self._added % self.capacity] = value
        self._added += 1
        self._size = min(self._size + 1, self.capacity)

    def sample(self, batch_size: int, newest: int | None = None) -> Batch:
        """Sample a batch uniformly with replacement, from all transitions or only from the `newest` ones.

        Raises ValueError if the buffer is empty.
        """
        if not self._size:
            raise ValueError("the replay buffer is empty")
        count = self._size if newest is None else min(newest, self._size)
        return self._gather(self._added - count + self._rng.integers(count, size=batch_size))

    def recent(self, count: int, batch_size: int) -> Iterator[Batch]:
        """Yield the newest `count` transitions, oldest first, in batches of at most `batch_size`. Not random.

        Raises ValueError if fewer are held.
        """
        if count > self._size:
            raise ValueError(f"{count} transitions asked for, {self._size} held")
        for start in range(self._added - count, self._added, batch_size):
            yield self._gather(np.arange(start, min(start + batch_size, self._added)))

    # -- checkpoints ----------------------------------------------------------------------------------------------

    @property
    def oldest_frame(self) -> int:
        """Number of the oldest frame held: those with lower numbers are overwritten."""
        return max(0, self.frames_written - self.frame_capacity)

    def state_dict(self) -> dict[str, Any]:
        """Return counters and random state as plain data. `transitions_since` returns the transitions."""
        counters = {"written": self.frames_written, "added": self._added, "size": self._size}
        return {**counters, "current": list(self._current), "rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the `state_dict` of a buffer of the same sizes. Then call `load_transitions`, oldest part first."""
        self.frames_written, self._added, self._size = state["written"], state["added"], state["size"]
        self._current = list(state["current"])
        self.load_rng(state)

    def load_rng(self, state: Mapping[str, Any]) -> None:
        """Load only the random stream of a `state_dict`."""
        self._rng.bit_generator.state = state["rng"]

    def transitions_since(self, frame: int) -> dict[str, Any]:
        """Return the frames from number `frame` on, compressed, and the transitions whose last frame is one of them."""
        frame = max(frame, self.oldest_frame)
        end = self.frames_written
        rows = np.arange(self._added - self._size, self._added) % self.capacity
        rows = rows[self._rows["stacks"][rows, -1] >= frame]
        arrays = {name: torch.from_numpy(array[rows]) for name, array in self._rows.items()}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # zlib releases the GIL; each copies its own block
            packed = list(pool.map(lambda slots: _pack(self._frames[slots].cpu()), self._slots(frame, end)))
        return {**arrays, "first": self._added - len(rows), "frame": frame, "end": end, "frames": packed}

    def load_transitions(self, part: Mapping[str, Any]) -> None:
        """Load what `transitions_since` returned. Raises ValueError if it does not fit this buffer."""
        count = len(part["reward"])
        if not 0 <= part["frame"] <= part["end"] <= self.frames_written:
            raise ValueError("frames that this buffer never held")
        if part["end"] - part["frame"] > PACKED_TOGETHER * len(part["frames"]):
            raise ValueError("frames are missing")
        if not 0 <= part["first"] <= part["first"] + count <= self._added:
            raise ValueError("transitions that this buffer never held")
        places = list(self._slots(part["frame"], part["end"]))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            shapes = [(len(slots), *self._frames.shape[1:]) for slots in places]
            for slots, frames in zip(places, pool.map(_unpack, part["frames"], shapes), strict=True):
                self._frames[slots] = frames.to(self.storage)
        numbers = np.arange(part["first"], part["first"] + count)
        numbers = numbers[numbers >= self._added - self._size]
        for name, array in self._rows.items():
            array[numbers % self.capacity] = part[name].numpy()[count - len(numbers) :]
        stacks = self._rows["stacks"][numbers % self.capacity]
        if stacks.size and not (self.oldest_frame <= stacks.min() <= stacks.max() < self.frames_written):
            raise ValueError("transitions whose frames this buffer does not hold")

    def _slots(self, first: int, end: int) -> Iterator[torch.Tensor]:
        """Yield the slots of frames `first` to `end` - 1, PACKED_TOGETHER at a time."""
        for start in range(first, end, PACKED_TOGETHER):
            numbers = torch.arange(start, min(start + PACKED_TOGETHER, end))
            yield (numbers % self.frame_capacity).to(self.storage)

    def _store_frame(self, obs: np.ndarray) -> int:
        channels = self._frames.shape[1]
        self._frames[self.frames_written % self.frame_capacity] = to_device(obs[-channels:], self.storage)
        self.frames_written += 1
        # Drop the transitions that need the overwritten frame.
        while self._size and self._rows["stacks"][(self._added - self._size) % self.capacity, 0] < self.oldest_frame:
            self._size -= 1
        return self.frames_written - 1

    def _gather(self, numbers: np.ndarray) -> Batch:
        rows = numbers % self.capacity
        arrays = [self._rows[name][rows] for name in ("action", "reward", "terminated", "skill")]
        slots = (self._rows["stacks"][rows] % self.frame_capacity).ravel()
        stored = self._frames.view(self.frame_capacity, -1)
        if self.storage == self.device:
            places, *fields = upload([slots, *arrays], self.device)
            flat = stored.index_select(0, places)
        else:
            fields = upload(arrays, self.device)
            flat = host_memory((len(slots), stored.shape[1]), pinned=self.device.type == "cuda")
            torch.index_select(stored, 0, torch.from_numpy(slots), out=flat)
            flat = flat.to(self.device, non_blocking=True)
        frames = flat.view(len(rows), self.frame_stack + 1, *self._frames.shape[1:])  # (B, S + 1, C, H, W)

        obs, next_obs = (
            part.flatten(1, 2).contiguous(memory_format=torch.channels_last) for part in (frames[:, :-1], frames[:, 1:])
        )
        action, reward, terminated, skill = fields
        return Batch(obs, action, reward, next_obs, terminated, skill)


def _frame_capacity(capacity: int, frame_stack: int) -> int:
    return capacity + capacity // 64 + frame_stack + 1


def _pack(frames: torch.Tensor) -> torch.Tensor:
    """Compress consecutive uint8 frames (N, C, H, W) to uint8 bytes (M,): zlib of the differences between frames.

    Little changes from one frame to the next, so this leaves a quarter to a twentieth of the bytes.
    """
    changes = frames.clone()
    changes[1:] -= frames[:-1]
    return torch.frombuffer(bytearray(zlib.compress(changes.numpy().tobytes(), 1)), dtype=torch.uint8)


def _unpack(packed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the frames that `_pack` compressed. Raises ValueError if the bytes do not give frames of that shape."""
    size = int(np.prod(shape))
    try:
        data = zlib.decompressobj().decompress(packed.numpy().tobytes(), size)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes of frames instead of {size}")
    frames = np.frombuffer(bytearray(data), np.uint8).reshape(shape)
    for number in range(1, len(frames)):
        frames[number] += frames[number - 1]
    return torch.from_numpy(frames)
