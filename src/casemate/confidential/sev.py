"""Executes the launch plan of a SEV or SEV-ES guest between the machine's stages (Linux x86/amd-memory-encryption.rst).

The protection of flash is lifted around the update of unit 0 and nowhere else, and by whoever calls for that update:
kernel hashes, secrets and ``--bios`` firmware lie in RAM, which was never armed.
"""

from __future__ import annotations

from casemate.address import Hva
from casemate.confidential.preparation import LaunchSecret
from casemate.digest.plan import LaunchPlan
from casemate.digest.steps import UpdateData
from casemate.errors import ImageError, SpecError
from casemate.host.secure_processor import SecureProcessor, VcpuReset
from casemate.machine.machine import Machine
from casemate.memory.backing import HostMapping
from casemate.memory.region import Ram


def execute(
    plan: LaunchPlan, machine: Machine, processor: SecureProcessor, vcpus: tuple[VcpuReset, ...]
) -> None:
    """Measure what the plan says, in its order. Raises HostError, FirmwareStatusError, ImageError or SpecError."""
    firmware = machine.firmware[0]
    for step in plan.steps:
        if isinstance(step, UpdateData):
            if machine.platform.flash and step.gpa == firmware.gpa:
                _update_flash(step, machine, processor)
            else:
                _update_ram(step, machine, processor)
    if any(not isinstance(step, UpdateData) for step in plan.steps):
        processor.launch_update_vmsa(vcpus)


def inject(secret: LaunchSecret, machine: Machine, processor: SecureProcessor) -> None:
    """Hand a secret packet over. Raises FirmwareStatusError if it is not for this guest."""
    mapping, offset = _ram(machine, secret.gpa, len(secret.data), "the launch secret")
    processor.launch_secret(secret.header, Hva(mapping.hva + offset), secret.data)


def _update_flash(step: UpdateData, machine: Machine, processor: SecureProcessor) -> None:
    with machine.platform.flash[0].memory.launch_window() as mapping:
        _validate_contents(step, machine, mapping.view)
        processor.launch_update_data(mapping.hva, len(step.data))


def _update_ram(step: UpdateData, machine: Machine, processor: SecureProcessor) -> None:
    mapping, offset = _ram(machine, step.gpa, len(step.data), step.what)
    view = mapping.view[offset : offset + len(step.data)]
    if step.gpa == machine.firmware[0].gpa:
        _validate_contents(step, machine, view)
    else:
        view[:] = step.data
    processor.launch_update_data(Hva(mapping.hva + offset), len(step.data))


def _validate_contents(step: UpdateData, machine: Machine, view: memoryview) -> None:
    if view != step.data:
        path = machine.firmware[0].path
        raise ImageError(
            path, "changed between planning the launch and loading it", "leave it alone, try again"
        )


def _ram(machine: Machine, gpa: int, size: int, what: str) -> tuple[HostMapping, int]:
    found = machine.platform.map.find(gpa)
    if found is not None:
        region, offset = found
        if isinstance(region, Ram) and machine.platform.map.find(gpa + size - 1) == (
            region,
            offset + size - 1,
        ):
            return region.backing.writable, offset
    raise SpecError(
        f"{what} belongs at {gpa:#x}, where this guest has no {size:#x} bytes of RAM", "give it more --memory"
    )
