"""Reports against chains: a real one of a real processor, the model's, and every change to either."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

pytest.importorskip("omne_attest", reason="omne-attest is not installed (./dev test says why)")

from omne_attest import vectors

from casemate.abi.sev.report import AttestationReport, Tcb
from casemate.advise.attestation import (
    Chain,
    Check,
    Expectations,
    check_report,
    is_modelled,
    root_name,
)
from casemate.advise.certificate_file import load_certificate
from casemate.advise.report_file import parse_report
from casemate.errors import ImageError
from casemate.host.model.snp.psp import TCB, SnpPsp
from casemate.host.model.snp.rmp import Rmp
from casemate.host.snp_processor import SnpFinish

ANYTHING = Expectations()
NOW = datetime(2027, 1, 1, tzinfo=UTC)


@functools.cache
def modelled(policy: int = 0x30000) -> tuple[bytes, Chain]:
    """A report of a guest that launched nothing, and its chain."""
    psp = SnpPsp(Rmp(), 1)
    psp.launch_start(policy, bytes(16))
    psp.launch_finish(SnpFinish(host_data=b"h" * 32))
    report = psp.report(b"n" * 64)
    return report, Chain(*(x509.load_pem_x509_certificate(pem) for pem in psp.endorsement.chain))


def real() -> tuple[bytes, Chain]:
    """What AMD's firmware gave a guest on a processor of the 7003 series."""
    with warnings.catch_warnings(action="ignore"):
        ders = (vectors.ark(), vectors.ask(), vectors.vcek())
        return vectors.attestation(), Chain(*(x509.load_der_x509_certificate(der) for der in ders))


def check(report: bytes, chain: Chain, expected: Expectations = ANYTHING, now: datetime = NOW) -> list[Check]:
    return check_report(parse_report(report, "report"), chain, expected, now)


def failed(checks: list[Check]) -> set[str]:
    return {entry.name for entry in checks if entry.passed is False}


def test_report_of_a_real_processor_is_believed() -> None:
    report, chain = real()
    assert failed(check(report, chain, Expectations(allow_debug=True))) == set()
    assert failed(check(report, chain)) == {"no debugging"}
    assert "7003" in root_name(chain)
    assert not is_modelled(chain)


def test_modelled_report_is_believed_and_named() -> None:
    report, chain = modelled()
    assert failed(check(report, chain)) == set()
    assert is_modelled(chain)
    assert root_name(chain).startswith("unknown, SHA-256 ")


@pytest.mark.parametrize("source", [real, modelled])
def test_any_byte_changed_fails(source: Callable[[], tuple[bytes, Chain]]) -> None:
    report, chain = source()
    expected = Expectations(allow_debug=True)
    for offset in range(4, AttestationReport.SIZE):  # a version that nobody knows is refused before
        changed = bytearray(report)
        changed[offset] ^= 0x10
        assert "signature" in failed(check(bytes(changed), chain, expected)), hex(offset)


def test_reports_of_other_chips_and_chains_fail_where_they_differ() -> None:
    (report, chain), (_, other) = modelled(), modelled(0xB0000)
    assert failed(check(report, chain._replace(vcek=other.vcek))) == {"certificate VCEK", "signature", "chip"}
    assert failed(check(report, chain._replace(ask=other.ask))) == {"certificate ASK", "certificate VCEK"}
    assert failed(check(report, chain._replace(ark=other.ark))) == {"certificate ASK"}
    assert failed(check(report, Chain(chain.ask, chain.ask, chain.vcek))) == {
        "certificate ARK",
        "certificate ASK",
    }


def test_certificates_must_be_valid_now() -> None:
    report, chain = modelled()
    assert failed(check(report, chain, now=datetime(2050, 1, 1, tzinfo=UTC))) == {"certificates valid now"}


MEASUREMENT = bytes(48)
GOOD = Expectations(
    measurement=MEASUREMENT,
    policy=0x30000,
    report_data=b"n" * 64,
    host_data=b"h" * 32,
    id_key_digest=bytes(48),
    author_key_digest=bytes(48),
    least_svn=0,
    least_tcb=TCB,
)


def test_everything_that_is_expected_is_checked() -> None:
    checks = check(modelled()[0], modelled()[1], GOOD)
    assert failed(checks) == set()
    assert [entry.name for entry in checks if entry.passed is None] == ["revocation", "chip ID"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"measurement": b"\1" + bytes(47)}, "measurement"),
        ({"policy": 0xB0000}, "policy"),
        ({"report_data": bytes(64)}, "report data"),
        ({"host_data": bytes(32)}, "host data"),
        ({"id_key_digest": b"x" * 48}, "ID key"),
        ({"author_key_digest": b"x" * 48}, "author key"),
        ({"chip_id": bytes(64)}, "chip ID"),
        ({"least_svn": 1}, "guest SVN"),
        ({"least_tcb": Tcb(4, 0, 23, 213)}, "least TCB"),
        ({"most_vmpl": -1}, "VMPL"),
    ],
)
def test_what_is_not_as_expected_is_named_alone(change: dict[str, Any], name: str) -> None:
    report, chain = modelled()
    assert failed(check(report, chain, GOOD._replace(**change))) == {name}


def test_debugging_and_migration_are_refused_unless_allowed() -> None:
    report, chain = modelled(0x30000 | 1 << 18 | 1 << 19)
    assert failed(check(report, chain)) == {"no debugging", "no migration"}
    allowed = Expectations(allow_debug=True, allow_migration=True)
    assert failed(check(report, chain, allowed)) == set()


def test_tcb_of_newer_processors_is_read_as_they_write_it() -> None:
    assert Tcb.parse(0x0807060504030201, 0x1A) == Tcb(2, 3, 4, 8, 1)
    assert Tcb.parse(TCB.pack(), 0x19) == TCB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (bytes(1184), "version 0"),
        (b"\x06" + bytes(1183), "version 6"),
        (bytes(1185), "1185 bytes"),
    ],
)
def test_file_that_is_no_report_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        parse_report(data, "report.bin")
    assert caught.value.remedy


def test_file_that_is_no_certificate_is_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/x.pem"
    with pytest.raises(ImageError, match="No such file"):
        load_certificate(path)
    for contents in (b"", b"-----BEGIN CERTIFICATE-----\n", b"\x30\x03"):
        with open(path, "wb") as file:
            file.write(contents)
        with pytest.raises(ImageError, match="no certificate"):
            load_certificate(path)
    assert load_certificate(str(vectors.path("kds_vcek.der"))) == real()[1].vcek
