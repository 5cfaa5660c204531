"""The modelled CPU without the fast path: instructions that need help are found in each newly translated block.

Public Unicorn API only (unicorn/unicorn.h): an edge hook sees every new block before it runs, and code hooks at the
instructions found there answer RDMSR and WRMSR, speed up REP MOVS and STOS, and are where the guest may be stopped
for an interrupt. Instructions are recognised by their bytes and confirmed by a decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unicorn import unicorn_const

from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu import rep
from casemate.host.model.cpu.engine import EXECUTE, Engine
from casemate.host.model.cpu.unicorn_api import CodeHook, EdgeHook
from casemate.host.model.cpu.virtual_tlb import VirtualTlb
from casemate.host.model.physical_memory import PhysicalMemory

_INVLPG_OPERANDS = [mod << 6 | 7 << 3 | rm for mod in range(3) for rm in range(8)]
"""The engine drops one small page only of a large one that we entered."""


class InstructionSites:
    """All instructions of one engine that are watched, by address; ``interrupt_due`` says whether to stop there."""

    def __init__(
        self, engine: Engine, memory: PhysicalMemory, tlb: VirtualTlb, interrupt_due: Callable[[], bool]
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._tlb = tlb
        self._interrupt_due = interrupt_due
        self._known: set[int] = set()
        self._pending: list[tuple[int, Callable[[], None], int, int]] = []
        # Opcode, bytes from it to the hook, what the hook does.
        self._actions: list[tuple[bytes, int, Callable[[], None]]] = [
            (b"\x0f\x32", 2, self._answer_rdmsr),
            (b"\x0f\x30", 0, self._take_wrmsr),
            (b"\xf3\x90", 0, self._maybe_stop),  # PAUSE
            (b"\xec", 0, self._maybe_stop),  # IN AL, DX
            (b"\xed", 0, self._maybe_stop),  # IN EAX, DX
            *((b"\x0f\x01" + bytes([operand]), 0, tlb.flush) for operand in _INVLPG_OPERANDS),
            *((opcode, 0, self._string_action(kind)) for opcode, kind in rep.INSTRUCTIONS.items()),
        ]
        engine.hook(unicorn_const.UC_HOOK_EDGE_GENERATED, EdgeHook(self._on_block))

    def install_pending(self) -> bool:
        """Place the hooks that the engine was stopped for; False if there were none."""
        if not self._pending:
            return False
        for address, action, block, size in self._pending:
            hook = CodeHook(lambda _uc, _address, _size, _user, act=action: act())
            self._engine.hook(unicorn_const.UC_HOOK_CODE, hook, begin=address, end=address)
            self._engine.drop_translation(block, block + size)
        self._pending.clear()
        return True

    def _on_block(self, _uc: int, block: Any, _previous: Any, _user: int | None) -> None:
        pc, size = block.contents.pc, block.contents.size
        code = self._engine.read_virtual(pc, size)
        if not code:
            return
        if not self._tlb.in_use:
            first = self._engine.translate(pc, EXECUTE)
            if first is not None:
                self._tlb.note_code(first, first + size - 1)
        found = [
            (pc + at + offset, action)
            for opcode, offset, action in self._actions
            for at in self._new_sites(code, pc, opcode)
        ]
        if found:
            self._pending += [(address, action, pc, size) for address, action in found]
            self._engine.stop()

    def _new_sites(self, code: bytes, pc: int, opcode: bytes) -> list[int]:
        found = []
        at = code.find(opcode)
        while at >= 0:
            if pc + at not in self._known and starts_instruction(code, at):
                self._known.add(pc + at)
                found.append(at)
            at = code.find(opcode, at + 1)
        return found

    def _answer_rdmsr(self) -> None:
        value = self._engine.msrs.read(self._engine.read(registers.RCX) & 0xFFFFFFFF)
        if value is not None:
            self._engine.write(registers.RAX, value & 0xFFFFFFFF)
            self._engine.write(registers.RDX, value >> 32)

    def _take_wrmsr(self) -> None:
        index, low, high = self._engine.read_many((registers.RCX, registers.RAX, registers.RDX))
        self._engine.msrs.write(index & 0xFFFFFFFF, (high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF)

    def _maybe_stop(self) -> None:
        if self._interrupt_due():
            self._engine.stop()

    def _string_action(self, kind: rep.StringInstruction) -> Callable[[], None]:
        def act() -> None:
            if self._interrupt_due():
                self._engine.stop()
            else:
                rep.run(self._engine, self._memory, kind, self._written)

        return act

    def _written(self, gva: int, gpa: int, size: int) -> None:
        if self._tlb.holds_code(gpa, size):
            self._engine.drop_translation(gva, gva + size)


def starts_instruction(code: bytes, at: int) -> bool:
    """Whether an instruction of the block ``code`` starts at ``at``."""
    from iced_x86 import Decoder

    # Blocks are decoded from their start, so boundaries are those the engine sees. All three operand sizes agree
    # on where the watched instructions begin in 64-bit and 32-bit code that compilers emit; try both.
    return any(at in {instruction.ip for instruction in Decoder(bits, code, ip=0)} for bits in (64, 32, 16))
