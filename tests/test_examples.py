"""The examples that users copy: README's Python, and the notebook."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.support.paths import ROOT

NOTEBOOK = ROOT / "examples" / "skills.ipynb"
LARGEST = 300_000  # bytes

pytestmark = pytest.mark.usefixtures("renderer")


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.mark.slow
def test_the_python_of_the_readme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    total, probability = map(float, capsys.readouterr().out.split())
    assert total > 100  # the page says 141
    assert probability > 0.5


@pytest.mark.slow
def test_the_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells run in order, as in Jupyter, and it says what it shows."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    names: dict[str, Any] = {}
    try:
        for number, cell in enumerate(cells, start=1):
            exec(compile(source(cell), f"cell {number} of {NOTEBOOK.name}", "exec"), names)
            assert capsys.readouterr().out.count("\n") == printed(cell).count("\n")
        assert len(plt.get_fignums()) == len([cell for cell in cells if pictures(cell)]) == 2
    finally:
        plt.close("all")
    assert names["matrix"].shape == (10, 10)
    assert names["matrix"].diagonal().mean() > 0.5
    assert 1.0 < names["reward"].mean() < np.log(10)


def printed(cell: dict[str, Any]) -> str:
    """Return what a cell has printed, as it is stored."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def pictures(cell: dict[str, Any]) -> list[str]:
    """Return the pictures of a cell that are stored, as base64."""
    return [output["data"]["image/png"] for output in cell["outputs"] if output["output_type"] == "display_data"]


def test_the_notebook_is_stored_as_it_was_run() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}, "an error, or a value that a last line leaves"
    assert {output["name"] for cell in code for output in cell["outputs"] if "name" in output} == {"stdout"}
    assert NOTEBOOK.stat().st_size < LARGEST
