"""The ACPI tables of a PC, for a kernel that no firmware starts and for firmware to hand on (ACPI 6.5, chapter 5).

They lead Linux to its processors, the I/O APIC, the power-management timer and soft off; PCI is found without. The
FACS, whose checksum does not exist, has room for a waking vector.
"""

from __future__ import annotations

import struct

from casemate.address import IOAPIC_BASE, LAPIC_BASE

SCI = 9
PM_BASE = 0x600
"""First port of the ACPI block, where firmware would have put it."""
_OEM, _OEM_TABLE, _CREATOR = b"CASEMA", b"CASEMATE", b"CSMT"
_HEADER_SIZE, RSDP_SIZE = 36, 36
ALIGNMENT = 64
"""Of the tables, in bytes."""

_FADT_SIZE, _FADT_FACS, _FADT_DSDT, _RSDP_XSDT, _CHECKSUM = 244, 36, 40, 24, 9
_FACS_VERSION = 2

_SOFT_OFF = b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"
"""Name (_S5_, Package (4) {0, 0, 0, 0})"""

_LEGACY_DEVICES, _HAS_8042, _NO_VGA = 1 << 0, 1 << 1, 1 << 2
_WBINVD, _C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _RESET_REGISTER = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 10
_CENTURY = 0x32
_RESET_PORT, _RESET_VALUE = 0xCF9, 0x0F
_NO_C_STATE = 0xFFFF


class AcpiTables:
    """All tables in one piece, the RSDP first, not yet linked: pointers are offsets into ``data``, checksums are 0.

    ``pointers`` are offset and size in bytes of each pointer, ``checksums`` the offset of each checksum, and start and
    length of the bytes that have to add up to 0.
    """

    def __init__(
        self,
        data: bytes,
        pointers: tuple[tuple[int, int], ...],
        checksums: tuple[tuple[int, int, int], ...],
    ) -> None:
        self.data, self.pointers, self.checksums = data, pointers, checksums

    def placed_at(self, gpa: int) -> bytes:
        """The tables as they are in memory at ``gpa``."""
        tables = bytearray(self.data)
        for at, size in self.pointers:
            target = int.from_bytes(tables[at : at + size], "little") + gpa
            tables[at : at + size] = target.to_bytes(size, "little")
        for at, start, length in self.checksums:
            tables[at] = -sum(tables[start : start + length]) & 0xFF
        return bytes(tables)


def acpi_tables(pm_base: int, vcpus: int) -> AcpiTables:
    """``pm_base`` is the first port of the ACPI block; APIC IDs count from 0."""
    data, at = bytearray(ALIGNMENT), {}
    bodies = (
        (b"DSDT", 2, _SOFT_OFF),
        (b"FACP", 3, _fadt(ALIGNMENT, pm_base)),
        (b"APIC", 4, _madt(vcpus)),
    )
    for signature, revision, body in bodies:
        at[signature] = len(data)
        data += _table(signature, revision, body)
    facs_at = len(data)
    data += struct.pack("<4sI24xB", b"FACS", ALIGNMENT, _FACS_VERSION).ljust(ALIGNMENT, b"\0")
    at[b"XSDT"] = len(data)
    listed = struct.pack("<2Q", at[b"FACP"], at[b"APIC"])
    data += _table(b"XSDT", 1, listed)
    data[:RSDP_SIZE] = _rsdp(at[b"XSDT"])
    facs_pointer = at[b"FACP"] + _FADT_FACS
    struct.pack_into("<I", data, facs_pointer, facs_at)
    xsdt_entries = at[b"XSDT"] + _HEADER_SIZE
    pointers = (
        (_RSDP_XSDT, 8),
        (xsdt_entries, 8),
        (xsdt_entries + 8, 8),
        (at[b"FACP"] + _FADT_DSDT, 4),
        (facs_pointer, 4),
    )
    checksums = [(start + _CHECKSUM, start, _length(data, start)) for start in at.values()]
    # The second checksum of the RSDP is over the first one, too.
    return AcpiTables(bytes(data), pointers, (*checksums, (8, 0, 20), (32, 0, RSDP_SIZE)))


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, _HEADER_SIZE + len(body), revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1
    )
    return header + body + bytes(-len(header + body) % ALIGNMENT)


def _length(data: bytearray, start: int) -> int:
    return int.from_bytes(data[start + 4 : start + 8], "little")


def _rsdp(xsdt: int) -> bytes:
    return struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, RSDP_SIZE, xsdt, 0)


def _fadt(dsdt: int, pm_base: int) -> bytes:
    fadt = bytearray(_FADT_SIZE)
    struct.pack_into("<I", fadt, _FADT_DSDT, dsdt)
    struct.pack_into("<H", fadt, 46, SCI)
    struct.pack_into("<I", fadt, 56, pm_base)  # PM1a events
    struct.pack_into("<I", fadt, 64, pm_base + 4)  # PM1a control
    struct.pack_into("<I", fadt, 76, pm_base + 8)  # timer
    struct.pack_into("<BBBB", fadt, 88, 4, 2, 0, 4)
    struct.pack_into("<HH", fadt, 96, _NO_C_STATE, _NO_C_STATE)
    struct.pack_into("<BH", fadt, 108, _CENTURY, _LEGACY_DEVICES | _HAS_8042 | _NO_VGA)
    flags = _WBINVD | _C1 | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _RESET_REGISTER
    struct.pack_into("<IBBBBQB", fadt, 112, flags, 1, 8, 0, 1, _RESET_PORT, _RESET_VALUE)
    return bytes(fadt[_HEADER_SIZE:])


def _madt(vcpus: int) -> bytes:
    has_8259s = 1
    processors = b"".join(struct.pack("<BBBBI", 0, 8, number, number, 1) for number in range(vcpus))
    return (
        struct.pack("<II", LAPIC_BASE, has_8259s)
        + processors  # each with its local APIC
        + struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_BASE, 0)
        + struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # the timer comes in at input 2
        + struct.pack("<BBBBIH", 2, 10, 0, SCI, SCI, 0xD)  # active high, level
        + struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI at LINT1
    )
