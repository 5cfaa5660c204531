"""Model-specific registers of SEV and SEV-ES guests (AMD APM volume 2, 15.34.10; Linux arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

from casemate.abi.sev.ghcb import MSR_GHCB, MSR_SEV_STATUS
from casemate.abi.x86 import msr
from casemate.host.model.cpu.msr import CONSTANT, ENGINE, PLAIN, ModelSpecificRegisters

_NOT_INTERCEPTED = frozenset(
    {
        MSR_GHCB,
        MSR_SEV_STATUS,
        msr.SYSENTER_CS,
        msr.SYSENTER_ESP,
        msr.SYSENTER_EIP,
        msr.PAT,
        *range(msr.EFER, msr.FMASK + 1),
        *range(msr.FS_BASE, msr.FS_BASE + 3),
    }
)
"""KVM leaves these to a SEV-ES guest: they are in its save area, or must work before it has an IDT."""

_MTRR_CAP = 0x508


class SevMsrs(ModelSpecificRegisters):
    """``status`` is SEV_STATUS. A SEV-ES guest reaches most others by request to its host only.

    What it asks for of registers that are the engine's is kept apart from these: as the host keeps it.
    """

    def __init__(self, status: int, *, sev_es: bool, is_bsp: bool = True) -> None:
        self._status = status
        self._sev_es = sev_es
        super().__init__(is_bsp=is_bsp)
        if sev_es:
            self._raise_all_but(_NOT_INTERCEPTED)

    def reset(self) -> None:
        """Back to the values after RESET#."""
        super().reset()
        self._define(MSR_SEV_STATUS, CONSTANT, self._status)
        if self._sev_es:
            self._forget_requests()
            self._define(msr.MTRR_CAP, ENGINE, _MTRR_CAP)
            self._define(MSR_GHCB, PLAIN, 0)

    @property
    def ghcb(self) -> int:
        """The GHCB MSR: address of the block, or a request of the MSR protocol and its response."""
        return self.read(MSR_GHCB)

    @ghcb.setter
    def ghcb(self, value: int) -> None:
        self.write(MSR_GHCB, value)
