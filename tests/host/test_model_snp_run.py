"""What an SNP guest may do on the modelled CPU: its instructions, page states, requests (AMD APM volume 2, 15.36)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

import pytest
from support.assembler import assemble
from support.guest_rig import RAM_SIZE, Rig

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev import ghcb
from casemate.abi.sev.ghcb import ExitCode
from casemate.abi.sev.snp import SnpPageType
from casemate.abi.sev.status import SevStatus
from casemate.address import FOUR_GIB, Gpa, GuestRange, Hva
from casemate.guests.entry import CODE32, IMAGE_SIZE, PAGE_TABLES, STACK_TOP, Bits
from casemate.host.clock import GuestClock
from casemate.host.exits import Hlt, SevTermination
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.secure_processor import SevSetup, VcpuReset
from casemate.host.snp_processor import SnpFinish, SnpUpdate

HALTED = Hlt(interrupts_enabled=False)
PAGE = 0x1000
IDT, LARGE, SPARE = 0x3000, 0x200000, 0x300000
RIGHT_CODE = 0x40
GHCB_MSR = 0xC0010130
LOAD_IDT = f"lidt [{IDT}];"
VMGEXIT = "db 0xf3; vmmcall;"
TELL = f"movzx eax, al; shl eax, 16; or eax, 0x100; xor edx, edx; mov ecx, {GHCB_MSR}; wrmsr; {VMGEXIT} hlt"
"""Ends the guest; AL is the reason that is told."""
TELL_RESULT = "setb bl; shl bl, 7; or al, bl;" + TELL
"""AL is EAX of the instruction before, and bit 7 its carry flag."""
ASK_AT_SPARE = f"mov ecx, {GHCB_MSR}; mov eax, {SPARE}; xor edx, edx; wrmsr; {VMGEXIT} hlt"
VMGEXIT_AT_SPARE = f"mov al, [{SPARE}];" + ASK_AT_SPARE
"""In 64-bit code whose page tables know no C-bit: touch the page, so that it is shared, and ask with it as GHCB."""


class SnpRig(Rig):
    """A rig whose guest is launched with its image, and the pages that the image needs before it runs ``code``."""

    def __init__(self, code: str, bits: Bits = 32) -> None:
        setup = SevSetup(VmType.SNP)
        self.model = ModelHypervisor(GuestClock()).create_vm(GuestKind.SNP, setup)
        super().__init__(code, bits, self.model)
        self.add(5, SPARE + PAGE, RAM_SIZE - SPARE - PAGE, Hva(self.ram.writable.hva + SPARE + PAGE))
        processor = self.vm.snp_processor
        assert processor is not None
        self.processor = processor
        processor.launch_start(0x30000, bytes(16))
        for start, size in ((0, 0xF0000), (0x100000, 0x300000), (FOUR_GIB - IMAGE_SIZE, IMAGE_SIZE)):
            processor.set_private(GuestRange(Gpa(start), size))
        self._launch(FOUR_GIB - IMAGE_SIZE, bytes(self.rom.writable.view))
        self._launch(IDT, self._not_validated_handler())
        for gpa, pages in ((STACK_TOP - PAGE, 1), (PAGE_TABLES, 6)):
            self._launch(gpa, bytes(pages * PAGE))
        processor.launch_finish(SnpFinish(), (VcpuReset(0xFFFFFFF0, 0x800F12),))

    def add(self, number: int, gpa: int, size: int, hva: Hva, *, readonly: bool = False) -> None:
        super().add(number, gpa, size, hva)

    def ghcb(self, code: int, *, info1: int = 0, info2: int = 0, **fields: int) -> None:
        """Write a request into the page that both see."""
        view = self.ram.writable.view
        numbers = {ghcb.SW_EXIT_CODE: code, ghcb.SW_EXIT_INFO_1: info1, ghcb.SW_EXIT_INFO_2: info2}
        numbers |= {getattr(ghcb, name): value for name, value in fields.items()}
        valid = 0
        for offset, value in numbers.items():
            struct.pack_into("<Q", view, SPARE + offset, value)
            valid |= 1 << (offset >> 3)
        view[SPARE + ghcb.VALID_BITMAP : SPARE + ghcb.VALID_BITMAP + 16] = valid.to_bytes(16, "little")

    def answer(self) -> tuple[int, int]:
        """``SW_EXIT_INFO_1`` and ``_2`` after the request."""
        return struct.unpack("<QQ", self.ram_at(SPARE + ghcb.SW_EXIT_INFO_1, 16))

    def _launch(self, gpa: int, contents: bytes) -> None:
        buffer = ctypes.create_string_buffer(contents, len(contents))
        update = SnpUpdate(Gpa(gpa), Hva(ctypes.addressof(buffer)), len(contents), SnpPageType.NORMAL)
        self.processor.launch_update(update)

    @staticmethod
    def _not_validated_handler() -> bytes:
        """A page with an IDT and a handler of #VC that tells whether the error code is 0x404."""
        page = bytearray(PAGE)
        handler = IDT + 0x800
        page[:6] = struct.pack("<HI", 8 * 32 - 1, IDT + 0x100)
        gate = struct.pack("<HHHH", handler & 0xFFFF, CODE32, 0x8E00, handler >> 16)
        page[0x100 + 8 * 29 : 0x100 + 8 * 30] = gate
        code = assemble("pop eax; cmp eax, 0x404; sete al; shl al, 6;" + TELL)
        page[0x800 : 0x800 + len(code)] = code
        return bytes(page)


