"""The modelled CPU of SEV and SEV-ES guests: #VC, VMGEXIT, the C-bit (AMD APM volume 2, 15.34 and 15.35; AMD 56421)."""

from __future__ import annotations

import struct

import pytest
from support.assembler import assemble
from support.guest_rig import PROTECTED, Rig

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev import ghcb
from casemate.abi.sev.features import SevFeatures
from casemate.abi.sev.ghcb import ExitCode
from casemate.guests.entry import CODE32, PAGE_TABLES, Bits
from casemate.guests.vc_handler import GHCB
from casemate.host.clock import GuestClock
from casemate.host.exits import Hlt, MemoryFault, SevTermination, Shutdown
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.host.model.sev.ghcb import GhcbServer
from casemate.host.secure_processor import SevSetup

HALTED = Hlt(interrupts_enabled=False)
IDT, HANDLER, ERROR_CODE = 0x200000, 0x201000, 0x2000
GHCB_MSR = 0xC0010130
VMGEXIT = "db 0xf3; vmmcall"
DEBUG_SWAP = SevSetup(VmType.SEV_ES, SevFeatures.DEBUG_SWAP)


class SevRig(Rig):
    """A rig whose guest went through an empty launch."""

    def __init__(
        self,
        code: bytes | str,
        kind: GuestKind = GuestKind.SEV_ES,
        bits: Bits = 32,
        setup: SevSetup | None = None,
        era: str = "linux-6.8",
    ) -> None:
        hypervisor = ModelHypervisor(GuestClock(), era="linux-6.18" if setup else era)
        super().__init__(code, bits, hypervisor.create_vm(kind, setup))
        processor = self.vm.secure_processor
        assert processor is not None
        processor.launch_start(0x5 if kind is GuestKind.SEV_ES else 0x1, None)
        processor.launch_measure()
        processor.launch_finish()

    def add(self, number: int, gpa: int, size: int, hva: object, *, readonly: bool = False) -> None:
        # VMs of SEV-ES' own type have no read-only slots.
        readonly = readonly and self.vm.capabilities.readonly_memory
        super().add(number, gpa, size, hva, readonly=readonly)  # type: ignore[arg-type]

    def catch_vc(self) -> None:
        """A handler for #VC that keeps the error code and halts; the guest must load the IDT."""
        view = self.ram.writable.view
        view[0x1000:0x1006] = struct.pack("<HI", 8 * 32 - 1, IDT)
        view[IDT + 8 * 29 : IDT + 8 * 30] = struct.pack(
            "<HHHH", HANDLER & 0xFFFF, CODE32, 0x8E00, HANDLER >> 16
        )
        self.put(HANDLER, f"pop eax; mov [{ERROR_CODE}], eax; hlt")


LOAD_IDT = "lidt [0x1000];"


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("cpuid", ExitCode.CPUID),
        ("in al, 0xf4", ExitCode.IOIO),
        ("mov dx, 0x3f8; out dx, al", ExitCode.IOIO),
        ("mov ecx, 0x1b; rdmsr", ExitCode.MSR),
        ("mov ecx, 0x1b; wrmsr", ExitCode.MSR),
        ("wbinvd", ExitCode.WBINVD),
        ("invd", ExitCode.INVD),
        ("vmmcall", ExitCode.VMMCALL),
        ("xor ecx, ecx; monitor", ExitCode.MONITOR),
        ("mwait", ExitCode.MWAIT),
        ("rdpmc", ExitCode.RDPMC),
        ("mov eax, dr7", ExitCode.READ_DR7),
        ("xor eax, eax; mov dr7, eax", ExitCode.WRITE_DR7),
        ("mov eax, [0xfe400000]", ExitCode.NPF),
        ("mov [0xfe400000], eax", ExitCode.NPF),
    ],
)
def test_what_a_sev_es_guest_may_not_do_raises_vc_before_anything_happened(
    instruction: str, code: int
) -> None:
    with SevRig(LOAD_IDT + instruction + "; hlt") as rig:
        rig.catch_vc()
        assert rig.run() == HALTED
        assert int.from_bytes(rig.ram_at(ERROR_CODE, 4), "little") == code
        assert rig.bus.log == []


