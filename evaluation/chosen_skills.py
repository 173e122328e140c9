"""The skills that the flags of evaluate.py name. Standard library only, so that a mistyped one is answered at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from config import FIELDS
from errors import UserError
from running.columns import NO_SKILL
from running.stored_config import CONFIG_FILE, known_flags

FEWEST_REFIT = 3  # episodes of a skill for --refit: one each for training, validation and test
SkillSchedule = Sequence[tuple[int | None, int]]  # a skill, or None for a random one, and its agent steps


def stored_skills(place: Path) -> Sequence[int] | None:
    """Return the skills of a run as its config.json has them: [-1] without skills. None if that cannot be read.

    Args:
        place: the run's folder, or its checkpoint or a file in it.
    """
    for folder in (place, *place.absolute().parents[:2]):
        try:
            flags = known_flags(folder / CONFIG_FILE)
        except (UserError, OSError):
            continue
        if flags.get("finetune_from") is not None:  # it has one skill, which config.json may not say
            return None
        return range(flags.get("num_skills", FIELDS["num_skills"].default)) or [NO_SKILL]
    return None


def check_skill(flag: str, skill: int, known: Sequence[int]) -> None:
    """Raise UserError if the run does not have the skill."""
    if skill not in known:
        one = f"skill {known[0]} only" if known[0] >= 0 else "no skills"
        skills = f"the skills {known[0]} to {known[-1]}" if len(known) > 1 else one
        raise UserError(f"--{flag}: the run has {skills}; got {skill}")


def parse_skills(text: str, known: Sequence[int]) -> Sequence[int]:
    """Return the skills that --skills names, of those that the run has; all for "best". Raises UserError."""
    if text in ("all", "best"):
        return known
    try:
        skills = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--skills must be all, best or numbers such as 3,7; got {text}") from None
    for skill in skills:
        check_skill("skills", skill, known)
    return list(dict.fromkeys(skills))


def parse_schedule(text: str, known: Sequence[int]) -> SkillSchedule:
    """Parse a schedule such as 3:100,7:100 or random:100, of a run with the skills `known`. Raises UserError."""
    if known[0] < 0:
        raise UserError("--skill_schedule: the run has no skills; name one with --num_skills above 0")
    schedule: list[tuple[int | None, int]] = []
    for part in text.split(","):
        found = re.fullmatch(r"(random|\d{1,18}):(\d{1,18})", part)
        if not found or int(found[2]) < 1:
            raise UserError(f"--skill_schedule must be such as 3:100,7:100 or random:100; got {text}")
        skill, steps = found.groups()
        if skill != "random":
            check_skill("skill_schedule", int(skill), known)
        schedule.append((None if skill == "random" else int(skill), int(steps)))
    return schedule
