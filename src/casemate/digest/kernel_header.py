"""What QEMU writes into a kernel's setup header before a guest sees it (QEMU hw/i386/x86-common.c; Linux boot.rst).

For confidential guests it should not: the hash would not be that of the file. Some versions do so nevertheless.
"""

from __future__ import annotations

import struct

_MAGIC = slice(0x202, 0x206)
_LOAD_FLAGS, _CAN_USE_HEAP, _LOADED_HIGH = 0x211, 0x80, 0x01
_QEMU_LOADER = 0xB0
_CMDLINE, _HEAP_END = 0x20000, 0xFE00
_OLDEST_PROTOCOL = 0x202
_ABOVE_4G = 0x02
_ACPI_RESERVE = 0x28000
_HEADER_END = 0x238


def patched_kernel(kernel: bytes, initrd_size: int, memory_below_4g: int) -> bytes | None:
    """The kernel with QEMU's loader fields, for a guest of so many bytes; None if it is no bzImage of protocol 2.02."""
    if kernel[_MAGIC] != b"HdrS" or len(kernel) < _HEADER_END or not kernel[_LOAD_FLAGS] & _LOADED_HIGH:
        return None
    (protocol,) = struct.unpack_from("<H", kernel, 0x206)
    if protocol < _OLDEST_PROTOCOL:
        return None
    head = bytearray(kernel[:_HEADER_END])
    head[0x210] = _QEMU_LOADER
    head[_LOAD_FLAGS] |= _CAN_USE_HEAP
    struct.pack_into("<H", head, 0x224, _HEAP_END)
    struct.pack_into("<I", head, 0x228, _CMDLINE)
    if initrd_size:
        top = min(_highest_initrd(kernel, protocol), memory_below_4g - _ACPI_RESERVE - 1)
        struct.pack_into("<II", head, 0x218, (top - initrd_size) & ~0xFFF, initrd_size)
    return bytes(head) + kernel[_HEADER_END:]


def _highest_initrd(kernel: bytes, protocol: int) -> int:
    if protocol >= 0x20C and kernel[0x236] & _ABOVE_4G:
        return 0xFFFFFFFF
    if protocol >= 0x203:
        return int.from_bytes(kernel[0x22C:0x230], "little")
    return 0x37FFFFFF
