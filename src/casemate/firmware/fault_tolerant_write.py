"""The work block, a journal of block writes (edk2 MdeModulePkg/Universal/FaultTolerantWriteDxe).

A write goes: its record is allocated; the new blocks are written to the spare block, *spare complete*; they are copied
to where they belong, *destination complete*; the record is *complete*. Each step clears one bit. A cut between the two
middle steps leaves the destination in pieces, and the spare block whole.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

from casemate.firmware import guids

WORK_BLOCK = guids.guid("9e58292b-7c68-497d-a0ce-6500fd9f1b95")
HEADER_SIZE = 32

_HEADER = struct.Struct("<16sIB3xQ")
_WRITE = struct.Struct("<B3x16s4xQQ")
_RECORD = struct.Struct("<B7xQQQq")
_ERASED = 0xFF
_VALID = 0xFE
_ALLOCATED, _WRITES_ALLOCATED, _COMPLETE = 1, 2, 4
_SPARE_COMPLETE, _DESTINATION_COMPLETE = 2, 4
_MOST_WRITES = 16


class PendingWrite(NamedTuple):
    """A write of ``block_count`` blocks that was cut off; ``in_spare`` says that the spare block has them all."""

    offset: int
    """Of the write header, in the work block."""
    block: int
    block_count: int
    in_spare: bool


class WorkBlock(NamedTuple):
    """What a work block says; ``fault`` is why it cannot be trusted."""

    fault: str | None
    writes: int = 0
    pending: PendingWrite | None = None


def build_work_block(size: int) -> bytes:
    """The header of a work block of ``size`` bytes without any writes."""
    queue = size - HEADER_SIZE
    erased = WORK_BLOCK + b"\xff" * 8 + queue.to_bytes(8, "little")
    return erased[:16] + struct.pack("<IB", crc32(erased), _VALID) + erased[21:]


def parse_work_block(block: bytes, block_size: int) -> WorkBlock:
    """Read a whole work block; ``block_size`` is the flash's, in bytes."""
    if len(block) < HEADER_SIZE:
        return WorkBlock("it is missing")
    expected = build_work_block(len(block))
    if block[:HEADER_SIZE] != expected:
        return WorkBlock(_header_fault(block, expected))
    offset, writes = HEADER_SIZE, 0
    while offset + _WRITE.size <= len(block) and block[offset] != _ERASED:
        state, _, count, private = _WRITE.unpack_from(block, offset)
        length = _WRITE.size + count * (_RECORD.size + private)
        if state & _ALLOCATED or not 0 < count <= _MOST_WRITES or offset + length > len(block):
            return WorkBlock(f"the write at {offset:#x} is no write", writes)
        writes += 1
        if state & _COMPLETE:
            return WorkBlock(None, writes, _pending(block, offset, block_size, state))
        offset += length
    rest = block[offset:]
    if rest.count(_ERASED) != len(rest):
        return WorkBlock(f"there is something behind the last write, at {offset:#x}", writes)
    return WorkBlock(None, writes)


def _header_fault(block: bytes, expected: bytes) -> str:
    if block[:16] != WORK_BLOCK:
        return "it has no signature"
    if block[20] != _VALID and block[:20] + block[21:HEADER_SIZE] == expected[:20] + expected[21:]:
        return f"it is not marked valid (state {block[20]:#04x})"
    return "its checksum or its size is wrong"


def _pending(block: bytes, offset: int, block_size: int, state: int) -> PendingWrite | None:
    if state & _WRITES_ALLOCATED:
        return PendingWrite(offset, 0, 0, False)  # the record was not written yet
    bits, lba, start, length, _ = _RECORD.unpack_from(block, offset + _WRITE.size)
    if not bits & _DESTINATION_COMPLETE:
        return None
    blocks = -(-(start + length) // block_size)
    return PendingWrite(offset, lba, blocks, not bits & _SPARE_COMPLETE)
