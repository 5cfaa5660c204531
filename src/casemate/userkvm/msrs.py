"""Model-specific registers that KVM keeps itself: the time-stamp counter's, and its own (Linux x86/msr.rst)."""

from __future__ import annotations

from casemate.abi.x86 import msr
from casemate.host.model.cpu.hooks import EngineHooks
from casemate.host.model.cpu.unicorn_api import host_ticks
from casemate.userkvm.cpuid import CLOCK, CLOCK2
from casemate.userkvm.pv_clock import SYSTEM_TIME_MSRS, WALL_CLOCK_MSRS

TSC_ADJUST, PLATFORM_INFO, HWCR = 0x3B, 0xCE, 0xC0010015
OLD_CLOCKS, _PARAVIRTUAL = (0x11, 0x12), range(0x4B564D00, 0x4B564D08)
_FEATURES = {
    index: feature
    for old, new in (SYSTEM_TIME_MSRS, WALL_CLOCK_MSRS)
    for index, feature in ((old, CLOCK), (new, CLOCK2))
}
"""By which a guest is told that the register is there."""
_CPUID_FAULTING = 1 << 31
_HWCR_IGNORED, _HWCR_KEPT = 1 << 3 | 1 << 6 | 1 << 8, 1 << 18 | 1 << 24
_64_BITS = (1 << 64) - 1
INDICES = (msr.TSC, TSC_ADJUST, PLATFORM_INFO, HWCR, *OLD_CLOCKS)
"""Those that the guest finds here, too; all others it is given by the engine."""


class KeptMsrs:
    """Of one vCPU, whose time-stamp counter starts at 0."""

    def __init__(self, hooks: EngineHooks) -> None:
        self._hooks = hooks
        self._values = dict.fromkeys((*INDICES, *_PARAVIRTUAL), 0) | {PLATFORM_INFO: _CPUID_FAULTING}
        self.enforces_features = False
        """Paravirtual registers that CPUID does not offer are not there (KVM_CAP_ENFORCE_PV_FEATURE_CPUID)."""
        self.shows_platform_info = True
        """The guest may read PLATFORM_INFO (KVM_CAP_MSR_PLATFORM_INFO)."""
        self.features = 0
        """Paravirtual ones that CPUID offers."""
        self.tsc_offset = -host_ticks()

    def __contains__(self, index: int) -> bool:
        return index in self._values

    @property
    def tsc_offset(self) -> int:
        """What the guest's counter is ahead of the host's (KVM_VCPU_TSC_OFFSET)."""
        return self._hooks.tsc_offset

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        self._hooks.tsc_offset = value & _64_BITS

    def read(self, index: int, *, by_guest: bool = False) -> int | None:
        """The value; None where the register is not there."""
        if by_guest and self._is_hidden(index):
            return None
        if index == msr.TSC:
            return (host_ticks() + self.tsc_offset) & _64_BITS
        return self._values[index]

    def write(self, index: int, value: int, *, by_guest: bool = False) -> bool:
        """Set it; False where it does not take that. What a guest writes to one TSC register moves both."""
        if index == HWCR:
            if value & ~(_HWCR_IGNORED | _HWCR_KEPT):
                return False
            value &= _HWCR_KEPT
        elif index == msr.TSC:
            delta = value - ((host_ticks() + self.tsc_offset) & _64_BITS)
            self.tsc_offset += delta
            if by_guest:
                self._values[TSC_ADJUST] = (self._values[TSC_ADJUST] + delta) & _64_BITS
            return True
        elif by_guest and index == TSC_ADJUST:
            self.tsc_offset += value - self._values[TSC_ADJUST]
        elif by_guest and (self._is_hidden(index) or index == PLATFORM_INFO):
            return False
        self._values[index] = value
        return True

    def _is_hidden(self, index: int) -> bool:
        if index == PLATFORM_INFO:
            return not self.shows_platform_info
        is_paravirtual = index in OLD_CLOCKS or index in _PARAVIRTUAL
        return is_paravirtual and self.enforces_features and not self.features & _FEATURES.get(index, 0)
