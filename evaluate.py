"""Play what a run has learned: its skills, one after the other or composed, with videos, numbers and trajectories.

python evaluate.py RUN [--skills all|best|3,7] [--episodes 3] [--save_trajectories]
python evaluate.py RUN --skill_schedule 3:100,7:100
python evaluate.py RUN --imitate trajectory.npz

Only reads the run's last checkpoint, also while it is training; whatever is written goes into a folder of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from config import Config, Parser, UserError, folder_name, one_line

if TYPE_CHECKING:
    import numpy as np

    from drq import DrQAgent
    from rollouts import Lanes, Start

BAR: dict[str, Any] = {"leave": False, "disable": None}  # of progress: on a terminal, as long as it moves


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="CHECKPOINT_OR_RUN", help="a run's folder, its checkpoint folder or a state_N.pt")
    add("--skills", default="all", metavar="all|best|3,7", help="which; best has the highest return (default: all)")
    add("--episodes", type=_positive, default=1, metavar="N", help="for each skill, from the same starts (default: 1)")
    add("--seed", type=_seed, default=0, metavar="N", help="of the starts (default: 0)")
    add("--video_size", type=_positive, default=256, metavar="N", help="height and width, pixels (default: 256)")
    add("--no_video", action="store_true", help="write no videos")
    add("--save_trajectories", action="store_true", help="write an .npz for each episode of --skills")
    add("--skill_schedule", metavar="3:100,7:100|random:100", help="skills and their agent steps, over and over")
    add("--imitate", type=Path, metavar="NPZ", help="find the skill that explains the frames of a trajectory best")
    add("--device", metavar="NAME", help="cuda, cuda:N or cpu (default: cuda, or cpu where there is no CUDA device)")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="default: evaluations/<work_dir>/<task>/<run>_<frame>/<what is played>; replaces what is there",
    )
    args = parser.parse_args(argv)
    if args.imitate is not None and args.skill_schedule is not None:
        parser.error("--imitate and --skill_schedule exclude each other; give one of them")
    other = "--imitate" if args.imitate is not None else "--skill_schedule" if args.skill_schedule is not None else None
    if other is not None and (args.save_trajectories or args.skills != "all"):
        flag = "--save_trajectories" if args.save_trajectories else "--skills"
        parser.error(f"{flag} has no meaning beside {other}; leave it out")
    if args.imitate is not None and args.episodes != 1:
        parser.error("--episodes has no meaning beside --imitate; leave it out")
    return args


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on; got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 999999; got {text!r}")
    return int(text)


# -- what was learned --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Learned:
    """A run as its checkpoint has it, without what only training needs."""

    config: Config
    agent: DrQAgent
    frame: int  # frames of training behind it
    place: Path  # <work_dir>/<task>/<run>, or the sweep's folder for the first
    fps: float  # of its videos, in the task's time
    max_episode_steps: int


def load(place: Path, device: str | None) -> Learned:
    """The agent of a run. Raises UserError."""
    from checkpoint import CheckpointError
    from runs import choose_device, enough_memory, make_agent, make_environment

    place = place.resolve()
    folder = place.parent if place.is_file() else place
    run = folder.parent if folder.name == "checkpoint" else folder
    try:
        state = read_state(place if place.is_file() else run)
        names = {field.name for field in dataclasses.fields(Config)}
        config = Config(**{name: value for name, value in state["flags"].items() if name in names})
        config = dataclasses.replace(config, device=choose_device(device), cuda_graphs=False)
        env = make_environment(config)
        with closing(env), enough_memory("the networks", "end other programs, or name another --device"):
            agent = make_agent(config, env.observation_space.shape, env.action_space.shape[0])
            agent.load_weights(state["agent"])
        fps, steps = env.metadata["render_fps"], env.max_episode_steps or 1
        counters = state["counters"]
        frame = int(counters["frames_before"]) + int(counters["step"]) * config.action_repeat
        return Learned(config, agent, frame, Path(*run.relative_to(run.anchor).parts[-3:]), fps, steps)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{place}: the checkpoint doesn't fit this version of the program") from error


def read_state(place: Path) -> dict[str, Any]:
    """The state in a run's newest checkpoint, or in one file of it. Raises CheckpointError, UserError."""
    from checkpoint import load_file, read_newest

    if place.is_file():
        return load_file(place)
    if not place.is_dir():
        raise UserError(f"{place} is neither a run's folder nor a checkpoint; name one")
    state = read_newest(place)
    if state is None:
        raise UserError(f"{place} has no checkpoint; name a run's folder, or wait for its first evaluation")
    return state


