"""ACPI tables for a kernel without firmware (ACPI 6.5, chapter 5)."""

from __future__ import annotations

import struct

from casemate.linux.acpi import acpi_tables

AT = 0x9C000


def test_every_table_has_a_right_checksum_and_can_be_reached() -> None:
    tables = acpi_tables(AT, 0x600)
    rsdp = tables[:36]
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
    (xsdt_at,) = struct.unpack_from("<Q", rsdp, 24)
    xsdt = table(tables, xsdt_at)
    found = {table(tables, at)[:4]: table(tables, at) for (at,) in struct.iter_unpack("<Q", xsdt[36:])}
    assert set(found) == {b"FACP", b"APIC"}
    fadt = found[b"FACP"]
    (dsdt_at,) = struct.unpack_from("<I", fadt, 40)
    assert table(tables, dsdt_at)[:4] == b"DSDT"
    assert struct.unpack_from("<I4xI8xI", fadt, 56) == (0x600, 0x604, 0x608)


def table(tables: bytes, gpa: int) -> bytes:
    (length,) = struct.unpack_from("<I", tables, gpa - AT + 4)
    data = tables[gpa - AT : gpa - AT + length]
    assert sum(data) & 0xFF == 0
    return data
