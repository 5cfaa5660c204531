"""The JSON documents and exit codes that casemate promises, held against recorded ones (docs/guide).

``pytest tests/golden --record-golden`` writes them anew. A change of a recorded document is a change of a public
interface and belongs in CHANGELOG.md with its reason. Values that depend on the machine, on time, on the version
of a firmware package or on the number of accesses are recorded by their type; lists by the shapes of their items.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.confidential_launches import HASHES
from support.firmware_images import require_image

from casemate.cli import main
from casemate.guests.actions import store, tell
from casemate.guests.entry import make_image
from casemate.testing.images import ImageBuilder, variable_store

DOCUMENTS = Path(__file__).with_name("documents")
MEASURED = re.compile(r"[0-9a-f]{32,}|.*/.*|0x[0-9a-f]+.*|.*\d\.\d.*")
"""Texts that change from run to run or from package to package: digests, paths, addresses, times, versions."""
FREE_TEXT = {
    "serial",
    "detail",
    "why",
    "text",
    "file",
    "descriptor",
    "version",
    "name",
    "data",
    "reason",
    "title",
}
"""Fields whose texts are prose or the guest's own."""
SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
"""Where SEV-SNP metadata of a small image puts memory to validate, the secrets page and the CPUID page."""
COUNTED = {"vmgexits", "vc", "pages", "page_states"}
"""Objects whose keys are what happened in the run."""


def shape(value: Any, name: str = "") -> Any:
    """What of a JSON value is promised: its keys, its types, and the texts that are words of an enumeration."""
    if isinstance(value, dict):
        if name in COUNTED:
            return f"<counts of {name}>"
        return {key: shape(item, key) for key, item in value.items()}
    if isinstance(value, list):
        kinds = {json.dumps(shape(item, name), sort_keys=True): None for item in value}
        return sorted((json.loads(kind) for kind in kinds), key=lambda kind: json.dumps(kind, sort_keys=True))
    if isinstance(value, str):
        return "<text>" if name in FREE_TEXT or MEASURED.fullmatch(value) or "\n" in value else value
    if isinstance(value, bool) or value is None:
        return value
    return f"<{type(value).__name__}>"


@pytest.fixture
def judge(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command and compares its exit code and document with the recorded ones."""

    def run(name: str, *words: str | Path) -> None:
        code = main([str(word) for word in words])
        found = {"exit_code": code, "document": shape(json.loads(capsys.readouterr().out))}
        path = DOCUMENTS / f"{name}.json"
        if request.config.getoption("--record-golden"):
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        assert found == json.loads(path.read_text())

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "firmware.fd"
    path.write_bytes(ImageBuilder().reset_block(0x80B004).hashes(HASHES).build())
    return path


def pair(folder: Path, suffix: str) -> tuple[str | Path, ...]:
    variables = folder / "VARS.fd"
    shutil.copy(require_image(f"OVMF_VARS{suffix}.fd", "bookworm"), variables)
    return ("--code", require_image(f"OVMF_CODE{suffix}.fd", "bookworm"), "--vars", variables)


BOOT = ("boot", "--host", "model", "--json", "--serial", "none", "--timeout", "120")
TO_SHELL = (*BOOT, "--until", "Shell> ")


@pytest.mark.boot
def test_boot_of_a_plain_guest(judge: Any, tmp_path: Path) -> None:
    judge("boot-plain", *TO_SHELL, *pair(tmp_path, "_4M"))


@pytest.mark.boot
def test_boot_of_a_sev_es_guest_with_debug_swap(judge: Any, tmp_path: Path) -> None:
    guest = ("--machine", "pc", "--guest", "sev-es", "--feature", "debug-swap")
    judge("boot-sev-es", *TO_SHELL, *guest, *pair(tmp_path, ""))


@pytest.mark.boot
def test_boot_of_an_snp_guest(judge: Any) -> None:
    judge("boot-snp", *TO_SHELL, "--guest", "snp", "--bios", require_image("OVMF.fd", "trixie"))


def test_boot_that_ends_in_a_violation(judge: Any, tmp_path: Path) -> None:
    guest = tmp_path / "guest.bin"
    guest.write_bytes(make_image(store(0xFFFF0000, 1) + tell(7), 32))
    judge("boot-violation", *BOOT, "--machine", "bare", "--on-write", "kill", "--code", guest)


def test_boot_to_the_exit_port(judge: Any, tmp_path: Path) -> None:
    guest = tmp_path / "guest.bin"
    guest.write_bytes(make_image(tell(7), 32))
    judge("boot-exit-port", *BOOT, "--machine", "bare", "--bios", guest)


@pytest.mark.parametrize("mode", ["sev", "seves", "snp"])
def test_measure_with_its_trace(judge: Any, image: Path, tmp_path: Path, mode: str) -> None:
    if mode == "snp":
        image.write_bytes(ImageBuilder().reset_block(0x80B004).sev_metadata(*SECTIONS).build())
    vcpu = () if mode == "sev" else ("--vcpus", "2", "--vcpu-type", "EPYC-v4")
    judge(f"measure-{mode}", "measure", "--mode", mode, *vcpu, "--ovmf", image, "--trace", "--json")


def test_inspect_of_an_image_and_a_store(judge: Any, image: Path, tmp_path: Path) -> None:
    variables = tmp_path / "vars.fd"
    variables.write_bytes(variable_store())
    judge("inspect", "inspect", "--json", image, variables)


def test_lint_of_a_guest_that_cannot_start(judge: Any, image: Path) -> None:
    line = (
        "qemu-system-x86_64 -accel kvm -machine q35,confidential-guest-support=sev0 "
        "-object sev-snp-guest,id=sev0,policy=0x5,cbitpos=51,reduced-phys-bits=1 "
        f"-drive if=pflash,format=raw,unit=0,readonly=on,file={image}"
    )
    judge("lint", "lint", "--json", "--era", "linux-6.18", "--", *line.split())


def test_prove_on_the_model(judge: Any) -> None:
    judge("prove", "prove", "--host", "model:linux-6.18", "--json")


EXIT_CODES = {
    0: ("measure", "--mode", "sev", "--ovmf", "{image}"),
    1: ("lint", "--", "qemu-system-x86_64", "-object", "sev-snp-guest,id=s0,policy=0x5"),
    2: ("measure", "--mode", "nothing"),
    3: ("boot", "--guest", "sev", "--host", "model", "--bios", "{image}", "--expect-digest", "00" * 32),
    4: ("inspect", "{missing}"),
    5: ("boot", "--host", "model", "--guest", "tdx", "--bios", "{image}"),
    7: ("boot", "--host", "model", "--bios", "{looping}", "--machine", "bare", "--timeout", "0.2"),
}


@pytest.mark.parametrize("code", EXIT_CODES)
def test_exit_codes_are_the_documented_ones(code: int, image: Path, tmp_path: Path) -> None:
    looping = tmp_path / "loop.bin"
    looping.write_bytes(make_image(bytes.fromhex("ebfe"), 16))
    files = {"image": image, "missing": tmp_path / "missing", "looping": looping}
    words = [word.format(**files) for word in EXIT_CODES[code]]
    done = subprocess.run([sys.executable, "-m", "casemate", *words], capture_output=True, check=False)
    assert done.returncode == code, done.stderr.decode()


def test_caps_has_the_documented_fields(capsys: pytest.CaptureFixture[str]) -> None:
    main(["caps", "--json"])
    document = json.loads(capsys.readouterr().out)
    recorded = json.loads((DOCUMENTS / "caps.json").read_text())
    assert sorted(document) == recorded["fields"]
