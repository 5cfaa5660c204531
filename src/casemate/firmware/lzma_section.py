"""LZMA streams in firmware sections, unpacked within bounds (edk2 MdeModulePkg/Library/LzmaCustomDecompressLib)."""

from __future__ import annotations

import lzma

LZMA_MEMORY = 40 << 20
"""Bytes that a decoder may use; edk2 packs with a dictionary of 16 MiB. A stream that needs more is an LZMAError."""

_STEP = 128 << 10


def open_decoder() -> lzma.LZMADecompressor:
    """A decoder for one stream; feed it with a limit on what it may return."""

    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=LZMA_MEMORY)


def head_contains(stream: bytes, wanted: bytes, limit: int) -> bool:
    """Whether the first ``limit`` bytes of a stream, or what is left of them if it is damaged, have ``wanted``."""
    decoder = open_decoder()
    head, feed = bytearray(), stream
    try:
        while len(head) < limit and not decoder.eof and wanted not in head:
            piece = decoder.decompress(feed, _STEP)
            if not piece:
                break
            head += piece
            feed = b""
    except lzma.LZMAError:
        pass  # a damaged stream: whatever came before the damage still counts
    return wanted in head
