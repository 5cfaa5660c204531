"""Model-specific registers of a vCPU, its time-stamp counter, and the clock of its guest (Linux x86/msr.rst)."""

from __future__ import annotations

import contextlib
from errno import EINVAL, ENXIO

from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.structs import DeviceAttr, MsrEntry
from casemate.abi.x86 import msr
from casemate.host.model.cpu.msr import ENGINE, UNKNOWN
from casemate.userkvm.cpuid import VcpuCpuid
from casemate.userkvm.guest_debug import DebuggedGuest
from casemate.userkvm.msrs import INDICES, OLD_CLOCKS, TSC_ADJUST, KeptMsrs
from casemate.userkvm.pv_clock import SYSTEM_TIME_MSRS, WALL_CLOCK_MSRS, page_of
from casemate.userkvm.table import Refused, answer_msrs, answers, copy_in, copy_out

SETTABLE_MSRS = frozenset(
    {
        *(0x48, 0xCD, 0x122, 0x17B, 0x6E0, 0xC0010131, 0xC001011F, 0xC0011029),
        0x4B564D08,  # of KVM's migration control
        *range(0x400, 0x480),  # machine checks
        *range(0xC0010000, 0xC0010008),  # AMD's performance counters; KVM takes them without a PMU, too
    }
)
"""Kept for the monitor; the guest's accesses do not see them."""
_TOLERANCE = 250
"""Parts in a million by which a frequency may be off."""


