"""Which QEMU has which option, object, property and machine, as a table (qapi/qom.json; the binaries themselves).

``releases.json`` is what three binaries said (``python -m tools.qemu_releases``). Between two of them a thing counts
as there if both have it and as missing if neither has, else ``ARRIVALS`` knows; what nobody knows is no finding.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.errors import SpecError

Version = tuple[int, int]

_TABLE = Path(__file__).with_name("releases.json")

ARRIVALS: dict[str, tuple[Version, str]] = {
    "sev-snp-guest": ((9, 1), "QEMU 9.1 change log; qapi/qom.json"),
    "sev-guest.legacy-vm-type": ((9, 1), "QEMU 9.1 change log; qapi/qom.json"),
    "tdx-guest": ((10, 1), "QEMU 10.1 change log; qapi/qom.json"),
    "igvm-cfg": ((10, 1), "QEMU 10.1 change log; qapi/qom.json"),
}
"""Objects, or ``object.property``, with the release that brought them."""

SUGAR = frozenset(
    {"accel", "kernel-irqchip", "kernel_irqchip", "kvm-shadow-mem", "igvm-cfg", "dump-guest-core"}
)
"""What -machine takes beside its type's properties: options of the accelerator, and IGVM where it is built in."""

VENDOR_OPTIONS = {"-id": True}
"""Options that a vendor adds, and whether a value follows: Proxmox names the guest so (qemu-server)."""

UNLISTED_OPTIONS = {"-M": True, "-qtest": True, "-qtest-log": True}
"""Options that every release takes, but that ``-help`` does not list in all, and whether a value follows."""

OPTIONAL_OBJECTS = {"igvm-cfg": frozenset({"id", "qom-type", "file", "resettable"})}
"""Objects that are in QEMU's sources, but not in every build."""


@dataclass(frozen=True, slots=True)
class QemuRelease:
    """What one QEMU has."""

    version: Version
    options: dict[str, bool]
    """With their dash, and whether a value follows."""
    objects: dict[str, frozenset[str]]
    """Properties by type, ``id`` and ``qom-type`` included."""
    machine_properties: frozenset[str]
    """Of q35."""
    machines: frozenset[str]
    is_exact: bool = True
    """Whether a binary said so, rather than the table of its neighbours."""

    @property
    def name(self) -> str:
        """Such as ``QEMU 10.0``."""
        return f"QEMU {self.version[0]}.{self.version[1]}"

    def to_dict(self) -> dict[str, Any]:
        """As ``releases.json`` has it."""
        return {
            "version": list(self.version),
            "options": {"value": _sorted(self.options, True), "none": _sorted(self.options, False)},
            "objects": {name: sorted(self.objects[name]) for name in sorted(self.objects)},
            "machine_properties": sorted(self.machine_properties),
            "machines": sorted(self.machines),
        }

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> QemuRelease:
        """The reverse of ``to_dict``."""
        options = dict.fromkeys(entry["options"]["value"], True) | dict.fromkeys(
            entry["options"]["none"], False
        )
        return cls(
            version=(entry["version"][0], entry["version"][1]),
            options=options,
            objects={name: frozenset(properties) for name, properties in entry["objects"].items()},
            machine_properties=frozenset(entry["machine_properties"]),
            machines=frozenset(entry["machines"]),
        )


def _sorted(options: dict[str, bool], has_value: bool) -> list[str]:
    return sorted(name for name, value in options.items() if value == has_value)


@functools.cache
def known_releases() -> tuple[QemuRelease, ...]:
    """Those that were asked, the oldest first."""
    return tuple(map(QemuRelease.from_dict, json.loads(_TABLE.read_text("utf-8"))))


def version_of(text: str) -> Version:
    """``10.2`` or ``10.2.1`` as numbers. Raises SpecError if it is no version."""
    parts = text.split(".")
    if not (2 <= len(parts) <= 3 and all(part.isdecimal() and len(part) < 4 for part in parts)):
        raise SpecError(f"{text!r} is no version of QEMU", "say it as in --qemu 10.2")
    return int(parts[0]), int(parts[1])


