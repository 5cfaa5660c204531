"""VMMCALL of a plain guest, which KVM answers by itself (Linux Documentation/virt/kvm/x86/hypercalls.rst)."""

from __future__ import annotations

import pytest
from contract_hosts import END, ContractRig, HostName, family, on_each_host

from casemate.host.exits import Interrupted

TELL = f"out 0x88, eax; shr rax, 32; out 0x88, eax {END}"
"""RAX to a port, lower half first."""


@on_each_host
@pytest.mark.parametrize("user", [False, True], ids=["supervisor", "user"])
@pytest.mark.parametrize("number", [99, 1])
def test_hypercall_is_answered_and_the_guest_goes_on(host: HostName, user: bool, number: int) -> None:
    if family(host) == "kvm_pvm":
        pytest.skip(
            "it rewrites the instruction to its own processor's, which in a read-only slot never ends"
        )
    result = -1 if user else 0 if number == 1 else -1000
    with ContractRig(host, f"mov eax, {number}; vmmcall; {TELL}", 64, user=user) as rig:
        assert rig.run() == Interrupted()
        assert rig.ended
        low, high = (value for _, port, _, value in rig.accesses if port == 0x88)
        assert low | high << 32 == result & (1 << 64) - 1
