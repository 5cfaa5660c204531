"""Model-specific registers that the Unicorn engine does not model as firmware needs them (Intel SDM volume 4).

The engine answers 0 to a register it does not know and drops writes to it. What it does know (EFER, the segment
bases, MTRRs, PAT, SYSENTER, ...) stays with it; the rest is answered here, and counted.
"""

from __future__ import annotations

from collections import Counter

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


class ModelSpecificRegisters:
    """The registers kept outside the engine, and a count of accesses to unknown ones."""

    def __init__(self) -> None:
        self.unknown: Counter[int] = Counter()
        self._values: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Back to the values after RESET#."""
        self._values = {msr.APIC_BASE: msr.APIC_BASE_RESET, msr.FEATURE_CONTROL: 1, msr.MICROCODE_REVISION: 0}

    def intercepts(self, index: int) -> bool:
        """Whether an access raises #VC; only the guests of SEV-ES have such registers."""
        return False

    def host_write(self, index: int, value: int) -> bool:
        """Set a register from outside; False if the engine's own register is to take it."""
        return self.write(index, value)

    def read(self, index: int) -> int | None:
        """The register's 64-bit value, or None if the engine's own answer stands."""
        value = self._values.get(index)
        if value is None and index not in ENGINE_KNOWS:
            self.unknown[index] += 1
        return value

    def write(self, index: int, value: int) -> bool:
        """Store a 64-bit value; False if the engine's own register is to take it."""
        if index in self._values:
            if index == msr.APIC_BASE:
                self._values[index] = value
            return True
        if index not in ENGINE_KNOWS:
            self.unknown[index] += 1
        return False
