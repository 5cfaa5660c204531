"""Modules of an installed package without what the package itself loads when it is imported (Python's import system).

Two libraries that each boot needs load dozens of modules that no boot does: iced-x86 the names of all instructions,
Unicorn six other processors and Python's own resource files. That would be a third of the start of a short run.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from types import ModuleType


def package_folder(package: str) -> str:
    """Where it is installed. Raises ModuleNotFoundError."""
    spec = PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return next(iter(spec.submodule_search_locations))


def load_submodules(package: str, *names: str) -> list[ModuleType]:
    """The modules ``names`` of ``package``, whose own code does not run; who imports it gets it whole all the same.

    Raises ModuleNotFoundError.
    """
    is_loaded = package in sys.modules
    if not is_loaded:
        # A package whose code has not run finds its modules all the same.
        bare = ModuleType(package)
        bare.__path__ = [package_folder(package)]
        sys.modules[package] = bare
    try:
        return [importlib.import_module(f"{package}.{name}") for name in names]
    finally:
        if not is_loaded:
            del sys.modules[package]
