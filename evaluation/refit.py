"""Train fresh discriminators on episodes of a policy and test them on others: how well can its skills be told apart?

One sees pixels and has the architecture of the agent's separate discriminator. If it does better than the agent's own,
the agent's discriminator is the limit, else the policy. One sees states of the physics, where skills may differ that do
not differ in the picture. Training, validation and test have different starts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from augmentations import Augmentation, make_augmentation
from console.numbers import shown_size
from diayn import DIAYNAgent, Discriminator
from errors import UserError
from evaluation.chosen_skills import FEWEST_REFIT
from evaluation.evaluate_skills import Evaluation
from evaluation.load import LoadedRun
from evaluation.play import Actions, Start, bytes_of_traces
from evaluation.skill_report import without_turns
from logger import Row
from networks import Encoder, mlp, weight_init
from utils import free_memory, make_adam, minimize, seed_everything, seed_sequence, to_device

VALIDATION_SHARE, TEST_SHARE = 0.2, 0.3  # of the starts; the others are for training
LR = 1e-3
UPDATES = {"pixels": 1500, "states": 3000}  # of a discriminator
BATCH_SIZE = {"pixels": 64, "states": 256}
CHECKS = 20  # times that a discriminator is validated while it is trained; the best one is tested
VALIDATED = 1000  # steps on which it is, evenly spread
CLASSIFIED = 256  # steps that are classified together
HIDDEN_DIM, HIDDEN_DEPTH = 256, 2  # of the discriminator that sees states


@dataclass(frozen=True)
class Examples:
    """Steps of episodes: the skill of each, and what a discriminator sees of them."""

    skill: np.ndarray  # int64 (N,)
    inputs: Callable[[np.ndarray], np.ndarray]  # of the steps with these numbers


class Split(NamedTuple):
    """A value each for training, validation and test."""

    train: Any
    validation: Any
    test: Any


class Score(NamedTuple):
    """How well a discriminator recognizes the skills. Every skill has the same weight, as in an evaluation."""

    bound: float  # nats
    accuracy: float


def refit(loaded: LoadedRun, agent: DIAYNAgent, episodes: int, seed: int, actions: Actions) -> list[Row]:
    """Play so many fresh episodes of each skill, and return the rows of refit.csv for the agent, without `policy`.

    The first row is of the agent's own discriminator on the test episodes. Tasks without states of the physics have no
    row for them.
    """
    seeds = distinct_seeds(seed, episodes)
    with loaded.bar("playing for --refit", len(agent.skills()) * len(seeds)) as bar:
        settings: dict[str, Any] = {"actions": actions, "video_folder": None, "between_steps": bar.advance}
        settings["keep_all_pictures"] = True
        evaluation = loaded.evaluate(agent.skills(), seeds, agent=agent, asked_by=f"--refit {episodes}", **settings)
    starts = Split(*([start for start in evaluation.starts if start.seed in part] for part in split(seeds)))
    counts = {f"episodes_{name}": len(part) for name, part in zip(Split._fields, starts, strict=True)}
    rows: list[Row] = [
        {"discriminator": "agent", "episodes_test": len(starts.test), **_cells(own_score(evaluation, starts.test))}
    ]
    for kind in UPDATES if starts.test[0].trace.states else ("pixels",):
        seed_everything(int(seed_sequence(seed, f"refit {kind}").generate_state(1)[0]))
        if kind == "pixels":
            examples = Split(*(pixel_examples(part, loaded.config.frame_stack) for part in starts))
            model: nn.Module = PixelDiscriminator(agent)
        else:
            examples = state_examples(starts, loaded.angles)
            width = examples.train.inputs(np.arange(1)).shape[1]
            model = mlp(width, HIDDEN_DIM, agent.num_skills, HIDDEN_DEPTH)
        generator = torch.Generator(agent.device).manual_seed(torch.initial_seed())
        name = loaded.config.augmentation if kind == "pixels" else "none"
        augment = make_augmentation(name, loaded.config.image_pad, generator)
        rng = np.random.default_rng(seed_sequence(seed, f"refit {kind}"))
        updates = fit(model.to(agent.device), examples, augment, kind, rng)
        score = assess(model, examples.test, np.arange(len(examples.test.skill)))
        rows.append({"discriminator": kind, **counts, "updates": updates, **_cells(score)})
    return rows


def own_score(evaluation: Evaluation, starts: Sequence[Start]) -> Score:
    """Return how well the agent's discriminator recognizes the skills in some episodes of an evaluation."""
    seeds = {start.seed for start in starts}
    pairs = zip(evaluation.starts, evaluation.episodes, strict=True)
    episodes = [episode for start, episode in pairs if start.seed in seeds]
    measures = replace(evaluation, starts=list(starts), episodes=episodes).overall
    return Score(measures["mutual_information_bound"], measures["discriminator_accuracy"])


def _cells(score: Score) -> Row:
    return {"mutual_information_bound": score.bound, "discriminator_accuracy": score.accuracy}


# -- episodes ----------------------------------------------------------------------------------------------------------


def distinct_seeds(seed: int, count: int) -> list[int]:
    """Return the reset seeds of `count` starts, all different, also for environments that use 31 bits of a seed."""
    drawn = seed_sequence(seed, "refit").generate_state(2 * count) % 2**31
    return list(dict.fromkeys(drawn.tolist()))[:count]


