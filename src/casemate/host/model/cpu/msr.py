"""Model-specific registers that the Unicorn engine does not model as firmware needs them (Intel SDM volume 4).

The engine answers 0 to a register it does not know and drops writes to it. What it does know (EFER, the segment
bases, MTRRs, PAT, SYSENTER, ...) stays with it; the rest is in a table that ``native/hooks/msr.c`` answers from, and
counts.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from ctypes import c_uint8, c_uint32, c_uint64

from casemate.abi.x86 import msr

ENGINE_KNOWS = frozenset(
    {
        msr.TSC,
        msr.SYSENTER_CS,
        msr.SYSENTER_ESP,
        msr.SYSENTER_EIP,
        msr.MCG_CAP,
        msr.MCG_STATUS,
        msr.MISC_ENABLE,
        msr.PAT,
        msr.MTRR_DEF_TYPE,
        msr.MTRR_CAP,
        msr.TSC_AUX,
        *range(msr.MTRR_PHYS_BASE0, msr.MTRR_PHYS_MASK7 + 1),
        msr.MTRR_FIX64K_00000,
        0x258,
        0x259,
        *range(0x268, msr.MTRR_FIX4K_F8000 + 1),
        *range(msr.EFER, msr.FMASK + 1),
        *range(msr.FS_BASE, msr.FS_BASE + 3),
    }
)

UNKNOWN, ENGINE, CONSTANT, PLAIN, ASKED = range(5)
"""What is behind a register: nothing, the engine's own, a value that writes do not change, a value, or a function."""
_RAISES = 0x80
_RANGES, _PER_RANGE, _UNKNOWN_KEPT = (0, 0xC0000000, 0xC0010000), 0x2000, 64


class _Unknown(ctypes.Structure):
    _fields_ = (("index", c_uint32), ("count", c_uint32))


class MsrTable(ctypes.Structure):
    """``struct msrs`` of ``native/hooks/cpu.h``."""

    _fields_ = (
        ("others", c_uint64),
        ("policy_elsewhere", c_uint64),
        ("unknown", _Unknown * _UNKNOWN_KEPT),
        ("policy", c_uint8 * _PER_RANGE * len(_RANGES)),
        ("value", c_uint64 * _PER_RANGE * len(_RANGES)),
    )


class ModelSpecificRegisters:
    """The registers of one CPU, which has ``features`` by QEMU's names; ``is_bsp``: the one that starts.

    Those of no known feature read as zero, and accesses to them are counted.
    """

    def __init__(self, features: frozenset[str] = frozenset(), *, is_bsp: bool = True) -> None:
        self._features = features
        self._is_bsp = is_bsp
        self._table = MsrTable()
        self.address = ctypes.addressof(self._table)
        """Of the table, for the hooks."""
        for index in ENGINE_KNOWS:
            self._set_policy(index, ENGINE)
        self.reset()

    def reset(self) -> None:
        """Back to the values after RESET#."""
        bsp = 0 if self._is_bsp else msr.APIC_BASE_BSP
        self._define(msr.APIC_BASE, PLAIN, msr.APIC_BASE_RESET & ~bsp)
        self._define(msr.FEATURE_CONTROL, CONSTANT, 1)
        self._define(msr.MICROCODE_REVISION, CONSTANT, 0)
        if "arch-capabilities" in self._features:
            self._define(msr.ARCH_CAPABILITIES, CONSTANT, msr.NOT_VULNERABLE)
        if "spec-ctrl" in self._features:
            self._define(msr.SPEC_CTRL, PLAIN, 0)
            self._define(msr.PRED_CMD, CONSTANT, 0)

    def ask(self, index: int) -> None:
        """Have the guest's accesses answered by the function of ``EngineHooks.answer_msrs``."""
        self._set_policy(index, ASKED)

    @property
    def unknown(self) -> Counter[int]:
        """Accesses to registers of no known feature, by number; the first 64 of them."""
        return Counter({row.index: row.count for row in self._table.unknown if row.count})

    def kind(self, index: int) -> int:
        """UNKNOWN, ENGINE, CONSTANT or PLAIN."""
        place = _place(index)
        return UNKNOWN if place is None else self._table.policy[place[0]][place[1]] & ~_RAISES

    def read(self, index: int) -> int:
        """The 64-bit value of a register that the model has, as RDMSR or a request by GHCB gets it; else 0."""
        place = _place(index)
        return 0 if place is None else int(self._table.value[place[0]][place[1]])

    def address_of(self, index: int) -> int:
        """Where the value of a register that the model has is kept."""
        place = _place(index)
        assert place is not None
        return ctypes.addressof(self._table.value[place[0]]) + 8 * place[1]

    def write(self, index: int, value: int) -> bool:
        """Set a register from outside; False if the engine's own register is to take it."""
        place = _place(index)
        if place is None:
            return False
        kind = self._table.policy[place[0]][place[1]]
        if kind & ~_RAISES in (PLAIN, ENGINE):
            self._table.value[place[0]][place[1]] = value
        return bool(kind & _RAISES) or kind in (PLAIN, CONSTANT)

    def _forget_requests(self) -> None:
        """Of the engine's registers no request set any."""
        for index in ENGINE_KNOWS:
            self._define(index, ENGINE, 0)

    def _define(self, index: int, kind: int, value: int) -> None:
        self._set_policy(index, kind)
        where = _place(index)
        assert where is not None
        self._table.value[where[0]][where[1]] = value

    def _set_policy(self, index: int, kind: int) -> None:
        where = _place(index)
        assert where is not None
        policy = self._table.policy[where[0]]
        policy[where[1]] = kind | policy[where[1]] & _RAISES

    def _raise_all_but(self, exceptions: frozenset[int]) -> None:
        """Let accesses to all registers but ``exceptions`` raise #VC."""
        self._table.policy_elsewhere = _RAISES
        for number, start in enumerate(_RANGES):
            policy = self._table.policy[number]
            policy[:] = [kind | _RAISES for kind in policy]
            for index in exceptions & frozenset(range(start, start + _PER_RANGE)):
                policy[index - start] &= ~_RAISES


def _place(index: int) -> tuple[int, int] | None:
    """Range and position in it."""
    return next(
        ((number, index - start) for number, start in enumerate(_RANGES) if 0 <= index - start < _PER_RANGE),
        None,
    )
