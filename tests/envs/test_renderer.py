"""The choice of the renderer and the process that probes it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envs import renderer as renderer_module
from envs.renderer import PROBE, RendererInfo, choose_renderer, do_without_renderer, may_draw, probe
from errors import RenderingError
from tests.support.paths import ROOT


def reporting(contrast: int) -> str:
    """Return the source of a probe that draws nothing and reports the given contrast."""
    return f"import json; print(json.dumps({{'name': 'Some GPU', 'contrast': {contrast}}}))"


def fake_probe(working: tuple[str, ...], tried: list[str]) -> Callable[[str], RendererInfo]:
    """Return a probe for which only the given backends work. It adds to `tried` what it is called with."""

    def probe(backend: str) -> RendererInfo:
        tried.append(backend)
        if backend not in working:
            raise RenderingError(f"{backend}: broken here")
        return RendererInfo(backend, f"{backend} GPU")

    return probe


@pytest.mark.parametrize(
    ("users", "working", "chosen", "tried"),
    [
        pytest.param(None, ("egl", "osmesa"), "egl", ["egl"], id="unset: EGL first"),
        pytest.param("", ("egl", "osmesa"), "egl", ["egl"], id="empty: like unset"),
        pytest.param(None, ("osmesa",), "osmesa", ["egl", "osmesa"], id="unset: OSMesa if EGL fails"),
        pytest.param("osmesa", ("egl", "osmesa"), "osmesa", ["osmesa"], id="set by the user"),
        pytest.param("glfw", ("egl", "glfw"), "glfw", ["glfw"], id="set to a backend that is not tried otherwise"),
        pytest.param("EGL", ("egl", "osmesa"), "egl", ["egl"], id="set in capitals"),
    ],
)
def test_the_users_choice_comes_first_then_egl_then_osmesa(
    users: str | None, working: tuple[str, ...], chosen: str, tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", users or "")
    if users is None:
        monkeypatch.delenv("MUJOCO_GL")
    seen: list[str] = []
    monkeypatch.setattr(renderer_module, "probe", fake_probe(working, seen))
    assert choose_renderer() == RendererInfo(chosen, f"{chosen} GPU")
    assert os.environ["MUJOCO_GL"] == chosen
    assert seen == tried


def test_error_names_all_backends_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(renderer_module, "probe", fake_probe((), []))
    with pytest.raises(RenderingError) as caught:
        choose_renderer()
    message = str(caught.value)
    assert "egl: broken here" in message
    assert "osmesa: broken here" in message
    assert "apt-get install" in message
    assert "\n" not in message
    assert "MUJOCO_GL" not in os.environ


def test_a_broken_choice_of_the_user_is_reported_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real probe."""
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)  # MuJoCo may have set it in this process
    with pytest.raises(RenderingError, match=r"MUJOCO_GL.*nonsense") as caught:
        choose_renderer()
    assert "\n" not in str(caught.value)
    assert "with MUJOCO_GL=nonsense [" in str(caught.value)
    assert "; try: unset it, or apt-get install" in str(caught.value)
    assert os.environ["MUJOCO_GL"] == "nonsense"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PYOPENGL_PLATFORM", "osmesa"), ("PYOPENGL_PLATFORM", "nonsense"), ("MUJOCO_EGL_DEVICE_ID", "99")],
)
def test_the_users_other_variables_are_named(variable: str, value: str, renderer: RendererInfo) -> None:
    """With the real probe, in a separate process: MuJoCo sets PYOPENGL_PLATFORM itself when it is imported."""
    if renderer.backend != "egl":
        pytest.skip("the variables concern EGL")
    unset = {name: value for name, value in os.environ.items() if name not in renderer_module.VARIABLES}
    command = [sys.executable, str(ROOT / "dmc.py")]
    child = subprocess.run(command, env={**unset, variable: value}, capture_output=True, text=True)
    assert child.returncode == 2
    assert child.stderr.count("\n") == 1
    assert f"no picture can be drawn with {variable}={value} [" in child.stderr
    assert "; try: unset it, or apt-get install" in child.stderr


def test_a_process_without_a_renderer_may_not_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert may_draw()
    do_without_renderer()
    assert not may_draw()


# -- the probe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(reporting(contrast=0), r"only one color \(Some GPU\)", id="reports a constant picture"),
        pytest.param(PROBE.replace("1 0 0 1", "0 0 0 0"), "only one color", id="draws a constant picture"),
        pytest.param("import os; os.abort()", "ended with code -6", id="aborts"),
        pytest.param("print('a line'); raise OSError('no GPU')", "OSError: no GPU$", id="raises"),
        pytest.param("", "ended with code 0", id="prints nothing"),
    ],
)
def test_failing_probe(source: str, reason: str, renderer: RendererInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source != PROBE
    monkeypatch.setattr(renderer_module, "PROBE", source)
    with pytest.raises(RenderingError, match=f"^{renderer.backend}: .*{reason}") as caught:
        probe(renderer.backend)
    assert "\n" not in str(caught.value)


def test_probe_succeeds_on_a_picture_with_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output of libraries before the report is ignored."""
    monkeypatch.setattr(renderer_module, "PROBE", "print('a library greets')\n" + reporting(contrast=1))
    assert probe("egl") == RendererInfo("egl", "Some GPU")


def test_probe_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RenderingError, match="egl: no picture within 120 s"):
        probe("egl")


@pytest.mark.parametrize(
    ("name", "software"),
    [
        ("llvmpipe (LLVM 15.0.6, 256 bits)", True),
        ("softpipe", True),
        ("swrast", True),
        ("Mesa OSMesa", True),
        ("NVIDIA H100 80GB HBM3/PCIe/SSE2", False),
    ],
)
def test_software_renderers_are_recognized_by_name(name: str, software: bool) -> None:
    assert RendererInfo("egl", name).is_software is software


# -- who may touch the renderer ----------------------------------------------------------------------------------------


def program_files() -> list[Path]:
    """Return every module at the top level and in the packages beside it."""
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    return [*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]


def imported_packages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]


def test_dm_control_and_its_renderer_are_used_in_one_module_each() -> None:
    """An import of dm_control elsewhere, before `choose_renderer`, would bind the wrong renderer."""
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in program_files()}
    importing = {name for name, tree in trees.items() if {"dm_control", "mujoco"} & set(imported_packages(tree))}
    assert importing == {"dmc.py"}
    setting = {
        name
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "MUJOCO_GL"
    }
    assert setting == {"envs/renderer.py"}


@pytest.mark.parametrize("module", ["dmc", "envs.make", "envs.gym_env", "envs.parallel", "envs.renderer"])
def test_importing_a_module_binds_no_renderer(module: str) -> None:
    """Modules may be imported before the renderer is chosen."""
    source = f"import sys, {module}; sys.exit('mujoco' in sys.modules)"
    environment = {**os.environ, "MUJOCO_GL": "nonsense"}
    child = subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
