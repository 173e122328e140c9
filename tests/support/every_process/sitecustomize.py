"""Let the suite's tasks draw shadows from maps of 256 instead of 2048 pixels, which takes half the time with llvmpipe.

Python imports this module at the start of every process of the tests, as PYTHONPATH has its folder. It must not import
dm_control, so it waits until that is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class SmallShadows:
    """Finds the module by which dm_control reads its files, and changes how it reads one of them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "dm_control.utils.io" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            read = module.GetResource
            module.GetResource = lambda *arguments, **more: shrink(read(*arguments, **more))  # type: ignore[attr-defined]

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def shrink(data: bytes | str) -> bytes | str:
    """Return the content of a file with a smaller map of shadows, if it has one."""
    return data.replace(b'shadowsize="2048"', b'shadowsize="256"') if isinstance(data, bytes) else data


sys.meta_path.insert(0, SmallShadows)
