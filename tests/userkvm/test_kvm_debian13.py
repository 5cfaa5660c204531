"""Debian 13's QEMU, in a root folder, on the modelled KVM (QEMU's own -accel kvm)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.firmware_images import require_kernel

from casemate import GuestKind, measure
from casemate.testing.linux_init import initramfs, printing_init
from tools.rooted_qemu import CHECKOUT, RUN, CannotError, launch, require, tree
from tools.roots.make import is_made, root_folder
from tools.roots.recipes import RECIPES

ROOT, LIMIT = "trixie-full", 240
"""The root, and seconds after which a guest is taken to hang."""
HELLO = "user mode reached"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """QEMU in the root, which sees ``folder`` as /casemate/run."""
    try:
        packages = require()
    except CannotError as error:
        pytest.skip(str(error))
    binds = {CHECKOUT / "src": "src", packages: "packages", folder: "run"}
    line = [sys.executable, "-m", "tools.roots", "run"]
    for shown, place in binds.items():
        line += ["--bind", f"{shown}:/casemate/{place}"]
    line += [ROOT, "--", "env", "PYTHONPATH=/casemate/src:/casemate/packages", "PYTHONDONTWRITEBYTECODE=1"]
    line += ["timeout", "-s", "KILL", str(LIMIT), "python3", "-m", "casemate", "kvm", "--"]
    line += ["qemu-system-x86_64", "-accel", "kvm", "-nodefaults", "-display", "none", "-net", "none"]
    line += ["-serial", "file:/casemate/run/serial", "-no-reboot", *arguments]
    return subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True, check=False)


@pytest.mark.boot
@pytest.mark.parametrize("processor", ["EPYC-v4", "max"])
def test_kernel_comes_to_user_mode_on_the_cpus_of_that_qemu(tmp_path: Path, processor: str) -> None:
    kernel = require_kernel("trixie")
    shutil.copy(kernel, tmp_path / "kernel")
    (tmp_path / "initrd").write_bytes(initramfs(printing_init(HELLO)))
    files = ("-kernel", "/casemate/run/kernel", "-initrd", "/casemate/run/initrd")
    ran = run(tmp_path, "-M", "q35", "-cpu", processor, "-m", "512", *files, "-append", "console=ttyS0 quiet")
    assert ran.returncode == 0, ran.stderr
    assert HELLO in (tmp_path / "serial").read_text("latin-1")


@pytest.mark.boot
def test_kernel_comes_to_user_mode_as_snp_guest_whose_pages_qemu_converts() -> None:
    files: dict[str, Path | bytes] = {"kernel": require_kernel("trixie")}
    files["initrd"] = initramfs(printing_init(HELLO))
    guest = "sev-snp-guest,id=sev0,policy=0x30000,cbitpos=39,reduced-phys-bits=1"
    line = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC-v4", "-m", "512", "-object", guest]
    line += ["-bios", "/usr/share/ovmf/OVMF.fd", "-kernel", f"{RUN}/kernel", "-initrd", f"{RUN}/initrd"]
    line += ["-append", "console=ttyS0"]
    try:
        seen = launch(ROOT, "linux-6.18", line, until=HELLO, files=files)
    except CannotError as error:
        pytest.skip(str(error))
    assert HELLO in seen.serial, seen.errors
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in seen.serial
    image = tree(ROOT) / "usr/share/ovmf/OVMF.fd"
    assert seen.vm["digest"] == measure(image, GuestKind.SNP, vcpu_type="EPYC-v4").digest.hex()
    assert seen.vm["conversions"]["to shared"] > 0
    assert seen.vm["conversions"]["to private"] > 0
    assert seen.vm["violations"] == []


@pytest.mark.boot
def test_kernel_comes_to_user_mode_on_a_microvm_whose_clock_is_the_tsc() -> None:
    files: dict[str, Path | bytes] = {"kernel": require_kernel("bookworm")}
    files["initrd"] = initramfs(printing_init(HELLO))
    line = ["-M", "microvm,acpi=off", "-cpu", "max", "-m", "256", "-kernel", f"{RUN}/kernel"]
    line += ["-initrd", f"{RUN}/initrd", "-append", "earlyprintk=serial,ttyS0 console=ttyS0"]
    try:
        seen = launch(ROOT, "linux-6.18", line, until=HELLO, files=files, limit=120)
    except CannotError as error:
        pytest.skip(str(error))
    assert HELLO in seen.serial, seen.errors


@pytest.mark.boot
@pytest.mark.parametrize(
    "guest",
    [
        "sev-guest,id=sev0,policy=0x1,",
        "sev-guest,id=sev0,policy=0x5,legacy-vm-type=off,",
        "sev-snp-guest,id=sev0,policy=0x30000,",
    ],
    ids=["sev", "sev-es", "snp"],
)
def test_debian_on_a_virtio_disk_comes_to_its_prompt_as_confidential_guest(guest: str) -> None:
    if not is_made(RECIPES["disk"]):
        pytest.skip("there is no root disk: ./dev roots make disk")
    disk = root_folder(RECIPES["disk"])
    files: dict[str, Path | bytes] = {name: disk / name for name in ("vmlinuz", "initrd.img", "root.ext4")}
    line = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC-v4", "-m", "512"]
    line += ["-object", f"{guest}cbitpos=39,reduced-phys-bits=1", "-bios", "/usr/share/ovmf/OVMF.fd"]
    line += ["-kernel", f"{RUN}/vmlinuz", "-initrd", f"{RUN}/initrd.img"]
    line += ["-append", "root=/dev/vda rw console=ttyS0"]
    line += ["-drive", f"if=none,id=d,format=raw,file={RUN}/root.ext4"]
    line += ["-device", "virtio-blk-pci,drive=d,disable-legacy=on,iommu_platform=on"]
    try:
        seen = launch(ROOT, "linux-6.18", line, until="root@guest:~#", files=files, limit=600)
    except CannotError as error:
        pytest.skip(str(error))
    assert "root@guest:~#" in seen.serial, seen.errors
    assert seen.vm["violations"] == []
