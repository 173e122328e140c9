"""The state of a run: what a checkpoint holds, and how a resumed run gets it back."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from config import MAX_INTEGER, Config
from errors import CheckpointError, EnvError, RenderingError, RunError
from logger import check_state
from running.checkpoint import State
from running.run import EpisodeInProgress, Run
from utils import is_out_of_memory, plain, random_states, set_random_states

UNUSUAL = 100.0  # times the usual value
LARGE_LOG_STD = 20.0  # exp(20) = 5e8
SMALLEST_COUNTERS = {"evaluated": -1, "scheduled": -1}  # -1: no evaluation yet; others are 0 or above
INVALID_STATE = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ArithmeticError)


def state_of(run: Run) -> State:
    """Return everything that the run needs to continue exactly: tensors and plain data."""
    episode = run.in_progress
    return {
        "flags": dataclasses.asdict(run.config),
        "counters": {
            "frames_before": run.frames_before,
            "step": run.step,
            "episode": run.episode,
            "evaluated": run.evaluations.last,
            "scheduled": run.evaluations.counted_from,
            "learning_from": run.first_update_step,
        },
        "agent": run.agent.state_dict(),
        "replay_buffer": run.buffer.state_dict(),
        "random": random_states(run.agent.device),
        "action_space": plain(run.env.action_space.np_random.bit_generator.state),
        "skills": run.skill_rng.bit_generator.state,
        "environment": run.env.state() if episode is None else episode.env_state,
        "underway": None if episode is None else _episode_state(episode),
        "logs": run.logger.state_dict(),
        "stopwatch": run.stopwatch.state_dict(),
        "render_seconds": run.env.render_seconds,
    }


def _episode_state(episode: EpisodeInProgress) -> State:
    """Return the state of an episode. The environment's is not in it: it follows from the start and the actions."""
    return {
        "skill": episode.skill,
        "obs": torch.from_numpy(episode.obs),
        "seconds": time.perf_counter() - episode.started,
        "extrinsic_reward": float(episode.extrinsic_reward),
        "actions": [torch.from_numpy(action) for action in episode.actions],
        "action": None if episode.pending_action is None else torch.from_numpy(episode.pending_action),
    }


def save_checkpoint(run: Run) -> None:
    """Write a checkpoint. Raises RunError if losses or weights are not finite, OSError if it cannot be written."""
    check_finite(run)
    buffer, checkpoints = run.buffer, run.checkpoints
    with run.stopwatch("checkpoint"):
        run.logger.status("writing a checkpoint")
        replay = buffer.transitions_since(checkpoints.saved_frames) if run.config.save_replay_buffer else None
        frames = {"oldest_frame": buffer.oldest_frame, "end": buffer.frames_written}
        checkpoints.write(run.step, state_of(run), replay, **frames)
        run.saved = run.position
        run.checkpointing.done(run.step, run.episode_start)
        run.logger.status("")


def read_counters(state: State) -> dict[str, int]:
    """Return the counters in a state. Raises ValueError, KeyError, TypeError, AttributeError if they are damaged."""
    counters: dict[str, int] = state["counters"]
    for name, value in counters.items():
        if type(value) is not int or not SMALLEST_COUNTERS.get(name, 0) <= value <= MAX_INTEGER:
            raise ValueError(f"the counter {name} is {reprlib.repr(value)}")
    return counters


def restore(run: Run, state: State) -> None:
    """Set a newly built run to a state that `state_of` returned. Raises CheckpointError, EnvError, RenderingError."""
    try:
        counters = read_counters(state)
        run.frames_before, run.step, run.episode = (counters[name] for name in ("frames_before", "step", "episode"))
        run.evaluations.last, run.evaluations.counted_from = counters["evaluated"], counters["scheduled"]
        run.first_update_step = counters["learning_from"]
        run.saved = run.position
        run.agent.load_state_dict(state["agent"])
        run.env.action_space.np_random.bit_generator.state = state["action_space"]
        run.skill_rng.bit_generator.state = state["skills"]
        run.stopwatch.load_state_dict(state["stopwatch"])
        run.env.load_state(state["environment"])
        refill = _restore_replay_buffer(run, state["replay_buffer"])
        if state["underway"] is not None:
            run.in_progress = _replay_episode(run, state["underway"], refill)
        run.checkpointing.done(run.step, run.episode_start)
        run.snapshots.counted_from = run.episode_start  # one that was due has been written before the checkpoint
        run.snapshots.last = run.step if state["flags"].get("snapshot_frequency") else -1  # older runs lack the flag
        run.env.render_seconds = float(state["render_seconds"])
        check_state(state["logs"])
        set_random_states(state["random"], run.agent.device)  # last, as the lines above may draw from them
    except (EnvError, RenderingError):
        raise
    except INVALID_STATE as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the checkpoint does not fit this version of the program ({reason})") from error
    if state["agent"]["device"] != run.agent.device.type:
        print(
            "warning: resumed on another kind of device: random numbers differ from those of an uninterrupted run",
            file=sys.stderr,
        )


