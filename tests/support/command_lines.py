"""Random command lines of train.py, and what holds for every Config that one of them gives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import get_origin

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

import train
from config import TYPES, Config
from tests.support.program import call

ODD_WORDS = (
    *("0", "1", "-1", "-0", "1e6", "1e308", "1e309", "-1e309", "9" * 400, "9" * 4300, "9" * 5000, "0x10", "1_000"),
    *("0.5", "nan", "inf", "-inf", "+5", " 7 ", "", " ", "--", "-", "-5", "true", "False", "maybe", "auto", "none"),
    *("planet", "dreamer", "cpu", "cuda:99", "walker_run", "../../x", "é", "٣", "\U0001f600", "a\nb", "a\r\nb"),
    *("\x1b[31m", "\0", "x" * 20_000, "%s", "{}", "\udcff", "a\u2028b", "--seed", "--xyzzy\nx"),
)
WORDS = (st.sampled_from(ODD_WORDS) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8)).filter(
    lambda word: not word.startswith(("-h", "--h"))  # asks for help
)
MAY_BE_NONE = {
    *("time_limit", "preset", "device", "discriminator_window", "resume"),
    *("finetune_from", "finetune_snapshot", "run_name"),
}


@st.composite
def command_lines(draw: DrawFn, most: int = 4) -> list[str]:
    """Draw flags with odd values, flags without a value, values without a flag, and flags that do not exist."""
    line = []
    for _ in range(draw(st.integers(0, most))):
        name = draw(st.sampled_from([name for name in (*TYPES, "task", "framestack") if name != "resume"]))
        values = draw(st.lists(WORDS, min_size=1, max_size=2) if draw(st.integers(0, 5)) else st.just([]))
        form = draw(st.sampled_from(["words", "words", "words", "equals", "bare", "misspelled"]))
        if form == "equals" and values:
            line.append(f"--{name}={values[0]}")
        else:
            flag = {"bare": values[:1], "misspelled": [f"--{name}x"]}.get(form, [f"--{name}"])
            line += [*flag, *(values if name == "log_std_bounds" else values[:1])]
    return line


def parsed(words: Sequence[str]) -> Config | None:
    """Return the Config of these words, checked against the table; None if they are refused in one line."""
    answer = call(words, train.parse_args)
    if isinstance(answer.code, Config):
        assert answer.lines == []
        assert_within_limits(answer.code)
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
