"""A guest as QEMU's options ask for it, as far as firmware and confidentiality go (QEMU docs/system/invocation)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from casemate.qemu.command_line import Option, options_of, parse_fields
from casemate.qemu.shell import Word

_SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Kind(StrEnum):
    """Which guest."""

    PLAIN = "plain"
    SEV = "SEV"
    SEV_ES = "SEV-ES"
    SNP = "SEV-SNP"
    TDX = "TDX"


class Flash(NamedTuple):
    """A file as flash unit."""

    unit: int
    file: str
    format: str | None
    readonly: bool
    option: Option
    offset: int = 0
    size: int | None = None
    """The part of the file that QEMU's raw format is told to show, in bytes."""
    template: str | None = None
    """What libvirt copies if the file is not there."""


@dataclass
class GuestRequest:
    """What the options come to; where one is given several times QEMU's rule decides (the last, or all merged)."""

    options: list[Option]
    machine: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Option] = field(default_factory=dict)
    flash: list[Flash] = field(default_factory=list)

    @classmethod
    def of_words(cls, words: Sequence[str | Word]) -> GuestRequest:
        """Take a command line apart, with or without the program. Raises SpecError if an option lacks its value."""
        request = cls(list(options_of(words)))
        for option in request.options:
            if option.name in ("-machine", "-M"):
                request.machine |= option.fields
                if "firmware" in option.fields:  # which is what -bios sets
                    request.options.append(
                        option.at("firmware")._replace(name="-bios", value=option.fields["firmware"])
                    )
            elif option.name == "-object":
                request.objects[option.fields.get("id", "")] = option
        request.flash = list(_flash(request))
        return request

    def last(self, *names: str) -> Option | None:
        """The option that counts, under any of its names."""
        return next((option for option in reversed(self.options) if option.name in names), None)

    def has(self, *names: str) -> bool:
        """Whether one of these is given."""
        return self.last(*names) is not None

    def may_have(self, *names: str) -> bool:
        """Whether one of these is given, or hidden in what nobody can know."""
        return self.hides_options or any(option.name in names for option in self.options)

    def may_say(self, *names: str) -> bool:
        """Whether one of these options, or a hidden one, has a variable in it that nobody can know."""
        return self.hides_options or any(option.is_unknown for option in self.options if option.name in names)

    @property
    def hides_options(self) -> bool:
        """Whether whole options may come from a variable or a file that is not read."""
        return any(
            (not option.name and option.is_unknown) or option.name == "-readconfig" for option in self.options
        )

    def machine_option(self, field: str) -> Option:
        """The -machine option that says ``field`` last, cut down to that."""
        for option in reversed(self.options):
            if option.name in ("-machine", "-M") and field in option.fields:
                return option.at(field)._replace(value=f"{field}={option.fields[field]}")
        return Option("-machine", f"{field}={self.machine.get(field, '')}", {})

    def option_for(self, word: Word) -> Option:
        """Something that is no option of QEMU's, as one that says where it is."""
        return Option("", word.text, {}, word)

    def unit(self, number: int) -> Flash | None:
        """A flash unit."""
        return next((flash for flash in self.flash if flash.unit == number), None)

    def of_type(self, *types: str) -> list[Option]:
        """Objects of some types, used or not."""
        return [option for option in self.objects.values() if option.fields.get("qom-type") in types]

    @property
    def variable_devices(self) -> list[Option]:
        """Devices that keep UEFI variables in place of flash, in a JSON file (QEMU hw/uefi)."""
        devices = (option for option in self.options if option.name == "-device")
        return [
            device
            for device in devices
            if device.fields.get("driver", device.fields.get("type", "")).startswith("uefi-vars")
        ]

    @property
    def launch(self) -> Option | None:
        """The object that the machine takes for confidential-guest-support."""
        name = self.machine.get("confidential-guest-support") or self.machine.get("memory-encryption")
        return self.objects.get(name) if name else None

    @property
    def kind(self) -> Kind:
        """The kind of guest this becomes."""
        launch = self.launch
        kinds = {"sev-snp-guest": Kind.SNP, "tdx-guest": Kind.TDX}
        if launch is None:
            return Kind.PLAIN
        if launch.fields.get("qom-type") == "sev-guest":
            return Kind.SEV_ES if self.policy & 4 else Kind.SEV
        return kinds.get(launch.fields.get("qom-type", ""), Kind.PLAIN)

    @property
    def policy(self) -> int:
        """The launch policy, or QEMU's default; also where it is no number."""
        launch = self.launch
        default = 0x30000 if launch and launch.fields.get("qom-type") == "sev-snp-guest" else 1
        try:
            given = launch.number("policy") if launch else None
        except ValueError:
            given = None
        return default if given is None else given

    @property
    def features(self) -> list[str]:
        """VMSA features that are asked for by name."""
        launch = self.launch
        return [name for name in ("debug-swap", "secure-tsc", "secure-avic") if launch and launch.has(name)]

    @property
    def needs_init2(self) -> bool:
        """Whether a SEV or SEV-ES guest cannot be of the default VM type."""
        return bool(self.features) or bool(self.launch and self.launch.fields.get("legacy-vm-type") == "off")

    @property
    def uses_kvm(self) -> bool:
        """Whether KVM runs the guest."""
        accel = self.last("-accel")
        named = f"{accel.value if accel else ''}:{self.machine.get('accel', '')}"
        return self.has("-enable-kvm") or "kvm" in named

    @property
    def machine_type(self) -> str:
        """Such as ``q35`` or ``pc-q35-9.2``; QEMU's default is ``pc``."""
        return self.machine.get("type", "pc")


