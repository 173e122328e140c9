"""Start the programs by forking a process that has imported their packages, which takes longer than what most tests do.

What is forked is a process like any other: own session, files, environment and signals, and Python ends it as usual.
Only the imports of other packages have happened before, and the search for a renderer that works. The hash seed is the
server's: a test of the equality of runs starts one as a `ColdChild` if it is to see that nothing depends on the seed.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from envs import renderer
from envs.renderer import RendererInfo
from errors import RenderingError
from tests.support.paths import ROOT

# What the programs import, but for dm_control and mujoco: they read MUJOCO_GL as they are imported.
PACKAGES = (
    "cv2 gymnasium imageio_ffmpeg kornia matplotlib.figure matplotlib.backends.backend_agg pandas psutil scipy.stats "
    "torch torch._dynamo torch.utils.tensorboard tqdm"
)


class ForkServer:
    """The process that forks. It ends with the one that has made it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        atexit.register(self._process.communicate)

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(self, words: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> ForkedProcess:
        """Start the Python program that the first word names. Its output is added to two files; it has no input."""
        stdout.touch()
        stderr.touch()
        streams = [os.devnull, str(stdout), str(stderr)]
        pid = self.ask(words=words, environment=environment, streams=streams, folder=os.getcwd())
        return ForkedProcess(self, pid)


@functools.cache
def fork_server() -> ForkServer:
    """Return the only server of this process."""
    return ForkServer()


class ForkedProcess:
    """A program that the server has forked: the part of subprocess.Popen that the tests use."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self._wait(os.WNOHANG)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def wait_until_stopped(self) -> None:
        """Wait for SIGSTOP to act, or for the end."""
        self._wait(os.WUNTRACED)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until then the process is at least a zombie, and the number is not used again
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, options: int) -> None:
        pid, status = self._server.ask(pid=self.pid, options=options)
        if pid and not os.WIFSTOPPED(status):
            self.returncode = os.waitstatus_to_exitcode(status)


def _serve() -> dict[str, Any]:
    """Answer requests. Return only in a forked process, with the request for it."""
    while line := sys.stdin.readline():
        request: dict[str, Any] = json.loads(line)
        answer: Any
        if "pid" in request:
            answer = os.waitpid(request["pid"], request["options"])
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer))
    os._exit(0)


def _find_renderers() -> None:
    """Try the renderers once. Forked processes know the result, unless their variables for renderers are others."""

    def variables() -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in renderer.VARIABLES if name != "MUJOCO_GL"}

    def probe_or_recall(backend: str) -> RendererInfo:
        return (recall if variables() == known else probe)(backend)

    known, probe = variables(), renderer.probe
    recall = functools.cache(probe)
    renderer.probe = probe_or_recall
    before = os.environ.get("MUJOCO_GL")
    with suppress(RenderingError):
        renderer.choose_renderer()
    if before is None:
        os.environ.pop("MUJOCO_GL", None)


def _become(words: list[str], environment: dict[str, str], streams: list[str], folder: str) -> None:
    """Give this process what a new one would have."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(streams):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.argv = words


if __name__ == "__main__":
    for package in PACKAGES.split():
        __import__(package)
    _find_renderers()
    gc.freeze()  # or each collection in a forked process copies all this memory
    assert psutil.Process().num_threads() == 1, "threads do not survive a fork"
    _become(**_serve())
    runpy.run_path(sys.argv[0], run_name="__main__")