def told(code: str) -> int:
    """What a 32-bit guest tells at its end. All that it touches is private."""
    with SnpRig(LOAD_IDT + code) as rig:
        ended = rig.run()
        assert isinstance(ended, SevTermination), ended
        return int(ended.detail.rpartition("code ")[2].split()[0], 16)


def pvalidate(gpa: int, *, large: int = 0, validate: int = 1) -> str:
    return f"mov eax, {gpa}; mov ecx, {large}; mov edx, {validate}; pvalidate;"


def rmpadjust(gpa: int, attributes: int) -> str:
    # RMPADJUST, which the assembler knows in 64-bit code only
    return f"mov eax, {gpa}; mov ecx, 0; mov edx, {attributes}; db 0xf3, 0x0f, 0x01, 0xfe;"


def state_request(gpa: int, operation: int) -> str:
    low, high = gpa | 0x14, operation << 20
    return f"mov ecx, {GHCB_MSR}; mov eax, {low}; mov edx, {high}; wrmsr; {VMGEXIT}"


STORE, LOAD = f"mov byte [{SPARE}], 0x5a;", f"mov al, [{SPARE}];"
"""To and from SPARE."""


@pytest.mark.parametrize(
    ("code", "result"),
    [
        (pvalidate(SPARE), 0),
        (pvalidate(SPARE) + pvalidate(SPARE), 0x80),
        (pvalidate(SPARE, validate=0), 0x80),
        (pvalidate(SPARE) + pvalidate(SPARE, validate=0), 0),
        (pvalidate(LARGE, large=1), 0),
        (pvalidate(LARGE, large=1) + pvalidate(LARGE, large=1), 0x80),
        (pvalidate(SPARE) + pvalidate(LARGE, large=1), 6),
        (pvalidate(SPARE, large=1), 1),
        (pvalidate(SPARE) + rmpadjust(SPARE, 0x0F01), 0),
        (pvalidate(SPARE) + rmpadjust(SPARE, 0x0F00), 2),
        (pvalidate(SPARE) + rmpadjust(SPARE, 0x0F04), 1),
    ],
    ids=[
        "take", "take twice", "give up what is not taken", "give up", "take 2 MiB", "take 2 MiB twice",
        "2 MiB of 4 KiB pages", "2 MiB misaligned", "adjust", "adjust own level", "adjust no level",
    ],
)  # fmt: skip
def test_instructions_return_what_the_processor_does(code: str, result: int) -> None:
    assert told(code + TELL_RESULT) == result


@pytest.mark.parametrize(
    "access", [STORE, LOAD, f"mov eax, {SPARE}; jmp eax;"], ids=["write", "load", "fetch"]
)
def test_page_that_the_guest_did_not_take_raises_vc(access: str) -> None:
    assert told(access + "xor eax, eax;" + TELL) == RIGHT_CODE
    assert told(pvalidate(SPARE) + STORE + pvalidate(SPARE, validate=0) + access + TELL) == RIGHT_CODE


def test_taken_page_holds_what_the_guest_stores_and_the_host_sees_nothing() -> None:
    with SnpRig(LOAD_IDT + pvalidate(SPARE) + STORE + "mov al, 0;" + LOAD + TELL) as rig:
        ended = rig.run()
        assert isinstance(ended, SevTermination)
        assert "code 0x5a" in ended.detail
        assert rig.ram_at(SPARE, 1) == b"\0"


