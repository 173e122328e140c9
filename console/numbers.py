"""Numbers as text for people. CSV files have them unrounded."""

from __future__ import annotations


def shown_number(value: float, form: str) -> str:
    """Return a number in a format such as ".2f". One that is rounded to zero has no minus."""
    text = format(value, form)
    return text if text.strip("-0.") else text.removeprefix("-")


def shown_size(size: int) -> str:
    """Return a size in bytes as KB, MB or GB (1000, 1000^2 and 1000^3 bytes)."""
    if size >= 999_950_000:
        return f"{size / 1e9:,.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 999_500 else f"{max(size / 1e3, 1):.0f} KB"


def counted(number: int, noun: str) -> str:
    """Return the number with its noun, as "1 episode" or "2 episodes"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
