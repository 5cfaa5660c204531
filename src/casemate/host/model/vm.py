"""A modelled virtual machine: physical memory, and CPUs on an engine each (Linux api.rst of KVM)."""

from collections import Counter
from collections.abc import Callable
from errno import EEXIST, EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import KernelEra
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.commands import GuestState
from casemate.abi.sev.features import SevFeatures
from casemate.abi.sev.ghcb import STATUS_DEBUG_SWAP, STATUS_SEV, STATUS_SEV_ES, STATUS_SNP
from casemate.abi.x86.cpu_models import CpuChoice
from casemate.address import Gpa, GuestRange, Hva
from casemate.errors import HostError, UnsupportedError
from casemate.host.capabilities import VmCapabilities
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import FlashProgram, InterruptController, IoBus, VcpuFacts, VcpuRunner
from casemate.host.model.cpu.cpuid import CpuidOfMany, CpuidTable, SevCpuid
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.msr import ModelSpecificRegisters
from casemate.host.model.cpu.processor import Processor, default_cpu, everything, make_processor
from casemate.host.model.intercepts import AccessIntercepts
from casemate.host.model.kvm_emulator import PortInput, WriteJudge
from casemate.host.model.memory import PhysicalMemory
from casemate.host.model.run_control import RunControl
from casemate.host.model.sev.msrs import SevMsrs
from casemate.host.model.slots import SlotTable
from casemate.host.model.vcpu import HostVisibility, ModelVcpu
from casemate.host.model.vcpu_group import CpuGroup, VcpuGroup
from casemate.host.secure_processor import SevSetup
from casemate.host.slots import MemorySlot

if TYPE_CHECKING:
    from casemate.host.model.protected_guest import ProtectedGuest
    from casemate.host.model.sev.platform import ModelPlatform
    from casemate.host.model.sev.sev import ModelSev
    from casemate.host.model.snp.page_states import PageStates
    from casemate.host.model.snp.snp import ModelSnp


MAX_VCPUS = 16


def answer_capabilities(kind: GuestKind, vm_type: VmType, era: KernelEra) -> VmCapabilities:
    """What a VM for ``kind`` answers in ``era``."""
    protected = kind not in (GuestKind.PLAIN, GuestKind.SEV)
    readonly = era.answers_readonly_memory(vm_type)
    return VmCapabilities(readonly, has_protected_state=protected, max_vcpus=MAX_VCPUS)


