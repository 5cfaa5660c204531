"""``casemate caps``: what this machine's KVM offers each kind of guest, and remedies (docs/guide/caps.md)."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from casemate.errors import UnsupportedError
from casemate.guests.probe import probe_image
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.probe import Probe, probe
from casemate.host.kvm.survey import DeviceAccess, Survey, VmTypeOffer, survey_kvm

EPILOG = """\
examples:
  casemate caps
      devices, modules, types of VMs and what they answer, remedies
  casemate caps --json
      everything, as one JSON document

Read-only memory is asked of a VM of each type: the system's own answer is yes on every kernel.
exit code: 0 if a VM can be made, else 5
"""

_NOTHING = 5
_SHOWN = ("READONLY_MEM", "MEMORY_FAULT_INFO", "MEMORY_ATTRIBUTES", "GUEST_MEMFD", "MAX_VCPUS", "NR_MEMSLOTS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    """Survey, print; 0, or 5 if KVM can run nothing."""

    survey = survey_kvm()
    speed = _probe() if survey.is_usable else None
    if args.json:
        print(json.dumps(_to_json(survey, speed), indent=2))
    else:
        print("\n".join(_lines(survey, speed)))
    return 0 if survey.is_usable else _NOTHING


def _probe() -> Probe | None:
    try:
        return probe(KvmHypervisor(), *probe_image())
    except UnsupportedError:
        return None


def _to_json(survey: Survey, speed: Probe | None) -> dict[str, Any]:
    probe = None if speed is None else {"instructions_per_second": round(speed.speed), "x87": speed.has_x87}
    chosen = "kvm" if speed is not None and speed.reason is None else "model"
    return {"usable": survey.is_usable, "auto": chosen, "probe": probe} | asdict(survey)


def _lines(survey: Survey, speed: Probe | None) -> list[str]:
    lines = [_device(survey.kvm), _device(survey.sev)]
    lines += [f"module  {name}: {_parameters(name, found)}" for name, found in survey.modules.items()]
    memlock = "unlimited" if survey.memlock is None else f"{survey.memlock >> 10} KiB"
    lines.append(f"memory  {memlock} may be locked")
    if survey.refusal:
        lines.append(f"kvm     cannot be used: {survey.refusal}")
    lines += [_vm_type(offer) for offer in survey.vm_types]
    lines.append(_sev(survey))
    if survey.c_bit is not None:
        lines.append(f"sev     cbitpos={survey.c_bit}")
    if survey.vmsa_features:
        lines.append(f"sev-es  VMSA features {survey.vmsa_features:#x} for KVM_SEV_INIT2")
    if speed is not None:
        verdict = "passed over, for " + speed.reason if speed.reason else "taken"
        lines.append(f"auto    plain guests: KVM is {verdict}")
    return lines + [f"remedy  {remedy}" for remedy in survey.remedies]


def _device(access: DeviceAccess) -> str:
    if not access.exists:
        return f"device  {access.path}: not there"
    use = "may be used" if access.usable else "may not be used by you"
    return f"device  {access.path}: {access.mode} {access.owner}:{access.group}, {use}"


def _sev(survey: Survey) -> str:
    found = survey.sev_platform
    if found is None:
        return f"sev     no: {survey.sev_refusal}"
    version = (
        f"API {found.api_major}.{found.api_minor} build {found.build}, {found.state}, {found.guests} guests"
    )
    sev_es = "takes SEV-ES" if found.takes_sev_es else "not set up for SEV-ES"
    return f"sev     {version}, {sev_es}" + (f"; but {survey.sev_refusal}" if survey.sev_refusal else "")


def _parameters(name: str, found: dict[str, str] | None) -> str:
    if found is None:
        return "not loaded"
    if name == "kvm" or not found:
        return "loaded"  # its parameters are many, and in the JSON form
    return " ".join(f"{key}={value}" for key, value in found.items())


def _vm_type(offer: VmTypeOffer) -> str:
    if not offer.capabilities:
        return f"vm      {offer.name}: no, {offer.refusal}"
    answers = ", ".join(f"{name} {offer.capabilities[f'KVM_CAP_{name}']}" for name in _SHOWN)
    return f"vm      {offer.name}: {answers}"
