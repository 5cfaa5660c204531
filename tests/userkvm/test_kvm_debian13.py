"""The QEMU of Debian 13 and of sid, in a root folder, on the modelled KVM (QEMU's own -accel kvm)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.firmware_images import require_kernel

from casemate import GuestKind, measure
from casemate.testing.linux_init import initramfs, printing_init
from tools import debian_guests
from tools.rooted_qemu import RUN, CannotError, Outcome, launch, tree
from tools.seed_table import BOOTED

ROOT = "trixie-full"
HELLO = "user mode reached"


def run(
    root: str, arguments: list[str], files: Mapping[str, Path | bytes], until: str = HELLO, limit: int = 240
) -> Outcome:
    """A launch that ends with ``until``; skips where this host cannot."""
    try:
        return launch(root, "linux-6.18", arguments, until=until, files=files, limit=limit)
    except CannotError as error:
        pytest.skip(str(error))


@pytest.mark.boot
@pytest.mark.parametrize(("root", "processor"), [("trixie-full", "max"), ("sid-full", "host")])
def test_kernel_comes_to_user_mode_on_the_cpus_of_that_qemu(root: str, processor: str) -> None:
    files: dict[str, Path | bytes] = {"kernel": require_kernel("trixie")}
    files["initrd"] = initramfs(printing_init(HELLO))
    line = ["-M", "q35", "-cpu", processor, "-m", "512", "-append", "console=ttyS0 quiet"]
    seen = run(root, [*line, "-kernel", f"{RUN}/kernel", "-initrd", f"{RUN}/initrd"], files)
    assert HELLO in seen.serial, seen.errors


@pytest.mark.boot
def test_kernel_comes_to_user_mode_as_snp_guest_whose_pages_qemu_converts() -> None:
    files: dict[str, Path | bytes] = {"kernel": require_kernel("trixie")}
    files["initrd"] = initramfs(printing_init(HELLO))
    guest = "sev-snp-guest,id=sev0,policy=0x30000,cbitpos=39,reduced-phys-bits=1"
    line = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC-v4", "-m", "512", "-object", guest]
    line += ["-bios", "/usr/share/ovmf/OVMF.fd", "-kernel", f"{RUN}/kernel", "-initrd", f"{RUN}/initrd"]
    line += ["-append", "console=ttyS0"]
    seen = run(ROOT, line, files)
    assert HELLO in seen.serial, seen.errors
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in seen.serial
    image = tree(ROOT) / "usr/share/ovmf/OVMF.fd"
    assert seen.vm["digest"] == measure(image, GuestKind.SNP, vcpu_type="EPYC-v4").digest.hex()
    assert seen.vm["conversions"]["to shared"] > 0
    assert seen.vm["conversions"]["to private"] > 0
    assert seen.vm["violations"] == []


@pytest.mark.boot
def test_snp_guest_that_qemu_11_resets_is_launched_anew_in_another_vm() -> None:
    image = tree(ROOT) / "usr/share/ovmf/OVMF.fd"
    files: dict[str, Path | bytes] = {"OVMF.fd": image}
    guest = "sev-snp-guest,id=sev0,policy=0x30000,cbitpos=39,reduced-phys-bits=1"
    line = ["-M", "q35,confidential-guest-support=sev0", "-cpu", "EPYC-v4", "-m", "256", "-object", guest]
    # Its -no-reboot is overruled.
    line += ["-bios", f"{RUN}/OVMF.fd", "-action", "reboot=reset"]
    try:
        seen = launch("sid-full", "linux-6.18", line, until=BOOTED, files=files, resets=1)
    except CannotError as error:
        pytest.skip(str(error))
    assert (seen.code, seen.serial.count(BOOTED), seen.launches) == (0, 2, 2), seen.errors
    assert "virtual machine state has been rebuilt with new guest file handle" in seen.errors
    assert seen.vm["digest"] == measure(image, GuestKind.SNP, vcpu_type="EPYC-v4").digest.hex()


@pytest.mark.boot
@pytest.mark.parametrize("root", ["bookworm-full", "trixie-full", "sid-full"])
def test_kernel_comes_to_user_mode_on_a_microvm_and_tells_the_time_by_kvms_clock(root: str) -> None:
    files: dict[str, Path | bytes] = {"kernel": require_kernel("bookworm")}
    files["initrd"] = initramfs(printing_init(HELLO))
    line = ["-M", "microvm", "-cpu", "max", "-m", "256", "-kernel", f"{RUN}/kernel"]
    line += ["-initrd", f"{RUN}/initrd", "-append", "console=ttyS0"]
    seen = run(root, line, files, limit=120)
    assert HELLO in seen.serial, seen.errors
    # Nothing else on this board says how fast the time-stamp counter is.
    assert "clocksource: kvm-clock:" in seen.serial


@pytest.mark.boot
def test_debian_on_a_virtio_disk_comes_to_its_prompt_as_confidential_guest() -> None:
    # One kind stands for the others, which python -m tools.debian_guests boots; test_kvm_libvirt.py has an SNP guest.
    try:
        seen = debian_guests.boot("sev-es")
    except CannotError as error:
        pytest.skip(str(error))
    assert debian_guests.faults_of(seen) == [], seen.errors
