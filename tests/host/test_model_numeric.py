"""Where x87, MMX and SSE of the model do as a processor does, and its engine alone would not (Intel SDM volume 2).

The same cases run on this machine's processor, where KVM has it execute user mode.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from support.assembler import assemble

from casemate.address import PAGE_SIZE
from tools.cpu_differences.hosts import HOSTS, HostError
from tools.cpu_differences.monitor import Batch, Result
from tools.cpu_differences.streams import CODE, DATA, Stream

FLAGS = 0x8D5
ALL_FLAGS = 2 | FLAGS
MASKED = 0x1F80
"""MXCSR after reset."""
FLUSH_TO_ZERO = 0x8000
EMPTY, TOP = 0, 3
TAGS, STATUS, REGISTERS = 4, slice(2, 4), 5
"""In ``Result.x87``."""


@pytest.fixture(params=["model", "kvm"])
def host(request: pytest.FixtureRequest) -> Any:
    """One that runs a batch of cases."""
    name: str = request.param
    run = HOSTS[name]
    try:
        run(Batch([stream("nop")]))
    except HostError as reason:
        if name == "kvm":
            pytest.skip(str(reason))
        raise
    return run


def stream(
    source: str,
    *,
    rax: int = 0,
    rdx: int = 0,
    mxcsr: int = MASKED,
    tags: int = EMPTY,
    vectors: bytes = b"",
    memory: bytes = b"",
) -> Stream:
    """A case of one piece of 64-bit code; RSI points to ``memory``, all flags are set."""
    head = struct.pack("<HHBxHQQII", 0x37F, TOP << 11, tags, 0, 0, 0, mxcsr, 0)
    registers = [rax, 0, rdx, 0, DATA + 0x800, 0, DATA, 0, *[0] * 8]
    return Stream(
        0,
        64,
        (assemble(source, 64),),
        (0, 0),
        tuple(registers),
        ALL_FLAGS,
        (head.ljust(160, b"\0") + vectors).ljust(512, b"\0"),
        memory.ljust(PAGE_SIZE, b"\0"),
    )


def result(host: Any, case: Stream) -> Result:
    """Of a case that comes to its end."""
    found: Result = host(Batch([case]))[0]
    assert found.at_end
    return found


def top(found: Result) -> int:
    """Which register of x87 is ST0."""
    return int.from_bytes(found.x87[STATUS], "little") >> 11 & 7


@pytest.mark.parametrize("compare", ["pcmpestri", "pcmpestrm"])
@pytest.mark.parametrize("prefix", [b"\x66", b"\x66\x48"], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("length", [1 << 31, 1 << 63, (1 << 31) + 1, 17, -17 & (1 << 64) - 1])
def test_strings_of_any_length_are_compared_as_those_of_16_bytes(
    host: Any, compare: str, prefix: bytes, length: int
) -> None:
    opcode = {"pcmpestri": 0x61, "pcmpestrm": 0x60}[compare]
    code = "db " + ", ".join(
        hex(byte) for byte in (*prefix, 0x0F, 0x3A, opcode, 0xC1, 0x04)
    )  # xmm0, xmm1, ranges
    vectors = bytes(range(16)) + b"\xff" * 15 + b"\x05"
    is_whole = length & 0xFFFFFFFF if prefix == b"\x66" else length
    found = result(host, stream(code, rax=length, rdx=length, vectors=vectors))
    expected = result(
        host, stream(code, rax=16 if is_whole else 0, rdx=16 if is_whole else 0, vectors=vectors)
    )
    assert found.registers[1] == expected.registers[1]
    assert found.vectors == expected.vectors
    assert found.flags & FLAGS == expected.flags & FLAGS
    assert (found.registers[0], found.registers[2]) == (length, length)


def test_a_rex_prefix_names_no_ninth_mmx_register(host: Any) -> None:
    code = "db 0x44, 0x0f, 0x38, 0x1e, 0x26"  # pabsd mm4, [rsi] with REX.R
    found = result(host, stream(code, vectors=b"\x11" * 256, memory=b"\xff" * 8))
    assert (found.mxcsr, found.vectors) == (MASKED, b"\x11" * 256)
    assert found.x87[REGISTERS + 40 : REGISTERS + 48] == b"\x01\0\0\0" * 2


@pytest.mark.parametrize(
    "code",
    [*(f"0x38, {opcode:#x}, 0xc1" for opcode in (*range(0x0C), *range(0x1C, 0x1F))), "0x3a, 0x0f, 0xc1, 3"],
)
def test_ssse3_on_mmx_registers_changes_to_mmx_mode(host: Any, code: str) -> None:
    found = result(host, stream(f"db 0x0f, {code}"))  # of mm0 and mm1
    assert found.x87[TAGS] == 0xFF
    assert top(found) == 0


def test_emms_empties_all_and_sets_the_top(host: Any) -> None:
    found = result(host, stream("emms", tags=0xFF))
    assert found.x87[TAGS] == 0
    assert top(found) == 0


@pytest.mark.parametrize(
    ("opcode", "element", "sign"),
    [(1, "H", 1), (2, "I", 1), (3, "H", 1), (5, "H", -1), (6, "I", -1), (7, "H", -1)],
    ids=["phaddw", "phaddd", "phaddsw", "phsubw", "phsubd", "phsubsw"],
)
def test_neighbours_of_a_register_and_itself_are_added(
    host: Any, opcode: int, element: str, sign: int
) -> None:
    code = f"db 0x66, 0x0f, 0x38, {opcode}, 0xc0"  # of xmm0 and xmm0
    count, bits = (8, 16) if element == "H" else (4, 32)
    numbers = list(range(1, count + 1))
    found = result(host, stream(code, vectors=struct.pack(f"<{count}{element}", *numbers)))
    pairs = [
        (one + sign * other) % (1 << bits) for one, other in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    assert list(struct.unpack_from(f"<{count}{element}", found.vectors)) == pairs * 2


def test_an_x87_store_fills_the_register(host: Any) -> None:
    found = result(host, stream("fld1; fst st3"))
    assert top(found) == TOP - 1
    assert found.x87[TAGS] == 1 << TOP - 1 | 1 << TOP + 2


@pytest.mark.parametrize("number", [1e10, -1e10, float("inf"), float("nan"), 2.0**31])
def test_truncation_to_an_integer_that_is_too_small_stores_the_least_one(host: Any, number: float) -> None:
    code = "fld qword [rsi]; fisttp dword [rsi + 8]; fld qword [rsi]; fisttp word [rsi + 16]"
    found = result(host, stream(code, memory=struct.pack("<d", number)))
    assert struct.unpack_from("<i4xh", found.memory, 8) == (-(1 << 31), -(1 << 15))


@pytest.mark.parametrize("number", [32768.0, 40000.0, -32769.0, 65536.0, -65536.5])
def test_truncation_to_the_smallest_integer_does_so_too(host: Any, number: float) -> None:
    found = result(host, stream("fld qword [rsi]; fisttp word [rsi + 8]", memory=struct.pack("<d", number)))
    assert struct.unpack_from("<h", found.memory, 8) == (-(1 << 15),)


@pytest.mark.parametrize("number", [1e20, -1e20, float("inf"), float("nan"), 2.0**63])
def test_truncation_to_the_largest_integer_does_so_too(host: Any, number: float) -> None:
    found = result(host, stream("fld qword [rsi]; fisttp qword [rsi + 8]", memory=struct.pack("<d", number)))
    assert struct.unpack_from("<q", found.memory, 8) == (-(1 << 63),)


@pytest.mark.parametrize("number", [0.0, 1.9, -1.9, 2147483647.0, -2147483648.0])
def test_truncation_to_an_integer_stores_what_fits(host: Any, number: float) -> None:
    code = "fld qword [rsi]; fisttp dword [rsi + 8]; fld qword [rsi]; fisttp qword [rsi + 16]"
    found = result(host, stream(code, memory=struct.pack("<d", number)))
    assert struct.unpack_from("<i4xq", found.memory, 8) == (int(number), int(number))


@pytest.mark.parametrize("compare", ["fcomi", "fucomi"])
def test_comparisons_of_x87_leave_no_other_flag_set(host: Any, compare: str) -> None:
    found = result(host, stream(f"fld1; {compare} st0, st0"))
    assert found.flags & FLAGS == 0x40


@pytest.mark.parametrize(("mxcsr", "is_zero"), [(MASKED, False), (MASKED | FLUSH_TO_ZERO, True)])
def test_small_results_of_sse_are_flushed_if_mxcsr_says_so(host: Any, mxcsr: int, is_zero: bool) -> None:
    found = result(
        host, stream("mulsd xmm0, xmm1", mxcsr=mxcsr, vectors=struct.pack("<4d", 1e-300, 0, 1e-15, 0))
    )
    assert (struct.unpack_from("<d", found.vectors)[0] == 0) == is_zero


@pytest.mark.parametrize(
    ("code", "last", "rax"),
    [
        (b"\x0f\xa4\x05", 16, 0),  # shld [rip + distance], eax, 16
        (b"\x0f\xac\x05", 16, 0),  # shrd
        (b"\xc4\xe3\x7b\xf0\x05", 0, 0x44332211),  # rorx eax, [rip + distance], 0
    ],
    ids=["shld", "shrd", "rorx"],
)
def test_addresses_are_relative_to_the_end_of_an_instruction_with_a_number(
    host: Any, code: bytes, last: int, rax: int
) -> None:
    distance = DATA + 4 - (CODE + len(code) + 5)
    source = ", ".join(map(hex, (*code, *struct.pack("<i", distance), last)))
    found = result(host, stream(f"db {source}", memory=b"\xcc\xcc\xcc\xcc\x11\x22\x33\x44\xcc\xcc"))
    expected = {0x0FA4: b"\0\0\x11\x22", 0x0FAC: b"\x33\x44\0\0"}.get(
        int.from_bytes(code[:2]), b"\x11\x22\x33\x44"
    )
    assert found.memory[:10] == b"\xcc" * 4 + expected + b"\xcc" * 2
    assert found.registers[0] == rax
