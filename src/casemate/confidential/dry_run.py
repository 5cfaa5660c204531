"""What a boot would do, without doing it: slots, ioctls, steps, digest (docs/guide/confidential.md)."""

from __future__ import annotations

import hashlib
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.commands import SevCommand
from casemate.confidential.features import feature_names
from casemate.confidential.preparation import PreparedLaunch
from casemate.confidential.snp import SET_ATTRIBUTES, describe_pages
from casemate.confidential.traced import REGISTER_REGION
from casemate.confidential.warnings import launch_warnings
from casemate.digest.plan import LaunchStep
from casemate.digest.steps import SnpPages, UpdateData, UpdateVmsa
from casemate.errors import UnsupportedError
from casemate.firmware.image import FirmwareImage
from casemate.host.hypervisor import Hypervisor
from casemate.machine.boards import find_board
from casemate.memory.protection import ProtectionChoice, WriteProtection, choose

Row = tuple[str, str]


def dry_run(prepared: PreparedLaunch, host: Hypervisor) -> dict[str, Any]:
    """The boot as plain data. Raises UnsupportedError or SpecError where the boot would."""
    spec, setup = prepared.spec, prepared.setup
    capabilities = host.expected_capabilities(spec.kind, setup.sev)
    if capabilities is None:
        raise UnsupportedError("--dry-run: what this host's VM can do shows when it is made", "use the model")
    protection = choose(
        spec.kind,
        flash=spec.in_flash,
        capabilities=capabilities,
        requested=spec.protection,
        on_write=spec.on_write,
    )
    ioctls = _snp_ioctls(prepared) if spec.kind is GuestKind.SNP else _ioctls(prepared, protection)
    return {
        "dry_run": True,
        "host": {"backend": host.name, "era": host.era},
        "guest": {"kind": str(spec.kind), "features": feature_names(setup.features)},
        "protection": {"protection": str(protection.protection), "reason": protection.reason},
        "warnings": [*([protection.warning] if protection.warning else []), *launch_warnings(prepared)],
        "slots": _slots(prepared, protection),
        "ioctls": [{"command": command, "detail": detail} for command, detail in ioctls],
        "steps": [describe_step(step) for step in prepared.plan.steps],
        "digest": prepared.digest.hex(),
        "runs": prepared.stops_after_launch or "yes",
    }


def _slots(prepared: PreparedLaunch, protection: ProtectionChoice) -> list[dict[str, Any]]:
    spec = prepared.spec
    slots = [
        {
            "name": piece.name,
            "gpa": piece.gpa,
            "size": piece.size,
            "protection": str(WriteProtection.WRITABLE),
        }
        for piece in find_board(spec.machine).ram(spec.memory)
    ]
    return slots + [
        {"name": name, "gpa": gpa, "size": size, "protection": str(protection.protection)}
        for name, gpa, size in _firmware(prepared)
    ]


def _firmware(prepared: PreparedLaunch) -> list[tuple[str, int, int]]:
    image, variables = prepared.image, prepared.spec.variables
    if not prepared.spec.in_flash:
        return [("entry code" if prepared.spec.is_direct else "bios", image.base, image.size)]
    units = [("flash unit 0", int(image.base), image.size)]
    if variables is not None:
        size = FirmwareImage.load(variables).size
        units.append(("flash unit 1", image.base - size, size))
    return units


