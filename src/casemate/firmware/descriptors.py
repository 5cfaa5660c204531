"""Firmware descriptors and the usual folders: which pair is installed (QEMU docs/interop/firmware.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from casemate.errors import ImageError, UnsupportedError

SYSTEM_ROOTS = (Path("/"),)
ROOTS_VARIABLE = "CASEMATE_FIRMWARE"
"""Environment variable: folders of unpacked packages, separated by colons, searched before the system."""

_FOLDERS = ("etc/qemu/firmware", "usr/share/qemu/firmware")
"""Highest precedence first; a file name in one hides the same name in the next."""

_KNOWN_PAIRS = (
    ("usr/share/OVMF", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("usr/share/OVMF", "OVMF_CODE.fd", "OVMF_VARS.fd"),
    ("usr/share/edk2/x64", "OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ("usr/share/edk2/ovmf", "OVMF_CODE.fd", "OVMF_VARS.fd"),
    ("usr/share/edk2-ovmf", "OVMF_CODE.fd", "OVMF_VARS.fd"),
    ("usr/share/qemu", "edk2-x86_64-code.fd", "edk2-i386-vars.fd"),
    ("usr/share/qemu", "ovmf-x86_64-code.bin", "ovmf-x86_64-vars.bin"),
)
"""Debian, Arch, Fedora, Gentoo, QEMU's own build, openSUSE."""

_REMEDY = (
    "install it (Debian, Ubuntu: ovmf; Fedora, Arch: edk2-ovmf), or name the files with --code and --vars"
)


class Descriptor(NamedTuple):
    """What one descriptor says; paths are inside ``root``."""

    path: Path
    description: str
    device: str
    """``flash``, ``memory`` or ``kernel``."""
    executable: Path
    vars_template: Path | None
    formats: tuple[str, ...]
    """Of ``files``, in their order: ``raw``, ``qcow2``."""
    interfaces: tuple[str, ...]
    """``uefi``, ``bios`` or others."""
    architectures: tuple[str, ...]
    features: tuple[str, ...]
    mode: str = "split"
    """Of flash: ``split``, ``combined`` or ``stateless``."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it names."""
        return (self.executable,) if self.vars_template is None else (self.executable, self.vars_template)

    def refusal(self) -> str | None:
        """Why a plain x86_64 guest without SMM cannot boot from this in flash, or None if it can."""
        if "x86_64" not in self.architectures:
            return f"for {', '.join(self.architectures) or 'no architecture'}"
        if "uefi" not in self.interfaces:
            return f"offers {', '.join(self.interfaces) or 'nothing'}, not uefi"
        if self.device != "flash":
            return f"mapped as {self.device}, not as flash"
        if others := set(self.formats) - {"raw"}:
            return f"in format {', '.join(sorted(others))}"
        if "requires-smm" in self.features:
            return "requires-smm"
        missing = [str(path) for path in self.files if not path.is_file()]
        return f"{missing[0]} is not there" if missing else None


class FirmwarePair(NamedTuple):
    """CODE, the template of its VARS (None for a stateless image), why, and what was passed over."""

    code: Path
    vars_template: Path | None
    why: str
    skipped: tuple[str, ...] = ()


