"""Serves VMGEXIT: what a SEV-ES guest asks of its host by GHCB page or MSR (AMD 56421; Linux arch/x86/kvm/svm/sev.c).

Port and MMIO requests reach the same bus as the accesses of a plain guest.
"""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from casemate.abi.sev import ghcb
from casemate.abi.sev.ghcb import ExitCode, MsrRequest
from casemate.host.hypervisor import IoBus
from casemate.host.model import hypercalls
from casemate.host.model.cpu.cpuid import C_BIT, CpuidTable
from casemate.host.model.sev.msrs import SevMsrs
from casemate.host.model.slots import SlotTable
from casemate.host.model.snp.ap_creation import Request
from casemate.host.model.snp.requests import SnpRequests

_CONSTANT_ANSWERS: dict[int, dict[int, int]] = {
    ExitCode.READ_DR7: {ghcb.DR7: 0x400},
    ExitCode.WRITE_DR7: {},
    ExitCode.WBINVD: {},
    ExitCode.INVD: {},
    ExitCode.MONITOR: {},
    ExitCode.MWAIT: {},
    ExitCode.NMI_COMPLETE: {},
    ExitCode.RDPMC: {ghcb.RAX: 0, ghcb.RDX: 0},
}
_MALFORMED, _MISSING_INPUT, _INVALID_INPUT = 2, 3, 5
"""SW_EXIT_INFO_1, and what may be in _2, of a request that cannot be served."""
_OF_SNP = frozenset(
    {
        ExitCode.PAGE_STATE_CHANGE,
        ExitCode.GUEST_REQUEST,
        ExitCode.EXTENDED_GUEST_REQUEST,
        ExitCode.AP_CREATION,
    }
)
"""Served for an SNP guest."""
_ALWAYS_NEEDED = (ghcb.SW_EXIT_CODE, ghcb.SW_EXIT_INFO_1, ghcb.SW_EXIT_INFO_2)


class Ended(NamedTuple):
    """The guest asked for its own end, or for something that no host does; ``text`` says what."""

    text: str


class JumpTable:
    """Where the guest's firmware said that its other vCPUs find where to go (AMD 56421, 4.3.1); 0 is nowhere."""

    def __init__(self) -> None:
        self.address = 0


