"""Code that starts the second vCPU of a guest by its local APIC (Intel SDM volume 3, 9.4.4)."""

from __future__ import annotations

import struct

from support.assembler import assemble

LAPIC = 0xFEE00000
TRAMPOLINE = 0x8000
SPURIOUS, ICR_LOW, ICR_HIGH = LAPIC + 0xF0, LAPIC + 0x300, LAPIC + 0x310
INIT, START_UP, NMI = 0x4500, 0x4600, 0x4400


def start_second(code: str | bytes) -> bytes:
    """32-bit code that lets vCPU 1 do ``code`` in real mode, and goes on behind itself."""
    body = assemble(code, 16) if isinstance(code, str) else code
    body += bytes(-len(body) % 4)
    words = struct.unpack(f"<{len(body) // 4}I", body)
    copy = "".join(f"mov dword [{TRAMPOLINE + 4 * index}], {word};" for index, word in enumerate(words))
    return assemble(
        f"""
        {copy}
        mov dword [{SPURIOUS}], 0x1ff   # the APIC is on
        mov dword [{ICR_HIGH}], 0x1000000
        mov dword [{ICR_LOW}], {INIT}
        mov dword [{ICR_HIGH}], 0x1000000
        mov dword [{ICR_LOW}], {START_UP | TRAMPOLINE >> 12}
        """
    )
