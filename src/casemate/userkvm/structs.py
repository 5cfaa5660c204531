"""Arguments of ioctls that only a KVM needs, not its users here (Linux include/uapi/linux/kvm.h)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint32, c_uint64

from casemate.abi.layout import Struct

_KVM_H = "Linux include/uapi/linux/kvm.h"


class DirtyLog(Struct):
    """``kvm_dirty_log``; ``bitmap`` is an address."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (("slot", c_uint32), ("padding", c_uint32), ("bitmap", c_uint64))


class MsiMessage(Struct):
    """``kvm_msi``."""

    SIZE, SOURCE = 32, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ("address_lo", "address_hi", "data", "flags", "devid")),
        ("pad", c_uint8 * 12),
    )


class IrqfdStruct(Struct):
    """``kvm_irqfd``."""

    SIZE, SOURCE = 32, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ("fd", "gsi", "flags", "resamplefd")),
        ("pad", c_uint8 * 16),
    )


class ClockData(Struct):
    """``kvm_clock_data``."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (("clock", c_uint64), ("flags", c_uint32), ("pad0", c_uint32), ("rest", c_uint64 * 4))


class RoutingEntry(Struct):
    """``kvm_irq_routing_entry``: chip and pin, or the low address, the high one and the data of a message."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ("gsi", "type", "flags", "pad", "first", "second", "third")),
        ("padding", c_uint32 * 5),
    )