def _bytes(text: str | None) -> int | None:
    """A size as QEMU reads it: 540672, 528K, 0.5M, 0x84000 (util/cutils.c)."""
    if match := re.fullmatch(r"0[xX]([0-9a-fA-F]{1,15})", text or ""):
        return int(match[1], 16)
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{0,18})?)([bkmgBKMG]?)", text or "")
    return int(Decimal(match[1]) * _SUFFIXES[match[2].lower()]) if match else None


def _of_json(name: str) -> dict[str, str]:
    """What a file name says that describes a node: ``json:{...}``; nothing for all others, and for broken JSON."""
    if not name.startswith("json:"):
        return {}
    try:
        return parse_fields(name.removeprefix("json:"))[0]
    except (ValueError, RecursionError):
        return {}


def _flash(request: GuestRequest) -> Iterator[Flash]:
    taken: set[int] = set()
    for option in request.options:
        is_drive = option.name == "-drive" and option.fields.get("if") == "pflash"
        if not is_drive and option.name != "-pflash":
            continue
        given = option.fields.get("unit") or option.fields.get("index") or ""
        free = next(unit for unit in range(len(taken) + 1) if unit not in taken)
        unit = int(given) if re.fullmatch(r"[0-9]{1,4}", given) else free
        taken.add(unit)
        file = option.fields.get("file", "") if is_drive else option.value
        fields = (option.fields if is_drive else {}) | _of_json(file)
        if "file" in fields or "file.filename" in fields:
            file = fields.get("file.filename", fields.get("file", ""))
        readonly = option.has("readonly") or option.has("read-only")
        kind = fields.get("format", fields.get("driver"))
        offset, size = _bytes(fields.get("offset")) or 0, _bytes(fields.get("size"))
        yield Flash(unit, file.removeprefix("file:"), kind, readonly, option, offset, size)
    yield from _flash_nodes(request)


def _flash_nodes(request: GuestRequest) -> Iterator[Flash]:
    """The units that -machine takes from -blockdev, through as many nodes as there are."""
    nodes = {node.fields.get("node-name", ""): node for node in request.options if node.name == "-blockdev"}
    for unit in (0, 1):
        top = nodes.get(request.machine.get(f"pflash{unit}", ""))
        if top is None:
            continue
        chain = [top]
        while (below := nodes.get(chain[-1].fields.get("file", ""))) and below not in chain:
            chain.append(below)
        last = chain[-1].fields
        file = last.get("filename") or last.get("file.filename", "")
        drivers = [node.fields.get("driver", "raw") for node in chain]
        kind = next((driver for driver in drivers if driver not in ("raw", "file")), "raw")
        readonly = any(node.has("read-only") for node in chain)
        offset = sum(_bytes(node.fields.get("offset")) or 0 for node in chain)
        size = next((_bytes(node.fields["size"]) for node in chain if "size" in node.fields), None)
        yield Flash(unit, file, kind, readonly, top, offset, size)