class ModelVm:
    """One modelled VM; see ``casemate.host.hypervisor.Vm`` for the protocol."""

    def __init__(
        self,
        clock: GuestClock,
        kind: GuestKind,
        setup: SevSetup,
        era: KernelEra,
        *,
        lock_limit: int | None = None,
        raises_vc: bool = True,
        platform: "ModelPlatform | Path | None" = None,
        cpuid: CpuidTable | None = None,
        cpu: CpuChoice | None = None,
    ) -> None:
        self.capabilities = answer_capabilities(kind, setup.vm_type, era)
        protected = self.capabilities.has_protected_state
        encrypted = kind.is_confidential
        self._kind, self._setup, self._era, self._raises_vc = kind, setup, era, raises_vc
        self._processor = processor = everything() if cpuid else make_processor(cpu or default_cpu(kind))
        self._clock = clock
        self._slots = SlotTable()
        self._first = self._make_cpu(0)
        self.msrs = self._first.msrs
        """The first vCPU's."""
        self._cpus = [self._first]
        takes_readonly = era.takes_readonly_slot(setup.vm_type)
        self._memory = PhysicalMemory(
            self._first.engine,
            self._first.intercepts,
            self._slots,
            takes_readonly=takes_readonly,
            address_bits=processor.address_bits,
            encrypted=encrypted,
            separate=kind is GuestKind.SNP,
            mmio_faults=protected and raises_vc,
        )
        self._cpuid = cpuid or (SevCpuid(processor, sev_es=protected) if encrypted else processor)
        self._visibility = HostVisibility(kind.is_confidential, protected, self._may_run, self._starts)
        self._vcpus: list[ModelVcpu] = []
        self._group: CpuGroup | None = None
        self._protected = self._protect() if protected else None
        self.secure_processor: ModelSev | None = None
        if encrypted and kind is not GuestKind.SNP:
            from casemate.host.model.sev import sev

            self.secure_processor = sev.ModelSev(
                era,
                setup,
                self._memory,
                sev_es=protected,
                lock_limit=lock_limit,
                platform=platform,
            )

    def _protect(self) -> "ProtectedGuest":
        from casemate.host.model.protected_guest import ProtectedGuest

        setup = self._setup if self._kind is GuestKind.SNP else None
        return ProtectedGuest(self._slots, self._memory, self._cpuid, self._vcpus, self._first.engine, setup)

    def _make_cpu(self, number: int) -> "_Cpu":
        era, protected = self._era, self.capabilities.has_protected_state
        msrs = _registers(self._kind, self._setup, self._processor, is_bsp=not number)
        engine = Engine(msrs, self._processor)
        intercepts = AccessIntercepts(
            engine,
            self._slots,
            era.protected_write_to_readonly_slot if protected else era.open_write_to_readonly_slot,
            era.write_to_readonly_mapping,
            protected=protected,
            encrypted=self._kind.is_confidential,
        )
        if not self._kind.is_confidential:
            intercepts.judge = WriteJudge(engine, self._slots)
            intercepts.port_input = PortInput(engine, self._slots, self.memory_written)
        if protected and self._raises_vc:
            engine.hooks.raise_vc(dr7=not self._setup.vmsa_features & SevFeatures.DEBUG_SWAP)
        return _Cpu(engine, intercepts, msrs)

    @property
    def page_states(self) -> "PageStates | None":
        """Of an SNP guest's pages."""
        return None if self._protected is None else self._protected.page_states

    @property
    def snp_processor(self) -> "ModelSnp | None":
        """Of an SNP guest."""
        return None if self._protected is None else self._protected.snp_processor

    def _starts(self) -> list[int]:
        launched = self.snp_processor or self.secure_processor
        return [] if launched is None else launched.starts

    def _may_run(self) -> bool:
        if self.snp_processor is not None:
            running = self.snp_processor.state is GuestState.RUNNING
            if running and self.page_states is not None:
                self.page_states.begin(self.snp_processor.memory)
            return running
        return self.secure_processor is None or self.secure_processor.state is GuestState.RUNNING

    def add_slot(self, slot: MemorySlot) -> None:
        """Back a guest range with host memory."""
        self._memory.add(slot)

    def delete_slot(self, number: int) -> None:
        """Remove a slot; its range becomes MMIO."""
        self._memory.delete(number)

    def mapping_changed(self, hva: Hva, size: int) -> None:
        """Take note of a new protection of a host mapping."""
        self._memory.mapping_changed(hva, size)

    def coalesce_mmio(self, where: GuestRange, *, enabled: bool) -> None:
        """Nothing to do: a write costs a call, and no exit."""

    def answer_programs(self, where: GuestRange, take: Callable[[list[FlashProgram]], None]) -> None:
        """Note further programs in the hooks, and tell of them in one go."""
        self._cpus[self._executing].intercepts.answer_programs(where, take)

    def deliver_coalesced(self) -> None:
        """Nothing to do: none waits."""

    def watch_writes(self, hva: Hva, size: int, on_write: Callable[[Hva], None]) -> None:
        """Raises UnsupportedError: who waits for a verdict would be this process itself."""
        raise UnsupportedError(
            "the modelled host cannot hold a write for userfaultfd", "use --host kvm, or --protection vma"
        )

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Drop code translated from this range."""
        for vcpu in self._vcpus:
            vcpu.memory_written(gpa, size)

    @property
    def _executing(self) -> int:
        return self._group.number if isinstance(self._group, VcpuGroup) else 0

    def create_vcpu(
        self,
        bus: IoBus,
        interrupts: InterruptController | None,
        *,
        number: int = 0,
        count: int = 1,
        control: RunControl | None = None,
    ) -> ModelVcpu:
        """One more vCPU, in the order of their numbers; ``control`` ends its runs. Raises HostError."""
        if count > 1 and self._group is None:
            self._group = VcpuGroup(self._clock, interrupts)
        cpuid = self._cpuid if count == 1 else CpuidOfMany(self._cpuid, number, count)
        return self._add_vcpu(bus, interrupts, number, cpuid, control)

    def create_vcpu_alone(
        self,
        bus: IoBus,
        interrupts: InterruptController | None,
        number: int,
        cpuid: CpuidTable,
        control: RunControl,
    ) -> ModelVcpu:
        """One that a thread of its own runs, of which one executes at a time: ``control`` sees to that."""
        if number and self._group is None:
            self._group = CpuGroup()
            first = self._vcpus[0]
            self._group.add(first, first.engine.hooks)
            first.join(self._group)
        return self._add_vcpu(bus, interrupts, number, cpuid, control)

    @property
    def others_wait_at(self) -> int:
        """Where the engines of several vCPUs look whether another one waits; 0 where there is one."""
        return 0 if self._group is None else self._group.others_wait_at

    def _add_vcpu(
        self,
        bus: IoBus,
        interrupts: InterruptController | None,
        number: int,
        cpuid: CpuidTable,
        control: RunControl | None,
    ) -> ModelVcpu:
        if number != len(self._vcpus) or number >= MAX_VCPUS:
            made = f"vCPU {number} behind {len(self._vcpus)}; there are {MAX_VCPUS} at most"
            raise HostError(
                "KVM_CREATE_VCPU (modelled)", EEXIST if number < len(self._vcpus) else EINVAL, made
            )
        cpu = self._first if not number else self._add_cpu(number)
        cpu.intercepts.bus = bus
        cpu.engine.hooks.answer_cpuid(cpuid.answer)
        instructions = ghcb = None
        if self._protected is not None:
            instructions = self._protected.instructions(cpu.engine)
            if isinstance(cpu.msrs, SevMsrs):
                ghcb = self._protected.ghcb_server(cpu.engine, cpu.msrs, cpuid, bus)
        vcpu = ModelVcpu(
            number,
            cpu.engine,
            self._memory,
            cpu.intercepts,
            None if interrupts is None else interrupts.of(number) if number else interrupts,
            self._clock,
            self._visibility,
            ghcb,
            instructions,
            control,
            self._group,
        )
        self._vcpus.append(vcpu)
        if self._group is not None:
            self._group.add(vcpu, cpu.engine.hooks)
            vcpu.join(self._group)
        return vcpu

    def _add_cpu(self, number: int) -> "_Cpu":
        cpu = self._make_cpu(number)
        self._cpus.append(cpu)
        self._memory.add_cpu(cpu.engine, cpu.intercepts)
        if self._protected is not None:
            self._protected.share_pages(cpu.engine)
        return cpu

    def vcpu_facts(self) -> list[VcpuFacts]:
        """Of each."""
        return [vcpu.facts() for vcpu in self._vcpus]

    def runners(self) -> list[VcpuRunner]:
        """Several vCPUs take turns on one thread."""
        return [self._group] if isinstance(self._group, VcpuGroup) else [*self._vcpus]

    def guest_requests(self) -> dict[str, dict[str, int]]:
        """VMGEXITs by request and #VCs by exit code, most frequent first, and pages by who can read them."""
        views = {"pages": self._memory.count_views()} if self.secure_processor is not None else {}
        if self.page_states is not None:
            views = {"pages": self.page_states.count_views(), "page_states": dict(self.page_states.counts)}
        if not any(vcpu.ghcb for vcpu in self._vcpus):
            return views
        raised, requests = Counter[int](), Counter[str]()
        for vcpu in self._vcpus:
            raised += vcpu.vc_counts()
            requests += vcpu.vmgexits()
        by_code = {f"{code:#x}": count for code, count in raised.most_common()}
        return {"vmgexits": dict(requests.most_common()), "vc": by_code} | views

    def close(self) -> None:
        """Give the engines back."""
        if self._group is not None:
            self._group.close()
        for vcpu in self._vcpus:
            vcpu.close()
        for cpu in self._cpus:
            cpu.engine.close()
        self._memory.close()


class _Cpu(NamedTuple):
    engine: Engine
    intercepts: AccessIntercepts
    msrs: ModelSpecificRegisters


def _registers(
    kind: GuestKind, setup: SevSetup, processor: Processor, *, is_bsp: bool
) -> ModelSpecificRegisters:
    if not kind.is_confidential:
        return ModelSpecificRegisters(processor.features, is_bsp=is_bsp)
    status = STATUS_SEV
    if kind is not GuestKind.SEV:
        status |= STATUS_SEV_ES | (STATUS_SNP if kind is GuestKind.SNP else 0)
        status |= STATUS_DEBUG_SWAP if setup.vmsa_features & SevFeatures.DEBUG_SWAP else 0
    return SevMsrs(status, sev_es=kind is not GuestKind.SEV, is_bsp=is_bsp)
