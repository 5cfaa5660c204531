"""Which inputs of the interrupt controllers each GSI drives (Linux api.rst, KVM_SET_GSI_ROUTING; MP 1.4, 3.6)."""

from __future__ import annotations

from casemate.abi.kvm.structs import (
    IRQ_ROUTING_IRQCHIP,
    IRQCHIP_IOAPIC,
    IRQCHIP_PIC_MASTER,
    IRQCHIP_PIC_SLAVE,
    IrqRoutingEntry,
)

_TIMER_PIN = 2
_ISA_LINES, _PINS = 16, 24


def pc_routing() -> bytes:
    """``kvm_irq_routing`` of a PC: ISA lines go to 8259 and I/O APIC, the timer there to pin 2."""
    entries = [
        _entry(gsi, IRQCHIP_PIC_SLAVE if gsi >= 8 else IRQCHIP_PIC_MASTER, gsi % 8)
        for gsi in range(_ISA_LINES)
        if gsi != _TIMER_PIN
    ]
    entries += [_entry(gsi, IRQCHIP_IOAPIC, gsi or _TIMER_PIN) for gsi in range(_PINS) if gsi != _TIMER_PIN]
    return len(entries).to_bytes(8, "little") + b"".join(entries)


def _entry(gsi: int, chip: int, pin: int) -> bytes:
    return IrqRoutingEntry(gsi=gsi, type=IRQ_ROUTING_IRQCHIP, irqchip=chip, pin=pin).to_bytes()
