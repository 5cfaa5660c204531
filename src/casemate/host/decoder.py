"""iced-x86's decoder of instructions, without the names of the package that nobody here reads.

The package is forty modules, most of them of constants, which take two thirds of its loading: 10 ms that each boot in a
sandbox would pay before its first instruction, as nothing can be loaded inside (docs/guide/sandbox.md). So only what is
named here is loaded; who imports ``iced_x86`` itself gets the whole package, before or after.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iced_x86 import (
        CodeSize,
        Decoder,
        Formatter,
        FormatterSyntax,
        Instruction,
        InstructionInfoFactory,
        MemorySizeExt,
        OpAccess,
        OpKind,
        Register,
        RegisterExt,
        UsedMemory,
    )

__all__ = [
    "MOV",
    "CodeSize",
    "Decoder",
    "Formatter",
    "FormatterSyntax",
    "Instruction",
    "InstructionInfoFactory",
    "MemorySizeExt",
    "OpAccess",
    "OpKind",
    "Register",
    "RegisterExt",
    "UsedMemory",
]

_PACKAGE = "iced_x86"
_CLASSES = f"{_PACKAGE}._iced_x86_py"
_CONSTANTS = ("CodeSize", "FormatterSyntax", "OpAccess", "OpKind", "Register")


def _load() -> dict[str, Any]:
    is_whole = _PACKAGE in sys.modules
    spec = PathFinder.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    if not is_whole:
        # A package whose code has not run finds its modules all the same.
        package = ModuleType(_PACKAGE)
        package.__path__ = spec.submodule_search_locations
        sys.modules[_PACKAGE] = package
    try:
        names = dict(vars(importlib.import_module(_CLASSES)))
        return names | {name: importlib.import_module(f"{_PACKAGE}.{name}") for name in _CONSTANTS}
    finally:
        if not is_whole:
            del sys.modules[_PACKAGE]


if not TYPE_CHECKING:
    _found = _load()
    globals().update({name: _found[name] for name in __all__ if name != "MOV"})

MOV = Decoder(64, b"\x88\x00").decode().mnemonic
"""``Mnemonic.MOV``; the module of that name is 2,000 others."""
