"""Numbers of the fw_cfg interface (QEMU docs/specs/fw_cfg.rst, edk2 IndustryStandard/QemuFwCfg.h)."""

from __future__ import annotations

PORT = 0x510
"""First of twelve ports on a PC."""

PORT_COUNT = 12


class Key:
    """Items with a fixed selector; integers in them are little-endian."""

    SIGNATURE = 0x00
    ID = 0x01
    UUID = 0x02
    RAM_SIZE = 0x03
    NOGRAPHIC = 0x04
    NB_CPUS = 0x05
    MACHINE_ID = 0x06
    KERNEL_ADDR = 0x07
    KERNEL_SIZE = 0x08
    KERNEL_CMDLINE = 0x09
    INITRD_ADDR = 0x0A
    INITRD_SIZE = 0x0B
    BOOT_DEVICE = 0x0C
    NUMA = 0x0D
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_ENTRY = 0x10
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    CMDLINE_ADDR = 0x13
    CMDLINE_SIZE = 0x14
    CMDLINE_DATA = 0x15
    SETUP_ADDR = 0x16
    SETUP_SIZE = 0x17
    SETUP_DATA = 0x18
    FILE_DIR = 0x19
    FILE_FIRST = 0x20
    ACPI_TABLES = 0x8000
    SMBIOS_ENTRIES = 0x8001
    IRQ0_OVERRIDE = 0x8002
    E820_TABLE = 0x8003
    HPET = 0x8004


WRITE_CHANNEL = 0x4000
"""Bit 14 of a selector asks for the former write channel; it selects the same item."""

FILE_NAME_SIZE = 56
"""Bytes for a file's name in the directory, with the terminating zero."""


class Feature:
    """Bits of the item ``Key.ID``."""

    TRADITIONAL = 1 << 0
    DMA = 1 << 1


class DmaControl:
    """Low bits of the control word of a DMA request; with SELECT the key is in bits 31:16."""

    ERROR = 1 << 0
    READ = 1 << 1
    SKIP = 1 << 2
    SELECT = 1 << 3
    WRITE = 1 << 4
