"""libvirt on the modelled KVM: its daemon in a root folder, its emulator a wrapper (libvirt qemu.conf)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.kvm_guests import TEXT, bootable_disk

from tools.rooted_qemu import CHECKOUT, CannotError, require

ROOT = "trixie-full"
LIMIT = 240
"""Seconds after which libvirt is taken to hang."""


@pytest.mark.boot
def test_libvirt_knows_the_emulators_kvm_and_runs_a_domain(tmp_path: Path) -> None:
    try:
        packages = require()
    except CannotError as error:
        pytest.skip(str(error))
    bootable_disk(tmp_path)
    shutil.copy(Path(__file__).with_name("libvirt.sh"), tmp_path)
    binds = {CHECKOUT / "src": "src", packages: "packages", tmp_path: "run"}
    line = [sys.executable, "-m", "tools.roots", "run"]
    for folder, place in binds.items():
        line += ["--bind", f"{folder}:/casemate/{place}"]
    line += [ROOT, "--", "sh", "/casemate/run/libvirt.sh"]
    ran = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True, timeout=LIMIT, check=False)
    said = ran.stdout + ran.stderr
    capabilities = ET.fromstring((tmp_path / "capabilities.xml").read_text("utf-8"))
    assert capabilities.findtext("domain") == "kvm", said
    assert "Domain 'plain' created" in said
    assert f"{TEXT}.." in (tmp_path / "serial").read_text("latin-1"), said
    assert "/dev/kvm is modelled" in said
