"""The sentences of report.py: how to read each measure, and what was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from console.numbers import shown_number
from evaluation.curves import CONFIDENCE, SEEDS_FOR_INTERVAL
from evaluation.report_files import EvaluationFiles, RunFiles

FEW_EPISODES = 5  # below which a figure of a skill is noisy


class Measure(NamedTuple):
    """A column of eval.csv as it is shown."""

    column: str
    label: str
    digits: int
    unit: str
    reading: str  # one sentence


class Figure(NamedTuple):
    """A measure with its value, as text."""

    label: str
    value: str
    before: str  # the value at the first evaluation, in words; empty if there is no other than this one
    reading: str


RETURN = ("episode_reward", "Return", 1, "")
RETURN_OF_SKILL = "episode_extrinsic_reward"
OF_SKILL = {  # columns of skills.csv that are shown with each skill, and their labels
    RETURN_OF_SKILL: ("return", 1),
    "mutual_information_bound": ("bound", 2),
    "mutual_information_bound_second_half": ("second half", 2),
    "discriminator_accuracy": ("accuracy", 2),
    "cells_visited": ("cells", 0),
}
PICTURES = {
    "contact_sheet": (
        "Contact sheet",
        "A row for each skill, its first episode from left to right. Skills differ if rows do; the percentage is the "
        "share of the episode's steps at which the discriminator recognizes the skill.",
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "Percent of the steps of each skill (row) in which each skill (column) is predicted. A diagonal is "
        "perfect; a bright column is a skill that others are mistaken for.",
    ),
    "trajectories": (
        "Trajectories",
        "Where the skills were, one color for each. Skills that differ in the world leave lines apart; thin gray lines "
        "are the borders of the cells that coverage counts.",
    ),
}
READ_POLICIES = (
    "Compare the trained agent with the same agent before training and with uniformly random actions, which played as "
    "many episodes from the same starts: only what exceeds both was learned."
)
READ_REFIT = (
    "New discriminators, trained on other episodes of the finished skills. If pixels is above agent, the agent's own "
    "discriminator is the limit; if states is above pixels, skills differ in the world but not in the picture."
)


def measures(num_skills: int, rewarded: bool) -> list[Measure]:
    """Return the measures of a run with so many skills, trained with or without the task's reward."""
    task = "Sum of the task's rewards over an evaluation episode, mean over the episodes"
    most = "a full episode of 1000 frames in the DeepMind Control Suite gives 1000 at most"
    if not num_skills:
        return [Measure(*RETURN, f"{task}: higher is better; {most}.")]
    use = most if rewarded else "the skills were trained without it, so it describes them and does not judge them"
    ceiling, returns = f"{math.log(num_skills):.2f}", Measure(*RETURN, f"{task} and skills; {use}.")
    of_skills = [
        Measure(
            *("mutual_information_bound", "Bound", 2, " nats"),
            f"How much a state tells of the skill that is played, at least: 0 is nothing, {ceiling} tells all "
            f"{num_skills} skills apart, and below 0 the discriminator is confident and wrong.",
        ),
        Measure(
            *("mutual_information_bound_second_half", "Bound (second half)", 2, " nats"),
            "The bound over the second half of each episode; all skills start alike, which holds the whole episode's "
            "bound down however different they are later.",
        ),
        Measure(
            *("effective_skills", "Effective skills", 1, f" of {num_skills}"),
            "exp(bound): so many skills that are told apart perfectly would give the same bound; 1 is chance.",
        ),
        Measure(
            *("discriminator_accuracy", "Accuracy", 2, ""),
            f"Share of the steps at which the discriminator recognizes the skill; {1 / num_skills:.2f} is "
            "chance, 1 is perfect.",
        ),
        Measure(
            *("cells_visited", "Cells visited", 0, ""),
            "Cells of a grid over the task's coordinates that all skills visit together; it grows with the number of "
            "episodes, so compare it only with controls that played as many.",
        ),
    ]
    return [returns, *of_skills] if rewarded else [*of_skills, returns]


def number(value: Any, digits: int, unit: str = "") -> str:
    """Return a number as text; a hyphen if there is none."""
    return "-" if value is None else shown_number(value, f",.{digits}f") + unit


def figures_of(files: RunFiles) -> list[Figure]:
    """Return the measures of a run's last evaluation that there are, beside those of its first."""
    if not files.evaluations:
        return []
    first, last = files.evaluations[0], files.evaluations[-1]
    shown = []
    for measure in known_measures(files):
        value = last.get(measure.column)
        if value is not None:
            before = first.get(measure.column) if len(files.evaluations) > 1 else None
            when = "before training" if first["step"] == 0 else "first evaluation"
            earlier = "" if before is None else f"{when}: {number(before, measure.digits)}"
            shown.append(Figure(measure.label, number(value, measure.digits, measure.unit), earlier, measure.reading))
    return shown


