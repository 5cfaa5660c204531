"""The measure command for SNP guests and TDs: digests, ID blocks, plans, and requests that make no sense."""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed (./dev test says why)")

from sevsnpmeasure import guest
from sevsnpmeasure.sev_mode import SevMode

from casemate.abi.sev.id_block import IdBlock
from casemate.cli import main, measure
from casemate.digest.plan_json import plan_from_json
from casemate.errors import CasemateError
from casemate.testing.images import ImageBuilder

SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x80F000, 0x1000, 0x10))
SNP = "--mode snp --ovmf snp.fd --vcpus 2 --vcpu-type EPYC-Milan"
TDX_SIZE = 128 << 10
TDX_SECTIONS = ((0, TDX_SIZE, (1 << 32) - TDX_SIZE, TDX_SIZE, 0, 1), (0, 0, 0x809000, 0x2000, 2, 0))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    built = ImageBuilder().reset_block(0x80B004).hashes(0x80FC00).sev_metadata(*SECTIONS)
    (tmp_path / "snp.fd").write_bytes(built.build())
    (tmp_path / "plain.fd").write_bytes(ImageBuilder().reset_block(0x80B004).build())
    (tmp_path / "tdx.fd").write_bytes(ImageBuilder(TDX_SIZE).tdx_metadata(TDX_SECTIONS).build())
    (tmp_path / "kernel").write_bytes(b"kernel")
    for name in ("id", "author"):
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """The lines that a command prints."""
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser)
    assert measure.run(parser.parse_args(line.split())) == 0
    return capsys.readouterr().out.splitlines()


def test_snp_digest_is_that_of_sev_snp_measure(capsys: pytest.CaptureFixture[str]) -> None:
    for more, files, features in (
        ("", (None, None, None), 1),
        (" --guest-features 0x21 --kernel kernel --append quiet", ("kernel", None, "quiet"), 0x21),
    ):
        oracle = guest.calc_launch_digest(SevMode.SEV_SNP, 2, 0xA00F11, "snp.fd", *files, features)
        assert run(capsys, SNP + more) == [oracle.hex()]


def test_known_firmware_need_not_be_hashed_again(capsys: pytest.CaptureFixture[str]) -> None:
    (known,) = run(capsys, "--mode snp:ovmf-hash --ovmf snp.fd")
    assert known == guest.calc_snp_ovmf_hash("snp.fd").hex()
    assert run(capsys, f"{SNP} --snp-ovmf-hash {known}") == run(capsys, SNP)
    assert run(capsys, f"{SNP} --snp-ovmf-hash {'00' * 48}") != run(capsys, SNP)


