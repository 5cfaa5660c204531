"""Proves write protection on the hosts that are here: every attack on every protection (docs/design/prove.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from casemate.abi.kernel_eras import ERAS, find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.errors import CasemateError
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Hypervisor
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.secure_processor import SevSetup
from casemate.memory.protection import WriteProtection
from casemate.prove import attacks
from casemate.prove.proof_vm import ProofVm, Row

MECHANISMS = {
    "slot": WriteProtection.READONLY_SLOT,
    "vma": WriteProtection.READONLY_VMA,
    "view": WriteProtection.READONLY_VIEW,
    "uffd": WriteProtection.USERFAULT,
}
"""By the words of ``--protection``."""

MakeHost = Callable[[], Hypervisor]


@dataclass(frozen=True, slots=True)
class MechanismProof:
    """What one protection did; ``refusal`` says why it could not be tried, and there are no rows then."""

    protection: WriteProtection
    rows: tuple[Row, ...]
    refusal: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the memory stayed unchanged in every row; None if that could not be tried."""
        return all(row.unchanged for row in self.rows) if self.rows else None


@dataclass(frozen=True, slots=True)
class HostProof:
    """All protections on one kind of host and guest; ``modelled`` says that it was no real one."""

    name: str
    guest: str
    modelled: bool
    mechanisms: tuple[MechanismProof, ...]


def prove_kvm(name: str) -> HostProof:
    """Plain guests on this machine's KVM, which is called ``name``. Raises UnsupportedError if there is none."""

    return prove_host(name, KvmHypervisor)


def prove_model(era: str | None = None) -> Iterator[HostProof]:
    """Plain and SEV-ES guests on the model of ``era``, or of all. Eras that do not differ are proven once.

    Raises SpecError if there is no such era.
    """
    for name, make in _modelled(era, _plain_behaviour):
        yield prove_host(name, make)
    for name, make in _modelled(era, _sealed_behaviour):
        yield prove_sealed(name, make)


def prove_host(
    name: str, make: MakeHost, wanted: Sequence[WriteProtection] = tuple(MECHANISMS.values())
) -> HostProof:
    """Plain guests on the host that ``make`` makes: a tenth of a second for each protection."""
    modelled = make().name == "model"
    return HostProof(name, "plain", modelled, tuple(_prove(make, protection) for protection in wanted))


def prove_sealed(name: str, make: MakeHost) -> HostProof:
    """SEV-ES guests on a modelled host, in the newest type of VM that it has for them."""
    setup = SevSetup(VmType.SEV_ES if VmType.SEV_ES in make().vm_types else VmType.DEFAULT)
    proofs = tuple(_prove_sealed(make, setup, wanted) for wanted in MECHANISMS.values())
    return HostProof(name, "sev-es", True, proofs)


def _prove(make: MakeHost, protection: WriteProtection) -> MechanismProof:
    rows: list[Row] = []
    try:
        while left := attacks.ATTACKS[len(rows) :]:  # an attack may have been its guest's end
            rows += _run_sequence(make, protection, left)
        rows += _race(make, protection)
    except CasemateError as error:
        return MechanismProof(protection, (), str(error))
    return MechanismProof(protection, tuple(rows))


def _run_sequence(make: MakeHost, protection: WriteProtection, left: Sequence[attacks.Attack]) -> list[Row]:
    program = attacks.sequence(left)
    with ProofVm(make(), protection, program.image) as proof_vm:
        found = proof_vm.run_sequence(left, program.starts)
    return found or [Row(left[0], "its guest never got there", False)]


def _race(make: MakeHost, protection: WriteProtection) -> tuple[Row, Row]:
    host = make()
    if host.name == "model":  # its VMs have one processor
        with ProofVm(host, protection, attacks.race()) as proof_vm:
            return proof_vm.run_race(), proof_vm.run_dma()
    with ProofVm(host, protection, attacks.two_processors(), processors=2) as proof_vm:
        return proof_vm.run_race_of_two(), proof_vm.run_dma()


def _prove_sealed(make: MakeHost, setup: SevSetup, protection: WriteProtection) -> MechanismProof:
    program = attacks.protected()
    try:
        with ProofVm(make(), protection, program.image, setup) as proof_vm:
            return MechanismProof(protection, tuple(proof_vm.run_sequence([attacks.SEALED], program.starts)))
    except CasemateError as error:
        return MechanismProof(protection, (), str(error))


def _modelled(era: str | None, behaviour: Callable[[str], object]) -> Iterator[tuple[str, MakeHost]]:
    groups: dict[object, list[str]] = {}
    for name in ERAS if era is None else (find_era(era).name,):
        groups.setdefault(behaviour(name), []).append(name)
    for names in groups.values():
        label = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        yield f"model, {label}", partial(_make_model, names[-1])


def _make_model(era: str) -> Hypervisor:
    from casemate.host.model.hypervisor import ModelHypervisor

    return ModelHypervisor(GuestClock(), era=era)


def _plain_behaviour(name: str) -> object:
    era = find_era(name)
    return era.open_readonly_memory, era.open_write_to_readonly_slot, era.write_to_readonly_mapping


def _sealed_behaviour(name: str) -> object:
    era = find_era(name)
    has_type = VmType.SEV_ES in era.vm_types
    takes_slots = era.takes_readonly_slot(VmType.SEV_ES if has_type else VmType.DEFAULT)
    return takes_slots, has_type, era.protected_write_to_readonly_slot, era.write_to_readonly_mapping
