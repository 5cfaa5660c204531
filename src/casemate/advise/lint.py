"""Finds what will break or weaken a guest before it is started (docs/guide/lint.md; the reference of each rule)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from casemate.abi.kvm.vm_types import VmType
from casemate.advise.guest_request import GuestRequest, Kind
from casemate.firmware.image import FirmwareImage
from casemate.host.model.eras import ERAS, NEWEST, find_era

_FIRST_WITH_TDX = "linux-6.16"


class Severity(StrEnum):
    """What happens if nothing is done."""

    ERROR = "error"
    """The guest does not start, loses its variables, or is not protected as asked."""
    WARNING = "warning"
    """It starts, and is weaker or less lasting than it looks."""
    NOTE = "note"
    """Worth knowing, above all when digests are compared."""


class Finding(NamedTuple):
    """One thing found: in which option, why, and what to do."""

    id: str
    severity: Severity
    option: str
    cause: str
    remedy: str
    reference: str


class HostFacts(NamedTuple):
    """What a host's KVM does: types of VMs, which of them take read-only slots, features it sets unasked."""

    name: str
    vm_types: frozenset[VmType]
    readonly: frozenset[VmType]
    unasked_features: int = 0

    @classmethod
    def of_era(cls, name: str = NEWEST) -> HostFacts:
        """A kernel with every kind of hardware. Raises SpecError if there is no such era."""
        era = find_era(name)
        has_tdx = ERAS.index(name) >= ERAS.index(_FIRST_WITH_TDX)
        types = era.vm_types | ({VmType.TDX} if has_tdx else set())
        readonly = frozenset(kind for kind in types if era.takes_readonly_slot(kind))
        return cls(name, frozenset(types), readonly, era.legacy_vmsa_features)


Found = tuple[str, str, str]
"""Option, cause, remedy."""


class Guest(NamedTuple):
    """What rules look at: the request, the host, and the files that could be read, by path."""

    request: GuestRequest
    host: HostFacts
    images: dict[str, FirmwareImage]

    def image(self, unit: int) -> FirmwareImage | None:
        """The file of a flash unit, if it could be read and is raw."""
        flash = self.request.unit(unit)
        return self.images.get(flash.file) if flash else None

    @property
    def bios(self) -> FirmwareImage | None:
        """The file of -bios, if it could be read."""
        option = self.request.last("-bios")
        return self.images.get(option.value) if option else None

    @property
    def firmware(self) -> FirmwareImage | None:
        """What the guest starts with."""
        return self.image(0) or self.bios

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


class Rule(NamedTuple):
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


def lint(
    words: Sequence[str], host: HostFacts, load: Callable[[str], FirmwareImage | None]
) -> tuple[list[Finding], list[str]]:
    """Findings in a QEMU command line, the worst first, and the firmware files that ``load`` could not read."""
    request = GuestRequest.of_words(words)
    bios = request.last("-bios")
    files = [*(flash.file for flash in request.flash), *([bios.value] if bios else [])]
    files += [device.fields["jsonfile"] for device in request.variable_devices if "jsonfile" in device.fields]
    images = {file: load(file) for file in files}
    guest = Guest(request, host, {file: image for file, image in images.items() if image is not None})
    findings = [
        Finding(rule.id, rule.severity, option, cause, remedy, rule.reference)
        for rule in all_rules()
        for option, cause, remedy in rule.check(guest)
    ]
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return findings, [file for file, image in images.items() if image is None]


def all_rules() -> list[Rule]:
    """Every rule there is."""
    from casemate.advise.confidential_rules import CONFIDENTIAL_RULES
    from casemate.advise.flash_rules import FLASH_RULES

    return [*FLASH_RULES, *CONFIDENTIAL_RULES]
