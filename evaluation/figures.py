"""Matplotlib without a display: import its classes from here, so that no program depends on the user's backend."""

from __future__ import annotations

import os
import sys

if "IPython" not in sys.modules:  # a program started by a notebook gets its backend, but may lack it
    os.environ["MPLBACKEND"] = "agg"

import matplotlib
import numpy as np
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
    "skill_colors",
]


def skill_colors(count: int) -> list[tuple[float, ...]]:
    """Return a color for each skill, which are easy to tell apart up to NAMED_SKILLS."""
    if count <= NAMED_SKILLS:
        return list(colormaps["tab10" if count <= 10 else "tab20"].colors[:count])  # type: ignore[attr-defined]
    return list(map(tuple, colormaps["turbo"](np.linspace(0.0, 1.0, count))))
