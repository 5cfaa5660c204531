"""Backing: lazily touched, mapped twice, and safe to let go of."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from casemate.errors import InternalError
from casemate.memory.backing import Backing


def permissions(hva: int) -> str | None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= hva < end:
            return line.split()[1]
    return None


def resident_kib() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1])


def test_backing_shows_stores_in_every_mapping() -> None:
    backing = Backing("block", 0x2000)
    again = backing.map_again(readonly=True)
    backing.writable.view[0x1234] = 0x5A
    assert again.view[0x1234] == 0x5A
    assert again.hva != backing.writable.hva
    with pytest.raises(TypeError):
        again.view[0] = 1
    backing.close()


def test_backing_maps_read_only_for_real() -> None:
    backing = Backing("block", 0x1000)
    again = backing.map_again(readonly=True)
    assert permissions(again.hva) == "r--s"
    assert permissions(backing.writable.hva) == "rw-s"
    backing.close()


def test_backing_allocation_touches_no_memory() -> None:
    before = resident_kib()
    backing = Backing("block", 1 << 30)
    assert resident_kib() - before < 4096
    backing.close()


def test_backing_closed_twice_is_harmless_and_unmaps() -> None:
    backing = Backing("block", 0x1000)
    hva = backing.writable.hva
    backing.close()
    backing.close()
    gc.collect()
    assert permissions(hva) is None


def test_backing_slice_outlives_close() -> None:
    backing = Backing("block", 0x1000)
    part = backing.writable.view[:4]
    part[0] = 7
    backing.close()
    gc.collect()
    assert part[0] == 7


@pytest.mark.parametrize("size", [0, -4096, 100, 4097])
def test_backing_of_no_whole_pages_is_refused(size: int) -> None:
    with pytest.raises(InternalError, match="multiple"):
        Backing("block", size)
