"""KVM's structs on x86-64 (Linux include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h)."""

from __future__ import annotations

from ctypes import c_int16, c_int32, c_uint8, c_uint16, c_uint32, c_uint64

from casemate.abi.layout import Struct

_KVM_H = "Linux include/uapi/linux/kvm.h"
_ASM_KVM_H = "Linux arch/x86/include/uapi/asm/kvm.h"

MEM_LOG_DIRTY_PAGES, MEM_READONLY, MEM_GUEST_MEMFD = 1, 2, 4
MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
"""Flags of a memory slot."""
MEMORY_ATTRIBUTE_PRIVATE = 8
CPUID_FLAG_SIGNIFICANT_INDEX = 1
PIT_SPEAKER_DUMMY = 1
IOEVENTFD_DATAMATCH, IOEVENTFD_PIO, IOEVENTFD_DEASSIGN = 1, 2, 4
IRQFD_DEASSIGN, IRQFD_RESAMPLE = 1, 2

_GENERAL = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
_SEGMENT_FLAGS = "type present dpl db s l g avl unusable padding"


class UserspaceMemoryRegion(Struct):
    """``kvm_userspace_memory_region``."""

    SIZE, SOURCE = 32, _KVM_H
    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class Regs(Struct):
    """``kvm_regs``."""

    SIZE, SOURCE = 144, _ASM_KVM_H
    _fields_ = tuple((name, c_uint64) for name in _GENERAL.split())


class Segment(Struct):
    """``kvm_segment``."""

    SIZE, SOURCE = 24, _ASM_KVM_H
    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in _SEGMENT_FLAGS.split()),
    )


class DescriptorTable(Struct):
    """``kvm_dtable``."""

    SIZE, SOURCE = 16, _ASM_KVM_H
    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class Sregs(Struct):
    """``kvm_sregs``."""

    SIZE, SOURCE = 312, _ASM_KVM_H
    _fields_ = (
        *((name, Segment) for name in ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"]),
        ("gdt", DescriptorTable),
        ("idt", DescriptorTable),
        *((name, c_uint64) for name in ["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"]),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class Translation(Struct):
    """``kvm_translation``."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )


class CpuidEntry2(Struct):
    """``kvm_cpuid_entry2``."""

    SIZE, SOURCE = 40, _ASM_KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ["function", "index", "flags", "eax", "ebx", "ecx", "edx"]),
        ("padding", c_uint32 * 3),
    )


class MsrEntry(Struct):
    """``kvm_msr_entry``."""

    SIZE, SOURCE = 16, _ASM_KVM_H
    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class PitConfig(Struct):
    """``kvm_pit_config``."""

    SIZE, SOURCE = 64, _KVM_H
    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class IrqLevel(Struct):
    """``kvm_irq_level``."""

    SIZE, SOURCE = 8, _KVM_H
    _fields_ = (("irq", c_uint32), ("level", c_uint32))


class Irqchip(Struct):
    """``kvm_irqchip``; ``chip`` holds the state of one 8259 or of the I/O APIC."""

    SIZE, SOURCE = 520, _KVM_H
    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_uint8 * 512))


IRQ_ROUTING_IRQCHIP, IRQ_ROUTING_MSI = 1, 2
IRQCHIP_PIC_MASTER, IRQCHIP_PIC_SLAVE, IRQCHIP_IOAPIC = 0, 1, 2


class IrqRoutingEntry(Struct):
    """``kvm_irq_routing_entry`` of type IRQ_ROUTING_IRQCHIP; its union begins with ``irqchip`` and ``pin``."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ["gsi", "type", "flags", "pad", "irqchip", "pin"]),
        ("padding", c_uint32 * 6),
    )


class IrqRoutingMsi(Struct):
    """``kvm_irq_routing_entry`` of type IRQ_ROUTING_MSI; its union begins with ``address_lo``."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ["gsi", "type", "flags", "pad", "address_lo", "address_hi", "data"]),
        ("padding", c_uint32 * 5),
    )


class IoapicStateStruct(Struct):
    """``kvm_ioapic_state``."""

    SIZE, SOURCE = 216, _ASM_KVM_H
    _fields_ = (
        ("base_address", c_uint64),
        ("ioregsel", c_uint32),
        ("id", c_uint32),
        ("irr", c_uint32),
        ("pad", c_uint32),
        ("redirtbl", c_uint64 * 24),
    )


class Msi(Struct):
    """``kvm_msi``."""

    SIZE, SOURCE = 32, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ["address_lo", "address_hi", "data", "flags", "devid"]),
        ("pad", c_uint8 * 12),
    )


class IrqfdStruct(Struct):
    """``kvm_irqfd``."""

    SIZE, SOURCE = 32, _KVM_H
    _fields_ = (
        *((name, c_uint32) for name in ["fd", "gsi", "flags", "resamplefd"]),
        ("pad", c_uint8 * 16),
    )


class ClockData(Struct):
    """``kvm_clock_data``."""

    SIZE, SOURCE = 48, _KVM_H
    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )


class DirtyLog(Struct):
    """``kvm_dirty_log``; ``dirty_bitmap`` is an address."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (("slot", c_uint32), ("padding", c_uint32), ("dirty_bitmap", c_uint64))


class EnableCap(Struct):
    """``kvm_enable_cap``."""

    SIZE, SOURCE = 104, _KVM_H
    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))