def outlook(files: RunFiles) -> str:
    """Return a sentence on the only evaluation of a run, and on the next one; empty if there are none or several."""
    if files.frame is None or files.run.has_curves:
        return ""
    due = files.next_evaluation
    if due is None:
        return f"There is one evaluation, at frame {files.frame:,}."
    when = f"of the episode that reaches frame {due:,}" if due != files.budget else f"of training, at frame {due:,}"
    return f"There is one evaluation so far, at frame {files.frame:,}; the next is due at the end {when}."


def known_measures(files: RunFiles) -> list[Measure]:
    """Return the measures that a run of this version has."""
    rewarded = bool(files.run.flags.get("extrinsic_reward_coeff"))
    return measures(files.run.num_skills, rewarded)


def skill_figures(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is shown with a skill: labels and values."""
    known = {name: value for name, value in row.items() if name in OF_SKILL and value is not None}
    return [(label, number(known[name], digits)) for name, (label, digits) in OF_SKILL.items() if name in known]


# -- what was not measured ---------------------------------------------------------------------------------------------


def not_measured(files: RunFiles, evaluations: Sequence[EvaluationFiles]) -> list[str]:
    """Return a sentence for each thing that the files of a run do not say."""
    run, gaps = files.run, []
    if not files.has_tables:
        return ["Training and its result: the folder has settings, but no tables (train.csv, eval.csv, episodes.csv)."]
    if files.budget is None:
        gaps.append("The settings: there is no config.json, so flags, versions and the number of skills are unknown.")
    elif files.frames < files.budget:
        gaps.append(
            f"The end of training: the tables reach frame {files.frames:,} of {files.budget:,}; later results are open."
        )
    if files.frame is None:
        return [
            *gaps,
            "Anything about the policy: there is no evaluation yet, only episodes with exploration.",
        ]
    if not files.frame:
        gaps.append("The effect of training: the only evaluation is of the untrained agent, at frame 0.")
    if not files.videos:
        gaps.append("How it looks: there is no video of the last evaluation (--save_video).")
    episodes = max((int(row["episodes"]) for row in files.skills if row.get("episodes")), default=0)
    episodes = episodes or (0 if run.num_skills else run.flags.get("num_eval_episodes") or 0)
    if 0 < episodes < FEW_EPISODES:
        of_what = "each skill" if run.num_skills else "the policy"
        gaps.append(f"The spread over episodes: figures of {of_what} come from {_count(episodes, 'episode')}.")
    gaps.append("Behavior with noise: evaluations play the most likely action, not samples of the policy.")
    return gaps + (_not_measured_of_skills(files, evaluations) if run.num_skills else [])


def _not_measured_of_skills(files: RunFiles, evaluations: Sequence[EvaluationFiles]) -> list[str]:
    last, gaps = files.evaluations[-1], []
    missing = [measure.label for measure in known_measures(files) if last.get(measure.column) is None]
    if missing:
        names = ", ".join(missing)
        gaps.append(f"{names}: not in this run's tables (an older version, or a task without a grid of cells).")
    if not files.skills:
        gaps.append("Single skills: skills.csv has no rows of the last evaluation.")
    absent = [title for name, (title, _) in PICTURES.items() if name not in files.pictures]
    if absent:
        gaps.append(f"{', '.join(absent)}: there is no such picture of the last evaluation.")
    if not any({"untrained", "random"} <= one.policies for one in evaluations):
        gaps.append("Whether random actions or the untrained agent do as much: evaluate.py RUN --controls plays them.")
    if not any(one.refit for one in evaluations):
        gaps.append(
            "Whether the skills or the agent's discriminator limit the bound, and whether skills differ in the world "
            "or only in pictures: evaluate.py RUN --refit 10 tells."
        )
    gaps.append("Use for a task: the best skill is neither chosen on other starts nor fine-tuned here.")
    return gaps


def not_measured_over_seeds(seeds: Sequence[tuple[str, int]]) -> list[str]:
    """Return what the numbers of seeds leave open; `seeds` has the label and the number of seeds of each group."""
    few = [f"{label}: {_count(count, 'seed')}" for label, count in seeds if count < SEEDS_FOR_INTERVAL]
    if not few:
        return []
    return [
        f"Chance between seeds. A {CONFIDENCE:.0%} interval is drawn from {SEEDS_FOR_INTERVAL} seeds on; a difference "
        f"between settings may be one between seeds ({'; '.join(few)})."
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
