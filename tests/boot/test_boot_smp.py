"""Guests with several vCPUs on the modelled host: every one online, and a threaded program that checks its sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.booting import BootCli
from support.firmware_images import require_image, require_kernel
from support.threads import CannotBuildError, threaded_initrd

pytestmark = pytest.mark.boot

MODEL = ("--host", "model", "--json", "--timeout", "120")
APPEND = "console=ttyS0 panic=-1 quiet"


@pytest.fixture(scope="module")
def threads_initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("threads")
    try:
        (folder / "initrd").write_bytes(threaded_initrd(folder))
    except CannotBuildError as error:
        pytest.skip(str(error))
    return folder / "initrd"


def ran_well(document: dict[str, Any], cpus: int) -> bool:
    serial = document["serial"]
    assert document["outcome"] == "power-off", f"{document['detail']}\n{serial[-2000:]}"
    assert f"CPUs online: {cpus} of {cpus}" in serial
    assert [line for line in serial.splitlines() if "BAD" in line or "Call Trace" in line] == []
    return "ALL IS WELL" in serial


def test_kernel_with_four_vcpus_runs_threads_on_all(threads_initrd: Path, boot_cli: BootCli) -> None:
    words = ("--kernel", require_kernel("trixie"), "--initrd", threads_initrd, "--append", APPEND)
    document = boot_cli(*MODEL, *words, "--cpus", "4").document
    assert ran_well(document, 4)
    assert [vcpu["starts"] for vcpu in document["vcpus"]] == [1, 1, 1, 1]


def test_snp_guest_creates_its_second_vcpu(threads_initrd: Path, boot_cli: BootCli) -> None:
    words = ("--kernel", require_kernel("trixie"), "--initrd", threads_initrd, "--append", APPEND)
    document = boot_cli(*MODEL, *words, "--guest", "snp", "--cpus", "2").document
    assert ran_well(document, 2)
    assert document["vcpus"][0]["vmgexits"]["0x80000013"] == 1, "AP creation"
    assert document["vcpus"][1]["starts"] == 1
    assert document["launch"]["vcpus"] == 2


def test_firmware_of_a_sev_es_guest_starts_all_vcpus_and_holds_them(
    boot_cli: BootCli, tmp_path: Path
) -> None:
    firmware, variables = require_image("OVMF_CODE_4M.fd", "trixie"), tmp_path / "VARS.fd"
    variables.write_bytes(require_image("OVMF_VARS_4M.fd", "trixie").read_bytes())
    words = ("--guest", "sev-es", "--cpus", "4", "--code", firmware, "--until", "Shell> ")
    document = boot_cli(*MODEL, *words, "--vars", variables).document
    assert document["outcome"] == "until", document["detail"]
    others = document["vcpus"][1:]
    assert [vcpu["activity"] for vcpu in others] == ["held"] * 3
    assert all(vcpu["vmgexits"]["0x80000004"] == vcpu["starts"] for vcpu in others), (
        "a hold behind each start"
    )
