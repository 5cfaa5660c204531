"""Reports and certificates as people have them, by the command: what it says of each, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from omne_attest import vectors
from support.attestation_rig import TURIN, VLEK, Case, der, pem, revocation_list

from casemate.cli import main

CASES = Path(__file__).parents[1] / "data" / "cases" / "verify"
CHAIN = ("--ark", "ark.pem", "--ask", "ask.pem")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(CASES)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["verify", *words])
        except SystemExit as ending:
            code = int(str(ending.code))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("report", "leaf", "code", "words"),
    [
        ("milan_v3.bin", "vcek_milan.pem", 0, "all checks passed"),
        ("milan_masked_v3.bin", "vcek_milan.pem", 0, "masked (MASK_CHIP_ID)"),
        ("milan_der_v3.bin", "vcek_milan_der.pem", 0, "chip                   the certificate's"),
        ("signkey_none.bin", "vcek_milan.pem", 3, "do not believe it: signing key"),
        ("vcek_claimed_vlek_v3.bin", "vcek_milan.pem", 3, "says VLEK, and the certificate is a VCEK"),
        ("milan_v3.hex", "vcek_milan.pem", 0, "read as: the report alone, in hex"),
        ("milan_v3.b64", "vcek_milan.pem", 0, "read as: the report alone, in base64"),
        ("ioctl.bin", "vcek_milan.pem", 0, "read as: the response of the ioctl"),
        ("withcerts.bin", "vcek_milan.pem", 0, "read as: a report with its certificate table"),
        ("expired.bin", "vcek_expired.pem", 3, "the VCEK expired on 2023-01-01"),
        ("turin_v3.bin", "vcek_turin.pem", 0, "bootloader 2, tee 1, snp 4, microcode 80, fmc"),
    ],
)
def test_every_case_gets_its_right_answer(verify: Run, report: str, leaf: str, code: int, words: str) -> None:
    ending, out, _ = verify(report, *CHAIN, "--vcek", leaf)
    assert ending == code
    assert words in out


@pytest.mark.parametrize(
    "chain", [("--ark", "cert_chain.pem", "--ask", "cert_chain.pem"), ("--ark", "cert_chain.pem")]
)
def test_bundle_is_root_and_intermediate(verify: Run, chain: tuple[str, ...]) -> None:
    assert verify("milan_v3.bin", *chain, "--vcek", "vcek_milan.pem")[0] == 0


def test_short_chip_id_is_taken(verify: Run) -> None:
    words = ("turin_v3.bin", *CHAIN, "--vcek", "vcek_turin.pem", "--chip-id")
    assert verify(*words, "3dabcbfa537360e4")[0] == 0
    assert verify(*words, "3dabcbfa537360e5")[0] == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [("version9.der", "9 is not a valid"), ("curve.der", "1.3.132.0.99"), ("point.der", "key is odd")],
)
@pytest.mark.parametrize("option", ["--ark", "--ask", "--vcek", "--certs", "--crl"])
def test_odd_certificate_is_refused_and_named(verify: Run, name: str, words: str, option: str) -> None:
    code, out, err = verify("milan_v3.bin", *CHAIN, "--vcek", "vcek_milan.pem", option, name)
    assert (code, out) == (4, "")
    assert name in err
    assert words in err
    assert len(err.splitlines()) == 1


def odd(old: bytes, new: bytes) -> bytes:
    """A VCEK's certificate with some bytes changed."""
    whole = der(Case().chain.vcek)
    assert old in whole
    assert len(old) == len(new)
    return whole.replace(old, new, 1)