@pytest.mark.parametrize(
    "code",
    ["mov ah, 0x0f; or al, al", "mov ah, 0x0f; or eax, eax", "mov al, 0xf0; mov eax, 0x90c0a30f"],
    ids=["invd", "wbinvd", "lock bt"],
)
def test_bytes_that_are_no_instruction_raise_nothing(code: str) -> None:
    """They lie across two instructions, or are an operand."""
    with SevRig(LOAD_IDT + code + "; hlt") as rig:
        rig.catch_vc()
        assert rig.run() == HALTED
        assert rig.ram_at(ERROR_CODE, 4) == bytes(4)


STORE_IDTR = "sidt [0x2010]"
IDTR = struct.pack("<HI", 8 * 32 - 1, IDT)


def put_gate(rig: Rig, vector: int, handler: int, attributes: int) -> None:
    gate = struct.pack("<HHHH", handler & 0xFFFF, CODE32, attributes << 8, handler >> 16)
    rig.ram.writable.view[IDT + 8 * vector : IDT + 8 * vector + 8] = gate


def test_vc_by_a_gate_that_is_not_there_says_which() -> None:
    with SevRig(LOAD_IDT + "cpuid; hlt") as rig:
        rig.catch_vc()
        put_gate(rig, 11, HANDLER, 0x8E)
        put_gate(rig, 29, HANDLER, 0x0E)
        rig.put(HANDLER, f"pop eax; mov [{ERROR_CODE}], eax; {STORE_IDTR}; hlt")
        assert rig.run() == HALTED
        assert int.from_bytes(rig.ram_at(ERROR_CODE, 4), "little") == 29 * 8 + 2 + 1
        assert rig.ram_at(0x2010, 6) == IDTR


def test_vc_by_a_16_bit_gate_pushes_words() -> None:
    with SevRig(LOAD_IDT + "cpuid; hlt") as rig:
        rig.catch_vc()
        put_gate(rig, 29, 0x3000, 0x86)
        words = f"pop ax; mov [{ERROR_CODE}], ax; pop ax; mov [{ERROR_CODE + 2}], ax"  # the error code, IP
        rig.put(0x3000, f"{words}; {STORE_IDTR}; hlt")
        assert rig.run() == HALTED
        error_code, ip = struct.unpack("<HH", rig.ram_at(ERROR_CODE, 4))
        assert error_code == ExitCode.CPUID
        assert rig.rom.writable.view[ip : ip + 2] == assemble("cpuid")
        assert rig.ram_at(0x2010, 6) == IDTR


def test_cpuid_says_that_memory_is_encrypted() -> None:
    code = """
        mov eax, 0x8000001f; cpuid; mov [0x2000], eax; mov [0x2004], ebx
        mov eax, 0x80000000; cpuid; mov [0x2008], eax; hlt
    """
    with SevRig(code, GuestKind.SEV) as rig:
        assert rig.run() == HALTED
        features, encryption, highest = struct.unpack("<III", rig.ram_at(0x2000, 12))
        assert features == 1 << 1
        assert (encryption & 0x3F, encryption >> 6 & 0x3F) == (C_BIT, 1)
        assert highest >= 0x8000001F


@pytest.mark.parametrize("instruction", ["mov eax, dr7", "mov eax, 0x400; mov dr7, eax"])
def test_debug_swap_leaves_dr7_to_the_guest(instruction: str) -> None:
    with SevRig(LOAD_IDT + instruction + "; hlt", setup=DEBUG_SWAP) as rig:
        rig.catch_vc()
        assert rig.run() == HALTED
        assert rig.ram_at(ERROR_CODE, 4) == bytes(4)


@pytest.mark.parametrize(
    ("kind", "setup", "status"),
    [
        (GuestKind.SEV, None, 0x1),
        (GuestKind.SEV_ES, None, 0x3),
        (GuestKind.SEV_ES, DEBUG_SWAP, 0x83),
    ],
)
def test_sev_status_says_what_the_guest_is(kind: GuestKind, setup: SevSetup | None, status: int) -> None:
    with SevRig(f"mov ecx, 0xc0010131; rdmsr; mov [{ERROR_CODE}], eax; hlt", kind, setup=setup) as rig:
        assert rig.run() == HALTED
        assert int.from_bytes(rig.ram_at(ERROR_CODE, 4), "little") == status


