"""A guest that shows whether a host runs supervisor code at speed, and x87 instructions (Intel SDM)."""

from __future__ import annotations

import struct

from casemate.guests.entry import make_image

_LOOPS = 8000
_LOOP_INSTRUCTIONS = 2 * _LOOPS
_PORT = 0x81


def probe_image() -> tuple[bytes, int]:
    """The image, and how many instructions lie between two of its reads of a port.

    The guest counts, reads the port, and does so again while the answer is 0. Then it stores an x87 register to RAM
    below 64 KiB, writes to the port, and spins.
    """
    code = (
        b"\xb9" + struct.pack("<I", _LOOPS)  # 1: mov ecx, LOOPS
        + b"\x49\x75\xfd"  # 2: dec ecx; jnz 2b
        + b"\xe4" + bytes((_PORT,)) + b"\x84\xc0\x74\xf2"  # in al, PORT; test al, al; jz 1b
        + b"\xdb\xe3\xd9\xe8\xd9\x1d\x00\x10\x00\x00"  # fninit; fld1; fstp dword [0x1000]
        + b"\xe6" + bytes((_PORT,)) + b"\xeb\xfe"  # out PORT, al; jmp $
    )  # fmt: skip
    return make_image(code, 32), _LOOP_INSTRUCTIONS
