"""LZMA streams in firmware sections, unpacked within bounds (edk2 MdeModulePkg/Library/LzmaCustomDecompressLib)."""

from __future__ import annotations

import lzma

from casemate.firmware import guids

LZMA_MEMORY = 40 << 20
"""Bytes that a decoder may use; edk2 packs with a dictionary of 16 MiB. A stream that needs more is an LZMAError."""

_GUID_DEFINED_SECTION = 0x02


def open_decoder() -> lzma.LZMADecompressor:
    """A decoder for one stream; feed it with a limit on what it may return."""

    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY)


def find_lzma_stream(data: bytes) -> int | None:
    """Offset of the first LZMA stream that a firmware section in ``data`` holds, or None."""
    position = data.find(guids.LZMA_SECTION)
    while position >= 0:
        start = position - 4
        if start >= 0 and data[start + 3] == _GUID_DEFINED_SECTION:
            return start + int.from_bytes(data[position + 16 : position + 18], "little")
        position = data.find(guids.LZMA_SECTION, position + 1)
    return None