class GhcbServer:
    """One vCPU's counterpart. ``requests`` counts by exit code, or by name for the MSR protocol.

    ``snp`` serves what only an SNP guest may ask, None for SEV-ES guests.
    """

    def __init__(
        self,
        memory: SlotTable,
        msrs: SevMsrs,
        cpuid: CpuidTable,
        bus: IoBus,
        jump_table: JumpTable,
        snp: SnpRequests | None = None,
    ) -> None:
        self.requests: Counter[str] = Counter()
        self._memory = memory
        self._msrs = msrs
        self._cpuid = cpuid
        self._bus = bus
        self._snp = snp
        self._jump_table = jump_table
        self.hold: Callable[[Callable[[], None]], None] | None = None
        """Keeps the vCPU until a start-up IPI, and calls what it is given then; None where there is no other vCPU."""

    @property
    def msr(self) -> int:
        """The GHCB MSR."""
        return self._msrs.ghcb

    def serve(self) -> Ended | None:
        """One VMGEXIT; what the guest is told is in its GHCB or in the GHCB MSR."""
        request = self._msrs.ghcb
        if request & 0xFFF:
            return self._serve_msr(request)
        hva = self._memory.hva(request, ghcb.PAGE_SIZE, writable=True)
        if hva is None:
            return Ended(f"VMGEXIT with the GHCB at {request:#x}, where no memory is")
        if self._snp is not None and not self._snp.may_touch(request, ghcb.PAGE_SIZE):
            return Ended(f"VMGEXIT with the GHCB at {request:#x}, which the guest did not share")
        return self._serve_page(_Page(hva))

    def _serve_msr(self, request: int) -> Ended | None:
        kind = request & 0xFFF
        self.requests[f"msr {kind:#05x}"] += 1
        match kind:
            case MsrRequest.SEV_INFO_REQUEST:
                versions = ghcb.PROTOCOL_MAX << 48 | ghcb.PROTOCOL_MIN << 32
                self._msrs.ghcb = versions | C_BIT << 24 | MsrRequest.SEV_INFO_RESPONSE
            case MsrRequest.CPUID_REQUEST:
                register = request >> 30 & 3
                value = self._cpuid.answer(request >> 32, 0)[register]
                self._msrs.ghcb = value << 32 | register << 30 | MsrRequest.CPUID_RESPONSE
            case MsrRequest.PREFERRED_GPA_REQUEST | MsrRequest.REGISTER_GPA_REQUEST:
                none = kind == MsrRequest.PREFERRED_GPA_REQUEST
                page = 0xFFFFFFFFFFFFF if none else request >> 12
                self._msrs.ghcb = page << 12 | kind + 1
            case MsrRequest.HV_FEATURES_REQUEST:
                self._msrs.ghcb = self._features << 12 | MsrRequest.HV_FEATURES_RESPONSE
            case MsrRequest.PAGE_STATE_REQUEST if self._snp is not None:
                self._msrs.ghcb = self._snp.change_page(request) << 32 | MsrRequest.PAGE_STATE_RESPONSE
            case MsrRequest.AP_RESET_HOLD_REQUEST if self.hold is not None:
                self.hold(self._release_by_msr)
            case MsrRequest.TERMINATE:
                return Ended(f"the guest asked to be terminated: {_termination(request)}")
            case _:
                return Ended(f"unknown request {request:#x} in the GHCB MSR")
        return None

    def _release_by_msr(self) -> None:
        self._msrs.ghcb = 1 << 12 | MsrRequest.AP_RESET_HOLD_RESPONSE

    def _serve_page(self, page: _Page) -> Ended | None:
        if not page.is_request:
            page.answer(None)
            return None
        code, info1, info2 = (
            page.read(at) for at in (ghcb.SW_EXIT_CODE, ghcb.SW_EXIT_INFO_1, ghcb.SW_EXIT_INFO_2)
        )
        self.requests[f"{code:#x}"] += 1
        answer: dict[int, int] | None = {}
        if not all(page.has(field) for field in _needed(code, info1)):
            page.answer(None)
            return None
        match code:
            case ExitCode.IOIO:
                answer = self._port(page, info1, info2)
            case ExitCode.CPUID:
                leaf = self._cpuid.answer(page.read(ghcb.RAX) & 0xFFFFFFFF, page.read(ghcb.RCX) & 0xFFFFFFFF)
                answer = dict(zip((ghcb.RAX, ghcb.RBX, ghcb.RCX, ghcb.RDX), leaf, strict=True))
            case ExitCode.MSR:
                answer = self._msr(page, write=bool(info1 & 1))
            case ExitCode.MMIO_READ | ExitCode.MMIO_WRITE:
                answer = self._mmio(page, info1, info2, write=code == ExitCode.MMIO_WRITE)
            case ExitCode.VMMCALL:
                result = hypercalls.answer(page.read(ghcb.RAX), page.read(ghcb.CPL) & 3)
                answer = {ghcb.RAX: result & (1 << 64) - 1}
            case ExitCode.AP_RESET_HOLD if self.hold is not None:
                self.hold(lambda: page.answer({ghcb.SW_EXIT_INFO_2: 1}))
                return None
            case ExitCode.HV_FEATURES | ExitCode.AP_JUMP_TABLE:
                is_table = code == ExitCode.AP_JUMP_TABLE
                answer = (
                    self._ap_jump_table(info1, info2) if is_table else {ghcb.SW_EXIT_INFO_2: self._features}
                )
            case _ if code in _CONSTANT_ANSWERS:
                answer = _CONSTANT_ANSWERS[code]
            case _ if code in _OF_SNP and self._snp is not None:
                answer = self._serve_snp(self._snp, page, code, info1, info2)
            case _:
                return Ended(self._refusal(code, info1))
        page.answer(answer, _INVALID_INPUT if code == ExitCode.AP_CREATION else _MISSING_INPUT)
        return None

    def _port(self, page: _Page, info: int, count: int) -> dict[int, int] | None:
        port, size, inwards = info >> 16 & 0xFFFF, info >> 4 & 7, bool(info & ghcb.IOIO_IN)
        if size not in (1, 2, 4):
            return None
        bus, mask = self._bus, (1 << 8 * size) - 1
        if info & ghcb.IOIO_STRING:
            return self._port_string(page, bus, port, size, count, inwards=inwards)
        if inwards:
            return {ghcb.RAX: bus.read_port(port, size) & mask}
        bus.write_port(port, size, page.read(ghcb.RAX) & mask)
        return {}

    def _port_string(
        self, page: _Page, bus: IoBus, port: int, size: int, count: int, *, inwards: bool
    ) -> dict[int, int] | None:
        hva = self._scratch(page, count * size)
        if hva is None:
            return None
        for at in range(hva, hva + count * size, size):
            if inwards:
                _store(at, size, bus.read_port(port, size))
            else:
                bus.write_port(port, size, int.from_bytes(ctypes.string_at(at, size), "little"))
        return {}

    def _mmio(self, page: _Page, gpa: int, size: int, *, write: bool) -> dict[int, int] | None:
        hva = self._scratch(page, size)
        if hva is None or size not in (1, 2, 4, 8):
            return None
        gpa &= ~(1 << C_BIT)
        if write:
            self._bus.write_mmio(gpa, size, int.from_bytes(ctypes.string_at(hva, size), "little"))
        else:
            _store(hva, size, self._bus.read_mmio(gpa, size))
        return {}

    def _msr(self, page: _Page, *, write: bool) -> dict[int, int]:
        index = page.read(ghcb.RCX) & 0xFFFFFFFF
        if write:
            value = (page.read(ghcb.RDX) & 0xFFFFFFFF) << 32 | page.read(ghcb.RAX) & 0xFFFFFFFF
            self._msrs.write(index, value)
            return {}
        value = self._msrs.read(index)
        return {ghcb.RAX: value & 0xFFFFFFFF, ghcb.RDX: value >> 32}

    def _ap_jump_table(self, get: int, address: int) -> dict[int, int]:
        if get:
            return {ghcb.SW_EXIT_INFO_2: self._jump_table.address}
        self._jump_table.address = address
        return {}

    def _serve_snp(
        self, snp: SnpRequests, page: _Page, code: int, info1: int, info2: int
    ) -> dict[int, int] | None:
        info = None
        match code:
            case ExitCode.PAGE_STATE_CHANGE:
                hva = self._scratch(page, ghcb.SHARED_BUFFER_SIZE)
                info = None if hva is None else snp.change_pages(hva)
            case ExitCode.GUEST_REQUEST:
                info = snp.guest_request(info1, info2)
            case ExitCode.AP_CREATION:
                return {} if snp.aps.serve(info1, info2, page.read(ghcb.RAX)) else None
            case ExitCode.EXTENDED_GUEST_REQUEST:
                info = snp.extended_guest_request(info1, info2, page.read(ghcb.RAX), page.read(ghcb.RBX))
        return None if info is None else {ghcb.SW_EXIT_INFO_2: info}

    def _scratch(self, page: _Page, size: int) -> int | None:
        if not 0 < size <= 0x1000:
            return None
        gpa = page.read(ghcb.SW_SCRATCH) & ~(1 << C_BIT)
        if self._snp is not None and not self._snp.may_touch(gpa, size):
            return None
        return self._memory.hva(gpa, size, writable=True)

    def _refusal(self, code: int, info1: int) -> str:
        if (
            code == ExitCode.UNSUPPORTED_EVENT
            and info1 == ExitCode.PAGE_NOT_VALIDATED
            and self._snp is not None
        ):
            return f"the guest touched {self._snp.refused():#x}, private memory that it did not validate"
        if code == ExitCode.UNSUPPORTED_EVENT:
            return f"the guest met an event it does not support: exit code {info1:#x}"
        if code == ExitCode.AP_RESET_HOLD:
            return "the guest's only CPU asked to be held until a start-up interrupt"
        return f"unknown request {code:#x} in the GHCB"

    @property
    def _features(self) -> int:
        return 0 if self._snp is None else ghcb.HV_FEATURE_SNP | ghcb.HV_FEATURE_AP_CREATION


