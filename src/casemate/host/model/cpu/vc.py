"""#VC on the modelled CPU: what a SEV-ES guest may not do by itself raises vector 29 (AMD APM volume 2, 15.35.5).

Stubs at the entry of the engine's helpers for CPUID, IN, OUT, MOV DR7 ... raise it before anything happened, if the
CPU's cell says that it is to do so; others go on as before. Memory that no slot backs stays unmapped in the engine,
and a native hook there raises the #VC of a nested page fault. The exit code is the error code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from casemate.abi.sev.ghcb import ExitCode

_VECTOR = 29
CELL_USED, CELL_VC, CELL_VC_DR7 = 1, 2, 4
"""Flags in the second word of a CPU's cell."""

_HELPERS = {
    "helper_cpuid_x86_64": (12, ExitCode.CPUID),
    **{f"helper_in{width}_x86_64": (16, ExitCode.IOIO) for width in "bwl"},
    "helper_outb_x86_64": (14, ExitCode.IOIO),
    "helper_outw_x86_64": (14, ExitCode.IOIO),
    "helper_outl_x86_64": (16, ExitCode.IOIO),
    "helper_monitor_x86_64": (16, ExitCode.MONITOR),
    "helper_mwait_x86_64": (12, ExitCode.MWAIT),
    "helper_rdpmc_x86_64": (13, ExitCode.RDPMC),
}

PROLOGUES = {
    "helper_cpuid_x86_64": "4156be720000004989fe31d2",
    **{f"helper_in{width}_x86_64": "4883ec08488bbf581b0000488b542408" for width in "bwl"},
    "helper_outb_x86_64": "488bbf581b0000488b0c240fb6d2",
    "helper_outw_x86_64": "488bbf581b0000488b0c240fb7d2",
    "helper_outl_x86_64": "488bbf581b0000488b0c24e9",
    "helper_monitor_x86_64": "4883ec088b470885c07515488b4c2408",
    "helper_mwait_x86_64": "554889fd534883ec088b5708",
    "helper_rdpmc_x86_64": "554889fdf687c9010000017409",
    "helper_get_dr_x86_64": "83fe05744b7f1983fe04752c",
    "helper_set_dr_x86_64": "4156415541544989fc555383fe07",
}

Stub = Callable[[int], bytes]


def raise_exception(code: int, raiser: int) -> bytes:
    """Code that leaves the instruction (return address at rsp, CPU state in rdi) by #VC ``code``."""
    return b"\x48\x8b\x0c\x24" + _raise(code, raiser)  # mov rcx, [rsp]


def _raise(code: int, raiser: int) -> bytes:
    return (
        b"\xbe" + struct.pack("<I", _VECTOR) + b"\xba" + struct.pack("<I", code)  # mov esi, vector; mov edx, code
        + absolute_jump(raiser)
    )  # fmt: skip


def absolute_jump(target: int) -> bytes:
    """jmp [rip+0], and the address."""
    return b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", target)


def conditional_raise(
    code: int, flag: int, cells: int, cell_count: int, env_offset: int, raiser: int
) -> Stub:
    """A stub that raises #VC ``code`` if the cell of the CPU whose state is at rdi has ``flag``."""

    def stub(original: int) -> bytes:
        leave = raise_exception(code, raiser)
        return (
            b"\x48\x8d\x87" + struct.pack("<i", -env_offset)  # lea rax, [rdi - env offset]
            + b"\x48\xc1\xe8\x06\x25" + struct.pack("<I", cell_count - 1)  # shr rax, 6; and eax, mask
            + b"\x49\xba" + struct.pack("<Q", cells)  # mov r10, cells
            + b"\x41\xf6\x44\xc2\x04" + bytes([flag])  # test byte [r10 + rax*8 + 4], flag
            + b"\x74" + bytes([len(leave)]) + leave  # jz: go on
            + absolute_jump(original)
        )  # fmt: skip

    return stub


def only_dr7(stub: Stub) -> Stub:
    """``stub`` for debug register 7 (esi), the original for all others."""

    def checked(original: int) -> bytes:
        other = absolute_jump(original)
        return b"\x83\xfe\x07\x74" + bytes([len(other)]) + other + stub(original)  # cmp esi, 7; je

    return checked


def helper_stubs(cells: int, cell_count: int, env_offset: int, raiser: int) -> dict[str, tuple[int, Stub]]:
    """For each helper: how many bytes of it to move, and its stub."""

    def vc(code: int, flag: int) -> Stub:
        return conditional_raise(code, flag, cells, cell_count, env_offset, raiser)

    stubs = {name: (length, vc(code, CELL_VC)) for name, (length, code) in _HELPERS.items()}
    stubs["helper_set_dr_x86_64"] = (14, only_dr7(vc(ExitCode.WRITE_DR7, CELL_VC_DR7)))
    stubs["helper_get_dr_x86_64"] = (12, only_dr7(vc(ExitCode.READ_DR7, CELL_VC_DR7)))
    return stubs


def relocate(name: str, entry: int, code: bytes) -> bytes:
    """The moved first bytes of a helper: relative jumps among them become absolute."""
    if name == "helper_outl_x86_64":
        target = entry + 16 + struct.unpack("<i", code[12:16])[0]
        return code[:11] + absolute_jump(target)
    if name == "helper_monitor_x86_64":
        past = b"\x74\x0e" + absolute_jump(entry + 0x20)  # je over; jmp
        return code[:9] + past + code[11:] + absolute_jump(entry + 16)
    if name == "helper_rdpmc_x86_64":
        past = b"\x75\x0e" + absolute_jump(entry + 0x16)  # jne over; jmp
        return code[:11] + past + absolute_jump(entry + 13)
    if name == "helper_get_dr_x86_64":
        return (
            b"\x83\xfe\x05\x75\x0e" + absolute_jump(entry + 0x50)  # cmp esi, 5; jne over; jmp
            + b"\x7e\x0e" + absolute_jump(entry + 0x20)  # jle over; jmp (flags still those of cmp esi, 5)
            + b"\x83\xfe\x04\x74\x0e" + absolute_jump(entry + 0x38)  # cmp esi, 4; je over; jmp
            + absolute_jump(entry + 12)
        )  # fmt: skip
    return code + absolute_jump(entry + len(code))


def unmapped_hook(raiser: int) -> bytes:
    """A hook on unmapped memory (user data in r9: address of the CPU state) that raises the #VC of a nested page fault.

    The engine brought RIP up to date before it called the hook.
    """
    return b"\x49\x8b\x39\x31\xc9" + _raise(ExitCode.NPF, raiser)  # mov rdi, [r9]; xor ecx, ecx
