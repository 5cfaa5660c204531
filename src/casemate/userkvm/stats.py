"""Statistics of a VM and of a vCPU, as files that a monitor reads at any time (Linux api.rst, KVM_GET_STATS_FD)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from casemate.abi.kvm.structs import StatsDesc, StatsHeader
from casemate.userkvm.library import Count

DATA_AT = 1024
"""Where the numbers are, 8 bytes each."""
VCPU_STATS = {
    "io_exits": Count.IO,
    "mmio_exits": Count.MMIO,
    "signal_exits": Count.INTERRUPTED,
    "exits": Count.EXITS,
}
"""The kernel's names of what the library counts, by the place of the number; QEMU reads no more numbers than there are
names, so there is no gap. A run that ends is an exit here.
"""
VM_STATS = {"remote_tlb_flush": 0, "remote_tlb_flush_requests": 1}
"""No host flushes a modelled TLB."""
_NAME_BYTES = 48
_PAGE = 4096


def open_stats(fd: int, identity: str, stats: Mapping[str, int]) -> int:
    """A descriptor for the monitor, which can only read. ``fd`` is of the file that has the numbers. Raises OSError."""
    descs_at = StatsHeader.SIZE + _NAME_BYTES
    header = StatsHeader(0, _NAME_BYTES, len(stats), StatsHeader.SIZE, descs_at, DATA_AT)
    parts = [header.to_bytes(), identity.encode().ljust(_NAME_BYTES, b"\0")]
    for name, place in stats.items():
        desc = StatsDesc(size=1, offset=8 * place)
        parts += [desc.to_bytes(), name.encode().ljust(_NAME_BYTES, b"\0")]
    os.pwrite(fd, b"".join(parts), 0)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def make_file() -> int:
    """A file of numbers that are 0. Raises OSError."""
    fd = os.memfd_create("casemate-stats")
    os.truncate(fd, _PAGE)
    return fd
