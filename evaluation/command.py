"""What evaluate.py does after parsing: load the run, play it, print and write the results."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import Config
from console.numbers import counted, shown_number
from diayn import DIAYNAgent
from envs.renderer import RendererInfo
from errors import UserError
from evaluation.chosen_skills import parse_skills
from evaluation.compose import play_schedule
from evaluation.imitate import read_trajectory, record_imitation, skill_likelihoods
from evaluation.load import LoadedRun, load
from evaluation.over_snapshots import draw_measures
from evaluation.play import Actions, Start, best_skill, skill_name, start_seeds
from evaluation.record import RECORD_FILE, evaluation_json
from evaluation.refit import check_memory_for_refit, refit
from evaluation.tables import decile_rows, print_bound, print_coverage, print_table, summary_row, write_table
from logger import Row, encode_png
from running.atomic_files import made_folder, output_folder, write_file
from running.build import out_of_memory_is_an_error
from running.columns import (
    CHOICE_COLUMNS,
    DECILE_COLUMNS,
    EVAL_SKILL_COLUMNS,
    REFIT_COLUMNS,
    SKILL_COLUMNS,
    SUMMARY_COLUMNS,
)
from running.folder import recorded_environment
from running.names import SNAPSHOT_FOLDER, folder_name, frame_name, padded, short_name
from running.snapshots import snapshot_frames
from running.stored_config import CONFIG_FILE, real_run
from utils import seed_sequence

WRITTEN = re.compile(  # by an evaluation, beside evaluation.json and trajectories, which may be what a user keeps
    r"(skills|deciles|summary|choice|refit|imitation)\.csv|(confusion_matrix|contact_sheet|trajectories|measures)\.png|"
    r"(skill\d+|skills|policy|schedule|imitation|given)\.mp4"
)
# Measures that episodes without skills do not have.
WITH_SKILLS_ONLY = frozenset(EVAL_SKILL_COLUMNS) - {"cells_visited"}


def run_evaluation(args: argparse.Namespace, renderer: RendererInfo) -> None:
    """Evaluate a run as the flags of evaluate.py say.

    Raises UserError, OSError, EnvError, RenderingError, RunError, SimulationError.

    Args:
        renderer: for the record.
    """
    place = real_run(args.run)
    every_snapshot = place.name == SNAPSHOT_FOLDER and place.is_dir()
    if every_snapshot and (args.imitate is not None or args.skill_schedule is not None):
        raise UserError(f"--imitate and --skill_schedule play one agent; name one of the snapshots in {args.run}")
    frames = snapshot_frames(place.parent) if every_snapshot else []
    if every_snapshot and not frames:
        raise UserError(f"{args.run} has no snapshots; train with --snapshot_frequency")
    loaded = load(place / f"{frames[-1]}.pt" if frames else place, args.device, time_limit=args.time_limit)
    run, moment = loaded.label, SNAPSHOT_FOLDER if every_snapshot else loaded.frame
    out = args.out or Path("evaluations", run.parent, short_name(f"{run.name}_{moment}"), output_name(args))
    first: Path | None
    remedy = "try fewer --episodes, a smaller --video_size or another --device"
    with output_folder(out), out_of_memory_is_an_error("evaluating", remedy):
        if (out / CONFIG_FILE).exists():
            raise UserError(f"--out {out} is a run's folder, whose files would be replaced; name another")
        found = times_of_files(out)
        if args.out is not None and found and not (out / RECORD_FILE).exists():
            others = f"{min(found).name}, which may be yours: it has no {RECORD_FILE} of an evaluation beside it"
            raise UserError(f"--out {out} holds {others}; name another folder")
        source = loaded.label / SNAPSHOT_FOLDER if every_snapshot else loaded.source
        with replacing_files(out, record_of(loaded, source, args, renderer)):
            if every_snapshot:
                first = play_snapshots(place, args, out, renderer)
            elif args.imitate is not None:
                first = imitate(loaded, args, out)
            elif args.skill_schedule is not None:
                first = play_schedule(
                    loaded,
                    args.skill_schedule,
                    episodes=args.episodes,
                    seed=args.seed,
                    video_folder=None if args.no_video else out,
                    video_size=args.video_size,
                )
            else:
                first = play_skills(loaded, args, out).first
    print(f"outputs: {out}")
    if first is not None:
        print(f"open first: {first}")


def times_of_files(out: Path) -> dict[Path, int]:
    """Return when each file that an evaluation may have written into the folder was last written, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in out.iterdir() if WRITTEN.fullmatch(path.name) and path.is_file()}


