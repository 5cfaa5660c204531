"""Where port and MMIO accesses of the guest go (docs/design/devices.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING

from casemate.address import PAGE_SIZE, Gpa
from casemate.errors import InternalError
from casemate.events import AccessPath, EventSink, Violation, ViolationKind
from casemate.memory.map import MemoryMap
from casemate.memory.region import LeafRegion, Mmio, Ram, Rom, RomDevice

if TYPE_CHECKING:
    from casemate.devices.device import PortIo
    from casemate.host.hypervisor import IoBus, Vm

_ALL_ONES = tuple((1 << 8 * size) - 1 for size in range(9))
_WIDTHS = (False, True, True, False, True, False, False, False, True)
_OFFSET_MASK = PAGE_SIZE - 1
_UNCLAIMED_KEYS = 4096


class Access(StrEnum):
    """The kinds of access that nobody may have claimed."""

    PORT_READ = "port read"
    PORT_WRITE = "port write"
    MMIO_READ = "mmio read"
    MMIO_WRITE = "mmio write"


class Bus:
    """Implements ``casemate.host.hypervisor.IoBus``.

    What nobody claims reads as all ones, drops writes, and is counted. MMIO accesses of an odd width, or across the
    end of a page or region, are split into bytes.
    """

    def __init__(self, memory_map: MemoryMap, vm: Vm, sink: EventSink) -> None:
        self.unclaimed: Counter[tuple[Access, int]] = Counter()
        """Accesses nobody claimed, by kind and port or address; at most 4096 different ones."""
        self.unclaimed_total = 0
        """All of them."""
        self._accesses = 0
        self._counted_elsewhere: Callable[[], int] = lambda: 0
        self._map = memory_map
        self._vm = vm
        self._sink = sink
        self._owners: dict[int, PortIo] = {}
        self._port_reads: dict[int, tuple[Callable[[int, int], int | None], int]] = {}
        self._port_writes: dict[int, tuple[Callable[[int, int, int], bool], int]] = {}

    @property
    def accesses(self) -> int:
        """All accesses to devices, ports and memory alike."""
        return self._accesses + self._counted_elsewhere()

    def count_also(self, accesses: Callable[[], int]) -> None:
        """Count what a device was asked without the bus."""
        self._counted_elsewhere = accesses

    def claim_ports(self, first: int, count: int, device: PortIo, *, over: bool = False) -> None:
        """Give ``count`` ports from ``first`` on to ``device``; ``over`` takes them from an earlier owner."""
        ports = range(first, first + count)
        taken = next((port for port in ports if port in self._owners), None)
        if taken is not None and not over:
            raise InternalError(f"port {taken:#x} belongs to two devices")
        for offset, port in enumerate(ports):
            self._owners[port] = device
            self._port_reads[port] = device.read_port, offset
            self._port_writes[port] = device.write_port, offset

    def claim_free_ports(self, first: int, count: int, device: PortIo) -> None:
        """Give ``device`` those of the ports that nobody has: for blocks that the guest itself may move."""
        for port in range(first, first + count):
            if port not in self._owners:
                self._owners[port] = device
                self._port_reads[port] = device.read_port, port - first
                self._port_writes[port] = device.write_port, port - first

    def release_ports(self, device: PortIo) -> None:
        """Take all ports back from ``device``."""
        for port in [port for port, owner in self._owners.items() if owner is device]:
            del self._owners[port], self._port_reads[port], self._port_writes[port]

    def read_port(self, port: int, size: int) -> int:
        """IN of ``size`` bytes."""
        self._accesses += 1
        entry = self._port_reads.get(port)
        value = None if entry is None else entry[0](entry[1], size)
        return self._nobody(Access.PORT_READ, port, size) if value is None else value

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT of ``size`` bytes."""
        self._accesses += 1
        entry = self._port_writes.get(port)
        if entry is None or not entry[0](entry[1], size, value):
            self._nobody(Access.PORT_WRITE, port, size)

    def read_mmio(self, gpa: int, size: int) -> int:
        """Load of ``size`` bytes; memory answers with its contents, as for an access that the host emulates."""
        self._accesses += 1
        found = self._map.view.find(gpa)
        if found is None:
            return self._nobody(Access.MMIO_READ, gpa, size)
        region, offset = found
        if not _is_whole(region, offset, gpa, size):
            return sum(self.read_mmio(gpa + i, 1) << 8 * i for i in range(size))
        if isinstance(region, (Mmio, RomDevice)):
            value = region.handler.read_mmio(offset, size)
            return self._nobody(Access.MMIO_READ, gpa, size) if value is None else value
        return int.from_bytes(region.backing.writable.view[offset : offset + size], "little")

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """Write of ``size`` bytes; RAM takes it, ROM drops it, flash decodes it."""
        self._accesses += 1
        found = self._map.view.find(gpa)
        if found is None:
            self._nobody(Access.MMIO_WRITE, gpa, size)
            return
        region, offset = found
        if not _is_whole(region, offset, gpa, size):
            for i in range(size):
                self.write_mmio(gpa + i, 1, value >> 8 * i & 0xFF)
        elif isinstance(region, Ram):
            data = (value & _ALL_ONES[size]).to_bytes(size, "little")
            region.backing.writable.view[offset : offset + size] = data
            self._vm.memory_written(Gpa(gpa), size)
        elif isinstance(region, Rom) or _is_protected(region):
            unit, path = None, AccessPath.READONLY_SLOT
            if isinstance(region, RomDevice):
                unit, path = region.unit, AccessPath.EMULATOR
            self._sink.report(Violation(ViolationKind.PROTECTED_MEMORY, unit, gpa, size, value, path=path))
        elif not region.handler.write_mmio(offset, size, value):
            self._nobody(Access.MMIO_WRITE, gpa, size)

    def _nobody(self, access: Access, where: int, size: int) -> int:
        self.unclaimed_total += 1
        key = access, where
        if key in self.unclaimed or len(self.unclaimed) < _UNCLAIMED_KEYS:
            self.unclaimed[key] += 1
        return _ALL_ONES[size]


class SharedBus:
    """A bus for several vCPUs: one access at a time, under ``lock``."""

    def __init__(self, bus: IoBus, lock: AbstractContextManager[object]) -> None:
        self._bus = bus
        self._lock = lock

    def read_port(self, port: int, size: int) -> int:
        """IN."""
        with self._lock:
            return self._bus.read_port(port, size)

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT."""
        with self._lock:
            self._bus.write_port(port, size, value)

    def read_mmio(self, gpa: int, size: int) -> int:
        """Load."""
        with self._lock:
            return self._bus.read_mmio(gpa, size)

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        """Write."""
        with self._lock:
            self._bus.write_mmio(gpa, size, value)


def _is_whole(region: LeafRegion, offset: int, gpa: int, size: int) -> bool:
    inside = (gpa & _OFFSET_MASK) + size <= PAGE_SIZE and offset + size <= region.size
    return inside and _WIDTHS[size]


def _is_protected(region: Mmio | RomDevice) -> bool:
    return isinstance(region, RomDevice) and region.romd and not region.array_writes_are_commands
