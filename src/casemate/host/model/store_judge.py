"""What KVM makes of a store that its slot does not take, by the instruction (Linux arch/x86/kvm/emulate.c, mmu, x86.c).

The engine executes every instruction alike. KVM leaves most to the processor and executes two kinds by itself, wherever
their operands lie: those that read a port, and those that load what no slot backs. Their stores become MMIO. Others it
executes only behind a read-only slot, and some it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from unicorn import x86_const

from casemate.abi.kvm.structs import Regs, Sregs
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.fate import Fate
from casemate.host.model.physical_memory import PhysicalMemory

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REX = range(0x40, 0x50)
INPUT_OPCODES = frozenset(b"\x6c\x6d")
"""INS."""
_X87 = range(0xD8, 0xE0)
_FNSTCW, _FNSTSW = (0xD9, 7), (0xDD, 7)
"""Opcode and operation of the two x87 stores that KVM's emulator knows."""
_NAMES = [name for name, *_ in Regs._fields_]
_NUMBERS = tuple(getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in _NAMES)


class Opcode(NamedTuple):
    """The first bytes of an instruction, apart."""

    prefixes: frozenset[int]
    rex: int
    opcode: int
    operation: int
    """Bits 5 to 3 of the byte behind the opcode."""
    length: int
    """Up to and with the opcode."""


def split(code: bytes) -> Opcode:
    """Take apart an instruction that stores to memory. INC and DEC of a register, which look like REX, do not."""
    at = next((at for at, byte in enumerate(code) if byte not in _LEGACY_PREFIXES), len(code))
    prefixes = frozenset(code[:at])
    rex = code[at] if at < len(code) and code[at] in _REX else 0
    at += 1 if rex else 0
    opcode, following = (*code[at : at + 2], 0, 0)[:2]
    return Opcode(prefixes, rex, opcode, following >> 3 & 7, at + 1)


class StoreJudge:
    """Says for the instruction that the engine is at what KVM would do; plain guests only.

    Of an encrypted guest KVM knows the instruction by the processor's decode assists alone, which are not modelled.
    """

    def __init__(self, engine: Engine, memory: PhysicalMemory) -> None:
        self._engine = engine
        self._memory = memory

    def behind_readonly_slot(self) -> Fate:
        """The fate of a store to a read-only slot."""
        found = self._opcode()
        if found.opcode in INPUT_OPCODES:
            return Fate.INPUT
        if found.opcode in _X87 and (found.opcode, found.operation) not in (_FNSTCW, _FNSTSW):
            return Fate.UNDEFINED if self._engine.privilege() else Fate.ERROR
        return Fate.MMIO

    def behind_readonly_mapping(self) -> Fate:
        """The fate of a store to a slot whose mapping is read-only."""
        if self._opcode().opcode in INPUT_OPCODES:
            return Fate.INPUT
        mmio = any(self._is_mmio(gva) for gva in self._loads())
        return Fate.MMIO if mmio else Fate.FAULT

    def _opcode(self) -> Opcode:
        return split(self._engine.code_here())

    def _loads(self) -> Iterator[int]:
        from casemate.host.store_target import load_addresses

        engine, sregs = self._engine, Sregs()
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            getattr(sregs, name).base = engine.segment_base(name)
        regs = Regs(*engine.read_many(_NUMBERS))
        return load_addresses(engine.code_here(), engine.code_bits(), regs, sregs)

    def _is_mmio(self, gva: int) -> bool:
        gpa = self._engine.translate(gva)
        return gpa is not None and self._memory.slot_at(gpa) is None