@contextmanager
def replacing_files(out: Path, record: bytes) -> Iterator[None]:
    """Write evaluation.json, and afterwards delete the files of an earlier evaluation that the block has not replaced.

    evaluation.json is there from the start, so that the folder of an evaluation that was interrupted is known as such
    and can be written again. If the block fails before it has written a file, all is left as it was.
    """
    path, before = out / RECORD_FILE, times_of_files(out)
    earlier = path.read_bytes() if path.exists() else None
    write_file(path, record)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if times_of_files(out) != before:
                remove_other_files(out, before)
            elif earlier is None:
                path.unlink()
            else:
                write_file(path, earlier)
        raise
    remove_other_files(out, before)


def remove_other_files(out: Path, before: Mapping[Path, int]) -> None:
    """Delete the files of an earlier evaluation that this one has not replaced: they show something else."""
    for path, time in times_of_files(out).items():
        if before.get(path) == time:
            path.unlink()


def record_of(loaded: LoadedRun, source: Path, args: argparse.Namespace, renderer: RendererInfo) -> bytes:
    """Return the contents of evaluation.json.

    Args:
        source: what was played.
    """
    given = {name: value.name if isinstance(value, Path) else value for name, value in args.given.items()}
    if not args.controls:  # of a later snapshot
        given.pop("controls", None)
    more = {"step": loaded.frame, **recorded_environment(loaded.config, renderer)}
    return evaluation_json(source, given, loaded.flags, more)


def output_name(args: argparse.Namespace) -> str:
    """Return the name of the output folder: what is played, and from which starts."""
    played = f"schedule_{args.skill_schedule}" if args.skill_schedule else f"skills_{args.skills}"
    if args.imitate is not None:
        played = f"imitate_{args.imitate.stem}"
    episodes = f"_episodes_{args.episodes}" if args.episodes != 1 else ""
    seed = f"_seed_{args.seed}" if args.seed else ""
    sample = "_sampled" if args.sample else ""
    length = f"_time_limit_{args.time_limit}" if args.time_limit else ""
    return folder_name(f"{played}{sample}{episodes}{length}{seed}")


class Played(NamedTuple):
    """What `play_skills` has measured and written."""

    summary: list[Row]  # of summary.csv
    refitted: list[Row]  # of refit.csv
    first: Path | None  # to look at: the video of all skills or of the only one, else the contact sheet


def play_snapshots(folder: Path, args: argparse.Namespace, out: Path, renderer: RendererInfo) -> Path:
    """Play skills of every snapshot of a run, each into a folder of its own; write and draw the measures over frames.

    Untrained and random actions are played once, as they are the same for all. Return the path of the drawing.
    """
    frames = snapshot_frames(folder.parent)
    summary, refitted = [], []
    with_controls = args.controls
    for number, frame in enumerate(frames):
        print(f"snapshot {number + 1} of {len(frames)}: frame {frame}")
        args.controls = with_controls and number == 0
        place = out / frame_name(frame)
        loaded = load(folder / f"{frame}.pt", args.device, time_limit=args.time_limit)
        with made_folder(place), replacing_files(place, record_of(loaded, loaded.source, args, renderer)):
            played = play_skills(loaded, args, place)
        summary += played.summary
        refitted += played.refitted
    write_table(out / "summary.csv", summary, SUMMARY_COLUMNS)
    if refitted:
        write_table(out / "refit.csv", refitted, REFIT_COLUMNS)
    drawing = out / "measures.png"
    write_file(drawing, draw_measures(summary, refitted))
    return drawing


