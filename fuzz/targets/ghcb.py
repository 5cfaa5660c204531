"""What SEV-ES and SNP guests ask of their host: GHCB pages, the MSR protocol, page states, messages (AMD 56421)."""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from casemate.abi.sev import ghcb
from casemate.abi.sev.ghcb import ExitCode, MsrRequest
from casemate.abi.sev.guest_message import (
    AES_256_GCM,
    AUTHENTICATED_FROM,
    TAG_SIZE,
    MessageHeader,
    ReportRequest,
)
from casemate.abi.x86 import msr
from casemate.address import PAGE_SIZE, Gpa, GuestRange
from casemate.host.model.cpu.cpuid import SevCpuid
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.page_rights import PageRights
from casemate.host.model.cpu.processor import everything
from casemate.host.model.sev.ghcb import Ended, GhcbServer, JumpTable
from casemate.host.model.sev.msrs import SevMsrs
from casemate.host.model.slots import Piece, SlotTable
from casemate.host.model.snp.ap_creation import ApCreation
from casemate.host.model.snp.page_states import PageStates
from casemate.host.model.snp.psp import SnpPsp
from casemate.host.model.snp.requests import SnpRequests
from casemate.host.model.snp.rmp import Rmp
from casemate.host.slots import MemorySlot
from casemate.memory.backing import Backing
from fuzz.packed import Packed
from fuzz.target import Target, count, quick

RAM_SIZE = 0x400000
GHCB_AT, SCRATCH_AT, MESSAGE_AT, ANSWER_AT = (RAM_SIZE - n * PAGE_SIZE for n in (1, 2, 3, 4))
SHARED = (GHCB_AT, SCRATCH_AT, MESSAGE_AT, ANSWER_AT)
ASID = 1
_WORD = (1 << 64) - 1
_NEW_KEY = bytes(32)
_CODES, _KINDS = tuple(map(int, ExitCode)), tuple(map(int, MsrRequest))
_FIELDS = (ghcb.RAX, ghcb.RBX, ghcb.RCX, ghcb.RDX, ghcb.SW_SCRATCH, ghcb.CPL)

_ADDRESSES = (*SHARED, GHCB_AT + ghcb.SHARED_BUFFER, SCRATCH_AT + 0xFF8, 0, RAM_SIZE - 1, RAM_SIZE, _WORD)
_NUMBERS = (*range(17), msr.MTRR_CAP, msr.PAT, msr.EFER, ghcb.MSR_GHCB, ghcb.MSR_SEV_STATUS, 0x8000001F, 0xD)


def _address(choose: Packed) -> int:
    return choose.of((*_ADDRESSES, *_ADDRESSES, choose.bits(23), choose.bits(64)))


def _number(choose: Packed) -> int:
    numbers: tuple[int, ...] = (*_NUMBERS, choose.bits(32), choose.bits(64), _address(choose))
    return choose.of(numbers)


class Request(NamedTuple):
    """One VMGEXIT with a page; ``fields`` are in the order of ``_FIELDS``, ``missing`` of them are not marked valid."""

    code: int
    info1: int
    info2: int
    fields: tuple[int, ...]
    missing: int
    scratch: bytes
    message: tuple[int, int, int, int]
    """Number, type, VMPL of the channel and of the report, of a sealed message."""


def _request(choose: Packed) -> Request:
    code = choose.of((*_CODES, *_CODES, choose.bits(64)))
    port = choose.bits(16) << 16 | choose.below(8) << 4 | choose.below(16)
    info1, info2 = (
        choose.of((port, _number(choose), _address(choose))),
        choose.of((_number(choose), _address(choose))),
    )
    missing = choose.of((0, 0, 0, choose.bits(16)))
    fields = (*(_number(choose) for _ in range(4)), _address(choose), choose.below(4))
    message = choose.below(4), choose.of((5, 5, 5, 1, 255)), choose.below(6), choose.below(6)
    scratch = choose.bits(12).to_bytes(2, "little") + choose.below(300).to_bytes(2, "little") + bytes(4)
    scratch += b"".join(_state_entry(choose) for _ in range(3))
    return Request(code, info1, info2, fields, missing, scratch, message)


