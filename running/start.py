"""Start a run: a new one, a fine-tuned one, or one that is resumed."""

from __future__ import annotations

import dataclasses
import math
import sys
from contextlib import ExitStack
from pathlib import Path

from config import Config
from console.numbers import shown_number
from drq import DrQAgent
from envs.renderer import RendererInfo
from errors import CheckpointError, EnvError, LogError, RenderingError, RunError, UserError, WorkerError, reason_of
from evaluation.play import best_skill, steps_to_play
from logger import Logger, check_logs
from running.atomic_files import check_file, check_folder, locked, no_room
from running.build import build_run, choose_device, out_of_memory_is_an_error, warn_of_cpu
from running.checkpoint import Checkpoints, State
from running.derivation import compared_flags
from running.folder import link_latest, new_run_folder, write_config
from running.names import CHECKPOINT_FOLDER, SNAPSHOT_FOLDER
from running.progress import ProgressBar
from running.run import Run, shortest
from running.snapshots import read_pretrained, snapshot_frames
from running.state import INVALID_STATE, restore
from running.stored_config import real_run, refuse_changes
from running.tracker import Tracker
from utils import Stopwatch, is_out_of_memory, seed_sequence
from video import remove_unfinished


def open_run(config: Config, renderer: RendererInfo) -> Run:
    """Return a new run, or the run in `config.resume` as its last checkpoint has it.

    What can fail comes first, cheap checks before expensive ones; only then is a folder made or changed.
    Raises UserError.
    """
    try:
        with out_of_memory_is_an_error("the run", "end other programs, or name another --device"):
            return _open_run(config, renderer)
    except RunError as error:
        raise UserError(str(error)) from error


def _open_run(config: Config, renderer: RendererInfo) -> Run:
    wanted, config = config.device, dataclasses.replace(config, device=choose_device(config.device))
    with ExitStack() as half_made, ExitStack() as resources:  # undone, and closed, if something fails
        run, logs = (build_run(config, resources), None) if config.resume is None else _resume(config, resources)
        chooses_skill = False
        if config.finetune_from is not None and logs is None:
            begin_fine_tuning(config, run.agent)
            chooses_skill = config.finetune_skill == "best"
        if config.resume is None:
            _make_folder(run, resources, half_made)
        if chooses_skill:  # this takes a while
            print_settings(run, renderer, wanted)
            choose_skill(run)
        _open_outputs(run, renderer, logs, resources)
        if not chooses_skill:
            print_settings(run, renderer, wanted)
        print(f"outputs: {run.folder}")
        if config.resume is not None:
            print(f"resumed at frame {run.frame}, in episode {run.episode + 1}")
        half_made.close()  # from here on nothing is undone
        run.resources = resources.pop_all()
    return run


def print_settings(run: Run, renderer: RendererInfo, wanted: str | None) -> None:
    """Print what a run will use, and warnings. Most bad input has been refused by then.

    Args:
        wanted: the device that was asked for, or None.
    """
    config = run.config
    warn_of_cpu(wanted, config.device)
    if renderer.is_software and config.device != "cpu":
        print("warning: rendering in software beside a GPU; MUJOCO_GL=egl is faster", file=sys.stderr)
    every = config.agent_steps_per_update
    first_update = math.ceil(max(config.num_seed_steps, 1) / every) * every  # at step 0 the replay buffer is empty
    if config.resume is None and config.num_train_steps <= first_update:
        steps = f"the first comes after {first_update} agent steps, the budget is {config.num_train_steps}"
        flags = "--num_seed_steps, --agent_steps_per_update"
        print(f"warning: there will be no updates: {steps} ({flags})", file=sys.stderr)
    print(f"device: {config.device}; renderer: {renderer.backend}, {renderer.name}")
    print(f"replay buffer: {run.memory}", flush=True)


def _make_folder(run: Run, resources: ExitStack, half_made: ExitStack) -> None:
    """Make a new run's folder, which `half_made` removes. Raises UserError."""
    try:
        run.folder = half_made.enter_context(new_run_folder(run.config))
        resources.enter_context(locked(run.folder))
    except OSError as error:
        raise no_room(run.config.work_dir, error) from error
    run.checkpoints = Checkpoints(run.folder)


def begin_fine_tuning(config: Config, agent: DrQAgent) -> None:
    """Give the agent the networks of `config.finetune_from` and, unless it is to be chosen, its skill.

    Raises UserError.
    """
    folder = Path(config.finetune_from)
    try:
        state = read_pretrained(config)
        agent.load_pretrained(state["agent"], critic=config.finetune_critic == "pretrained")
    except CheckpointError as error:
        raise UserError(f"--finetune_from {folder}: {error}") from error
    except INVALID_STATE as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"--finetune_from {folder}: its networks do not fit --env {config.env}; keep its task"
        ) from error
    if config.finetune_skill != "best":
        agent.skill = int(config.finetune_skill)


def choose_skill(run: Run) -> None:
    """Let the agent of a fine-tuned run play the skill with the highest return over one episode each, on its task.

    The frames that this takes are those before training. Raises UserError.
    """
    config, agent, eval_envs = run.config, run.agent, run.eval_envs
    skills, source = range(config.num_skills), shortest(Path(config.finetune_from))
    print(f"choosing the best of {len(skills)} skills of {source}, by one episode each", flush=True)
    seeds = seed_sequence(config.seed, "best").generate_state(1).tolist()  # not one that evaluations use
    steps_at_most = steps_to_play(len(skills), eval_envs, run.env.max_episode_steps or 1)
    try:
        with ProgressBar(steps_at_most, unit="steps", what="choosing") as bar:
            agent.skill, returns, steps = best_skill(agent, eval_envs, skills, seeds, between_steps=bar.advance)
    except (EnvError, RenderingError, WorkerError) as error:
        raise UserError(str(error)) from error
    run.frames_before, run.stopwatch = steps * config.action_repeat, Stopwatch()
    shown = ", ".join(f"{skill}: {shown_number(value, '.1f')}" for skill, value in returns.items())
    print(f"fine-tuning skill {agent.skill}, the best of one episode each ({shown})")
    print(f"the choice took {run.frames_before} frames, which every step in the outputs counts")


def _resume(config: Config, resources: ExitStack) -> tuple[Run, State | None]:
    """Return the run in `config.resume` as at its last checkpoint, and the state of its logs then.

    A run that was killed before its first checkpoint starts again, without logs.
    """
    folder = resources.enter_context(locked(shortest(real_run(config.resume))))
    checkpoints = Checkpoints(folder)
    try:
        state = checkpoints.read()
        if state is not None:
            flags = state.get("flags")
            if not isinstance(flags, dict):
                raise CheckpointError("the checkpoint does not fit this version of the program (it has no flags)")
            refuse_changes(flags, config, f"the checkpoint in {folder}")
        elif snapshot_frames(folder) and not (folder / "train.csv").exists():  # only its networks were kept
            raise CheckpointError("it has snapshots only; evaluate it, or name it in --finetune_from")
        run = build_run(config, resources)
        run.folder, run.checkpoints = folder, checkpoints
        if state is not None:
            restore(run, state)
            if run.step > config.num_train_steps:
                raise UserError(
                    f"the budget of {config.num_train_steps} agent steps is less than the {run.step} that {folder} has "
                    "made; give a larger --num_train_steps or --num_train_frames"
                )
    except (CheckpointError, EnvError, RenderingError) as error:
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
            total_frames=config.num_train_frames,
            frames_before=run.frames_before,
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