class _Page:
    """A GHCB in host memory."""

    def __init__(self, hva: int) -> None:
        self._bytes = (ctypes.c_uint8 * ghcb.PAGE_SIZE).from_address(hva)

    @property
    def is_request(self) -> bool:
        """Whether it is a GHCB by its own word, with an exit code."""
        usage = struct.unpack_from("<I", self._bytes, ghcb.USAGE)[0]
        return usage == 0 and all(self.has(field) for field in _ALWAYS_NEEDED)

    def has(self, offset: int) -> bool:
        """Whether the guest marked a field as valid."""
        bit = offset >> 3
        return bool(self._bytes[ghcb.VALID_BITMAP + (bit >> 3)] >> (bit & 7) & 1)

    def read(self, offset: int) -> int:
        return int(struct.unpack_from("<Q", self._bytes, offset)[0])

    def answer(self, values: dict[int, int] | None, error: int = _MISSING_INPUT) -> None:
        """Write ``values`` and mark them valid, and both SW_EXIT_INFO, nothing else; None is an ``error``."""
        info = (0, 0) if values is not None else (_MALFORMED, error)
        struct.pack_into("<QQ", self._bytes, ghcb.SW_EXIT_INFO_1, *info)
        valid = 1 << (ghcb.SW_EXIT_INFO_1 >> 3) | 1 << (ghcb.SW_EXIT_INFO_2 >> 3)
        for offset, value in (values or {}).items():
            struct.pack_into("<Q", self._bytes, offset, value)
            valid |= 1 << (offset >> 3)
        bitmap = valid.to_bytes(ghcb.VALID_BITMAP_SIZE, "little")
        self._bytes[ghcb.VALID_BITMAP : ghcb.VALID_BITMAP + ghcb.VALID_BITMAP_SIZE] = list(bitmap)


