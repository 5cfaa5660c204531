"""How a TD would be built, without building it (Linux virt/kvm/x86/intel-tdx.rst; QEMU target/i386/kvm/tdx.c)."""

from __future__ import annotations

from typing import Any

from casemate.abi.kvm.vm_types import VmType
from casemate.address import Gpa, GuestRange
from casemate.confidential.dry_run import describe_step
from casemate.digest.mrtd import predict_mrtd
from casemate.digest.plan import TdxOperation, TdxPages
from casemate.digest.plan_tdx import plan_tdx
from casemate.digest.td_hob import build_td_hob, hob_section
from casemate.errors import SpecError
from casemate.firmware.image import FirmwareImage
from casemate.machine.boards import find_board
from casemate.machine.spec import MachineSpec

_ERA = "linux-6.16"


def dry_run_tdx(spec: MachineSpec) -> dict[str, Any]:
    """The build of a TD as plain data, as Linux 6.16 and newer do it. Raises ImageError or SpecError."""
    if spec.bios is None:
        raise SpecError("tdx guest: a TD starts in firmware, not in a kernel", "give firmware with --bios")
    image = FirmwareImage.load(spec.bios)
    plan = plan_tdx(image)
    ram = find_board(spec.machine).ram(spec.memory)
    metadata = image.tdvf
    assert metadata is not None
    hob = build_td_hob(image, metadata, [GuestRange(Gpa(piece.gpa), piece.size) for piece in ram])
    pieces = [(piece.name, int(piece.gpa), piece.size) for piece in ram]
    pieces.append(("bios", int(image.base), image.size))
    rows = [("KVM_CREATE_VM", VmType.TDX.kernel_name), ("KVM_TDX_CAPABILITIES", ""), ("KVM_TDX_INIT_VM", "")]
    for name, gpa, size in pieces:
        rows.append(("KVM_CREATE_GUEST_MEMFD", f"{name}, {size:#x} bytes"))
        where = f"{name}, {size:#x} bytes at {gpa:#x}"
        rows.append(("KVM_SET_USER_MEMORY_REGION2", f"{where}, KVM_MEM_GUEST_MEMFD"))
        rows.append(("KVM_SET_MEMORY_ATTRIBUTES", f"{where}: private"))
    rows.append(("KVM_TDX_INIT_VCPU", f"TD HOB at {hob_section(metadata):#x}, {len(hob):#x} bytes"))
    rows += [("KVM_TDX_INIT_MEM_REGION", _region(step)) for step in plan.steps if isinstance(step, TdxPages)]
    rows.append(("KVM_TDX_FINALIZE_VM", ""))
    return {
        "dry_run": True,
        "host": {"backend": "kvm", "era": _ERA},
        "guest": {"kind": str(spec.kind), "features": []},
        "protection": {"protection": "writable", "reason": "private memory, filled from host memory"},
        "warnings": [],
        "slots": [{"name": n, "gpa": g, "size": s, "protection": "writable"} for n, g, s in pieces],
        "ioctls": [{"command": command, "detail": detail} for command, detail in rows],
        "steps": [describe_step(step) for step in plan.steps],
        "digest": predict_mrtd(plan).hex(),
        "runs": "TDX guests are measured, not launched: the modelled host is AMD's",
    }


def _region(step: TdxPages) -> str:
    measured = "" if step.operation is TdxOperation.ADD else ", KVM_TDX_MEASURE_MEMORY_REGION"
    return f"{step.what}, {step.size:#x} bytes at {step.gpa:#x}{measured}"
