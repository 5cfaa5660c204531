"""What to do about a guest access that ended in a memory fault (docs/design/protection.md)."""

from __future__ import annotations

from dataclasses import dataclass

from casemate.events import Violation, ViolationKind
from casemate.firmware.volume_header import find_volumes
from casemate.host.exits import MemoryFault
from casemate.machine.machine import Machine
from casemate.memory.flash_memory import FlashMode
from casemate.memory.protection import OnWrite, WriteProtection


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the guest goes on, and what to tell."""

    goes_on: bool
    text: str


def judge_fault(machine: Machine, fault: MemoryFault) -> Verdict:
    """Report a store to protected memory; drop it if that was asked for and can be done, else end the run."""
    unit = machine.unit_at(fault.gpa)
    report = Violation(
        ViolationKind.PROTECTED_MEMORY,
        unit,
        fault.gpa,
        fault.size,
        fault.value,
        fault.rip,
        instruction_text(machine),
    )
    machine.recorder.report(report)
    text = describe(machine, report)
    if machine.spec.on_write is not OnWrite.DROP:
        return Verdict(False, text)
    length = _plain_store_length(machine)
    if length is None or fault.rip is None:
        return Verdict(
            False, f"{text}; it cannot be dropped, for the instruction is unknown or does more than store"
        )
    machine.vcpu.set_rip(fault.rip + length)
    return Verdict(True, text)


def judge_loop(machine: Machine) -> str:
    """Report a sealed guest that faults for ever on a read-only slot; returns what to tell."""
    report = Violation(ViolationKind.LIVELOCK, None, None, None, None)
    machine.recorder.report(report)
    return describe(machine, report)


def describe(machine: Machine, violation: Violation) -> str:
    """One line about a violation, with what is known; of a sealed guest, which units it can have been."""
    where = f" at {violation.gpa:#x}" if violation.gpa is not None else _suspects(machine)
    unit = "" if violation.unit is None else f" in flash unit {violation.unit}{_owner(machine, violation)}"
    value = "" if violation.value is None else f", value {violation.value:#x}"
    return f"{violation.kind}{where}{unit}{value}{_executor(machine, violation)}"


def instruction_text(machine: Machine) -> str | None:
    """The instruction that the vCPU stands on, or None where nobody can know."""
    from iced_x86 import Decoder, Formatter, FormatterSyntax

    found = machine.vcpu.code_at_rip()
    if found is None:
        return None
    code, bits = found
    instruction = Decoder(bits, code, ip=machine.vcpu.rip() or 0).decode()
    return Formatter(FormatterSyntax.INTEL).format(instruction) if instruction else None


def _owner(machine: Machine, violation: Violation) -> str:
    """What of a unit's file lies where the guest stored."""
    assert violation.unit is not None
    assert violation.gpa is not None
    source = machine.flash[violation.unit].source
    offset = violation.gpa - source.gpa
    for volume in find_volumes(source.data):
        if volume.offset <= offset < volume.end:
            what = "variable store" if volume.holds_variables else "firmware volume"
            return f" (offset {offset:#x}, {what} at {volume.offset:#x})"
    return f" (offset {offset:#x}, in no firmware volume)"


def _executor(machine: Machine, violation: Violation) -> str:
    if violation.rip is not None:
        return f", by {violation.instruction or 'the instruction'} at {violation.rip:#x}"
    mapped = machine.protection.protection in (WriteProtection.READONLY_VMA, WriteProtection.READONLY_VIEW)
    direct = violation.kind is ViolationKind.PROTECTED_MEMORY and violation.gpa is not None
    # The processor would have faulted, and KVM_RUN failed.
    return ", executed by the host's instruction emulator" if mapped and direct else ""


def _suspects(machine: Machine) -> str:
    units = [f"unit {unit.number}" for unit in machine.flash if unit.memory.mode is FlashMode.ARRAY]
    why = " (sealed)" if machine.vm.capabilities.sealed_state else ""
    return f", address unknown{why}; armed: {', '.join(units) or 'nothing'}"


def _plain_store_length(machine: Machine) -> int | None:
    from iced_x86 import Decoder, Mnemonic, OpKind

    found = machine.vcpu.code_at_rip()
    if found is None:
        return None
    code, bits = found
    instruction = Decoder(bits, code).decode()
    # MOV to memory has no other effect; anything else (XCHG, string, read-modify-write) would have half happened.
    plain = instruction.mnemonic == Mnemonic.MOV and instruction.op0_kind == OpKind.MEMORY
    return instruction.len if plain else None
