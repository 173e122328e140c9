"""Start a run: a new one, a fine-tuned one, or one that is resumed."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack
from pathlib import Path

from config import Config
from console.numbers import shown_number
from drq import DrQAgent
from envs.parallel import EvalEnvs
from envs.renderer import RendererInfo
from errors import CheckpointError, LogError, RenderingError, RunError, UserError, WorkerError, reason_of
from evaluation.play import best_skill
from logger import Logger, check_logs
from running.atomic_files import check_file, check_folder, locked, no_room
from running.build import build_run, choose_device, out_of_memory_is_an_error, warn_of_cpu
from running.checkpoint import FOLDER as CHECKPOINT_FOLDER
from running.checkpoint import Checkpoints, State
from running.derivation import compared_flags
from running.folder import link_latest, new_run_folder, write_config
from running.run import Run
from running.snapshots import FOLDER as SNAPSHOT_FOLDER
from running.snapshots import read_pretrained, snapshot_frames
from running.state import INVALID_STATE, restore
from running.stored_config import real_run, refuse_changes
from running.tracker import Tracker
from utils import Stopwatch, seed_sequence
from video import remove_unfinished


def open_run(config: Config, renderer: RendererInfo) -> Run:
    """Return a new run, or the run in `config.resume` as its last checkpoint has it.

    What can fail comes first, cheap checks before expensive ones; only then is a folder made or changed.
    Raises UserError.
    """
    wanted, config = config.device, dataclasses.replace(config, device=choose_device(config.device))
    with ExitStack() as half_made, ExitStack() as resources:  # undone, and closed, if something fails
        if config.resume is None:
            run, logs = _start(config, resources, half_made), None
        else:
            run, logs = _resume(config, resources)
        _open_outputs(run, renderer, logs, resources)
        print_start(run, renderer, wanted)
        half_made.close()  # from here on nothing is undone
        run.resources = resources.pop_all()
    return run


def print_start(run: Run, renderer: RendererInfo, wanted: str | None) -> None:
    """Print what a run starts with, and warnings. Bad input has been refused by then.

    Args:
        wanted: the device that was asked for, or None.
    """
    config = run.config
    warn_of_cpu(wanted, config.device)
    if renderer.is_software and config.device != "cpu":
        print("warning: rendering in software beside a GPU; MUJOCO_GL=egl is faster", file=sys.stderr)
    first_update = -(-config.num_seed_steps // config.agent_steps_per_update) * config.agent_steps_per_update
    if config.resume is None and config.num_train_steps <= first_update:
        steps = f"the first comes after {first_update} agent steps, the budget is {config.num_train_steps}"
        flags = "--num_seed_steps, --agent_steps_per_update"
        print(f"warning: there will be no updates: {steps} ({flags})", file=sys.stderr)
    print(f"device: {config.device}; renderer: {renderer.backend}, {renderer.name}")
    print(f"replay buffer: {run.memory}")
    print(f"outputs: {run.folder}")
    if config.resume is not None:
        print(f"resumed at frame {run.frame}, in episode {run.episode + 1}")


def _start(config: Config, resources: ExitStack, half_made: ExitStack) -> Run:
    """Return a new run in a new folder, which `half_made` removes."""
    run = build_run(config, resources)
    if config.finetune_from is not None:
        run.frames_before = begin_fine_tuning(config, run.agent, run.eval_envs)
        run.stopwatch = Stopwatch()
    try:
        run.folder = half_made.enter_context(new_run_folder(config))
        resources.enter_context(locked(run.folder))
    except OSError as error:
        raise no_room(config.work_dir, error) from error
    run.checkpoints = Checkpoints(run.folder)
    return run


def begin_fine_tuning(config: Config, agent: DrQAgent, eval_envs: EvalEnvs) -> int:
    """Give the agent the networks of `config.finetune_from` and one of its skills.

    The best skill is the one with the highest return over one episode each, on the task of this run.
    Returns the frames that choosing it took. Raises UserError.
    """
    folder = Path(config.finetune_from)
    try:
        state = read_pretrained(config)
        agent.load_pretrained(state["agent"], critic=config.finetune_critic == "pretrained")
    except CheckpointError as error:
        raise UserError(f"--finetune_from {folder}: {error}") from error
    except INVALID_STATE as error:
        raise UserError(
            f"--finetune_from {folder}: its networks do not fit --env {config.env}; keep its task"
        ) from error
    if config.finetune_skill != "best":
        agent.skill = int(config.finetune_skill)
        return 0
    try:
        seeds = seed_sequence(config.seed, "best").generate_state(1).tolist()  # not one that evaluations use
        agent.skill, returns, steps = best_skill(agent, eval_envs, range(config.num_skills), seeds)
    except (RenderingError, WorkerError) as error:
        raise UserError(str(error)) from error
    shown = ", ".join(f"{skill}: {shown_number(value, '.1f')}" for skill, value in returns.items())
    frames = steps * config.action_repeat
    print(f"fine-tuning skill {agent.skill}, the best of one episode each ({shown}); that took {frames} frames")
    return frames


def _resume(config: Config, resources: ExitStack) -> tuple[Run, State | None]:
    """Return the run in `config.resume` as at its last checkpoint, and the state of its logs then.

    A run that was killed before its first checkpoint starts again, without logs.
    """
    folder = resources.enter_context(locked(real_run(config.resume)))
    checkpoints = Checkpoints(folder)
    try:
        state = checkpoints.read()
        if state is not None:
            flags = state.get("flags")
            if not isinstance(flags, dict):
                raise CheckpointError("the checkpoint does not fit this version of the program (it has no flags)")
            refuse_changes(flags, config, f"the checkpoint in {folder}")
        elif any(snapshot_frames(folder)):  # above 0: not a run that was killed before its first checkpoint
            raise CheckpointError("it has snapshots only; evaluate it, or name it in --finetune_from")
        run = build_run(config, resources)
        run.folder, run.checkpoints = folder, checkpoints
        if state is not None:
            with out_of_memory_is_an_error("the checkpoint", "end other programs, or name another --device"):
                restore(run, state)
        elif config.finetune_from is not None:
            run.frames_before = begin_fine_tuning(config, run.agent, run.eval_envs)
    except (CheckpointError, RenderingError, RunError) as error:
        raise UserError(f"--resume {folder}: {error}") from error
    return run, state and state["logs"]


def _open_outputs(run: Run, renderer: RendererInfo, logs: State | None, resources: ExitStack) -> None:
    """Open the run's CSVs and TensorBoard log, and write config.json.

    Args:
        logs: of the checkpoint; what the files hold beyond it is cut off.
    """
    config, folder = run.config, run.folder
    more = {"finetuned_skill": run.agent.skill, "frames_before": run.frames_before} if config.finetune_from else {}
    try:
        # Nothing has been changed up to here. config.json is replaced atomically, so it comes before the logs are cut.
        _check_outputs(config, folder, logs)
        tracker = start_tracker(config, folder, logs, resources)
        write_config(config, folder, renderer, None if config.resume is None else run.frame, **more)
        run.logger = Logger(
            folder,
            with_skills=config.learns_skills,
            with_disdain=config.learns_skills and config.disdain_coeff > 0,
            tensorboard=config.log_save_tb,
            total_frames=run.frames_before + config.num_train_frames,
            flags=compared_flags(config),
            tracker=tracker,
            logs=logs,
            step=run.frame,
        )
        resources.callback(run.logger.close)
        if config.resume is None:
            link_latest(folder)
    except LogError as error:
        raise UserError(f"--resume {folder}: {error}") from error
    except OSError as error:
        if config.resume is None:
            raise no_room(config.work_dir, error) from error
        raise UserError(f"--resume {folder}: {reason_of(error)}; fix that first") from error
    if logs is not None:
        run.logger.load_meters(logs, run.agent.device)
    remove_unfinished(folder / "video")


def start_tracker(config: Config, folder: Path, logs: State | None, resources: ExitStack) -> Tracker | None:
    """Return the tracker that --track asks for. Raises UserError."""
    if config.track == "none":
        return None
    flags, tracked = dataclasses.asdict(config), (logs or {}).get("tracked")
    tracker = Tracker(config.track, folder, group=config.env, flags=flags, run_id=tracked)
    resources.push(lambda kind, error, trace: tracker.close(failed=kind is not None))
    if tracker.place is not None:
        print(f"tracker: {tracker.place}")
    return tracker


def _check_outputs(config: Config, folder: Path, logs: State | None) -> None:
    """Check that everything the run will write can be written, without changing it. Raises LogError, OSError."""
    check_logs(folder, with_skills=config.learns_skills, tensorboard=config.log_save_tb, logs=logs)
    more = {"video": config.save_video, SNAPSHOT_FOLDER: config.snapshot_frequency}
    for place in (folder, folder / CHECKPOINT_FOLDER, *(folder / name for name, used in more.items() if used)):
        check_folder(place)
    for path in Checkpoints(folder).own_files():
        check_file(path)
