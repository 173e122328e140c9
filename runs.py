"""A run: what it is made of, how it begins, how it is saved and how it goes on.

Heavy modules are imported inside the functions that need them, as in train.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, Role
from errors import CheckpointError, RenderingError, RunError, UserError, WorkerError
from running.atomic_files import no_room
from running.signals import StopRequest
from running.stored_config import refuse_changes

if TYPE_CHECKING:
    import numpy as np

    from drq import DrQAgent
    from envs.parallel import EvalEnvs
    from envs.pixel_env import PixelEnv
    from envs.renderer import RendererInfo
    from logger import Logger
    from replay_buffer import ReplayBuffer
    from running.checkpoint import Checkpoints, State
    from utils import Stopwatch

COUNTERS = ("frames_before", "step", "episode", "evaluated", "scheduled", "learning_from")  # of a Run
CUDA_HEADROOM = 6 << 30  # bytes of device memory left to networks and activations, at a batch of 512


@dataclasses.dataclass
class Underway:
    """The training episode that is being played."""

    skill: int
    obs: np.ndarray  # the newest observation
    start: dict[str, Any]  # state of the environment before its reset
    began: float  # time.perf_counter(), as if it had been played in one go
    extrinsic_reward: float = 0.0
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    action: np.ndarray | None = None  # chosen, and not yet played


@dataclasses.dataclass
class Run:
    """The parts that the loop plays together, and how far it has come.

    Evaluations and checkpoints are due at the first end of an episode behind a multiple of their frequency. One made
    within an episode, as the budget ended or a signal came, must not put off the next: `scheduled` and `kept` tell
    where that rhythm is, `evaluated` and `saved` what was done last, wherever it was.
    """

    config: Config
    agent: DrQAgent
    env: PixelEnv
    lanes: EvalEnvs  # evaluation's own environments
    buffer: ReplayBuffer
    skill_rng: np.random.Generator
    stopwatch: Stopwatch
    learning_from: int  # agent step of the first update
    folder: Path = dataclasses.field(init=False)  # made when all that may fail before it is there
    checkpoints: Checkpoints = dataclasses.field(init=False)
    logger: Logger = dataclasses.field(init=False)  # opened last, as it cuts back the logs of a resumed run
    frames_before: int = 0  # spent on choosing the skill that is fine-tuned
    step: int = 0  # agent steps so far; whatever is written down counts frames
    episode: int = 0  # finished training episodes
    underway: Underway | None = None  # None between episodes
    evaluated: int = -1  # agent step of the last evaluation
    scheduled: int = -1  # agent step of the last evaluation between episodes
    saved: tuple[int, int] = (-1, -1)  # `step` and `evaluated` of the last checkpoint
    kept: int = -1  # `step` of the last checkpoint, or where the episode began in which it was made
    stop: StopRequest = dataclasses.field(default_factory=StopRequest)
    resources: ExitStack = dataclasses.field(default_factory=ExitStack)

    @property
    def frame(self) -> int:
        return self.frame_at(self.step)

    def frame_at(self, step: int) -> int:
        """The frame that is written down for an agent step."""
        return self.frames_before + step * self.config.action_repeat

    @property
    def resume_command(self) -> str:
        python = "python" if shutil.which("python") == sys.executable else _shortest(Path(sys.executable))
        program = _shortest(Path(__file__).resolve().with_name("train.py"))
        return shlex.join([python, program, "--resume", str(self.folder)])

    @property
    def episode_start(self) -> int:
        """The agent step at which the episode under way began, or the next one will."""
        return self.step - (len(self.underway.actions) if self.underway is not None else 0)

    @property
    def finished(self) -> bool:
        return self.step >= self.config.num_train_steps

    def close(self) -> None:
        """Close files and environments, end worker processes, unlock the folder."""
        self.resources.close()


def _shortest(path: Path) -> str:
    """The path from the working directory, where it lies below that."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def make_agent(config: Config, obs_shape: tuple[int, ...], action_dim: int) -> DrQAgent:
    """DIAYN where there are skills, else plain DrQ."""
    from diayn import DIAYNAgent
    from drq import DrQAgent
    from utils import seed_sequence

    settings: dict[str, Any] = {
        "seed": int(seed_sequence(config.seed, "agent").generate_state(1)[0]),
        "learn_temperature": config.temperature == "learned",
        **config.kwargs(Role.AGENT),
    }
    agent: DrQAgent
    if config.learns_skills:
        agent = DIAYNAgent(obs_shape, action_dim, **settings, **config.kwargs(Role.DIAYN))
    else:  # fine-tuned, its networks have room for skills, and one is given
        settings |= {"num_skills": config.num_skills, "skill_embedding_dim": config.skill_embedding_dim}
        agent = DrQAgent(obs_shape, action_dim, **settings)
    if config.device != "cpu" and config.cuda_graphs:
        agent.use_cuda_graphs()
    return agent


