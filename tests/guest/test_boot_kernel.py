"""A distribution's kernel by ``--kernel`` and ``--initrd``: the firmware's loader starts it (Debian's cloud kernel)."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from firmware_images import require_image, require_kernel

from casemate.machine.boot import boot
from casemate.machine.outcome import Ending
from casemate.machine.spec import MachineSpec
from casemate.testing.linux_init import initramfs, printing_init

pytestmark = pytest.mark.boot


def test_cloud_kernel_prints_its_first_lines_and_finds_its_initrd(tmp_path: Path) -> None:
    kernel, initrd = require_kernel("bookworm"), tmp_path / "initrd.gz"
    initrd.write_bytes(gzip.compress(initramfs(printing_init("hello"))))
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
