"""Memory regions: what a board places in the guest-physical address space (QEMU docs/devel/memory.rst)."""

from __future__ import annotations

from typing import Protocol

from casemate.memory.backing import Backing, HostMapping


class MmioHandler(Protocol):
    """A device's registers in memory; offsets are relative to the region, values little-endian ints."""

    def read_mmio(self, offset: int, size: int) -> int | None:
        """Load of ``size`` bytes (1, 2, 4, 8); None if nothing is there."""

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """Write of ``size`` bytes; False if nothing is there."""


class _Backed:
    """Memory of ``backing``."""

    def __init__(self, name: str, backing: Backing) -> None:
        self.name = name
        self.backing = backing

    @property
    def size(self) -> int:
        """Bytes."""
        return self.backing.size


class Ram(_Backed):
    """Ordinary guest memory."""


class Rom(_Backed):
    """Memory the guest may read and execute; writes to it are dropped and counted."""


class RomDevice(_Backed):
    """Flash: memory while ``romd`` (array mode), a device otherwise; writes always go to the device.

    ``FlashMemory`` owns ``romd`` and all fields below it.
    """

    def __init__(self, name: str, backing: Backing, handler: MmioHandler) -> None:
        super().__init__(name, backing)
        self.handler = handler
        self.romd = True
        self.slot_mapping: HostMapping | None = None
        """The mapping that the slot shows the guest; None is the writable one."""
        self.slot_readonly = True
        """Whether the slot itself is read-only."""
        self.unit: int | None = None
        """Number of the flash unit, for reports."""
        self.array_writes_are_commands = True
        """Whether a write that reaches the bus in array mode is a command, or else a violation."""


class Mmio:
    """A device's registers."""

    def __init__(self, name: str, size: int, handler: MmioHandler) -> None:
        self.name = name
        self.size = size
        self.handler = handler


class Alias:
    """A second appearance of ``size`` bytes of ``target`` from ``offset`` on."""

    def __init__(self, name: str, target: Ram | Rom | RomDevice, offset: int, size: int) -> None:
        self.name = name
        self.target = target
        self.offset = offset
        self.size = size


LeafRegion = Ram | Rom | RomDevice | Mmio
MemoryRegion = LeafRegion | Alias