def choose_device(wanted: str | None) -> str:
    """The device to use. Raises UserError where the one asked for does not exist."""
    import torch

    if wanted is None:
        if torch.cuda.is_available():
            return "cuda"
        print("warning: no CUDA device was found; using the CPU (--device cpu says so)", file=sys.stderr)
        return "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise UserError(f"--device must be cuda, cuda:N or cpu; got {wanted}")
    if wanted != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(wanted.partition(":")[2] or 0):
            raise UserError(f"--device {wanted}: CUDA devices found here: {count}; use --device cpu or another index")
    if ":" in wanted:
        torch.cuda.set_device(wanted)  # graphs and streams are made on the current one
    return wanted


def place_replay_buffer(config: Config, frame_shape: tuple[int, ...], action_dim: int) -> str:
    """Print what the replay buffer will need and what is free, and name the device to keep its frames on.

    That is the CUDA device where the frames leave it room for the networks. Raises UserError where nothing has room.
    """
    import torch

    from replay_buffer import ReplayBuffer
    from utils import free_memory

    needed = ReplayBuffer.bytes_needed(config.replay_buffer_capacity, frame_shape, config.frame_stack, action_dim)
    if config.device != "cpu":
        free, _ = torch.cuda.mem_get_info(config.device)
        if needed + CUDA_HEADROOM <= free:
            print(f"replay buffer: {needed / 1e9:.2f} GB on the device, of {free / 1e9:.2f} GB free")
            return config.device
        print(
            f"replay buffer: {needed / 1e9:.2f} GB; too much for the device ({free / 1e9:.2f} GB free), so on the host"
        )
    free = free_memory()
    figures = f"{config.replay_buffer_capacity} transitions need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free"
    if needed > free:
        fitting = int(config.replay_buffer_capacity * free / needed * 0.8)
        raise UserError(f"--replay_buffer_capacity: {figures}; {fitting} would leave some room")
    print(f"replay buffer: {figures}")
    return "cpu"


def check_libraries() -> RendererInfo:
    """Load what needs packages and system libraries, and find a renderer. Raises UserError."""
    try:
        import torch  # noqa: F401

        import dmc  # noqa: F401
        from envs.renderer import INSTALL_HINT, choose_renderer
    except ModuleNotFoundError as error:
        remedy = "`make setup` and .venv/bin/python, or pip install -r requirements.txt"
        raise UserError(f"this Python lacks {error.name}; use {remedy}") from error
    try:
        import cv2  # noqa: F401  # needs system libraries, which its wheel leaves out
    except ImportError as error:
        raise UserError(f"opencv-python can't be loaded ({error}); try: {INSTALL_HINT}") from error
    try:
        return choose_renderer()
    except RenderingError as error:
        raise UserError(str(error)) from error


