"""The training loop: act, update, step, store; at an episode's end log, evaluate, write a checkpoint."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from errors import EnvError, RenderingError, RunError, SimulationError, StopError, WorkerError
from evaluation.evaluate_skills import Evaluation, evaluate_skills
from evaluation.play import skill_name, start_seeds, steps_to_play
from logger import Episode
from replay_buffer import Batch
from running.build import out_of_memory_is_an_error
from running.folder import update_latest
from running.names import frame_name
from running.run import EpisodeInProgress, Run
from running.snapshots import write_snapshot
from running.state import check_finite, check_losses, last_good_checkpoint, not_finite, save_checkpoint


def train(run: Run) -> None:
    """Train until the budget is used up or a signal asks to stop.

    Evaluates before the first episode, whenever an evaluation is due, and at the end. Raises RunError, after writing a
    checkpoint if the run can be resumed from here.
    """
    remedy = "choose a smaller --batch_size, --hidden_dim or --replay_buffer_capacity, or end other programs"
    with out_of_memory_is_an_error("training", remedy):
        _train(run)


def _train(run: Run) -> None:
    failure: EnvError | RenderingError | WorkerError | None = None
    while failure is None:
        try:
            if run.snapshot_is_due:  # before the evaluation, which may fail
                write_snapshot(run)
            if run.evaluation_is_due:
                evaluate(run)
            if run.checkpoint_is_due:
                save_checkpoint(run)
            update_latest(run.folder)
            if run.finished or run.stopped:
                break
            train_episode(run)
        except (EnvError, RenderingError, WorkerError) as error:
            failure = error
    if run.saved != run.position:
        save_checkpoint(run)
        update_latest(run.folder)
    if failure is not None:
        raise RunError(f"{failure}; saved up to frame {run.frame}, resume with: {run.resume_command}") from failure
    if run.finished and not run.stopped:
        run.logger.finish(run.frame - run.frames_before, run.stopwatch.elapsed, run.time_shares())


def train_episode(run: Run) -> None:
    """Play an episode with one skill, or the rest of the one in progress.

    The budget or a signal may interrupt it; only an episode that ends by itself is logged.
    """
    if run.in_progress is None:
        run.in_progress = start_episode(run)
    while run.in_progress is not None and not run.finished and not run.stopped:
        take_step(run, run.in_progress)


def start_episode(run: Run) -> EpisodeInProgress:
    """Reset the environment and draw a skill."""
    config, env = run.config, run.env
    started, env_state = time.perf_counter(), env.state()
    try:
        with run.stopwatch("environment"):  # later episodes continue the random stream
            obs, _ = env.reset(seed=config.seed if run.step == 0 else None)
    except Exception:  # restore the environment so that a checkpoint stays consistent
        env.load_state(env_state)
        raise
    skill = run.agent.sample_skill(run.skill_rng, run.episode)
    run.buffer.start_episode(obs)
    return EpisodeInProgress(skill=skill, obs=obs, env_state=env_state, started=started)


def take_step(run: Run, episode: EpisodeInProgress) -> None:
    """Take one agent step of the episode, and log the episode if it ends.

    If the physics become unstable, the episode ends before the step. Raises RunError if that is its first step, as the
    next episode would not be better.
    """
    config, logger, clock = run.config, run.logger, run.stopwatch
    makes_updates = run.update_is_due
    if episode.pending_action is None:  # else the run stopped after choosing it: the environment failed
        episode.pending_action = act_and_update(run, episode)
    try:
        with clock("environment"):
            obs, reward, terminated, truncated, _ = run.env.step(episode.pending_action)
    except SimulationError as error:
        end_unstable_episode(run, episode, error)
        return
    run.buffer.add(episode.pending_action, reward, obs, terminated, episode.skill)
    episode.actions.append(episode.pending_action)
    episode.obs, episode.pending_action = obs, None
    episode.extrinsic_reward += reward
    run.step += 1
    with clock("log"):
        if run.step % config.log_frequency_step == 0:
            check_finite(run)
            logger.histograms(run.agent.histograms(), run.frame)
        logger.progress(run.frame, run.seconds_of_steps if makes_updates else None)
        if terminated or truncated:
            log_episode(run, episode)
            run.in_progress = None


def act_and_update(run: Run, episode: EpisodeInProgress) -> np.ndarray:
    """Choose the next action, then make this step's updates. On CUDA they run while the environment steps."""
    config, agent, clock = run.config, run.agent, run.stopwatch
    if run.step < config.num_seed_steps and config.finetune_from is None:
        action = run.env.action_space.sample()
    else:
        with clock("act"):  # on CUDA this waits for the previous update
            action = agent.act(episode.obs, episode.skill, sample=True)
        if not np.isfinite(action).all():
            check_losses(run)
            raise RunError(not_finite(run, ["the policy's action"]))
    if run.update_is_due:
        for _ in range(config.num_train_iters):
            with out_of_memory_is_an_error(f"an update of --batch_size {config.batch_size}"):
                with clock("sample"):
                    batches = sample(run)
                with clock("update"):
                    run.logger.update(agent.update(*batches))
    return action


