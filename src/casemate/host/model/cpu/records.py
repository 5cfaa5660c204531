"""What the hooks' library and Python have in common: records, and the types of callbacks (``native/hooks/cpu.h``)."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, c_int, c_uint16, c_uint32, c_uint64, c_void_p

PAGES = 1 << 24
"""Bytes of the table of pages that code came from; pages beyond share them."""
EXIT_CODES, RAMS = 0x800, 64
_LEAVES, _PROGRAMS, _SITES, _NOTED = 256, 1024, 256, 4096
_LOCALS, _LARGE_REGIONS, _PAGE_STAMPS = 256, 1 << 15, 1024
WALKED = 512
BREAKPOINTS = 4
KNOWN_BLOCKS_BYTES = 8192 * (32 + 8)
"""``struct known_blocks``."""

PortRead = CFUNCTYPE(c_uint32, c_uint32, c_uint32)
"""Port and bytes."""
PortWrite = CFUNCTYPE(None, c_uint32, c_uint32, c_uint32)
MmioRead = CFUNCTYPE(c_uint64, c_uint64, c_uint32)
"""Guest-physical address and bytes."""
MmioWrite = CFUNCTYPE(None, c_uint64, c_uint32, c_uint64)
InterruptAcknowledger = CFUNCTYPE(c_int)
InterruptPoll = CFUNCTYPE(c_int)
WriteDecider = CFUNCTYPE(c_uint32)
"""Decides about the write in the record: 0 to ignore it, or the exception that undoes its instruction."""
PseudoException = CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
InstructionDecider = CFUNCTYPE(c_uint32)
MsrAnswer = CFUNCTYPE(c_uint32, c_uint32, c_uint32, ctypes.POINTER(c_uint64))
CpuidAnswer = CFUNCTYPE(None, c_uint32, c_uint32, ctypes.POINTER(c_uint32))
TakePrograms = CFUNCTYPE(None, c_uint32, c_uint32)


class _Program(ctypes.Structure):
    _fields_ = (("offset", c_uint32), ("size", c_uint32), ("value", c_uint64), ("ticks", c_uint64))


class _Flash(ctypes.Structure):
    _fields_ = (
        ("gpa", c_uint64),
        ("size", c_uint64),
        ("armed", c_uint32),
        ("pending", c_uint32),
        ("count", c_uint32),
        ("pending_size", c_uint32),
        ("pending_offset", c_uint64),
        ("pending_value", c_uint64),
        ("take", TakePrograms),
        ("log", _Program * _PROGRAMS),
    )


class RamRecord(ctypes.Structure):
    """``struct ram``: guest memory in one piece of the host's."""

    _fields_ = (("start", c_uint64), ("size", c_uint64), ("host", c_uint64))


class Watch(ctypes.Structure):
    """``struct watch``: data whose accesses a debugger is told of."""

    _fields_ = (("start", c_uint64), ("end", c_uint64), ("sees_reads", c_uint64))


class _Stored(ctypes.Structure):
    _fields_ = (("page", c_uint64), ("stores", c_uint32), ("limit", c_uint32))


class _Walked(ctypes.Structure):
    _fields_ = (("at", c_uint64), ("value", c_uint64))


