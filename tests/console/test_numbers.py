"""Numbers as text for people."""

from __future__ import annotations

import math

import pytest

from console.numbers import shown_number, shown_size


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (-0.0012, ".2f", "0.00"),
        (-0.0, ".1f", "0.0"),
        (-0.4, ",.0f", "0"),
        (-0.0, ".3g", "0"),
        (0.0, ".2f", "0.00"),
        (-0.005001, ".2f", "-0.01"),
        (-0.0012, ".3g", "-0.0012"),
        (-1200.0, ",.1f", "-1,200.0"),
        (-100.0, ".0f", "-100"),
        (1.25, ".1f", "1.2"),
        (-3, "", "-3"),
        (0, "", "0"),
        (math.nan, ".2f", "nan"),
        (-math.inf, ".2f", "-inf"),
    ],
)
def test_only_zero_loses_its_minus(value: float, form: str, text: str) -> None:
    assert shown_number(value, form) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 KB"),
        (46_800, "47 KB"),
        (999_499, "999 KB"),
        (999_500, "1.0 MB"),
        (1_250_000, "1.2 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1.00 GB"),
        (7_060_000_000_000, "7,060.00 GB"),
    ],
)
def test_a_size_is_never_zero(size: int, text: str) -> None:
    assert shown_size(size) == text
