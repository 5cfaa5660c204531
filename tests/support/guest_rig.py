"""VMs for tiny guests: RAM at 0, an image at the top of 4 GiB, a bus that writes down what it sees."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice
from casemate.address import FOUR_GIB, Gpa, GuestRange, Hva
from casemate.guests.entry import IMAGE_SIZE, Bits, make_image
from casemate.host.clock import GuestClock
from casemate.host.exits import Hlt, VmExit
from casemate.host.hypervisor import InterruptController, Vm
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.kvm.vcpu import KvmVcpu
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.vm import ModelVm
from casemate.host.slots import MemorySlot
from casemate.memory.backing import Backing
from support.assembler import assemble
from support.hosts import kvm_or_skip
from tools.lab.rules import RULES_ON

RAM_SIZE = 4 << 20
PROTECTED = 0x300000
"""A spare page of RAM for protection tests; page tables and stack are elsewhere."""


@dataclass
class RigBus:
    """Answers port and MMIO reads from a script, keeps everything in order."""

    log: list[tuple[str, int, int, int]] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    on_write_port: dict[int, object] = field(default_factory=dict)
    on_read: Callable[[], None] | None = None
    on_write: Callable[[], None] | None = None

    def read_port(self, port: int, size: int) -> int:
        value = self.answers.get(port, 0)
        self.log.append(("in", port, size, value))
        _call(self.on_read)
        return value

    def write_port(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, value))
        action = self.on_write_port.get(port)
        if callable(action):
            action()

    def read_mmio(self, gpa: int, size: int) -> int:
        value = self.answers.get(gpa, 0) & (1 << 8 * size) - 1
        self.log.append(("load", gpa, size, value))
        _call(self.on_read)
        return value

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        self.log.append(("write", gpa, size, value))
        _call(self.on_write)


def _call(action: Callable[[], None] | None) -> None:
    if action is not None:
        action()


class ScriptedInterrupts:
    """Vectors that are due at once, in order."""

    lapic = None
    executing = 0
    on_deadline: Callable[[int], None] = staticmethod(lambda time: None)

    def __init__(self, *vectors: int) -> None:
        self.vectors = deque(vectors)

    def of(self, number: int) -> ScriptedInterrupts:
        return self

    def deadline(self) -> int | None:
        return 0 if self.vectors else None

    def pending(self) -> bool:
        return bool(self.vectors)

    def acknowledge(self) -> int:
        return self.vectors.popleft()


class Rig:
    """Use as a context manager; ``run`` executes until an exit, with a deadline that no test should reach.

    ``code`` is machine code, or its source for ``assemble``.
    """

    def __init__(
        self,
        code: bytes | str,
        bits: Bits,
        vm: Vm,
        interrupts: InterruptController | None = None,
        bus: RigBus | None = None,
    ):
        payload = assemble(code, bits) if isinstance(code, str) else code
        self.vm = vm
        self.bits = bits
        self.ram = Backing("ram", RAM_SIZE)
        self.rom = Backing("rom", IMAGE_SIZE)
        self.rom.writable.view[:] = make_image(payload, bits)
        self.add(0, 0, 0xF0000, self.ram.writable.hva)
        self.add(1, 0xF0000, IMAGE_SIZE, self.rom.writable.hva, readonly=True)
        self.add(2, 0x100000, PROTECTED - 0x100000, Hva(self.ram.writable.hva + 0x100000))
        self.add(3, PROTECTED, 0x1000, Hva(self.ram.writable.hva + PROTECTED))
        self.add(4, FOUR_GIB - IMAGE_SIZE, IMAGE_SIZE, self.rom.writable.hva, readonly=True)
        self.bus = bus or RigBus()
        self.vcpu = self.vm.create_vcpu(self.bus, interrupts)

    def add(self, number: int, gpa: int, size: int, hva: Hva, *, readonly: bool = False) -> None:
        self.vm.add_slot(MemorySlot(number, GuestRange(Gpa(gpa), size), hva, readonly))

    def run(self) -> VmExit:
        watchdog = threading.Timer(20, self.vcpu.stop)
        watchdog.start()
        try:
            return self.vcpu.run()
        finally:
            watchdog.cancel()

    def put(self, gpa: int, code: bytes | str) -> None:
        """Write into RAM, bytes or code of the rig's bits."""
        data = assemble(code, self.bits) if isinstance(code, str) else code
        self.ram.writable.view[gpa : gpa + len(data)] = data

    def ram_at(self, gpa: int, size: int) -> bytes:
        return bytes(self.ram.writable.view[gpa : gpa + size])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.vm.close()
        self.rom.close()
        self.ram.close()


_LOOK_SECONDS = 0.02


class ModelRig(Rig):
    """A ``Rig`` on the modelled host, or on the one that the environment's CASEMATE_RULES_ON names.

    KVM with interrupt controllers of its own keeps a halted vCPU. So there it is woken again and again, to see whether
    it has halted; it cannot go on then.
    """

    vm: ModelVm

    def __init__(
        self,
        code: bytes | str,
        bits: Bits = 32,
        *,
        interrupts: ScriptedInterrupts | None = None,
        cpu: str = "max",
    ):
        self._halts_in_kernel = os.environ.get(RULES_ON, "model") == "kvm"
        self._has_halted = False
        if self._halts_in_kernel:
            if cpu != "max" and (cpu, loaded_vendor_module()) != ("EPYC", "kvm_amd"):
                pytest.skip(f"KVM's processor is this machine's, not {cpu}")
            if interrupts is not None:
                pytest.skip("KVM's interrupts come from its own controllers")
            kvm = kvm_or_skip().create_vm(GuestKind.PLAIN)
            kvm.watch(self._look)
            vm: Vm = kvm
        else:
            vm = ModelHypervisor(GuestClock(), cpu=CpuChoice.parse(cpu)).create_vm(GuestKind.PLAIN)
        super().__init__(code, bits, vm, interrupts)

    def run(self) -> VmExit:
        """As ``Rig.run``."""
        if not self._halts_in_kernel:
            return super().run()
        has_ended = threading.Event()
        waker = threading.Thread(target=self._wake_until, args=(has_ended,))
        waker.start()
        try:
            vm_exit = super().run()
        finally:
            has_ended.set()
            waker.join()
        return Hlt(interrupts_enabled=False) if self._has_halted else vm_exit

    def _wake_until(self, has_ended: threading.Event) -> None:
        while not has_ended.wait(_LOOK_SECONDS):
            self.vcpu.wake()

    def _look(self) -> None:
        """On the vCPU's thread, whenever it was woken."""
        assert isinstance(self.vcpu, KvmVcpu)
        if self.vcpu.is_halted():
            self._has_halted = True
            self.vcpu.stop()
