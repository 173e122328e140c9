"""Missing packages and libraries are reported as bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from console.packages import NEEDED, check_packages, import_errors_reported
from errors import UserError
from tests.support.paths import ROOT


def test_every_package_is_installed_here() -> None:
    check_packages()


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_package_is_named_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.packages.find_spec", lambda asked: None if asked == name else object())
    with pytest.raises(UserError, match=rf"this Python lacks {name}; use .*pip install -r requirements\.txt"):
        check_packages()


def test_checking_imports_nothing() -> None:
    script = f"import sys\nfrom console.packages import *\ncheck_packages()\nprint(set({NEEDED}) & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "set()\n"), child.stderr


def test_a_package_that_another_one_needs() -> None:
    with pytest.raises(UserError, match="this Python lacks nowhere_to_be_found; use"), import_errors_reported("x"):
        import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401


def test_a_library_that_a_package_needs() -> None:
    message = r"a package cannot be loaded \(libGL\.so\.1: cannot open .*\); try: apt-get install libgl1"
    with pytest.raises(UserError, match=message), import_errors_reported("apt-get install libgl1"):
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")


def test_other_errors_are_raised() -> None:
    with pytest.raises(RuntimeError), import_errors_reported("x"):
        raise RuntimeError


@pytest.mark.parametrize("program", ["train.py", "evaluate.py", "plot.py", "report.py", "benchmark.py"])
def test_a_python_without_the_packages(program: str, tmp_path: Path) -> None:
    """One line and exit code 2: the standard library alone is enough to say so."""
    arguments = {"train.py": ["--work_dir", str(tmp_path / "runs")], "benchmark.py": []}.get(program, [str(tmp_path)])
    command = [sys.executable, "-S", "-E", str(ROOT / program), *arguments]
    child = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert child.returncode == 2, child.stderr
    assert child.stderr.count("\n") == 1
    lacking = "numpy" if program in ("plot.py", "report.py") else "torch"
    assert child.stderr.startswith(f"{program}: error: this Python lacks {lacking}; use ")
    assert list(tmp_path.iterdir()) == []
