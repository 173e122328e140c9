"""The choice of the OpenGL renderer, made through the environment variable MUJOCO_GL.

dm_control and MuJoCo bind the renderer that MUJOCO_GL names when they are first imported. A process therefore calls
`choose_renderer` or `do_without_renderer` before it makes an environment; child processes inherit the choice.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

from errors import RenderingError

BACKENDS = ("egl", "osmesa")  # tried in this order if MUJOCO_GL is unset
SOFTWARE_RENDERERS = re.compile("llvmpipe|softpipe|swrast|osmesa", re.IGNORECASE)
INSTALL_HINT = "apt-get install libegl1 libgl1 libgl1-mesa-dri libglib2.0-0, or a GPU driver with EGL"
PROBE_TIMEOUT = 120  # seconds
# What users set and a renderer may fail for.
VARIABLES = (
    *("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "EGL_DEVICE_ID", "EGL_PLATFORM"),
    *("__EGL_VENDOR_LIBRARY_FILENAMES", "__EGL_VENDOR_LIBRARY_DIRS", "MESA_LOADER_DRIVER_OVERRIDE", "GALLIUM_DRIVER"),
)

# Draws one frame in a separate process, because a broken OpenGL may abort the process that uses it. The scene is a box
# in front of a dark background: a working renderer cannot give a picture of one color.
PROBE = """
import json, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/>'
    '<geom type="box" size=".2 .2 .2" rgba="1 0 0 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    contrast = int(renderer.render().max()) - int(renderer.render().min())
    from OpenGL import GL
    name = GL.glGetString(GL.GL_RENDERER)
print(json.dumps({"name": name.decode() if name else "unknown", "contrast": contrast}))
"""


class RendererInfo(NamedTuple):
    """A renderer that has drawn a picture on this machine."""

    backend: str  # value of MUJOCO_GL
    name: str  # OpenGL's name of the device, such as "llvmpipe (LLVM 15.0.6, 256 bits)"

    @property
    def is_software(self) -> bool:
        return bool(SOFTWARE_RENDERERS.search(self.name))


def choose_renderer() -> RendererInfo:
    """Find a backend that really renders, and set MUJOCO_GL to it.

    If the user has set MUJOCO_GL, only that backend is tried; otherwise EGL, then OSMesa. Raises RenderingError if
    none works.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    failures = []
    for backend in (wanted,) if wanted else BACKENDS:
        try:
            info = probe(backend)
            os.environ["MUJOCO_GL"] = backend
            return info
        except RenderingError as error:
            failures.append(str(error))
    users = [f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)]
    problem = f"no picture can be drawn with {' '.join(users)}" if users else "no OpenGL renderer works"
    hint = f"unset {'these variables' if len(users) > 1 else 'it'}, or {INSTALL_HINT}" if users else INSTALL_HINT
    raise RenderingError(f"{problem} [{'; '.join(failures)}]; try: {hint}")


def probe(backend: str) -> RendererInfo:
    """Render one frame with `backend` in a child process. Raises RenderingError with a message of one line."""
    command, environment = [sys.executable, "-c", PROBE], {**os.environ, "MUJOCO_GL": backend}
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RenderingError(f"{backend}: no picture within {PROBE_TIMEOUT} s") from None
    output, errors = child.stdout.strip().splitlines(), child.stderr.strip().splitlines()
    if child.returncode != 0 or not output:
        reason = errors[-1].strip() if errors else f"the test process ended with code {child.returncode}"
        raise RenderingError(f"{backend}: {reason}")
    report = json.loads(output[-1])
    if not report["contrast"]:
        raise RenderingError(f"{backend}: the picture has only one color ({report['name']})")
    return RendererInfo(backend, report["name"])


def do_without_renderer() -> None:
    """Allow this process to make environments but not to draw. Call it before the first environment is made."""
    os.environ["MUJOCO_GL"] = "disable"


def may_draw() -> bool:
    """Return False if `do_without_renderer` has been called in this process or in a parent process."""
    return os.environ.get("MUJOCO_GL") != "disable"