_CN = b"\x0c\x08SEV-VCEK"
ODD = {
    "version 1": odd(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x00"),
    "version 2": odd(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
    "version 4": odd(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03"),
    "another curve": odd(b"\x2b\x81\x04\x00\x22", b"\x2b\x81\x04\x00\x0a"),
    "a long curve": odd(b"\x2b\x81\x04\x00\x22", b"\x2b\x81\x04\x00\x23"),
    "no curve": odd(b"\x2b\x81\x04\x00\x22", b"\x2b\x81\x04\x00\x7f"),
    "a point in a form of its own": odd(b"\x03\x62\x00\x04", b"\x03\x62\x00\x05"),
    "a point off the curve": odd(b"\x03\x62\x00\x04", b"\x03\x62\x00\x04")[:-700],
    "an extension twice": odd(b"\x9c\x78\x01\x03\x02", b"\x9c\x78\x01\x03\x01"),
    "a subject that is no text": odd(_CN, b"\x0c\x08SEV-\xff\xfe\xfd\xfc"),
    "a subject of odd bytes": odd(_CN, b"\x13\x08SEV-\x00\x01\x02\x03"),
    "a subject in half characters": odd(_CN, b"\x1e\x08\xd8\x00\xd8\x00\xd8\x00\xd8\x00"),
    "another name": odd(_CN, b"\x0c\x08SEV-VCEX"),
    "a day that is none": odd(b"240101000000Z", b"241301000000Z"),
    "an algorithm that is none": odd(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f"),
}


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_certificate_of_a_kind_that_nobody_made_is_refused(verify: Run, data: bytes, tmp_path: Path) -> None:
    case, (ark, ask, _) = Case(), Case().chain
    (tmp_path / "report").write_bytes(case.report)
    (tmp_path / "chain").write_bytes(pem(ask, ark))
    (tmp_path / "odd.der").write_bytes(data)
    words = (str(tmp_path / "report"), "--ark", str(tmp_path / "chain"), "--vcek", str(tmp_path / "odd.der"))
    code, _, err = verify(*words)
    assert code in (3, 4)
    assert "Traceback" not in err
    assert code == 3 or "odd.der" in err


@pytest.mark.parametrize("case", [Case(), Case(version=2), Case(version=5), TURIN, VLEK])
def test_fields_are_shown_without_certificates(verify: Run, case: Case, tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(case.report)
    code, out, _ = verify(str(tmp_path / "report"), "--show")
    rows = {row[:34].strip(): row[35:] for row in out.splitlines()}
    assert code == 0
    assert rows["version"] == str(case.version)
    assert rows["reported TCB"].endswith(str(case.tcb))
    assert ("processor" in rows) is (case.version >= 3)
    assert ("mitigations now" in rows) is (case.version >= 5)
    assert verify(str(tmp_path / "report"), "--show", "--json")[0] == 0


GOLDEN = [
    (Case(), "Milan: family 0x19, model 0x1, stepping 0x1", "0xdb18000000000004"),
    (Case(model=0x11), "Genoa: family 0x19, model 0x11, stepping 0x1", "0xdb18000000000004"),
    (Case(model=0xA0), "Genoa: family 0x19, model 0xa0, stepping 0x1", "0xdb18000000000004"),
    (TURIN, "Turin: family 0x1a, model 0x2, stepping 0x1", "0x5000000004010201"),
    (
        Case(family=0x1A, model=0x11, tcb=TURIN.tcb),
        "Turin: family 0x1a, model 0x11, stepping 0x1",
        "0x5000000004010201",
    ),
    (
        Case(family=0x1A, model=0x50, tcb=TURIN.tcb),
        "not known here: family 0x1a, model 0x50, stepping 0x1",
        "0x5000000004010201",
    ),
]


@pytest.mark.parametrize(("case", "processor", "tcb"), GOLDEN, ids=[row[1] for row in GOLDEN])
def test_every_generation_of_processors_is_told_as_it_is(
    verify: Run, case: Case, processor: str, tcb: str, tmp_path: Path
) -> None:
    (tmp_path / "report").write_bytes(case.report)
    fields = json.loads(verify(str(tmp_path / "report"), "--show", "--json")[1])["fields"]
    assert fields["processor"] == processor
    assert fields["reported TCB"] == f"{tcb}: {case.tcb}"


@pytest.mark.parametrize("version", [6, 9])
def test_newer_version_is_shown_with_a_warning_and_not_believed(
    verify: Run, version: int, tmp_path: Path
) -> None:
    (tmp_path / "report").write_bytes(bytes((version,)) + Case().report[1:])
    code, out, err = verify(str(tmp_path / "report"), "--show")
    assert code == 0
    assert "measurement" in out
    assert "known are 2 to 5" in err
    code, out, err = verify(str(tmp_path / "report"), *CHAIN, "--vcek", "vcek_milan.pem")
    assert (code, out) == (4, "")
    assert "--show prints it as version 5 has it" in err


def test_nothing_to_check_with_is_a_usage_error_that_names_the_ways_out(verify: Run) -> None:
    code, out, err = verify("milan_v3.bin")
    assert (code, out) == (2, "")
    assert "--certs" in err
    assert "--show" in err
    assert verify("milan_v3.bin", "--vcek", "vcek_milan.pem")[0] == 4


def test_folder_is_enough_if_its_root_is_amds(verify: Run, tmp_path: Path) -> None:
    for name, file in (("ark", "milan_ark.der"), ("ask", "milan_ask.der"), ("vcek", "kds_vcek.der")):
        (tmp_path / f"{name}.der").write_bytes(vectors.path(file).read_bytes())
    report = str(vectors.path("attestation.bin"))
    code, out, _ = verify(report, "--certs", str(tmp_path), "--allow-debug")
    assert code == 0
    assert "AMD's root for EPYC 7003" in out


def test_folder_whose_root_is_nobodys_is_not_enough(verify: Run, tmp_path: Path) -> None:
    case = Case()
    for name, certificate in zip(("ark", "ask", "vcek"), case.chain, strict=True):
        (tmp_path / f"{name}.pem").write_bytes(pem(certificate))
    (tmp_path / "report").write_bytes(case.report)
    code, out, _ = verify(str(tmp_path / "report"), "--certs", str(tmp_path))
    assert code == 3
    assert out.splitlines()[-1] == "do not believe it: root"
    ark = str(tmp_path / "ark.pem")
    assert verify(str(tmp_path / "report"), "--certs", str(tmp_path), "--ark", ark)[0] == 0


def test_right_key_is_found_among_those_of_other_versions(verify: Run, tmp_path: Path) -> None:
    case = Case()
    (tmp_path / "report").write_bytes(case.report)
    (tmp_path / "0other.der").write_bytes(vectors.path("kds_vcek.der").read_bytes())
    (tmp_path / "1right.der").write_bytes(der(case.chain.vcek))
    (tmp_path / "chain.pem").write_bytes(pem(case.chain.ask, case.chain.ark))
    ark = str(tmp_path / "chain.pem")
    assert verify(str(tmp_path / "report"), "--ark", ark, "--certs", str(tmp_path))[0] == 0


def test_revoked_intermediate_is_refused(verify: Run, tmp_path: Path) -> None:
    case = Case()
    (tmp_path / "all.pem").write_bytes(pem(*case.chain))
    (tmp_path / "report").write_bytes(case.report)
    for serials, expected in (((), 0), ((2,), 3)):
        crl = revocation_list("ARK-Milan", serials)
        (tmp_path / "crl.der").write_bytes(crl.public_bytes(Encoding.DER))
        words = ("--ark", str(tmp_path / "all.pem"), "--crl", str(tmp_path / "crl.der"))
        assert verify(str(tmp_path / "report"), *words)[0] == expected
