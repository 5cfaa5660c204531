"""What lint rules are made of: severities, the guest that they look at, and the registry (docs/guide/lint.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from casemate.abi.kernel_eras import ERAS, NEWEST, find_era
from casemate.abi.kvm.vm_types import VmType
from casemate.firmware.descriptors import Descriptor
from casemate.firmware.image import FirmwareImage
from casemate.firmware.volume import FirmwareVolume
from casemate.qemu.command_line import Option
from casemate.qemu.domain_xml import Domain
from casemate.qemu.guest_request import GuestRequest, Kind
from casemate.qemu.releases import QemuFacts

_FIRST_WITH_TDX = "linux-6.16"
_FIRST_WITH_SINGLE_SOCKET = "linux-6.18"
"""The change came with 6.17 (24be2b7956a5, 9f4701e05fae), which the table has as the release after."""
SINGLE_SOCKET_BIT = 20
_SNP_POLICY = frozenset({*range(18), 19, SINGLE_SOCKET_BIT})
"""Bits that some released KVM takes (Linux arch/x86/kvm/svm/sev.c, SNP_POLICY_MASK_VALID)."""


class Severity(StrEnum):
    """What happens if nothing is done."""

    ERROR = "error"
    """The guest does not start, loses its variables, or is not protected as asked."""
    WARNING = "warning"
    """It starts, and is weaker or less lasting than it looks."""
    NOTE = "note"
    """Worth knowing, above all when digests are compared."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: in which option, why, and what to do."""

    id: str
    severity: Severity
    option: str
    cause: str
    remedy: str
    reference: str
    line: int = 0
    """Where the option stands in the file, from 1; 0 if there is no file."""
    column: int = 0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host's KVM does: types of VMs, which of them take read-only slots, features it sets unasked."""

    name: str
    vm_types: frozenset[VmType]
    readonly: frozenset[VmType]
    unasked_features: int = 0
    snp_policy: frozenset[int] = frozenset(range(64))
    """Bits that KVM takes in the policy of an SNP guest."""
    needs_snp_smt: bool = False
    """Whether KVM refuses an SNP guest whose policy rules SMT out."""
    c_bit: int | None = None
    """Where the host's C-bit is; None if nobody asked."""

    @classmethod
    def of_era(cls, name: str = NEWEST) -> HostFacts:
        """A kernel with every kind of hardware. Raises SpecError if there is no such era."""
        era = find_era(name)
        has_tdx = ERAS.index(name) >= ERAS.index(_FIRST_WITH_TDX)
        types = era.vm_types | ({VmType.TDX} if has_tdx else set())
        readonly = frozenset(kind for kind in types if era.takes_readonly_slot(kind))
        is_old = ERAS.index(name) < ERAS.index(_FIRST_WITH_SINGLE_SOCKET)
        policy = _SNP_POLICY - ({SINGLE_SOCKET_BIT} if is_old else set())
        return cls(name, frozenset(types), readonly, era.legacy_vmsa_features, frozenset(policy), is_old)


def firmware_of(
    request: GuestRequest, images: dict[str, FirmwareImage], contents: dict[int, FirmwareImage]
) -> FirmwareImage | None:
    """What a guest starts with, if it could be read: flash unit 0, else the file of -bios."""
    option = request.last("-bios")
    return contents.get(0) or (images.get(option.value) if option else None)


Found = tuple[Option | str, str, str]
"""Option, cause, remedy."""


@dataclass(frozen=True, slots=True)
class Guest:
    """What rules look at."""

    request: GuestRequest
    host: HostFacts
    images: dict[str, FirmwareImage]
    """The files that could be read, as they are, by path."""
    contents: dict[int, FirmwareImage]
    """By flash unit what the guest sees of them."""
    volumes: tuple[FirmwareVolume, ...]
    """Those of ``firmware``, unpacked."""
    problems: tuple[Found, ...]
    """Flash whose format could not be read through."""
    unexamined: tuple[Found, ...]
    """Flash in a format, or with features of one, that is not read here."""
    qemu: QemuFacts
    domain: Domain
    descriptors: tuple[Descriptor, ...]
    """Of the host's firmware, by precedence."""
    unread: tuple[str, ...]
    """Files that are named and could not be read."""

    def image(self, unit: int) -> FirmwareImage | None:
        """What the guest sees of a flash unit, if its file could be read."""
        return self.contents.get(unit)

    @property
    def bios(self) -> FirmwareImage | None:
        """The file of -bios, if it could be read."""
        option = self.request.last("-bios")
        return self.images.get(option.value) if option else None

    @property
    def firmware(self) -> FirmwareImage | None:
        """What the guest starts with."""
        return firmware_of(self.request, self.images, self.contents)

    @property
    def vm_type(self) -> VmType:
        """The type of VM that QEMU makes for this guest."""
        request = self.request
        match request.kind:
            case Kind.SNP:
                return VmType.SNP
            case Kind.TDX:
                return VmType.TDX
            case Kind.SEV | Kind.SEV_ES if request.needs_init2:
                return VmType.SEV_ES if request.kind is Kind.SEV_ES else VmType.SEV
            case _:
                return VmType.DEFAULT


Check = Callable[[Guest], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A check under its name."""

    id: str
    severity: Severity
    reference: str
    check: Check


class RuleSet(list[Rule]):
    """Rules, collected by a decorator."""

    def add(self, name: str, severity: Severity, reference: str) -> Callable[[Check], Check]:
        """Register the function that follows."""

        def register(check: Check) -> Check:
            self.append(Rule(name, severity, reference, check))
            return check

        return register