def _needed(code: int, info1: int) -> tuple[int, ...]:
    """Fields that a request must have beside those of all; KVM refuses it otherwise (sev_es_validate_vmgexit)."""
    match code:
        case ExitCode.IOIO if info1 & ghcb.IOIO_STRING:
            return (ghcb.SW_SCRATCH,)
        case ExitCode.IOIO:
            return () if info1 & ghcb.IOIO_IN else (ghcb.RAX,)
        case ExitCode.CPUID:
            return (ghcb.RAX, ghcb.RCX)
        case ExitCode.MSR:
            return (ghcb.RCX, ghcb.RAX, ghcb.RDX) if info1 & 1 else (ghcb.RCX,)
        case ExitCode.MMIO_READ | ExitCode.MMIO_WRITE | ExitCode.PAGE_STATE_CHANGE:
            return (ghcb.SW_SCRATCH,)
        case ExitCode.EXTENDED_GUEST_REQUEST:
            return (ghcb.RAX, ghcb.RBX)
        case ExitCode.AP_CREATION if info1 & 0xFFFFFFFF != Request.DESTROY:
            return (ghcb.RAX,)
        case ExitCode.VMMCALL:
            return (ghcb.RAX, ghcb.CPL)
        case ExitCode.WRITE_DR7:
            return (ghcb.RAX,)
        case ExitCode.RDPMC:
            return (ghcb.RCX,)
    return ()


def _store(hva: int, size: int, value: int) -> None:
    ctypes.memmove(hva, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), size)


def _termination(request: int) -> str:
    reasons = {0: "no reason given", 1: "unsupported protocol", 2: "features not supported"}
    reason_set, reason = request >> 12 & 0xF, request >> 16 & 0xFF
    words = reasons.get(reason, "") if reason_set == 0 else ""
    return f"reason set {reason_set}, code {reason:#x}" + (f" ({words})" if words else "")
