"""What an SNP launch measures: firmware, metadata sections, save areas (QEMU target/i386/sev.c; AMD 56860, 8.17)."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.abi.sev.save_area import SNP_ACTIVE
from casemate.abi.sev.snp import SnpPageType
from casemate.abi.sev.snp_policy import SnpPolicy
from casemate.address import PAGE_SIZE, Gpa
from casemate.digest.kernel_hashes import KernelHashes, find_hashes_area
from casemate.digest.sev_init import SevInit
from casemate.digest.steps import SnpPages, UpdateVmsa
from casemate.digest.steps_sev import vmsa_steps
from casemate.errors import ImageError, SpecError
from casemate.firmware.completeness import BIOS_GRANULE, validate_complete, validate_multiple
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sev_metadata import SevSection, SevSectionType

_REMEDY = "use another build of the firmware"
_COMBINED = "give the image that holds code and variables together (OVMF.fd, OVMF.amdsev.fd)"
_TYPES = {SevSectionType.SNP_SECRETS: SnpPageType.SECRETS, SevSectionType.CPUID: SnpPageType.CPUID}
"""Page types of sections; QEMU makes all others zero pages, but for the kernel hashes."""


def snp_steps(
    image: FirmwareImage, vcpus: int, signature: int, hashes: KernelHashes | None, features: int
) -> list[SnpPages | UpdateVmsa]:
    """All steps of a launch. Raises ImageError or SpecError as ``plan_snp`` does."""
    validate_features(features)
    sections = list(section_steps(image, hashes.to_bytes() if hashes else None))
    vmsas = vmsa_steps(image, vcpus, signature, features, SevInit.INIT2)
    return [firmware_step(image), *sections, *vmsas]


def firmware_steps(image: FirmwareImage) -> list[SnpPages]:
    """What depends on the firmware alone. Raises ImageError if no SNP guest can be given it."""
    _sections(image)
    return [firmware_step(image)]


def validate_features(features: int) -> None:
    """Check VMSA features of an SNP guest. Raises SpecError if no such guest can have them."""
    if not 0 <= features < 1 << 64:
        raise SpecError(f"guest features {features:#x} are no 64-bit number", "give the bits of sev_features")
    if not features & SNP_ACTIVE:
        cause = f"guest features {features:#x} lack SNP_ACTIVE (bit 0), which every SNP guest has"
        raise SpecError(cause, f"give {features | SNP_ACTIVE:#x}")


def validate_policy(policy: int) -> None:
    """Check the policy of an SNP guest. Raises SpecError if no firmware takes it."""

    if not 0 <= policy < 1 << 64:
        raise SpecError(
            f"policy {policy:#x} is no 64-bit number", "give the policy the guest is launched with"
        )
    if not policy & SnpPolicy.RESERVED_ONE:
        cause = f"policy {policy:#x} lacks bit 17, which must be one for every SNP guest"
        raise SpecError(cause, f"give {policy | SnpPolicy.RESERVED_ONE:#x}")


def firmware_step(image: FirmwareImage) -> SnpPages:
    """The image below 4 GiB. Raises ImageError if no SNP guest can be given it."""
    validate_complete(image)
    validate_multiple(image, BIOS_GRANULE, "-bios, the only way to firmware for SNP,", _COMBINED)
    return SnpPages("firmware", image.base, image.size, SnpPageType.NORMAL, image.data)


def section_steps(image: FirmwareImage, table: bytes | None) -> Iterator[SnpPages]:
    """The SEV metadata's sections, with the ``table`` of kernel hashes in its page.

    Raises ImageError if the image has no usable sections, or none for the table.
    """
    sections = _sections(image)
    if table is not None and not any(kind is SevSectionType.KERNEL_HASHES for _, kind in sections):
        cause = "kernel hashes are asked for, but the SEV metadata has no page for them"
        remedy = "use a build that sets one apart, such as edk2's AmdSev, or leave the kernel unmeasured"
        raise ImageError(image.name, cause, remedy)
    for section, kind in sections:
        what = kind.name if kind else f"section of type {section.type:#x}"
        gpa = Gpa(section.base)
        if kind is SevSectionType.KERNEL_HASHES and table is not None:
            page = _hashes_page(image, section, table)
            yield SnpPages("kernel hashes", gpa, section.size, SnpPageType.NORMAL, page)
        else:
            page_type = _TYPES.get(kind, SnpPageType.ZERO) if kind else SnpPageType.ZERO
            yield SnpPages(what, gpa, section.size, page_type)


def _sections(image: FirmwareImage) -> list[tuple[SevSection, SevSectionType | None]]:
    """The sections that hold something, with their types, None for one that nobody knows."""
    metadata = image.sev_metadata
    if metadata is None:
        cause = "no SEV metadata: nothing says which pages an SNP launch prepares"
        raise ImageError(image.name, cause, "use a build for SNP (X64 only, edk2 of 2022 or newer)")
    for needed in (SevSectionType.SNP_SECRETS, SevSectionType.CPUID):
        if not metadata.has(needed):
            raise ImageError(image.name, f"no {needed.name} page in the SEV metadata", _REMEDY)
    taken = [(int(image.base), int(image.base) + image.size)]
    found = []
    for section in metadata.sections:
        if section.size:
            _validate_place(image, section, taken)
            taken.append((section.base, section.base + section.size))
            found.append((section, _known_type(section)))
    return found


def _known_type(section: SevSection) -> SevSectionType | None:
    try:
        return SevSectionType(section.type)
    except ValueError:
        return None


def _validate_place(image: FirmwareImage, section: SevSection, taken: list[tuple[int, int]]) -> None:
    where = f"SEV metadata section [{section.base:#x}, {section.base + section.size:#x})"
    if section.base % PAGE_SIZE or section.size % PAGE_SIZE:
        raise ImageError(image.name, f"{where} is not made of whole pages", _REMEDY)
    single = (SevSectionType.SNP_SECRETS, SevSectionType.CPUID, SevSectionType.KERNEL_HASHES)
    if _known_type(section) in single and section.size != PAGE_SIZE:
        raise ImageError(image.name, f"{where} is to be one page", _REMEDY)
    if any(section.base < end and start < section.base + section.size for start, end in taken):
        raise ImageError(
            image.name, f"{where} overlaps what is launched before it: no page can be added twice", _REMEDY
        )


def _hashes_page(image: FirmwareImage, section: SevSection, table: bytes) -> bytes:
    area = find_hashes_area(image)
    offset = area.base - section.base
    if not 0 <= offset <= PAGE_SIZE - len(table):
        cause = f"the area for kernel hashes ({area.base:#x}) is outside of its SEV metadata section"
        raise ImageError(image.name, cause, _REMEDY)
    return (bytes(offset) + table).ljust(PAGE_SIZE, b"\0")
