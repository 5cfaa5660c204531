"""A host whose VMs note what is done to them, to judge casemate's own VMM as others are (Linux api.rst)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from errno import EFAULT, EIO
from typing import Any, TextIO, cast

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.vm_types import VmType
from casemate.address import Hva
from casemate.errors import FirmwareStatusError, HostError
from casemate.evidence.kvm_trace import KvmStep, KvmTrace, StepKind
from casemate.host import vma
from casemate.host.capabilities import VmCapabilities
from casemate.host.exits import MemoryFault, VmExit
from casemate.host.hypervisor import Hypervisor, Vcpu, VcpuRunner, Vm
from casemate.host.secure_processor import LaunchMeasurement, SevSetup, VcpuReset
from casemate.host.slots import MemorySlot
from casemate.host.snp_processor import SnpUpdate


class _Around:
    """Everything that is not noted is the wrapped object's."""

    def __init__(self, inner: Any, trace: KvmTrace) -> None:
        self._inner = inner
        self._trace = trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def _noted(self, kind: StepKind, name: str = "", **what: Any) -> Iterator[None]:
        errno = 0
        try:
            yield
        except (HostError, FirmwareStatusError) as error:
            errno = error.errno if isinstance(error, HostError) else EIO
            raise
        finally:
            self._trace.note(KvmStep(kind, name, errno=errno, **what))

    def _noted_about(self, kind: StepKind, name: str, hva: int, size: int) -> AbstractContextManager[None]:
        writable = vma.is_writable(hva, size)
        return self._noted(kind, name, hva=hva, size=size, writable=writable)


class _TracedVcpu(_Around):
    def run(self) -> VmExit:
        self._trace.note(KvmStep(StepKind.RUN))
        vm_exit: VmExit = self._inner.run()
        if isinstance(vm_exit, MemoryFault):
            self._trace.note(KvmStep(StepKind.FAULT, errno=EFAULT))
        return vm_exit


class _TracedProcessor(_Around):
    def register_region(self, hva: Hva, size: int) -> None:
        with self._noted_about(StepKind.REGION, "", hva, size):
            self._inner.register_region(hva, size)

    def launch_start(self, *arguments: Any) -> None:
        with self._noted(StepKind.COMMAND, "KVM_SEV_LAUNCH_START"):
            self._inner.launch_start(*arguments)

    def launch_update_data(self, hva: Hva, size: int) -> None:
        with self._noted_about(StepKind.COMMAND, "KVM_SEV_LAUNCH_UPDATE_DATA", hva, size):
            self._inner.launch_update_data(hva, size)

    def launch_update_vmsa(self, vcpus: Sequence[VcpuReset]) -> None:
        with self._noted(StepKind.COMMAND, "KVM_SEV_LAUNCH_UPDATE_VMSA"):
            self._inner.launch_update_vmsa(vcpus)

    def launch_measure(self) -> LaunchMeasurement:
        with self._noted(StepKind.COMMAND, "KVM_SEV_LAUNCH_MEASURE"):
            measurement: LaunchMeasurement = self._inner.launch_measure()
        return measurement

    def launch_secret(self, header: bytes, hva: Hva, data: bytes) -> None:
        with self._noted_about(StepKind.COMMAND, "KVM_SEV_LAUNCH_SECRET", hva, len(data)):
            self._inner.launch_secret(header, hva, data)

    def launch_finish(self) -> None:
        with self._noted(StepKind.COMMAND, "KVM_SEV_LAUNCH_FINISH"):
            self._inner.launch_finish()


class _TracedSnpProcessor(_Around):
    def launch_start(self, *arguments: Any) -> None:
        with self._noted(StepKind.COMMAND, "KVM_SEV_SNP_LAUNCH_START"):
            self._inner.launch_start(*arguments)

    def launch_update(self, update: SnpUpdate) -> None:
        with self._noted(StepKind.COMMAND, "KVM_SEV_SNP_LAUNCH_UPDATE"):
            self._inner.launch_update(update)

    def launch_finish(self, *arguments: Any) -> None:
        with self._noted(StepKind.COMMAND, "KVM_SEV_SNP_LAUNCH_FINISH"):
            self._inner.launch_finish(*arguments)


