"""Real KVM for the tests that want it."""

from __future__ import annotations

import pytest

from casemate.errors import UnsupportedError
from casemate.host.kvm.hypervisor import KvmHypervisor


def kvm_or_skip() -> KvmHypervisor:
    """Of this machine; skips the test with the reason where there is none."""
    try:
        return KvmHypervisor()
    except UnsupportedError as reason:
        pytest.skip(str(reason))
