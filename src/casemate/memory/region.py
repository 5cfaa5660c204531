"""Memory regions: what a board places in the guest-physical address space (QEMU docs/devel/memory.rst)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from casemate.memory.backing import Backing, HostMapping


class MmioHandler(Protocol):
    """A device's registers in memory; offsets are relative to the region, values little-endian ints."""

    def read_mmio(self, offset: int, size: int) -> int | None:
        """Load of ``size`` bytes (1, 2, 4, 8); None if nothing is there."""

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """Store of ``size`` bytes; False if nothing is there."""


@dataclass(eq=False)
class Ram:
    """Ordinary guest memory."""

    name: str
    backing: Backing

    @property
    def size(self) -> int:
        """Bytes."""
        return self.backing.size


@dataclass(eq=False)
class Rom:
    """Memory the guest may read and execute; stores to it are dropped and counted."""

    name: str
    backing: Backing

    @property
    def size(self) -> int:
        """Bytes."""
        return self.backing.size


@dataclass(eq=False)
class RomDevice:
    """Flash: memory while ``romd`` (array mode), a device otherwise; stores always go to the device.

    ``FlashMemory`` owns ``romd`` and all fields below it.
    """

    name: str
    backing: Backing
    handler: MmioHandler
    romd: bool = True
    slot_mapping: HostMapping | None = None
    """The mapping that the slot shows the guest; None is the writable one."""
    slot_readonly: bool = True
    """Whether the slot itself is read-only."""
    unit: int | None = None
    """Number of the flash unit, for reports."""
    array_stores_are_commands: bool = True
    """Whether a store that reaches the bus in array mode is a command, or else a violation."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.backing.size


@dataclass(eq=False)
class Mmio:
    """A device's registers."""

    name: str
    size: int
    handler: MmioHandler


@dataclass(eq=False)
class Alias:
    """A second appearance of ``size`` bytes of ``target`` from ``offset`` on."""

    name: str
    target: Ram | Rom | RomDevice
    offset: int
    size: int


LeafRegion = Ram | Rom | RomDevice | Mmio
MemoryRegion = LeafRegion | Alias
