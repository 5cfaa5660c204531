"""Guests with interrupt controllers, on any host: the kernel's own on KVM, ours on the model."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import closing

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.address import IOAPIC_BASE, LAPIC_BASE
from casemate.devices.device import PortIo
from casemate.devices.interrupts import PcInterrupts
from casemate.devices.ioapic import Ioapic
from casemate.devices.lapic import HAS_DEADLINE, HAS_X2APIC, SUPPRESSES_EOI, Lapic
from casemate.devices.pic import PicPair
from casemate.devices.pit import Pit
from casemate.devices.serial.uart16550 import Uart16550
from casemate.guests.entry import CODE32, CODE64, Bits
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Vm
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.kvm.system import KvmSystem
from casemate.host.model.hypervisor import ModelHypervisor
from support.assembler import assemble
from support.guest_rig import Rig, RigBus
from support.hosts import kvm_or_skip

IDT_POINTER, IDT, HANDLERS = 0x1000, 0x200000, 0x210000
HANDLER_BYTES = 0x200
TRACE, END_PORT = 0x80, 0xF4
ID, TPR, PPR, EOI, SVR, IRR, ESR, ICR, ICR_HIGH, LVT_TIMER, LINT0, LVT_ERROR, TIMER_INITIAL, TIMER_DIVIDE = (
    LAPIC_BASE + offset
    for offset in (
        *(0x20, 0x80, 0xA0, 0xB0, 0xF0, 0x200, 0x280, 0x300, 0x310, 0x320, 0x350, 0x370, 0x380, 0x3E0),
    )
)
IOREGSEL, IOWIN, IOAPIC_EOI = IOAPIC_BASE, IOAPIC_BASE + 0x10, IOAPIC_BASE + 0x40
TO_SELF = 0x44000
"""The command of a fixed interrupt to the sender; the vector is to be added."""
_X2APIC = 1 << 21
"""Of leaf 1, ECX."""


def offers_x2apic() -> bool:
    """Whether this machine's KVM lets a guest know of it."""
    kvm_or_skip()
    with closing(KvmSystem()) as system:
        return any(leaf.function == 1 and leaf.ecx & _X2APIC for leaf in system.supported_cpuid())


class PcBus(RigBus):
    """The controllers of a PC and a serial port; all else is written down."""

    def __init__(self, clock: GuestClock) -> None:
        super().__init__()
        self.lapic = Lapic(clock, HAS_X2APIC | HAS_DEADLINE | SUPPRESSES_EOI)
        self.pic, self.pit, self.ioapic = PicPair(), Pit(clock), Ioapic(self.lapic)
        self.interrupts = PcInterrupts(clock, self.lapic, self.pic, self.pit, self.ioapic)
        self.printed = bytearray()
        self.uart = Uart16550(self.printed.append, self.interrupts.irq(4), clock)
        self.interrupts.watch(self.uart.poll, self.uart.deadline)
        self.uart.on_timer = self.interrupts.rearm
        self._ports: dict[int, tuple[PortIo, int]] = {}
        for first, count, device in (
            (0x20, 2, self.pic.master),
            (0xA0, 2, self.pic.slave),
            (0x40, 4, self.pit),
            (0x3F8, 8, self.uart),
        ):
            self._ports |= {first + offset: (device, offset) for offset in range(count)}

    def read_port(self, port: int, size: int) -> int:
        if port in self._ports:
            device, offset = self._ports[port]
            return device.read_port(offset, size) or 0
        return super().read_port(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        if port in self._ports:
            device, offset = self._ports[port]
            device.write_port(offset, size, value)
        else:
            super().write_port(port, size, value)

    def read_mmio(self, gpa: int, size: int) -> int:
        chip = self._chip(gpa)
        value = None if chip is None else chip.read_mmio(gpa & 0xFFF, size)
        if value is None:
            super().read_mmio(gpa, size)
            return (1 << 8 * size) - 1
        return value

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        chip = self._chip(gpa)
        if chip is None or not chip.write_mmio(gpa & 0xFFF, size, value):
            super().write_mmio(gpa, size, value)

    def _chip(self, gpa: int) -> Lapic | Ioapic | None:
        page = gpa & ~0xFFF
        return self.lapic if page == LAPIC_BASE else self.ioapic if page == IOAPIC_BASE else None


class InterruptRig(Rig):
    """``handlers`` are code by vector, which begins with the error code, if there is one, and the return address on the
    stack. The local APIC is enabled, interrupts are off; the guest ends with ``END``, and traces by ``out 0x80, eax``.
    """

    def __init__(self, host: str, code: str, handlers: Mapping[int, str], bits: Bits = 32) -> None:
        bus: RigBus
        vm: Vm
        interrupts: PcInterrupts | None
        if host == "model":
            clock = GuestClock()
            bus = self.pc = PcBus(clock)
            vm = ModelHypervisor(clock).create_vm(GuestKind.PLAIN)
            interrupts = self.pc.interrupts
        else:
            if loaded_vendor_module() == "kvm_pvm":
                pytest.skip("kvm_pvm interprets supervisor code, and takes no interrupt in between")
            bus, vm, interrupts = RigBus(), kvm_or_skip().create_vm(GuestKind.PLAIN), None
        start = f"lidt [{IDT_POINTER}]; mov ebx, {SVR}; mov dword [{'rbx' if bits == 64 else 'ebx'}], 0x1ff; "
        end = f"; out {END_PORT}, al; jmp $"
        super().__init__(assemble(start + code + end, bits), bits, vm, interrupts, bus)
        size = 16 if bits == 64 else 8
        self.put(IDT_POINTER, struct.pack("<HQ", 256 * size - 1, IDT))
        for number, (vector, source) in enumerate(handlers.items()):
            at = HANDLERS + HANDLER_BYTES * number
            self.put(at, assemble(source, bits, origin=at))
            gate = struct.pack(
                "<HHBBH", at & 0xFFFF, CODE64 if bits == 64 else CODE32, 0, 0x8E, at >> 16
            ).ljust(size, b"\0")
            self.put(IDT + size * vector, gate)
        self.bus.on_write_port[END_PORT] = self.vcpu.stop

    def trace(self) -> list[int]:
        """Run to the end; what the guest traced."""
        self.run()
        assert ("out", END_PORT) in [entry[:2] for entry in self.bus.log], "the guest did not come to its end"
        return [entry[3] for entry in self.bus.log if entry[:2] == ("out", TRACE)]
