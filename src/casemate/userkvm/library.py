"""The preloaded library as ctypes functions (``native/kvm``); it is in the process before this module is."""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, c_int, c_int64, c_long, c_size_t, c_uint8, c_uint32, c_uint64, c_ulong, c_void_p
from enum import IntEnum
from functools import cache
from typing import Any

from casemate import native
from casemate.errors import HostError
from casemate.userkvm.options import SET_STACK

RUN_BYTES, PAGE = 3 * 4096, 4096
_RANGES, _ZONES, CODE_SLOTS, LINES = 256, 64, 64, 24

IoctlCallback = CFUNCTYPE(c_long, c_int, c_uint64, c_ulong, c_ulong)
LoopCallback = CFUNCTYPE(None, c_uint64)
ReleaseCallback = CFUNCTYPE(None, c_int, c_uint64)
ProtectionCallback = CFUNCTYPE(None, c_uint64, c_uint64)
FallocateCallback = CFUNCTYPE(c_int, c_uint64, c_int, c_int64, c_int64)
FinishCallback = CFUNCTYPE(None)
BeforeRunCallback = CFUNCTYPE(c_int, c_uint64)
AfterRunCallback = CFUNCTYPE(None, c_uint64, c_int64)


class Kind(IntEnum):
    """What a descriptor is of."""

    SYSTEM = 1
    VM = 2
    VCPU = 3
    SEV = 4
    GUEST_MEMFD = 5


class Count(IntEnum):
    """Places where ``VcpuRecord.counts`` is; the first four are those that KVM_GET_STATS_FD has."""

    IO = 0
    MMIO = 1
    INTERRUPTED = 2
    EXITS = 3
    OTHER = 4
    RUNS = 5
    IMMEDIATE = 6
    INSIDE = 7


class _Range(ctypes.Structure):
    _fields_ = (("start", c_uint64), ("end", c_uint64))


class _Zone(ctypes.Structure):
    _fields_ = (("start", c_uint64), ("end", c_uint64), ("is_pio", c_uint64))


class Inside(ctypes.Structure):
    """``struct inside``: ports and addresses that are served without leaving KVM_RUN."""

    _fields_ = (
        ("ports", c_uint8 * 8192),
        ("count", c_uint64),
        ("mmio", _Range * _RANGES),
        ("zone_count", c_uint64),
        ("zones", _Zone * _ZONES),
        ("tickets", c_uint32),
        ("turn", c_uint32),
        ("others_wait", c_uint64),
        ("is_low", c_uint8 * LINES),
        ("lowered", c_uint64 * 2),
        ("ring", c_uint64),
    )

    def set_zones(self, zones: list[tuple[int, int, bool]]) -> bool:
        """Coalesce writes to these: start, end, whether ports. False if there is no room."""
        if len(zones) > _ZONES:
            return False
        self.zone_count = 0
        for place, zone in enumerate(zones):
            self.zones[place] = _Zone(*zone)
        self.zone_count = len(zones)
        return True

    def add_ports(self, first: int, count: int) -> None:
        """Serve these."""
        for port in range(first, first + count):
            self.ports[port >> 3] |= 1 << (port & 7)

    def add_mmio(self, start: int, size: int) -> bool:
        """Serve this; False if there is no room."""
        if any(known.start <= start and start + size <= known.end for known in self.mmio[: self.count]):
            return True
        if self.count == _RANGES:
            return False
        self.mmio[self.count] = _Range(start, start + size)
        self.count += 1
        return True


class _Code(ctypes.Structure):
    _fields_ = (("host", c_uint64), ("pages", c_uint64), ("marks", c_uint64), ("seen", c_uint64))


