"""A UEFI variable store as a whole: where its parts lie, and a new one (edk2 VariableFormat.h, VarStore.fdf.inc).

    volume header | store header | records ... | event log | work block | spare block
    0               0x48           0x64          half - 8K   half - 4K    half

The work block and the spare block, half of the volume, serve the fault-tolerant writes that rewrite the rest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from casemate.errors import SpecError
from casemate.firmware import guids
from casemate.firmware.fault_tolerant_write import build_work_block, parse_work_block
from casemate.firmware.volume_header import VolumeHeader, build_volume_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.firmware.variables import Variable

SIZES = {0x20000: "2M", 0x84000: "4M"}
"""Bytes of the volumes that OVMF's builds have, and what distributions call them."""
LARGEST_VARIABLE = {0x20000: 0x2000, 0x84000: 0x8400}
"""Bytes of header, name and data that those builds let a variable have (OvmfPkgX64.dsc, PcdMaxVariableSize)."""
LARGEST_SIGNED_VARIABLE = {0x20000: 0x2800, 0x84000: 0x8400}
"""The same where the variable is authenticated (PcdMaxAuthVariableSize)."""
BLOCK_SIZE = 0x1000
STORE_OFFSET = 0x48
"""Where the store begins in its volume."""
HEADER_SIZE = 28
FORMATTED = 0x5A
HEALTHY = 0xFE

_HEADER = struct.Struct("<16sIBBHI")


class VariableStoreHeader(NamedTuple):
    """The start of a store, right behind the header of its volume."""

    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes of the store, header included; what follows in the volume is the spare area for rewriting it."""
    is_authenticated: bool
    """Whether variables carry time stamps and key digests, as secure boot needs."""
    is_formatted: bool
    is_healthy: bool


class StoreLayout(NamedTuple):
    """The parts of a volume of ``size`` bytes that begins the file; all offsets are from there."""

    size: int

    @property
    def spare(self) -> int:
        """The spare block: the second half."""
        return self.size // 2

    @property
    def work(self) -> int:
        """The work block."""
        return self.spare - BLOCK_SIZE

    @property
    def end(self) -> int:
        """Where records must end: the event log, which nobody uses, follows."""
        return self.work - BLOCK_SIZE


def parse_variable_store(data: bytes, volume: VolumeHeader) -> VariableStoreHeader | None:
    """The store in ``volume``, or None if its GUID is not one of a variable store."""
    offset = volume.offset + volume.header_length
    if offset + _HEADER.size > len(data):
        return None
    signature, size, layout, state, _, _ = _HEADER.unpack_from(data, offset)
    if signature not in (guids.VARIABLE_STORE, guids.AUTHENTICATED_VARIABLE_STORE):
        return None
    authenticated = signature == guids.AUTHENTICATED_VARIABLE_STORE
    return VariableStoreHeader(offset, size, authenticated, layout == FORMATTED, state == HEALTHY)


def has_rewrite_in_spare(data: bytes) -> bool:
    """Whether a rewrite was cut off that the spare block of a store holds completely."""
    layout = StoreLayout(len(data))
    pending = parse_work_block(data[layout.work : layout.spare], BLOCK_SIZE).pending
    return pending is not None and pending.in_spare


def build_volume(layout: StoreLayout, variables: Iterable[Variable], *, authenticated: bool) -> bytes:
    """A volume with these variables and no history. Raises SpecError if they do not fit."""
    signature = guids.AUTHENTICATED_VARIABLE_STORE if authenticated else guids.VARIABLE_STORE
    header = _HEADER.pack(signature, layout.end - STORE_OFFSET, FORMATTED, HEALTHY, 0, 0)
    records = b"".join(variable.encode(authenticated=authenticated) for variable in variables)
    used = STORE_OFFSET + HEADER_SIZE + len(records)
    if used > layout.end:
        cause = f"the variables take {used:#x} bytes, and the store ends at {layout.end:#x}"
        raise SpecError(cause, "delete some")
    front = build_volume_header(layout.size, guids.NVRAM_VOLUME) + header + records
    return (front.ljust(layout.work, b"\xff") + build_work_block(BLOCK_SIZE)).ljust(layout.size, b"\xff")