def split(seeds: Sequence[int]) -> Split:
    """Return the seeds for training, for validation and for test."""
    test, validation = (max(round(share * len(seeds)), 1) for share in (TEST_SHARE, VALIDATION_SHARE))
    train = len(seeds) - test - validation
    return Split(seeds[:train], seeds[train : train + validation], seeds[train + validation :])


def check_memory_for_refit(loaded: LoadedRun, episodes: int) -> None:
    """Print the memory that the episodes of each skill need with all pictures. Raises UserError if there is less."""
    count = len(loaded.agent.skills()) * episodes
    sizes = count, loaded.max_episode_steps, loaded.config.image_size
    needed, free = bytes_of_traces(*sizes, all_pictures=True), free_memory()
    figures = f"{count} episodes with all pictures need {shown_size(needed)}, {shown_size(free)} are free"
    if needed > free:
        fitting = int(episodes * free / needed * 0.8)
        remedy = f"try {fitting}" if fitting >= FEWEST_REFIT else "use a machine with more"
        raise UserError(f"--refit {episodes}: {figures}; {remedy}")
    print(f"--refit {episodes}: {figures}")


def pixel_examples(starts: Sequence[Start], frame_stack: int) -> Examples:
    """Return the stacked observations uint8 (N, C, H, W) after each step. Only the frames are in memory."""
    places = [(start.trace.pictures, step) for start in starts for step in range(1, len(start.trace.pictures))]
    skill = [start.skill for start in starts for _ in start.trace.pictures[1:]]

    def inputs(rows: np.ndarray) -> np.ndarray:
        chosen = [places[row] for row in rows]
        ages = range(frame_stack - 1, -1, -1)
        return np.stack([np.concatenate([frames[max(step - age, 0)] for age in ages]) for frames, step in chosen])

    return Examples(np.array(skill), inputs)


def state_examples(starts: Split, angles: Sequence[int]) -> Split:
    """Return the states of the physics after each step, float32 (N, D), scaled by the training episodes.

    See `without_turns` for `angles`.
    """
    features = [without_turns(np.concatenate([start.trace.states[1:] for start in part]), angles) for part in starts]
    mean, spread = features[0].mean(axis=0), features[0].std(axis=0)
    moving = spread > 1e-9
    examples = []
    for part, feature in zip(starts, features, strict=True):
        scaled = ((feature - mean)[:, moving] / spread[moving]).astype(np.float32)
        skill = np.repeat([start.skill for start in part], [len(start.trace.states) - 1 for start in part])
        examples.append(Examples(skill, scaled.__getitem__))
    return Split(*examples)


# -- discriminators ----------------------------------------------------------------------------------------------------


class PixelDiscriminator(nn.Module):
    """A new discriminator with convolutions of its own, for an agent's images (N, C, H, W)."""

    def __init__(self, agent: DIAYNAgent) -> None:
        super().__init__()
        self.encoder = Encoder(agent.arch.obs_shape, agent.arch.precision)
        self.discriminator = Discriminator(agent.arch, self.encoder.conv_dim, separate=False)
        self.encoder.apply(weight_init)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K). Images have values from 0 to 255, whatever their dtype."""
        return self.discriminator(self.encoder(self.encoder.scale(images)))


def fit(model: nn.Module, examples: Split, augment: Augmentation, kind: str, rng: np.random.Generator) -> int:
    """Minimize the cross-entropy on the training episodes, and keep the weights with the best bound in validation.

    Return the number of updates that led to them.
    """
    device = next(model.parameters()).device
    optimizer = make_adam(model.parameters(), LR)
    count = len(examples.validation.skill)
    validated = np.linspace(0, count - 1, min(count, VALIDATED)).astype(int)
    best, best_update, weights = assess(model, examples.validation, validated).bound, 0, model.state_dict()
    weights = copy.deepcopy(weights)
    for update in tqdm(range(1, UPDATES[kind] + 1), f"training on {kind}", leave=False, disable=None):
        rows = draw(examples.train.skill, BATCH_SIZE[kind], rng)
        inputs = augment(to_device(examples.train.inputs(rows), device))
        minimize(F.cross_entropy(model(inputs), to_device(examples.train.skill[rows], device)), optimizer)
        if update % (UPDATES[kind] // CHECKS) == 0:
            bound = assess(model, examples.validation, validated).bound
            if bound > best:
                best, best_update, weights = bound, update, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return best_update


def draw(skill: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the numbers of `count` steps: a skill uniformly, then one of its steps."""
    _, sizes = np.unique(skill, return_counts=True)
    chosen = rng.integers(len(sizes), size=count)
    return np.argsort(skill, kind="stable")[np.cumsum(sizes)[chosen] - 1 - rng.integers(sizes[chosen])]


@torch.no_grad()
def assess(model: nn.Module, examples: Examples, rows: np.ndarray) -> Score:
    """Return how well a discriminator recognizes the skills of these steps."""
    device = next(model.parameters()).device
    parts = np.array_split(rows, math.ceil(len(rows) / CLASSIFIED))
    log_q = torch.cat([model(to_device(examples.inputs(part), device)).log_softmax(dim=1).cpu() for part in parts])
    skill = torch.from_numpy(examples.skill[rows])
    rewards = log_q.gather(1, skill[:, None])[:, 0] + math.log(log_q.shape[1])
    hits = (log_q.argmax(dim=1) == skill).float()
    own = [skill == each for each in skill.unique()]
    bound, accuracy = (torch.stack([values[one].mean() for one in own]).mean().item() for values in (rewards, hits))
    return Score(bound, accuracy)