def make_deterministic() -> None:
    """Have CUDA give the same numbers in every run."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it here
    torch.backends.cudnn.benchmark = False


def make_replay_buffer(config: Config, frame_shape: tuple[int, ...], action_dim: int) -> ReplayBuffer:
    """An empty one, where there is room for it. Raises UserError."""
    from replay_buffer import ReplayBuffer
    from utils import seed_sequence

    storage = place_replay_buffer(config, frame_shape, action_dim)
    try:
        return ReplayBuffer(
            config.replay_buffer_capacity,
            frame_shape,
            config.frame_stack,
            action_dim,
            device=config.device,
            storage=storage,
            seed=seed_sequence(config.seed, "replay"),
        )
    except MemoryError as error:
        raise UserError(f"--replay_buffer_capacity: {error}; choose a smaller one") from error


def setup(config: Config) -> Run:
    """A new run, or an old one as its last checkpoint has it.

    What can fail comes first, and the cheapest of it before the rest; only then a folder is made, or one changed.
    Raises UserError.
    """
    renderer = check_libraries()
    if config.resume is None and config.num_train_steps <= config.num_seed_steps:
        steps = f"--num_seed_steps is {config.num_seed_steps}, the budget {config.num_train_steps} agent steps"
        print(f"warning: nothing will be learned: {steps}", file=sys.stderr)
    config = dataclasses.replace(config, device=choose_device(config.device))
    print(f"device: {config.device}; renderer: {renderer.backend}, {renderer.name}")
    if renderer.is_software and config.device != "cpu":
        print("warning: pictures are rendered in software beside a GPU; MUJOCO_GL=egl is faster", file=sys.stderr)
    with ExitStack() as half_made, ExitStack() as resources:  # undone, and closed, where something fails
        if config.resume is None:
            run, logs = start(config, resources, half_made), None
        else:
            run, logs = resume(config, resources)
        record(run, renderer, logs, resources)
        half_made.close()  # from here on nothing is undone
        run.resources = resources.pop_all()
    return run


def start(config: Config, resources: ExitStack, half_made: ExitStack) -> Run:
    """A new run in a new folder, which `half_made` removes."""
    from running.atomic_files import locked
    from running.checkpoint import Checkpoints
    from running.folder import new_run_folder
    from utils import Stopwatch

    run = make_run(config, resources)
    if config.finetune_from is not None:
        run.frames_before = begin_fine_tuning(config, run.agent, run.lanes)
        run.stopwatch = Stopwatch()
    try:
        run.folder = half_made.enter_context(new_run_folder(config))
        resources.enter_context(locked(run.folder))
    except OSError as error:
        raise no_room(config.work_dir, error) from error
    run.checkpoints = Checkpoints(run.folder)
    return run


def begin_fine_tuning(config: Config, agent: DrQAgent, lanes: EvalEnvs) -> int:
    """Give the agent the networks of the run `config.finetune_from` and one skill of it; the frames that choosing took.

    The best skill is the one with the highest return over one episode each, on the task of this run. Raises UserError.
    """

    from rollouts import best_skill
    from running.checkpoint import read_newest
    from utils import seed_sequence

    folder = Path(config.finetune_from)
    try:
        state = read_newest(folder)
        if state is None:
            raise UserError(f"--finetune_from {folder}: that run has no checkpoint yet; wait for its first evaluation")
        agent.load_pretrained(state["agent"], critic=config.finetune_critic == "pretrained")
    except CheckpointError as error:
        raise UserError(f"--finetune_from {folder}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"--finetune_from {folder}: its networks don't fit --env {config.env}; keep its task"
        ) from error
    if config.finetune_skill != "best":
        agent.skill = int(config.finetune_skill)
        return 0
    try:
        seeds = seed_sequence(config.seed, "best").generate_state(1).tolist()  # on no start that it is evaluated on
        agent.skill, returns, steps = best_skill(agent, lanes, range(config.num_skills), seeds)
    except (RenderingError, WorkerError) as error:
        raise UserError(str(error)) from error
    shown = ", ".join(f"{skill}: {value:.1f}" for skill, value in returns.items())
    frames = steps * config.action_repeat
    print(f"fine-tuning skill {agent.skill}, the best of one episode each ({shown}); that took {frames} frames")
    return frames


def resume(config: Config, resources: ExitStack) -> tuple[Run, State | None]:
    """The run in the folder `config.resume` as it was at its last checkpoint, and how its logs were then.

    A run that was killed before its first checkpoint is at its beginning, without logs.
    """
    from running.atomic_files import locked
    from running.checkpoint import Checkpoints

    folder = resources.enter_context(locked(Path(config.resume).resolve()))
    checkpoints = Checkpoints(folder)
    try:
        state = checkpoints.read()
        if state is not None:
            flags = state.get("flags")
            if not isinstance(flags, dict):
                raise CheckpointError("the checkpoint doesn't fit this version of the program (it has no flags)")
            refuse_changes(flags, config, f"the checkpoint in {folder}")
        run = make_run(config, resources)
        run.folder, run.checkpoints = folder, checkpoints
        if state is not None:
            with enough_memory("what the checkpoint has", "end other programs, or name another --device"):
                restore(run, state)
        elif config.finetune_from is not None:
            run.frames_before = begin_fine_tuning(config, run.agent, run.lanes)
    except (CheckpointError, RenderingError, RunError) as error:
        raise UserError(f"--resume {folder}: {error}") from error
    return run, state and state["logs"]


def make_run(config: Config, resources: ExitStack) -> Run:
    """A run at its beginning, without a folder yet. Raises UserError."""
    import numpy as np

    from envs.make import make_environment
    from envs.parallel import open_eval_envs
    from utils import Stopwatch, keep_freed_memory, seed_everything, seed_sequence

    env = resources.enter_context(closing(make_environment(config)))
    obs_shape, action_dim = env.observation_space.shape, env.action_space.shape[0]
    buffer = make_replay_buffer(config, (3, *obs_shape[1:]), action_dim)
    if config.deterministic and config.device != "cpu":
        make_deterministic()
    keep_freed_memory()
    seed_everything(config.seed)
    env.action_space.seed(int(seed_sequence(config.seed, "actions").generate_state(1)[0]))
    try:
        with enough_memory("networks of that --hidden_dim and --encoder_feature_dim"):
            agent = make_agent(config, obs_shape, action_dim)
    except RunError as error:
        raise UserError(str(error)) from error
    try:
        episodes = len(agent.skills()) * config.num_eval_episodes
        factory = partial(make_environment, config)
        lanes = resources.enter_context(open_eval_envs(factory, episodes, config.eval_workers))
    except OSError as error:
        raise UserError(f"--eval_workers {config.eval_workers}: {error}; try fewer") from error
    return Run(
        config=config,
        agent=agent,
        env=env,
        lanes=lanes,
        buffer=buffer,
        skill_rng=np.random.default_rng(seed_sequence(config.seed, "skills")),
        stopwatch=Stopwatch(),
        learning_from=config.num_seed_steps,
    )


@contextmanager
def enough_memory(purpose: str, remedy: str = "choose a smaller size") -> Iterator[None]:
    """Turns a failed allocation, of the host or of the device, into a RunError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for this on the CPU
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        raise RunError(f"there is no memory for {purpose}; {remedy}") from error


