"""What to do about a guest access that ended in a memory fault (docs/design/protection.md)."""

from typing import TYPE_CHECKING, NamedTuple

from casemate.events import AccessPath, Violation, ViolationKind
from casemate.host.exits import MemoryFault
from casemate.machine.machine import Machine
from casemate.memory.protection import OnWrite

if TYPE_CHECKING:
    from casemate.host.instruction import GuestInstruction

_MMIO_PATHS = (AccessPath.READONLY_SLOT, AccessPath.NO_SLOT, AccessPath.EMULATOR)


class Verdict(NamedTuple):
    """Whether the guest goes on, and what to tell."""

    goes_on: bool
    text: str


def judge_fault(machine: Machine, fault: MemoryFault) -> Verdict:
    """Report a write to protected memory; drop or make it if that was asked for and can be done, else end the run."""
    page = machine.platform.take_held_page()
    gpa = page if fault.gpa is None else fault.gpa
    report = Violation(
        ViolationKind.PROTECTED_MEMORY,
        machine.platform.unit_at(gpa),
        gpa,
        fault.size,
        fault.value,
        fault.rip,
        path=AccessPath.FAULT if page is None else AccessPath.USERFAULT,
    )
    machine.recorder.report(report)
    allowed = machine.state.take_allowance()
    if not allowed and machine.spec.on_write is not OnWrite.DROP:
        return Verdict(False, describe(machine, report))
    length = _plain_write_length(machine)
    if length is None or fault.rip is None or (allowed and not make_write(machine, report)):
        verb = "allowed" if allowed else "dropped"
        cause = f"it cannot be {verb}, for the instruction is unknown or does more than write"
        return Verdict(False, f"{describe(machine, report)}; {cause}")
    machine.vcpus.current.set_rip(fault.rip + length)
    return Verdict(True, "")


def make_write(machine: Machine, violation: Violation) -> bool:
    """Do for the guest what it may not do itself; False if it is not known what."""
    unit, gpa, size, value = violation.unit, violation.gpa, violation.size, violation.value
    if unit is None or gpa is None or size is None or value is None:
        return False
    flash = machine.platform.flash[unit]
    offset = gpa - flash.source.gpa
    if offset + size > flash.memory.size:
        return False
    flash.memory.allow_write(offset, value.to_bytes(size, "little"))
    return True


def examine(machine: Machine, violation: Violation) -> Violation:
    """With the instruction and the vCPU; called on the vCPU's thread while the access is being handled."""
    if machine.vcpus.current.write_was_coalesced:
        return violation._replace(path=AccessPath.COALESCED)
    rip = violation.rip
    if rip is None and violation.gpa is not None and violation.size and violation.path in _MMIO_PATHS:
        rip = machine.vcpus.current.writing_instruction(violation.gpa, violation.size)
    text = None if rip is None else instruction_text(machine, rip)
    return violation._replace(rip=rip, instruction=text, vcpu=machine.vcpus.current_number)


def judge_loop(machine: Machine) -> str:
    """Report a guest with protected state that faults for ever on a read-only slot; returns what to tell."""
    report = Violation(ViolationKind.LIVELOCK, None, None, None, None, path=AccessPath.NESTED_FAULT)
    machine.recorder.report(report)
    return describe(machine, report)


def describe(machine: Machine, violation: Violation) -> str:
    """One line about a violation, with what is known; of a guest with protected state, which units it can have been."""
    violation = examine(machine, violation)
    where = f" at {violation.gpa:#x}" if violation.gpa is not None else _suspects(machine)
    unit = "" if violation.unit is None else f" in flash unit {violation.unit} ({owner(machine, violation)})"
    value = "" if violation.value is None else f", value {violation.value:#x}"
    return f"{violation.kind}{where}{unit}{value}{_executor(violation)}"


def instruction_text(machine: Machine, rip: int | None = None) -> str | None:
    """The instruction at ``rip``, or that the vCPU stands on; None where nobody can know."""
    found = _instruction(machine, rip)
    return None if found is None else found.text


def owner(machine: Machine, violation: Violation) -> str | None:
    """What of a unit's file lies where the guest wrote."""
    if violation.unit is None or violation.gpa is None:
        return None
    return machine.platform.flash[violation.unit].owner_at(violation.gpa)


def _executor(violation: Violation) -> str:
    # The processor would have faulted, and KVM_RUN failed.
    emulated = violation.path is AccessPath.EMULATOR
    by = f", executed by {violation.path}" if emulated else ""
    if violation.rip is not None:
        by = f", by {violation.instruction or 'the instruction'} at {violation.rip:#x}{by}"
    return by


def _suspects(machine: Machine) -> str:
    units = [f"unit {unit.number}" for unit in machine.platform.flash if unit.memory.is_armed]
    why = " (protected state)" if machine.vm.capabilities.has_protected_state else ""
    return f", address unknown{why}; armed: {', '.join(units) or 'nothing'}"


def _plain_write_length(machine: Machine) -> int | None:
    found = _instruction(machine)
    return None if found is None else found.plain_write_length


def _instruction(machine: Machine, rip: int | None = None) -> "GuestInstruction | None":
    from casemate.host.instruction import GuestInstruction

    found = machine.vcpus.current.code_at_rip(rip)
    return None if found is None else GuestInstruction(*found, rip or machine.vcpus.current.rip() or 0)
