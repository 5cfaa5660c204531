"""ACPI tables that firmware reads, links and hands on to an operating system (QEMU docs/specs/fw_cfg.rst)."""

from __future__ import annotations

from casemate.devices.fw_cfg.fw_cfg import FwCfg
from casemate.devices.fw_cfg.table_loader import SCRIPT_FILE, loader_script
from casemate.linux.acpi import ALIGNMENT, acpi_tables

TABLES_FILE = "etc/acpi/tables"


class AcpiFiles:
    """Two files of fw_cfg. Firmware decides where the ACPI block is, long before it reads the tables that say so."""

    def __init__(self, fw_cfg: FwCfg, vcpus: int) -> None:
        self._fw_cfg = fw_cfg
        self._vcpus = vcpus
        tables = acpi_tables(0, vcpus)
        fw_cfg.add_file(TABLES_FILE, tables.data)
        fw_cfg.add_file(SCRIPT_FILE, loader_script(TABLES_FILE, tables.pointers, tables.checksums, ALIGNMENT))

    def move(self, pm_base: int) -> None:
        """The ACPI block starts at port ``pm_base`` now."""
        self._fw_cfg.replace_file(TABLES_FILE, acpi_tables(pm_base, self._vcpus).data)
