"""evaluation.json, the record of what evaluate.py played. Standard library only: plot.py and report.py read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from config import FIELDS, Role, flags_with, shown_value
from envs.tasks import without_own_limit
from errors import UserError, one_line
from running.stored_config import known_flags, read_record

RECORD_FILE = "evaluation.json"  # in the folder that evaluate.py writes
OF_EPISODES = ("env", "floor", *flags_with(Role.ENVIRONMENT))  # what a return depends on beside the policy


class EvaluationRecord(NamedTuple):
    """What evaluate.py played into a folder."""

    run: str  # what was played: the last parts of the run's path, <work_dir>/<task>/<run>, and those within it
    arguments: Mapping[str, Any]  # flags of evaluate.py that were given
    flags: Mapping[str, Any]  # of the run, with the time limit that was played

    @property
    def command(self) -> str:
        """The command line, as far as it says what was played."""
        given = [f"--{name}" if value is True else f"--{name} {value}" for name, value in self.arguments.items()]
        return one_line(" ".join(["evaluate.py", self.run, *given]))


def read_evaluation_record(folder: Path) -> EvaluationRecord | None:
    """Read the record in a folder of evaluate.py; None if an older version wrote the folder. Raises UserError."""
    path = folder / RECORD_FILE
    try:
        record = read_record(path, str(path))
        flags = known_flags(path)
    except FileNotFoundError:
        return None
    except UserError:
        raise UserError(f"--evaluation: {path} is damaged or cannot be read; run evaluate.py again") from None
    run, arguments = record.get("run"), record.get("arguments")
    if not isinstance(run, str) or not isinstance(arguments, dict):
        raise UserError(f"--evaluation: {path} is damaged; run evaluate.py again")
    return EvaluationRecord(run, arguments, flags)


def check_episodes_alike(
    folder: Path, record: EvaluationRecord | None, runs: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Raise UserError if the episodes in a folder of evaluate.py are not like those of runs.

    Args:
        runs: the name and the flags of each run; flags that are not known are not compared.
    """
    if record is None:
        return
    played = without_own_limit(record.flags)
    for name, flags in runs:
        trained = without_own_limit(flags)
        for flag in OF_EPISODES:
            if flag in flags and flag in record.flags and trained[flag] != played[flag]:
                own, other = (
                    FIELDS[flag].metadata["derived"] if value is None else shown_value(value)
                    for value in (played[flag], trained[flag])
                )
                raise UserError(
                    f"--evaluation {folder}: its episodes have --{flag} {own}, those of {name} {other}; "
                    "name a folder whose episodes are of the same kind"
                )


def evaluation_json(
    run: Path, arguments: Mapping[str, Any], flags: Mapping[str, Any], more: Mapping[str, Any]
) -> bytes:
    """Return the contents of evaluation.json.

    Args:
        run, arguments, flags: as in `EvaluationRecord`.
        more: further entries.
    """
    record = {"run": run.as_posix(), "arguments": arguments, **more, "flags": flags}
    return (json.dumps(record, indent=2) + "\n").encode()
