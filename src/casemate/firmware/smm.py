"""Whether an image was built to need System Management Mode (edk2 OvmfPkg/OvmfPkgX64.fdf, SMM_REQUIRE).

Such a build holds the PEIM SmmAccessPei in its first compressed volume, 80 to 140 KB deep in every image seen
(edk2 2022.11 to 2026.08), so only the head of its LZMA stream is unpacked: 5 ms where it is found, 12 ms if
not, against 100 ms for the whole stream. File names say as much, but lie once somebody copies a file.
"""

from __future__ import annotations

import lzma

from casemate.firmware import guids
from casemate.firmware.lzma_section import find_lzma_stream, open_decoder

_HEAD = 1 << 20
"""Bytes; the PEI volume ends below this in every OVMF layout (OvmfPkg/OvmfPkgX64.fdf)."""
_STEP = 128 << 10


def requires_smm(data: bytes) -> bool:
    """Whether the image starts only on a board with SMM; False for what is no edk2 image at all."""
    if guids.SMM_ACCESS_PEIM in data:
        return True
    stream = find_lzma_stream(data)
    return stream is not None and guids.SMM_ACCESS_PEIM in _unpack_head(data, stream)


def _unpack_head(data: bytes, stream: int) -> bytes:
    decoder = open_decoder()
    head, feed = bytearray(), data[stream:]
    try:
        while len(head) < _HEAD and not decoder.eof and guids.SMM_ACCESS_PEIM not in head:
            piece = decoder.decompress(feed, _STEP)
            if not piece:
                break
            head += piece
            feed = b""
    except lzma.LZMAError:
        pass  # a damaged stream: whatever came before the damage still counts
    return bytes(head)