def record(run: Run, renderer: RendererInfo, logs: State | None, resources: ExitStack) -> None:
    """Begin to write into the run's folder, or go on after what `logs` say: the CSVs, TensorBoard, config.json."""
    from errors import LogError
    from logger import Logger
    from running.folder import link_latest, write_config
    from video import remove_unfinished

    config, folder = run.config, run.folder
    try:
        run.logger = Logger(
            folder,
            with_skills=config.learns_skills,
            tensorboard=config.log_save_tb,
            total_frames=run.frames_before + config.num_train_frames,
            position=None if logs is None else logs["position"],
            step=run.frame,
        )
        resources.callback(run.logger.close)
        more = {"finetuned_skill": run.agent.skill, "frames_before": run.frames_before} if config.finetune_from else {}
        write_config(config, folder, renderer, None if config.resume is None else run.frame, **more)
        if config.resume is None:
            link_latest(folder)
    except LogError as error:
        raise UserError(f"--resume {folder}: {error}") from error
    except OSError as error:
        if config.resume is None:
            raise no_room(config.work_dir, error) from error
        reason = error.strerror or error
        raise UserError(f"--resume {folder}: {reason}: {error.filename or folder}; mend that first") from error
    if logs is not None:
        run.logger.load_meters(logs, run.agent.device)
    remove_unfinished(folder / "video")
    print(f"outputs: {folder}")
    if config.resume is not None:
        print(f"resumed at frame {run.frame}, in episode {run.episode + 1}")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def state_of(run: Run) -> State:
    """All that the run needs to go on as if nothing had happened: tensors and plain data."""
    from utils import plain, random_states

    episode = run.underway
    return {
        "flags": dataclasses.asdict(run.config),
        "counters": {name: getattr(run, name) for name in COUNTERS},
        "agent": run.agent.state_dict(),
        "replay_buffer": run.buffer.state_dict(),
        "random": random_states(run.agent.device),
        "action_space": plain(run.env.action_space.np_random.bit_generator.state),
        "skills": run.skill_rng.bit_generator.state,
        "environment": run.env.state() if episode is None else episode.start,
        "underway": None if episode is None else _episode_state(episode),
        "logs": run.logger.state_dict(),
        "stopwatch": run.stopwatch.state_dict(),
        "render_seconds": run.env.render_seconds,
    }


def _episode_state(episode: Underway) -> State:
    """An episode under way. The environment's state is not in it: the same actions from the same start lead there."""
    import torch

    return {
        "skill": episode.skill,
        "obs": torch.from_numpy(episode.obs),
        "seconds": time.perf_counter() - episode.began,
        "extrinsic_reward": float(episode.extrinsic_reward),
        "actions": [torch.from_numpy(action) for action in episode.actions],
        "action": None if episode.action is None else torch.from_numpy(episode.action),
    }


