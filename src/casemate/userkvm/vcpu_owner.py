"""What a vCPU needs of its VM, so that neither file imports the other (Linux api.rst, "vm ioctls")."""

from __future__ import annotations

from typing import Protocol

from casemate.abi.guest_kind import GuestKind
from casemate.host.exits import VmExit
from casemate.host.model.vm import ModelVm
from casemate.host.slots import MemorySlot
from casemate.userkvm.cpuid import VcpuCpuid
from casemate.userkvm.guest_memfd import PrivateRanges
from casemate.userkvm.ioeventfd import Ioeventfds
from casemate.userkvm.irqchip import Irqchip
from casemate.userkvm.kernel import Kernel
from casemate.userkvm.legacy_chips import LegacyChips
from casemate.userkvm.library import Inside
from casemate.userkvm.pv_clock import VmClock


class VcpuOwner(Protocol):
    """A VM (``casemate.userkvm.vm.Vm``)."""

    number: int
    kernel: Kernel
    kind: GuestKind
    inside: Inside
    cpuid: VcpuCpuid
    chips: Irqchip | None
    ioeventfds: Ioeventfds
    private: PrivateRanges
    legacy: LegacyChips
    hypercall_exits: int
    disabled_quirks: int
    shows_platform_info: bool
    slots: dict[int, MemorySlot]

    @property
    def is_protected(self) -> bool:
        """Registers and memory are the guest's alone."""

    @property
    def is_running(self) -> bool:
        """The guest may have executed something."""

    @property
    def address_mask(self) -> int:
        """What of an address the bus sees."""

    def realize(self) -> ModelVm:
        """The modelled VM."""

    def host_address(self, gpa: int, size: int) -> int | None:
        """Where memory is that the guest sees at an address now."""

    def say(self, text: str) -> None:
        """Tell the user."""

    def describe(self, vm_exit: VmExit) -> str:
        """An exit in words."""

    @property
    def clock(self) -> VmClock:
        """KVM's paravirtual one."""

    def count_vcpus(self) -> int:
        """How many there are."""

    def first_tsc_offset(self) -> int | None:
        """How far the first vCPU's time-stamp counter is ahead of the host's, if there is one."""

    def tsc_khz(self) -> int:
        """Of the time-stamp counter."""
