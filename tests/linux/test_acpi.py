"""ACPI tables, linked by us for a kernel and by a script for firmware (ACPI 6.5, chapter 5)."""

from __future__ import annotations

import struct

import pytest

from casemate.devices.fw_cfg.table_loader import loader_script
from casemate.linux.acpi import ALIGNMENT, acpi_tables

AT = 0x9C000
NAME = "etc/acpi/tables"


def run_script(script: bytes, files: dict[str, bytes]) -> bytes:
    """What firmware makes of it; the file is placed at ``AT``."""
    memory = b""
    for start in range(0, len(script), 128):
        entry = script[start : start + 128]
        (command,) = struct.unpack_from("<I", entry)
        name = entry[4:60].rstrip(b"\0").decode()
        if command == 1:
            alignment, zone = struct.unpack_from("<IB", entry, 60)
            assert AT % alignment == 0
            assert zone == 2
            memory = files[name]
        elif command == 2:
            assert entry[60:116].rstrip(b"\0").decode() == name
            at, size = struct.unpack_from("<IB", entry, 116)
            pointer = int.from_bytes(memory[at : at + size], "little") + AT
            memory = memory[:at] + pointer.to_bytes(size, "little") + memory[at + size :]
        else:
            assert command == 3
            at, first, length = struct.unpack_from("<III", entry, 60)
            assert memory[at] == 0, "the sum is over the old checksum, too"
            checksum = -sum(memory[first : first + length]) & 0xFF
            memory = memory[:at] + bytes([checksum]) + memory[at + 1 :]
    return memory


def by_firmware(pm_base: int, vcpus: int) -> bytes:
    tables = acpi_tables(pm_base, vcpus)
    script = loader_script(NAME, tables.pointers, tables.checksums, ALIGNMENT)
    return run_script(script, {NAME: tables.data})


def table(tables: bytes, gpa: int) -> bytes:
    (length,) = struct.unpack_from("<I", tables, gpa - AT + 4)
    data = tables[gpa - AT : gpa - AT + length]
    assert sum(data) & 0xFF == 0
    return data


def listed(tables: bytes) -> dict[bytes, bytes]:
    """The tables that the RSDP leads to."""
    (xsdt_at,) = struct.unpack_from("<Q", tables, 24)
    xsdt = table(tables, xsdt_at)
    found = (table(tables, at) for (at,) in struct.iter_unpack("<Q", xsdt[36:]))
    return {one[:4]: one for one in found}


@pytest.mark.parametrize("vcpus", [1, 2, 255])
def test_every_table_has_a_right_checksum_and_can_be_reached(vcpus: int) -> None:
    tables = acpi_tables(0x600, vcpus).placed_at(AT)
    assert tables[:8] == b"RSD PTR "
    assert sum(tables[:20]) & 0xFF == sum(tables[:36]) & 0xFF == 0
    found = listed(tables)
    assert set(found) == {b"FACP", b"APIC"}
    fadt = found[b"FACP"]
    (dsdt_at,) = struct.unpack_from("<I", fadt, 40)
    assert table(tables, dsdt_at)[:4] == b"DSDT"
    assert struct.unpack_from("<I4xI8xI", fadt, 56) == (0x600, 0x604, 0x608)


def test_the_facs_is_aligned_and_reached_from_the_fadt() -> None:
    tables = acpi_tables(0x600, 1).placed_at(AT)
    (facs_at,) = struct.unpack_from("<I", listed(tables)[b"FACP"], 36)
    signature, length, signature_of_hardware, waking, lock, flags = struct.unpack_from(
        "<4s5I", tables, facs_at - AT
    )
    assert facs_at % 64 == 0
    assert (signature, length) == (b"FACS", 64)
    assert (signature_of_hardware, waking, lock, flags) == (0, 0, 0, 0)


def test_firmware_links_the_same_tables() -> None:
    assert by_firmware(0xB000, 3) == acpi_tables(0xB000, 3).placed_at(AT)


def test_each_processor_is_listed_with_its_apic() -> None:
    madt = listed(acpi_tables(0x600, 4).placed_at(AT))[b"APIC"]
    found, at = [], 44
    while at < len(madt):
        kind, size = madt[at], madt[at + 1]
        if kind == 0:
            found.append(struct.unpack_from("<BBI", madt, at + 2))
        at += size
    assert found == [(number, number, 1) for number in range(4)]