# -- what is played ----------------------------------------------------------------------------------------------------


def chosen_skills(text: str, learned: Learned) -> list[int]:
    """The skills that --skills names; all of them for "best", which is chosen once they were played."""
    known = learned.agent.skills()
    if text in ("all", "best"):
        return known
    try:
        skills = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--skills must be all, best or numbers such as 3,7; got {text}") from None
    missing = [skill for skill in skills if skill not in known]
    if missing:
        raise UserError(f"--skills: the run has {_named(known)}; got {missing[0]}")
    return list(dict.fromkeys(skills))


def _named(skills: Sequence[int]) -> str:
    if len(skills) > 1:
        return f"the skills {skills[0]} to {skills[-1]}"
    return f"skill {skills[0]} only" if skills[0] >= 0 else "no skills"


def parse_schedule(text: str, learned: Learned, rng: np.random.Generator) -> Iterator[int]:
    """The skill of every agent step of an episode, without end. Raises UserError."""
    known, parts = learned.agent.skills(), []
    if known[0] < 0:
        raise UserError("--skill_schedule: the run has no skills; name one with --num_skills above 0")
    for part in text.split(","):
        skill, _, steps = part.partition(":")
        if not steps.isdecimal() or int(steps) < 1 or not (skill == "random" or skill.isdecimal()):
            raise UserError(f"--skill_schedule must be such as 3:100,7:100 or random:100; got {text}")
        if skill != "random" and int(skill) not in known:
            raise UserError(f"--skill_schedule: the run has {_named(known)}; got {skill}")
        parts.append((skill, int(steps)))

    def skills() -> Iterator[int]:
        while True:
            for skill, steps in parts:
                now = int(rng.choice(known)) if skill == "random" else int(skill)
                yield from (now for _ in range(steps))

    return skills()


def evaluate_skills(learned: Learned, args: argparse.Namespace, out: Path) -> None:
    """Play skills from the same starts: a table, a video of each one's first episode and of all side by side.

    Where all skills of several are played, there are the two pictures that training makes too.
    """
    import cv2
    import numpy as np

    from rollouts import film, skill_name
    from skills import by_skill, picture_every, pictures, rows_of_skills
    from utils import seed_sequence

    skills = chosen_skills(args.skills, learned)
    if args.skills == "best" and len(skills) > 1:
        # On other starts than it is shown on, or the best would look better.
        choice = seed_sequence(args.seed, "best").generate_state(args.episodes).tolist()
        skills = [choose_best(learned, choice)]
    with opened_lanes(learned, len(skills) * args.episodes) as lanes, tqdm(desc="playing", unit=" steps", **BAR) as bar:
        filmed = film(
            learned.agent,
            lanes,
            {skill: skill_name(skill) for skill in skills},
            np.random.SeedSequence(args.seed).generate_state(args.episodes).tolist(),
            None if args.no_video else out,
            learned.fps,
            size=args.video_size,
            picture_every=1 if args.save_trajectories else picture_every(learned.max_episode_steps),
            between_steps=bar.update,
        )
    out.mkdir(parents=True, exist_ok=True)
    played = by_skill(filmed.starts, filmed.results)
    rows = rows_of_skills(played)
    write_table(out / "skills.csv", rows, learned.frame)
    if len(skills) > 1 and len(skills) == learned.config.num_skills:
        for name, picture in pictures(played, rows, learned.frame).items():
            cv2.imwrite(str(out / f"{name}.png"), picture[:, :, ::-1])
    if args.save_trajectories:
        for start in filmed.starts:
            save_trajectory(out / f"trajectory_{skill_name(start.skill)}_{start.seed}.npz", learned, start)


