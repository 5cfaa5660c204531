"""Rules about what is in the files behind options, and what libvirt makes of a domain (QEMU target/i386/sev.c)."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator

from casemate.abi.guest_kind import GuestKind
from casemate.advise.inspect import Role, inspect_image
from casemate.advise.known_faults import SNP_TOO_OLD, is_too_old_for_snp
from casemate.advise.rule import Found, Guest, RuleSet, Severity
from casemate.firmware.completeness import is_variable_store
from casemate.firmware.descriptors import Descriptor
from casemate.firmware.hash_use import HashUse, hash_use
from casemate.qemu.guest_request import Kind

FILE_RULES = RuleSet()

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
_BLOBS = {
    "dh-cert-file": ("a guest owner's DH certificate", 2084),
    "session-file": ("a launch session", 128),
}
"""What base64 in these files must be of, and its bytes (AMD 55766 SEV API 0.24, 2.1 and C.1)."""
_MOST_ID_AUTH = 4096
_FEATURES = {Kind.SEV: "amd-sev", Kind.SEV_ES: "amd-sev-es", Kind.SNP: "amd-sev-snp", Kind.TDX: "intel-tdx"}


@FILE_RULES.add("session-contents", _ERROR, "QEMU target/i386/sev.c, sev_read_file_base64; AMD 55766")
def _session_contents(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    for name, (what, size) in _BLOBS.items():
        if launch is None or not launch.is_known(name):
            continue
        text = guest.domain.contents.get(name)
        if text is None:
            file = launch.fields[name]
            if file not in guest.images:
                yield (
                    launch.at(name),
                    f"{file} cannot be read: QEMU stops",
                    f"name the file that has {what} in base64",
                )
                continue
            text = guest.images[file].data.decode("latin-1")
        if fault := _blob_fault(text, size):
            others = [
                word
                for other, (word, length) in _BLOBS.items()
                if other != name and not _blob_fault(text, length)
            ]
            looks = f"; it looks like {others[0]}" if others else ""
            yield (
                launch.at(name),
                f"{name} is not {what} in base64: {fault}{looks}",
                "casemate session make writes both",
            )


def _blob_fault(text: str, size: int) -> str | None:
    try:
        found = len(b64decode("".join(text.split()), validate=True))
    except ValueError:
        return "no base64"
    return None if found == size else f"{found} bytes, not {size}"


@FILE_RULES.add("id-auth-length", _ERROR, "QEMU target/i386/sev.c; AMD 56860, ID authentication")
def _id_auth(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch is None or not launch.is_known("id-auth"):
        return
    try:
        found = len(b64decode(launch.fields["id-auth"], validate=True))
    except ValueError:
        yield launch.at("id-auth"), "id-auth is no base64", f"give base64 of at most {_MOST_ID_AUTH} bytes"
        return
    if found > _MOST_ID_AUTH:
        yield (
            launch.at("id-auth"),
            f"id-auth has {found} bytes, QEMU takes {_MOST_ID_AUTH}",
            "give the ID auth block",
        )


@FILE_RULES.add("firmware-not-for-snp", _ERROR, "github.com/tianocore/edk2/pull/6285; LIMITATIONS.md")
def _too_old(guest: Guest) -> Iterator[Found]:
    option, image = guest.request.last("-bios"), guest.firmware
    if option is None or image is None or guest.request.kind is not Kind.SNP:
        return
    if is_too_old_for_snp(guest.volumes):
        yield (
            option,
            f"{image.name}: {SNP_TOO_OLD}",
            "use edk2 of 2024.11 or later, such as Debian 13's ovmf",
        )


_GUEST_KINDS = {
    Kind.SEV: GuestKind.SEV,
    Kind.SEV_ES: GuestKind.SEV_ES,
    Kind.SNP: GuestKind.SNP,
    Kind.TDX: GuestKind.TDX,
}


@FILE_RULES.add("firmware-not-for-guest", _ERROR, "docs/guide/inspect.md; edk2 OvmfPkg/ResetVector")
def _not_for_guest(guest: Guest) -> Iterator[Found]:
    request, image = guest.request, guest.firmware
    unit = request.unit(0)
    option = unit.option if unit else request.last("-bios")
    if option is None or image is None or request.hides_options or is_variable_store(image):
        return
    inspection = inspect_image(image, guest.volumes)
    if inspection.role is Role.NO_FIRMWARE:
        yield option, f"{image.name} is no firmware: {inspection.problems[0]}", "name the firmware image"
    elif inspection.role is Role.WRAPPED:
        yield option, f"{image.name} is {inspection.wrapper}, and no firmware", "name the firmware image"
    elif request.kind in _GUEST_KINDS and "igvm-cfg" not in request.machine:
        lacks = [each for each in inspection.lacks[_GUEST_KINDS[request.kind]] if each != SNP_TOO_OLD]
        if lacks:
            cause = f"{image.name} cannot start as a {request.kind} guest: {'; '.join(lacks)}"
            yield option, cause, "use a build that casemate inspect says yes to"


@FILE_RULES.add("amdsev-without-kernel", _WARNING, "edk2 OvmfPkg/AmdSev")
def _amdsev(guest: Guest) -> Iterator[Found]:
    request, image = guest.request, guest.firmware
    if image is None or request.may_have("-kernel"):
        return
    if hash_use(guest.volumes) is HashUse.COMPARED:
        option = request.last("-bios") or (request.flash[0].option if request.flash else None)
        if option:
            cause = f"{image.name} is an AmdSev build: it starts a measured -kernel or its built-in loader, no disk"
            yield option, cause, "give -kernel, and kernel-hashes=on, or use the general build"


@FILE_RULES.add("libvirt-unknown", _ERROR, "libvirt docs/formatdomain, launchSecurity")
def _unknown(guest: Guest) -> Iterator[Found]:
    for problem in guest.domain.problems:
        yield guest.request.option_for(problem.word), problem.cause, problem.remedy


@FILE_RULES.add(
    "firmware-autoselect", _NOTE, "libvirt src/qemu/qemu_firmware.c; QEMU docs/interop/firmware.json"
)
def _autoselect(guest: Guest) -> Iterator[Found]:
    word = guest.domain.chooses_firmware
    if word is None:
        return
    option = guest.request.option_for(word)
    chosen = next((each for each in guest.descriptors if _fits(each, guest)), None)
    if chosen is None:
        yield (
            option,
            "libvirt picks the firmware by the host's descriptors, and none of those here fits",
            "lint it on the host, or give a <loader>",
        )
    else:
        cause = f"libvirt picks the firmware by descriptors; here {chosen.path.name} is the first that fits"
        yield option, f"{cause}: {chosen.executable}", "give a <loader>, if it shall be a certain one"


def _fits(descriptor: Descriptor, guest: Guest) -> bool:
    wanted = {_FEATURES[guest.request.kind]} if guest.request.kind in _FEATURES else set()
    ruled_out: set[str] = set()
    for name, is_wanted in guest.domain.features.items():
        (wanted if is_wanted else ruled_out).add(name)
    takes_flash = guest.request.kind not in (Kind.SNP, Kind.TDX)
    return (
        "x86_64" in descriptor.architectures
        and "uefi" in descriptor.interfaces
        and (descriptor.device != "flash" or takes_flash)
        and wanted <= set(descriptor.features)
        and not ruled_out & set(descriptor.features)
    )


@FILE_RULES.add("value-unknown", _NOTE, "POSIX.1-2017 Shell Command Language, 2.6")
def _values(guest: Guest) -> Iterator[Found]:
    for option in guest.request.options:
        if option.is_unknown:
            names = ", ".join(dict.fromkeys(option.word.unknown))
            what = "whole options may hide in it" if not option.name else "what it says is not examined"
            yield (
                option,
                f"{names} is not set in what was read: {what}",
                "lint the running guest: /proc/PID/cmdline",
            )
        elif option.name == "-readconfig":
            yield option, "the options in this file are not examined", "give them on the command line"
    for word in guest.domain.unexamined:
        yield (
            guest.request.option_for(word),
            "what it changes of QEMU's options is not examined",
            "lint /proc/PID/cmdline",
        )
