"""State of the 8259s and the 8254 as KVM shows and takes it (Linux asm/kvm.h: kvm_pic_state, kvm_pit_state2).

It is what the guest wrote to their ports, and it is restored by writing the same again: periods begin anew, and an
interrupt that is being served is forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_PIC = struct.Struct("<16B")
_CHANNEL = struct.Struct("<IH10Bq")
_PIT = struct.Struct("<72sI36x")
_ICW1, _ICW4_NEEDED, _SINGLE, _LEVEL = 1 << 4, 1 << 0, 1 << 1, 1 << 3
_AUTO_EOI, _FULLY_NESTED, _MODE_8086 = 1 << 1, 1 << 4, 1
_OCW3, _READ_IRR = 1 << 3, 0x0A
_MASTER, _SLAVE, _ELCR, _PIT_PORT, _CONTROL = 0x20, 0xA0, 0x4D0, 0x40, 0x43
_ELCR_MASKS = 0xF8, 0xDE
_READ_BACK, _LATCH, _BOTH = 3, 0, 3

Write = Callable[[int, int, int], object]
Read = Callable[[int, int], int | None]


class _Pic:
    """What the guest told one chip."""

    def __init__(self) -> None:
        self.base = self.mask = self.icw4 = self.elcr = 0
        self._icw1 = 0
        self._next = 0

    def note(self, is_data: bool, value: int) -> None:
        if not is_data:
            if value & _ICW1:
                self._icw1, self._next, self.mask, self.icw4 = value, 2, 0, 0
        elif self._next == 2:
            self.base = value & 0xF8
            self._next = 3 if not self._icw1 & _SINGLE else 4 if self._icw1 & _ICW4_NEEDED else 0
        elif self._next == 3:
            self._next = 4 if self._icw1 & _ICW4_NEEDED else 0
        elif self._next == 4:
            self.icw4, self._next = value, 0
        else:
            self.mask = value


class _Channel:
    """What the guest told one counter."""

    def __init__(self) -> None:
        self.control = 0
        self.count = 0
        self._has_low = False

    def note_control(self, value: int) -> None:
        if value >> 4 & 3 != _LATCH:
            self.control, self.count, self._has_low = value & 0x3F, 0, False

    def note_count(self, value: int) -> None:
        access = self.control >> 4 & 3
        if access == _BOTH:
            self.count = self.count & 0xFF | value << 8 if self._has_low else value
            self._has_low = not self._has_low
        else:
            self.count = value << 8 if access == 2 else value


class LegacyChips:
    """Of one VM. ``note`` is told of every write to a port that the chips serve."""

    def __init__(self) -> None:
        self._pics = _Pic(), _Pic()
        self._channels = _Channel(), _Channel(), _Channel()

    def note(self, port: int, value: int) -> None:
        """The guest wrote a byte."""
        if port & ~1 in (_MASTER, _SLAVE):
            self._pics[port & ~1 == _SLAVE].note(bool(port & 1), value & 0xFF)
        elif port & ~1 == _ELCR:
            self._pics[port & 1].elcr = value & _ELCR_MASKS[port & 1]
        elif port == _CONTROL:
            if value >> 6 != _READ_BACK:
                self._channels[value >> 6].note_control(value & 0xFF)
        elif _PIT_PORT <= port < _CONTROL:
            self._channels[port - _PIT_PORT].note_count(value & 0xFF)

    def pic_state(self, chip: int, read: Read, write: Write) -> bytes:
        """``kvm_pic_state`` of chip 0 or 1."""
        pic, port = self._pics[chip], (_MASTER, _SLAVE)[chip]
        write(port, 1, _OCW3 | _READ_IRR)
        requests = read(port, 1) or 0
        auto_eoi, nested = bool(pic.icw4 & _AUTO_EOI), bool(pic.icw4 & _FULLY_NESTED)
        fields = (requests, requests, pic.mask, 0, 0, pic.base, 0, 0, 0, 0, auto_eoi, 0, nested, 0)
        return _PIC.pack(*fields, pic.elcr, _ELCR_MASKS[chip])

    def set_pic_state(self, chip: int, state: bytes, write: Write, set_irq: Callable[[int], None]) -> None:
        """Program it so; what was requested is requested again."""
        _, requests, mask, _, _, base, _, _, _, _, auto_eoi, _, nested, _, elcr, _ = _PIC.unpack_from(state)
        port, icw4 = (_MASTER, _SLAVE)[chip], _MODE_8086
        icw4 |= (_AUTO_EOI if auto_eoi else 0) | (_FULLY_NESTED if nested else 0)
        for at, value in ((0, _ICW1 | _ICW4_NEEDED), (1, base), (1, 2 if chip else 4), (1, icw4), (1, mask)):
            self._write(write, port + at, value)
        self._write(write, _ELCR + chip, elcr & _ELCR_MASKS[chip])
        for line in range(8):
            if requests >> line & 1 and not elcr >> line & 1:
                set_irq(line + 8 * chip)

    def pit_state(self) -> bytes:
        """``kvm_pit_state2``."""
        channels = b""
        for number, channel in enumerate(self._channels):
            access, mode, bcd = channel.control >> 4 & 3, channel.control >> 1 & 7, channel.control & 1
            fields = 0, 0, 0, 0, 0, 0, access, mode, bcd, int(number != 2)
            channels += _CHANNEL.pack(channel.count or 0x10000, 0, *fields, 0)
        return _PIT.pack(channels, 0)

    def set_pit_state(self, state: bytes, write: Write) -> None:
        """Program the counters so; they begin anew. One that was never programmed is left alone."""
        for number in range(3):
            count, _, *fields, _ = _CHANNEL.unpack_from(state, number * _CHANNEL.size)
            access, mode, bcd = fields[6:9]
            if not access:
                continue
            self._write(write, _CONTROL, number << 6 | access << 4 | mode << 1 | bcd)
            halves = {1: (count,), 2: (count >> 8,), 3: (count, count >> 8)}[access & 3]
            for half in halves:
                self._write(write, _PIT_PORT + number, half & 0xFF)

    def _write(self, write: Write, port: int, value: int) -> None:
        self.note(port, value)
        write(port, 1, value)