def firmware_roots(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The folders to search: those that the environment names, then the system."""
    named = environ.get(ROOTS_VARIABLE, "")
    return (*(Path(part) for part in named.split(":") if part), *SYSTEM_ROOTS)


def find_firmware(
    roots: Sequence[Path] = SYSTEM_ROOTS, unfit: Callable[[Path], str | None] = lambda code: None
) -> FirmwarePair:
    """The first of ``find_pairs`` whose code is not ``unfit``. Raises UnsupportedError if there is none."""
    skipped: list[str] = []
    for pair in find_pairs(roots, skipped):
        if (refusal := unfit(pair.code)) is None:
            return pair._replace(skipped=tuple(skipped))
        skipped.append(f"{pair.code}: {refusal}")
    passed_over = f" (passed over: {'; '.join(skipped)})" if skipped else ""
    raise UnsupportedError(f"no x86_64 guest firmware found{passed_over}", _REMEDY)


def find_pairs(roots: Sequence[Path], skipped: list[str]) -> Iterator[FirmwarePair]:
    """Every pair that a plain x86_64 guest can boot; what is passed over on the way is appended to ``skipped``.

    Roots in order; in each the descriptors by precedence, then the usual names.
    """
    for root in roots:
        for descriptor in read_descriptors(root, skipped):
            if (refusal := descriptor.refusal()) is None:
                why = f"{descriptor.path.name}: {descriptor.description}"
                yield FirmwarePair(descriptor.executable, descriptor.vars_template, why, tuple(skipped))
            else:
                skipped.append(f"{descriptor.path.name}: {refusal}")
        for folder, code, variables in _KNOWN_PAIRS:
            if (root / folder / code).is_file() and (root / folder / variables).is_file():
                why = f"{code} in its usual folder {root / folder}"
                yield FirmwarePair(root / folder / code, root / folder / variables, why, tuple(skipped))


def read_descriptors(root: Path = SYSTEM_ROOTS[0], skipped: list[str] | None = None) -> Iterator[Descriptor]:
    """The descriptors of ``root`` by precedence; broken ones are left out, the reason goes to ``skipped``."""
    by_name: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in (root / folder).glob("*.json"):
            by_name.setdefault(path.name, path)
    for name in sorted(by_name):
        try:
            descriptor = parse_descriptor(by_name[name], root)
        except ImageError as error:
            if skipped is not None:
                skipped.append(str(error))
        else:
            if descriptor is not None:
                yield descriptor


def parse_descriptor(path: Path, root: Path = SYSTEM_ROOTS[0]) -> Descriptor | None:
    """Read one descriptor; None if it is empty, which hides it. Raises ImageError if it is malformed."""
    try:
        text = path.read_text("utf-8")
        return _descriptor(json.loads(text), path, root) if text.strip() else None
    except (OSError, ValueError, RecursionError) as error:
        raise ImageError(
            path, f"cannot be read as JSON: {error}", "repair or remove the descriptor"
        ) from None
    except (KeyError, TypeError, AttributeError) as error:
        cause = f"no firmware descriptor: {type(error).__name__} {error}"
        raise ImageError(path, cause, "repair or remove the descriptor") from None


def _descriptor(content: dict[str, Any], path: Path, root: Path) -> Descriptor:
    mapping = content["mapping"]
    device = str(mapping["device"])
    # Files in flash come with their format, files in memory are raw and named directly.
    executable = mapping["executable"] if device == "flash" else mapping
    template = mapping.get("nvram-template")
    files = [executable] if template is None else [executable, template]
    return Descriptor(
        path=path,
        description=str(content.get("description", "")),
        device=device,
        executable=_inside(root, executable["filename"]),
        vars_template=_inside(root, template["filename"]) if template else None,
        formats=tuple(str(file.get("format", "raw")) for file in files),
        interfaces=tuple(str(interface) for interface in content["interface-types"]),
        architectures=tuple(str(target["architecture"]) for target in content["targets"]),
        features=tuple(str(feature) for feature in content["features"]),
        mode=str(mapping.get("mode", "split")),
    )


_LONGEST_NAME, _LONGEST_PATH = 255, 3000
"""Bytes of one name and of a whole path (Linux linux/limits.h), with room for the root in front."""


def _inside(root: Path, filename: str) -> Path:
    if (
        "\0" in filename
        or len(os.fsencode(filename)) > _LONGEST_PATH
        or any(len(os.fsencode(part)) > _LONGEST_NAME for part in filename.split("/"))
    ):
        raise ValueError(f"{filename[:80]!r} is no file name")
    return root / filename.lstrip("/")
