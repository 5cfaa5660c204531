"""A distribution's kernel that stock firmware starts: to user mode and off again (Debian's cloud kernels and OVMF)."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.booting import BootCli
from support.firmware_images import require_image, require_kernel

from casemate.testing.linux_init import initramfs, printing_init

pytestmark = pytest.mark.boot

HELLO = "hello from user mode"
DEBUG_SWAP = ("--guest", "sev-es", "--feature", "debug-swap", "--host", "model:linux-6.18")


@pytest.fixture
def kernel_words(tmp_path: Path) -> list[str]:
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(gzip.compress(initramfs(printing_init(HELLO))))
    append = "console=ttyS0 panic=-1 casemate.was=here"
    return ["--initrd", str(initrd), "--append", append, "--memory", "512M", "--timeout", "100"]


def flash(release: str, folder: Path) -> list[str]:
    template = require_image("OVMF_VARS_4M.fd", release)
    variables = shutil.copy(template, folder / template.name)
    return ["--code", str(require_image("OVMF_CODE_4M.fd", release)), "--vars", str(variables)]


def assert_ran_to_its_end(document: dict[str, Any]) -> None:
    serial = document["serial"]
    assert document["outcome"] == "power-off", document["detail"]
    assert document["exit_code"] == 0
    assert HELLO in serial
    assert "casemate.was=here" in serial
    assert "ACPI: Interpreter enabled" in serial
    assert document["writes"]["violations"] == 0


@pytest.mark.parametrize(
    ("kernel", "firmware", "machine", "timer"),
    [
        ("bookworm", "bookworm", "q35", 0x608),
        ("trixie", "trixie", "q35", 0x608),
        ("trixie", "bookworm", "pc", 0xB008),
    ],
)
def test_kernel_finds_the_machine_by_acpi_and_powers_it_off(
    kernel: str,
    firmware: str,
    machine: str,
    timer: int,
    kernel_words: list[str],
    tmp_path: Path,
    boot_cli: BootCli,
) -> None:
    image = str(require_kernel(kernel))
    words = [*flash(firmware, tmp_path), "--machine", machine, "--kernel", image, *kernel_words]
    document = boot_cli("--json", "--host", "model", *words).document
    assert_ran_to_its_end(document)
    assert f"PM-Timer IO Port: {timer:#x}" in document["serial"], "where this firmware put the ACPI block"


def test_kernel_runs_in_the_guest_whose_flash_kvm_cannot_protect(
    kernel_words: list[str], tmp_path: Path, boot_cli: BootCli
) -> None:
    """Firmware from flash behind read-only mappings, and a whole operating system above it, without one write there."""
    words = [*flash("trixie", tmp_path), *DEBUG_SWAP, "--kernel", str(require_kernel("trixie"))]
    document = boot_cli("--json", "--host", "model", *words, *kernel_words).document
    assert_ran_to_its_end(document)
    assert "Memory Encryption Features active: AMD SEV SEV-ES" in document["serial"]
    assert [unit["protection"] for unit in document["flash"]] == ["readonly-vma", "readonly-vma"]


def test_snp_firmware_starts_the_kernel_that_was_measured_and_it_powers_off(
    kernel_words: list[str], boot_cli: BootCli
) -> None:
    image = require_image("OVMF.amdsev.fd", "sid")
    words = ["--guest", "snp", "--bios", str(image), "--kernel", str(require_kernel("trixie"))]
    document = boot_cli("--json", "--host", "model", *words, "--kernel-hashes", *kernel_words).document
    assert_ran_to_its_end(document)
    assert "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP" in document["serial"]
