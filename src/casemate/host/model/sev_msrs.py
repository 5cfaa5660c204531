"""Model-specific registers of SEV and SEV-ES guests (AMD APM volume 2, 15.34.10; Linux arch/x86/kvm/svm/sev.c)."""

from __future__ import annotations

from casemate.abi.sev.ghcb import MSR_GHCB, MSR_SEV_STATUS
from casemate.abi.x86 import msr
from casemate.host.model.cpu.msr import ENGINE_KNOWS, ModelSpecificRegisters

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
    """``status`` is SEV_STATUS. A SEV-ES guest reaches most others by request only: ``host_read``, ``host_write``."""

    def __init__(self, status: int, *, sev_es: bool) -> None:
        self._status = status
        self._sev_es = sev_es
        self._asked: dict[int, int] = {}
        self.ghcb = 0
        """The GHCB MSR: address of the block, or a request of the MSR protocol and its response."""
        super().__init__()

    def reset(self) -> None:
        """Back to the values after RESET#."""
        super().reset()
        self._asked = {msr.MTRR_CAP: _MTRR_CAP}
        self.ghcb = 0

    def intercepts(self, index: int) -> bool:
        """Whether an access raises #VC."""
        return self._sev_es and index not in _NOT_INTERCEPTED

    def read(self, index: int) -> int | None:
        """What RDMSR gives, or None if the engine's own register has it."""
        if index == MSR_SEV_STATUS:
            return self._status
        if index == MSR_GHCB and self._sev_es:
            return self.ghcb
        return super().read(index)

    def write(self, index: int, value: int) -> bool:
        """What WRMSR does; False if the engine's own register is to take it."""
        if index == MSR_GHCB and self._sev_es:
            self.ghcb = value
            return True
        return super().write(index, value)

    def host_read(self, index: int) -> int:
        """The register that the guest asked its host to read."""
        value = super().read(index)
        return self._asked.get(index, 0) if value is None else value

    def host_write(self, index: int, value: int) -> bool:
        """What the host, or the guest by request, writes; False if the engine's own register is to take it.

        A register that no model knows drops it, as one of a host without that feature.
        """
        if super().write(index, value):
            return True
        if index in ENGINE_KNOWS:
            self._asked[index] = value
        return self.intercepts(index)