class _TracedVm(_Around):
    def __init__(self, inner: Vm, trace: KvmTrace, init: str) -> None:
        super().__init__(inner, trace)
        self._was_asked = False
        if init:
            trace.note(KvmStep(StepKind.COMMAND, init))
        processor, snp = inner.secure_processor, inner.snp_processor
        self.secure_processor = None if processor is None else _TracedProcessor(processor, trace)
        self.snp_processor = None if snp is None else _TracedSnpProcessor(snp, trace)

    @property
    def capabilities(self) -> VmCapabilities:
        answer: VmCapabilities = self._inner.capabilities
        if not self._was_asked:
            self._was_asked = True
            value = int(answer.readonly_memory)
            self._trace.note(KvmStep(StepKind.CAPABILITY, "KVM_CAP_READONLY_MEM", value=value))
        return answer

    def add_slot(self, slot: MemorySlot) -> None:
        with self._noted(
            StepKind.SLOT,
            slot=slot.number,
            gpa=int(slot.range.start),
            hva=int(slot.hva),
            size=slot.range.size,
            readonly=slot.readonly,
            writable=vma.is_writable(slot.hva, slot.range.size),
        ):
            self._inner.add_slot(slot)

    def delete_slot(self, number: int) -> None:
        with self._noted(StepKind.SLOT, slot=number):
            self._inner.delete_slot(number)

    def mapping_changed(self, hva: Hva, size: int) -> None:
        with self._noted_about(StepKind.MAPPING, "", hva, size):
            self._inner.mapping_changed(hva, size)

    def create_vcpu(self, *arguments: Any, **named: Any) -> Vcpu:
        return cast(Vcpu, _TracedVcpu(self._inner.create_vcpu(*arguments, **named), self._trace))

    def runners(self) -> list[VcpuRunner]:
        return [cast(VcpuRunner, _TracedVcpu(runner, self._trace)) for runner in self._inner.runners()]


class TracedHypervisor(_Around):
    """Makes VMs as ``inner`` does; ``trace`` gets what is done to the last one."""

    def __init__(self, inner: Hypervisor, copy: TextIO | None) -> None:
        super().__init__(inner, KvmTrace(copy=copy))

    @property
    def trace(self) -> KvmTrace:
        """The steps."""
        return self._trace

    def create_vm(self, kind: GuestKind, sev: SevSetup | None = None) -> Vm:
        """A VM that notes what is done to it."""
        self._trace.begin()
        return cast(Vm, _TracedVm(self._inner.create_vm(kind, sev), self._trace, _init(kind, sev)))


class HostTracer:
    """Puts hosts around those that are made, and keeps what their VMs note; ``copy`` gets it at once (``KvmTrace``)."""

    def __init__(self, copy: TextIO | None = None) -> None:
        self._copy = copy
        self._hosts: list[TracedHypervisor] = []

    def around(self, host: Hypervisor) -> Hypervisor:
        """``host``, whose VM is traced."""
        self._hosts.append(TracedHypervisor(host, self._copy))
        return cast(Hypervisor, self._hosts[-1])

    @property
    def traces(self) -> list[KvmTrace]:
        """Of the hosts that made a VM."""
        return [host.trace for host in self._hosts if host.trace.steps]


def _init(kind: GuestKind, sev: SevSetup | None) -> str:
    """The command that ``create_vm`` comes with."""
    if not kind.is_confidential:
        return ""
    if sev is not None and sev.vm_type is not VmType.DEFAULT:
        return "KVM_SEV_INIT2"
    return "KVM_SEV_INIT" if kind is GuestKind.SEV else "KVM_SEV_ES_INIT"
