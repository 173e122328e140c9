"""What the tests that use hypothesis share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

FEW, MANY = "few_examples", "many_examples"  # how `fast_and_slow` names its tests


def fuzz(examples: int) -> settings:
    """Return settings for that many examples: the same in every run, however slow the machine is."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


ODD_JSON: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 10**30, 10**400, -(10**400), 0.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from(
        ["", "../../etc/passwd", "/etc/passwd", "state_1.pt", "state_4.pt\n", "replay_2.pt", "..", "\ud800"]
    ),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], [{}], {"name": "state_4.pt"}, [None], ["state"]]),
)
ANY_JSON = st.recursive(
    ODD_JSON, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def fast_and_slow(examples: int = 300, slowly: int = 1000) -> pytest.MarkDecorator:
    """Parametrize a test by the number of its `examples`: few in the fast tests, many in the slow ones."""
    many = pytest.param(slowly, id=MANY, marks=pytest.mark.slow)
    return pytest.mark.parametrize("examples", [pytest.param(examples, id=FEW), many])


def check_all(examples: int, check: Callable[..., None], **strategies: SearchStrategy[Any]) -> None:
    """Draw that many examples of the strategies, and call `check` with each that is not a repetition."""
    seen = set()

    def check_once(**example: Any) -> None:
        if (key := repr(example)) not in seen:
            seen.add(key)
            check(**example)

    fuzz(examples)(given(**strategies)(check_once))()
