"""Save areas: reset values where the manual has them, and what legacy set-up leaves out."""

from __future__ import annotations

import hashlib

import pytest

from casemate.digest.sev_init import SevInit
from casemate.digest.vmsa_pages import RESET_VECTOR, vmsa_page, vmsa_pages

EPYC = 0x800F12


def test_first_vcpu_page_is_the_known_one() -> None:
    page = vmsa_page(RESET_VECTOR, EPYC, 0, SevInit.INIT2)
    assert len(page) == 4096
    expected = "8295cef559b57130391d59605890ef93297720b48bef9a8c3c985b9c3fb0788c"
    assert hashlib.sha256(page).hexdigest() == expected


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (0x10, 2, 0xF000),
        (0x18, 8, 0x800000),
        (0xD0, 8, 0x1000),
        (0x148, 8, 0x40),
        (0x158, 8, 0x10),
        (0x160, 8, 0x400),
        (0x168, 8, 0xFFFF0FF0),
        (0x170, 8, 2),
        (0x178, 8, 0xB004),
        (0x268, 8, 0x0007040600070406),
        (0x310, 8, EPYC),
        (0x3B0, 8, 0x20),
        (0x3E8, 8, 1),
        (0x408, 4, 0x1F80),
        (0x410, 2, 0x37F),
    ],
)
def test_register_is_where_the_manual_puts_it(offset: int, size: int, value: int) -> None:
    page = vmsa_page(0x80B004, EPYC, 0x20, SevInit.INIT2)
    assert int.from_bytes(page[offset : offset + size], "little") == value


def test_legacy_differs_in_the_fpu_words_alone() -> None:
    init2, legacy = (vmsa_page(RESET_VECTOR, EPYC, 0, init) for init in (SevInit.INIT2, SevInit.LEGACY))
    differing = [offset for offset in range(4096) if init2[offset] != legacy[offset]]
    assert differing == [0x408, 0x409, 0x410, 0x411]


def test_other_vcpus_share_one_page() -> None:
    first, second, third = vmsa_pages(3, 0x80B004, EPYC, 0, SevInit.INIT2)
    assert second is third
    assert first == vmsa_page(RESET_VECTOR, EPYC, 0, SevInit.INIT2)
