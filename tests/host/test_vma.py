"""What is said of this process's mappings is what they are."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from casemate.host import vma

PAGE = mmap.PAGESIZE
NONE, READ, WRITE = 0, mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE


@pytest.mark.parametrize(
    ("protections", "first", "pages", "readable", "writable"),
    [
        ([WRITE] * 3, 0, 3, True, True),
        ([WRITE, READ, WRITE], 0, 3, True, False),  # three mappings, one behind the other
        ([WRITE, READ, WRITE], 0, 1, True, True),
        ([WRITE, READ, WRITE], 2, 1, True, True),
        ([WRITE, NONE, WRITE], 0, 3, False, False),
        ([WRITE, WRITE, NONE], 0, 2, True, True),
        ([WRITE, WRITE, NONE], 1, 2, False, False),
        ([READ, READ, READ], 1, 1, True, False),
    ],
)
def test_all_of_a_range_must_allow_the_access(
    protections: list[int], first: int, pages: int, *, readable: bool, writable: bool
) -> None:
    with mmap.mmap(-1, len(protections) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        byte = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(byte)
        del byte
        libc = ctypes.CDLL(None, use_errno=True)
        for number, protection in enumerate(protections):
            at = ctypes.c_void_p(start + number * PAGE)
            assert libc.mprotect(at, ctypes.c_size_t(PAGE), protection) == 0
        assert vma.is_readable(start + first * PAGE, pages * PAGE) is readable
        assert vma.is_writable(start + first * PAGE, pages * PAGE) is writable


def test_what_is_not_mapped_allows_nothing() -> None:
    assert not vma.is_readable(PAGE, PAGE)
    assert not vma.is_writable(PAGE, PAGE)


def test_part_of_a_page_is_asked_for_too() -> None:
    with mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        byte = ctypes.c_char.from_buffer(memory)
        start = ctypes.addressof(byte)
        del byte
        assert vma.is_writable(start + 100, 1)