def _ioctls(prepared: PreparedLaunch, protection: ProtectionChoice) -> list[Row]:
    spec, setup = prepared.spec, prepared.setup
    vma = protection.protection is WriteProtection.READONLY_VMA
    readonly = protection.protection is WriteProtection.READONLY_SLOT
    rows = [
        ("KVM_CREATE_VM", setup.sev.vm_type.kernel_name),
        (setup.command.kernel_name, f"vmsa_features {setup.sev.vmsa_features:#x}"),
        (SevCommand.LAUNCH_START.kernel_name, f"policy {prepared.policy:#x}"),
        (REGISTER_REGION, f"ram, {spec.memory:#x} bytes"),
    ]
    rows += [
        ("KVM_SET_USER_MEMORY_REGION", f"{piece.name}, {piece.size:#x} bytes at {piece.gpa:#x}")
        for piece in find_board(spec.machine).ram(spec.memory)
    ]
    for name, gpa, size in _firmware(prepared):
        rows.append((REGISTER_REGION, f"{name}, {size:#x} bytes"))
        rows += [("mprotect", f"{name}: PROT_READ, slot added")] if vma else []
        flags = ", KVM_MEM_READONLY" if readonly else ""
        rows.append(("KVM_SET_USER_MEMORY_REGION", f"{name}, {size:#x} bytes at {gpa:#x}{flags}"))
    for step in prepared.plan.steps:
        if isinstance(step, UpdateData):
            window = vma and spec.in_flash and step.gpa == prepared.image.base
            rows += [("mprotect", "flash unit 0: PROT_READ|PROT_WRITE, launch update")] if window else []
            rows.append(
                (
                    SevCommand.LAUNCH_UPDATE_DATA.kernel_name,
                    f"{step.what}, {len(step.data):#x} bytes at {step.gpa:#x}",
                )
            )
            rows += [("mprotect", "flash unit 0: PROT_READ, launch update done")] if window else []
    if any(isinstance(step, UpdateVmsa) for step in prepared.plan.steps):
        rows.append((SevCommand.LAUNCH_UPDATE_VMSA.kernel_name, f"{len(prepared.vcpus)} vCPUs"))
    rows.append((SevCommand.LAUNCH_MEASURE.kernel_name, ""))
    if prepared.options.secret is not None:
        rows.append((SevCommand.LAUNCH_SECRET.kernel_name, f"at {prepared.options.secret.gpa:#x}"))
    rows.append((SevCommand.LAUNCH_FINISH.kernel_name, ""))
    if not prepared.stops_after_launch:
        rows.append(("KVM_RUN", ""))
    return rows


def _snp_ioctls(prepared: PreparedLaunch) -> list[Row]:
    setup, image = prepared.setup, prepared.image
    vmsa_features = setup.sev.vmsa_features
    memory = [
        (piece.name, piece.gpa, piece.size)
        for piece in find_board(prepared.spec.machine).ram(prepared.spec.memory)
    ]
    memory.append(("bios", image.base, image.size))
    rows = [
        ("KVM_CREATE_VM", setup.sev.vm_type.kernel_name),
        (setup.command.kernel_name, f"vmsa_features {vmsa_features:#x}"),
        (SevCommand.SNP_LAUNCH_START.kernel_name, f"policy {prepared.policy:#x}"),
    ]
    for name, gpa, size in memory:
        rows.append(("KVM_CREATE_GUEST_MEMFD", f"{name}, {size:#x} bytes"))
        where = f"{name}, {size:#x} bytes at {gpa:#x}"
        rows.append(("KVM_SET_USER_MEMORY_REGION2", f"{where}, KVM_MEM_GUEST_MEMFD"))
        rows.append((SET_ATTRIBUTES, f"{where}: private"))
    rows += [
        (SevCommand.SNP_LAUNCH_UPDATE.kernel_name, describe_pages(step))
        for step in prepared.plan.steps
        if isinstance(step, SnpPages)
    ]
    finish = prepared.options.snp
    identity = "with an ID block" if finish.id_block else "no ID block"
    rows.append((SevCommand.SNP_LAUNCH_FINISH.kernel_name, f"{len(prepared.vcpus)} vCPUs, {identity}"))
    return rows


def describe_step(step: LaunchStep) -> dict[str, Any]:
    """One step of a plan as plain data."""
    return {
        "what": step.what,
        "gpa": step.gpa,
        "length": step.size,
        "sha256": hashlib.sha256(step.data).hexdigest(),
    }
