"""Set-up: pinned requirements, conda's list of them, what the code imports, and `make` if something is missing."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from train import parse_args

SUPPORTED_PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
REQUIREMENTS = ("requirements.txt", "requirements-sweep.txt", "requirements-track.txt", "requirements-dev.txt")
OF_SWEEPS = ("sweep.py", "sweeping")  # may need requirements-sweep.txt too
NOT_NEEDED = {"labmaze"}  # dm_control requires it, but its suite never imports it
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|work|opt|mnt|srv|Users)/\w")
PACKAGE_HOST = re.compile(r"\b(?:pypi|pythonhosted|debian|ubuntu|npmjs|anaconda|download\.pytorch)\.(?:org|com)\b")

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def requirements(name: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def pins(requirements: list[Requirement], python: str) -> dict[str, str]:
    """Return the version specifier of each name for one version of Python. A name may be listed once only."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    valid = [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]
    names = [canonicalize_name(r.name) for r in valid]
    assert len(set(names)) == len(names), f"listed twice for Python {python}: {sorted(names)}"
    return {name: str(r.specifier) for name, r in zip(names, valid, strict=True)}


def program_files() -> list[Path]:
    """Return the modules at the top level and in the packages."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    return sorted(path for folder in (ROOT, *packages) for path in folder.glob("*.py"))


def third_party_imports(path: Path) -> Iterator[str]:
    """Yield the top-level names that a file imports from outside the standard library and this repository."""
    own = {"tests", *(file.stem for file in ROOT.glob("*.py")), *(file.parent.name for file in program_files())}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        yield from {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# -- the lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned(name: str) -> None:
    for requirement in requirements(name):
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{name}: {requirement} is not pinned with =="


@pytest.mark.parametrize("python", SUPPORTED_PYTHONS)
def test_every_python_gets_the_same_packages(python: str) -> None:
    for name in REQUIREMENTS:
        listed = requirements(name)
        assert set(pins(listed, python)) == {canonicalize_name(r.name) for r in listed}


def test_conda_lists_the_pins_of_requirements() -> None:
    text = (ROOT / "conda_env.yml").read_text()
    assert re.search(r"^name: drq_diayn$", text, re.MULTILINE)
    python = re.search(r"^  - python=([\d.]+)$", text, re.MULTILINE)
    assert python is not None
    assert python[1] in SUPPORTED_PYTHONS
    of_pip = text.partition("  - pip:\n")[2].splitlines()
    listed = [Requirement(line.removeprefix("      - ")) for line in of_pip]
    assert "opencv-python" in [r.name for r in listed]
    assert pins(listed, python[1]) == pins(requirements("requirements.txt"), python[1])


def test_every_import_is_required() -> None:
    always, in_sweeps = (
        {canonicalize_name(r.name) for r in requirements(name)}
        for name in ("requirements.txt", "requirements-sweep.txt")
    )
    distributions = metadata.packages_distributions()
    assert len(program_files()) > 40
    for path in program_files():
        place = path.relative_to(ROOT)
        required = always | in_sweeps if place.parts[0] in OF_SWEEPS else always
        for module in third_party_imports(path):
            found = {canonicalize_name(name) for name in distributions.get(module, ())}
            assert found & required, f"{place} imports {module}, which is in no list of requirements"


def test_the_dependencies_of_dm_control_are_listed() -> None:
    """`make` installs dm_control without its dependencies."""
    needs = [Requirement(line) for line in metadata.requires("dm_control") or ()]
    wanted = {canonicalize_name(r.name) for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert wanted - NOT_NEEDED <= {canonicalize_name(r.name) for r in requirements("requirements.txt")}


def test_no_file_names_a_machine_or_a_package_host() -> None:
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            for pattern in (MACHINE_PATH, PACKAGE_HOST):
                found = pattern.search(line)
                assert found is None, f"{path.relative_to(ROOT)}:{number} has {found and found[0]!r}"


# -- make ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make setup` reads, and a folder `bin` that comes first on its PATH."""
    for name in ("Makefile", *REQUIREMENTS):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON")}
    environment = {**kept, "PATH": f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    return subprocess.run(["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True)


def training_command(checkout: Path, arguments: str) -> list[str]:
    """Return the flags that `make train ARGS="<arguments>"` gives to train.py."""
    shown = make(checkout, "-n", "train", f"ARGS={arguments}").stdout.splitlines()
    [command] = [shlex.split(line) for line in shown if "train.py" in line]
    return command[command.index("train.py") + 1 :]


@needs_make
def test_make_train_is_a_small_run_with_skills_and_evaluations(checkout: Path) -> None:
    flags = training_command(checkout, "")
    config = parse_args(flags)
    assert config.env == "cartpole_swingup"
    assert config.num_skills > 1
    assert config.eval_frequency > 0
    assert config.save_video
    assert "--device" not in flags  # CUDA if there is a device


@needs_make
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--env walker_walk --batch_size 7", {"env": "walker_walk", "batch_size": 7, "action_repeat": 4}),
        ("--task=walker_run", {"env": "walker_run", "action_repeat": 4}),
        ("--num_train_frames 800", {"num_train_frames": 800, "num_train_steps": 100}),
        ("--benchmark planet --env walker_walk", {"batch_size": 512, "action_repeat": 2, "image_size": 84}),
        ("--preset=planet+skills", {"batch_size": 512, "action_repeat": 8, "preset": "planet+skills"}),
        ("--preset skills --lr_discriminator 0.5", {"batch_size": 16, "lr_discriminator": 0.5, "preset": "skills"}),
        ("--image_size 64 --hidden_dim 512", {"image_size": 64, "hidden_dim": 512, "batch_size": 16}),
        ("--num_skills 0", {"num_skills": 0}),
        ("--benchmark skills --num_skills=3", {"batch_size": 16, "num_skills": 3, "preset": "skills"}),
    ],
)
def test_flags_of_the_user_win(checkout: Path, arguments: str, expected: dict[str, object]) -> None:
    config = parse_args(training_command(checkout, arguments))
    assert {name: getattr(config, name) for name in expected} == expected


@needs_make
@pytest.mark.parametrize(
    "arguments", ["--resume runs/a", "--finetune_from=runs/a --lr 1e-4", "--config runs/a/config.json"]
)
def test_flags_that_name_another_run_stand_alone(checkout: Path, arguments: str) -> None:
    assert training_command(checkout, arguments) == shlex.split(arguments)


@needs_make
@pytest.mark.parametrize(
    ("python", "message"),
    [
        (None, "there is no some-python"),
        ("echo Python 3.9.2; exit 1", "Python 3.10 to 3.14 is needed, and some-python is Python 3.9.2"),
        ('case "$2" in *ensurepip*) exit 1; esac', "apt-get install -y --no-install-recommends some-python-venv"),
    ],
)
def test_a_python_that_cannot_be_used(checkout: Path, python: str | None, message: str) -> None:
    script(checkout / "bin" / "id", "echo 1000")
    if python is not None:
        script(checkout / "bin" / "some-python", python)
    result = make(checkout, "venv", "PYTHON=some-python")
    assert result.returncode != 0
    assert message in result.stderr
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_failed_install_is_repeated(checkout: Path) -> None:
    venv_of = 'if [ "$2" = venv ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi'
    script(checkout / "bin" / "some-python", f'echo "$@" >> calls; {venv_of}; [ "$2" != pip ] || [ -e works ]')
    calls = checkout / "calls"
    assert make(checkout, "venv", "PYTHON=some-python").returncode != 0
    (checkout / "works").touch()
    calls.unlink()
    assert make(checkout, "venv", "PYTHON=some-python").returncode == 0
    assert "-m venv --clear .venv" in calls.read_text()
    assert re.search(r"-m pip install --no-deps dm_control==\S+$", calls.read_text(), re.MULTILINE)
    calls.unlink()
    assert make(checkout, "venv", "PYTHON=some-python").returncode == 0
    assert not calls.exists()  # nothing to do
    stamp = checkout / ".venv" / "installed"
    os.utime(checkout / "requirements.txt", (stamp.stat().st_mtime + 10,) * 2)
    assert make(checkout, "venv", "PYTHON=some-python").returncode == 0
    assert "-m venv --clear .venv" in calls.read_text()


@needs_make
@pytest.mark.parametrize("lacking", ["cv2", "dmc.py"])
@pytest.mark.parametrize("root", [True, False])
def test_a_missing_library_is_installed_by_root_and_named_for_others(checkout: Path, root: bool, lacking: str) -> None:
    script(checkout / ".venv" / "bin" / "python", f'case "$*" in *{lacking}*) [ -e installed ];; esac')
    (checkout / ".venv" / "installed").touch()
    script(checkout / "bin" / "id", f"echo {0 if root else 1000}")
    script(checkout / "bin" / "apt-get", 'echo "apt-get $*" >> calls; [ "$1" = update ] || touch installed')
    result = make(checkout, "setup")
    if root:
        assert result.returncode == 0, result.stderr
        update, install = (checkout / "calls").read_text().splitlines()
        assert update == "apt-get update"
        assert install.startswith("apt-get install -y ")
        assert "libegl1" in install
    else:
        assert result.returncode != 0
        assert "sudo apt-get update && sudo apt-get install -y " in result.stderr
        assert not (checkout / "calls").exists()
