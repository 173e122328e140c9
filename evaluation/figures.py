"""Matplotlib without a display: import its classes from here, so that no program depends on the user's backend."""

from __future__ import annotations

import os

os.environ["MPLBACKEND"] = "agg"  # a notebook sets a backend that this Python may lack, and the import would fail

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

matplotlib.rcParams["text.parse_math"] = False  # a $ in a folder's name is no formula

__all__ = [
    "Axes",
    "Axis",
    "Figure",
    "FigureCanvasAgg",
    "Normalize",
    "ScalarMappable",
    "colormaps",
]
