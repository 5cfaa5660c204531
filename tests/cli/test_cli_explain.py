"""The explain command: values in, explanations and exit codes out."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import pytest

from casemate.cli import explain, measure
from casemate.errors import CasemateError
from casemate.testing.images import ImageBuilder

FIRMWARE = ImageBuilder().reset_block(0x80B004).hashes(0x80CC00).build()
GIVEN = "--mode seves --ovmf x.fd --vcpus 2 --vcpu-type EPYC"
OWNER = "--tik tik.bin --policy 5 --api-major 1 --api-minor 55 --build-id 21"
NONCE = "00112233445566778899aabbccddeeff"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.fd").write_bytes(FIRMWARE)
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "tik.bin").write_bytes(bytes(16))


def run(line: str) -> int:
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return explain.run(parser.parse_args(line.split()))


def observed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``casemate measure`` predicts for other inputs."""
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser)
    measure.run(parser.parse_args(line.split()))
    return capsys.readouterr().out.strip()


def test_cause_and_option_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    digest = observed(f"{GIVEN} --init legacy", capsys)
    assert run(f"{GIVEN} --observed {digest}") == 0
    out = capsys.readouterr().out
    assert out.startswith("launcher-legacy: ")
    assert "remedy: --init legacy" in out
    assert "exactly" in out


def test_base64_and_json_work_too(capsys: pytest.CaptureFixture[str]) -> None:
    digest = observed(GIVEN, capsys)
    text = base64.b64encode(bytes.fromhex(digest)).decode()
    assert run(f"--mode seves --ovmf x.fd --vcpus 2 --kernel kernel --json --observed {text}") == 0
    document = json.loads(capsys.readouterr().out)
    names = [deviation["id"] for deviation in document["matches"][0]["deviations"]]
    assert names == ["kernel-hashes-off", "vcpu-signature"]
    assert document["matches"][0]["digest"] == digest


def test_measurement_with_its_nonce_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    hmac = observed(f"{GIVEN} {OWNER} --nonce {NONCE}", capsys)
    assert run(f"{GIVEN.replace('EPYC', 'EPYC-Rome')} {OWNER} --observed {hmac}{NONCE}") == 0
    assert capsys.readouterr().out.startswith("vcpu-signature: ")


def test_nothing_that_fits_is_said_with_the_number_of_tries(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{GIVEN} --kernel kernel --deviations 1 --observed {'00' * 32}") == 1
    assert capsys.readouterr().out.startswith("nothing fits: ")


def test_more_processes_find_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = observed(GIVEN.replace("EPYC", "EPYC-Rome --guest-features 0x20"), capsys)
    outputs = []
    for fork_from in (1, 1_000_000):
        monkeypatch.setattr(explain, "_FORK_FROM", fork_from)
        assert run(f"{GIVEN} --observed {digest}") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{GIVEN} --observed xyz!", "neither hex nor base64"),
        (f"{GIVEN} --observed {'00' * 48}", "has 48 bytes"),
        (f"{GIVEN} --observed {'00' * 32} --tik tik.bin", "also needs"),
        (f"{GIVEN} --observed {'00' * 32} --initrd x.fd", "--initrd without --kernel"),
        (f"--mode sev --ovmf none.fd --observed {'00' * 32}", "no such file"),
    ],
)
def test_impossible_request_is_refused(line: str, message: str) -> None:
    with pytest.raises(CasemateError, match=message) as caught:
        run(line)
    assert caught.value.exit_code == 4