def save_checkpoint(run: Run) -> None:
    """Make where the run is now its checkpoint. Raises RunError where it isn't worth it, OSError where it can't."""
    check_losses(run)
    if not run.agent.is_finite():
        raise RunError(not_finite(run, ["weights"]))
    buffer, checkpoints = run.buffer, run.checkpoints
    with run.stopwatch("checkpoint"):
        run.logger.status("writing a checkpoint")
        replay = buffer.transitions_since(checkpoints.saved_frames) if run.config.save_replay_buffer else None
        frames = {"oldest_frame": buffer.oldest_frame, "end": buffer.frames_written}
        checkpoints.write(run.step, state_of(run), replay, **frames)
        run.saved, run.kept = (run.step, run.evaluated), run.episode_start
        run.logger.status("")


def restore(run: Run, state: State) -> None:
    """Bring the parts of a run at its beginning to where `state` has them. Raises CheckpointError."""
    import torch

    from logger import check_state
    from utils import set_random_states

    try:
        for name in COUNTERS:
            setattr(run, name, int(state["counters"][name]))
        run.saved = (run.step, run.evaluated)
        run.agent.load_state_dict(state["agent"])
        run.env.action_space.np_random.bit_generator.state = state["action_space"]
        run.skill_rng.bit_generator.state = state["skills"]
        run.stopwatch.load_state_dict(state["stopwatch"])
        run.env.load_state(state["environment"])
        refill = restore_replay_buffer(run, state["replay_buffer"])
        if state["underway"] is not None:
            run.underway = replay_episode(run, state["underway"], refill)
        run.kept = run.episode_start
        run.env.render_seconds = float(state["render_seconds"])
        check_state(state["logs"])
        set_random_states(state["random"], run.agent.device)  # last: nothing after it draws from them
    except (RenderingError, torch.OutOfMemoryError):
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the checkpoint doesn't fit this version of the program ({reason})") from error
    if state["agent"]["device"] != run.agent.device.type:
        print("warning: on another kind of device: the run goes on, but with other random numbers", file=sys.stderr)


def restore_replay_buffer(run: Run, state: State) -> bool:
    """Fill the replay buffer from the checkpoint; True where that doesn't have the transitions."""
    if state["written"] and not run.checkpoints.saved_frames:
        run.buffer.load_rng(state)
        run.learning_from = run.step + run.config.num_seed_steps
        print(
            "warning: the replay buffer was not saved: the run goes on with an empty one, and its updates after "
            f"{run.config.num_seed_steps} agent steps; it is not what it would have been without the interruption",
            file=sys.stderr,
        )
        return True
    run.buffer.load_state_dict(state)
    for piece in run.checkpoints.replay_pieces():
        run.buffer.load_transitions(piece)
    return False


def replay_episode(run: Run, saved: State, refill: bool) -> Underway:
    """Play an episode's actions again from its start, to where it was."""
    import numpy as np

    env, buffer = run.env, run.buffer
    actions = [action.numpy() for action in saved["actions"]]
    start = env.state()
    obs, _ = env.reset(seed=run.config.seed if run.step == len(actions) else None)
    if refill:
        buffer.start_episode(obs)
    for action in actions:
        obs, reward, terminated, _, _ = env.step(action)
        if refill:
            buffer.add(action, reward, obs, terminated, saved["skill"])
    if not np.array_equal(obs, saved["obs"].numpy()):
        print(
            "warning: the unfinished episode can't be repeated exactly here; it goes on all the same", file=sys.stderr
        )
    return Underway(
        skill=saved["skill"],
        obs=obs,
        start=start,
        began=time.perf_counter() - saved["seconds"],
        extrinsic_reward=saved["extrinsic_reward"],
        actions=actions,
        action=None if saved["action"] is None else saved["action"].numpy(),
    )


def check_losses(run: Run) -> None:
    """Raise RunError where a loss since the last row was infinite or not a number. This waits for the device."""
    names = run.logger.not_finite()
    if names:
        raise RunError(not_finite(run, names))


def not_finite(run: Run, names: Sequence[str]) -> str:
    what = f"{', '.join(names)} became infinite or not a number by frame {run.frame}"
    return f"{what}; {last_good_checkpoint(run)}; start a new run with a smaller --lr"


def last_good_checkpoint(run: Run) -> str:
    kept = run.checkpoints
    saved = f"of frame {run.frame_at(kept.step)}: {kept.folder}" if kept.step >= 0 else "none"
    return f"last good checkpoint {saved}"
