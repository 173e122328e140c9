"""How the code is laid out: which module may import which, and how large modules and classes are."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# A module may import modules of the lines above its own only.
LAYERS = (
    ("errors",),
    ("running.names", "running.presets"),
    ("config",),
    ("running.derivation",),
    ("console.streams", "console.packages", "console.arguments", "console.numbers"),
    ("running.atomic_files", "running.signals", "running.columns"),
    ("running.stored_config", "running.tables", "running.csv_files", "running.progress"),
    ("evaluation.chosen_skills",),
    ("utils",),
    ("replay_buffer", "cuda_graphs", "augmentations"),
    ("networks",),
    ("drq",),
    ("diayn",),
    ("envs.renderer", "envs.cells", "envs.tasks"),
    ("envs.pixel_env", "envs.parallel", "envs.floor"),
    ("dmc", "envs.gym_env"),
    ("envs.make",),
    ("running.tensorboard", "running.tracker", "evaluation.figures", "video"),
    ("logger",),
    ("evaluation.play",),
    ("evaluation.skill_report",),
    ("evaluation.skill_pictures",),
    ("evaluation.evaluate_skills",),
    ("running.checkpoint", "running.folder"),
    ("running.run",),
    ("running.build", "running.state"),
    ("running.snapshots",),
    ("running.start", "running.loop"),
    ("evaluation.load",),
    ("evaluation.agent", "evaluation.compose", "evaluation.imitate", "evaluation.tables", "evaluation.refit"),
    ("evaluation.runs", "evaluation.record"),
    ("evaluation.curves",),
    ("evaluation.over_snapshots",),
    ("evaluation.command",),
    ("evaluation.panels",),
    ("evaluation.report_files",),
    ("evaluation.report_measures",),
    ("evaluation.report",),
    ("sweeping.record",),
    ("sweeping.view", "sweeping.ray_cluster", "sweeping.plan"),
    ("sweeping.driver",),
    ("benchmarks.contest",),
    ("benchmarks.parts",),
    ("benchmarks.gpu_setup",),
    ("benchmarks.gpu_numbers", "benchmarks.gpu_runs", "benchmarks.gpu_speed"),
    ("benchmarks.gpu_check",),
    ("train", "evaluate", "plot", "report", "sweep", "benchmark"),
)
COMMANDS = LAYERS[-1]
PACKAGES = tuple(sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))

# These import the standard library and each other only, so that bad input is answered at once.
LIGHT = (
    *("errors", "config", "console.streams", "console.packages", "console.arguments", "console.numbers"),
    *("envs.renderer", "envs.tasks", "evaluation.chosen_skills"),
    *("running.names", "running.presets", "running.derivation", "running.atomic_files", "running.signals"),
    *("running.columns", "running.csv_files", "running.stored_config", "running.tables", "sweeping.record"),
)

# Every import that is not at the top of its module. Commands import what is heavy after parsing.
DEFERRED = {
    "augmentations": {"kornia"},
    "benchmark": {"benchmarks", "dmc", "running.build"},
    "console.arguments": {"argcomplete"},
    "dmc": {"dm_control"},
    "envs.tasks": {"gymnasium"},
    "evaluate": {"evaluation.command"},
    "plot": {"evaluation.panels"},
    "report": {"evaluation.report"},
    "sweep": {"sweeping.driver"},
    "sweeping.plan": {"envs.make", "replay_buffer", "running.snapshots"},
    "train": {"running.loop", "running.start"},
    "video": {"imageio_ffmpeg"},
}
OF_THE_METHOD = ("networks", "augmentations", "drq", "diayn")
NOT_FOR_AGENTS = {
    *("argparse", "config", "csv", "cv2", "dm_control", "envs", "gymnasium", "logger", "mujoco", "tensorboard", "tqdm"),
}
WAITS_FOR_THE_DEVICE = {"item", "cpu", "tolist", "numpy"}
MAY_WAIT = {"act", "assess", "intrinsic_return", "log_likelihood"}  # and no part of an update


def files() -> dict[str, Path]:
    """Return the program's modules by their dotted names."""
    paths = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths if path.name != "__init__.py"
    }


