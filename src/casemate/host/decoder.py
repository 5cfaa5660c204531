"""iced-x86's decoder of instructions, without the names of the package that nobody here reads.

Nothing can be loaded in a sandbox, so each boot loads this before its first instruction (docs/guide/sandbox.md).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from casemate.submodules import load_submodules

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
else:
    _classes, CodeSize, FormatterSyntax, OpAccess, OpKind, Register = load_submodules(
        "iced_x86", "_iced_x86_py", "CodeSize", "FormatterSyntax", "OpAccess", "OpKind", "Register"
    )
    Decoder, Formatter, Instruction = _classes.Decoder, _classes.Formatter, _classes.Instruction
    InstructionInfoFactory, UsedMemory = _classes.InstructionInfoFactory, _classes.UsedMemory
    MemorySizeExt, RegisterExt = _classes.MemorySizeExt, _classes.RegisterExt

__all__ = [
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
    "is_mov",
]


def is_mov(instruction: Instruction) -> bool:
    """Whether it is a MOV."""
    return bool(instruction.mnemonic == _mov())


@cache
def _mov() -> int:
    """``Mnemonic.MOV``: the module of that name is 2,000 others, and the first decoding takes a millisecond."""
    return Decoder(64, b"\x88\x00").decode().mnemonic