def test_page_that_the_host_took_back_must_be_taken_again() -> None:
    shared = pvalidate(SPARE) + pvalidate(SPARE, validate=0) + state_request(SPARE, ghcb.TO_SHARED)
    assert told(shared + LOAD + TELL) == RIGHT_CODE
    again = shared + state_request(SPARE, ghcb.TO_PRIVATE)
    assert told(again + LOAD + TELL) == RIGHT_CODE
    assert told(again + pvalidate(SPARE) + TELL_RESULT) == 0


def test_pvalidate_of_a_shared_page_ends_in_a_nested_page_fault() -> None:
    code = state_request(SPARE, ghcb.TO_SHARED) + pvalidate(SPARE) + TELL_RESULT
    with SnpRig(LOAD_IDT + code) as rig:
        ended = rig.run()
        assert isinstance(ended, SevTermination)
        assert "PVALIDATE of 0x300000: nested page fault" in ended.detail


def test_shared_access_makes_the_page_shared_as_qemu_does() -> None:
    with SnpRig(STORE + "hlt", bits=64) as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(SPARE, 1) == b"\x5a"
        assert rig.vm.guest_requests()["page_states"]["shared unasked"] == 1


def test_ghcb_that_is_not_shared_ends_the_guest() -> None:
    with SnpRig(ASK_AT_SPARE) as rig:
        ended = rig.run()
        assert isinstance(ended, SevTermination)
        assert "did not share" in ended.detail


def entry(gpa: int, operation: int, *, large: int = 0, done: int = 0) -> int:
    return done | gpa & ~0xFFF | operation << 52 | large << 56


@pytest.mark.parametrize(
    ("header", "entries", "info", "current"),
    [
        ((0, 1), (entry(0x301000, 2), entry(0x302000, 2)), 0, 2),
        ((1, 1), (entry(0x999000, 2), entry(0x302000, 2)), 0, 2),
        ((0, 0), (entry(LARGE, 2, large=1, done=0),), 0, 1),
        ((0, 253), (), ghcb.PSC_INVALID_HEADER, 0),
        ((0, 1), (entry(0x301000, 2), entry(0x302000, 7)), ghcb.PSC_INVALID_ENTRY, 1),
        ((0, 0), (entry(0x90000000, 1),), ghcb.PSC_INVALID_ENTRY, 0),
        ((0, 0), (entry(SPARE, 2, large=1),), ghcb.PSC_INVALID_ENTRY, 0),
        ((0, 0), (entry(0x301000, 2, done=2),), ghcb.PSC_INVALID_ENTRY, 0),
    ],
)
def test_page_state_changes_by_list(
    header: tuple[int, int], entries: tuple[int, ...], info: int, current: int
) -> None:
    with SnpRig(VMGEXIT_AT_SPARE, bits=64) as rig:
        rig.ghcb(ExitCode.PAGE_STATE_CHANGE, SW_SCRATCH=SPARE + ghcb.SHARED_BUFFER)
        at = SPARE + ghcb.SHARED_BUFFER
        struct.pack_into("<HHI", rig.ram.writable.view, at, *header, 0)
        struct.pack_into(f"<{len(entries)}Q", rig.ram.writable.view, at + ghcb.PSC_HEADER, *entries)
        assert rig.run() == HALTED
        assert rig.answer() == (0, info)
        assert struct.unpack("<H", rig.ram_at(at, 2))[0] == current


class Monitor:
    """Makes pages what they are touched as, and what the guest asks for if it ``agrees``; ``asked`` is what it was."""

    def __init__(self, rig: SnpRig, *, agrees: bool = True) -> None:
        self.asked: list[tuple[str, int, int, bool]] = []
        assert rig.model.page_states is not None
        self._states, self._agrees = rig.model.page_states, agrees
        self._states.host = self

    def change_pages(self, page: int, count: int, *, private: bool) -> bool:
        self.asked.append(("change", page, count, private))
        return self._agrees and self._states.change(page, count, private=private)

    def pages_touched(self, page: int, *, private: bool) -> None:
        self.asked.append(("touched", page, 1, private))
        self._states.change(page, 1, private=private)