def choose_best(learned: Learned, seeds: Sequence[int]) -> int:
    """The skill with the highest mean return over episodes from these starts, which is printed."""
    from rollouts import best_skill

    skills = learned.agent.skills()
    with opened_lanes(learned, len(skills) * len(seeds)) as lanes, tqdm(desc="choosing", unit=" steps", **BAR) as bar:
        best, returns, _ = best_skill(learned.agent, lanes, skills, seeds, between_steps=bar.update)
    shown = ", ".join(f"{skill}: {value:.1f}" for skill, value in returns.items())
    print(f"best skill: {best} (mean returns over {len(seeds)} episodes: {shown})")
    return best


def opened_lanes(learned: Learned, episodes: int) -> AbstractContextManager[Lanes]:
    """The run's environments, for so many episodes at a time."""
    from functools import partial

    import rollouts
    from runs import make_environment

    return rollouts.opened_lanes(partial(make_environment, learned.config), episodes)


def write_table(path: Path, rows: Sequence[dict[str, Any]], frame: int) -> None:
    """Print the rows and write them down, under the columns of a run's skills.csv."""
    import pandas as pd

    from logger import SKILL_COLUMNS

    table = pd.DataFrame([{"step": frame, **row} for row in rows], columns=list(SKILL_COLUMNS))
    table.to_csv(path, index=False)
    print(table.drop(columns="step").dropna(axis=1, how="all").to_string(index=False, float_format="%.3f"))
    if len(rows) > 1:
        accuracy, bound = table[["discriminator_accuracy", "mutual_information_bound"]].mean()
        print(f"accuracy {accuracy:.3f}, bound {bound:.3f} nats: means over these skills")


def save_trajectory(path: Path, learned: Learned, start: Start) -> None:
    """An episode of T steps as an .npz: actions (T, A), rewards (T,), states (T + 1, D), frames (T + 1, 3, H, W)."""
    import numpy as np

    trace = start.trace
    assert trace is not None
    np.savez_compressed(
        path,
        actions=np.array(trace.actions),
        rewards=np.array(trace.rewards),
        states=np.array(trace.states),
        frames=np.array(trace.pictures),
        skill=start.skill,
        seed=start.seed,
        env=learned.config.env,
    )


def compose(learned: Learned, args: argparse.Namespace, out: Path) -> None:
    """Episodes in which the skill changes on schedule; a video of the first."""
    import numpy as np

    from runs import make_environment
    from video import VideoRecorder

    rng = np.random.default_rng(args.seed)
    parse_schedule(args.skill_schedule, learned, rng)  # to refuse it before anything is made
    with closing(make_environment(learned.config)) as env:
        for number, seed in enumerate(np.random.SeedSequence(args.seed).generate_state(args.episodes).tolist()):
            recorder = VideoRecorder(None if number or args.no_video else out, learned.fps, size=args.video_size)
            schedule = parse_schedule(args.skill_schedule, learned, rng)
            obs, _ = env.reset(seed=seed)
            over, total, steps = False, 0.0, 0
            with recorder.recorded("schedule"):
                while not over:
                    skill = next(schedule)
                    action = learned.agent.assess(obs[None], np.array([skill])).action[0]
                    obs, reward, terminated, truncated, _ = env.step(action)
                    over, total, steps = terminated or truncated, total + reward, steps + 1
                    if recorder.recording:
                        recorder.record(env.render(args.video_size, args.video_size), [f"skill {skill}  step {steps}"])
            print(f"episode from seed {seed}: return {total:.2f} in {steps} agent steps")


def imitate(learned: Learned, args: argparse.Namespace, out: Path) -> None:
    """Which skill explains the frames of a trajectory best; its video beside the given one (DIAYN, section 4.2.3)."""
    import pandas as pd

    from diayn import DIAYNAgent
    from rollouts import film, skill_name
    from video import VideoRecorder

    agent = learned.agent
    if not isinstance(agent, DIAYNAgent):
        raise UserError(f"--imitate: {args.run} has no discriminator; name a run with skills")
    frames, seed = read_frames(args.imitate, learned.config)
    log_q = agent.log_likelihood(stacks(frames, learned.config.frame_stack))
    table = pd.DataFrame({"skill_id": agent.skills(), "log_q_mean": log_q.mean(axis=0), "log_q_sum": log_q.sum(axis=0)})
    best = int(table["log_q_mean"].idxmax())
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "imitation.csv", index=False)
    print(table.to_string(index=False, float_format="%.4f"))
    print(f"skill {best} explains {args.imitate} best")
    if args.no_video:
        return
    size = args.video_size
    recorder = VideoRecorder(out, learned.fps, size=size)
    with recorder.recorded("given"):
        for frame in frames[1:]:
            recorder.record(_enlarged(frame, size), ["given"])
    start = args.seed if seed is None else seed
    with opened_lanes(learned, 1) as lanes:
        filmed = film(agent, lanes, {best: skill_name(best)}, [start], out, learned.fps, size=size)
    given = out / "given.mp4"
    recorder.tile("imitation", [video for video in (given, *filmed.videos.values()) if video.exists()])


