"""What a SEV or SEV-ES launch measures: firmware, kernel hashes, save areas (QEMU target/i386/sev.c)."""

from __future__ import annotations

from casemate.abi.sev.save_area import DEBUG_SWAP, SNP_ACTIVE
from casemate.address import Gpa
from casemate.digest.kernel_hashes import KernelHashes, find_hashes_area
from casemate.digest.sev_init import SevInit
from casemate.digest.steps import UpdateData, UpdateVmsa
from casemate.digest.vmsa_pages import vmsa_pages
from casemate.errors import ImageError, SpecError
from casemate.firmware.completeness import validate_complete
from casemate.firmware.image import FirmwareImage

MAX_VCPUS = 4096
"""KVM's own limit (arch/x86/include/asm/kvm_host.h, KVM_MAX_VCPUS)."""
_LARGEST_U32 = 0xFFFFFFFF
_LEGACY = "legacy"


def sev_es_steps(
    image: FirmwareImage,
    vcpus: int,
    signature: int,
    hashes: KernelHashes | None,
    features: int,
    init: SevInit,
) -> list[UpdateData | UpdateVmsa]:
    """All steps of a SEV-ES launch. Raises ImageError or SpecError as ``plan_sev_es`` does."""
    validate_features(features, init)
    vmsas = vmsa_steps(image, vcpus, signature, features, init)
    return [*data_steps(image, hashes), *vmsas]


def vmsa_steps(
    image: FirmwareImage,
    vcpus: int,
    signature: int,
    features: int,
    init: SevInit,
    ap_reset: int | None = None,
) -> list[UpdateVmsa]:
    """The save areas of all vCPUs in their order, all but the first starting at ``ap_reset`` or where the image says.

    Raises ImageError or SpecError as ``plan_sev_es`` does.
    """
    if not 1 <= vcpus <= MAX_VCPUS:
        raise SpecError(f"{vcpus} vCPUs are not between 1 and {MAX_VCPUS}", "correct the number of vCPUs")
    if not 0 <= signature <= _LARGEST_U32:
        raise SpecError(
            f"vCPU signature {signature:#x} is no 32-bit number", "give what CPUID leaf 1 shows in EAX"
        )
    address = _ap_reset(image, vcpus) if ap_reset is None else ap_reset
    pages = vmsa_pages(vcpus, address, signature, features, init)
    return [UpdateVmsa(index, page) for index, page in enumerate(pages)]


def validate_features(features: int, init: SevInit) -> None:
    """Check VMSA features of a SEV-ES guest. Raises SpecError if no such guest can have them."""
    if not 0 <= features < 1 << 64:
        raise SpecError(f"guest features {features:#x} are no 64-bit number", "give the bits of sev_features")
    if features & SNP_ACTIVE:
        raise SpecError(f"guest features {features:#x} say SNP, the guest is SEV-ES", "leave bit 0 out")
    if init == _LEGACY and features & ~DEBUG_SWAP:
        # Linux 6.6 to 6.9 may set debug-swap, and only that, unasked (kvm_amd.debug_swap).
        raise SpecError(
            f"a legacy launch has no guest features {features:#x}", "use init2, or 0, or debug-swap (0x20)"
        )


def _ap_reset(image: FirmwareImage, vcpus: int) -> int:
    address = image.sev_es_reset
    if address is None and vcpus > 1:
        cause = "no SEV-ES reset block: nothing says where all vCPUs but the first start"
        raise ImageError(image.name, cause, "use firmware built with SEV-ES support, or one vCPU")
    return address or 0


def data_steps(image: FirmwareImage, hashes: KernelHashes | None) -> list[UpdateData]:
    """Firmware and kernel hashes. Raises ImageError if the image cannot be launched or take the hashes."""
    validate_complete(image)
    steps = [UpdateData("firmware", image.base, image.data)]
    if hashes is not None:
        area = find_hashes_area(image)
        steps.append(UpdateData("kernel hashes", Gpa(area.base), hashes.to_bytes()))
    return steps
