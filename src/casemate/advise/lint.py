"""Finds what will break or weaken a guest before it is started (docs/guide/lint.md; the reference of each rule)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from casemate.advise.confidential_rules import CONFIDENTIAL_RULES
from casemate.advise.file_rules import FILE_RULES
from casemate.advise.flash_rules import FLASH_RULES
from casemate.advise.rule import Finding, Found, Guest, HostFacts, Rule, Severity, firmware_of
from casemate.advise.version_rules import VERSION_RULES
from casemate.errors import ImageError
from casemate.firmware.descriptors import Descriptor
from casemate.firmware.image import FirmwareImage
from casemate.firmware.qcow2 import MAGIC, Qcow2FeatureError, read_qcow2
from casemate.firmware.volume import Allowance, read_volumes
from casemate.qemu.command_line import Option
from casemate.qemu.guest_request import Flash, GuestRequest
from casemate.qemu.releases import QemuFacts
from casemate.qemu.source import Command, command_of_words

_READ = (None, "raw", "qcow2", "file", "host_device")
"""Formats and protocols of QEMU's block layer whose contents are looked at."""

Load = Callable[[str], FirmwareImage | None]


def lint(
    command: Command | Sequence[str],
    host: HostFacts,
    load: Load,
    qemu: QemuFacts | None = None,
    descriptors: Sequence[Descriptor] = (),
    allowance: Allowance | None = None,
) -> tuple[list[Finding], list[str]]:
    """Findings in a guest's configuration, the worst first, and the files that ``load`` could not read.

    ``allowance`` is what firmware may unpack to, for callers that look at several guests.

    Raises SpecError if the words are no command line of QEMU's.
    """
    if not isinstance(command, Command):
        command = command_of_words(command)
    request = GuestRequest.of_words(command.words)
    request.flash = [
        flash._replace(template=command.domain.templates.get(flash.file)) for flash in request.flash
    ]
    images = {file: load(file) for file in _files(command, request)}
    contents, problems, unexamined = _contents(request, images, load)
    read = {file: image for file, image in images.items() if image is not None}
    firmware = firmware_of(request, read, contents)
    guest = Guest(
        request,
        host,
        read,
        contents,
        read_volumes(firmware.data, firmware.code_volumes, allowance) if firmware else (),
        tuple(problems),
        tuple(unexamined),
        qemu or QemuFacts(),
        command.domain,
        tuple(descriptors),
        tuple(file for file, image in images.items() if image is None),
    )
    findings = [_finding(rule, *found) for rule in all_rules() for found in rule.check(guest)]
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return findings, [file for file, image in images.items() if image is None]


def _finding(rule: Rule, where: Option | str, cause: str, remedy: str) -> Finding:
    line, column = (where.word.line, where.word.column) if isinstance(where, Option) else (0, 0)
    return Finding(rule.id, rule.severity, str(where), cause, remedy, rule.reference, line, column)


def _files(command: Command, request: GuestRequest) -> list[str]:
    """The files that options name, each once."""
    found = [flash.file for flash in request.flash]
    found += [flash.template for flash in request.flash if flash.template]
    bios = request.last("-bios")
    if bios:
        found.append(bios.value)
    found += [device.fields["jsonfile"] for device in request.variable_devices if "jsonfile" in device.fields]
    launch = request.launch
    if launch and not command.domain.contents:
        found += [launch.fields[name] for name in ("dh-cert-file", "session-file") if launch.is_known(name)]
    return list(dict.fromkeys(found))


def _contents(
    request: GuestRequest, images: dict[str, FirmwareImage | None], load: Load
) -> tuple[dict[int, FirmwareImage], list[Found], list[Found]]:
    """By flash unit what the guest sees of the file; what is wrong with its format; what is not read of formats."""
    contents: dict[int, FirmwareImage] = {}
    problems: list[Found] = []
    unexamined: list[Found] = []
    for flash in request.flash:
        image = images.get(flash.file) or images.get(flash.template or "")
        if image is None:
            continue
        if flash.format not in _READ:
            cause = f"{image.name} is attached as {flash.format}, a format that is not read here"
            unexamined.append((flash.option, cause, "lint a raw copy: qemu-img convert -O raw"))
            continue
        try:
            data = _seen(flash, image, load)
        except Qcow2FeatureError as error:
            unexamined.append((flash.option, error.cause, error.remedy))
            continue
        except ImageError as error:
            problems.append((flash.option, error.cause, error.remedy))
            continue
        if data:
            contents.setdefault(flash.unit, FirmwareImage(image.name, data))
    return contents, problems, unexamined


def _seen(flash: Flash, image: FirmwareImage, load: Load) -> bytes:
    data = image.data
    if data.startswith(MAGIC):
        if flash.format == "raw":
            return data
        folder = os.path.dirname(image.name)

        def backing(name: str) -> bytes | None:
            found = load(os.path.join(folder, name))
            return found.data if found else None

        data = read_qcow2(data, image.name, backing)
    end = len(data) if flash.size is None else flash.offset + flash.size
    return data[flash.offset : end]


def all_rules() -> list[Rule]:
    """Every rule there is."""

    return [*FLASH_RULES, *CONFIDENTIAL_RULES, *FILE_RULES, *VERSION_RULES]
