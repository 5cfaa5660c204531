"""Reports of every kind of processor, key and host: who is believed, and who is refused for what."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from support.attestation_rig import (
    CHIP,
    END,
    MILAN_TCB,
    NOW,
    START,
    TURIN,
    TURIN_TCB,
    VLEK,
    Case,
    certificate,
    revocation_list,
)

from casemate.abi.sev.report import Tcb
from casemate.advise.attestation import Check, Expectations, check_report
from casemate.advise.report_file import parse_report

MILAN = Case()
GENOA = Case(model=0x11, ask="SEV-Genoa", ark="ARK-Genoa")
SIENA = replace(GENOA, model=0xA0)


def checks(
    case: Case,
    expected: Expectations | None = None,
    crls: tuple[x509.CertificateRevocationList, ...] = (),
    *,
    trusts_root: bool = True,
) -> dict[str, Check]:
    report = parse_report(case.report, "report")
    found = check_report(report, case.chain, expected or Expectations(), NOW, crls, trusts_root=trusts_root)
    return {check.name: check for check in found}


def failed(found: dict[str, Check]) -> set[str]:
    return {name for name, check in found.items() if check.passed is False}


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "case", [MILAN, GENOA, SIENA, TURIN, VLEK], ids=lambda case: f"{case.ask}-{case.model}"
)
def test_report_of_any_version_and_processor_is_believed(case: Case, version: int) -> None:
    found = checks(replace(case, version=version))
    assert failed(found) == set()
    assert found["reported TCB"].detail == str(case.tcb)


@pytest.mark.parametrize(
    "case",
    [
        replace(MILAN, hardware_id=b"\x04\x40" + CHIP),
        replace(GENOA, hardware_id=b"\x04\x40" + CHIP, version=2),
        replace(TURIN, hardware_id=b"\x04\x08" + CHIP[:8]),
        replace(TURIN, hardware_id=CHIP, chip_id=CHIP),
        replace(MILAN, hardware_id=b"\x04\x40" + bytes(62), chip_id=b"\x04\x40" + bytes(62)),
    ],
)
def test_hardware_id_is_taken_raw_and_as_an_octet_string(case: Case) -> None:
    assert checks(case)["chip"].passed is True


@pytest.mark.parametrize(
    "stated",
    [
        CHIP[:63],
        CHIP[:8],
        b"",
        CHIP + b"\0",
        b"\x04\x3f" + CHIP[:63],
        b"\x04\x40" + CHIP + b"\0",
        b"\x0c\x40" + CHIP,
        b"\x04\x81\x40" + CHIP,
        bytes(64),
        CHIP[::-1],
    ],
)
def test_hardware_id_that_is_not_exactly_the_reports_is_refused(stated: bytes) -> None:
    assert failed(checks(replace(MILAN, hardware_id=stated))) == {"chip"}
    short = replace(MILAN, hardware_id=stated, chip_id=stated[:8])
    assert "chip" in failed(checks(short)) or stated == bytes(64)


@pytest.mark.parametrize("case", [MILAN, GENOA, TURIN, replace(MILAN, hardware_id=b"\x04\x40" + CHIP)])
def test_masked_chip_is_said_and_accuses_nobody(case: Case) -> None:
    found = checks(replace(case, chip_id=bytes(64)))
    assert failed(found) == set()
    assert found["chip"].passed is None
    assert "masked" in found["chip"].detail


def test_masked_chip_is_not_the_one_that_is_expected() -> None:
    found = checks(replace(MILAN, chip_id=bytes(64)), Expectations(chip_id=CHIP))
    assert failed(found) == {"chip ID"}
    assert "masked" in found["chip ID"].detail


def test_short_chip_id_may_be_expected() -> None:
    assert checks(TURIN, Expectations(chip_id=CHIP[:8]))["chip ID"].passed is True
    assert checks(TURIN, Expectations(chip_id=CHIP[:7] + b"\0"))["chip ID"].passed is False


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (replace(MILAN, signing_key=7), "none signed it"),
        (replace(MILAN, signing_key=1), "the report says VLEK, and the certificate is a VCEK"),
        (replace(MILAN, signing_key=3), "key 3 signed it"),
        (replace(VLEK, signing_key=0), "the report says VCEK, and the certificate is a VLEK"),
        (replace(VLEK, ask="SEV-Milan"), "'SEV-Milan' signs no VLEKs"),
        (replace(MILAN, ask="SEV-VLEK-Milan"), "'SEV-VLEK-Milan' signs no VCEKs"),
    ],
)
def test_signing_key_leaf_and_intermediate_must_agree(case: Case, words: str) -> None:
    found = checks(case)
    assert failed(found) == {"signing key"}
    assert words in found["signing key"].detail


def test_leaf_of_another_name_is_refused() -> None:
    chain = MILAN.chain
    other = certificate("SEV-OTHER", "SEV-Milan", key="leaf")
    report = parse_report(MILAN.report, "report")
    names = {
        check.name
        for check in check_report(report, chain._replace(vcek=other), Expectations(), NOW)
        if check.passed is False
    }
    assert names == {"signing key", "chip", "reported TCB"}


def test_vlek_names_its_cloud_and_no_chip() -> None:
    assert "'cloud'" in checks(VLEK)["chip"].detail
    assert failed(checks(replace(VLEK, hardware_id=CHIP))) == {"chip"}


def test_vcek_without_a_chip_is_refused() -> None:
    assert failed(checks(replace(MILAN, hardware_id=None))) == {"chip"}


@pytest.mark.parametrize(
    ("case", "stated"),
    [
        (MILAN, Tcb(4, 0, 24, 218)),
        (TURIN, Tcb(2, 1, 4, 80, 2)),
        (TURIN, Tcb(1, 1, 4, 80, 1)),
        (replace(MILAN, version=2), Tcb(3, 0, 24, 219)),
    ],
)
def test_certificate_for_other_versions_is_refused(case: Case, stated: Tcb) -> None:
    assert failed(checks(replace(case, stated=stated))) == {"reported TCB"}


@pytest.mark.parametrize("version", [2, 3, 5])
def test_least_versions_are_compared_by_the_processor_not_by_the_version(version: int) -> None:
    for case, tcb in ((MILAN, MILAN_TCB), (TURIN, TURIN_TCB)):
        report = replace(case, version=version)
        assert failed(checks(report, Expectations(least_tcb=tcb))) == set()
        newer = tcb._replace(bootloader=tcb.bootloader + 1)
        assert failed(checks(report, Expectations(least_tcb=newer))) == {"least TCB"}


SOON = START + timedelta(days=300)


@pytest.mark.parametrize(
    ("number", "dates", "words"),
    [
        (0, (START, SOON), f"the ARK expired on {SOON:%Y-%m-%d}"),
        (1, (START, SOON), f"the ASK expired on {SOON:%Y-%m-%d}"),
        (2, (START, SOON), f"the VCEK expired on {SOON:%Y-%m-%d}"),
        (2, (datetime(2030, 1, 1, tzinfo=UTC), END), "the VCEK is valid from 2030-01-01"),
    ],
)
def test_certificate_that_is_not_valid_now_is_named(
    number: int, dates: tuple[datetime, datetime], words: str
) -> None:
    all_dates = [(START, END)] * 3
    all_dates[number] = dates
    found = checks(replace(MILAN, dates=tuple(all_dates)))
    assert failed(found) == {"certificates valid now"}
    assert found["certificates valid now"].detail == words


def test_certificates_are_not_blamed_for_their_neighbours_dates() -> None:
    ends = ((START, SOON), (START, END), (START, SOON))
    detail = checks(replace(MILAN, dates=ends))["certificates valid now"].detail
    assert detail.count("expired") == 2
    assert "ASK" not in detail


def test_root_that_came_with_the_report_is_not_trusted_unless_it_is_amds() -> None:
    assert failed(checks(MILAN, trusts_root=False)) == {"root"}


@pytest.mark.parametrize(
    ("crl", "passed", "words"),
    [
        (revocation_list("ARK-Milan"), True, "not revoked by the lists of ARK-Milan"),
        (revocation_list("ARK-Milan", [2]), False, "the ASK was revoked on 2024-01-02"),
        (revocation_list("ARK-Milan", [3]), True, "not revoked"),
        (revocation_list("SEV-Milan", [3]), False, "the VCEK was revoked on 2024-01-02"),
        (revocation_list("ARK-Genoa", [2]), False, "not signed by this chain"),
        (revocation_list("ARK-Milan", [], START, SOON), False, "out of date: the next was due 2024-10-27"),
        (revocation_list("ARK-Milan", [], END, END + timedelta(9)), False, "which is to come"),
    ],
)
def test_revocation_lists_are_believed_if_the_chain_signed_them(
    crl: x509.CertificateRevocationList, passed: bool, words: str
) -> None:
    found = checks(MILAN, crls=(crl,))
    assert found["revocation"].passed is passed
    assert words in found["revocation"].detail


def test_revoked_asvk_is_named_as_such() -> None:
    assert (
        "the ASVK was revoked" in checks(VLEK, crls=(revocation_list("ARK-Milan", [2]),))["revocation"].detail
    )
