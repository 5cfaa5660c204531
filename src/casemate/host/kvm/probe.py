"""How well this KVM runs supervisor code, found out with a tiny guest (docs/design/kvm.md)."""

from __future__ import annotations

import ctypes
import mmap
import threading
from time import perf_counter
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.address import FOUR_GIB, Gpa, GuestRange, Hva
from casemate.errors import HostError
from casemate.host.hypervisor import Vcpu
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.slots import MemorySlot

ENOUGH = 5_000_000
"""Instructions a second, with an exit every few thousand, above which firmware boots well."""

_TRIES = 3
_RAM_SIZE = 0x10000
_SECONDS = 1.0


class Probe(NamedTuple):
    """What was found: instructions a second (0 if the guest never came to count), and whether x87 works."""

    speed: float
    has_x87: bool

    @property
    def reason(self) -> str | None:
        """Why this KVM is not good enough for firmware, or None if it is."""
        if self.speed < ENOUGH:
            return f"it runs supervisor code at {self.speed / 1e6:.1f} million instructions a second"
        return None if self.has_x87 else "it executes no x87 instructions"


class _Port:
    """The bus of the probing guest: times its reads, lets it go on when one was quick, or after some tries."""

    def __init__(self, instructions: int) -> None:
        self.speed = 0.0
        self.has_x87 = False
        self.vcpu: Vcpu | None = None
        self._instructions = instructions
        self._reads = 0
        self._last = 0.0

    def read_port(self, port: int, size: int) -> int:
        now = perf_counter()
        if self._reads:
            self.speed = max(self.speed, self._instructions / (now - self._last))
        self._reads += 1
        self._last = perf_counter()
        return int(self.speed > ENOUGH or self._reads > _TRIES)

    def write_port(self, port: int, size: int, value: int) -> None:
        self.has_x87 = True
        assert self.vcpu is not None
        self.vcpu.stop()

    def read_mmio(self, gpa: int, size: int) -> int:
        return 0

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        pass


def probe(hypervisor: KvmHypervisor, image: bytes, instructions: int) -> Probe:
    """Run ``image``, a guest as ``casemate.guests.probe`` makes it. Takes milliseconds; a host that cannot is slow."""
    port = _Port(instructions)
    memory = mmap.mmap(-1, _RAM_SIZE + len(image))
    memory[_RAM_SIZE:] = image
    hva = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    vm = hypervisor.create_vm(GuestKind.PLAIN)
    try:
        vm.add_slot(MemorySlot(0, GuestRange(Gpa(0), _RAM_SIZE), Hva(hva)))
        top = GuestRange(Gpa(FOUR_GIB - len(image)), len(image))
        vm.add_slot(MemorySlot(1, top, Hva(hva + _RAM_SIZE)))
        port.vcpu = vm.create_vcpu(port, None)
        watchdog = threading.Timer(_SECONDS, port.vcpu.stop)
        watchdog.start()
        port.vcpu.run()
        watchdog.cancel()
        watchdog.join()
    except HostError:
        return Probe(0, has_x87=False)
    finally:
        vm.close()
    return Probe(port.speed, port.has_x87)