class CpuRecord(ctypes.Structure):
    """``struct cpu`` of ``native/hooks/cpu.h``, field by field."""

    _fields_ = (
        ("cpu", c_uint64),
        ("env", c_uint64),
        ("next", c_uint64),
        ("code_pages", c_uint64),
        ("rights", c_uint64),
        ("msrs", c_uint64),
        ("flags", c_uint32),
        ("fill_kind", c_uint32),
        ("fill_is_probe", c_uint32),
        ("store_size", c_uint32),
        ("store_gpa", c_uint64),
        ("store_value", c_uint64),
        ("refused_gpa", c_uint64),
        ("undo", c_uint64 * 5),
        ("block", c_uint64),
        ("is_translating", c_uint32),
        ("limit", c_uint32),
        ("bad_vector", c_uint32),
        ("bad_code", c_uint32),
        ("window", c_uint32),
        ("window_end", c_uint64),
        ("aborted", c_uint64),
        ("undone", c_uint64),
        ("fetched", c_uint64),
        ("group", c_uint64),
        ("fetched_known", c_uint64),
        ("written_known", c_uint64),
        ("pages_noted", c_uint64 * 64),
        ("before_store", c_void_p),
        ("stored", _Stored * 64),
        ("data_page", c_uint64),
        ("shares_memory", c_uint64),
        ("plain_count", c_uint64),
        ("plain", c_uint64 * 16),
        ("is_unmapping", c_uint64),
        ("looked", c_uint64),
        ("paused", c_uint64),
        ("spins", c_uint64),
        ("clock_port", c_uint64),
        ("rests", c_uint64),
        ("delivering", c_uint32),
        ("int_length", c_uint32),
        ("idt_moved", c_uint32),
        ("stack_moved", c_uint32),
        ("stack_base", c_uint64),
        ("stack_pointer", c_uint64),
        ("cr4_reserved", c_uint64),
        ("efer_reserved", c_uint64),
        ("address_reserved", c_uint64),
        ("wide_bits", c_uint64),
        ("table_bits", c_uint64),
        ("entry_bits", c_uint64),
        ("is_walking", c_uint64),
        ("leaf", c_uint64),
        ("local_count", c_uint64),
        ("locals", c_uint64 * _LOCALS),
        ("has_large", c_uint64),
        ("large", c_uint64 * (_LARGE_REGIONS // 64)),
        ("level_count", c_uint64),
        ("levels", _Walked * 5),
        ("walked_count", c_uint64),
        ("walked", _Walked * WALKED),
        ("walked_places", c_uint16 * 1024),
        ("blocks", c_uint64),
        ("context", c_uint64),
        ("stamp", c_uint32),
        ("flushed", c_uint32),
        ("page_stamps", c_uint32 * _PAGE_STAMPS),
        ("on_acknowledge", InterruptAcknowledger),
        ("on_write", WriteDecider),
        ("on_pseudo", PseudoException),
        ("on_instruction", InstructionDecider),
        ("read_port", PortRead),
        ("write_port", PortWrite),
        ("read_mmio", MmioRead),
        ("write_mmio", MmioWrite),
        ("on_msr", MsrAnswer),
        ("on_cpuid", CpuidAnswer),
        ("on_spin", InterruptPoll),
        ("pauses", c_uint64),
        ("served", c_uint64 * 8),
        ("vc", c_uint64 * EXIT_CODES),
        ("ram", RamRecord * RAMS),
        ("ram_count", c_uint64),
        ("ghcb_gpa", c_uint64),
        ("ghcb", c_uint64),
        ("reads_table", c_uint64),
        ("port_at", c_uint64),
        ("undo_port", c_uint64),
        ("leaves", c_uint32 * 7 * _LEAVES),
        ("flash", _Flash),
        ("lapic", c_uint64),
        ("kicked", c_uint64),
        ("on_kick", InterruptPoll),
        ("sites", c_uint64 * _SITES),
        ("site_ends", c_uint64 * _SITES),
        ("last", c_uint64 * _SITES),
        ("debug", c_uint32),
        ("debugged", c_uint32),
        ("breakpoint_count", c_uint64),
        ("breakpoints", c_uint64 * BREAKPOINTS),
        ("watch_count", c_uint64),
        ("watch_hits", c_uint64),
        ("watches", Watch * BREAKPOINTS),
    )


class TickerRecord(ctypes.Structure):
    """``struct ticker`` of ``native/hooks/ticker.c``."""

    _fields_ = (("due", c_uint64), ("wakes", c_uint64), ("signals", c_uint32), ("closed", c_uint32))


class GroupRecord(ctypes.Structure):
    """``struct group`` of ``native/hooks/cpu.h``."""

    _fields_ = (
        ("fetched", c_uint64),
        ("written", c_uint64),
        ("others_wait", c_uint64),
        ("pauses", c_uint64),
        ("pages", c_uint64 * _NOTED),
    )
