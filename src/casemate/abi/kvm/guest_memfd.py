"""Memory that a guest keeps from its host, as the kernel takes it (Linux include/uapi/linux/kvm.h, since 6.8)."""

from __future__ import annotations

from ctypes import c_uint32, c_uint64

from casemate.abi.layout import Struct


class CreateGuestMemfd(Struct):
    """``kvm_create_guest_memfd``; ``size`` in bytes, ``flags`` 0; the ioctl returns a file descriptor."""

    SIZE = 64
    SOURCE = "include/uapi/linux/kvm.h"
    _fields_ = (("size", c_uint64), ("flags", c_uint64), ("pad", c_uint64 * 6))


class MemoryAttributes(Struct):
    """``kvm_memory_attributes``; ``size`` in bytes, ``attributes`` is MEMORY_ATTRIBUTE_PRIVATE or 0."""

    SIZE = 32
    SOURCE = "include/uapi/linux/kvm.h"
    _fields_ = (
        ("address", c_uint64),
        ("size", c_uint64),
        ("attributes", c_uint64),
        ("flags", c_uint64),
    )


class UserspaceMemoryRegion2(Struct):
    """``kvm_userspace_memory_region2``: a slot whose private half is in ``guest_memfd``."""

    SIZE = 160
    SOURCE = "include/uapi/linux/kvm.h"
    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("guest_memfd_offset", c_uint64),
        ("guest_memfd", c_uint32),
        ("pad1", c_uint32),
        ("pad2", c_uint64 * 14),
    )