FILES = files()


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def imported(node: ast.AST) -> set[str]:
    """Return the modules that a statement imports; a package's submodule by its full name."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in FILES else str(node.module) for name in names}
    return set()


def imports(module: str) -> set[str]:
    """Return everything that a module imports, anywhere in it."""
    return {name for node in ast.walk(tree(module)) for name in imported(node)}


def imports_when_loaded(module: str) -> set[str]:
    """Return what is imported with the module: not within functions, nor for type checkers only."""
    return {name for node in tree(module).body for name in imported(node)}


def deferred_imports(module: str) -> Iterator[ast.ImportFrom | ast.Import]:
    """Yield the import statements within functions."""
    found = []
    for function in ast.walk(tree(module)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
    yield from dict.fromkeys(found)


def top(name: str) -> str:
    return name.partition(".")[0]


# -- layers ------------------------------------------------------------------------------------------------------------


def test_every_module_has_a_layer() -> None:
    listed = [module for layer in LAYERS for module in layer]
    assert sorted(listed) == sorted(FILES)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downward(module: str) -> None:
    """So there is no cycle either."""
    level = next(number for number, layer in enumerate(LAYERS) if module in layer)
    below = {name for layer in LAYERS[:level] for name in layer}
    assert imports(module) & FILES.keys() <= below


def test_packages_import_nothing() -> None:
    """Importing one module of a package loads no other."""
    for package in PACKAGES:
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), package


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_need_the_standard_library_only(module: str) -> None:
    others = imports(module) - DEFERRED.get(module, set()) - set(LIGHT)
    assert {top(name) for name in others} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("command", ["train", "evaluate", "plot", "report", "sweep", "sweeping.plan"])
def test_commands_are_light_until_they_have_parsed(command: str) -> None:
    others = imports_when_loaded(command) - {*LIGHT, "sweeping.plan"}
    assert {top(name) for name in others} <= set(sys.stdlib_module_names)


def test_deferred_imports_are_few_and_listed() -> None:
    found = {module: list(deferred_imports(module)) for module in FILES}
    names = {
        module: {(node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        for module, nodes in found.items()
        if nodes
    }
    assert names == DEFERRED
    assert sum(map(len, found.values())) <= 20


def test_only_benchmarks_use_the_tests() -> None:
    users = {module for module in FILES if any(top(name) == "tests" for name in imports(module))}
    assert {top(module) for module in users} <= {"benchmarks"}


def test_only_two_modules_know_dm_control() -> None:
    """MUJOCO_GL must be set before it is imported, so nothing else imports it."""
    users = {module for module in FILES if {top(name) for name in imports(module)} & {"dm_control", "mujoco"}}
    assert users <= {"dmc", "envs.renderer"}


# -- the method --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", OF_THE_METHOD)
def test_agents_know_no_environment_and_no_logger(module: str) -> None:
    assert not {top(name) for name in imports(module)} & NOT_FOR_AGENTS


@pytest.mark.parametrize("module", OF_THE_METHOD)
def test_updates_do_not_wait_for_the_device(module: str) -> None:
    """Only acting, evaluating and saving read a tensor's value; an update leaves its metrics on the device."""
    waiting = {
        function.name
        for function in ast.walk(tree(module))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in WAITS_FOR_THE_DEVICE
    }
    assert waiting <= MAY_WAIT


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", FILES)
def test_modules_and_classes_are_small(module: str) -> None:
    assert len(FILES[module].read_text().splitlines()) <= 450
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name != "Config":  # the table of flags: data
            assert (node.end_lineno or 0) - node.lineno + 1 <= 220, node.name


def test_few_modules_at_the_top() -> None:
    # Seventeen, and report.py, a command that users are to find beside train.py.
    assert len(list(ROOT.glob("*.py"))) <= 18, "put it into a package, or raise the limit and say why"


def test_tests_do_not_import_tests() -> None:
    """What they share is in tests/support."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for name in imported(node):
                assert not name.startswith(("test_", "conftest")), f"{path} imports {name}"
                assert top(name) != "tests" or name.startswith("tests.support"), f"{path} imports {name}"


def test_matplotlib_is_imported_in_one_module() -> None:
    """That module first sets a backend: the user's, such as a notebook's, may be missing here."""
    assert [module for module in FILES if "matplotlib" in map(top, imports(module))] == ["evaluation.figures"]


def test_no_test_depends_on_the_speed_of_the_machine() -> None:
    """A limit on the time of a child process is one that only a program that hangs exceeds."""
    limits = {path.name: re.findall(r"\btimeout=(\w+)", path.read_text()) for path in ROOT.glob("tests/**/*.py")}
    assert {name for found in limits.values() for name in found} <= {"PATIENCE", "timeout"}
