"""Matplotlib without a display: import its classes from here, so that no program depends on the user's backend."""

from __future__ import annotations

import os
import sys

if "IPython" not in sys.modules:  # a program started by a notebook gets its backend, but may lack it
    os.environ["MPLBACKEND"] = "agg"

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

matplotlib.rcParams["text.parse_math"] = False  # a $ in a folder's name is no formula

NAMED_SKILLS = 20  # up to which skills have colors that are easy to tell apart

__all__ = [
    "NAMED_SKILLS",
    "Axes",
    "Axis",
    "Figure",
    "FigureCanvasAgg",
    "Normalize",
    "ScalarMappable",
    "colormaps",
    "skill_color",
]


def skill_color(skill: int, count: int) -> tuple[float, ...]:
    """Return the color of a skill of `count`. Up to NAMED_SKILLS they are easy to tell apart."""
    if count <= NAMED_SKILLS:
        return tuple(colormaps["tab10" if count <= 10 else "tab20"](skill % count))
    return tuple(colormaps["turbo"](skill % count / (count - 1)))
