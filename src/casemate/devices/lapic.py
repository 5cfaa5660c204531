"""The local APIC of the only CPU, in xAPIC mode (Intel SDM volume 3A, "Advanced Programmable Interrupt Controller")."""

from __future__ import annotations

from collections.abc import Callable

from casemate.devices.lapic_timer import LapicTimer
from casemate.host.clock import GuestClock

LAPIC_SIZE = 0x1000
SAVED_BYTES = 0x400
VERSION = 0x50014
"""An integrated APIC with six LVT entries."""


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
    """Bits 10:8 of ICR and LVT entries."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    EXT_INT = 7


LVT_MASKED, LVT_PERIODIC = 1 << 16, 1 << 17
LVT_EXT_INT_MASK = LVT_MASKED | 7 << 8
LINT_RESET = DeliveryMode.EXT_INT << 8
SVR_ENABLED = 1 << 8
ESR_SEND_ILLEGAL, ESR_RECEIVE_ILLEGAL, ESR_ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7
ICR_LOGICAL = 1 << 11
BROADCAST = 0xFF

WRITABLE: dict[int, int] = {
    Register.ID: 0xFF00_0000,
    Register.TPR: 0xFF,
    Register.LDR: 0xFF00_0000,
    Register.ICR_HIGH: 0xFF00_0000,
    Register.LVT_THERMAL: 0x0001_07FF,
    Register.LVT_PERFORMANCE: 0x0001_07FF,
    Register.LVT_LINT0: 0x0001_A7FF,
    Register.LVT_LINT1: 0x0001_A7FF,
    Register.LVT_ERROR: 0x0001_00FF,
}
"""Registers that only keep what is written, with their writable bits."""
LVT_REGISTERS = (
    Register.LVT_TIMER,
    Register.LVT_THERMAL,
    Register.LVT_PERFORMANCE,
    Register.LVT_LINT0,
    Register.LVT_LINT1,
    Register.LVT_ERROR,
)


class Lapic:
    """The 4 KiB page of registers; 256-bit vectors are kept as integers, bit ``n`` for vector ``n``.

    ``on_eoi`` is called with the vector of every level-triggered interrupt that ends. IPIs reach this CPU or
    nobody; INIT and start-up IPIs are accepted and do nothing. LINT0 comes up as ExtINT, as KVM has it.
    """

    __slots__ = (
        "_clock",
        "_errors",
        "_in_service",
        "_registers",
        "_requests",
        "_triggers",
        "on_eoi",
        "timer",
    )

    def __init__(self, clock: GuestClock) -> None:
        self._clock = clock
        self.timer = LapicTimer()
        self.on_eoi: Callable[[int], None] = lambda vector: None
        self.reset()

    def reset(self) -> None:
        """Software-disabled, everything masked but LINT0."""
        self._requests = self._in_service = self._triggers = self._errors = 0
        self._registers: dict[int, int] = {
            Register.VERSION: VERSION,
            Register.DFR: 0xFFFF_FFFF,
            Register.SVR: 0xFF,
        }
        for register in LVT_REGISTERS:
            self._registers[register] = LVT_MASKED
        self._registers[Register.LVT_LINT0] = LINT_RESET
        self.timer.reset()

    @property
    def enabled(self) -> bool:
        """Whether software enabled the APIC (SVR bit 8)."""
        return bool(self._registers[Register.SVR] & SVR_ENABLED)

    def accepts_ext_int(self) -> bool:
        """Whether the 8259 gets through: by LINT0, or past an APIC that is disabled."""
        return not self.enabled or self._registers[Register.LVT_LINT0] & LVT_EXT_INT_MASK == LINT_RESET

    def timer_deadline(self) -> int | None:
        """Guest time of the next timer interrupt, or None while it is stopped or masked."""
        return None if self._registers[Register.LVT_TIMER] & LVT_MASKED else self.timer.deadline()

    def advance(self, now: int) -> None:
        """Raise the timer interrupt if its time has come."""
        if now >= self.timer.next_expiry:
            self.timer.expire(now)
            self._raise_local(Register.LVT_TIMER)

    def accept(self, vector: int, level: bool) -> bool:
        """Take a fixed interrupt; False while disabled or if the vector is illegal."""
        if not self.enabled:
            return False
        if vector < 16:
            self._report_error(ESR_RECEIVE_ILLEGAL)
            return False
        bit = 1 << vector
        self._requests |= bit
        self._triggers = self._triggers | bit if level else self._triggers & ~bit
        return True

    def is_destination(self, destination: int, logical: bool) -> bool:
        """Whether an 8-bit destination field means this CPU."""
        if not logical:
            return destination in (self._registers.get(Register.ID, 0) >> 24, BROADCAST)
        mine = self._registers.get(Register.LDR, 0) >> 24
        if self._registers[Register.DFR] >> 28 == 0:
            same_cluster = mine >> 4 == destination >> 4 or destination >> 4 == 0x0F
            return same_cluster and bool(mine & destination & 0x0F)
        return bool(mine & destination)

    def pending(self) -> bool:
        """Whether a request outranks the processor priority."""
        if not self._requests or not self.enabled:
            return False
        return (self._requests.bit_length() - 1) >> 4 > self._processor_priority() >> 4

    def acknowledge(self) -> int:
        """Put the highest request into service and return its vector; the spurious one if none is pending."""
        if not self.pending():
            return self._registers[Register.SVR] & 0xFF
        vector = self._requests.bit_length() - 1
        self._requests ^= 1 << vector
        self._in_service |= 1 << vector
        return vector

    def read_mmio(self, offset: int, size: int) -> int:
        """A register, or bytes of it; reserved offsets read 0."""
        value = 0 if offset & 0x0C else self._read(offset & ~3)
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """A register, 32 bits at once; other widths do nothing, as the SDM leaves them undefined."""
        if size != 4 or offset & 0x0F:
            return False
        self._write(offset, value)
        return True

    def save(self) -> bytes:
        """The first 1024 bytes of the page, as KVM_GET_LAPIC has them."""
        page = bytearray(SAVED_BYTES)
        for register in range(0, SAVED_BYTES, 16):
            page[register : register + 4] = self._read(register).to_bytes(4, "little")
        return bytes(page)

    def load(self, page: bytes) -> None:
        """Take the state of such a page; the timer counts on from its current count."""

        def register(offset: int) -> int:
            return int.from_bytes(page[offset : offset + 4], "little")

        def vectors(offset: int) -> int:
            return sum(register(offset + 16 * word) << 32 * word for word in range(8))

        self.reset()
        kept = (*WRITABLE, Register.LVT_TIMER, Register.DFR, Register.SVR, Register.ESR, Register.ICR_LOW)
        self._registers |= {offset: register(offset) for offset in kept}
        self._in_service, self._triggers = vectors(Register.ISR), vectors(Register.TMR)
        self._requests = vectors(Register.IRR)
        now = self._clock.now()
        self.timer.periodic = bool(register(Register.LVT_TIMER) & LVT_PERIODIC)
        self.timer.set_divide_configuration(register(Register.TIMER_DIVIDE), now)
        self.timer.start(register(Register.TIMER_CURRENT), now)
        self.timer.initial_count = register(Register.TIMER_INITIAL)

    def _processor_priority(self) -> int:
        task = self._registers.get(Register.TPR, 0)
        if not self._in_service:
            return task
        service = self._in_service.bit_length() - 1 & 0xF0
        return task if task & 0xF0 >= service else service

    def _read(self, register: int) -> int:
        stored = self._registers.get(register)
        if stored is not None:
            return stored
        if register == Register.TIMER_CURRENT:
            now = self._clock.now()
            self.advance(now)
            return self.timer.current_count(now)
        if Register.ISR <= register < Register.ESR:
            vectors = (self._in_service, self._triggers, self._requests)[register - Register.ISR >> 7]
            return vectors >> (register & 0x70) * 2 & 0xFFFF_FFFF
        match register:
            case Register.PPR:
                return self._processor_priority()
            case Register.TIMER_INITIAL:
                return self.timer.initial_count
            case Register.TIMER_DIVIDE:
                return self.timer.divide_configuration
        return 0

    def _write(self, register: int, value: int) -> None:
        mask = WRITABLE.get(register)
        if mask is not None:
            if register in LVT_REGISTERS and not self.enabled:
                value |= LVT_MASKED
            self._registers[register] = value & mask
            return
        match register:
            case Register.EOI:
                self._end_of_interrupt()
            case Register.DFR:
                self._registers[register] = value | 0x0FFF_FFFF
            case Register.SVR:
                self._write_svr(value)
            case Register.ESR:
                self._registers[register], self._errors = self._errors, 0
            case Register.ICR_LOW:
                self._send(value)
            case Register.LVT_TIMER | Register.TIMER_INITIAL | Register.TIMER_DIVIDE:
                self._write_timer(register, value)
            case _:
                self._report_error(ESR_ILLEGAL_REGISTER)

    def _write_svr(self, value: int) -> None:
        self._registers[Register.SVR] = value & 0x3FF
        if not value & SVR_ENABLED:
            for register in LVT_REGISTERS:
                self._registers[register] |= LVT_MASKED

    def _write_timer(self, register: int, value: int) -> None:
        now = self._clock.now()
        self.advance(now)
        if register == Register.LVT_TIMER:
            masked = 0 if self.enabled else LVT_MASKED
            self._registers[register] = value & (LVT_PERIODIC | LVT_MASKED | 0xFF) | masked
            self.timer.periodic = bool(value & LVT_PERIODIC)
        elif register == Register.TIMER_INITIAL:
            self.timer.start(value, now)
        else:
            self.timer.set_divide_configuration(value, now)

    def _end_of_interrupt(self) -> None:
        if not self._in_service:
            return
        vector = self._in_service.bit_length() - 1
        self._in_service ^= 1 << vector
        if self._triggers >> vector & 1:
            self.on_eoi(vector)

    def _send(self, command: int) -> None:
        """An IPI: only fixed ones to this CPU have an effect."""
        self._registers[Register.ICR_LOW] = command & 0x000C_CFFF
        mode, vector, shorthand = command >> 8 & 7, command & 0xFF, command >> 18 & 3
        if mode not in (DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY):
            return
        if vector < 16:
            self._report_error(ESR_SEND_ILLEGAL)
            return
        destination = self._registers.get(Register.ICR_HIGH, 0) >> 24
        to_self = shorthand in (1, 2)
        if to_self or (shorthand == 0 and self.is_destination(destination, bool(command & ICR_LOGICAL))):
            self.accept(vector, level=False)

    def _raise_local(self, register: int) -> None:
        entry = self._registers[register]
        if not entry & LVT_MASKED:
            self.accept(entry & 0xFF, level=False)

    def _report_error(self, error: int) -> None:
        """Collect an error; the interrupt is raised once per kind until software reads them out."""
        if not self._errors & error:
            self._errors |= error
            self._raise_local(Register.LVT_ERROR)
