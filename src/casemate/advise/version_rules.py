"""Rules about what a release of QEMU has at all (casemate.qemu.releases; QEMU qapi/qom.json)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from casemate.advise.rule import Found, Guest, RuleSet, Severity
from casemate.qemu.guest_request import Kind
from casemate.qemu.releases import nearest

VERSION_RULES = RuleSet()

_ERROR, _NOTE = Severity.ERROR, Severity.NOTE
_TABLE = "QEMU -object help, qapi/qom.json; docs/guide/lint.md"
_DEVELOPMENT = frozenset({"memory-backend-memfd-private"})
"""Objects of development trees that a rule of their own is about."""
_PENDING = frozenset({"debug-swap", "secure-tsc", "secure-avic", "tsc-frequency"})
_FIRST_WITH_RESET, _FIRST_WITHOUT_REWRITE = (11, 0), (10, 2)
_UPSTREAM_MACHINE = re.compile(r"pc-(?:q35|i440fx)-[0-9.]+|[a-z0-9]+")


@VERSION_RULES.add("option-unknown", _ERROR, "QEMU -help; docs/about/removed-features")
def _option(guest: Guest) -> Iterator[Found]:
    for option in guest.request.options:
        if option.name and guest.qemu.lacks_option(option.name):
            cause = guest.qemu.lacking(f"option {option.name[:40]}")
            yield option, cause, f"leave it out{nearest(option.name, guest.qemu.options)}"


@VERSION_RULES.add("object-unknown", _ERROR, _TABLE)
def _object(guest: Guest) -> Iterator[Found]:
    for option in guest.request.objects.values():
        kind = option.fields.get("qom-type", "")
        if option.is_known("qom-type") and kind not in _DEVELOPMENT and guest.qemu.lacks_object(kind):
            cause = guest.qemu.lacking(f"object of type {kind[:60]!r}")
            yield option.at("qom-type"), cause, f"correct it{nearest(kind, guest.qemu.object_types)}"


@VERSION_RULES.add("object-property-unknown", _ERROR, _TABLE)
def _object_property(guest: Guest) -> Iterator[Found]:
    for option in guest.request.objects.values():
        kind = option.fields.get("qom-type", "")
        if not option.is_known("qom-type") or kind in _DEVELOPMENT:
            continue
        for name in option.fields:
            plain = name.partition(".")[0]
            if plain in option.word.unknown or not guest.qemu.lacks_property(kind, plain):
                continue
            cause = guest.qemu.lacking(f"property {plain[:60]!r} of {kind}")
            remedy = f"correct it{nearest(plain, guest.qemu.properties(kind))}"
            if plain in _PENDING:
                remedy = "use a QEMU with the VMSA feature patches (--this-qemu asks it), or leave it out"
            yield option.at(name), cause, remedy


@VERSION_RULES.add("machine-property-unknown", _ERROR, "QEMU -machine q35,help; docs/guide/lint.md")
def _machine_property(guest: Guest) -> Iterator[Found]:
    for name in guest.request.machine:
        option = guest.request.machine_option(name)
        if name in ("type", "") or not option.is_known(name) or not guest.qemu.lacks_machine_property(name):
            continue
        cause = guest.qemu.lacking(f"machine property {name[:60]!r}")
        yield option, cause, f"correct it{nearest(name, guest.qemu.machine_properties)}"


@VERSION_RULES.add("machine-unknown", _ERROR, "QEMU -machine help")
def _machine(guest: Guest) -> Iterator[Found]:
    name = guest.request.machine.get("type", "")
    option = guest.request.machine_option("type")
    # Distributions have machines of their own, such as pc-q35-rhel9.4.0 and pc-q35-noble.
    if option.is_known("type") and _UPSTREAM_MACHINE.fullmatch(name) and guest.qemu.lacks_machine(name):
        cause = guest.qemu.lacking(f"machine {name[:60]!r}")
        yield option, cause, f"use q35{nearest(name, guest.qemu.machines)}"


@VERSION_RULES.add("reset-ends-guest", _NOTE, "QEMU 11.0 change log (reset of SEV-SNP and TDX guests)")
def _reset(guest: Guest) -> Iterator[Found]:
    launch, version = guest.request.launch, guest.qemu.version
    is_sealed = guest.request.kind in (Kind.SEV_ES, Kind.SNP, Kind.TDX)
    if launch and is_sealed and version and version < _FIRST_WITH_RESET:
        cause = f"{guest.qemu.name} cannot reset this guest: its first reboot ends it"
        yield launch, cause, "start it anew, or use QEMU 11.0 for SNP and TDX guests"


@VERSION_RULES.add("kernel-header-rewritten", _NOTE, "QEMU a7542a38f399 (10.2)")
def _header(guest: Guest) -> Iterator[Found]:
    kernel, version = guest.request.last("-kernel"), guest.qemu.version
    if kernel and guest.request.kind is Kind.TDX and version and version < _FIRST_WITHOUT_REWRITE:
        cause = (
            f"{guest.qemu.name} rewrites the kernel's header: the guest measures other bytes than the file's"
        )
        yield kernel, cause, "use QEMU 10.2, which leaves it alone"
