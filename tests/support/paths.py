"""Paths that several test modules use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
Mount = Callable[[str], Path]  # the fixture `mount`: from mount options to the mount point
