"""libvirt on the modelled KVM: its daemon in a root folder, its emulator a wrapper (libvirt formatdomain)."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.firmware_images import require_kernel
from support.kvm_guests import TEXT, bootable_disk
from support.snp_reporter import build_reporter, modules

from casemate import GuestKind, measure
from casemate.cli import main
from casemate.testing.linux_init import initramfs
from tools import rooted_libvirt
from tools.rooted_libvirt import OVMF, ROOT, SNP_SECURITY
from tools.rooted_qemu import CannotError, tree

VALIDATE = "/usr/bin/virt-qemu-sev-validate"


def run(folder: Path, steps: str) -> str:
    """What virsh and the daemon's log said; skips where this host cannot."""
    try:
        return rooted_libvirt.run(folder, steps)
    except CannotError as error:
        pytest.skip(str(error))


@pytest.mark.boot
def test_libvirt_knows_the_emulators_kvm_and_runs_a_domain(tmp_path: Path) -> None:
    bootable_disk(tmp_path)
    domain = rooted_libvirt.domain("plain", 64, disk="disk.img")
    (tmp_path / "domain.xml").write_text(domain)
    said = run(
        tmp_path,
        '$virsh domcapabilities --emulatorbin "$emulator" --virttype kvm > /casemate/run/capabilities.xml\n'
        "$virsh create /casemate/run/domain.xml\n"
        "for _ in $(seq 600); do grep -qs '\\.\\.' /casemate/run/serial && break; sleep 0.1; done\n"
        "$virsh destroy plain\n",
    )
    capabilities = ET.fromstring((tmp_path / "capabilities.xml").read_text("utf-8"))
    assert capabilities.findtext("domain") == "kvm", said
    assert [found.get("supported") for found in capabilities.iter("sev")] == ["yes"]
    assert "Domain 'plain' created" in said
    assert f"{TEXT}.." in (tmp_path / "serial").read_text("latin-1"), said
    assert "/dev/kvm is modelled" in said


@pytest.mark.boot
def test_report_out_of_an_snp_guest_of_libvirt_is_believed_outside(tmp_path: Path) -> None:
    kernel = require_kernel("trixie")
    shutil.copyfile(kernel, tmp_path / "vmlinuz")
    (tmp_path / "initrd.img").write_bytes(initramfs(build_reporter(tmp_path), modules(kernel)))
    firmware = (
        f"<loader type='rom'>{OVMF}</loader> <kernel>/casemate/run/vmlinuz</kernel>"
        "<initrd>/casemate/run/initrd.img</initrd> <cmdline>console=ttyS0 panic=-1 quiet</cmdline>"
    )
    domain = rooted_libvirt.domain("snp", 512, firmware=firmware, security=SNP_SECURITY)
    (tmp_path / "domain.xml").write_text(domain)
    wait = "for _ in $(seq 2000); do $virsh domstate snp > /dev/null 2>&1 || break; sleep 0.1; done\n"
    said = run(tmp_path, f"$virsh create /casemate/run/domain.xml\n{wait}$virsh destroy snp\n")
    serial = (tmp_path / "serial").read_text("latin-1")
    found = re.search(r"^REPORT 0 ([0-9a-f]{2368})\s*$", serial, re.MULTILINE)
    assert found, said + serial[-2000:]
    report = bytes.fromhex(found[1])
    (tmp_path / "report").write_bytes(report)
    chain = [
        word for name in ("ark", "ask", "vcek") for word in (f"--{name}", f"{tmp_path}/platform/{name}.pem")
    ]
    digest = measure(tree(ROOT) / OVMF[1:], GuestKind.SNP, vcpu_type="EPYC").digest.hex()
    data = b"data of the guest".hex().ljust(128, "0")
    line = ["--policy", "0x30000", "--measurement", digest, "--report-data", data, "--max-vmpl", "3"]
    assert main(["verify", str(tmp_path / "report"), *chain, *line]) == 0


@pytest.mark.boot
@pytest.mark.parametrize(("kind", "policy"), [("sev", 1), ("seves", 5)])
def test_libvirts_validator_accepts_the_launch_that_libvirt_made(
    tmp_path: Path, kind: str, policy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = subprocess.run(["/usr/bin/python3", "-c", "import lxml, libvirt, cryptography"], check=False)
    if not Path(VALIDATE).exists() or libraries.returncode:
        pytest.skip("needs virt-qemu-sev-validate (libvirt-clients-qemu) and python3-lxml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert main(["session", "export", "--host", "model", "platform.cert"]) == 0
    shutil.copytree(tmp_path / "state" / "casemate" / "model-platform", tmp_path / "platform")
    session = ("session", "make", "--platform", "platform.cert", "--any-root", "--policy", str(policy))
    assert main([*session, "--name", "owner"]) == 0
    security = (
        "<launchSecurity type='sev'><cbitpos>39</cbitpos><reducedPhysBits>1</reducedPhysBits>"
        f"<policy>{policy:#06x}</policy><dhCert>{(tmp_path / 'owner_godh.b64').read_text()}</dhCert>"
        f"<session>{(tmp_path / 'owner_session.b64').read_text()}</session></launchSecurity>"
    )
    firmware = f"<loader type='rom'>{OVMF}</loader>"
    domain = rooted_libvirt.domain(kind, 256, firmware=firmware, security=security)
    (tmp_path / "domain.xml").write_text(domain)
    said = run(
        tmp_path,
        "$virsh create --paused /casemate/run/domain.xml\n"
        f"$virsh domlaunchsecinfo {kind} > /casemate/run/info\n$virsh destroy {kind}\n",
    )
    info = dict(re.findall(r"^(\S+) *: (.*?) *$", (tmp_path / "info").read_text(), re.MULTILINE))
    assert "sev-measurement" in info, said[-3000:]
    image = tree(ROOT) / OVMF[1:]
    line = [
        *("--measurement", info["sev-measurement"], "--api-major", info["sev-api-major"]),
        *("--api-minor", info["sev-api-minor"], "--build-id", info["sev-build-id"]),
        *("--policy", info["sev-policy"], "--firmware", str(image)),
        *("--tik", "owner_tik.bin", "--tek", "owner_tek.bin"),
    ]
    if kind == "seves":
        dump = "measure --mode seves --vcpus 1 --vcpu-type EPYC --init legacy --dump-vmsa --ovmf"
        assert main([*dump.split(), str(image)]) == 0
        # The tool wants a second page even for one vCPU, and then measures none of it.
        line += ["--num-cpus", "1", "--vmsa-cpu0", "vmsa0.bin", "--vmsa-cpu1", "vmsa0.bin"]
    done = subprocess.run(["/usr/bin/python3", VALIDATE, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
