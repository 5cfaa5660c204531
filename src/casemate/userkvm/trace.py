"""Notes what a monitor does to its VMs, for ``casemate conform`` (docs/guide/conform.md)."""

from __future__ import annotations

from contextlib import suppress
from errno import EFAULT
from typing import Any

from casemate.abi.kvm.capabilities import Capability
from casemate.abi.kvm.ioctls import Ioctl
from casemate.abi.kvm.sev import SevCmd, SevLaunchSecret, SevLaunchUpdateData
from casemate.abi.kvm.structs import MEM_READONLY, UserspaceMemoryRegion
from casemate.abi.sev.commands import SevCommand
from casemate.evidence.kvm_trace import KvmStep, KvmTrace, StepKind
from casemate.host import vma
from casemate.userkvm.table import Refused, copy_in
from casemate.userkvm.vm import Vm

_REGIONS = (Ioctl.SET_USER_MEMORY_REGION, Ioctl.SET_USER_MEMORY_REGION2)


class Tracer:
    """The traces of all VMs of this process, by the VM's number."""

    def __init__(self) -> None:
        self.traces: dict[int, KvmTrace] = {}

    def ioctl(self, vm: Vm, request: int, argument: int, value: Any, result: int) -> None:
        """A call on the VM's descriptor was answered; ``value`` is its struct, ``result`` negative for an errno."""
        errno = max(-result, 0)
        if request == Ioctl.CHECK_EXTENSION and argument == Capability.READONLY_MEM:
            name = Capability(argument).kernel_name
            self._note(vm, KvmStep(StepKind.CAPABILITY, name, value=result))
        elif request in _REGIONS:
            with suppress(Refused):
                self._note(vm, _slot(argument, value, errno))
        elif request == Ioctl.MEMORY_ENCRYPT_REG_REGION and value is not None:
            self._note(vm, _about(StepKind.REGION, "", value.addr, value.size, errno))
        elif request == Ioctl.MEMORY_ENCRYPT_OP:
            with suppress(Refused):
                self._note(vm, _command(argument, errno))

    def mapping_changed(self, vm: Vm, hva: int, size: int) -> None:
        """The monitor called mprotect."""
        if vm.slots_over(hva, size):
            self._note(vm, _about(StepKind.MAPPING, "", hva, size, 0))

    def run(self, vm: Vm) -> None:
        """A vCPU is about to run."""
        self._note(vm, KvmStep(StepKind.RUN))

    def ran(self, vm: Vm, result: int) -> None:
        """It ran."""
        if result == -EFAULT:
            self._note(vm, KvmStep(StepKind.FAULT, errno=EFAULT))

    def _note(self, vm: Vm, step: KvmStep) -> None:
        self.traces.setdefault(vm.number, KvmTrace()).note(step)


def _slot(argument: int, region: Any, errno: int) -> KvmStep:
    if region is None:  # the call was refused
        region = UserspaceMemoryRegion.from_bytes(copy_in(argument, UserspaceMemoryRegion.SIZE))
    return KvmStep(
        StepKind.SLOT,
        slot=region.slot,
        gpa=region.guest_phys_addr,
        hva=region.userspace_addr,
        size=region.memory_size,
        readonly=bool(region.flags & MEM_READONLY),
        writable=_is_writable(region.userspace_addr, region.memory_size),
        errno=errno,
    )


def _command(argument: int, errno: int) -> KvmStep:
    command = SevCmd.from_bytes(copy_in(argument, SevCmd.SIZE))
    name = SevCommand(command.id).kernel_name if command.id in set(SevCommand) else f"command {command.id}"
    if command.id == SevCommand.LAUNCH_UPDATE_DATA:
        data = SevLaunchUpdateData.from_bytes(copy_in(command.data, SevLaunchUpdateData.SIZE))
        return _about(StepKind.COMMAND, name, data.uaddr, data.len, errno)
    if command.id == SevCommand.LAUNCH_SECRET:
        secret = SevLaunchSecret.from_bytes(copy_in(command.data, SevLaunchSecret.SIZE))
        return _about(StepKind.COMMAND, name, secret.guest_uaddr, secret.guest_len, errno)
    return KvmStep(StepKind.COMMAND, name, errno=errno)


def _about(kind: StepKind, name: str, hva: int, size: int, errno: int) -> KvmStep:
    return KvmStep(kind, name, hva=hva, size=size, writable=_is_writable(hva, size), errno=errno)


def _is_writable(hva: int, size: int) -> bool | None:
    if vma.is_writable(hva, max(size, 1)):
        return True
    return False if vma.is_readable(hva, max(size, 1)) else None
