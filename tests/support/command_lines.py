"""Random command lines of the programs, and what holds for every Config that one of train.py's gives."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import get_origin

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

import train
from config import TYPES, Config
from tests.support.flags import COEFFICIENTS, FLAGS
from tests.support.program import call

Flags = Mapping[str, Sequence[str]]  # each flag of a program, with values that it takes; none for a switch

ODD_WORDS = (
    *("0", "1", "-1", "-0", "1e6", "1e308", "1e309", "-1e309", "9" * 400, "9" * 4300, "9" * 5000, "0x10", "1_000"),
    *("0.5", "nan", "inf", "-inf", "+5", " 7 ", "", " ", "--", "-", "-5", "true", "False", "maybe", "auto", "none"),
    *("planet", "dreamer", "cpu", "cuda:99", "walker_run", "../../x", "é", "٣", "²", "\U0001f600", "a\nb", "a\r\nb"),
    *("\x1b[31m", "\0", "x" * 20_000, "%s", "{}", "\udcff", "a\u2028b", "--seed", "--xyzzy\nx"),
    *("gym:", "gym:Nothing-v0", "gym:nothing:At-v0", "x:y", "0:", ":1", "0:0", "0,", ",", "1,1", "random:", "0:1,"),
)


def is_safe(word: str) -> bool:
    """Return whether a word asks for no help, and names no place above the working folder by itself."""
    return not word.startswith(("-h", "--h", "/", "~")) and not {*word} <= {*"./"}


WORDS = st.sampled_from(ODD_WORDS) | (
    (st.integers().map(str) | st.floats().map(str) | st.text(max_size=8)).filter(is_safe)
)
MAY_BE_NONE = {
    *("time_limit", "preset", "device", "discriminator_window", "resume"),
    *("finetune_from", "finetune_snapshot", "run_name"),
}
TRAIN_FLAGS: Flags = {
    **{name: [text] for name, (_, text, _) in FLAGS.items()},
    **{name: ["0.5", "0"] for name in COEFFICIENTS},
    **{"task": ["dmc_walker_run"], "benchmark": ["planet"], "framestack": ["2"], "num_train_frames": ["400"]},
    **{"temperature": ["learned", "auto"], "run_name": ["a"], "device": ["cpu"]},
    **{"finetune_skill": ["1"], "finetune_critic": ["scratch"], "finetune_snapshot": ["0"]},
}


@st.composite
def command_lines(
    draw: DrawFn, flags: Flags = TRAIN_FLAGS, most: int = 4, *, words: Sequence[str] = (), several: bool = False
) -> list[str]:
    """Draw flags with good and odd values, without a value, misspelled, and values without a flag.

    Args:
        most: flags in a line.
        words: further words that may be a value or stand alone, such as folders of runs.
        several: a flag may have several values.
    """
    line: list[str] = []
    odd = WORDS | st.sampled_from(words) if words else WORDS
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from(sorted(flags)))
        good = draw(st.sampled_from(flags[name])).split() if flags[name] else []
        kind = draw(st.sampled_from(["good"] * 9 + ["equals", "odd", "odd", "bare", "misspelled"]))
        values = good if kind == "good" else draw(st.lists(odd, max_size=3 if several else 1))
        if kind == "equals" and values:
            line.append(f"--{name}={values[0]}")
        else:
            line += [*{"bare": [], "misspelled": [f"--{name}x"]}.get(kind, [f"--{name}"]), *values]
    return line


def parsed(words: Sequence[str]) -> Config | None:
    """Return the Config of these words, checked against the table; None if they are refused in one line."""
    answer = call(words, train.parse_args)
    if isinstance(answer.code, Config):
        assert answer.lines == []
        assert_within_limits(answer.code)
        assert json.loads(json.dumps(dataclasses.asdict(answer.code)))["seed"] == answer.code.seed
        return answer.code
    assert answer.code == 2
    assert len(answer.lines) == 1
    assert answer.lines[0].startswith("train.py: error: ")
    return None


def assert_within_limits(config: Config) -> None:
    """Check that every flag has a type and a value that the table allows."""
    for field in dataclasses.fields(Config):
        value, kind, limits = getattr(config, field.name), TYPES[field.name], field.metadata
        if value is None:
            assert field.name in MAY_BE_NONE
            continue
        assert type(value) is (get_origin(kind) or kind), field.name
        for number in value if isinstance(value, tuple) else [value]:
            assert not isinstance(number, float) or math.isfinite(number), field.name
            assert limits["low"] is None or number >= limits["low"], field.name
            assert limits["above"] is None or number > limits["above"], field.name
            assert limits["high"] is None or number <= limits["high"], field.name
        assert not limits["choices"] or value in limits["choices"], field.name
    assert config.num_train_frames == config.num_train_steps * config.action_repeat
    assert config.log_std_bounds[0] < config.log_std_bounds[1]