class VcpuRecord(ctypes.Structure):
    """``struct vcpu``."""

    _fields_ = (
        ("stop_wanted", c_uint8),
        ("in_run", c_uint8),
        ("abandoned", c_uint8),
        ("has_mask", c_uint8),
        ("wake_fd", c_int),
        ("engine", c_void_p),
        ("stop_engine", c_void_p),
        ("run", c_uint64),
        ("inside", c_uint64),
        ("address_mask", c_uint64),
        ("signal_mask", c_uint64),
        ("counts", c_uint64),
        ("stats_fd", c_uint64),
        ("read_port", c_uint64),
        ("write_port", c_uint64),
        ("read_mmio", c_uint64),
        ("write_mmio", c_uint64),
        ("started", c_uint64),
        ("must_end", c_uint64),
        ("stack", c_uint64),
        ("here", c_uint64),
        ("caller", c_uint64),
        ("in_access", c_uint64),
        ("pending", c_uint64),
        ("latched", c_uint64),
        ("answer", c_uint64),
        ("replay", c_uint64),
        ("completing", c_uint64),
        ("undo_port", c_uint64),
        ("python", c_uint64),
        ("executing", c_uint64),
        ("exchange", c_uint64),
        ("held", c_uint32),
        ("parked", c_uint32),
        ("attention", c_uint32),
        ("queued", c_uint32),
        ("eflags", c_uint64),
        ("ticket", c_uint32),
        ("has_turn", c_uint32),
        ("result", c_int64),
        ("fetches", c_uint64),
        ("fetches_seen", c_uint64),
        ("writes_seen", c_uint64),
        ("writes", c_uint64),
        ("must_protect", c_uint64),
        ("thread", c_uint64),
        ("runner", c_uint64),
        ("cancelled", c_uint64),
        ("is_stale", c_uint64),
        ("code_count", c_uint64),
        ("code", _Code * CODE_SLOTS),
    )

    def count(self, place: Count) -> int:
        """How often it was."""
        return c_uint64.from_address(self.counts + 8 * place).value


@cache
def load() -> Any:
    """The library. Raises HostError where it cannot be loaded."""
    try:
        library = ctypes.CDLL(str(native.KVM))
    except OSError as error:
        raise HostError(
            "dlopen", error.errno or 0, str(error), "install casemate for this computer"
        ) from None
    for number in ("vcpu_size", "inside_size", "stack_size", "tsc_khz"):
        getattr(library, f"kvm_{number}").restype = c_uint64
    library.kvm_new_vcpu.restype = c_uint64
    library.kvm_new_vcpu.argtypes = (ctypes.POINTER(c_int), c_void_p)
    library.kvm_free_vcpu.argtypes = (c_uint64,)
    library.kvm_watch_vcpu.argtypes = (c_uint64, c_int)
    library.kvm_register_descriptor.argtypes = (c_int, c_int, c_uint64)
    library.kvm_descriptor.argtypes = (c_int, c_uint64, ctypes.c_char_p)
    library.kvm_watch_lines.argtypes, library.kvm_watch_lines.restype = (c_uint64, c_void_p), None
    library.kvm_copy_in.argtypes = library.kvm_copy_out.argtypes = (ctypes.c_char_p, c_uint64, c_size_t)
    library.kvm_leave.argtypes = (c_uint64, c_uint32, c_long)
    library.kvm_exit_port.argtypes = (c_uint64, c_int, c_uint32, c_uint32, c_uint32)
    library.kvm_exit_port.restype = c_uint32
    library.kvm_exit_mmio.argtypes = (c_uint64, c_int, c_uint64, c_uint32, c_uint64)
    library.kvm_exit_mmio.restype = c_uint64
    library.kvm_wait.argtypes = (c_uint64, c_int64)
    library.kvm_watch_memory.argtypes = library.kvm_unwatch_memory.argtypes = (c_uint64, c_uint64)
    library.kvm_unwatch_memory.restype = None
    library.kvm_log_start.argtypes = (c_uint64, c_uint64, c_uint64)
    library.kvm_log_take.argtypes, library.kvm_log_take.restype = (c_uint64, c_uint64), None
    library.kvm_log_stop.argtypes, library.kvm_log_stop.restype = (c_uint64,), None
    library.kvm_wake.argtypes = (c_uint64,)
    ours = "pause", "hold", "release", "park", "complete", "pass_turn"
    for call in (getattr(library, f"kvm_{name}") for name in ours):
        call.argtypes, call.restype = (c_uint64,), None
    library.kvm_leave.restype = library.kvm_free_vcpu.restype = None
    library.kvm_wait.restype = library.kvm_wake.restype = None
    return library


def stay_on_stack(record: VcpuRecord) -> None:
    """Tell Python where the stack is that the calling coroutine runs on: since 3.14 it looks how much is left."""
    if hasattr(ctypes.pythonapi, SET_STACK):
        state = ctypes.pythonapi.PyThreadState_Get
        state.restype = c_void_p
        set_stack = getattr(ctypes.pythonapi, SET_STACK)
        set_stack.argtypes = (c_void_p, c_void_p, c_size_t)
        set_stack(state(), record.stack, load().kvm_stack_size())


def address_of(function: Any) -> int:
    """Where a function of the library, or a callback, is."""
    return ctypes.cast(function, c_void_p).value or 0
