"""Sizes and offsets of AMD's structs against the manual's table."""

from __future__ import annotations

import ctypes

import pytest

from casemate.abi.sev.vmsa import SaveArea, VmcbSegment


@pytest.mark.parametrize("struct", [SaveArea, VmcbSegment])
def test_struct_has_the_size_of_the_manual(struct: type[SaveArea] | type[VmcbSegment]) -> None:
    assert ctypes.sizeof(struct) == struct.SIZE


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("tr", 0x90),
        ("vmpl", 0xCA),
        ("cpl", 0xCB),
        ("efer", 0xD0),
        ("xss", 0x140),
        ("cr0", 0x158),
        ("rip", 0x178),
        ("g_pat", 0x268),
        ("rdx", 0x310),
        ("sev_features", 0x3B0),
        ("xcr0", 0x3E8),
        ("mxcsr", 0x408),
        ("x87_fcw", 0x410),
    ],
)
def test_field_is_where_the_manual_has_it(name: str, offset: int) -> None:
    assert getattr(SaveArea, name).offset == offset
