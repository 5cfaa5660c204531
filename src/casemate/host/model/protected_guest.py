"""What a modelled VM has for a guest with protected state: servers of its requests, SNP's pages (AMD 56421)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from casemate.abi.sev.features import SevFeatures
from casemate.host.hypervisor import IoBus
from casemate.host.model.cpu.cpuid import CpuidTable
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.memory import PhysicalMemory
from casemate.host.model.sev.ghcb import GhcbServer, JumpTable
from casemate.host.model.sev.msrs import SevMsrs
from casemate.host.model.slots import SlotTable
from casemate.host.model.snp.ap_creation import ApCreation
from casemate.host.model.snp.instructions import PageInstructions
from casemate.host.model.snp.page_states import PageStates
from casemate.host.model.snp.requests import SnpRequests
from casemate.host.model.snp.snp import ASID, ModelSnp
from casemate.host.secure_processor import SevSetup

if TYPE_CHECKING:
    from casemate.host.model.vcpu import ModelVcpu


class ProtectedGuest:
    """Of one VM, whose ``vcpus`` are made later, the first on ``engine``; ``snp`` is how an SNP guest is set up.

    A plain guest has none of this, and loads none of it.
    """

    def __init__(
        self,
        slots: SlotTable,
        memory: PhysicalMemory,
        cpuid: CpuidTable,
        vcpus: Sequence[ModelVcpu],
        engine: Engine,
        snp: SevSetup | None,
    ) -> None:
        self._slots = slots
        self._engine = engine
        self._jump_table = JumpTable()
        self.snp_processor: ModelSnp | None = None
        self.page_states: PageStates | None = None
        if snp is not None:
            self.snp_processor = ModelSnp(snp, memory.fill, cpuid)
            self._rights = engine.hooks.check_pages()
            self.page_states = PageStates(self.snp_processor.rmp, ASID, self._rights)
            features = snp.vmsa_features | SevFeatures.SNP_ACTIVE
            self._aps = ApCreation(vcpus, self.page_states, features, memory.read_private)

    def instructions(self, engine: Engine) -> PageInstructions | None:
        """Those that only an SNP guest has, on one vCPU."""
        return None if self.page_states is None else PageInstructions(engine, self.page_states)

    def ghcb_server(self, engine: Engine, msrs: SevMsrs, cpuid: CpuidTable, bus: IoBus) -> GhcbServer:
        """Who serves one vCPU's VMGEXITs."""
        snp = None
        if self.page_states is not None and self.snp_processor is not None:
            hooks = engine.hooks
            psp = self.snp_processor.psp
            snp = SnpRequests(self._slots, self.page_states, psp, self._aps, lambda: hooks.refused_gpa)
        engine.hooks.serve_ghcb()
        return GhcbServer(self._slots, msrs, cpuid, bus, self._jump_table, snp)

    def share_pages(self, engine: Engine) -> None:
        """Another vCPU's engine knows of an SNP guest's pages what the first one does."""
        if self.page_states is not None:
            engine.hooks.share_pages(self._engine.hooks, self._rights)
