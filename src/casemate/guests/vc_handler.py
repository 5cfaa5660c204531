"""A #VC handler for tiny 32-bit guests: OUT of AL becomes a request by GHCB (AMD 56421, 4.1.2), all else halts.

With it a guest that writes to ports runs the same as plain, SEV and SEV-ES guest. Its GHCB lies in memory that the
guest maps no other way than its own: on hardware a GHCB is shared, which takes paging.
"""

from __future__ import annotations

import struct

from casemate.abi.sev import ghcb
from casemate.abi.sev.ghcb import ExitCode

GHCB = 0x9000
"""Guest-physical address of the block."""
VECTOR = 29

_SAVED_EAX, _SAVED_EDX, _ERROR_CODE, _SAVED_EIP = 28, 20, 32, 36
"""From EBP in the handler, behind PUSHA."""


def vc_handler() -> bytes:
    """32-bit code that an interrupt gate for ``VECTOR`` leads to."""
    halt = b"\xf4\xeb\xfd"  # 1: hlt; jmp 1b
    immediate = (
        b"\x0f\xb6\x5e\x01"  # movzx ebx, byte [esi + 1]
        + b"\xb9\x02\x00\x00\x00"  # mov ecx, 2
        + b"\xeb\x09"  # jmp request
    )
    by_dx = (
        b"\x0f\xb7\x5d" + bytes([_SAVED_EDX]) + b"\xb9\x01\x00\x00\x00"
    )  # movzx ebx, word [edx]; mov ecx, 1
    return (
        b"\x60\x89\xe5"  # pusha; mov ebp, esp
        + b"\x83\x7d" + bytes([_ERROR_CODE, ExitCode.IOIO])  # cmp dword [error code], IOIO
        + b"\x75\x0e"  # jne halt
        + b"\x8b\x75" + bytes([_SAVED_EIP])  # mov esi, [eip]
        + b"\x0f\xb6\x06"  # movzx eax, byte [esi]
        + b"\x3c\xe6\x74" + bytes([4 + len(halt)])  # cmp al, 0xe6; je immediate
        + b"\x3c\xee\x74" + bytes([len(halt) + len(immediate)])  # cmp al, 0xee; je by_dx
        + halt
        + immediate
        + by_dx
        + b"\x01\x4d" + bytes([_SAVED_EIP])  # request: add [eip], ecx
        + b"\xc1\xe3\x10\x83\xcb\x10"  # shl ebx, 16; or ebx, one byte outwards
        + _request()
        + b"\x61\x83\xc4\x04\xcf"  # popa; add esp, 4; iret
    )  # fmt: skip


def _request() -> bytes:
    valid = sum(
        1 << (field >> 3) for field in (ghcb.RAX, ghcb.SW_EXIT_CODE, ghcb.SW_EXIT_INFO_1, ghcb.SW_EXIT_INFO_2)
    ).to_bytes(ghcb.VALID_BITMAP_SIZE, "little")
    bitmap = b"".join(
        b"\xc7\x87" + struct.pack("<I", ghcb.VALID_BITMAP + at) + valid[at : at + 4]  # mov dword [edi + ...]
        for at in range(0, ghcb.VALID_BITMAP_SIZE, 4)
    )
    return (
        b"\xbf" + struct.pack("<I", GHCB)  # mov edi, GHCB
        + b"\x8b\x45" + bytes([_SAVED_EAX])  # mov eax, [saved eax]
        + b"\x89\x87" + struct.pack("<I", ghcb.RAX)  # mov [edi + RAX], eax
        + b"\xc7\x87" + struct.pack("<II", ghcb.SW_EXIT_CODE, ExitCode.IOIO)
        + b"\x89\x9f" + struct.pack("<I", ghcb.SW_EXIT_INFO_1)  # mov [edi + SW_EXIT_INFO_1], ebx
        + b"\xc7\x87" + struct.pack("<II", ghcb.SW_EXIT_INFO_2, 0)
        + bitmap
        + b"\xb9" + struct.pack("<I", ghcb.MSR_GHCB)  # mov ecx, GHCB MSR
        + b"\x89\xf8\x31\xd2\x0f\x30"  # mov eax, edi; xor edx, edx; wrmsr
        + b"\xf3\x0f\x01\xd9"  # vmgexit
    )  # fmt: skip
