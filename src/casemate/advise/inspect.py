"""What one firmware file is, and for which kinds of guest it can be used, with reasons (docs/guide/inspect.md).

A build is judged by the drivers in it, not by its tables: every edk2 build carries the tables of features that it
was built without (a TDX-only build has SEV metadata with empty sections, an AMD-only build has TDX metadata).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from math import log2
from typing import NamedTuple, TypeVar

from casemate.abi.guest_kind import GuestKind
from casemate.address import PAGE_SIZE
from casemate.advise.known_faults import SNP_TOO_OLD, is_too_old_for_snp
from casemate.digest.steps import SnpPages
from casemate.digest.steps_snp import section_steps
from casemate.errors import CasemateError, ImageError
from casemate.firmware import guids
from casemate.firmware.bios import validate_bios
from casemate.firmware.guided_table import GuestArea
from casemate.firmware.hash_use import HashUse, hash_use
from casemate.firmware.image import FirmwareImage
from casemate.firmware.placement import validate_flash
from casemate.firmware.sev_metadata import SevSectionType
from casemate.firmware.tdvf import TdvfMetadata
from casemate.firmware.varstore import VariableStoreHeader, parse_variable_store
from casemate.firmware.volume import Allowance, FirmwareVolume, read_volumes
from casemate.firmware.wrapper import find_wrapper

_T = TypeVar("_T")

_SAMPLE = 1 << 20
"""Bytes that are looked at."""
_MOST_BITS = 7.8
"""Of information in a byte; of the images seen OVMF's 2 MiB builds have most, 7.2, and noise has 8."""
_TEXT = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))


class Role(StrEnum):
    """What a file is for."""

    CODE = "code"
    """Firmware whose variables live in another file."""
    COMBINED = "code and variables"
    VARIABLES = "variables"
    OTHER_CODE = "code without firmware volumes"
    WRAPPED = "not raw"
    NO_FIRMWARE = "no firmware"


class Placement(StrEnum):
    """How a guest is given the file."""

    FLASH = "flash"
    BIOS = "bios"


class Verdict(NamedTuple):
    """Whether a kind of guest can boot from the file placed so; without reasons it can."""

    guest: GuestKind
    placement: Placement
    reasons: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


class Inspection(NamedTuple):
    """Everything found in one file."""

    image: FirmwareImage
    role: Role
    wrapper: str | None
    volumes: tuple[FirmwareVolume, ...]
    store: VariableStoreHeader | None
    problems: tuple[str, ...]
    """Damage: what is there but broken."""
    lacks: dict[GuestKind, tuple[str, ...]]
    """What the build lacks for a kind of guest, wherever it is placed."""
    verdicts: tuple[Verdict, ...]

    @property
    def hash_use(self) -> HashUse:
        """Whether it compares a kernel with the hashes that were measured."""
        return hash_use(self.volumes)

    @property
    def is_usable(self) -> bool:
        """Whether it is a healthy variable store, or some guest can boot from it."""
        if self.role is Role.VARIABLES:
            return self.store is not None and not self.problems
        return any(verdict.is_usable for verdict in self.verdicts)


def inspect_image(
    image: FirmwareImage,
    volumes: tuple[FirmwareVolume, ...] | None = None,
    allowance: Allowance | None = None,
) -> Inspection:
    """Look into a file; damage becomes a problem in the result, never an exception.

    ``volumes`` are those of its code if they were read already; else ``allowance`` limits what they unpack to.
    """
    problems: list[str] = []
    wrapper = find_wrapper(image.data)
    role = _role(image) if wrapper is None else Role.WRAPPED
    if role is Role.OTHER_CODE and (fault := _no_firmware(image.data)):
        role = Role.NO_FIRMWARE
        problems.append(fault)
    if volumes is None:
        volumes = read_volumes(image.data, image.code_volumes, allowance)
    problems += (damage for volume in volumes for damage in volume.all_damage())
    store = _store(image, role, problems)
    lacks = _all_lacks(image, volumes, problems)
    verdicts = () if role in (Role.VARIABLES, Role.NO_FIRMWARE) else _verdicts(image, lacks)
    what = wrapper[0] if wrapper else None
    return Inspection(image, role, what, volumes, store, tuple(problems), lacks, verdicts)


def _role(image: FirmwareImage) -> Role:
    if image.code_volumes:
        return Role.COMBINED if image.variable_volume else Role.CODE
    return Role.VARIABLES if image.variable_volume else Role.OTHER_CODE


