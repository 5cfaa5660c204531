"""A modelled virtual machine: physical memory and one CPU on a Unicorn engine (Linux api.rst of KVM)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EEXIST
from typing import TYPE_CHECKING

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
from casemate.host.hypervisor import FlashProgram, InterruptController, IoBus
from casemate.host.model.cpu.cpuid import CpuidTable, SevCpuid
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.msr import ModelSpecificRegisters
from casemate.host.model.cpu.processor import Processor, default_cpu, everything, make_processor
from casemate.host.model.intercepts import AccessIntercepts
from casemate.host.model.kvm_emulator import PortInput, WriteJudge
from casemate.host.model.memory import PhysicalMemory
from casemate.host.model.run_control import RunControl
from casemate.host.model.sev.ghcb import GhcbServer
from casemate.host.model.sev.msrs import SevMsrs
from casemate.host.model.slots import SlotTable
from casemate.host.model.snp.instructions import PageInstructions
from casemate.host.model.snp.page_states import PageStates
from casemate.host.model.snp.requests import SnpRequests
from casemate.host.model.vcpu import HostVisibility, ModelVcpu
from casemate.host.secure_processor import SevSetup
from casemate.host.slots import MemorySlot

if TYPE_CHECKING:
    from casemate.host.model.sev.platform import ModelPlatform
    from casemate.host.model.sev.sev import ModelSev
    from casemate.host.model.snp.snp import ModelSnp


def answer_capabilities(kind: GuestKind, vm_type: VmType, era: KernelEra) -> VmCapabilities:
    """What a VM for ``kind`` answers in ``era``."""
    protected = kind not in (GuestKind.PLAIN, GuestKind.SEV)
    return VmCapabilities(era.answers_readonly_memory(vm_type), has_protected_state=protected)


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
        platform: ModelPlatform | None = None,
        cpuid: CpuidTable | None = None,
        cpu: CpuChoice | None = None,
    ) -> None:
        self.capabilities = answer_capabilities(kind, setup.vm_type, era)
        protected = self.capabilities.has_protected_state
        encrypted = kind.is_confidential
        processor = everything() if cpuid else make_processor(cpu or default_cpu(kind))
        self.msrs = _registers(kind, setup, processor)
        self._clock = clock
        readonly_slot = era.protected_write_to_readonly_slot if protected else era.open_write_to_readonly_slot
        self._engine = Engine(self.msrs, processor)
        self._slots = SlotTable()
        self._intercepts = AccessIntercepts(
            self._engine,
            self._slots,
            readonly_slot,
            era.write_to_readonly_mapping,
            protected=protected,
            encrypted=encrypted,
        )
        takes_readonly = era.takes_readonly_slot(setup.vm_type)
        self._memory = PhysicalMemory(
            self._engine,
            self._intercepts,
            self._slots,
            takes_readonly=takes_readonly,
            address_bits=processor.address_bits,
            encrypted=encrypted,
            separate=kind is GuestKind.SNP,
            mmio_faults=protected and raises_vc,
        )
        if not encrypted:
            self._intercepts.judge = WriteJudge(self._engine, self._slots)
            self._intercepts.port_input = PortInput(self._engine, self._slots, self.memory_written)
        self._cpuid = cpuid or (SevCpuid(processor, sev_es=protected) if encrypted else processor)
        if protected and raises_vc:
            self._engine.hooks.raise_vc(dr7=not setup.vmsa_features & SevFeatures.DEBUG_SWAP)
        self._engine.hooks.answer_cpuid(self._cpuid.answer)
        self._visibility = HostVisibility(kind.is_confidential, protected, self._may_run)
        self._vcpu: ModelVcpu | None = None
        self._ghcb: GhcbServer | None = None
        self.secure_processor: ModelSev | None = None
        self.snp_processor: ModelSnp | None = None
        self._page_states: PageStates | None = None
        if kind is GuestKind.SNP:
            self._make_snp(setup)
        elif kind.is_confidential:
            from casemate.host.model.sev.sev import ModelSev

            self.secure_processor = ModelSev(
                era,
                setup,
                self._memory.make_private,
                sev_es=protected,
                lock_limit=lock_limit,
                platform=platform,
            )

    def _make_snp(self, setup: SevSetup) -> None:
        from casemate.host.model.snp.snp import ASID, ModelSnp

        self.snp_processor = ModelSnp(setup, self._memory.fill, self._cpuid)
        self._page_states = PageStates(self.snp_processor.rmp, ASID, self._engine.hooks.check_pages())

    @property
    def page_states(self) -> PageStates | None:
        """Of an SNP guest's pages."""
        return self._page_states

    def _may_run(self) -> bool:
        if self.snp_processor is not None:
            running = self.snp_processor.state is GuestState.RUNNING
            if running and self._page_states is not None:
                self._page_states.begin(self.snp_processor.memory)
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
        self._intercepts.answer_programs(where, take)

    def deliver_coalesced(self) -> None:
        """Nothing to do: none waits."""

    def watch_writes(self, hva: Hva, size: int, on_write: Callable[[Hva], None]) -> None:
        """Raises UnsupportedError: who waits for a verdict would be this process itself."""
        raise UnsupportedError(
            "the modelled host cannot hold a write for userfaultfd", "use --host kvm, or --protection vma"
        )

    def memory_written(self, gpa: Gpa, size: int) -> None:
        """Drop code translated from this range."""
        if self._vcpu:
            self._vcpu.memory_written(gpa, size)

    def create_vcpu(
        self,
        bus: IoBus,
        interrupts: InterruptController | None,
        *,
        number: int = 0,
        count: int = 1,
        control: RunControl | None = None,
    ) -> ModelVcpu:
        """The VM's only vCPU; ``control`` ends its runs. Raises HostError EEXIST for a second one."""
        if self._vcpu:
            raise HostError("KVM_CREATE_VCPU (modelled)", EEXIST, "the modelled host has one vCPU per VM")
        self._intercepts.bus = bus
        snp = instructions = None
        if self._page_states is not None and self.snp_processor is not None:
            snp = SnpRequests(self._slots, self._page_states, self.snp_processor.psp)
            instructions = PageInstructions(self._engine, self._page_states)
        if isinstance(self.msrs, SevMsrs) and self.capabilities.has_protected_state:
            self._ghcb = GhcbServer(self._slots, self.msrs, self._cpuid, bus, snp)
            self._engine.hooks.serve_ghcb()
        self._vcpu = ModelVcpu(
            self._engine,
            self._memory,
            self._intercepts,
            interrupts,
            self._clock,
            self._visibility,
            self._ghcb,
            instructions,
            control,
        )
        return self._vcpu

    @property
    def engine(self) -> Engine:
        """The CPU itself, for who keeps its state (KVM_GET_REGS and its like)."""
        return self._engine

    def guest_requests(self) -> dict[str, dict[str, int]]:
        """VMGEXITs by request and #VCs by exit code, most frequent first, and pages by who can read them."""
        views = {"pages": self._memory.count_views()} if self.secure_processor is not None else {}
        if self._page_states is not None:
            views = {"pages": self._page_states.count_views(), "page_states": dict(self._page_states.counts)}
        if self._ghcb is None or self._vcpu is None:
            return views
        raised = {f"{code:#x}": count for code, count in self._vcpu.vc_counts().most_common()}
        requests = self._ghcb.requests + Counter(self._engine.hooks.served())
        return {"vmgexits": dict(requests.most_common()), "vc": raised} | views

    def close(self) -> None:
        """Give the engine back."""
        if self._vcpu:
            self._vcpu.close()
        self._engine.close()
        self._memory.close()


def _registers(kind: GuestKind, setup: SevSetup, processor: Processor) -> ModelSpecificRegisters:
    if not kind.is_confidential:
        return ModelSpecificRegisters(processor.features)
    status = STATUS_SEV
    if kind is not GuestKind.SEV:
        status |= STATUS_SEV_ES | (STATUS_SNP if kind is GuestKind.SNP else 0)
        status |= STATUS_DEBUG_SWAP if setup.vmsa_features & SevFeatures.DEBUG_SWAP else 0
    return SevMsrs(status, sev_es=kind is not GuestKind.SEV)
