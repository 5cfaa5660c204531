"""The kernel's interface to page faults in user space (Linux include/uapi/linux/userfaultfd.h)."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

from casemate.abi.layout import Struct

SYSCALL = 323
"""userfaultfd(2) on x86-64."""
API = 0xAA
DEVICE = "/dev/userfaultfd"

_WRITE, _READ = 1 << 30, 2 << 30


class Ioctl(IntEnum):
    """Names are the header's."""

    USERFAULTFD_IOC_NEW = API << 8
    UFFDIO_API = _READ | _WRITE | 24 << 16 | API << 8 | 0x3F
    UFFDIO_REGISTER = _READ | _WRITE | 32 << 16 | API << 8
    UFFDIO_UNREGISTER = _READ | 16 << 16 | API << 8 | 0x01
    UFFDIO_WAKE = _READ | 16 << 16 | API << 8 | 0x02
    UFFDIO_WRITEPROTECT = _READ | _WRITE | 24 << 16 | API << 8 | 0x06


class Feature(IntFlag):
    """What a kernel may be able to do (UFFD_FEATURE_*)."""

    PAGEFAULT_FLAG_WP = 1 << 0
    WP_HUGETLBFS_SHMEM = 1 << 12


EVENT_PAGEFAULT = 0x12
PAGEFAULT_FLAG_WP = 1 << 1
REGISTER_MODE_WP = 1 << 1
WRITEPROTECT_MODE_WP = 1 << 0


class UffdioApi(Struct):
    """struct uffdio_api."""

    SIZE = 24
    SOURCE = "linux/userfaultfd.h"
    _fields_ = (("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64))


class UffdioRange(Struct):
    """struct uffdio_range."""

    SIZE = 16
    SOURCE = "linux/userfaultfd.h"
    _fields_ = (("start", ctypes.c_uint64), ("len", ctypes.c_uint64))


class UffdioRegister(Struct):
    """struct uffdio_register, its range spelled out."""

    SIZE = 32
    SOURCE = "linux/userfaultfd.h"
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("ioctls", ctypes.c_uint64),
    )


class UffdioWriteprotect(Struct):
    """struct uffdio_writeprotect, its range spelled out."""

    SIZE = 24
    SOURCE = "linux/userfaultfd.h"
    _fields_ = (("start", ctypes.c_uint64), ("len", ctypes.c_uint64), ("mode", ctypes.c_uint64))


class UffdMsg(Struct):
    """struct uffd_msg of a page fault."""

    SIZE = 32
    SOURCE = "linux/userfaultfd.h"
    _fields_ = (
        ("event", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 7),
        ("flags", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("ptid", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
    )