def _no_firmware(data: bytes) -> str | None:
    """Why bytes without any table of firmware's cannot be code, or None if they may be."""
    if guids.TABLE_FOOTER in data[-PAGE_SIZE:]:
        return None
    sample = data[:: len(data) // _SAMPLE + 1]
    counts = Counter(sample)
    if len(sample) >= PAGE_SIZE:
        bits = -sum(count / len(sample) * log2(count / len(sample)) for count in counts.values())
        if bits > _MOST_BITS:
            return f"its bytes are noise ({bits:.2f} bits of information in each): random, compressed or encrypted"
    if all(byte in _TEXT for byte in counts) and data.isascii():
        return "it is text"
    return None


def _store(image: FirmwareImage, role: Role, problems: list[str]) -> VariableStoreHeader | None:
    volume = image.variable_volume
    if volume is None:
        return None
    if volume.end > image.size or (role is Role.VARIABLES and volume.length != image.size):
        problems.append(f"the variable store claims {volume.length:#x} bytes of a file of {image.size:#x}")
    store = parse_variable_store(image.data, volume)
    if store is None:
        problems.append("the variable store has no store header")
    elif not (store.is_formatted and store.is_healthy):
        problems.append("the variable store is not marked as formatted and healthy")
    return store


def _verdicts(image: FirmwareImage, lacks: dict[GuestKind, tuple[str, ...]]) -> tuple[Verdict, ...]:
    faults = {
        Placement.FLASH: _fault(image, validate_flash),
        Placement.BIOS: _fault(image, validate_bios),
    }
    verdicts = []
    for kind in GuestKind:
        for placement, fault in faults.items():
            if placement is Placement.FLASH and not kind.takes_flash:
                verdicts.append(Verdict(kind, placement, ("firmware lives in private memory: only --bios",)))
            else:
                verdicts.append(Verdict(kind, placement, fault + lacks[kind]))
    return tuple(verdicts)


def _fault(image: FirmwareImage, validate: Callable[[FirmwareImage], None]) -> tuple[str, ...]:
    try:
        validate(image)
    except CasemateError as error:
        return (_without_name(error, image),)
    return ()


def _without_name(error: CasemateError, image: FirmwareImage) -> str:
    return error.cause.removeprefix(image.name).removeprefix(": ").strip()


def _all_lacks(
    image: FirmwareImage, volumes: tuple[FirmwareVolume, ...], problems: list[str]
) -> dict[GuestKind, tuple[str, ...]]:
    drivers = {file.guid for volume in volumes for file in volume.all_files()}
    sev = _sev_lacks(image, drivers, problems)
    too_old = (SNP_TOO_OLD,) if is_too_old_for_snp(volumes) else ()
    sev_es = sev + _sev_es_lacks(image, problems)
    return {
        GuestKind.PLAIN: (),
        GuestKind.SEV: sev,
        GuestKind.SEV_ES: sev_es,
        GuestKind.SNP: sev_es + _snp_lacks(image, problems) + too_old,
        GuestKind.TDX: _tdx_lacks(image, drivers, problems),
    }


def _sev_lacks(image: FirmwareImage, drivers: set[bytes], problems: list[str]) -> tuple[str, ...]:
    if drivers:
        return () if guids.AMD_SEV_DRIVER in drivers else ("the build has no SEV support (no AmdSevDxe)",)
    table = _tolerant(lambda: image.guided_table, image, problems)
    # Firmware that is not edk2's can only be believed: a reset block says that its authors thought of SEV.
    has_block = table is not None and any(entry.guid == guids.SEV_ES_RESET_BLOCK for entry in table.entries)
    return () if has_block else ("nothing shows SEV support",)


def _sev_es_lacks(image: FirmwareImage, problems: list[str]) -> tuple[str, ...]:
    return () if _tolerant(lambda: image.sev_es_reset, image, problems) else ("no SEV-ES reset block",)


def _snp_lacks(image: FirmwareImage, problems: list[str]) -> tuple[str, ...]:
    metadata = _tolerant(lambda: image.sev_metadata, image, problems)
    if metadata is None:
        return ("no SEV metadata: nothing says which pages to prepare",)
    needed = (SevSectionType.SNP_SECRETS, SevSectionType.CPUID)
    lacks = tuple(f"no {kind.name} page in the SEV metadata" for kind in needed if not metadata.has(kind))
    if not lacks:
        try:
            list(section_steps(image, None))
        except ImageError as error:
            return (_without_name(error, image),)
    return lacks


def snp_sections(image: FirmwareImage) -> list[SnpPages]:
    """What an SNP launch makes of the SEV metadata; empty where it cannot be launched so (the verdict says why)."""
    return try_read(lambda: list(section_steps(image, None))) or []


def _tdx_lacks(image: FirmwareImage, drivers: set[bytes], problems: list[str]) -> tuple[str, ...]:
    metadata = _tolerant(lambda: image.tdvf, image, problems)
    if metadata is None:
        return ("no TDX metadata",)
    lacks = _tdvf_overrun(image, metadata)
    if drivers and guids.TDX_DRIVER not in drivers:
        lacks += ("the build has no TDX support (no TdxDxe)",)
    return lacks


def _tdvf_overrun(image: FirmwareImage, metadata: TdvfMetadata) -> tuple[str, ...]:
    for section in metadata.sections:
        end = section.data_offset + section.raw_size
        if section.type.is_from_file and end > image.size:
            cause = f"{section.type.name} ends at {end:#x} of a file of {image.size:#x}"
            return (f"{cause}: TDX takes variables and code as one file",)
    return ()


def _tolerant(read: Callable[[], _T | None], image: FirmwareImage, problems: list[str]) -> _T | None:
    try:
        return read()
    except ImageError as error:
        problem = _without_name(error, image)
        if problem not in problems:
            problems.append(problem)
        return None


def try_read(read: Callable[[], _T | None]) -> _T | None:
    """What ``read`` returns, or None where the table it reads is broken (``Inspection.problems`` says so)."""
    try:
        return read()
    except ImageError:
        return None


def describe_area(area: GuestArea | None) -> str:
    """An area in words: where it is, or that it cannot be used."""
    if area is None:
        return "no area"
    return f"{area.base:#x}, {area.size:#x} bytes" if area.is_usable else f"unusable (base {area.base:#x})"
