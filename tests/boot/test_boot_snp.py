"""Linux as SNP guest on the modelled host: to user mode, and a report out of it (docs/guide/confidential.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.booting import BootCli
from support.firmware_images import require_image, require_kernel
from support.snp_reporter import build_reporter, modules

from casemate.abi.sev.ghcb import ExitCode
from casemate.cli import main
from casemate.testing.linux_init import initramfs, printing_init

pytestmark = pytest.mark.boot

APPEND = "console=ttyS0 panic=-1"


SNP = ("--guest", "snp", "--host", "model", "--json", "--timeout", "60")


@pytest.fixture(scope="module")
def reporter(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A first program that prints what /dev/sev-guest returns."""
    return build_reporter(tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_kernel_runs_as_snp_guest_to_its_first_program(
    release: str, tmp_path: Path, boot_cli: BootCli
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(initramfs(printing_init("hello from user mode")))
    document = boot_cli(
        *SNP, "--kernel", require_kernel(release), "--initrd", initrd, "--append", APPEND
    ).document
    serial = document["serial"]
    assert document["outcome"] == "power-off", document["detail"]
    assert "hello from user mode" in serial
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in serial
    assert "SNP guest platform device initialized" in serial
    assert not [line for line in serial.splitlines() if "BUG:" in line or "Call Trace" in line]
    requests = document["requests"]
    assert requests["vmgexits"]["msr 0x014"] > 0
    assert requests["vmgexits"][f"{ExitCode.PAGE_STATE_CHANGE:#x}"] > 0
    assert requests["vc"].get(f"{ExitCode.PAGE_NOT_VALIDATED:#x}", 0) == 0
    states = requests["page_states"]
    assert states["rescinded"] == states["to shared"]
    assert states["validated"] > states["rescinded"]
    memory = document["guest"]["memory"] // 4096
    assert sum(requests["pages"].values()) >= memory - 32, "all but the hole below 1 MiB"


def test_report_out_of_the_guest_is_believed_outside(
    reporter: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_cli: BootCli
) -> None:
    kernel = require_kernel("trixie")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(initramfs(reporter, modules(kernel)))
    words = ("--kernel", kernel, "--initrd", initrd, "--append", APPEND, "--attestation", tmp_path)
    document = boot_cli(*SNP, *words).document
    assert "Initialized SEV guest driver (using VMPCK0 communication key)" in document["serial"]
    reports = [line.split() for line in document["serial"].splitlines() if line.startswith("REPORT")]
    assert [status for _, status, _ in reports] == ["0", "0"], document["serial"][-2000:]
    monkeypatch.chdir(tmp_path)
    chain = ("--ark", "ark.pem", "--ask", "ask.pem", "--vcek", "vcek.pem", "--policy", "0x30000")
    predicted = ("--measurement", document["launch"]["digest"])
    data = ("--report-data", b"data of the guest".hex().ljust(128, "0"))
    for number, (_, _, text) in enumerate(reports):
        report = bytearray.fromhex(text)
        Path("report").write_bytes(report)
        assert main(["verify", "report", *chain, *predicted, *data, "--max-vmpl", "3"]) == 0, number
        report[0x90] ^= 1
        Path("report").write_bytes(report)
        assert main(["verify", "report", *chain, *predicted]) == 3
    assert document["requests"]["vmgexits"][f"{ExitCode.GUEST_REQUEST:#x}"] == 2


@pytest.mark.parametrize(
    ("name", "release", "text"),
    [("OVMF.amdsev.fd", "sid", "No bootable option"), ("OVMF.fd", "trixie", "Shell> ")],
)
def test_firmware_runs_as_snp_guest(name: str, release: str, text: str, boot_cli: BootCli) -> None:
    document = boot_cli(
        *SNP, "--bios", require_image(name, release), "--machine", "q35", "--until", text
    ).document
    assert document["outcome"] == "until", document["detail"]
    assert [phase["name"] for phase in document["phases"]][:3] == ["PEI", "DXE", "BDS"]
    requests = document["requests"]
    assert requests["vmgexits"][f"{ExitCode.PAGE_STATE_CHANGE:#x}"] > 10
    assert requests["page_states"]["validated"] > document["guest"]["memory"] // 4096 * 0.9
    assert f"{ExitCode.PAGE_NOT_VALIDATED:#x}" not in requests["vc"]


def test_firmware_that_uses_memory_before_it_took_it_is_stopped_and_the_page_named(
    boot_cli: BootCli,
) -> None:
    """A defect of edk2 until 2024 (its pull request 6285): the variable store is copied to unvalidated memory."""
    document = boot_cli(*SNP, "--bios", require_image("OVMF.fd", "bookworm"), "--machine", "pc").document
    assert document["outcome"] == "sev-termination"
    assert "touched 0xffe0000, private memory that it did not validate" in document["detail"]
    assert document["requests"]["vc"][f"{ExitCode.PAGE_NOT_VALIDATED:#x}"] == 1


def test_firmware_starts_the_measured_kernel_as_snp_guest(tmp_path: Path, boot_cli: BootCli) -> None:
    """Measured to the last program: firmware, kernel hashes, kernel, initrd."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(initramfs(printing_init("hello from user mode")))
    firmware = ("--bios", require_image("OVMF.amdsev.fd", "sid"), "--machine", "q35", "--kernel-hashes")
    kernel = ("--kernel", require_kernel("trixie"), "--initrd", initrd, "--append", APPEND)
    document = boot_cli(*SNP, *firmware, *kernel, "--until", "hello from user mode").document
    assert document["outcome"] == "until", document["detail"]
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in document["serial"]