def test_well_behaved_guest_reaches_the_bus_by_vmgexit() -> None:
    with SevRig("mov al, 0x41; out 0x80, al; mov dx, 0x3f8; mov al, 0x42; out dx, al; hlt") as rig:
        assert rig.run() == HALTED
        assert rig.bus.log == [("out", 0x80, 1, 0x41), ("out", 0x3F8, 1, 0x42)]
        requests = rig.vm.guest_requests()
        assert (requests["vmgexits"], requests["vc"]) == ({"0x7b": 2}, {"0x7b": 2})


def request(msr: int) -> str:
    """wrmsr of the GHCB MSR, vmgexit, and its answer to [ERROR_CODE]."""
    return f"""
        mov ecx, {GHCB_MSR}; mov eax, {msr & 0xFFFFFFFF}; mov edx, {msr >> 32}; wrmsr
        {VMGEXIT}
        mov ecx, {GHCB_MSR}; rdmsr; mov [{ERROR_CODE}], eax; mov [{ERROR_CODE + 4}], edx
        hlt
    """


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (0x002, 2 << 48 | 1 << 32 | C_BIT << 24 | 0x001),
        (0x8000001F << 32 | 1 << 30 | 0x004, (C_BIT | 1 << 6) << 32 | 1 << 30 | 0x005),
        (0x8000001F << 32 | 0 << 30 | 0x004, 0x0A << 32 | 0x005),
        (0x080, 0x081),
        (0x5000 | 0x012, 0x5000 | 0x013),
    ],
)
def test_msr_protocol_answers(asked: int, answer: int) -> None:
    with SevRig(request(asked)) as rig:
        assert rig.run() == HALTED
        assert int.from_bytes(rig.ram_at(ERROR_CODE, 8), "little") == answer


def test_plain_requests_need_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(_server: GhcbServer) -> None:
        raise AssertionError("asked for what the hooks can answer")

    monkeypatch.setattr(GhcbServer, "serve", serve)
    with SevRig("mov al, 0x41; out 0x80, al; out 0xf4, al; hlt") as rig:
        assert rig.run() == HALTED
        assert rig.bus.log == [("out", 0x80, 1, 0x41), ("out", 0xF4, 1, 0x41)]
        assert rig.vm.guest_requests()["vmgexits"] == {"0x7b": 2}


def test_answer_leaves_valid_what_belongs_to_it_alone() -> None:
    with SevRig("mov al, 0x41; out 0x80, al; hlt") as rig:
        assert rig.run() == HALTED
        assert rig.ram_at(GHCB + ghcb.SW_EXIT_INFO_1, 16) == bytes(16)
        valid = int.from_bytes(rig.ram_at(GHCB + ghcb.VALID_BITMAP, ghcb.VALID_BITMAP_SIZE), "little")
        assert valid == 1 << (ghcb.SW_EXIT_INFO_1 >> 3) | 1 << (ghcb.SW_EXIT_INFO_2 >> 3)


def test_termination_ends_the_run_with_its_reason() -> None:
    with SevRig(request(0x100 | 1 << 16)) as rig:
        vm_exit = rig.run()
        assert isinstance(vm_exit, SevTermination)
        assert "unsupported protocol" in vm_exit.detail


def page(
    code: int,
    info1: int,
    info2: int,
    *,
    scratch: int | None = None,
    leave_out: int | None = None,
    fields: dict[int, int] | None = None,
) -> bytes:
    """A GHCB that asks for something."""
    block = bytearray(ghcb.PAGE_SIZE)
    head = {ghcb.SW_EXIT_CODE: code, ghcb.SW_EXIT_INFO_1: info1, ghcb.SW_EXIT_INFO_2: info2}
    fields = head | (fields or {})
    if scratch is not None:
        fields[ghcb.SW_SCRATCH] = scratch
    valid = 0
    for offset, value in fields.items():
        struct.pack_into("<Q", block, offset, value)
        valid |= 0 if offset == leave_out else 1 << (offset >> 3)
    block[ghcb.VALID_BITMAP : ghcb.VALID_BITMAP + 16] = valid.to_bytes(16, "little")
    return bytes(block)


ASK = f"mov ecx, {GHCB_MSR}; mov eax, {GHCB}; xor edx, edx; wrmsr; {VMGEXIT}; hlt"


