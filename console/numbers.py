"""Numbers as text for people. CSV files have them unrounded."""

from __future__ import annotations


def shown_number(value: float, form: str) -> str:
    """Return a number in a format such as ".2f". One that is rounded to zero has no minus."""
    text = format(value, form)
    return text if text.strip("-0.") else text.removeprefix("-")
