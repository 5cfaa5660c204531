"""The configuration space of one PCI function (PCI Local Bus Specification 3.0, chapter 6)."""

from __future__ import annotations

CONFIG_SIZE = 256
BAR_IO = 0x01
SUBSYSTEM_VENDOR, SUBSYSTEM_DEVICE = 0x1AF4, 0x1100


class Register:
    """Offsets in the type 0 header."""

    VENDOR = 0x00
    DEVICE = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION = 0x08
    CLASS = 0x09
    HEADER_TYPE = 0x0E
    BAR0 = 0x10
    SUBSYSTEM_VENDOR = 0x2C
    SUBSYSTEM_DEVICE = 0x2E
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D


COMMAND_WRITABLE = 0x0547
"""I/O, memory, bus master, parity, SERR and interrupt disable."""
MULTI_FUNCTION = 0x80


class PciFunction:
    """256 bytes of which the guest may write the bits that a mask allows.

    ``class_code`` is base class, subclass and interface, 24 bits. A Python subclass that acts on a register
    overrides ``config_written``.
    """

    def __init__(
        self, vendor: int, device: int, class_code: int, revision: int = 0, multi_function: bool = False
    ) -> None:
        self._values = bytearray(CONFIG_SIZE)
        self._writable = bytearray(CONFIG_SIZE)
        self.define(Register.VENDOR, 2, vendor)
        self.define(Register.DEVICE, 2, device)
        self.define(Register.COMMAND, 2, 0, COMMAND_WRITABLE)
        self.define(Register.REVISION, 1, revision)
        self.define(Register.CLASS, 3, class_code)
        self.define(Register.HEADER_TYPE, 1, MULTI_FUNCTION if multi_function else 0)
        self.define(Register.SUBSYSTEM_VENDOR, 2, SUBSYSTEM_VENDOR)
        self.define(Register.SUBSYSTEM_DEVICE, 2, SUBSYSTEM_DEVICE)
        self.define(Register.INTERRUPT_LINE, 1, 0, 0xFF)
        self._power_on = bytes(self._values)

    def define(self, register: int, size: int, value: int, writable: int = 0) -> None:
        """Give ``size`` bytes at ``register`` their power-on value and their writable bits."""
        self._values[register : register + size] = value.to_bytes(size, "little")
        self._writable[register : register + size] = writable.to_bytes(size, "little")
        self._power_on = bytes(self._values)

    def define_bar(self, number: int, size: int, io: bool = False) -> None:
        """A 32-bit base address register for ``size`` bytes: a power of two, 4 (I/O) or 16 (memory) or more."""
        if size & (size - 1) or size < (4 if io else 16):
            raise ValueError(f"a BAR cannot ask for {size:#x} bytes")
        self.define(Register.BAR0 + 4 * number, 4, BAR_IO if io else 0, -size & 0xFFFF_FFFF)

    def reset(self) -> None:
        """Back to the power-on values."""
        self._values[:] = self._power_on
        self.config_written(0, CONFIG_SIZE)

    def read_config(self, register: int, size: int) -> int:
        """Little-endian value; bytes from 256 on, extended configuration space, read 0."""
        return int.from_bytes(self._values[register : register + size], "little")

    def write_config(self, register: int, size: int, value: int) -> None:
        """Store the writable bits."""
        for index in range(register, min(register + size, CONFIG_SIZE)):
            mask = self._writable[index]
            self._values[index] = self._values[index] & ~mask | value & mask
            value >>= 8
        self.config_written(register, size)

    def config_written(self, register: int, size: int) -> None:
        """Bytes ``[register, register + size)`` may have changed."""
