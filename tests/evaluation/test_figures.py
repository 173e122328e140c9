"""Matplotlib does not depend on the user's settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "tkagg", "nonsense"])
def test_the_users_backend_is_not_used(backend: str) -> None:
    """Every notebook sets the first one, which only the notebook's own Python has."""
    code = "from evaluation.figures import *; FigureCanvasAgg(Figure()).draw()"
    environment = {**os.environ, "MPLBACKEND": backend}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
