"""The local APIC of the only CPU, in xAPIC and x2APIC mode (Intel SDM volume 3A, chapter 12).

Its registers and priorities are ``native/hooks/lapic.c``, for the modelled CPU accesses them without Python. Here are
its timer, and what devices and monitors do with it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from casemate import native
from casemate.abi.x86 import msr
from casemate.address import LAPIC_BASE
from casemate.devices.lapic_timer import LapicTimer
from casemate.errors import UnsupportedError
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import TimeStampCounter

LAPIC_SIZE = 0x1000
SAVED_BYTES = 0x400


class Register:
    """Offsets in the page."""

    ID = 0x020
    VERSION = 0x030
    TPR = 0x080
    PPR = 0x0A0
    EOI = 0x0B0
    LDR = 0x0D0
    DFR = 0x0E0
    SVR = 0x0F0
    ISR = 0x100
    TMR = 0x180
    IRR = 0x200
    ESR = 0x280
    ICR_LOW = 0x300
    ICR_HIGH = 0x310
    LVT_TIMER = 0x320
    LVT_THERMAL = 0x330
    LVT_PERFORMANCE = 0x340
    LVT_LINT0 = 0x350
    LVT_LINT1 = 0x360
    LVT_ERROR = 0x370
    TIMER_INITIAL = 0x380
    TIMER_CURRENT = 0x390
    TIMER_DIVIDE = 0x3E0


class DeliveryMode:
    """Bits 10:8 of ICR, LVT and redirection table entries."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    NMI = 4
    INIT = 5
    EXT_INT = 7


LVT_MASKED, LVT_PERIODIC, LVT_DEADLINE = 1 << 16, 1 << 17, 1 << 18
SVR_ENABLED = 1 << 8
HAS_X2APIC, HAS_DEADLINE, SUPPRESSES_EOI = 1, 2, 4
"""What an APIC can offer: x2APIC mode, the timer's TSC deadline, and suppression of EOI broadcasts."""
_EDGE = 0x100
_EVENT_NMI, _EVENT_INIT, _EVENT_STARTUP = 1, 2, 4
_READONLY = (Register.VERSION, Register.PPR, Register.TIMER_CURRENT)

_ReadTimer = CFUNCTYPE(c_uint32)
_WriteTimer = CFUNCTYPE(None, c_uint32, c_uint64)
_OnEoi = CFUNCTYPE(None, c_uint32)
_OnMessage = CFUNCTYPE(None)