def test_mmio_store_by_ghcb_reaches_the_device_though_its_slot_is_live() -> None:
    with SevRig(ASK) as rig:
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = page(ExitCode.MMIO_WRITE, PROTECTED, 4, scratch=0x3000)
        rig.ram.writable.view[0x3000:0x3004] = b"\x78\x56\x34\x12"
        assert rig.run() == HALTED
        assert rig.bus.log == [("write", PROTECTED, 4, 0x12345678)]
        assert rig.ram_at(PROTECTED, 4) == bytes(4)
        assert rig.ram_at(GHCB + ghcb.SW_EXIT_INFO_1, 8) == bytes(8)


def test_mmio_load_by_ghcb_lands_in_the_scratch_area() -> None:
    with SevRig(ASK) as rig:
        rig.bus.answers[0xFEE00020] = 0xCAFE
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = page(ExitCode.MMIO_READ, 0xFEE00020, 4, scratch=0x3000)
        assert rig.run() == HALTED
        assert rig.ram_at(0x3000, 4) == b"\xfe\xca\x00\x00"


def test_string_port_read_by_ghcb_fills_the_scratch_area() -> None:
    with SevRig(ASK) as rig:
        rig.bus.answers[0x511] = 0x5A
        info = 0x511 << 16 | 1 << 4 | ghcb.IOIO_STRING | ghcb.IOIO_IN
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = page(ExitCode.IOIO, info, 5, scratch=0x3000)
        assert rig.run() == HALTED
        assert rig.ram_at(0x3000, 6) == b"\x5a" * 5 + b"\x00"


@pytest.mark.parametrize(
    "block",
    [
        page(ExitCode.MMIO_WRITE, PROTECTED, 4),
        page(ExitCode.MMIO_WRITE, PROTECTED, 4, scratch=0xFE400000),
        page(ExitCode.MMIO_WRITE, PROTECTED, 3, scratch=0x3000),
        page(ExitCode.IOIO, 0x80 << 16 | 1 << 4, 0),
        page(ExitCode.CPUID, 0, 0, leave_out=ghcb.SW_EXIT_CODE),
    ],
    ids=["no scratch", "scratch is no memory", "odd size", "no RAX", "no exit code"],
)
def test_malformed_request_is_refused_and_reaches_no_device(block: bytes) -> None:
    with SevRig(ASK) as rig:
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = block
        assert rig.run() == HALTED
        assert rig.bus.log == []
        assert struct.unpack("<QQ", rig.ram_at(GHCB + ghcb.SW_EXIT_INFO_1, 16)) == (2, 3)


@pytest.mark.parametrize(
    ("number", "privilege", "result"), [(99, 0, -1000), (1, 0, 0), (1 << 32 | 1, 0, -1000), (1, 3, -1)]
)
def test_hypercall_by_ghcb_gets_kvms_answer_in_rax_alone(number: int, privilege: int, result: int) -> None:
    block = page(ExitCode.VMMCALL, 0, 0, fields={ghcb.RAX: number, ghcb.CPL: privilege})
    with SevRig(ASK) as rig:
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = block
        assert rig.run() == HALTED
        assert struct.unpack("<q", rig.ram_at(GHCB + ghcb.RAX, 8)) == (result,)
        assert struct.unpack("<QQ", rig.ram_at(GHCB + ghcb.SW_EXIT_INFO_1, 16)) == (0, 0)
        valid = int.from_bytes(rig.ram_at(GHCB + ghcb.VALID_BITMAP, 16), "little")
        assert valid == sum(
            1 << (field >> 3) for field in (ghcb.RAX, ghcb.SW_EXIT_INFO_1, ghcb.SW_EXIT_INFO_2)
        )


def test_hypercall_that_raised_vc_is_counted() -> None:
    with SevRig(LOAD_IDT + "vmmcall; hlt") as rig:
        rig.catch_vc()
        assert rig.run() == HALTED
        assert rig.vm.guest_requests()["vc"] == {"0x81": 1}


def test_vmcall_stays_undefined_in_a_sev_es_guest() -> None:
    with SevRig(LOAD_IDT + "vmcall; hlt") as rig:
        rig.catch_vc()
        assert isinstance(rig.run(), Shutdown)


