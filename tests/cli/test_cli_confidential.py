from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.booting import BootCli
from support.confidential_launches import HASHES, UNIT0, write_guest, write_kernel, write_variables
from support.firmware_images import require_image

from casemate.cli import main
from casemate.firmware import guids
from casemate.guests.actions import ask_for_reset, print_text, store, tell, tell_memory
from casemate.guests.entry import IMAGE_SIZE
from casemate.testing.images import ImageBuilder, kernel_loader

DEBUG_SWAP = ("--guest", "sev-es", "--feature", "debug-swap")


BootJson = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def boot(boot_cli: BootCli) -> BootCli:
    """A small guest that cannot go on for ever."""
    return functools.partial(boot_cli, "--timeout", "20", "--memory", "16M", "--serial", "none")


@pytest.fixture
def boot_json(boot: BootCli) -> BootJson:
    """The same, with the document that it prints."""

    def run(*words: str | Path) -> tuple[int, dict[str, Any], str]:
        ended = boot("--json", *words)
        return ended.code, ended.document, ended.err

    return run


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    return write_guest(tmp_path, tell(7), hashes=True)


def test_vma_protection_warns_once_on_stderr_and_in_the_json(
    boot: BootCli, boot_json: BootJson, guest: Path
) -> None:
    code, document, err = boot_json(*DEBUG_SWAP, "--code", guest, "--host", "model:linux-6.18")
    assert code == 0
    (warning,) = document["warnings"]
    assert err.count(warning) == err.count("warning") == 1
    assert "KVM has no read-only memory" in warning
    assert "--bios" in warning
    assert document["host"]["era"] == "linux-6.18"
    assert document["guest"]["features"] == ["debug-swap"]
    _, _, text = boot(*DEBUG_SWAP, "--code", guest)
    assert text.count(warning) == 1


@pytest.mark.parametrize("words", [(*DEBUG_SWAP, "--bios"), (*DEBUG_SWAP, "--host", "model:linux-6.10", "--code"),
                                   ("--guest", "sev-es", "--code"), ("--guest", "sev", "--code")])  # fmt: skip
def test_others_are_not_warned(boot_json: BootJson, guest: Path, words: tuple[str, ...]) -> None:
    code, document, err = boot_json(*words, guest)
    assert (code, document["warnings"], err) == (0, [], "")


def test_launch_and_measurement_are_reported(
    boot_json: BootJson, capsys: pytest.CaptureFixture[str], guest: Path, tmp_path: Path
) -> None:
    tik = tmp_path / "tik.bin"
    tik.write_bytes(bytes(range(16)))
    words = (
        *DEBUG_SWAP,
        "--code",
        guest,
        "--tik",
        tik,
        "--kernel",
        write_kernel(tmp_path),
        "--kernel-hashes",
    )
    _, document, _ = boot_json(*words)
    launch, measurement = document["launch"], document["measurement"]
    assert launch["state"] == "running"
    assert launch["init"] == "KVM_SEV_INIT2"
    assert measurement["verified"] is True
    measure = ["measure", "--mode", "seves", "--ovmf", str(guest), "--vcpus", "1", "--vcpu-type", "EPYC-v4"]
    main([*measure, "--guest-features", "0x20", "--kernel", str(tmp_path / "vmlinuz")])
    assert capsys.readouterr().out.strip() == launch["digest"]
    owner = ["--tik", tik, "--nonce", measurement["nonce"], "--policy", "0x5"]
    for name in ("api-major", "api-minor", "build-id"):
        owner += [f"--{name}", str(measurement[name.replace("-", "_")])]
    main([*measure, "--guest-features", "0x20", "--kernel", str(tmp_path / "vmlinuz"), *map(str, owner)])
    assert capsys.readouterr().out.strip() == measurement["mac"]