class LapicRecord(ctypes.Structure):
    """``struct lapic`` of ``native/hooks/lapic.h``, field by field."""

    _fields_ = (
        ("page", c_uint32 * (SAVED_BYTES // 4)),
        ("base", c_uint64),
        ("own_base", c_uint64),
        ("deadline", c_uint64),
        ("accesses", c_uint64),
        ("id", c_uint32),
        ("features", c_uint32),
        ("errors", c_uint32),
        ("events", c_uint32),
        ("ext_int", c_uint32),
        ("ext_int_passed", c_uint32),
        ("startup_vector", c_uint32),
        ("hears_edges", c_uint32),
        ("next", c_uint64),
        ("read_timer", _ReadTimer),
        ("write_timer", _WriteTimer),
        ("on_eoi", _OnEoi),
        ("on_message", _OnMessage),
    )


@cache
def _library() -> Any:
    """The hooks' library. Its calls here keep Python's lock: they are short. Raises UnsupportedError without one."""
    try:
        library = ctypes.PyDLL(str(native.HOOKS))
    except OSError as error:
        raise UnsupportedError(
            f"there are no interrupt controllers here: machine code was not built ({error})",
            "install casemate's wheel for Linux on x86-64",
        ) from None
    library.lapic_size.restype = c_uint64
    return library


def record_size() -> int:
    """Bytes of the record, as the library has them. Raises UnsupportedError."""
    return int(_library().lapic_size())


class Lapic:
    """The registers of one APIC, and its timer on ``clock``.

    ``on_eoi`` is called with the vector of every level-triggered interrupt that ends. IPIs reach the APICs that are
    connected; NMI, INIT and start-up wait in the record for the CPU. LINT0 of the first one comes up as ExtINT, as KVM
    has it. ``features`` are what it offers, ``number`` is its ID. Raises UnsupportedError where the library was not
    built.
    """

    def __init__(
        self, clock: GuestClock, features: int = HAS_X2APIC | SUPPRESSES_EOI, number: int = 0
    ) -> None:
        self._clock = clock
        self._library = _library()
        self.timer = LapicTimer()
        self.on_eoi: Callable[[int], None] = lambda vector: None
        self.on_edge_end: Callable[[], None] = lambda: None
        """Told of the end of every edge-triggered interrupt while ``hears_edges``."""
        self.on_timer: Callable[[int], None] = lambda time: None
        """Told when the timer expires next."""
        self.on_error: Callable[[BaseException], None] | None = None
        """Told what a call from the library raised; ctypes alone would print it, and the guest would go on."""
        self.tsc: TimeStampCounter | None = None
        """Of the CPU, for the timer's deadline mode."""
        self.record = LapicRecord(
            id=number,
            features=features,
            read_timer=_ReadTimer(self._guarded(self._current_count)),
            write_timer=_WriteTimer(self._guarded(self._write_timer)),
            on_eoi=_OnEoi(self._guarded(self._end_of_interrupt)),
        )
        self.address = ctypes.addressof(self.record)
        """Of the record, for the modelled CPU."""
        self._pointer = c_void_p(self.address)
        self.record.base = self.address + LapicRecord.own_base.offset
        self.record.next = self.address
        self.reset()

    def connect(self, after: Lapic) -> None:
        """Be on the bus of APICs that ``after`` is on."""
        self.record.next, after.record.next = after.record.next, self.address

    def hear_messages(self, on_message: Callable[[], None]) -> None:
        """Call it when another CPU, or a device, has sent something that the CPU of this APIC is to look at."""
        self.record.on_message = _OnMessage(self._guarded(on_message))

    def keep_base_at(self, address: int) -> None:
        """IA32_APIC_BASE is there from now on, with the value that it has there."""
        self.record.base = address

    def reset(self) -> None:
        """Software-disabled, everything masked but LINT0."""
        self.timer.reset()
        self._library.lapic_reset(self._pointer)

    @property
    def base(self) -> int:
        """IA32_APIC_BASE."""
        return c_uint64.from_address(self.record.base).value

    @property
    def enabled(self) -> bool:
        """Whether software enabled the APIC (SVR bit 8)."""
        return bool(self.record.page[Register.SVR // 4] & SVR_ENABLED)

    def accepts_ext_int(self) -> bool:
        """Whether the 8259 gets through: by LINT0, past an APIC that is disabled, or by the I/O APIC."""
        return bool(self.record.ext_int_passed or self._library.lapic_takes_ext_int(self._pointer))

    def set_ext_int(self, level: bool) -> None:
        """Drive LINT0, which the 8259's INT is wired to."""
        self.record.ext_int = level

    def pulse_lint1(self) -> None:
        """An edge at LINT1, which the chipset's NMI is wired to. From the CPU's thread."""
        self._raise_local(Register.LVT_LINT1)

    @property
    def hears_edges(self) -> bool:
        """Whether ``on_edge_end`` is called."""
        return bool(self.record.hears_edges)

    @hears_edges.setter
    def hears_edges(self, value: bool) -> None:
        self.record.hears_edges = value

    def timer_deadline(self) -> int | None:
        """Guest time of the next timer interrupt, or None while it is stopped or masked."""
        return None if self.record.page[Register.LVT_TIMER // 4] & LVT_MASKED else self.timer.deadline()

    def advance(self, now: int) -> None:
        """Raise the timer interrupt if its time has come."""
        if now >= self.timer.next_expiry:
            self.timer.expire(now)
            self.record.deadline = 0
            self._raise_local(Register.LVT_TIMER)

    def accept(self, vector: int, level: bool, mode: int = DeliveryMode.FIXED) -> bool:
        """Take an interrupt; False while disabled or if the vector is illegal."""
        return bool(self._library.lapic_accept(self._pointer, mode, vector, level))

    def is_destination(self, destination: int, logical: bool) -> bool:
        """Whether an 8-bit destination field means this CPU."""
        return bool(self._library.lapic_is_destination(self._pointer, destination, logical, False))

    def deliver(self, destination: int, logical: bool, mode: int, vector: int, level: bool) -> bool:
        """A message of a device to all connected APICs, with an 8-bit destination field; whether one took it."""
        return bool(
            self._library.lapic_deliver(self._pointer, mode, vector, level, destination, logical, False)
        )

    def is_requested(self, vector: int) -> bool:
        """Whether ``vector`` waits to be acknowledged (IRR)."""
        return bool(self.record.page[(Register.IRR + (vector >> 5) * 0x10) // 4] >> (vector & 31) & 1)

    def pending(self) -> bool:
        """Whether a request outranks the processor priority."""
        return bool(self._library.lapic_pending(self._pointer))

    def acknowledge(self) -> int:
        """Put the highest request into service and return its vector; the spurious one if none is pending."""
        return int(self._library.lapic_acknowledge(self._pointer))

    @property
    def has_event(self) -> bool:
        """Whether an NMI or INIT waits for the CPU."""
        return bool(self.record.events & (_EVENT_NMI | _EVENT_INIT))

    @property
    def has_messages(self) -> bool:
        """Whether an NMI, INIT or start-up IPI waits for the CPU."""
        return bool(self.record.events)

    def take_init(self) -> bool:
        """Whether an INIT came, which resets the APIC as it resets the CPU. From the CPU's thread."""
        if not self.record.events & _EVENT_INIT:
            return False
        self.record.events &= ~_EVENT_INIT
        self.timer.reset()
        self._library.lapic_init(self._pointer)
        return True

    def take_startup(self) -> int | None:
        """The vector of a start-up IPI that came. From the CPU's thread."""
        if not self.record.events & _EVENT_STARTUP:
            return None
        self.record.events &= ~_EVENT_STARTUP
        return int(self.record.startup_vector)

    def read_mmio(self, offset: int, size: int) -> int | None:
        """A register, or bytes of it; reserved offsets read 0. None while the page is not there."""
        if not self.is_at_home():
            return None
        if size > 4:
            return 0
        return int(self._library.lapic_read(self._pointer, offset, size)) & 0xFFFF_FFFF

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """A register, 32 bits at once; other widths do nothing, as the SDM leaves them undefined."""
        if not self.is_at_home():
            return False
        return bool(self._library.lapic_write(self._pointer, offset, size, c_uint32(value)))

    def save(self) -> bytes:
        """The first 1024 bytes of the page, as KVM_GET_LAPIC has them."""
        page = (c_uint32 * (SAVED_BYTES // 4))(*self.record.page)
        for register in (Register.PPR, Register.TIMER_CURRENT):
            page[register // 4] = self._library.lapic_read(self._pointer, register, 4)
        return bytes(page)

    def load(self, page: bytes) -> None:
        """Take the state of such a page; the timer counts on from its current count."""
        self.timer.reset()
        kept = {register: self.record.page[register // 4] for register in _READONLY}
        ctypes.memmove(self.address, page, SAVED_BYTES)
        for register, value in kept.items():
            self.record.page[register // 4] = value
        self.record.errors = 0

        def register_in(offset: int) -> int:
            return int.from_bytes(page[offset : offset + 4], "little")

        now = self._clock.now()
        self.timer.periodic = bool(register_in(Register.LVT_TIMER) & LVT_PERIODIC)
        self.timer.set_divide_configuration(register_in(Register.TIMER_DIVIDE), now)
        self.timer.start(register_in(Register.TIMER_CURRENT), now)
        self.timer.initial_count = register_in(Register.TIMER_INITIAL)
        self.on_timer(self.timer.next_expiry)

    def is_at_home(self) -> bool:
        """Whether its page is there, and where it is after a reset."""
        mode = msr.APIC_BASE_ENABLE | msr.APIC_BASE_X2APIC
        return self.base & (mode | -LAPIC_SIZE) == msr.APIC_BASE_ENABLE | LAPIC_BASE

    def _guarded(self, function: Callable[..., int | None]) -> Callable[..., int]:
        def call(*arguments: int) -> int:
            try:
                return function(*arguments) or 0
            except BaseException as error:
                if self.on_error is None:
                    raise
                self.on_error(error)
                return 0

        return call

    def _end_of_interrupt(self, vector: int) -> None:
        if vector == _EDGE:
            self.on_edge_end()
        else:
            self.on_eoi(vector)

    def _raise_local(self, register: int) -> None:
        self._library.lapic_raise_local(self._pointer, register)

    def _current_count(self) -> int:
        now = self._clock.now()
        self.advance(now)
        in_deadline_mode = self.record.page[Register.LVT_TIMER // 4] & LVT_DEADLINE
        return 0 if in_deadline_mode else self.timer.current_count(now) & 0xFFFF_FFFF

    def load_deadline(self, deadline: int) -> None:
        """The timer's TSC deadline is this, as after a migration; nothing in another mode of the timer."""
        if self.record.page[Register.LVT_TIMER // 4] & LVT_DEADLINE:
            self.record.deadline = deadline
            self._write_timer(msr.TSC_DEADLINE, deadline)

    def _write_timer(self, which: int, value: int) -> None:
        now = self._clock.now()
        self.advance(now)
        if which == Register.LVT_TIMER:
            if (value ^ self.record.page[which // 4]) & LVT_DEADLINE:
                self.timer.start(0, now)
                self.record.deadline = self.record.page[Register.TIMER_INITIAL // 4] = 0
            self.timer.periodic = bool(value & LVT_PERIODIC)
        elif which == Register.TIMER_DIVIDE:
            self.timer.set_divide_configuration(value, now)
        elif which == msr.TSC_DEADLINE:
            self._start_deadline(value, now)
        elif not self.record.page[Register.LVT_TIMER // 4] & LVT_DEADLINE:
            self.timer.start(value, now)
        self.on_timer(self.timer.next_expiry)

    def _start_deadline(self, deadline: int, now: int) -> None:
        if not deadline or self.tsc is None:
            self.timer.start(0, now)
            return
        ticks = deadline - self.tsc.read_tsc()
        if ticks <= 0:
            self.timer.start_once(now)
            self.advance(now)
        else:
            self.timer.start_once(now + int(ticks * self.tsc.nanoseconds_per_tick()) + 1)
