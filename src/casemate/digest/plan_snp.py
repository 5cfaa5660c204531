"""Plans the launch of SNP guests (QEMU target/i386/sev.c; AMD 56860, 8.17)."""

from __future__ import annotations

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.save_area import SNP_ACTIVE
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan import LaunchPlan
from casemate.digest.steps_snp import firmware_steps, snp_steps
from casemate.firmware.image import FirmwareImage


def plan_snp(
    image: FirmwareImage,
    vcpus: int,
    signature: int,
    hashes: KernelHashes | None = None,
    features: int = SNP_ACTIVE,
) -> LaunchPlan:
    """The launch of an SNP guest whose vCPUs have CPUID ``signature`` and VMSA ``features``.

    Raises ImageError if the image cannot be launched so or take the hashes, SpecError if numbers are impossible.
    """
    return LaunchPlan(GuestKind.SNP, tuple(snp_steps(image, vcpus, signature, hashes, features)))


def plan_snp_firmware(image: FirmwareImage) -> LaunchPlan:
    """The part of a launch that depends on the firmware alone. Raises ImageError if no SNP guest can be given it."""
    return LaunchPlan(GuestKind.SNP, tuple(firmware_steps(image)))
