"""Figures in a notebook's environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RUN = ROOT / "results" / "skills" / "cartpole_swingup" / "full_episodes_preset"


@pytest.mark.slow
def test_the_backend_of_a_notebook_has_no_effect(tmp_path: Path) -> None:
    """A notebook's `!python plot.py` inherits a backend that this Python does not have."""
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command = [sys.executable, "plot.py", str(RUN), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cartpole_swingup.png").stat().st_size > 10_000


@pytest.mark.parametrize(("place", "backend"), [("a notebook", "svg"), ("a program", "agg")])
def test_a_notebook_keeps_its_own_backend(place: str, backend: str) -> None:
    """In it, evaluation.agent is imported beside the user's own figures."""
    modules = "sys.modules['IPython'] = sys" if place == "a notebook" else ""
    code = f"import sys; {modules}\nimport evaluation.figures, matplotlib; print(matplotlib.get_backend())"
    environment = {**os.environ, "MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{backend}\n", done.stderr