def play_skills(loaded: LoadedRun, args: argparse.Namespace, out: Path) -> Played:
    """Play skills from the same starts: a table, a video of each, and one of all side by side.

    If all skills of several are played, also write the pictures that training writes.
    """
    actions: Actions = "sampled" if args.sample else "mode"
    if args.refit:
        if not isinstance(loaded.agent, DIAYNAgent):
            raise UserError(f"--refit: {loaded.label} has no discriminator; name a run with skills")
        check_memory_for_refit(loaded, args.refit)
    skills, choice = parse_skills(args.skills, loaded.agent.skills()), None
    if args.skills == "best" and len(skills) > 1:
        # Choose on starts other than those it is evaluated on, which would flatter the best skill.
        seeds = seed_sequence(args.seed, "best").generate_state(args.episodes).tolist()
        choice = choose_best(loaded, seeds, actions)
        skills = [choice.best]
    seeds = start_seeds(args.seed, args.episodes)
    with loaded.bar("playing", len(skills) * len(seeds)) as bar:
        evaluation = loaded.evaluate(
            skills,
            seeds,
            actions=actions,
            video_folder=None if args.no_video else out,
            video_size=args.video_size,
            keep_all_pictures=args.save_trajectories,
            between_steps=bar.advance,
        )
    complete = len(skills) > 1 and len(skills) == loaded.config.num_skills
    write_table(out / "skills.csv", evaluation.rows, SKILL_COLUMNS, loaded.frame)
    print_table(evaluation.rows, SKILL_COLUMNS)
    if evaluation.overall["mutual_information_bound"] is not None:
        write_table(out / "deciles.csv", decile_rows(evaluation), DECILE_COLUMNS, loaded.frame)
        print_bound(evaluation, loaded.config.num_skills, complete)
    summary = [{"step": loaded.frame, **summary_row("trained", evaluation, complete)}]
    if choice is not None:
        write_table(out / "choice.csv", choice.rows, CHOICE_COLUMNS, loaded.frame)
        summary[0]["frames_to_choose"] = choice.frames
        shown = f"return {shown_number(summary[0]['episode_extrinsic_reward'], '.1f')}"
        starts = counted(len(seeds), "other start")
        print(f"best skill {choice.best}: {shown} on {starts}, chosen in {choice.frames} frames")
    if args.controls:
        summary += play_controls(loaded, skills, seeds, actions)
    write_table(out / "summary.csv", summary, SUMMARY_COLUMNS)
    print_coverage(summary)
    if complete:
        for name, picture in evaluation.pictures(loaded.frame).items():
            write_file(out / f"{name}.png", encode_png(picture))
    if args.save_trajectories:
        for start in evaluation.starts:
            skill = skill_name(start.skill, loaded.config.num_skills)
            episode = padded(seeds.index(start.seed), len(seeds) - 1)
            save_trajectory(out / f"{skill}_episode{episode}.npz", start, loaded.config)
    refitted: list[Row] = []
    if args.refit:
        refitted = refit_discriminators(loaded, args.refit, args.seed, actions, controls=args.controls)
        write_table(out / "refit.csv", refitted, REFIT_COLUMNS)
        print_table(refitted, [name for name in REFIT_COLUMNS if name != "step"])
    videos = [evaluation.grid] if evaluation.grid is not None else list(evaluation.videos.values())
    sheet = out / "contact_sheet.png" if complete else None
    return Played(summary, refitted, videos[0] if len(videos) == 1 else sheet)


class Choice(NamedTuple):
    """The choice of the best skill."""

    best: int
    rows: list[Row]  # of choice.csv
    frames: int  # that were played for it


