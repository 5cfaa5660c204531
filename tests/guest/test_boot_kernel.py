"""A distribution's kernel by ``--kernel`` and ``--initrd``: the firmware's loader starts it (Debian's cloud kernel)."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from firmware_images import firmware_roots, require_image

from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec

pytestmark = pytest.mark.boot


def require_kernel() -> Path:
    """A cloud kernel in the folders that hold firmware, or installed; skips without one."""
    found = [path for root in firmware_roots() for path in root.glob("boot/vmlinuz-*cloud-amd64")]
    if not found:
        pytest.skip("no kernel: unpack Debian's linux-image-...-cloud-amd64 into $CASEMATE_FIRMWARE")
    return found[0]


def test_cloud_kernel_prints_its_first_lines_and_finds_its_initrd(tmp_path: Path) -> None:
    kernel, initrd = require_kernel(), tmp_path / "initrd.gz"
    initrd.write_bytes(
        gzip.compress(b"070701" + b"0" * 88 + b"0000000B" + b"00000000" + b"TRAILER!!!\0\0\0\0")
    )
    template = require_image("OVMF_VARS_4M.fd", "bookworm")
    variables = tmp_path / "VARS.fd"
    variables.write_bytes(template.read_bytes())
    spec = MachineSpec(
        code=require_image("OVMF_CODE_4M.fd", "bookworm"),
        variables=variables,
        memory=512 << 20,
        kernel=kernel,
        initrd=initrd,
        append="console=ttyS0 earlyprintk=serial,ttyS0 casemate.was=here",
    )
    outcome = boot(spec, until="Freeing initrd memory", timeout=100)
    assert "Linux version" in outcome.serial, outcome
    assert "casemate.was=here" in outcome.serial
    assert outcome.ending is Ending.UNTIL, outcome
