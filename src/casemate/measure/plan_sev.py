"""Plans the launch of SEV and SEV-ES guests: firmware, kernel hashes, save areas (QEMU target/i386/sev.c)."""

from __future__ import annotations

from casemate.abi.sev.vmsa import SevFeatures
from casemate.address import Gpa
from casemate.errors import ImageError, SpecError
from casemate.firmware.completeness import validate_complete
from casemate.firmware.image import FirmwareImage
from casemate.host.guest_kind import GuestKind
from casemate.measure.plan import LaunchPlan, LaunchStep, UpdateData, UpdateVmsa
from casemate.measure.vmsa_pages import SevInit, vmsa_pages
from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.measure.kernel_hashes import KernelHashes

MAX_VCPUS = 4096
"""KVM's own limit (arch/x86/include/asm/kvm_host.h, KVM_MAX_VCPUS)."""
_LARGEST_U32 = 0xFFFFFFFF


def plan_sev(image: FirmwareImage, hashes: KernelHashes | None = None) -> LaunchPlan:
    """The launch of a SEV guest. Raises ImageError if the image cannot take the hashes or be launched."""
    return LaunchPlan(GuestKind.SEV, tuple(_data_steps(image, hashes)))


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
    validate_features(features, init)
    vmsas = plan_vmsas(image, vcpus, signature, features, init)
    return LaunchPlan(GuestKind.SEV_ES, (*_data_steps(image, hashes), *vmsas))


def plan_vmsas(
    image: FirmwareImage, vcpus: int, signature: int, features: int, init: SevInit
) -> list[UpdateVmsa]:
    """The save areas of all vCPUs in their order. Raises ImageError or SpecError as ``plan_sev_es`` does."""
    if not 1 <= vcpus <= MAX_VCPUS:
        raise SpecError(f"{vcpus} vCPUs are not between 1 and {MAX_VCPUS}", "correct the number of vCPUs")
    if not 0 <= signature <= _LARGEST_U32:
        raise SpecError(
            f"vCPU signature {signature:#x} is no 32-bit number", "give what CPUID leaf 1 shows in EAX"
        )
    pages = vmsa_pages(vcpus, _ap_reset(image, vcpus), signature, features, init)
    return [UpdateVmsa(index, page) for index, page in enumerate(pages)]


def validate_features(features: int, init: SevInit) -> None:
    """Check VMSA features of a SEV-ES guest. Raises SpecError if no such guest can have them."""
    if not 0 <= features < 1 << 64:
        raise SpecError(f"guest features {features:#x} are no 64-bit number", "give the bits of sev_features")
    if features & SevFeatures.SNP_ACTIVE:
        raise SpecError(f"guest features {features:#x} say SNP, the guest is SEV-ES", "leave bit 0 out")
    if init is SevInit.LEGACY and features & ~SevFeatures.DEBUG_SWAP:
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


def _data_steps(image: FirmwareImage, hashes: KernelHashes | None) -> list[LaunchStep]:
    validate_complete(image)
    steps: list[LaunchStep] = [UpdateData("firmware", image.base, image.data)]
    if hashes is not None:
        from casemate.measure.kernel_hashes import find_hashes_area

        area = find_hashes_area(image)
        steps.append(UpdateData("kernel hashes", Gpa(area.base), hashes.to_bytes()))
    return steps
