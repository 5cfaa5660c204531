"""What firmware descriptors claim of a file against what is in it (QEMU docs/interop/firmware.json)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.advise.inspect import Inspection
from casemate.firmware import guids
from casemate.firmware.descriptors import Descriptor, read_descriptors
from casemate.firmware.smm import requires_smm

_FEATURES = {
    GuestKind.SEV: "amd-sev",
    GuestKind.SEV_ES: "amd-sev-es",
    GuestKind.SNP: "amd-sev-snp",
    GuestKind.TDX: "intel-tdx",
}


class Claim(NamedTuple):
    """What one descriptor says of the file, and where the file disagrees."""

    descriptor: Path
    device: str
    features: tuple[str, ...]
    false: tuple[str, ...]
    """Claimed, yet not so."""
    silent: tuple[str, ...]
    """So, yet not claimed."""


def find_claims(inspection: Inspection) -> tuple[Claim, ...]:
    """The claims of the descriptors that lie in the same tree (``.../usr/share/qemu/firmware``) as the file."""
    path = Path(os.path.realpath(inspection.image.name))
    descriptors = (descriptor for root in path.parents for descriptor in read_descriptors(root))
    return tuple(
        compare_claim(each, inspection)
        for each in descriptors
        if os.path.realpath(each.executable) == str(path)
    )


def compare_claim(descriptor: Descriptor, inspection: Inspection) -> Claim:
    """What a descriptor says of its executable against what was found in it."""
    false, silent = [], []
    for kind, feature in _FEATURES.items():
        # A flash descriptor never offers SNP or TDX: that is the placement's fault, not the build's.
        can = not inspection.lacks[kind] and (descriptor.device != "flash" or kind.takes_flash)
        if feature in descriptor.features and not can:
            false.append(feature)
        elif can and feature not in descriptor.features:
            silent.append(feature)
    claims_smm, needs_smm = "requires-smm" in descriptor.features, requires_smm(inspection.image.data)
    if claims_smm != needs_smm:
        (false if claims_smm else silent).append("requires-smm")
    drivers = {file.guid for volume in inspection.volumes for file in volume.all_files()}
    if "secure-boot" in descriptor.features and drivers and guids.SECURE_BOOT_DRIVER not in drivers:
        false.append("secure-boot")
    return Claim(descriptor.path, descriptor.device, descriptor.features, tuple(false), tuple(silent))
