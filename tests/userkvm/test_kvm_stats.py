"""KVM_GET_STATS_FD, read as monitors do: a header, descriptors, and as many numbers as those say (Linux api.rst)."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

import pytest

from casemate.abi.kvm.structs import StatsDesc, StatsHeader
from casemate.userkvm.stats import DATA_AT, VCPU_STATS, VM_STATS, make_file, open_stats


@pytest.mark.parametrize("stats", [VCPU_STATS, VM_STATS], ids=["vcpu", "vm"])
def test_numbers_lie_where_a_monitor_that_reads_no_further_finds_them(stats: Mapping[str, int]) -> None:
    numbers = make_file()
    os.pwrite(numbers, struct.pack("<16Q", *range(100, 116)), DATA_AT)
    reader = open_stats(numbers, "casemate-1", stats)
    header = StatsHeader.from_bytes(os.pread(reader, StatsHeader.SIZE, 0))
    entry = StatsDesc.SIZE + header.name_size
    descs = os.pread(reader, header.num_desc * entry, header.desc_offset)
    found = {}
    read = os.pread(reader, 8 * header.num_desc, header.data_offset)
    for at in range(0, len(descs), entry):
        desc = StatsDesc.from_bytes(descs[at : at + StatsDesc.SIZE])
        name = descs[at + StatsDesc.SIZE : at + entry].rstrip(b"\0").decode()
        assert desc.size == 1
        found[name] = struct.unpack_from("<Q", read, desc.offset)[0]
    os.close(reader)
    os.close(numbers)
    assert found == {name: 100 + place for name, place in stats.items()}
