"""Finds what will break or weaken a guest before it is started (docs/guide/lint.md; the reference of each rule)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from casemate.advise.confidential_rules import CONFIDENTIAL_RULES
from casemate.advise.flash_rules import FLASH_RULES
from casemate.advise.guest_request import GuestRequest
from casemate.advise.rule import Finding, Guest, HostFacts, Rule, Severity
from casemate.firmware.image import FirmwareImage


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

    return [*FLASH_RULES, *CONFIDENTIAL_RULES]