def test_summary_tells_of_launch_digest_and_measurement(boot: BootCli, guest: Path) -> None:
    _, _, err = boot(*DEBUG_SWAP, "--code", guest)
    assert re.search(
        r"launch    running, KVM_SEV_INIT2 on KVM_X86_SEV_ES_VM, policy 0x5\n  digest    [0-9a-f]{64}\n", err
    )
    assert "unverified: no TIK" in err
    assert "model linux-6.18 (modelled)" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--guest", "snp", "--code", "missing.fd"), 4, "--bios"),
        (("--guest", "tdx", "--code", "missing.fd"), 4, "--bios"),
        (("--guest", "snp"), 4, "--bios"),
        (("--guest", "snp", "--bios", "missing.fd"), 4, "no such file"),
        (("--guest", "tdx", "--bios", "missing.fd"), 5, "measured, not launched"),
        (("--guest", "snp", "--bios", "x.fd", "--tik", "tik.bin"), 4, "--tik: an SNP launch has no session"),
        (("--guest", "snp", "--bios", "x.fd", "--expect-digest", "00" * 32), 4, "96 hex digits"),
        (("--guest", "snp", "--bios", "x.fd", "--host-data", "00"), 4, "--host-data '00' is not 64 hex digits"),
        (("--guest", "snp", "--bios", "x.fd", "--gosvw", "xy"), 4, "--gosvw 'xy' is not 32 hex digits"),
        (("--guest", "snp", "--bios", "x.fd", "--id-block", "x"), 4, "--id-block and --id-auth belong together"),
        (("--guest", "snp", "--bios", "x.fd", "--id-block", "x", "--id-auth", "x"), 4, "x: cannot be read"),
        (("--guest", "sev", "--code", "x.fd", "--host-data", "00"), 4, "--host-data belongs to SNP guests"),
        (("--code", "x.fd", "--attestation", "x"), 4, "--attestation belongs to the launch"),
        (("--guest", "sev", "--feature", "debug-swap", "--code", "missing.fd"), 4, "debug-swap"),
        (("--feature", "debug-swap", "--code", "missing.fd"), 4, "--feature belongs to the launch"),
        (("--policy", "1", "--code", "missing.fd"), 4, "--policy belongs to the launch"),
        (("--dry-run", "--code", "missing.fd"), 4, "--dry-run belongs to the launch"),
        (("--init", "init2", "--code", "missing.fd"), 4, "--init belongs to the launch"),
        (("--guest", "sev-es", "--feature", "debug-swap,xyz", "--code", "missing.fd"), 4, "'xyz' is not known"),
        (("--guest", "sev-es", "--code", "missing.fd", "--host", "model:linux-2.6"), 4, "linux-6.18"),
        (("--guest", "sev-es", "--code", "missing.fd", "--host", "xen"), 4, "'xen' is not known"),
        (("--guest", "sev-es", "--code", "missing.fd", "--expect-digest", "12"), 4, "64 hex digits"),
        (("--guest", "sev-es", "--code", "missing.fd", "--append", "quiet"), 4, "--append without --kernel"),
        (("--guest", "sev-es", "--code", "missing.fd", "--kernel-hashes"), 4, "--kernel"),
        (("--guest", "sev-es", "--code", "missing.fd", "--tik", "missing.tik"), 4, "missing.tik"),
    ],
)  # fmt: skip
def test_refusals_come_before_files_are_read(
    boot: BootCli, words: tuple[str, ...], code: int, says: str
) -> None:
    found, out, err = boot(*words)
    assert (found, out) == (code, "")
    assert says in err
    assert err.startswith("casemate: error: ")
    assert err.count("\n") == 1


