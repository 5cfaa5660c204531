"""Whether an image was built to need System Management Mode (edk2 OvmfPkg/OvmfPkgX64.fdf, SMM_REQUIRE).

Such a build holds the PEIM SmmAccessPei in its first compressed volume, 80 to 140 KB deep in every image seen
(edk2 2022.11 to 2026.08), so only the head of its LZMA stream is unpacked: 5 ms where it is found, 12 ms if
not, against 100 ms for the whole stream. File names say as much, but lie once somebody copies a file.
"""

from __future__ import annotations

from casemate.firmware import guids

_HEAD = 1 << 20
"""Bytes; the PEI volume ends below this in every OVMF layout (OvmfPkg/OvmfPkgX64.fdf)."""
_GUID_DEFINED_SECTION = 0x02


def requires_smm(data: bytes) -> bool:
    """Whether the image starts only on a board with SMM; False for what is no edk2 image at all."""
    if guids.SMM_ACCESS_PEIM in data:
        return True
    stream = _find_lzma_stream(data)
    if stream is None:
        return False
    from casemate.firmware.lzma_section import head_contains  # loads lzma

    return head_contains(data[stream:], guids.SMM_ACCESS_PEIM, _HEAD)


def _find_lzma_stream(data: bytes) -> int | None:
    """Where the first one is that a firmware section holds."""
    position = data.find(guids.LZMA_SECTION)
    while position >= 0:
        start = position - 4
        if start >= 0 and data[start + 3] == _GUID_DEFINED_SECTION:
            return start + int.from_bytes(data[position + 16 : position + 18], "little")
        position = data.find(guids.LZMA_SECTION, position + 1)
    return None
