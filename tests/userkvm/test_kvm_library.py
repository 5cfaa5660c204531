"""The preloaded library: its structures as Python has them, and what it needs of the C library (ELF, manylinux)."""

from __future__ import annotations

import ctypes
import re

import pytest

from casemate import native
from casemate.userkvm.library import Inside, VcpuRecord, load

NEWEST_GLIBC = 17
"""Minor version that wheels promise (manylinux2014)."""

pytestmark = pytest.mark.skipif(not native.KVM.exists(), reason="the library was not built")


def test_structures_are_as_large_as_the_library_has_them() -> None:
    library = load()
    assert library.kvm_vcpu_size() == ctypes.sizeof(VcpuRecord)
    assert library.kvm_inside_size() == ctypes.sizeof(Inside)


def test_library_needs_no_newer_c_library_than_wheels_promise() -> None:
    versions = re.findall(rb"GLIBC_2\.(\d+)", native.KVM.read_bytes())
    assert versions
    assert max(map(int, versions)) <= NEWEST_GLIBC