@pytest.mark.parametrize("fields", [{ghcb.RAX: 99}, {ghcb.CPL: 0}], ids=["no CPL", "no RAX"])
def test_hypercall_by_ghcb_without_its_input_is_refused(fields: dict[int, int]) -> None:
    with SevRig(ASK) as rig:
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = page(ExitCode.VMMCALL, 0, 0, fields=fields)
        assert rig.run() == HALTED
        assert struct.unpack("<QQ", rig.ram_at(GHCB + ghcb.SW_EXIT_INFO_1, 16)) == (2, 3)


def test_hypercall_of_a_sev_guest_is_answered_in_its_register() -> None:
    with SevRig("mov eax, 99; vmmcall; mov [0x2000], eax; hlt", GuestKind.SEV) as rig:
        assert rig.run() == HALTED
        assert struct.unpack("<i", rig.ram_at(0x2000, 4)) == (-1000,)


def test_unknown_request_ends_the_run() -> None:
    with SevRig(ASK) as rig:
        rig.ram.writable.view[GHCB : GHCB + 0x1000] = page(0x1234, 0, 0)
        assert isinstance(rig.run(), SevTermination)


def test_store_to_a_readonly_mapping_of_a_sealed_guest_tells_nothing() -> None:
    import ctypes
    import mmap

    libc = ctypes.CDLL(None)
    with SevRig(f"mov byte [{PROTECTED}], 0x5a; hlt", setup=DEBUG_SWAP) as rig:
        hva = rig.ram.writable.hva + PROTECTED
        libc.mprotect(ctypes.c_void_p(hva), ctypes.c_size_t(0x1000), mmap.PROT_READ)
        rig.vm.mapping_changed(hva, 0x1000)  # type: ignore[arg-type]
        assert rig.run() == MemoryFault()
        assert rig.vcpu.rip() is None


def test_memory_is_the_same_with_and_without_the_c_bit() -> None:
    """Virtual 8 MiB shows physical 2 MiB with the C-bit: code written there runs there, and shows in the plain view."""
    code = """
        out 0x80, al
        mov esi, 0x802000
        mov dword [rsi], 0x90c301b0; call rsi; mov bl, al   # mov al, 1; ret
        mov dword [rsi], 0x90c302b0; call rsi; add bl, al   # the same with 2
        mov [0x2000], bl
        hlt
    """
    with SevRig(code, GuestKind.SEV, bits=64) as rig:
        view = rig.ram.writable.view

        def map_private() -> None:
            struct.pack_into("<Q", view, PAGE_TABLES + 0x2000 + 8 * 4, 1 << C_BIT | 0x200083)

        rig.bus.on_write_port[0x80] = map_private
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 1) == b"\x03"
        assert rig.ram_at(0x202000, 4) == bytes.fromhex("b002c390")


def test_mmio_with_the_c_bit_reaches_the_same_device() -> None:
    code = f"out 0x80, al; mov rsi, {(512 << 30) + 0xFEE00000}; mov eax, [rsi]; mov [0x2000], eax; hlt"
    with SevRig(code, GuestKind.SEV, bits=64) as rig:
        rig.bus.answers[0xFEE00000] = 0x1234
        view = rig.ram.writable.view

        def map_private() -> None:
            # Virtual 512 GiB + 4 GiB - 18 MiB: a second top-level entry whose directories carry the C-bit.
            struct.pack_into("<Q", view, PAGE_TABLES + 8, PROTECTED | 3)
            struct.pack_into("<Q", view, PROTECTED + 8 * 3, (PAGE_TABLES + 0x1000 - 0x1000) | 3)
            struct.pack_into("<Q", view, PAGE_TABLES + 8 * 0x1F7, 1 << C_BIT | 0xFEE00083)

        rig.bus.on_write_port[0x80] = map_private
        assert rig.run() == HALTED
        assert rig.ram_at(0x2000, 2) == b"\x34\x12"


def test_plain_guest_beside_a_sev_es_guest_raises_no_vc() -> None:
    with SevRig("mov al, 0x41; out 0x80, al; hlt") as protected:
        vm = ModelHypervisor(GuestClock()).create_vm(GuestKind.PLAIN)
        with Rig("mov al, 0x42; out 0x80, al; cpuid; hlt", 32, vm) as plain:
            assert protected.run() == HALTED
            assert plain.run() == HALTED
            assert plain.bus.log == [("out", 0x80, 1, 0x42)]
            assert plain.vm.guest_requests() == {}
