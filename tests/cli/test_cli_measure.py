"""The measure command: options in, digests and errors out."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.cli import measure
from casemate.errors import CasemateError
from casemate.testing.images import ImageBuilder

FIRMWARE = ImageBuilder().reset_block(0x80B004).hashes(0x80CC00).build()
SEV_ES = "--mode seves --ovmf x.fd --vcpus 2 --vcpu-type EPYC-v4"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.fd").write_bytes(FIRMWARE)
    (tmp_path / "plain.fd").write_bytes(ImageBuilder().build())
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "tik.bin").write_bytes(bytes(16))
    return tmp_path


def run(line: str) -> int:
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser)
    return measure.run(parser.parse_args(line.split()))


def test_sev_digest_is_that_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--mode sev --ovmf x.fd") == 0
    assert capsys.readouterr().out == hashlib.sha256(FIRMWARE).hexdigest() + "\n"


def test_base64_is_the_same_digest(capsys: pytest.CaptureFixture[str]) -> None:
    run("--mode sev --ovmf x.fd --output-format base64")
    assert base64.b64decode(capsys.readouterr().out) == hashlib.sha256(FIRMWARE).digest()


def test_ways_to_name_the_vcpu_agree(capsys: pytest.CaptureFixture[str]) -> None:
    ways = ("--vcpu-type EPYC", "--vcpu-sig 0x800f12", "--vcpu-family 23 --vcpu-model 1 --vcpu-stepping 2")
    for way in ways:
        run(f"--mode seves --ovmf x.fd --vcpus 2 {way}")
    assert len(set(capsys.readouterr().out.split())) == 1


def test_trace_precedes_the_digest(capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{SEV_ES} --kernel kernel --trace")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 + 1
    assert "0x80cc00" in lines[2]
    assert lines[-2].endswith(lines[-1])


def test_json_holds_digest_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{SEV_ES} --json")
    document = json.loads(capsys.readouterr().out)
    assert document["guest"] == "sev-es"
    assert document["digest"] == document["steps"][-1]["running"]
    assert [step["gpa"] for step in document["steps"]] == ["0xfffe0000", None, None]


def test_measurement_replaces_the_digest(capsys: pytest.CaptureFixture[str]) -> None:
    owner = f"--tik tik.bin --nonce {'00' * 16} --policy 5 --api-major 1 --api-minor 55 --build-id 21"
    run(f"{SEV_ES} {owner}")
    run(SEV_ES)
    measurement, digest = capsys.readouterr().out.split()
    assert measurement != digest
    assert len(measurement) == 64


def test_dumped_save_areas_are_pages(folder: Path) -> None:
    run(f"{SEV_ES} --dump-vmsa")
    pages = [(folder / f"vmsa{index}.bin").read_bytes() for index in range(2)]
    assert [len(page) for page in pages] == [4096, 4096]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--mode sev --ovmf none.fd", "no such file"),
        ("--mode seves --ovmf plain.fd --vcpus 2 --vcpu-type EPYC", "no SEV-ES reset block"),
        ("--mode sev --ovmf plain.fd --kernel kernel", "no area"),
        ("--mode sev --ovmf x.fd --kernel none", "No such file"),
        ("--mode sev --ovmf x.fd --initrd kernel", "--initrd without --kernel"),
        ("--mode sev --ovmf x.fd --append quiet", "--append without --kernel"),
        ("--mode sev --ovmf x.fd --guest-features 0x20", "no save areas"),
        ("--mode sev --ovmf x.fd --dump-vmsa", "no save areas"),
        ("--mode seves --ovmf x.fd --vcpu-type EPYC", "--vcpus is missing"),
        ("--mode seves --ovmf x.fd --vcpus 1", "exactly one way"),
        ("--mode seves --ovmf x.fd --vcpus 1 --vcpu-type EPYC --vcpu-sig 1", "exactly one way"),
        ("--mode seves --ovmf x.fd --vcpus 1 --vcpu-family 23", "belong together"),
        ("--mode seves --ovmf x.fd --vcpus 1 --vcpu-type Opteron", "unknown vCPU type 'Opteron'"),
        (f"{SEV_ES} --guest-features 0x1", "say SNP"),
        (f"{SEV_ES} --init legacy --guest-features 0x200", "legacy launch"),
        (f"{SEV_ES} --tik tik.bin", "--nonce, --policy, --api-major"),
    ],
)
def test_impossible_request_is_refused_with_exit_code_4(line: str, message: str) -> None:
    with pytest.raises(CasemateError, match=message) as caught:
        run(line)
    assert caught.value.exit_code == 4
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_command_loads_no_host_and_nothing_heavy() -> None:
    heavy = {"cryptography", "iced_x86", "jinja2", "multiprocessing", "rich", "unicorn"}
    command = [sys.executable, "-X", "importtime", "-c", "from casemate.cli import start; start()", "measure"]
    line = [*command, "--mode", "seves", "--vcpus", "64", "--vcpu-type", "EPYC-v4", "--ovmf", "x.fd"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    loaded = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert not loaded & heavy
    packages = {name.split(".")[1] for name in loaded if name.startswith("casemate.")}
    assert packages == {
        "abi",
        "address",
        "cli",
        "errors",
        "files",
        "firmware",
        "measure",
        "version",
    }
