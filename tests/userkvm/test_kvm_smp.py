"""Guests of several vCPUs of Debian's QEMUs, in root folders, on the modelled KVM (tools/qemu_smp.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.firmware_images import require_kernel

from tools.qemu_smp import Boot, files, problem_of
from tools.rooted_qemu import CannotError


# These stand for all, which python -m tools.qemu_smp boots.
@pytest.mark.boot
@pytest.mark.parametrize(
    "boot",
    [
        Boot("bookworm-full", "sev-es", "Linux", 2),
        Boot("trixie-full", "snp", "Linux", 4),
        Boot("sid-full", "plain", "OVMF", 4),
    ],
    ids=lambda boot: "-".join(map(str, boot)),
)
def test_guest_of_several_vcpus_uses_all_of_them(boot: Boot, tmp_path: Path) -> None:
    try:
        assert problem_of(boot, files(require_kernel("trixie"), tmp_path)) == ""
    except CannotError as error:
        pytest.skip(str(error))
