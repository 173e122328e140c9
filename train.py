# PYTHON_ARGCOMPLETE_OK (shells complete flags: README.md)
"""Train DrQ, with DIAYN skills or without, on a DeepMind Control Suite task seen as pixels.

`python train.py --help` lists every flag; README.md explains the outputs. Heavy modules are imported inside the
functions that need them, so that --help and a mistyped flag answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from config import Config
from console.arguments import UNITS, Parser, add_flags, complete
from console.streams import tolerant_output
from errors import RenderingError, RunError, SimulationError, StopError, UserError, WorkerError, one_line
from running.signals import StopRequest
from running.stored_config import config_from
from runs import (
    Run,
    Underway,
    check_losses,
    enough_memory,
    last_good_checkpoint,
    not_finite,
    save_checkpoint,
    setup,
)

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = "Train DrQ, with DIAYN skills or without, on a DeepMind Control Suite task seen as pixels."


def train(run: Run) -> None:
    """The whole run, or what is left of it, up to its budget or a request to stop.

    Episodes, with an evaluation before the first, after the last and whenever one is due, and checkpoints. Raises
    RunError, with a checkpoint behind it where that makes sense.
    """
    failure: RenderingError | WorkerError | None = None
    while failure is None:
        try:
            if evaluation_is_due(run):
                evaluate(run)
            if checkpoint_is_due(run):
                save_checkpoint(run)
            if run.finished or run.stop.number is not None:
                break
            train_episode(run)
        except (RenderingError, WorkerError) as error:
            failure = error
    if run.saved != (run.step, run.evaluated):
        save_checkpoint(run)
    if failure is not None:
        raise RunError(f"{failure}; saved up to frame {run.frame}, go on with: {run.resume_command}") from failure
    if run.finished and run.stop.number is None:
        run.logger.finish(run.frame - run.frames_before, run.stopwatch.elapsed, time_shares(run))


def evaluation_is_due(run: Run) -> bool:
    frequency = run.config.eval_frequency
    if not frequency:
        return False
    passed = run.underway is None and run.step // frequency > run.scheduled // frequency
    return passed or (run.finished and run.evaluated < run.step)


def checkpoint_is_due(run: Run) -> bool:
    frequency = run.config.checkpoint_frequency
    return bool(frequency) and run.underway is None and run.step // frequency > run.kept // frequency


def train_episode(run: Run) -> None:
    """Play an episode, or the rest of the one under way, with one skill: act, update, step, store.

    The run's budget or a request to stop may break it off; only an episode that ends by itself has a row.
    """
    if run.underway is None:
        begin_episode(run)
    while run.underway is not None and not run.finished and run.stop.number is None:
        take_step(run, run.underway)


def begin_episode(run: Run) -> None:
    config, env = run.config, run.env
    began, start = time.perf_counter(), env.state()
    try:
        obs, _ = env.reset(seed=config.seed if run.step == 0 else None)  # later ones go on in the task's random stream
    except Exception:  # as if nothing had been begun, for the checkpoint that whoever catches it may write
        env.load_state(start)
        raise
    skill = run.agent.sample_skill(run.skill_rng)
    run.buffer.start_episode(obs)
    run.underway = Underway(skill=skill, obs=obs, start=start, began=began)


def take_step(run: Run, episode: Underway) -> None:
    """One agent step of the episode, which may end with it.

    An episode whose physics become unstable ends before the step that did it, which counts for nothing. Raises RunError
    where that is its first, as the next would be no better.
    """
    config, logger, clock = run.config, run.logger, run.stopwatch
    if episode.action is None:  # else it is the one whose pictures could not be drawn before the run was resumed
        episode.action = act_and_learn(run, episode)
    try:
        with clock("environment"):
            obs, reward, terminated, truncated, _ = run.env.step(episode.action)
    except SimulationError as error:
        if not episode.actions:
            what = f"{error} in an episode's first step, by frame {run.frame}; {last_good_checkpoint(run)}"
            raise RunError(f"{what}; start a new run with another --seed or a smaller --lr") from error
        print(f"warning: a training episode ends early, by frame {run.frame}: {error}", file=sys.stderr)
        log_episode(run, episode)
        run.underway = None
        return
    run.buffer.add(episode.action, reward, obs, terminated, episode.skill)
    episode.actions.append(episode.action)
    episode.obs, episode.action = obs, None
    episode.extrinsic_reward += reward
    run.step += 1
    with clock("log"):
        if run.step % config.log_frequency_step == 0:
            logger.histograms(run.agent.histograms(), run.frame)
        logger.progress(run.frame)
        if terminated or truncated:
            log_episode(run, episode)
            run.underway = None


def act_and_learn(run: Run, episode: Underway) -> np.ndarray:
    """Choose the next action, then make the updates of this step; on CUDA they run on while the environment steps."""
    import numpy as np

    config, agent, clock = run.config, run.agent, run.stopwatch
    if run.step < config.num_seed_steps and config.finetune_from is None:
        action = run.env.action_space.sample()
    else:
        with clock("act"):  # on CUDA this is where the last update is waited for
            action = agent.act(episode.obs, episode.skill, sample=True)
        if not np.isfinite(action).all():
            check_losses(run)
            raise RunError(not_finite(run, ["the policy's action"]))
    if run.step >= run.learning_from and len(run.buffer):
        for _ in range(config.num_train_iters):
            with clock("sample"):
                batch = run.buffer.sample(config.batch_size)
            with clock("update"), enough_memory(f"an update of --batch_size {config.batch_size}"):
                run.logger.update(agent.update(batch))
    return action


def log_episode(run: Run, episode: Underway) -> None:
    """Write down the training episode that has just ended."""
    from logger import Episode

    check_losses(run)
    run.episode += 1
    steps = len(episode.actions)
    result = Episode(
        duration=time.perf_counter() - episode.began,
        extrinsic_reward=episode.extrinsic_reward,
        skill=episode.skill,
        intrinsic_reward_sum=run.agent.intrinsic_return(run.buffer.recent(steps, run.config.batch_size)),
        length=steps,
    )
    run.logger.train_episode(run.episode, run.frame, result, steps * run.config.action_repeat)
    run.logger.time_shares(time_shares(run), run.frame)


def time_shares(run: Run) -> dict[str, float]:
    """What share of the run's time each part took so far; drawing pictures is told apart from the rest of a step."""
    shares = run.stopwatch.shares()
    if "environment" in shares:
        render = run.env.render_seconds / run.stopwatch.elapsed
        shares["render"] = min(render, shares["environment"])
        shares["environment"] -= shares["render"]
    return shares


