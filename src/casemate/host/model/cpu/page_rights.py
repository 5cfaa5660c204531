"""Which pages an SNP guest may touch, asked when the engine fills its TLB (AMD APM volume 2, 15.36.7 and 15.34.5).

One byte for each page says what is refused. Private memory that the guest did not validate raises #VC 0x404; a shared
access to a page of the guest leaves the engine under ``SHARED_VECTOR``. Code, page tables and everything before long
mode are private whatever the guest's page tables say: they get the C-bit here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable

from casemate.abi.sev.ghcb import ExitCode
from casemate.address import PAGE_SIZE
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.cpu.vc import Stub, absolute_jump

SHARED_VECTOR = 0x2601
"""Pseudo exception number of a shared access to a page that is the guest's own."""
REFUSE_PRIVATE, REFUSE_SHARED = 1, 2
TABLE_BYTES = 1 << 24
_ADDRESS = struct.Struct("<Q")
"""Behind the table: the address that was refused last."""

PROLOGUES = {
    "x86_ldl_phys_x86_64": "41554989f541544531e455488b87b0810000",
    "x86_ldq_phys_x86_64": "41554989f541544531e455488b87b0810000",
    "x86_stl_phys_notdirty_x86_64": "41554189d541544989f4554889fd",
}
"""What the engine walks page tables with."""

_VMM_COMMUNICATION = 29
_SET_C_BIT_OF_RDX = b"\x48\x0f\xba\xea" + bytes([C_BIT])
_SET_C_BIT_OF_RSI = b"\x48\x0f\xba\xee" + bytes([C_BIT])
_TEST_C_BIT_OF_RDX = b"\x48\x0f\xba\xe2" + bytes([C_BIT])


class PageRights:
    """The table of one CPU; the engine reads it whenever it fills its TLB, which ``forget`` empties."""

    def __init__(self, table: mmap.mmap, forget: Callable[[], None]) -> None:
        self._table = table
        self.forget = forget

    @property
    def refused(self) -> int:
        """The page that was refused last."""
        address: int = _ADDRESS.unpack_from(self._table, TABLE_BYTES)[0]
        return address % (1 << C_BIT) // PAGE_SIZE

    def set(self, page: int, count: int, refused: int) -> None:
        """What ``count`` pages from ``page`` on refuse, once the TLB is empty."""
        self._table[page : page + count] = bytes([refused]) * count


def page_walk(cell_of_cpu: bytes, cells: int, tables: int) -> Stub:
    """A load or store by the walker (rdi CPU, rsi address): of an SNP guest's CPU it is private."""
    return lambda original: (
        cell_of_cpu
        + b"\x49\xba" + struct.pack("<Q", cells)  # mov r10, cells
        + b"\x49\x83\xbc\xc2" + struct.pack("<iB", tables, 0)  # cmp qword [r10 + rax*8 + tables], 0
        + b"\x74" + bytes([len(_SET_C_BIT_OF_RSI)]) + _SET_C_BIT_OF_RSI  # je over; bts rsi, C_BIT
        + absolute_jump(original)
    )  # fmt: skip


def check(tables: int, raiser: int) -> bytes:
    """Part of entering a page into the TLB (rdi CPU, rdx address; rax its cell: access kind, probe, flags)."""
    load_table = b"\x4c\x8b\x98" + struct.pack("<i", tables)  # mov r11, [rax + tables]
    leave = (
        load_table + b"\x49\x89\x93" + struct.pack("<i", TABLE_BYTES)  # mov [r11 + TABLE_BYTES], rdx
        + b"\x48\x8b\x8f\x08\xa0\x00\x00"  # mov rcx, [rdi + return address]
        + b"\x48\x8d\xbf\x50\x8a\x00\x00"  # lea rdi, [rdi + env]
        + _TEST_C_BIT_OF_RDX
        + b"\xbe" + struct.pack("<I", _VMM_COMMUNICATION)
        + b"\xba" + struct.pack("<I", ExitCode.PAGE_NOT_VALIDATED)
        + b"\x72\x05\xbe" + struct.pack("<I", SHARED_VECTOR)  # jc over; mov esi, SHARED_VECTOR
        + absolute_jump(raiser)
    )  # fmt: skip
    of_snp = (
        b"\x80\x38\x02\x74\x0c"  # cmp byte [rax], 2 (a fetch); je private
        + b"\xf7\x87\x00\x8b\x00\x00\x00\x40\x00\x00\x75\x05"  # test dword [rdi + hidden flags], LMA; jnz over
        + _SET_C_BIT_OF_RDX  # private:
        + b"\x49\x89\xd2\x49\xc1\xea\x0c"  # mov r10, rdx; shr r10, 12
        + b"\x41\x81\xe2" + struct.pack("<I", TABLE_BYTES - 1)  # and r10d, mask
        + b"\x47\x0f\xb6\x1c\x13"  # movzx r11d, byte [r11 + r10]
        + _TEST_C_BIT_OF_RDX + b"\x72\x03\x41\xd1\xeb"  # jc over; shr r11d, 1
        + b"\x41\xf6\xc3\x01\x74" + bytes([6 + len(leave)])  # test r11b, 1; jz: allowed
        + b"\x80\x78\x01\x00\x75" + bytes([len(leave)])  # cmp byte [rax + 1], 0 (a lookup from outside); jne
        + leave
    )  # fmt: skip
    return (
        load_table
        + b"\x4d\x85\xdb\x0f\x84" + struct.pack("<I", len(of_snp)) + of_snp  # test r11, r11; jz over
    )  # fmt: skip
