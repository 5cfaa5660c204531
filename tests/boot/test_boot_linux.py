"""Linux without firmware on the modelled host, to user mode and back: Debian's cloud kernels (docs/guide/boot.md)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.booting import BootCli
from support.firmware_images import require_kernel

from casemate.abi.sev.ghcb import ExitCode
from casemate.linux.bzimage import unpack_vmlinux
from casemate.testing.linux_init import initramfs, printing_init

pytestmark = pytest.mark.boot

KERNELS = {"bookworm": "6.1", "trixie": "6.12"}
FEATURES = {
    "plain": None,
    "sev": "Memory Encryption Features active: AMD SEV",
    "sev-es": "Memory Encryption Features active: AMD SEV SEV-ES",
}
APPEND = "console=ttyS0 panic=-1"


MODEL = ("--host", "model", "--json", "--timeout", "60")


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    path = tmp_path / "initrd"
    path.write_bytes(initramfs(printing_init("hello from user mode")))
    return path


@pytest.fixture(scope="module")
def signals_initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the test of signals with")
    folder = tmp_path_factory.mktemp("signals")
    source = Path(__file__).with_name("signals.c")
    done = subprocess.run(
        ["gcc", "-O1", "-static", "-o", folder / "init", source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"gcc builds no static program here: {done.stderr.strip().splitlines()[-1]}")
    (folder / "initrd").write_bytes(initramfs((folder / "init").read_bytes()))
    return folder / "initrd"


@pytest.mark.parametrize("guest", FEATURES)
@pytest.mark.parametrize("release", KERNELS)
def test_kernel_runs_its_first_program_and_powers_off(
    release: str, guest: str, initrd: Path, boot_cli: BootCli
) -> None:
    words = ("--kernel", require_kernel(release), "--initrd", initrd, "--append", APPEND, "--guest", guest)
    document = boot_cli(*MODEL, *words).document
    serial = document["serial"]
    assert document["outcome"] == "power-off", document["detail"]
    assert f"Linux version {KERNELS[release]}." in serial
    assert "hello from user mode" in serial
    assert [phase["name"] for phase in document["phases"]] == ["kernel", "init"]
    lines = [line.partition("] ")[2].strip() for line in serial.splitlines() if "Memory Encryption" in line]
    assert lines == ([FEATURES[guest]] if FEATURES[guest] else [])
    assert not [line for line in serial.splitlines() if "BUG:" in line or "Call Trace" in line]
    if guest == "sev-es":
        exits, raised = document["requests"]["vmgexits"], document["requests"]["vc"]
        for code in (ExitCode.IOIO, ExitCode.CPUID, ExitCode.MSR):
            assert raised[f"{code:#x}"] > 0
        assert exits[f"{ExitCode.MMIO_WRITE:#x}"] > 100, "the local APIC is behind MMIO"


@pytest.mark.parametrize("guest", FEATURES)
@pytest.mark.parametrize("release", KERNELS)
def test_exceptions_signals_and_timers_work_in_user_mode(
    release: str, guest: str, signals_initrd: Path, boot_cli: BootCli
) -> None:
    append = f"{APPEND} quiet"
    words = ("--kernel", require_kernel(release), "--initrd", signals_initrd, "--append", append)
    document = boot_cli(*MODEL, *words, "--guest", guest).document
    bad = [line for line in document["serial"].splitlines() if "BAD" in line]
    assert bad == []
    assert "ALL IS WELL" in document["serial"], document["serial"][-2000:]
    assert document["outcome"] == "power-off"


@pytest.mark.parametrize("append", ["console=ttyS0", APPEND], ids=["stays", "resets"])
def test_kernel_without_a_root_ends_as_the_panic_that_it_is(append: str, boot_cli: BootCli) -> None:
    document = boot_cli(*MODEL, "--kernel", require_kernel(), "--append", append).document
    assert (document["outcome"], document["exit_code"]) == ("kernel-panic", 1)
    assert "Unable to mount root fs" in document["detail"]


def test_changed_command_line_or_kernel_changes_the_digest(
    initrd: Path, tmp_path: Path, boot_cli: BootCli
) -> None:
    def digest(append: str, first_program: Path) -> str:
        words = (
            "--guest",
            "sev",
            "--kernel",
            require_kernel(),
            "--initrd",
            first_program,
            "--append",
            append,
        )
        return str(boot_cli(*MODEL, *words, "--dry-run").document["digest"])

    other = tmp_path / "other"
    other.write_bytes(initramfs(printing_init("hullo from user mode")))
    digests = [
        digest(APPEND, initrd),
        digest(APPEND + " x", initrd),
        digest(APPEND, other),
        digest(APPEND, initrd),
    ]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_kernel_starts_by_its_pvh_entry(initrd: Path, tmp_path: Path, boot_cli: BootCli) -> None:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(unpack_vmlinux(require_kernel("trixie").read_bytes(), "vmlinuz"))
    words = ("--kernel", vmlinux, "--initrd", initrd, "--append", APPEND)
    document = boot_cli(*MODEL, *words).document
    assert document["outcome"] == "power-off", document["detail"]
    assert "hello from user mode" in document["serial"]