@pytest.mark.parametrize(
    ("agrees", "info", "current", "asked"),
    [(True, 0, 3, [(0x301, 2), (0x304, 1)]), (False, ghcb.PSC_GENERIC, 0, [(0x301, 2)])],
)
def test_monitor_is_asked_once_about_pages_that_follow_each_other(
    agrees: bool, info: int, current: int, asked: list[tuple[int, int]]
) -> None:
    entries = entry(0x301000, 2), entry(0x302000, 2), entry(0x304000, 2)
    with SnpRig(VMGEXIT_AT_SPARE, bits=64) as rig:
        monitor = Monitor(rig, agrees=agrees)
        rig.ghcb(ExitCode.PAGE_STATE_CHANGE, SW_SCRATCH=SPARE + ghcb.SHARED_BUFFER)
        at = SPARE + ghcb.SHARED_BUFFER
        struct.pack_into("<HHI", rig.ram.writable.view, at, 0, len(entries) - 1, 0)
        struct.pack_into(f"<{len(entries)}Q", rig.ram.writable.view, at + ghcb.PSC_HEADER, *entries)
        assert rig.run() == HALTED
        assert rig.answer() == (0, info)
        assert struct.unpack("<H", rig.ram_at(at, 2))[0] == current
    assert ("touched", SPARE // PAGE, 1, False) in monitor.asked
    changes = [row for row in monitor.asked if row[0] == "change"]
    assert changes == [("change", page, count, False) for page, count in asked]


def test_monitor_makes_a_shared_page_private_that_the_guest_takes() -> None:
    code = state_request(SPARE, ghcb.TO_SHARED) + pvalidate(SPARE) + TELL_RESULT
    with SnpRig(LOAD_IDT + code) as rig:
        monitor = Monitor(rig)
        ended = rig.run()
    assert isinstance(ended, SevTermination)
    assert "code 0x0" in ended.detail
    assert monitor.asked == [("change", SPARE // PAGE, 1, False), ("touched", SPARE // PAGE, 1, True)]


def test_page_that_the_monitor_would_not_share_stays_the_guests() -> None:
    code = pvalidate(SPARE) + STORE + state_request(SPARE, ghcb.TO_SHARED) + "mov al, 0;" + LOAD + TELL
    with SnpRig(LOAD_IDT + code) as rig:
        Monitor(rig, agrees=False)
        ended = rig.run()
    assert isinstance(ended, SevTermination)
    assert "code 0x5a" in ended.detail


@pytest.mark.parametrize(
    ("code", "fields", "answer"),
    [
        (ExitCode.HV_FEATURES, {}, (0, ghcb.HV_FEATURE_SNP | ghcb.HV_FEATURE_AP_CREATION)),
        (ExitCode.AP_CREATION, {"info1": 1 << 32 | 1, "RAX": 1}, (2, 5)),
        (ExitCode.GUEST_REQUEST, {"info1": 0x302000, "info2": 0x303000}, (2, 3)),
        (ExitCode.GUEST_REQUEST, {"info1": SPARE, "info2": SPARE}, (2, 3)),
        (
            ExitCode.EXTENDED_GUEST_REQUEST,
            {"info1": 0x301000, "info2": 0x302000, "RAX": 0x303000, "RBX": 1},
            (2, 3),
        ),
        (ExitCode.PAGE_STATE_CHANGE, {"SW_SCRATCH": 0x302000}, (2, 3)),
    ],
    ids=[
        "features",
        "second vCPU",
        "private pages",
        "one page for both",
        "private room",
        "list in a private page",
    ],
)
def test_requests_by_ghcb(code: int, fields: dict[str, int], answer: tuple[int, int]) -> None:
    with SnpRig(VMGEXIT_AT_SPARE, bits=64) as rig:
        rig.ghcb(code, **fields)
        assert rig.run() == HALTED
        assert rig.answer() == answer


def test_firmware_status_of_a_refused_message_is_told_to_the_guest() -> None:
    touch = "mov al, [0x301000]; mov al, [0x302000];"
    with SnpRig(touch + VMGEXIT_AT_SPARE, bits=64) as rig:
        rig.ghcb(ExitCode.GUEST_REQUEST, info1=0x301000, info2=0x302000)
        assert rig.run() == HALTED
        assert rig.answer() == (0, SevStatus.INVALID_PARAM)


@pytest.fixture
def two_guests() -> Iterator[tuple[SnpRig, SnpRig]]:
    with SnpRig(LOAD_IDT + LOAD + TELL) as first, SnpRig(LOAD_IDT + pvalidate(SPARE) + TELL_RESULT) as second:
        yield first, second


def test_each_guest_has_its_own_table(two_guests: tuple[SnpRig, SnpRig]) -> None:
    first, second = two_guests
    assert "code 0x0 " in f"{second.run()} "
    assert f"code {RIGHT_CODE:#x}" in str(first.run())
