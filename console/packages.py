"""Report missing packages and libraries as bad input, before and while the heavy modules are imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from errors import UserError

NEEDED = ("torch", "numpy", "gymnasium", "mujoco", "dm_control", "cv2", "tensorboard")
INSTALL = "`make setup` and .venv/bin/python, or pip install -r requirements.txt"


def check_packages(names: Sequence[str] = NEEDED, remedy: str = f"use {INSTALL}") -> None:
    """Raise UserError if a package is not installed. Imports nothing."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"this Python lacks {name}; {remedy}")


@contextmanager
def import_errors_reported(libraries: str) -> Iterator[None]:
    """Within the block, turn an ImportError into a UserError.

    Args:
        libraries: how to install the system libraries that a package may need.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"this Python lacks {error.name}; use {INSTALL}") from error
    except ImportError as error:  # for example OpenCV, whose wheel leaves out libGL and GLib
        raise UserError(f"a package cannot be loaded ({error}); try: {libraries}") from error