def sample(run: Run) -> list[Batch]:
    """Return the batch of an update and, if the discriminator has a window, a second one of as many new transitions."""
    config, buffer = run.config, run.buffer
    batches = [buffer.sample(config.batch_size)]
    if config.discriminator_window is not None and config.learns_skills:
        batches.append(buffer.sample(config.batch_size, newest=config.discriminator_window))
    return batches


def end_unstable_episode(run: Run, episode: EpisodeInProgress, error: SimulationError) -> None:
    """Log an episode whose physics became unstable. Raises RunError if it has no steps."""
    if not episode.actions:
        what = f"{error} in an episode's first step, by frame {run.frame}; {last_good_checkpoint(run)}"
        raise RunError(f"{what}; start a new run with another --seed or a smaller --lr") from error
    print(f"warning: a training episode ends early, by frame {run.frame}: {error}", file=sys.stderr)
    log_episode(run, episode)
    run.in_progress = None


def log_episode(run: Run, episode: EpisodeInProgress) -> None:
    """Write the rows of the training episode that has just ended."""
    check_losses(run)
    run.episode += 1
    steps = len(episode.actions)
    result = Episode(
        duration=time.perf_counter() - episode.started,
        extrinsic_reward=episode.extrinsic_reward,
        skill=episode.skill,
        intrinsic_reward_sum=run.agent.intrinsic_return(run.buffer.recent(steps, run.config.batch_size)),
        length=steps,
    )
    run.logger.train_episode(run.episode, run.frame, result, steps * run.config.action_repeat)
    run.logger.time_shares(run.time_shares(), run.frame)


def evaluate(run: Run) -> None:
    """Evaluate every skill with the deterministic policy from the same starts, and log the result.

    The starts depend only on the run's seed and step, and training is not affected. If a signal asks the run to stop,
    nothing is logged and the evaluation stays due. Raises EnvError, RenderingError, WorkerError.
    """
    config, frame, step, began = run.config, run.frame, 0, time.monotonic()
    skills = run.agent.skills()
    name, count = frame_name(frame), config.num_skills
    names = {skill: f"{name}_{skill_name(skill, count)}" if config.learns_skills else name for skill in skills}

    steps = steps_to_play(len(skills) * config.num_eval_episodes, run.eval_envs, run.env.max_episode_steps or 1)

    def between_steps() -> None:
        nonlocal step
        run.stop.check()
        step += 1
        run.logger.count("evaluating", step, steps, time.monotonic() - began)

    with run.stopwatch("evaluate"):
        try:
            evaluation = evaluate_skills(
                run.agent,
                run.eval_envs,
                names,
                start_seeds([config.seed, run.step], config.num_eval_episodes),
                fps=run.env.metadata["render_fps"],
                max_episode_steps=run.env.max_episode_steps or 1,
                cell_grid=run.env.cell_grid,
                angles=run.env.angles,
                video_folder=run.folder / "video" if config.save_video else None,
                grid_name=f"{name}_skills",
                between_steps=between_steps,
            )
        except StopError:
            return
        log_evaluation(run, evaluation)
        run.evaluations.done(run.step, run.episode_start)


def log_evaluation(run: Run, evaluation: Evaluation) -> None:
    """Write an evaluation's rows and pictures, and show its videos."""
    config, logger, frame = run.config, run.logger, run.frame
    tags = {skill: skill_name(skill) if config.learns_skills else "policy" for skill in evaluation.videos}
    videos = {tags[skill]: video for skill, video in evaluation.videos.items()}
    for tag, video in {**videos, **({"skills": evaluation.grid} if evaluation.grid is not None else {})}.items():
        logger.video(tag, video, run.env.metadata["render_fps"], frame)
    logger.status("")
    measures: dict[str, Any] = {}
    if config.learns_skills:
        deciles = {
            f"{number:02}": bound
            for number, bound in enumerate(evaluation.mean_by_decile, start=1)
            if bound is not None
        }
        measures = {"skills": evaluation.rows, "overall": evaluation.overall}
        measures["more"] = {"mutual_information_bound_by_decile": deciles}
    logger.evaluation(run.episode, frame, evaluation.episodes, **measures)
    pictures = evaluation.pictures(frame) if config.learns_skills else {}
    for name, picture in pictures.items():
        logger.picture(name, picture, frame)
