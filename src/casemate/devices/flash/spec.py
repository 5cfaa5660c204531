"""Commands, status bits and query table of an Intel CFI flash (JEDEC JESD68.01, QEMU hw/block/pflash_cfi01.c)."""

from __future__ import annotations

SECTOR_SIZE = 0x1000
"""Bytes that one erase clears."""

WRITE_BLOCK_SIZE = 0x100
"""Bytes in the buffer of a buffered program."""

# Commands of the first write cycle.
READ_ARRAY = 0xFF
READ_ARRAY_AMD = 0xF0
READ_ARRAY_ZERO = 0x00
PROGRAM = 0x10
PROGRAM_ALTERNATE = 0x40
ERASE = 0x20
CLEAR_STATUS = 0x50
LOCK_SETUP = 0x60
READ_STATUS = 0x70
READ_IDENT = 0x90
QUERY = 0x98
BUFFERED_PROGRAM = 0xE8

# Bytes of later cycles.
CONFIRM = 0xD0
LOCK = 0x01

# Status register.
STATUS_READY = 0x80
STATUS_ERASE_ERROR = 0x20
STATUS_PROGRAM_ERROR = 0x10

_INTEL_COMMAND_SET = 0x0001


def query_table(size: int) -> bytes:
    """What a query shows at byte offsets 0 to 0x51, for a unit of ``size`` bytes of 4 KiB sectors, 8 bits wide."""
    table = bytearray(0x52)
    table[0x10:0x13] = b"QRY"
    table[0x13:0x15] = _INTEL_COMMAND_SET.to_bytes(2, "little")
    table[0x15:0x17] = (0x31).to_bytes(2, "little")  # where the vendor's part begins
    table[0x1B], table[0x1C] = 0x45, 0x55  # supply voltage, 4.5 V to 5.5 V
    table[0x1F], table[0x20], table[0x21] = 0x07, 0x07, 0x0A  # typical times: byte, buffer, erase
    table[0x23], table[0x24], table[0x25] = 0x04, 0x04, 0x04  # the most they can take
    table[0x27] = (size & -size).bit_length() - 1  # log2 as the field computes it: trailing zeros
    table[0x28:0x2A] = (0x0002).to_bytes(2, "little")  # x8 and x16
    table[0x2A] = WRITE_BLOCK_SIZE.bit_length() - 1
    table[0x2C] = 1  # one kind of erase block
    table[0x2D:0x2F] = (size // SECTOR_SIZE - 1).to_bytes(2, "little")
    table[0x2F:0x31] = (SECTOR_SIZE >> 8).to_bytes(2, "little")
    table[0x31:0x36] = b"PRI10"
    table[0x3F] = 1  # one protection register
    return bytes(table)