def _restore_replay_buffer(run: Run, state: State) -> bool:
    """Fill the replay buffer from the checkpoint. Return True if the checkpoint has no transitions."""
    if state["written"] and not run.checkpoints.saved_frames:
        run.buffer.load_rng(state)
        run.first_update_step = run.step + run.config.num_seed_steps
        print(
            "warning: the replay buffer was not saved: the run continues with an empty one and makes no updates for "
            f"{run.config.num_seed_steps} agent steps; it will differ from an uninterrupted run",
            file=sys.stderr,
        )
        return True
    run.buffer.load_state_dict(state)
    for piece in run.checkpoints.replay_pieces():
        run.buffer.load_transitions(piece)
    return False


def _replay_episode(run: Run, saved: State, refill: bool) -> EpisodeInProgress:
    """Play the actions of the episode in progress again, from its start.

    Args:
        refill: store its transitions in the replay buffer too.
    """
    env, buffer = run.env, run.buffer
    actions = [action.numpy() for action in saved["actions"]]
    env_state = env.state()
    obs, _ = env.reset(seed=run.config.seed if run.step == len(actions) else None)
    if refill:
        buffer.start_episode(obs)
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
        if refill:
            buffer.add(action, reward, obs, terminated, saved["skill"])
    if not np.array_equal(obs, saved["obs"].numpy()):
        print("warning: the episode in progress could not be repeated exactly; the run continues", file=sys.stderr)
    return EpisodeInProgress(
        skill=saved["skill"],
        obs=obs,
        env_state=env_state,
        started=time.perf_counter() - saved["seconds"],
        extrinsic_reward=saved["extrinsic_reward"],
        actions=actions,
        pending_action=None if saved["action"] is None else saved["action"].numpy(),
    )


def check_finite(run: Run) -> None:
    """Raise RunError if a loss since the last row, or a weight, is not finite. Waits for the device."""
    check_losses(run)
    if not run.agent.is_finite():
        raise RunError(not_finite(run, ["weights"]))


def check_losses(run: Run) -> None:
    """Raise RunError if a loss since the last row was not finite. Waits for the device."""
    names = run.logger.not_finite()
    if names:
        raise RunError(not_finite(run, names))


def not_finite(run: Run, names: Sequence[str]) -> str:
    """Return the message for losses, weights or actions that are not finite."""
    what = f"{', '.join(names)} became infinite or not a number by frame {run.frame}"
    return f"{what}; {last_good_checkpoint(run)}; start a new run with a smaller {likely_cause(run.config, names)}"


def likely_cause(config: Config, names: Sequence[str]) -> str:
    """Return the flags that most likely made the losses diverge: unusually large ones, else a learning rate."""
    unusual = {"extrinsic_reward_coeff": 1.0, "diayn_intrinsic_reward_coeff": 1.0, "disdain_coeff": 1.0}
    unusual |= {"init_temperature": 0.1}
    own_rate = config.learns_skills and config.lr_discriminator != config.lr
    unusual |= {"lr": 1e-3, **({"lr_discriminator": 1e-3} if own_rate else {})}
    large = [f"--{name}" for name, usual in unusual.items() if getattr(config, name) > UNUSUAL * usual]
    large += ["--log_std_bounds"] if config.log_std_bounds[1] > LARGE_LOG_STD else []
    if large:
        return " or ".join(large)
    return "--lr_discriminator" if names[0].startswith("discriminator") else "--lr"


def last_good_checkpoint(run: Run) -> str:
    """Return the frame and folder of the last checkpoint, in words."""
    checkpoints = run.checkpoints
    saved = f"of frame {run.frame_at(checkpoints.step)}: {checkpoints.folder}" if checkpoints.step >= 0 else "none"
    return f"last good checkpoint {saved}"