def _state_entry(choose: Packed) -> bytes:
    page, operation, large = choose.below(RAM_SIZE // PAGE_SIZE + 8), choose.below(4), choose.below(8) == 0
    return (large << 56 | operation << 52 | page << 12 | choose.of((0, 0, 1, 512, 0xFFF))).to_bytes(
        8, "little"
    )


def _by_msr(choose: Packed) -> int:
    kind, page = choose.of(_KINDS), choose.below(RAM_SIZE // PAGE_SIZE + 2)
    value = choose.of((choose.bits(52), page, choose.below(16) << 40 | page))
    return choose.of(((value << 12 | kind) & _WORD, (value << 12 | kind) & _WORD, _address(choose)))


class _Bus:
    """Answers with ones, and takes what KVM may hand on."""

    def read_port(self, port: int, size: int) -> int:
        assert _is_port(port, size)
        return _WORD

    def write_port(self, port: int, size: int, value: int) -> None:
        assert _is_port(port, size)
        assert 0 <= value < 1 << 8 * size

    def read_mmio(self, gpa: int, size: int) -> int:
        assert gpa >= 0
        assert size in (1, 2, 4, 8)
        return _WORD

    def write_mmio(self, gpa: int, size: int, value: int) -> None:
        assert gpa >= 0
        assert size in (1, 2, 4, 8)
        assert 0 <= value < 1 << 8 * size


def _is_port(port: int, size: int) -> bool:
    return 0 <= port <= 0xFFFF and size in (1, 2, 4)


class _Other:
    """A vCPU that the guest may create, and that never runs."""

    def __init__(self, number: int) -> None:
        self.number = number

    def create(self, load: Callable[[Engine], str | None], *, on_init: bool) -> None:
        """Does not look at what it would start with: that takes an engine."""

    def destroy(self) -> None:
        """It runs nothing in any case."""


class Host:
    """A guest's memory, and its host's counterpart."""

    def __init__(self, *, is_snp: bool) -> None:
        self.ram = _ram()
        self.ram.writable.view[GHCB_AT - 8 * PAGE_SIZE :] = bytes(9 * PAGE_SIZE)
        slots = SlotTable()
        slots.slots[0] = MemorySlot(0, GuestRange(Gpa(0), RAM_SIZE), self.ram.writable.hva)
        slots.writable[0] = True
        slots.add_piece(Piece(0, RAM_SIZE, self.ram.writable.hva, 0))
        self.msrs = SevMsrs(ghcb.STATUS_SEV | ghcb.STATUS_SEV_ES, sev_es=True)
        snp = None
        if is_snp:
            rmp = Rmp()
            table = mmap.mmap(-1, 2 * RAM_SIZE // PAGE_SIZE)
            self.states = PageStates(rmp, ASID, PageRights(table))
            self.states.begin([GuestRange(Gpa(0), RAM_SIZE)])
            for at in SHARED:
                self.states.change(at // PAGE_SIZE, 1, private=False)
            aps = ApCreation([_Other(0), _Other(1)], self.states, 1, lambda at, size: bytes(size))
            snp = SnpRequests(slots, self.states, SnpPsp(rmp, ASID, random=bytes), aps, lambda: 0)
        self.server = GhcbServer(
            slots, self.msrs, SevCpuid(everything(), sev_es=True), _Bus(), JumpTable(), snp
        )

    def ask(self, request: Request) -> Ended | None:
        """Write the request into memory, and hand it over."""
        view = self.ram.writable.view
        view[SCRATCH_AT : SCRATCH_AT + len(request.scratch)] = request.scratch
        view[MESSAGE_AT : MESSAGE_AT + PAGE_SIZE] = sealed(*request.message)
        words = {ghcb.SW_EXIT_CODE: request.code, ghcb.SW_EXIT_INFO_1: request.info1}
        words |= {ghcb.SW_EXIT_INFO_2: request.info2, **dict(zip(_FIELDS, request.fields, strict=True))}
        valid = 0
        for bit, (at, word) in enumerate(words.items()):
            struct.pack_into("<Q", view, GHCB_AT + at, word)
            valid |= (not request.missing >> bit & 1) << (at >> 3)
        bitmap = valid.to_bytes(ghcb.VALID_BITMAP_SIZE, "little")
        view[GHCB_AT + ghcb.VALID_BITMAP : GHCB_AT + ghcb.VALID_BITMAP + len(bitmap)] = bitmap
        self.msrs.ghcb = GHCB_AT
        return self.server.serve()


@functools.cache
def _ram() -> Backing:
    return Backing("fuzzed RAM", RAM_SIZE)


@functools.cache
def sealed(number: int, kind: int, channel: int, vmpl: int) -> bytes:
    """A message to the firmware, sealed with the key that the guest has from it."""
    header = MessageHeader(
        msg_seqno=number, algo=AES_256_GCM, hdr_version=1, hdr_size=MessageHeader.SIZE, msg_type=kind, msg_version=1,
        msg_size=ReportRequest.SIZE, msg_vmpck=channel,
    )  # fmt: skip
    payload = ReportRequest(vmpl=vmpl).to_bytes()
    nonce = number.to_bytes(12, "little")
    text = AESGCM(_NEW_KEY).encrypt(nonce, payload, header.to_bytes()[AUTHENTICATED_FROM:])
    header.authtag[:TAG_SIZE] = text[-TAG_SIZE:]
    return (header.to_bytes() + text[:-TAG_SIZE]).ljust(PAGE_SIZE, b"\0")


@quick(60)
@given(st.booleans(), st.lists(st.integers(0, (1 << 768) - 1), min_size=60, max_size=80))
def check(is_snp: bool, asked: Sequence[int]) -> None:
    """Each is served, or answered as malformed, or ends the guest."""
    host = Host(is_snp=is_snp)
    for number in asked:
        choose = Packed(number)
        if choose.below(3):
            ended = host.ask(_request(choose))
            info = struct.unpack_from("<Q", host.ram.writable.view, GHCB_AT + ghcb.SW_EXIT_INFO_1)[0]
            assert ended is not None or info in (0, 2) or host.msrs.ghcb != GHCB_AT
        else:
            host.msrs.ghcb = _by_msr(choose)
            ended = host.server.serve()
        assert ended is None or ended.text
        assert 0 <= host.msrs.ghcb <= _WORD
    count(len(asked))


TARGET = Target("ghcb", "VMGEXITs: GHCB pages, MSR protocol, page states, guest messages", check, "requests")