class DeviceAttr(Struct):
    """``kvm_device_attr``."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (("flags", c_uint32), ("group", c_uint32), ("attr", c_uint64), ("addr", c_uint64))


X86_GRP_SEV, X86_SEV_VMSA_FEATURES = 1, 0
"""Group and attribute of the system's KVM_GET_DEVICE_ATTR."""


class EncRegion(Struct):
    """``kvm_enc_region``."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (("addr", c_uint64), ("size", c_uint64))


class Ioeventfd(Struct):
    """``kvm_ioeventfd``."""

    SIZE, SOURCE = 64, _KVM_H
    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


class CoalescedMmioZone(Struct):
    """``kvm_coalesced_mmio_zone``."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (("addr", c_uint64), ("size", c_uint32), ("pio", c_uint32))


class StatsHeader(Struct):
    """``kvm_stats_header``, at the start of a file of statistics."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (
        ("flags", c_uint32),
        ("name_size", c_uint32),
        ("num_desc", c_uint32),
        ("id_offset", c_uint32),
        ("desc_offset", c_uint32),
        ("data_offset", c_uint32),
    )


class StatsDesc(Struct):
    """``kvm_stats_desc``, before its name. Flags of 0: a sum, without a unit."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (
        ("flags", c_uint32),
        ("exponent", c_int16),
        ("size", c_uint16),
        ("offset", c_uint32),
        ("bucket_size", c_uint32),
    )


class CoalescedMmio(Struct):
    """``kvm_coalesced_mmio``."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (
        ("phys_addr", c_uint64),
        ("len", c_uint32),
        ("pio", c_uint32),
        ("data", c_uint8 * 8),
    )


class CoalescedMmioRing(Struct):
    """The head of ``kvm_coalesced_mmio_ring``, a page; its entries follow."""

    SIZE, SOURCE = 8, _KVM_H
    _fields_ = (("first", c_uint32), ("last", c_uint32))


class MpState(Struct):
    """``kvm_mp_state``."""

    SIZE, SOURCE = 4, _KVM_H
    HALTED = 3
    """KVM_MP_STATE_HALTED."""
    _fields_ = (("mp_state", c_uint32),)


class RunHead(Struct):
    """The head of ``kvm_run``, up to the union at offset 32."""

    SIZE, SOURCE = 32, _KVM_H
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
    )


RUN_UNION = 32
"""Offset of the exit's details in ``kvm_run``."""


class RunIo(Struct):
    """``kvm_run.io``."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class RunMmio(Struct):
    """``kvm_run.mmio``."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (
        ("phys_addr", c_uint64),
        ("data", c_uint8 * 8),
        ("len", c_uint32),
        ("is_write", c_uint8),
        ("padding", c_uint8 * 3),
    )


class RunInternal(Struct):
    """``kvm_run.internal``."""

    SIZE, SOURCE = 136, _KVM_H
    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class PreFaultMemory(Struct):
    """``kvm_pre_fault_memory``; ``size`` in bytes, and what is left of it."""

    SIZE, SOURCE = 64, _KVM_H
    _fields_ = (("gpa", c_uint64), ("size", c_uint64), ("flags", c_uint64), ("padding", c_uint64 * 5))


class RunHypercall(Struct):
    """``kvm_run.hypercall``; ``flags`` bit 0: the guest is in 64-bit mode."""

    SIZE, SOURCE = 72, _KVM_H
    _fields_ = (("nr", c_uint64), ("args", c_uint64 * 6), ("ret", c_uint64), ("flags", c_uint64))


class RunSystemEvent(Struct):
    """``kvm_run.system_event``."""

    SIZE, SOURCE = 136, _KVM_H
    _fields_ = (("type", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class RunFailEntry(Struct):
    """``kvm_run.fail_entry``."""

    SIZE, SOURCE = 16, _KVM_H
    _fields_ = (
        ("hardware_entry_failure_reason", c_uint64),
        ("cpu", c_uint32),
        ("padding", c_uint32),
    )


class GuestDebug(Struct):
    """``kvm_guest_debug``."""

    SIZE, SOURCE = 72, _KVM_H
    _fields_ = (("control", c_uint32), ("pad", c_uint32), ("debugreg", c_uint64 * 8))


class RunDebug(Struct):
    """``kvm_run.debug.arch``."""

    SIZE, SOURCE = 32, _ASM_KVM_H
    _fields_ = (
        ("exception", c_uint32),
        ("pad", c_uint32),
        ("pc", c_uint64),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
    )


class RunMemoryFault(Struct):
    """``kvm_run.memory_fault``."""

    SIZE, SOURCE = 24, _KVM_H
    _fields_ = (("flags", c_uint64), ("gpa", c_uint64), ("size", c_uint64))
