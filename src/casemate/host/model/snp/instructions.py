"""PVALIDATE and RMPADJUST on the modelled CPU (AMD APM volume 3, chapter 4); the engine knows neither."""

from __future__ import annotations

from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.snp.page_states import PageStates
from casemate.host.model.snp.rmp import Fault, Result, Validation

PVALIDATE, RMPADJUST = b"\xf2\x0f\x01\xff", b"\xf3\x0f\x01\xfe"

_FLAGS_OF_RESULT = 0x8D5
"""OF, SF, ZF, AF, PF and CF."""
_CF, _ZF = 1 << 0, 1 << 6
_NUMBERS = (registers.RAX, registers.RCX, registers.RDX, registers.RFLAGS)
_VMSA = 1 << 16


class PageInstructions:
    """Executes them for one engine."""

    codes = (PVALIDATE, RMPADJUST)

    def __init__(self, engine: Engine, states: PageStates) -> None:
        self._engine = engine
        self.states = states

    def execute(self, code: bytes) -> str | None:
        """Execute one of the two; returns why the guest cannot go on, None if it can. RIP is the caller's."""
        address, rcx, rdx, flags = self._engine.read_many(_NUMBERS)
        gpa = self._engine.translate(address)
        name = "PVALIDATE" if code == PVALIDATE else "RMPADJUST"
        if gpa is None:
            return f"{name} of {address:#x}, which the guest does not map"
        gpa &= ~(1 << C_BIT)
        large = bool(rcx & 1)
        found: Validation | Result | Fault
        if code == PVALIDATE:
            # Linux leaves garbage in the other bits of EDX.
            found = self.states.pvalidate(gpa, large=large, validate=bool(rdx & 1))
        else:
            target, permissions, vmsa = rdx & 0xFF, rdx >> 8 & 0xFF, bool(rdx & _VMSA)
            found = self.states.rmpadjust(gpa, target, permissions, large=large, vmsa=vmsa)
        if isinstance(found, Fault):
            return f"{name} of {gpa:#x}: {found}"
        result = found.result if isinstance(found, Validation) else found
        unchanged = isinstance(found, Validation) and result is Result.SUCCESS and not found.changed
        flags = (
            flags & ~_FLAGS_OF_RESULT | (_ZF if result is Result.SUCCESS else 0) | (_CF if unchanged else 0)
        )
        self._engine.write_many({registers.RAX: int(result), registers.RFLAGS: flags})
        return None
