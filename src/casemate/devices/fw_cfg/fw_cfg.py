"""The fw_cfg device: named items that firmware reads by port or by DMA (QEMU docs/specs/fw_cfg.rst)."""

from __future__ import annotations

import struct

from casemate.devices.fw_cfg.keys import FILE_NAME_SIZE, WRITE_CHANNEL, DmaControl, Feature, Key
from casemate.errors import SpecError
from casemate.events import EventSink, Milestone
from casemate.memory.guest_memory import GuestMemory

_SELECTOR, _DATA, _DMA_HIGH, _DMA_LOW, _END = 0, 1, 4, 8, 12
_DMA_SIGNATURE = b"QEMU CFG"
_DMA_REQUEST = struct.Struct(">IIQ")
_DMA_CONTROL = struct.Struct(">I")
_ZEROS = bytes(1 << 20)
_Item = bytes | bytearray


class FwCfg:
    """Twelve ports: selector, data, and the big-endian address of a DMA request.

    Reports the milestone ``PEI`` at the first selection. Whatever the guest asks for is answered: unknown items are
    empty, reads behind the end give zeros, bad DMA gives the error bit.
    """

    def __init__(self, memory: GuestMemory, sink: EventSink) -> None:
        self._memory = memory
        self._sink = sink
        self._items: dict[int, _Item] = {}
        self._files: dict[str, _Item] = {}
        self._selected: _Item = b""
        self._offset = 0
        self._dma_high = 0
        self._was_selected = False
        self.add_item(Key.SIGNATURE, b"QEMU")
        self.add_item(Key.ID, (Feature.TRADITIONAL | Feature.DMA).to_bytes(4, "little"))
        self._rebuild_directory()

    def add_item(self, key: int, data: bytes) -> None:
        """Offer ``data`` under a fixed selector."""
        self._items[key] = data

    def add_file(self, name: str, data: bytes, *, writable: bool = False) -> None:
        """Offer ``data`` as a file; ``writable`` lets the guest change it by DMA.

        Raises SpecError for a name that is taken, too long or not ASCII. Files get their selectors in the order of
        their names, so all must be there before the guest runs.
        """
        if not (name.isascii() and 0 < len(name) < FILE_NAME_SIZE) or "\0" in name:
            raise SpecError(f"fw_cfg file name {name!r}: not 1 to {FILE_NAME_SIZE - 1} ASCII characters")
        if name in self._files:
            raise SpecError(f"fw_cfg file {name!r} is given twice")
        self._files[name] = bytearray(data) if writable else data
        self._rebuild_directory()

    def replace_file(self, name: str, data: bytes) -> None:
        """Change what a file holds from the next selection on; its size stays. Raises SpecError if it would not."""
        if len(data) != len(self._files.get(name, b"")):
            raise SpecError(f"fw_cfg file {name!r} cannot change its size")
        self._files[name] = data
        self._rebuild_directory()

    def file(self, name: str) -> bytes | None:
        """The contents of a file now, or None if there is none of this name."""
        data = self._files.get(name)
        return None if data is None else bytes(data)

    def read_port(self, offset: int, size: int) -> int | None:
        """IN of ``size`` bytes: the next byte of the item, or the DMA signature."""
        if offset == _DATA and size == 1:
            position = self._offset
            if position >= len(self._selected):
                return 0
            self._offset = position + 1
            return self._selected[position]
        if offset == _SELECTOR:
            return 0
        if offset >= _DMA_HIGH and offset + size <= _END:
            start = offset - _DMA_HIGH
            return int.from_bytes(_DMA_SIGNATURE[start : start + size], "little")
        return None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        """OUT of ``size`` bytes: select an item, or start DMA with the low half of the address."""
        if offset == _SELECTOR and size == 2:
            self._select(value)
        elif offset == _DATA and size == 1:
            pass  # the write channel of old versions: taken and ignored
        elif offset == _DMA_HIGH and size == 4:
            self._dma_high = _swap32(value)
        elif offset == _DMA_LOW and size == 4:
            gpa = self._dma_high << 32 | _swap32(value)
            self._dma_high = 0
            self._dma(gpa)
        else:
            return False
        return True

    def reset(self) -> None:
        """Forget selection and DMA address; items stay."""
        self._selected, self._offset, self._dma_high = b"", 0, 0

    def _select(self, key: int) -> None:
        if not self._was_selected:
            self._was_selected = True
            self._sink.report(Milestone("PEI"))
        self._selected = self._items.get(key & ~WRITE_CHANNEL, b"")
        self._offset = 0

    def _dma(self, gpa: int) -> None:
        request = self._memory.read(gpa, _DMA_REQUEST.size)
        if request is None:
            return  # no control word to answer in; the bad address was reported
        control, length, target = _DMA_REQUEST.unpack(request)
        if control & DmaControl.SELECT:
            self._select(control >> 16)
        done = True
        if control & DmaControl.READ:
            done = self._dma_read(target, length)
        elif control & DmaControl.WRITE:
            done = self._dma_write(target, length)
        elif control & DmaControl.SKIP:
            self._offset = min(self._offset + length, len(self._selected))
        self._memory.write(gpa, _DMA_CONTROL.pack(0 if done else DmaControl.ERROR))

    def _dma_read(self, target: int, length: int) -> bool:
        data = memoryview(self._selected)[self._offset : self._offset + length]
        self._offset += len(data)
        if data and not self._memory.write(target, data):
            return False
        # A guest may ask for 4 GiB of nothing: zeros go out of one small block.
        for position in range(len(data), length, len(_ZEROS)):
            chunk = memoryview(_ZEROS)[: length - position]
            if not self._memory.write(target + position, chunk):
                return False
        return True

    def _dma_write(self, source: int, length: int) -> bool:
        item, start = self._selected, self._offset
        if not isinstance(item, bytearray) or start + length > len(item):
            return False
        data = self._memory.read(source, length)
        if data is None:
            return False
        item[start : start + length] = data
        self._offset += length
        return True

    def _rebuild_directory(self) -> None:
        files = sorted(self._files.items())
        directory = bytearray(struct.pack(">I", len(files)))
        for key, (name, data) in enumerate(files, Key.FILE_FIRST):
            self._items[key] = data
            directory += struct.pack(f">IHH{FILE_NAME_SIZE}s", len(data), key, 0, name.encode())
        self._items[Key.FILE_DIR] = bytes(directory)


def _swap32(value: int) -> int:
    return int.from_bytes((value & 0xFFFFFFFF).to_bytes(4, "little"), "big")
