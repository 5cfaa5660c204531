"""Whether firmware compares a kernel with its measured hashes (edk2 OvmfPkg/AmdSev/BlobVerifierLibSevHashes).

The library that compares is linked into a driver, so no file is named after it. But it finds the entries of the table
by their GUIDs: a build in which no program holds the kernel's GUID compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from casemate.firmware.guids import GUID_SIZE, KERNEL_HASH_ENTRY
from casemate.firmware.volume import FirmwareVolume

_LOADER = "QemuKernelLoaderFsDxe"
_WORD = 4


class HashUse(StrEnum):
    """What becomes of the table of kernel hashes in the guest."""

    COMPARED = "compared"
    """A driver looks for the kernel's entry."""
    IGNORED = "not compared"
    """The driver that loads kernels is there, and neither it nor any other program looks for the entry."""
    UNKNOWN = "unknown"


def hash_use(volumes: Iterable[FirmwareVolume]) -> HashUse:
    """What the drivers of ``volumes`` do with kernel hashes, as far as their contents tell."""
    files = [file for volume in volumes for file in volume.all_files()]
    if any(_holds_entry(file.program) for file in files):
        return HashUse.COMPARED
    has_loader = any(file.name == _LOADER and file.program for file in files)
    return HashUse.IGNORED if has_loader else HashUse.UNKNOWN


def _holds_entry(program: bytes) -> bool:
    # A compiler may store the GUID whole or as immediates of instructions, none shorter than a word.
    return all(KERNEL_HASH_ENTRY[at : at + _WORD] in program for at in range(0, GUID_SIZE, _WORD))
