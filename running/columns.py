"""The columns of a run's CSV files and console lines. Standard library only: a program that reads them needs no torch.

To add a metric of the update, add its name here: the logger refuses a metric or a column that is not declared.
"""

from __future__ import annotations

NO_SKILL = -1  # the skill_id of runs without DIAYN, in memory and in every file

UPDATE_METRICS = (
    *("batch_reward", "actor_loss", "actor_entropy", "actor_target_entropy", "critic_loss"),
    *("alpha_loss", "alpha_value"),
)
SKILL_UPDATE_METRICS = ("discriminator_loss", "discriminator_accuracy", "intrinsic_reward")
DISDAIN_UPDATE_METRICS = ("disdain_bonus",)  # only with --disdain_coeff above 0

TRAIN_COLUMNS = ("episode", "step", "episode_reward", "duration", *UPDATE_METRICS, "fps")
TRAIN_SKILL_COLUMNS = ("skill_id", "episode_intrinsic_reward_sum", *SKILL_UPDATE_METRICS)
EVAL_COLUMNS = ("episode", "step", "episode_reward")
EVAL_SKILL_COLUMNS = (
    *("episode_intrinsic_reward_sum", "discriminator_accuracy", "mutual_information_bound"),
    *("mutual_information_bound_second_half", "effective_skills", "cells_visited"),
)
EPISODE_COLUMNS = (
    *("type", "episode", "step", "duration"),
    *("episode_extrinsic_reward", "skill_id", "episode_intrinsic_reward_sum"),
)
SKILL_COLUMNS = (
    *("step", "skill_id", "episodes", "episode_extrinsic_reward", "episode_intrinsic_reward_sum"),
    *("discriminator_accuracy", "mutual_information_bound", "mutual_information_bound_second_half"),
    *("cells_visited", "displacement_x", "displacement_y", "state_distance_within", "state_distance_between"),
)
CHOICE_COLUMNS = ("step", "skill_id", "episodes", "episode_extrinsic_reward")
REFIT_COLUMNS = (
    *("policy", "step", "discriminator", "episodes_train", "episodes_validation", "episodes_test", "updates"),
    *("mutual_information_bound", "discriminator_accuracy"),
)
SUMMARY_COLUMNS = (
    *("policy", "step", "skills", "episodes", "frames_to_choose", "episode_extrinsic_reward"),
    *EVAL_SKILL_COLUMNS,
)
DECILE_COLUMNS = ("step", "skill_id", "decile", "mutual_information_bound")
REQUIRED_CSV_FILES = ("train.csv", "eval.csv", "episodes.csv")  # in every checkpoint, also those of older versions

HEADLINE = (  # columns of eval.csv that TensorBoard shows first, under eval/
    *("episode_reward", "mutual_information_bound", "mutual_information_bound_second_half"),
    *("effective_skills", "cells_visited"),
)

LINE_WIDTH = 120  # characters that a line of the console has at most
CONSOLE = {  # label and format of a column in such lines
    "episode": ("E", ""),
    "step": ("S", ""),
    "episode_reward": ("R", ".4g"),
    "duration": ("D", ".1f"),
    "batch_reward": ("BR", ".3g"),
    "actor_loss": ("ALOSS", ".3g"),
    "critic_loss": ("CLOSS", ".3g"),
    "alpha_value": ("TVAL", ".3g"),
    "actor_entropy": ("AENT", ".3g"),
    "skill_id": ("SKILL", ""),
    "episode_intrinsic_reward_sum": ("IR", ".4g"),
    "discriminator_accuracy": ("DACC", ".2f"),
    "mutual_information_bound": ("MI", ".3f"),
    "effective_skills": ("EFF", ".1f"),
    "cells_visited": ("CELLS", ""),
}
CONSOLE_UNITS = {"duration": " s"}
TRAIN_LINE = (  # DrQ's, as far as they fit
    *("episode", "step", "episode_reward", "duration", "batch_reward", "actor_loss", "critic_loss"),
    *("alpha_value", "actor_entropy"),
)
TRAIN_SKILL_LINE = (  # DrQ's losses, with DIAYN's figures appended
    *("episode", "step", "episode_reward", "duration", "actor_loss", "critic_loss"),
    *("skill_id", "episode_intrinsic_reward_sum", "discriminator_accuracy"),
)
EVAL_LINE = (
    *("episode", "step", "episode_reward", "episode_intrinsic_reward_sum", "discriminator_accuracy"),
    *("mutual_information_bound", "effective_skills", "cells_visited"),
)


def csv_columns(with_skills: bool, with_disdain: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the columns of each CSV file of a run, by the file's name."""
    columns = {
        "train.csv": TRAIN_COLUMNS + TRAIN_SKILL_COLUMNS * with_skills + DISDAIN_UPDATE_METRICS * with_disdain,
        "eval.csv": EVAL_COLUMNS + EVAL_SKILL_COLUMNS * with_skills,
        "episodes.csv": EPISODE_COLUMNS,
    }
    return {**columns, "skills.csv": SKILL_COLUMNS} if with_skills else columns


def former_columns(with_skills: bool) -> dict[str, tuple[str, ...]]:
    """Return the columns of checkpoints that do not record them: those of the last version that did not."""
    train = (
        "episode,step,episode_reward,duration,batch_reward,actor_loss,actor_entropy,actor_target_entropy,critic_loss,"
        "alpha_loss,alpha_value,fps"
    )
    train_skill = ",skill_id,episode_intrinsic_reward_sum,discriminator_loss,discriminator_accuracy,intrinsic_reward"
    evaluation_skill = ",episode_intrinsic_reward_sum,discriminator_accuracy,mutual_information_bound"
    columns = {
        "train.csv": train + train_skill * with_skills,
        "eval.csv": "episode,step,episode_reward" + evaluation_skill * with_skills,
        "episodes.csv": "type,episode,step,duration,episode_extrinsic_reward,skill_id,episode_intrinsic_reward_sum",
        "skills.csv": "step,skill_id,episodes,episode_extrinsic_reward,episode_intrinsic_reward_sum,"
        "discriminator_accuracy,accuracy_at_start,mutual_information_bound,displacement_x,displacement_y,"
        "state_distance_within,state_distance_between",
    }
    return {name: tuple(names.split(",")) for name, names in columns.items() if with_skills or name != "skills.csv"}


def update_metrics(with_skills: bool, with_disdain: bool = False) -> tuple[str, ...]:
    """Return the names of the metrics that an update may return."""
    return UPDATE_METRICS + SKILL_UPDATE_METRICS * with_skills + DISDAIN_UPDATE_METRICS * with_disdain
