"""Damaged firmware descriptors, as a distribution or a user may have them (QEMU docs/interop/firmware.json)."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from casemate.firmware.descriptors import find_firmware, find_pairs, read_descriptors
from fuzz.edits import EDITS, JSON_WORDS, damaged
from fuzz.target import Target, quick, refusals

NAMES = (
    b'"flash"',
    b'"memory"',
    b'"filename"',
    b'"uefi"',
    b'"i386"',
    b'"../../../etc/passwd"',
    b'"/\\u0000"',
    b'"raw"',
)


@functools.cache
def sound() -> tuple[bytes, ...]:
    """Descriptors of flash, with variables and without, of memory, and with what SEV guests need."""
    code = {"filename": "/usr/share/OVMF/CODE.fd", "format": "raw"}
    template = {"filename": "/usr/share/OVMF/VARS.fd", "format": "raw"}
    mappings: tuple[dict[str, Any], ...] = (
        {"device": "flash", "executable": code, "nvram-template": template},
        {"device": "flash", "mode": "stateless", "executable": code},
        {"device": "flash", "mode": "split", "executable": code, "nvram-template": template},
        {"device": "memory", "filename": "/usr/share/OVMF/CODE.fd"},
    )
    rest = {"description": "fuzzed", "interface-types": ["uefi"], "tags": []}
    targets = [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]
    return tuple(
        json.dumps(
            {**rest, "mapping": mapping, "targets": targets, "features": ["amd-sev", "acpi-s3"]}
        ).encode()
        for mapping in mappings
    )


@functools.cache
def _root(process: int) -> Path:
    root = Path(tempfile.mkdtemp(prefix=f"descriptors-{process}-"))
    for folder in ("usr/share/qemu/firmware", "etc/qemu/firmware", "usr/share/OVMF"):
        (root / folder).mkdir(parents=True)
    for name in ("CODE.fd", "VARS.fd"):
        (root / "usr/share/OVMF" / name).touch()
    (root / "usr/share/qemu/firmware/60-sound.json").write_bytes(sound()[0])
    return root


@quick(200)
@given(st.integers(0, 3), EDITS)
def check(which: int, edits: Sequence[int]) -> None:
    """It is read or passed over with a reason, and the sound one behind it is found."""
    root = _root(os.getpid())
    (root / "usr/share/qemu/firmware/50-fuzzed.json").write_bytes(
        damaged(sound()[which], edits, (*JSON_WORDS, *NAMES))
    )
    skipped: list[str] = []
    with refusals():
        list(read_descriptors(root, skipped))
    pairs = list(find_pairs([root], skipped))
    assert any(pair.why.startswith("60-sound.json") for pair in pairs)
    for pair in (*pairs, find_firmware([root])):
        assert pair.code.resolve().is_relative_to(root.resolve()), f"{pair.code} is outside of {root}"


TARGET = Target("descriptors", "firmware descriptors in JSON", check)
