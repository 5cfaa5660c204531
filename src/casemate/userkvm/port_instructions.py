"""Finds how long IN and OUT are, to complete one that was reported (Intel SDM volume 2, IN, OUT and 2.1.1)."""

from __future__ import annotations

_OPERAND_SIZE, _REX = 0x66, 0x40
_PREFIXES = frozenset({0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, _OPERAND_SIZE, 0x67, 0xF0, 0xF2, 0xF3})
_BYTE_INPUTS, _INPUTS = {0xE4, 0xEC}, {0xE5, 0xED}
_OUTPUTS = {0xE6, 0xE7, 0xEE, 0xEF}
_IMMEDIATE = range(0xE4, 0xE8)


def port_instruction(code: bytes, bits: int) -> tuple[int, int]:
    """Bytes of the IN or OUT at the start of ``code``, and the bytes that IN reads, 0 of OUT. Zeros for all others."""
    at, is_other_size = 0, False
    while at < len(code) and code[at] in _PREFIXES:
        is_other_size |= code[at] == _OPERAND_SIZE
        at += 1
    if bits == 64 and at < len(code) and code[at] & 0xF0 == _REX:
        at += 1
    opcode = code[at] if at < len(code) else 0
    size = at + (2 if opcode in _IMMEDIATE else 1)
    if opcode in _OUTPUTS:
        return size, 0
    if opcode in _BYTE_INPUTS:
        return size, 1
    if opcode in _INPUTS:
        return size, 2 if (bits == 16) != is_other_size else 4
    return 0, 0