def read_frames(path: Path, config: Config) -> tuple[np.ndarray, int | None]:
    """The frames of a trajectory, uint8 (T + 1, 3, image_size, image_size), and its seed where it has one."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as data:
            frames, seed = data["frames"], int(data["seed"]) if "seed" in data else None
            env = str(data["env"]) if "env" in data else config.env
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"--imitate {path} holds no trajectory; name an .npz from --save_trajectories") from error
    except OSError as error:
        raise UserError(
            f"--imitate {path}: {error.strerror or error}; name an .npz from --save_trajectories"
        ) from error
    if env != config.env:
        raise UserError(f"--imitate {path}: its frames are of {env}, the run's of {config.env}; name some of its task")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or len(frames) < 2:
        raise UserError(f"--imitate {path}: frames must be uint8 (T + 1, 3, H, W); got {frames.dtype} {frames.shape}")
    size = config.image_size
    if frames.shape[2:] != (size, size):
        frames = np.stack([_resized(frame, size) for frame in frames])
    return frames, seed


def stacks(frames: np.ndarray, count: int) -> np.ndarray:
    """The observation after each step, as the environment stacks it: (T, 3 * count, H, W) from (T + 1, 3, H, W)."""
    import numpy as np

    newest = np.arange(1, len(frames))
    parts = [frames[np.maximum(newest - age, 0)] for age in reversed(range(count))]
    return np.concatenate(parts, axis=1)


def _resized(frame: np.ndarray, size: int) -> np.ndarray:
    import cv2
    import numpy as np

    picture = cv2.resize(np.ascontiguousarray(frame.transpose(1, 2, 0)), (size, size), interpolation=cv2.INTER_AREA)
    return picture.transpose(2, 0, 1)


def _enlarged(frame: np.ndarray, size: int) -> np.ndarray:
    """A frame (3, H, W) as a picture (size, size, 3)."""
    import cv2
    import numpy as np

    picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_NEAREST)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, play. Returns the exit code: 2 for bad input, after one line that says what to mend."""
    args = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does, and before torch is imported
    try:
        from runs import check_libraries, enough_memory

        check_libraries()
        learned = load(args.run, args.device)
        run = learned.place
        out = args.out or Path("evaluations", run.parent, f"{run.name}_{learned.frame}", mode(args))
        play = imitate if args.imitate is not None else compose if args.skill_schedule is not None else evaluate_skills
        with enough_memory("evaluating", "try fewer --episodes, a smaller --video_size or another --device"):
            play(learned, args, out)
        if out.exists():
            print(f"outputs: {out}")
    except KeyboardInterrupt:
        print("evaluate.py: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        from dmc import RenderingError, SimulationError
        from runs import RunError

        if not isinstance(error, (UserError, OSError, RenderingError, RunError, SimulationError)):
            raise
        print(f"evaluate.py: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    return 0


def mode(args: argparse.Namespace) -> str:
    """What is played from which starts, as a folder's name, so that one evaluation doesn't write over another."""
    if args.imitate is not None:
        played = f"imitate_{args.imitate.stem}"
    else:
        played = f"schedule_{args.skill_schedule}" if args.skill_schedule else f"skills_{args.skills}"
    episodes = f"_episodes_{args.episodes}" if args.episodes != 1 else ""
    return folder_name(f"{played}{episodes}{f'_seed_{args.seed}' if args.seed else ''}")


if __name__ == "__main__":
    sys.exit(main())
