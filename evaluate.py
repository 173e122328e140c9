"""Play what a run has learned: its skills, one by one or composed, with videos, numbers and trajectories.

python evaluate.py RUN [--skills all|best|3,7] [--episodes 3] [--controls] [--refit 10] [--save_trajectories]
python evaluate.py RUN --skill_schedule 3:100,7:100
python evaluate.py RUN --imitate trajectory.npz

Reads the run's last checkpoint, also while it is training, and writes to a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from config import FIELDS, check_device
from console.arguments import Parser, integer
from console.packages import check_packages, import_errors_reported
from console.streams import tolerant_output
from envs.renderer import INSTALL_HINT, choose_renderer
from errors import EnvError, RenderingError, RunError, SimulationError, UserError, one_line, reason_of
from evaluation.chosen_skills import FEWEST_REFIT, parse_schedule, parse_skills, stored_skills
from running.signals import StopRequest
from running.stored_config import real_run

UNREAD = {  # flags that have no effect beside another
    "imitate": ("save_trajectories", "skills", "episodes", "sample", "controls", "refit"),
    "skill_schedule": ("save_trajectories", "skills", "sample", "controls", "refit"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, play. Return the exit code: 2 for bad input, after one line that says what to do.

    128 + signal: stopped by SIGINT, SIGTERM or SIGHUP, without half-made files.
    """
    args = parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch: idle threads must not block the renderer's
    stop = StopRequest()
    try:
        with stop:
            check_packages()
            check_device(args.device)
            check_run(args)
            renderer = choose_renderer()  # before dm_control is imported
            with import_errors_reported(INSTALL_HINT):
                from evaluation.command import run_evaluation  # imports torch
            run_evaluation(args, renderer)
    except KeyboardInterrupt:
        print("evaluate.py: stopped", file=sys.stderr)
        return stop.exit_code
    except (UserError, OSError, EnvError, RenderingError, RunError, SimulationError) as error:
        print(f"evaluate.py: error: {one_line(reason_of(error))}", file=sys.stderr)
        return 2
    return 0


def check_run(args: argparse.Namespace) -> None:
    """Raise UserError if there is no such run, or it lacks skills that flags name, as far as its config.json says."""
    place, remedy = real_run(args.run), "name a run's folder, its snapshots or snapshots/N.pt"
    if not os.path.exists(place):
        raise UserError(f"there is no {args.run}; {remedy}")
    if place.suffix != ".pt" and place.is_file():
        raise UserError(f"{args.run} is not a checkpoint; {remedy}")
    known = stored_skills(args.run)
    if known is not None and args.skill_schedule is not None:
        parse_schedule(args.skill_schedule, known)
    elif known is not None:
        parse_skills(args.skills, known)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line. Bad input ends the program with one line and exit code 2."""
    parser = Parser(prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="CHECKPOINT_OR_RUN", help="a run's folder, its snapshots or snapshots/N.pt")
    add("--skills", default="all", metavar="all|best|3,7", help="skills to play; best: by return (default: all)")
    add(
        "--episodes",
        type=_positive,
        default=1,
        metavar="N",
        help="episodes of each skill (default: 1)",
    )
    add(
        "--time_limit",
        type=_positive,
        metavar="N",
        help="frames per episode, also other than in training (default: the run's)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help="random seed of the starts (default: 0)")
    add(
        "--video_size",
        type=_pixels,
        default=256,
        metavar="N",
        help="side of a video, pixels (default: 256)",
    )
    add("--no_video", action="store_true", help="write no videos")
    add("--sample", action="store_true", help="play actions drawn from the policy instead of the deterministic ones")
    add("--controls", action="store_true", help="also play random actions and the untrained agent, for comparison")
    add(
        "--refit",
        type=_refit,
        default=0,
        metavar="N",
        help="train new discriminators on N other episodes of each skill (default: train none)",
    )
    add("--save_trajectories", action="store_true", help="write an .npz for each episode of --skills")
    add(
        "--skill_schedule",
        metavar="3:100,7:100|random:100",
        help="play skills in turn, each for its agent steps",
    )
    add("--imitate", type=Path, metavar="NPZ", help="find the skill that explains the frames of a trajectory best")
    add("--device", metavar="NAME", help="cuda, cuda:N or cpu (default: cuda, or cpu when there is no CUDA device)")
    place = "evaluations/<work_dir>/<task>/<run>_<frame>/<what is played>"
    add("--out", type=Path, metavar="FOLDER", help=f"folder, whose files are replaced (default: {place})")
    args = parser.parse_args(argv)
    if args.imitate is not None and args.skill_schedule is not None:
        parser.error("--imitate and --skill_schedule exclude each other; give one of them")
    if args.refit and args.skills != "all":
        parser.error("--refit plays all skills; leave out --skills")
    for mode, unread in UNREAD.items():
        for flag in unread:
            if getattr(args, mode) is not None and getattr(args, flag) != parser.get_default(flag):
                parser.error(f"--{flag} has no effect with --{mode}; leave it out")
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    args.given = {name: value for name, value in given.items() if name not in ("run", "out")}
    return args


def _seed(text: str) -> int:
    number = integer(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or above; got {text}")
    return number


def _positive(text: str, *, least: int = 1, most: int = 999_999) -> int:
    number = integer(text)
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be from {least} to {most}; got {text}")
    return number


def _pixels(text: str) -> int:
    return _positive(text, most=FIELDS["image_size"].metadata["high"])


def _refit(text: str) -> int:
    return _positive(text, least=FEWEST_REFIT)


if __name__ == "__main__":
    with tolerant_output():
        sys.exit(main())