class QemuFacts:
    """What is known of the QEMU that a guest is for: one binary, one release, or any that was ever released."""

    def __init__(self, release: QemuRelease | Version | None = None) -> None:
        known = known_releases()
        if isinstance(release, QemuRelease):
            self.name, self._lower, self._upper = release.name, release, release
            self._version: Version | None = release.version
        elif release is None:
            self.name, self._version = "any QEMU", None
            self._lower = self._upper = known[-1]
        else:
            self.name, self._version = f"QEMU {release[0]}.{release[1]}", release
            below = [each for each in known if each.version <= release]
            above = [each for each in known if each.version >= release]
            self._lower, self._upper = (
                (below or above)[-1 if below else 0],
                (above or below)[0 if above else -1],
            )

    def lacking(self, what: str) -> str:
        """A sentence that says so."""
        return (
            f"no QEMU of 7.2 to 11.1 has {what}: it stops"
            if self._version is None
            else f"{self.name} has no {what}: it stops"
        )

    @property
    def version(self) -> Version | None:
        """Its release; None for any."""
        return self._version

    @property
    def machines(self) -> frozenset[str]:
        """Every machine that it may have."""
        return frozenset(name for release in self._candidates() for name in release.machines)

    def _candidates(self) -> tuple[QemuRelease, ...]:
        return known_releases() if self._version is None else (self._lower, self._upper)

    def lacks_object(self, kind: str) -> bool:
        """Whether it certainly has no object of this type."""
        if self._version is None or not self._is_binary:
            if kind in ARRIVALS and self._version is not None:
                return self._version < ARRIVALS[kind][0]
            if kind in OPTIONAL_OBJECTS:
                return False
        return not any(kind in release.objects for release in self._candidates())

    @property
    def _is_binary(self) -> bool:
        return (
            self._version is not None and self._lower is self._upper and self._lower not in known_releases()
        )

    def lacks_property(self, kind: str, name: str) -> bool:
        """Whether its objects of this type certainly have no such property; False if it has no such objects at all."""
        having = [release.objects[kind] for release in self._candidates() if kind in release.objects]
        arrival = ARRIVALS.get(f"{kind}.{name}")
        if arrival and self._version is not None and not self._is_binary:
            return self._version < arrival[0]
        return bool(having) and not any(name in properties for properties in having)

    def lacks_machine_property(self, name: str) -> bool:
        """Whether -machine certainly takes no such property; ``cxl-fmw.0.size`` is one of ``cxl-fmw``."""
        return not {name, name.partition(".")[0]} & self.machine_properties

    def lacks_option(self, name: str) -> bool:
        """Whether it certainly has no such option."""
        return name not in VENDOR_OPTIONS | UNLISTED_OPTIONS and not any(
            name in release.options for release in self._candidates()
        )

    def lacks_machine(self, name: str) -> bool:
        """Whether it certainly has no such machine; those of the releases in between may be there."""
        try:
            version: Version | None = version_of(name.rpartition("-")[2])
        except SpecError:
            version = None
        if self._version and version and version > self._version:
            return True
        if any(name in release.machines for release in self._candidates()):
            return False
        newest = self._version or known_releases()[-1].version
        return self._is_binary or version is None or version > newest or version < known_releases()[0].version

    @property
    def object_types(self) -> frozenset[str]:
        """Every type of object that it may have."""
        return (
            frozenset(kind for release in self._candidates() for kind in release.objects)
            | OPTIONAL_OBJECTS.keys()
        )

    def properties(self, kind: str) -> frozenset[str]:
        """Every property that objects of a type may have."""
        found = (release.objects.get(kind, frozenset()) for release in self._candidates())
        return frozenset().union(*found, OPTIONAL_OBJECTS.get(kind, frozenset()))

    @property
    def machine_properties(self) -> frozenset[str]:
        """Every property that -machine may take."""
        return frozenset().union(*(release.machine_properties for release in self._candidates())) | SUGAR

    @property
    def options(self) -> dict[str, bool]:
        """Every option that it may have."""
        return {name: value for release in self._candidates() for name, value in release.options.items()}


def takes_value(option: str) -> bool | None:
    """Whether a value follows an option of QEMU's, in any release; None for what is no option at all."""
    return _all_options().get(option)


@functools.cache
def _all_options() -> dict[str, bool]:
    older = dict.fromkeys(("-curses", "-no-kvm", "-sdl", "-no-quit"), False)
    return (
        older
        | VENDOR_OPTIONS
        | UNLISTED_OPTIONS
        | {name: value for release in known_releases() for name, value in release.options.items()}
    )


def nearest(word: str, names: Iterable[str]) -> str:
    """``; did you mean 'policy'?`` for a typing error, or nothing."""
    found = difflib.get_close_matches(word[:64], list(names), 1, 0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