def test_snp_without_firmware_given_prepares_no_variables(
    boot: BootCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert boot("--guest", "snp")[0] == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--expect-digest", "00" * 32), 3, "the launch digest"),
        (("--policy", "0x1"), 4, "policy 0x1"),
        (("--policy", "0x20005"), 5, "firmware status 0x7"),
        (("--init", "legacy"), 4, "--init legacy"),
        (("--feature", "secure-tsc"), 5, "it offers debug-swap"),
        (("--host", "model:linux-6.8"), 5, "Linux 6.10 or newer"),
        (("--vcpu-type", "Z80"), 4, "unknown vCPU type"),
    ],
)
def test_refusals_of_a_launch(
    boot: BootCli, guest: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    found, _, err = boot(*DEBUG_SWAP, "--code", guest, *words)
    assert found == code
    assert says in err


def test_features_may_be_repeated_or_joined(boot_json: BootJson, guest: Path) -> None:
    code, document, _ = boot_json(*DEBUG_SWAP, "--feature", "debug-swap,debug-swap", "--code", guest)
    assert (code, document["guest"]["features"]) == (0, ["debug-swap"])


def test_store_to_protected_firmware_exits_with_1(boot: BootCli, tmp_path: Path) -> None:
    path = write_guest(tmp_path, store(UNIT0 + 0x8000, 1) + tell(0))
    code, _, err = boot(*DEBUG_SWAP, "--code", path, "--vars", write_variables(tmp_path), "-v")
    assert code == 1
    assert "address unknown (protected state); armed: unit 0, unit 1" in err
    assert "audit     unit 0 lifted: launch update" in err


def test_reset_of_a_sealed_guest_has_its_own_word(boot_json: BootJson, tmp_path: Path) -> None:
    code, document, _ = boot_json(*DEBUG_SWAP, "--code", write_guest(tmp_path, ask_for_reset()))
    assert (code, document["outcome"]) == (0, "reset")


def test_reset_before_the_awaited_text_is_a_failure(boot_json: BootJson, tmp_path: Path) -> None:
    path = write_guest(tmp_path, print_text("hello") + ask_for_reset())
    code, document, _ = boot_json(*DEBUG_SWAP, "--code", path, "--until", "ready")
    assert (code, document["outcome"], document["serial"]) == (1, "ended-early", "hello")


def test_writable_combined_image_is_not_written(boot: BootCli, tmp_path: Path) -> None:
    path = write_guest(tmp_path, tell_memory(UNIT0))
    path.chmod(0o666)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    boot(*DEBUG_SWAP, "--code", path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_dry_run_opens_no_host_and_no_file_for_writing(guest: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from casemate.cli import main; seen = []\n"
        "def hook(event, args):\n"
        "    if event == 'open' and isinstance(args[0], (str, bytes)): seen.append((str(args[0]), args[2]))\n"
        "    if event in ('mmap.__new__', 'fcntl.flock'): seen.append((event, -1))\n"
        "sys.addaudithook(hook); code = main(sys.argv[1:]); import json\n"
        "print(json.dumps(seen), file=sys.stderr); sys.exit(code)"
    )
    words = ["boot", *DEBUG_SWAP, "--dry-run", "--code", str(guest), "--vars", str(write_variables(tmp_path))]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    opened = json.loads(done.stderr)
    data = [(name, flags) for name, flags in opened if not name.endswith((".py", ".pyc", ".so"))]
    assert not [name for name, flags in data if flags & (os.O_WRONLY | os.O_RDWR) and "pycache" not in name]
    assert not [name for name, _ in data if name.startswith(("/dev/kvm", "/dev/sev", "fcntl"))]
    assert "digest      " in done.stdout
    assert "KVM_SEV_LAUNCH_UPDATE_DATA" in done.stdout


def test_dry_run_json_names_what_the_text_does(boot: BootCli, boot_json: BootJson, guest: Path) -> None:
    _, plan, err = boot_json(*DEBUG_SWAP, "--dry-run", "--code", guest)
    assert err == ""
    _, text, _ = boot(*DEBUG_SWAP, "--dry-run", "--code", guest)
    assert plan["digest"] in text
    for row in plan["ioctls"]:
        assert f"{row['command']:<30}  {row['detail']}".rstrip() in text
    assert plan["warnings"][0] in text


@pytest.mark.boot
def test_launch_only_measures_a_stock_image_and_does_not_run_it(boot_json: BootJson) -> None:
    image = require_image("OVMF_CODE.fd", "bookworm")
    code, document, _ = boot_json(*DEBUG_SWAP, "--launch-only", "--code", image)
    assert (code, document["outcome"]) == (0, "launched")
    assert "not run" in document["detail"]
    # The value that sev-snp-measure gives for this image, one EPYC-v4 vCPU and debug-swap.
    expected = "726a85e06ba5a69b297c40cae7c7f42214f0c573e90a744076d6e5f8239a4f8e"
    assert document["launch"]["digest"] == expected


def test_image_that_starts_in_32_bit_code_is_refused_as_sev_es(boot: BootCli) -> None:
    code, out, err = boot(*DEBUG_SWAP, "--code", require_image("OVMF_CODE_4M.fd", "bookworm"))
    assert (code, out) == (4, "")
    assert "VMGEXIT" in err


STRACE = shutil.which("strace")


def traced(tmp_path: Path, *words: str | Path) -> tuple[list[tuple[str, int, str]], int]:
    """All mprotect calls that hit guest memory, as (block, bytes, protection), and the exit code."""
    if STRACE is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.log"
    command = [
        STRACE,
        "-f",
        "-y",
        "-o",
        str(log),
        "-e",
        "trace=mmap,mprotect,munmap",
        sys.executable,
        "-m",
        "casemate",
    ]
    words = ("boot", "--memory", "16M", "--timeout", "60", *words)
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    blocks: list[tuple[int, int, str]] = []
    calls = []
    for line in log.read_text().splitlines():
        if mapped := re.search(r"mmap\(NULL, (\d+), .*</memfd:(casemate-\w+).*= (0x[0-9a-f]+)$", line):
            start = int(mapped[3], 16)
            blocks.append((start, start + int(mapped[1]), mapped[2]))
        elif changed := re.search(r"mprotect\((0x[0-9a-f]+), (\d+), ([A-Z_|]+)\)", line):
            start, size = int(changed[1], 16), int(changed[2])
            calls += [
                (name, size, changed[3])
                for first, last, name in blocks
                if start < last and first < start + size
            ]
    assert blocks, "no guest memory was seen"
    return calls, done.returncode


def test_strace_sees_no_mprotect_of_a_bios_guest(tmp_path: Path) -> None:
    path = write_guest(tmp_path, store(HASHES, 1) + tell(0), hashes=True)
    kernel = ("--kernel", write_kernel(tmp_path), "--kernel-hashes")
    assert traced(tmp_path, *DEBUG_SWAP, "--bios", path, *kernel) == ([], 0)


def test_strace_sees_every_mprotect_of_a_flash_guest_in_order(tmp_path: Path) -> None:
    path = write_guest(tmp_path, store(HASHES, 1) + tell(0), hashes=True)
    kernel = ("--kernel", write_kernel(tmp_path), "--kernel-hashes")
    calls, code = traced(tmp_path, *DEBUG_SWAP, "--code", path, *kernel)
    assert code == 0
    assert calls == [
        ("casemate-flash0", IMAGE_SIZE, "PROT_READ"),
        ("casemate-flash0", IMAGE_SIZE, "PROT_READ|PROT_WRITE"),
        ("casemate-flash0", IMAGE_SIZE, "PROT_READ"),
    ]


@pytest.mark.parametrize(("constants", "warned"), [(b"", True), (guids.KERNEL_HASH_ENTRY, False)])
@pytest.mark.parametrize("mode", ["--dry-run", "--launch-only"])
def test_firmware_that_compares_no_hashes_is_warned_about(
    mode: str, constants: bytes, warned: bool, boot_json: BootJson, tmp_path: Path
) -> None:
    image = tmp_path / "loader.fd"
    image.write_bytes(ImageBuilder().hashes(HASHES).volume_of(kernel_loader(constants)).build())
    words = ("--guest", "sev", "--bios", image, "--kernel", write_kernel(tmp_path), "--kernel-hashes", mode)
    code, document, _ = boot_json(*words, "--host", "model")
    assert code == 0
    assert any("no driver of this build compares" in text for text in document["warnings"]) == warned