def test_id_block_is_printed_for_qemu_and_written_for_boot(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    options = "--idkey id.pem --authorkey author.pem --policy 0xb0000 --guest-svn 3 --image-id " + "ab" * 16
    digest, properties, id_key, author_key = run(
        capsys, f"{SNP} {options} --id-block-out block --id-auth-out auth"
    )
    block, auth, author = properties.split(",")
    assert base64.b64decode(block.removeprefix("id-block=")) == (folder / "block").read_bytes()
    assert base64.b64decode(auth.removeprefix("id-auth=")) == (folder / "auth").read_bytes()
    assert author == "author-key-enabled=on"
    assert (id_key.partition(": ")[0], author_key.partition(": ")[0]) == (
        "id-key-digest",
        "author-key-digest",
    )
    struct = IdBlock.from_bytes((folder / "block").read_bytes())
    assert (bytes(struct.launch_digest).hex(), struct.policy, struct.guest_svn) == (digest, 0xB0000, 3)


def test_json_has_the_identity_and_page_types(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads("\n".join(run(capsys, f"{SNP} --json --idkey id.pem")))
    assert [step["kind"] for step in document["steps"]][:3] == ["NORMAL", "ZERO", "SECRETS"]
    assert document["identity"]["author_key_digest"] is None
    assert len(base64.b64decode(document["identity"]["id_auth"])) == 4096


def test_mrtd_depends_on_the_order_of_pages(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--mode tdx --ovmf tdx.fd"
    (interleaved,), (two_pass,) = run(capsys, line), run(capsys, f"{line} --page-order two-pass")
    assert len(interleaved) == len(two_pass) == 96
    assert interleaved != two_pass


@pytest.mark.parametrize("line", [SNP, "--mode tdx --ovmf tdx.fd", "--mode sev --ovmf snp.fd"])
def test_plan_is_written_and_diff_reads_it(
    capsys: pytest.CaptureFixture[str], folder: Path, line: str
) -> None:
    run(capsys, f"{line} --plan-out one.json")
    plan = plan_from_json((folder / "one.json").read_text())
    assert plan.steps
    (folder / "two.json").write_text("\n".join(run(capsys, f"{line} --json")))
    assert main(["diff", "one.json", "two.json"]) == 0


def test_diff_of_two_written_plans_names_the_cause(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, f"{SNP} --plan-out one.json")
    run(capsys, f"{SNP} --guest-features 0x21 --plan-out two.json")
    assert main(["diff", "one.json", "two.json"]) == 1
    assert "debug-swap" in capsys.readouterr().out


def test_explain_finds_another_number_of_vcpus_and_another_order(capsys: pytest.CaptureFixture[str]) -> None:
    (digest,) = run(capsys, SNP.replace("--vcpus 2", "--vcpus 9"))
    assert main(["explain", "--observed", digest, *SNP.split()]) == 0
    assert "9 vCPUs, not 2" in capsys.readouterr().out
    (mrtd,) = run(capsys, "--mode tdx --ovmf tdx.fd --page-order two-pass")
    assert main(["explain", "--observed", mrtd, "--mode", "tdx", "--ovmf", "tdx.fd"]) == 0
    assert "remedy: --page-order two-pass" in capsys.readouterr().out
    assert main(["explain", "--observed", "00" * 48, "--mode", "tdx", "--ovmf", "tdx.fd"]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--mode snp --ovmf plain.fd --vcpus 1 --vcpu-type EPYC", "no SEV metadata"),
        ("--mode snp:ovmf-hash --ovmf plain.fd", "no SEV metadata"),
        ("--mode tdx --ovmf snp.fd", "no TDX metadata"),
        ("--mode snp --ovmf snp.fd --vcpu-type EPYC", "--vcpus is missing"),
        (f"{SNP} --guest-features 0x20", "lack SNP_ACTIVE"),
        (f"{SNP} --init legacy", "type of their own"),
        (f"{SNP} --tik x", "--tik: SNP and TDX guests have no launch measurement"),
        (f"{SNP} --policy 0x30000", "--policy does not enter the digest"),
        (f"{SNP} --authorkey author.pem", "--authorkey without --idkey"),
        (f"{SNP} --id-block-out x", "--id-block-out without --idkey"),
        (f"{SNP} --idkey snp.fd", "no private key"),
        (f"{SNP} --idkey id.pem --family-id 00", "not 32 hex digits"),
        (f"{SNP} --idkey id.pem --policy 0x10000", "bit 17"),
        (f"{SNP} --snp-ovmf-hash 00", "not 96 hex digits"),
        ("--mode sev --ovmf snp.fd --idkey id.pem", "--idkey belongs to SNP guests"),
        ("--mode tdx --ovmf tdx.fd --snp-ovmf-hash 00", "--snp-ovmf-hash belongs to SNP guests"),
        ("--mode tdx --ovmf tdx.fd --kernel kernel", "does not enter the MRTD"),
        ("--mode tdx --ovmf tdx.fd --guest-features 1", "no save areas"),
        ("--mode snp:ovmf-hash --ovmf snp.fd --kernel kernel", "does not enter the firmware alone"),
        ("--mode snp:ovmf-hash --ovmf snp.fd --dump-vmsa", "no save areas"),
        (f"{SNP} --plan-out none/plan.json", "none/plan.json"),
    ],
)
def test_impossible_request_is_refused(capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    with pytest.raises(CasemateError, match=message) as caught:
        run(capsys, line)
    assert caught.value.exit_code in (4, 5)
    assert caught.value.remedy
