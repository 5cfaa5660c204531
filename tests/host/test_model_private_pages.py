from __future__ import annotations

import ctypes
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.address import PAGE_SIZE, Hva
from casemate.host.model.encrypted_memory import PrivatePages

PAGES = 8
SIZE = PAGES * PAGE_SIZE


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, SIZE)


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def seen_by_guest(private: PrivatePages, hva: int, size: int) -> bytes:
    return b"".join(ctypes.string_at(at, length) for at, length in private.cut(hva, size))


@given(st.lists(st.tuples(st.integers(0, SIZE // 16 - 1), st.integers(1, 600)), max_size=8))
def test_guest_sees_plaintext_wherever_memory_was_encrypted(updates: list[tuple[int, int]]) -> None:
    memory = mmap.mmap(-1, SIZE)
    start = address(memory)
    memory[:] = bytes(index * 7 & 0xFF for index in range(SIZE))
    expected = bytearray(memory[:])
    private = PrivatePages()
    for number, (block, blocks) in enumerate(updates):
        offset = block * 16
        plaintext = bytes((number + 1,)) * min(blocks * 16, SIZE - offset)
        pages = private.add(Hva(start + offset), plaintext)
        assert pages.start % PAGE_SIZE == pages.stop % PAGE_SIZE == 0
        memory[offset : offset + len(plaintext)] = b"\xee" * len(plaintext)
        expected[offset : offset + len(plaintext)] = plaintext
    assert seen_by_guest(private, start, SIZE) == expected


def test_host_stores_are_lost_on_private_pages_only(memory: mmap.mmap) -> None:
    private = PrivatePages()
    start = address(memory)
    private.add(Hva(start + PAGE_SIZE), bytes(16))
    memory[PAGE_SIZE + 100] = 0x41
    memory[0] = memory[2 * PAGE_SIZE] = 0x42
    seen = seen_by_guest(private, start, SIZE)
    assert (seen[PAGE_SIZE + 100], seen[0], seen[2 * PAGE_SIZE]) == (0, 0x42, 0x42)


def test_parts_of_a_range_are_cut_at_private_pages(memory: mmap.mmap) -> None:
    private = PrivatePages()
    start = address(memory)
    private.add(Hva(start + 2 * PAGE_SIZE), bytes(2 * PAGE_SIZE))
    sizes = [size for _, size in private.cut(start, SIZE)]
    assert sizes == [2 * PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE]
    assert [size for _, size in private.cut(start + 3 * PAGE_SIZE, PAGE_SIZE)] == [PAGE_SIZE]
    assert list(private.cut(start, PAGE_SIZE)) == [(start, PAGE_SIZE)]