def choose_best(loaded: LoadedRun, seeds: Sequence[int], actions: Actions) -> Choice:
    """Choose the skill with the highest mean return over episodes from these starts, and print all means."""
    skills = loaded.agent.skills()
    episodes = len(skills) * len(seeds)
    with loaded.open_eval_envs(episodes) as eval_envs, loaded.bar("choosing", episodes) as bar:
        settings: dict[str, Any] = {"actions": actions, "between_steps": bar.advance}
        best, returns, steps = best_skill(loaded.agent, eval_envs, skills, seeds, **settings)
    rows = [
        {"skill_id": skill, "episodes": len(seeds), "episode_extrinsic_reward": value}
        for skill, value in returns.items()
    ]
    shown = ", ".join(f"{skill}: {shown_number(value, '.1f')}" for skill, value in returns.items())
    print(f"best skill: {best} (mean returns over {counted(len(seeds), 'episode')}: {shown})")
    return Choice(best, rows, steps * loaded.config.action_repeat)


def play_controls(loaded: LoadedRun, skills: Sequence[int], seeds: Sequence[int], actions: Actions) -> list[Row]:
    """Play as many episodes from the same starts untrained and with uniformly random actions.

    Return their rows of summary.csv. Random actions have no skills, so nothing of the discriminator is reported.
    """
    rows = []
    for policy, agent, how in (("untrained", loaded.untrained_agent(), actions), ("random", loaded.agent, "uniform")):
        with loaded.bar(f"playing: {policy}", len(skills) * len(seeds)) as bar:
            settings: dict[str, Any] = {"actions": how, "video_folder": None, "between_steps": bar.advance}
            evaluation = loaded.evaluate(skills, seeds, agent=agent, **settings)
        complete = policy == "untrained" and 1 < len(skills) == loaded.config.num_skills
        row = {**summary_row(policy, evaluation, complete), "step": 0}
        rows.append({name: value for name, value in row.items() if policy != "random" or name not in WITH_SKILLS_ONLY})
    return rows


def refit_discriminators(loaded: LoadedRun, episodes: int, seed: int, actions: Actions, *, controls: bool) -> list[Row]:
    """Return the rows of refit.csv for the agent and, with `controls`, for the untrained one."""
    rows: list[Row] = []
    for policy in ("trained", "untrained") if controls else ("trained",):
        agent = loaded.agent if policy == "trained" else loaded.untrained_agent()
        assert isinstance(agent, DIAYNAgent)
        step = loaded.frame if policy == "trained" else 0
        rows += ({"policy": policy, "step": step, **row} for row in refit(loaded, agent, episodes, seed, actions))
    return rows


def save_trajectory(path: Path, start: Start, config: Config) -> None:
    """Write an episode of T steps as .npz.

    It has actions `(T, A)`, rewards `(T,)`, states `(T + 1, D)`, frames `(T + 1, 3, H, W)`, skill, seed,
    env and action_repeat.
    """
    memory = io.BytesIO()
    np.savez_compressed(
        memory,
        actions=start.trace.actions,
        rewards=start.trace.rewards,
        states=start.trace.states,
        frames=start.trace.pictures,
        skill=start.skill,
        seed=start.seed,
        env=config.env,
        action_repeat=config.action_repeat,
    )
    write_file(path, memory.getvalue())


def imitate(loaded: LoadedRun, args: argparse.Namespace, out: Path) -> Path | None:
    """Print and write how well each skill explains a trajectory, and record the best one beside it.

    Return the path of the video, if there is one.
    """
    if not isinstance(loaded.agent, DIAYNAgent):
        raise UserError(f"--imitate: {loaded.label} has no discriminator; name a run with skills")
    frames, seed = read_trajectory(args.imitate, loaded.config)
    table = skill_likelihoods(loaded.agent, frames, loaded.config.frame_stack)
    best = int(table["log_q_mean"].idxmax())
    print(table.to_string(index=False, float_format=lambda value: shown_number(value, ".4f")))
    print(f"skill {best} explains {args.imitate} best")
    video = None
    if not args.no_video:
        video = record_imitation(loaded, frames, best, args.seed if seed is None else seed, out, args.video_size)
    write_file(out / "imitation.csv", table.to_csv(index=False).encode())
    return video