class VcpuMsrs(DebuggedGuest):
    """Of one vCPU."""

    index: int
    cpuid: VcpuCpuid

    def __init__(self) -> None:
        super().__init__()
        self._msrs: dict[int, int] = {}
        self._time_page: int | None = None
        """Where the guest reads KVM's clock."""
        self._time_version = 0

    def keep_msrs(self) -> None:
        """The CPU is there: have it ask for its registers, and count with the first vCPU."""
        self.msrs = KeptMsrs(self._engine.hooks)
        if (first := self.vm.first_tsc_offset()) is not None:
            self.msrs.tsc_offset = first
        for index in OLD_CLOCKS if self.vm.is_protected else INDICES:
            self._engine.msrs.ask(index)
        self._engine.hooks.answer_msrs(self._guest_msr)

    @answers(Ioctl.GET_MSRS)
    def get_msrs(self, address: int) -> int:
        """Those that are known, up to the first that is not; returns how many."""
        return answer_msrs(address, self._read_msr, is_read=True)

    @answers(Ioctl.SET_MSRS)
    def set_msrs(self, address: int) -> int:
        """Likewise."""
        return answer_msrs(address, self._write_msr, is_read=False)

    def _read_msr(self, entry: MsrEntry) -> bool:
        index, kind = entry.index, self._engine.msrs.kind(entry.index)
        if index in self.msrs:
            entry.data = self.msrs.read(index) or 0
        elif index == msr.TSC_DEADLINE:
            chips = self.vm.chips
            entry.data = 0 if chips is None else chips.lapics[self.index].record.deadline
        elif kind == ENGINE and not self.vm.is_protected:
            entry.data = self._engine.uc.read_msr(index)
        elif kind != UNKNOWN:
            entry.data = self._engine.msrs.read(index)
        elif index in SETTABLE_MSRS:
            entry.data = self._msrs.get(index, 0)
        else:
            return False
        return True

    def _write_msr(self, entry: MsrEntry) -> bool:
        index, kind = entry.index, self._engine.msrs.kind(entry.index)
        if index in self.msrs:
            done = self.msrs.write(index, entry.data)
            if index == msr.TSC:
                self._synchronize_tsc(entry.data)
            if done:
                self._clock_register_written(index, entry.data)
            return done
        if index == msr.TSC_DEADLINE:
            if self.vm.chips is not None:
                self.vm.chips.lapics[self.index].load_deadline(entry.data)
            return True
        if kind == UNKNOWN and index not in SETTABLE_MSRS:
            return False
        if kind == UNKNOWN:
            self._msrs[index] = entry.data
        elif index != msr.EFER and not self.vm.is_running:
            self._engine.set_msr(index, entry.data)
        elif index != msr.EFER and not self.vm.is_protected:
            current = MsrEntry(index)
            if self._read_msr(current) and current.data != entry.data:
                self._engine.set_msr(index, entry.data)
        return True

    def _synchronize_tsc(self, value: int) -> None:
        """Count as the first vCPU does if that is meant (x86.c, kvm_synchronize_tsc).

        It is where the two are within a second of each other, and where a monitor writes 0 to a vCPU that is new.
        """
        first = self.vm.first_tsc_offset()
        if self.index and first is not None:
            apart = self.msrs.tsc_offset - first & (1 << 64) - 1
            if not value or min(apart, (1 << 64) - apart) < self.vm.tsc_khz() * 1000:
                self.msrs.tsc_offset = first

    def _guest_msr(self, index: int, value: int | None) -> int | None:
        self.msrs.shows_platform_info = self.vm.shows_platform_info
        self.msrs.features = self.cpuid.kvm_features
        if index not in self.msrs:
            return None if value is None else value
        if value is None:
            return self.msrs.read(index, by_guest=True)
        if not self.msrs.write(index, value, by_guest=True):
            return None
        self._clock_register_written(index, value)
        return value

    def _clock_register_written(self, index: int, value: int) -> None:
        if index in WALL_CLOCK_MSRS:
            self._store(value, self.vm.clock.wall_clock())
        elif index in SYSTEM_TIME_MSRS:
            self._time_page = page_of(value)
            self.show_time()
        elif index in (msr.TSC, TSC_ADJUST):
            self.show_time()

    def show_time(self) -> None:
        """The clock was set, or the counter that it follows: the guest's page has to say so."""
        if self._time_page is not None:
            self._time_version += 2
            data = self.vm.clock.time_page(self._time_version, self.msrs.tsc_offset)
            self._store(self._time_page, (self._time_version - 1).to_bytes(4, "little") + data[4:])
            self._store(self._time_page, data[:4])

    def _store(self, gpa: int, data: bytes) -> None:
        """Into memory that the guest shares; what is nowhere is not stored, as KVM does it."""
        place = self.vm.host_address(gpa, len(data))
        if place is not None:
            with contextlib.suppress(Refused):
                copy_out(place, data)

    @answers(Ioctl.GET_TSC_KHZ)
    def get_tsc_khz(self, _argument: int) -> int:
        """The host's."""
        return self.vm.tsc_khz()

    @answers(Ioctl.SET_TSC_KHZ)
    def set_tsc_khz(self, argument: int) -> None:
        """Only the host's own, for nothing scales it (x86.c, tsc_tolerance_ppm)."""
        if argument and abs(argument - self.vm.tsc_khz()) * 1_000_000 > self.vm.tsc_khz() * _TOLERANCE:
            raise Refused(EINVAL, "the time-stamp counter is not scaled")

    @answers(Ioctl.HAS_DEVICE_ATTR, DeviceAttr)
    def has_attribute(self, value: DeviceAttr) -> None:
        """KVM_VCPU_TSC_OFFSET alone."""
        if (value.group, value.attr) != (0, 0):
            raise Refused(ENXIO, f"no attribute {value.attr} of group {value.group}")

    @answers(Ioctl.GET_DEVICE_ATTR, DeviceAttr)
    def get_attribute(self, value: DeviceAttr) -> None:
        """How far the guest's time-stamp counter is ahead."""
        self.has_attribute(value)
        copy_out(value.addr, self.msrs.tsc_offset.to_bytes(8, "little"))

    @answers(Ioctl.SET_DEVICE_ATTR, DeviceAttr)
    def set_attribute(self, value: DeviceAttr) -> None:
        """From now on."""
        self.has_attribute(value)
        self.msrs.tsc_offset = int.from_bytes(copy_in(value.addr, 8), "little")
        self.show_time()
