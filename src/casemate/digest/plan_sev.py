"""Plans the launch of SEV and SEV-ES guests (QEMU target/i386/sev.c)."""

from __future__ import annotations

from casemate.abi.guest_kind import GuestKind
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan import LaunchPlan
from casemate.digest.sev_init import SevInit
from casemate.digest.steps_sev import data_steps, sev_es_steps
from casemate.firmware.image import FirmwareImage


def plan_sev(image: FirmwareImage, hashes: KernelHashes | None = None) -> LaunchPlan:
    """The launch of a SEV guest. Raises ImageError if the image cannot take the hashes or be launched."""
    return LaunchPlan(GuestKind.SEV, tuple(data_steps(image, hashes)))


def plan_sev_es(
    image: FirmwareImage,
    vcpus: int,
    signature: int,
    hashes: KernelHashes | None = None,
    features: int = 0,
    init: SevInit = SevInit.INIT2,
) -> LaunchPlan:
    """The launch of a SEV-ES guest whose vCPUs have CPUID ``signature`` and VMSA ``features``.

    Raises ImageError if the image cannot start so many vCPUs or take the hashes, SpecError if numbers are impossible.
    """
    steps = sev_es_steps(image, vcpus, signature, hashes, features, init)
    return LaunchPlan(GuestKind.SEV_ES, tuple(steps))
