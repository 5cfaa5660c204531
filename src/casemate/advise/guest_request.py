"""A guest as QEMU's options ask for it, as far as firmware and confidentiality go (QEMU docs/system/invocation)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from casemate.errors import SpecError

_WITHOUT_VALUE = frozenset((
    "-nodefaults", "-no-user-config", "-nographic", "-enable-kvm", "-no-reboot", "-no-shutdown", "-S", "-s",
    "-snapshot", "-daemonize", "-no-acpi", "-no-hpet", "-usb", "-full-screen", "-no-fd-bootchk", "-only-migratable",
    "-singlestep", "-curses", "-no-kvm",
))  # fmt: skip
_ON = ("on", "yes", "true", "y")


class Kind(StrEnum):
    """Which guest."""

    PLAIN = "plain"
    SEV = "SEV"
    SEV_ES = "SEV-ES"
    SNP = "SEV-SNP"
    TDX = "TDX"


class Option(NamedTuple):
    """One option: its spelling, and its ``a=b,c=d`` taken apart."""

    name: str
    value: str
    fields: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name} {self.value}".rstrip()

    def has(self, name: str) -> bool:
        """Whether this switch is on."""
        return self.fields.get(name, "off") in _ON

    def number(self, name: str) -> int | None:
        """A number, None if it is missing. Raises ValueError if it is none."""
        return int(self.fields[name], 0) if name in self.fields else None


class Flash(NamedTuple):
    """A file as flash unit."""

    unit: int
    file: str
    format: str | None
    readonly: bool
    option: Option


@dataclass
class GuestRequest:
    """What the options come to; where one is given several times QEMU's rule decides (the last, or all merged)."""

    options: list[Option]
    machine: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Option] = field(default_factory=dict)
    flash: list[Flash] = field(default_factory=list)

    @classmethod
    def of_words(cls, words: Sequence[str]) -> GuestRequest:
        """Take a command line apart, with or without the program. Raises SpecError if an option lacks its value."""
        request = cls(list(_options(words)))
        for option in request.options:
            if option.name in ("-machine", "-M"):
                request.machine |= option.fields
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


def parse_fields(value: str) -> dict[str, str]:
    """``a=b,c=d`` with a doubled comma for a comma, or JSON; what comes first may lack its name (key ``qom-type``)."""
    if value.startswith("{"):
        return _flatten(json.loads(value))
    fields = {}
    for index, text in enumerate(value.replace(",,", "\0").split(",")):
        name, separator, rest = text.replace("\0", ",").partition("=")
        if not separator:
            name, rest = ("", name) if index == 0 else (name, "on")
        fields[name] = rest
    return fields


def _flatten(document: object, prefix: str = "") -> dict[str, str]:
    if isinstance(document, bool):
        return {prefix: "on" if document else "off"}
    if not isinstance(document, dict):
        return {prefix: str(document)}
    found: dict[str, str] = {}
    for name, value in document.items():
        found |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def _options(words: Sequence[str]) -> Iterator[Option]:
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            continue  # the program, or a disk image
        name = word[1:] if word.startswith("--") else word
        value = "" if name in _WITHOUT_VALUE else next(rest, None)
        if value is None:
            raise SpecError(f"QEMU's {name} needs a value", "complete the command line")
        try:
            fields = parse_fields(value)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"QEMU's {name} {value}: no JSON: {error}", "quote it for the shell") from None
        if "" in fields:
            fields["qom-type" if name == "-object" else "type"] = fields.pop("")
        yield Option(name, value, fields)


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
        readonly = option.has("readonly") or option.has("read-only")
        yield Flash(unit, file, option.fields.get("format"), readonly, option)
    yield from _flash_nodes(request)


def _flash_nodes(request: GuestRequest) -> Iterator[Flash]:
    """The units that -machine takes from -blockdev."""
    nodes = {node.fields.get("node-name", ""): node for node in request.options if node.name == "-blockdev"}
    for unit in (0, 1):
        node = nodes.get(request.machine.get(f"pflash{unit}", ""))
        if node is None:
            continue
        below = nodes.get(node.fields.get("file", ""), node)
        file = below.fields.get("filename") or node.fields.get("file.filename", "")
        driver = node.fields.get("driver", "raw")
        readonly = node.has("read-only") or below.has("read-only")
        yield Flash(unit, file, "raw" if driver == "file" else driver, readonly, node)
