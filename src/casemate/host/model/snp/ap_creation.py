"""AP creation: an SNP guest makes the save areas of its other vCPUs itself (AMD 56421; Linux svm/sev.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

from casemate.abi.kvm.structs import Regs, Segment
from casemate.abi.sev.vmsa import SaveArea, VmcbSegment
from casemate.abi.x86 import msr
from casemate.address import PAGE_SIZE
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.state import CpuState
from casemate.host.model.cpu.unicorn_api import x86_const
from casemate.host.model.snp.page_states import LARGE, PageStates

_SVME = 1 << 12
"""Of EFER: in every save area, and never seen by the guest."""
_SEGMENTS = {
    "es": "es",
    "cs": "cs",
    "ss": "ss",
    "ds": "ds",
    "fs": "fs",
    "gs": "gs",
    "ldt": "ldtr",
    "tr": "tr",
}
_REGISTERS = (
    msr.PAT, msr.STAR, msr.LSTAR, msr.CSTAR, msr.FMASK, msr.KERNEL_GS_BASE, msr.SYSENTER_CS, msr.SYSENTER_ESP,
    msr.SYSENTER_EIP,
)  # fmt: skip
_FIELDS = (
    "g_pat", "star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip"
)  # fmt: skip


class Request(IntEnum):
    """Low half of SW_EXIT_INFO_1."""

    CREATE_ON_INIT = 0
    CREATE = 1
    DESTROY = 2


class Creatable(Protocol):
    """A vCPU that another one starts."""

    number: int

    def create(self, load: Callable[[Engine], str | None], *, on_init: bool) -> None:
        """Go on with the registers that ``load`` sets, or at the next INIT; what it returns is why not."""

    def destroy(self) -> None:
        """Execute nothing more until it is created again."""


class ApCreation:
    """Serves one VM, whose launched save areas have ``features``. ``read`` gives private memory of the guest."""

    def __init__(
        self,
        vcpus: Sequence[Creatable],
        states: PageStates,
        features: int,
        read: Callable[[int, int], bytes],
    ) -> None:
        self._vcpus = vcpus
        self._states = states
        self._features = features
        self._read = read

    def serve(self, info: int, gpa: int, features: int) -> bool:
        """One request; False where KVM calls it invalid input."""
        kind, apic_id = info & 0xFFFFFFFF, info >> 32
        target = next((vcpu for vcpu in self._vcpus if vcpu.number == apic_id), None)
        if target is None or kind not in set(Request):
            return False
        if kind == Request.DESTROY:
            target.destroy()
            return True
        # A save area at the start of 2 MiB hits an erratum of the processor, so KVM takes none.
        if features != self._features or gpa % PAGE_SIZE or not gpa % (LARGE * PAGE_SIZE):
            return False
        target.create(lambda engine: self._load(engine, gpa), on_init=kind == Request.CREATE_ON_INIT)
        return True

    def _load(self, engine: Engine, gpa: int) -> str | None:
        if not self._states.is_save_area(gpa):
            return f"VMRUN fails: {gpa:#x} is no save area of this guest (RMPADJUST made none)"
        area = SaveArea.from_bytes(self._read(gpa, SaveArea.SIZE))
        if area.vmpl:
            return (
                f"VMRUN fails: the save area at {gpa:#x} is of VMPL {area.vmpl}, the model has VMPL 0 alone"
            )
        load_save_area(engine, area)
        return None


def load_save_area(engine: Engine, area: SaveArea) -> None:
    """Give a CPU, which stands still, the registers of a save area."""
    engine.init()
    state = CpuState(engine)
    sregs = state.sregs()
    for name, field in _SEGMENTS.items():
        _take(getattr(area, field), getattr(sregs, name))
    for name, field in (("gdt", area.gdtr), ("idt", area.idtr)):
        table = getattr(sregs, name)
        table.base, table.limit = field.base, field.limit & 0xFFFF
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4 = area.cr0, area.cr2, area.cr3, area.cr4
    sregs.efer = area.efer & ~_SVME
    state.set_sregs(sregs)
    regs = Regs()
    for name, *_ in Regs._fields_:
        setattr(regs, name, getattr(area, name))
    state.set_regs(regs)
    state.xcr0 = area.xcr0 or 1
    for index, name in zip(_REGISTERS, _FIELDS, strict=True):
        engine.uc.write_msr(index, getattr(area, name))
    engine.uc.write_register(x86_const.UC_X86_REG_MXCSR, area.mxcsr)
    engine.uc.write_register(x86_const.UC_X86_REG_FPCW, area.x87_fcw)


def _take(held: VmcbSegment, shown: Segment) -> None:
    """The attributes are those of a descriptor, without the bits of the limit between them."""
    bits = held.attributes
    shown.selector, shown.base, shown.limit = held.selector, held.base, held.limit
    shown.type, shown.s, shown.dpl, shown.present = bits & 15, bits >> 4 & 1, bits >> 5 & 3, bits >> 7 & 1
    shown.avl, shown.l, shown.db, shown.g = bits >> 8 & 1, bits >> 9 & 1, bits >> 10 & 1, bits >> 11 & 1