def evaluate(run: Run) -> None:
    """Play every skill with the deterministic policy, from the same starts, and log it; a video of each one's first.

    The starts depend on the seed and the step only, and nothing that training uses is touched. Where the run is asked
    to stop, nothing is written: the evaluation is due again when the run is resumed. Raises RenderingError and
    WorkerError.
    """
    import numpy as np

    from rollouts import film, skill_name
    from skills import by_skill, picture_every, pictures, rows_of_skills
    from video import gif_clip

    config, logger, frame = run.config, run.logger, run.frame
    folder, fps = run.folder / "video" if config.save_video else None, run.env.metadata["render_fps"]
    tags = {skill: skill_name(skill) if config.learns_skills else "policy" for skill in run.agent.skills()}
    steps = 0

    def tick() -> None:
        nonlocal steps
        run.stop.check()
        steps += 1
        logger.status(f"evaluating at frame {frame}, step {steps}")

    with run.stopwatch("evaluate"):
        seeds = np.random.SeedSequence([config.seed, run.step]).generate_state(config.num_eval_episodes).tolist()
        try:
            filmed = film(
                run.agent,
                run.lanes,
                {skill: f"{frame}_{tag}" if config.learns_skills else f"{frame}" for skill, tag in tags.items()},
                seeds,
                folder,
                fps,
                grid=f"{frame}_skills",
                picture_every=picture_every(run.env.max_episode_steps or 1),
                between_steps=tick,
            )
        except StopError:
            return
        if config.log_save_tb:
            videos = [(tags[skill], video) for skill, video in filmed.videos.items()]
            for tag, video in [*videos, *([("skills", filmed.grid)] if filmed.grid is not None else [])]:
                clip = gif_clip(video, fps)
                if clip is not None:
                    logger.clip(tag, *clip, step=frame)
        logger.status("")
        played = by_skill(filmed.starts, filmed.results) if config.learns_skills else {}
        rows = rows_of_skills(played)
        logger.evaluation(run.episode, frame, filmed.results, rows)
        for name, picture in (pictures(played, rows, frame) if played else {}).items():
            logger.picture(name, picture, frame)
        run.evaluated = run.step
        if run.underway is None:
            run.scheduled = run.step


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """Return the command line as a Config. Bad input ends the program with one line and exit code 2."""
    parser = Parser(prog="train.py", description=DESCRIPTION, epilog=UNITS)
    add_flags(parser)
    complete(parser)
    given = vars(parser.parse_args(argv))
    try:
        return config_from(given)
    except UserError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, set up, train. Returns the exit code.

    0: the budget is used up. 2: bad input, or a full disk. 1: the run can't go on. Each after one line that says what
    to do. 128 + signal: stopped by SIGINT, SIGTERM or SIGHUP, with a checkpoint.
    """
    config = parse_args(argv)
    # Before torch is imported: its idle threads would spin on the cores that the software renderer needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tolerant_output(), StopRequest() as stop:
        try:
            run = setup(config)
        except UserError as error:
            return _failed(str(error), 2)
        except KeyboardInterrupt:
            print("stopped before the run began", file=sys.stderr)
            return stop.exit_code
        go_on = run.resume_command
        try:
            run.stop, stop.listening = stop, True
            train(run)
        except RunError as error:
            return _failed(str(error), 1)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                place = error.filename or run.folder
                return _failed(f"the disk is full at {place}; make room, then go on with: {go_on}", 2)
            if not str(error.filename).startswith(str(run.folder)):
                raise
            return _failed(f"{error.filename}: {error.strerror}; mend that, then go on with: {go_on}", 2)
        finally:
            run.close()
        if stop.number is not None:
            print(f"stopped at frame {run.frame}, which is saved; go on with: {go_on}", file=sys.stderr)
            return stop.exit_code
    return 0


def _failed(message: str, exit_code: int) -> int:
    print(f"train.py: error: {one_line(message)}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
