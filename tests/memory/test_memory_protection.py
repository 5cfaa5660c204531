"""The whole protection table, row by row."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.errors import SpecError, UnsupportedError
from casemate.host.capabilities import VmCapabilities
from casemate.memory.protection import OnWrite, ProtectionChoice, WriteProtection, choose

if TYPE_CHECKING:
    from casemate.memory.protection import Requested

YES, NO = VmCapabilities(readonly_memory=True), VmCapabilities(readonly_memory=False)
PLAIN, SEV, ES, SNP, TDX = GuestKind
SLOT, VMA, VIEW, UFFD, RAM = WriteProtection
BOTH = (YES, NO)

AUTO_ROWS = [
    ((PLAIN,), False, (YES,), SLOT),
    ((PLAIN,), False, (NO,), UnsupportedError),
    ((SEV, ES, SNP, TDX), False, BOTH, RAM),
    ((PLAIN, SEV), True, (YES,), SLOT),
    ((PLAIN, SEV), True, (NO,), UnsupportedError),
    ((ES,), True, (YES,), SLOT),
    ((ES,), True, (NO,), VMA),
    ((SNP, TDX), True, BOTH, SpecError),
]


@pytest.mark.parametrize(
    ("kind", "flash", "capabilities", "expected"),
    [(k, flash, c, expected) for kinds, flash, caps, expected in AUTO_ROWS for k in kinds for c in caps],
)
def test_protection_auto(
    kind: GuestKind, flash: bool, capabilities: VmCapabilities, expected: WriteProtection | type[Exception]
) -> None:
    if isinstance(expected, WriteProtection):
        assert choose(kind, flash=flash, capabilities=capabilities).protection is expected
    else:
        with pytest.raises(expected):
            choose(kind, flash=flash, capabilities=capabilities)


WORDS: tuple[Requested, ...] = ("auto", "slot", "vma", "view", "uffd")
RequestRow = tuple[GuestKind, bool, VmCapabilities, "Requested", OnWrite | None, object]
REQUEST_ROWS: list[RequestRow] = [
    (PLAIN, True, YES, "vma", None, SpecError),
    (PLAIN, True, YES, "view", None, SpecError),
    (SEV, True, YES, "vma", None, SpecError),
    (PLAIN, True, YES, "vma", OnWrite.DROP, VMA),
    (PLAIN, True, NO, "vma", OnWrite.KILL, VMA),
    (PLAIN, True, NO, "view", OnWrite.KILL, VIEW),
    (SEV, True, YES, "view", OnWrite.KILL, VIEW),
    (PLAIN, True, YES, "slot", OnWrite.KILL, SLOT),
    (PLAIN, True, NO, "slot", None, UnsupportedError),
    (PLAIN, False, YES, "slot", None, SLOT),
    (PLAIN, False, YES, "vma", None, SpecError),
    (PLAIN, False, NO, "slot", None, UnsupportedError),
    (ES, True, YES, "vma", None, VMA),
    (ES, True, YES, "slot", None, SLOT),
    (ES, True, NO, "slot", None, UnsupportedError),
    (ES, True, NO, "vma", OnWrite.KILL, VMA),
    (ES, True, NO, "view", None, VIEW),
    (ES, True, NO, "vma", OnWrite.DROP, SpecError),
    (ES, False, YES, "slot", None, SpecError),
    (SNP, True, NO, "vma", None, SpecError),
    (TDX, False, NO, "view", None, SpecError),
    (PLAIN, True, YES, "uffd", None, SpecError),
    (PLAIN, True, YES, "uffd", OnWrite.KILL, UFFD),
    (SEV, True, YES, "uffd", OnWrite.DROP, UFFD),
    (ES, True, NO, "uffd", None, UFFD),
    (ES, True, NO, "uffd", OnWrite.DROP, SpecError),
    (PLAIN, False, YES, "uffd", OnWrite.KILL, SpecError),
    (SNP, True, NO, "uffd", OnWrite.KILL, SpecError),
    (PLAIN, True, YES, "vma", OnWrite.ALLOW_ONCE, VMA),
    (PLAIN, True, YES, "uffd", OnWrite.ALLOW_ONCE, UFFD),
    (PLAIN, True, YES, "auto", OnWrite.ALLOW_ONCE, SpecError),
    (ES, True, NO, "auto", OnWrite.ALLOW_ONCE, SpecError),
    (ES, True, YES, "vma", OnWrite.ALLOW_ONCE, SpecError),
]


def ask(
    kind: GuestKind, flash: bool, capabilities: VmCapabilities, requested: Requested, on_write: OnWrite | None
) -> ProtectionChoice | SpecError | UnsupportedError:
    try:
        return choose(kind, flash=flash, capabilities=capabilities, requested=requested, on_write=on_write)
    except (SpecError, UnsupportedError) as refusal:
        return refusal


@pytest.mark.parametrize("row", REQUEST_ROWS)
def test_protection_on_request(row: RequestRow) -> None:
    answer, expected = ask(*row[:5]), row[5]
    assert (answer.protection if isinstance(answer, ProtectionChoice) else type(answer)) is expected


def test_protection_table_answers_every_question_and_explains_itself() -> None:
    for question in itertools.product(GuestKind, (True, False), BOTH, WORDS, (None, *OnWrite)):
        answer = ask(*question)
        if isinstance(answer, ProtectionChoice):
            assert answer.reason
            others = [rejected.protection for rejected in answer.rejected]
            assert others == [p for p in WriteProtection if p is not answer.protection]
            assert all(rejected.reason for rejected in answer.rejected)
        else:
            assert str(question[0]) in answer.cause
            assert answer.remedy


@pytest.mark.parametrize("kind", [PLAIN, SEV, SNP, TDX])
def test_protection_refusal_of_flash_names_bios(kind: GuestKind) -> None:
    with pytest.raises((UnsupportedError, SpecError), match="--bios"):
        choose(kind, flash=True, capabilities=NO)


def test_protection_warns_once_where_kvm_has_no_read_only_memory() -> None:
    warning = choose(ES, flash=True, capabilities=NO).warning
    assert warning is not None
    assert "no read-only memory" in warning
    assert "--bios" in warning
    assert choose(ES, flash=True, capabilities=YES).warning is None
    assert choose(PLAIN, flash=True, capabilities=YES).warning is None


def test_protection_names_the_livelock_of_read_only_slots() -> None:
    assert "for ever" in choose(ES, flash=True, capabilities=YES).reason


def test_protection_view_says_it_is_unproven_on_sev() -> None:
    warning = choose(ES, flash=True, capabilities=NO, requested="view").warning
    assert warning is not None
    assert "not been seen" in warning


@pytest.mark.parametrize("kind", [SEV, ES, SNP, TDX])
@pytest.mark.parametrize("capabilities", BOTH)
def test_protection_never_arms_bios_of_a_confidential_guest(
    kind: GuestKind, capabilities: VmCapabilities
) -> None:
    assert choose(kind, flash=False, capabilities=capabilities).protection is RAM
