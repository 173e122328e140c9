"""What a checkpoint holds: crafted states, the replay buffer restored from its pieces, weights that are not finite."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import replay_buffer
import train
from errors import RunError
from replay_buffer import Batch, ReplayBuffer
from running.checkpoint import Checkpoints
from running.names import CHECKPOINT_FOLDER
from running.state import likely_cause, save_checkpoint
from tests.support.damage import REMOVED, changed
from tests.support.disk import copy_of, load_piece, put_file, saved, snapshot
from tests.support.fuzz import fuzz
from tests.support.labs import FINISHED_STEPS, Prepare, same
from tests.support.program import assert_refused, resume

# -- names in a checkpoint ---------------------------------------------------------------------------------------------


ENCODER = [f"encoder.convs.{number}" for number in (0, 2, 4, 6)]
HEAD = ["head.0", "head.1"]
NETWORKS = {  # the layers that have parameters
    "actor": [*HEAD, "skill.table", "policy.0", "policy.2", "policy.4"],
    "critic": [*ENCODER, *HEAD, "skill.table", *(f"{q}.{number}" for q in ("q1", "q2") for number in (0, 2, 4))],
    "discriminator": [*ENCODER, *HEAD, "classifier.0", "classifier.2", "classifier.4"],
}


def test_the_names_in_a_state_stay(finished: Path) -> None:
    """Other names would need a new number of the format: checkpoints of earlier versions could not be resumed."""
    state = load_piece(finished / CHECKPOINT_FOLDER / "state_4.pt")
    parts = {"flags", "counters", "agent", "replay_buffer", "random", "action_space", "skills", "environment"}
    assert state.keys() == parts | {"underway", "logs", "stopwatch", "render_seconds"}
    assert state["counters"] == {
        "frames_before": 0,
        "step": FINISHED_STEPS,
        "episode": 2,
        "evaluated": -1,
        "scheduled": -1,
        "learning_from": 10,
    }
    assert state["underway"].keys() == {"skill", "obs", "seconds", "extrinsic_reward", "actions", "action"}
    assert len(state["underway"]["actions"]) == 5
    agent = state["agent"]
    assert agent.keys() == {*("modules", "optimizers", "log_alpha", "num_updates"), *("generator", "device", "skill")}
    layers = {name: list(dict.fromkeys(key.rpartition(".")[0] for key in agent["modules"][name])) for name in NETWORKS}
    assert layers == NETWORKS
    assert agent["modules"].keys() == {*NETWORKS, "critic_target"}
    assert state["logs"].keys() == {"position", "columns", "meters"}
    assert state["stopwatch"].keys() == {"elapsed", "seconds"}
    assert state["random"].keys() >= {"python", "numpy", "torch"}


# -- crafted states ----------------------------------------------------------------------------------------------------


def test_state_without_a_part(finished: Path) -> None:
    """Every part is needed, and nothing else is taken for it."""
    state = load_piece(finished / CHECKPOINT_FOLDER / "state_4.pt")
    for name in state:
        for value in (REMOVED, 3, [3]):
            if (name, value) == ("render_seconds", 3):
                continue
            with copy_of(finished) as folder:
                put_file(folder, "state_4.pt", saved(changed(state, (name,), value)))
                before = snapshot(folder)
                assert_refused(resume(folder), "--resume")
                assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["actor", "critic"])
@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "step"])
def test_optimizer_of_other_parameters(finished: Path, name: str, moment: str) -> None:
    """The fused kernel does not check shapes: it would read and write outside of the tensors."""
    state = load_piece(finished / CHECKPOINT_FOLDER / "state_4.pt")
    for value in (torch.zeros(2, 2, 2), torch.zeros(0), torch.tensor(1, dtype=torch.uint8), 3, REMOVED):
        with copy_of(finished) as folder:
            put_file(folder, "state_4.pt", saved(changed(state, ("agent", "optimizers", name, 0, moment), value)))
            before = snapshot(folder)
            assert_refused(resume(folder), "--resume")
            assert snapshot(folder) == before


def test_weights_that_are_not_finite_are_not_saved(prepare: Prepare) -> None:
    run = prepare().run
    with torch.no_grad():
        next(run.agent.actor.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match="weights became infinite or not a number"):
        save_checkpoint(run)
    assert not list(run.folder.glob("checkpoint/state*"))


# -- the replay buffer's pieces ----------------------------------------------------------------------------------------

SHAPE = (3, 2, 2)


class Player:
    """Plays the same random episodes into several replay buffers."""

    def __init__(self, seed: int, frame_stack: int) -> None:
        self.rng, self.frame_stack = np.random.default_rng(seed), frame_stack
        self.frames: list[np.ndarray] = []
        self.left = 0  # steps of the running episode

    def play(self, buffers: Sequence[ReplayBuffer], length: Callable[[], int]) -> None:
        """Play one more frame."""
        frame = self.rng.integers(256, size=SHAPE, dtype=np.uint8)
        if self.left == 0:
            self.left = length()
            self.frames = [frame] * self.frame_stack
            for buffer in buffers:
                buffer.start_episode(np.concatenate(self.frames))
            return
        self.left -= 1
        self.frames = [*self.frames[1:], frame]
        action, reward = self.rng.standard_normal(2, dtype=np.float32), float(self.rng.standard_normal())
        terminated, skill = self.left == 0 and bool(self.rng.integers(2)), int(self.rng.integers(-1, 5))
        for buffer in buffers:
            buffer.add(action, reward, np.concatenate(self.frames), terminated, skill)


def save(buffer: ReplayBuffer, checkpoints: Checkpoints, step: int) -> None:
    part = buffer.transitions_since(checkpoints.saved_frames)
    frames = {"oldest_frame": buffer.oldest_frame, "end": buffer.frames_written}
    checkpoints.write(step, buffer.state_dict(), part, **frames)


def restored_from(folder: Path, buffer: ReplayBuffer) -> Checkpoints:
    """Restore the buffer from the checkpoint in the folder."""
    checkpoints = Checkpoints(folder)
    state = checkpoints.read()
    assert state is not None
    buffer.load_state_dict(state)
    for piece in checkpoints.replay_pieces():
        buffer.load_transitions(piece)
    return checkpoints


def batches(buffer: ReplayBuffer) -> list[Batch]:
    """Return everything in the buffer, and some random batches."""
    if not len(buffer):
        return []
    return [*buffer.recent(len(buffer), 7), *(buffer.sample(size) for size in (1, 5, 16))]


def assert_equal_buffers(first: ReplayBuffer, second: ReplayBuffer) -> None:
    assert first.state_dict() == second.state_dict()
    for one, other in zip(batches(first), batches(second), strict=True):
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
        assert one.obs.stride() == other.obs.stride()


@fuzz(18)
@given(
    capacity=st.integers(2, 70),
    frame_stack=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    saves=st.integers(1, 10),
    together=st.sampled_from([1, 2, 7, 256]),
)
def test_restored_replay_buffer(
    capacity: int, frame_stack: int, seed: int, lengths: list[int], gaps: list[int], saves: int, together: int
) -> None:
    """Restored from increments, it samples what the original does, now and later; three times in a row."""
    make = (capacity, SHAPE, frame_stack, 2)
    buffers = [ReplayBuffer(*make, seed=1)]
    player, length, gap = Player(seed, frame_stack), itertools.cycle(lengths), itertools.cycle(gaps)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_buffer, "PACKED_TOGETHER", together)
        checkpoints = Checkpoints(Path(folder))
        for round_ in range(3):
            for step in range(saves):
                for _ in range(next(gap)):
                    player.play(buffers, lambda: next(length))
                save(buffers[0], checkpoints, 100 * round_ + step)
            restored = ReplayBuffer(*make, seed=2)
            checkpoints = restored_from(Path(folder), restored)
            assert_equal_buffers(buffers[0], restored)
            for _ in range(2 * capacity):  # replace every row, so that no stale one stays unnoticed
                player.play([buffers[0], restored], lambda: next(length))
            assert_equal_buffers(buffers[0], restored)
            buffers = [restored]


def test_the_ring_wraps_several_times(tmp_path: Path) -> None:
    """Only the pieces that are still needed are kept, and all of the ring comes from them."""
    buffer, checkpoints = ReplayBuffer(20, SHAPE, 3, 2, seed=1), Checkpoints(tmp_path)
    player, lengths = Player(0, 3), itertools.cycle((3, 9, 5))
    for step in range(40):
        for _ in range(6):
            player.play([buffer], lambda: next(lengths))
        save(buffer, checkpoints, step)
        assert len(list((tmp_path / CHECKPOINT_FOLDER).glob("replay_*"))) <= 5
    assert buffer.frames_written == 240 > 5 * buffer.frame_capacity
    restored = ReplayBuffer(20, SHAPE, 3, 2, seed=2)
    restored_from(tmp_path, restored)
    assert_equal_buffers(buffer, restored)


@pytest.mark.parametrize(
    ("line", "names", "flag"),
    [
        ("", ["critic_loss"], "--lr"),
        ("", ["discriminator_loss", "critic_loss"], "--lr_discriminator"),
        ("--lr_discriminator 1e30", ["critic_loss"], "--lr_discriminator"),
        ("--lr 1e30", ["discriminator_loss", "critic_loss"], "--lr"),
        ("--disdain_coeff 1e9 --discriminator_ensemble 2", ["critic_loss"], "--disdain_coeff"),
        ("--init_temperature 1e30", ["critic_loss"], "--init_temperature"),
        ("--diayn_intrinsic_reward_coeff 1e9 --lr 1", ["critic_loss"], "--diayn_intrinsic_reward_coeff or --lr"),
        ("--num_skills 0 --lr_discriminator 1e30", ["critic_loss"], "--lr"),
        ("--log_std_bounds 70 80", ["critic_loss"], "--log_std_bounds"),
    ],
)
def test_the_likely_cause_of_a_loss_that_is_not_finite(line: str, names: list[str], flag: str) -> None:
    assert likely_cause(train.parse_args(line.split()), names) == flag
