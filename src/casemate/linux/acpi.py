"""The ACPI tables of a PC with one processor, for a kernel that no firmware starts (ACPI 6.5, chapter 5).

They lead Linux to the local APIC, the I/O APIC, the power-management timer and soft off; PCI is found without.
"""

from __future__ import annotations

import struct

LAPIC, IOAPIC = 0xFEE00000, 0xFEC00000
SCI = 9
_OEM, _OEM_TABLE, _CREATOR = b"CASEMA", b"CASEMATE", b"CSMT"
_HEADER_SIZE, _RSDP_SIZE, _ALIGNMENT = 36, 36, 64
_FADT_SIZE = 244

_SOFT_OFF = b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"
"""Name (_S5_, Package (4) {0, 0, 0, 0})"""

_LEGACY_DEVICES, _HAS_8042, _NO_VGA = 1 << 0, 1 << 1, 1 << 2
_WBINVD, _C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _RESET_REGISTER = 1 << 0, 1 << 2, 1 << 4, 1 << 5, 1 << 10
_CENTURY = 0x32
_RESET_PORT, _RESET_VALUE = 0xCF9, 0x0F
_NO_C_STATE = 0xFFFF


def acpi_tables(gpa: int, pm_base: int) -> bytes:
    """All tables, to be put at ``gpa``, where the RSDP comes first; ``pm_base`` is the first port of the ACPI block."""
    dsdt_at = gpa + _ALIGNMENT
    bodies = [(b"DSDT", 2, _SOFT_OFF), (b"FACP", 3, _fadt(dsdt_at, pm_base)), (b"APIC", 4, _madt())]
    tables, pointers = bytearray(_ALIGNMENT), []
    for signature, revision, body in bodies:
        pointers.append(gpa + len(tables))
        tables += _table(signature, revision, body)
        tables += bytes(-len(tables) % _ALIGNMENT)
    xsdt_at = gpa + len(tables)
    tables += _table(b"XSDT", 1, struct.pack(f"<{len(pointers) - 1}Q", *pointers[1:]))
    tables[:_RSDP_SIZE] = _rsdp(xsdt_at)
    return bytes(tables)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, _HEADER_SIZE + len(body), revision, 0, _OEM, _OEM_TABLE, 1, _CREATOR, 1
    )
    return _with_checksum(header + body, 9)


def _with_checksum(data: bytes, at: int, length: int | None = None) -> bytes:
    checksum = -sum(data[:length]) & 0xFF
    return data[:at] + bytes([checksum]) + data[at + 1 :]


def _rsdp(xsdt: int) -> bytes:
    rsdp = struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, _RSDP_SIZE, xsdt, 0)
    return _with_checksum(_with_checksum(rsdp, 8, 20), 32)


def _fadt(dsdt: int, pm_base: int) -> bytes:
    fadt = bytearray(_FADT_SIZE)
    struct.pack_into("<I", fadt, 40, dsdt)
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


def _madt() -> bytes:
    has_8259s = 1
    return (
        struct.pack("<II", LAPIC, has_8259s)
        + struct.pack("<BBBBI", 0, 8, 0, 0, 1)  # processor 0 with local APIC 0
        + struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC, 0)
        + struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # the timer comes in at input 2
        + struct.pack("<BBBBIH", 2, 10, 0, SCI, SCI, 0xD)  # active high, level
        + struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI at LINT1
    )
