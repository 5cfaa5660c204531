"""Reports in every form that people keep them in, and certificates in every file that they come in."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from support.attestation_rig import TURIN, VLEK, Case, certificate, der, pem, revocation_list

from casemate.abi.sev.report import AttestationReport
from casemate.advise.certificate_file import load_pool, parse_pool, pick
from casemate.advise.report_file import CERTIFICATE_KINDS, read_report, validate_version
from casemate.errors import ImageError
from casemate.firmware.guids import guid

REPORT = Case().report
CHAIN = Case().chain
GUIDS = {kind: text for text, kind in CERTIFICATE_KINDS.items()}


def table(entries: dict[str, bytes], *, little: bool = False) -> bytes:
    """A certificate table; GUIDs as their texts read, or with ``little`` as UEFI keeps them."""
    offset, head, body = 24 * (len(entries) + 1), b"", b""
    for kind, contents in entries.items():
        raw = guid(GUIDS[kind]) if little else bytes.fromhex(GUIDS[kind].replace("-", ""))
        head += raw + (offset + len(body)).to_bytes(4, "little") + len(contents).to_bytes(4, "little")
        body += contents
    return head + bytes(24) + body


def ioctl_response(report: bytes) -> bytes:
    return (bytes(4) + len(report).to_bytes(4, "little") + bytes(24) + report).ljust(4000, b"\0")


def dump(mark: str, space: str, group: int) -> bytes:
    """Rows of an offset, 16 bytes in groups, and what a terminal shows of them, which here looks like digits."""
    rows = []
    for at in range(0, len(REPORT), 16):
        row = REPORT[at : at + 16].hex(" ", -group)
        rows.append(f"{at:08x}{mark}{space}{row}  abcdef0123456789\n")
    return "".join(rows).encode()


HEX, BASE64 = REPORT.hex(), base64.b64encode(REPORT)
FORMS = {
    "alone": (REPORT, "the report alone"),
    "hex": (HEX.encode(), "the report alone, in hex"),
    "hex in upper case": (HEX.upper().encode() + b"\n", "the report alone, in hex"),
    "hex in rows": (
        b"\n".join(HEX[at : at + 32].encode() for at in range(0, len(HEX), 32)),
        "the report alone, in hex",
    ),
    "hex with 0x": (b"0x" + HEX.encode(), "the report alone, in hex"),
    "bytes as C has them": (b", ".join(b"0x%02x" % byte for byte in REPORT), "the report alone, in hex"),
    "hex with colons": (REPORT.hex(":").encode(), "the report alone, in hex"),
    "base64": (BASE64, "the report alone, in base64"),
    "base64 in rows": (base64.encodebytes(REPORT), "the report alone, in base64"),
    "base64 for URLs": (base64.urlsafe_b64encode(REPORT), "the report alone, in base64"),
    "base64 without padding": (BASE64.rstrip(b"="), "the report alone, in base64"),
    "base64 of Windows": (b"\xef\xbb\xbf" + base64.encodebytes(REPORT), "the report alone, in base64"),
    "base64 of PowerShell": (BASE64.decode().encode("utf-16"), "the report alone, in base64"),
    "xxd": (dump(":", " ", 2), "the report alone, in a hex dump"),
    "hexdump -C": (dump("", "  ", 1), "the report alone, in a hex dump"),
    "ioctl": (ioctl_response(REPORT), "the response of the ioctl"),
    "ioctl in hex": (ioctl_response(REPORT).hex().encode(), "the response of the ioctl, in hex"),
    "ioctl, no padding": (ioctl_response(REPORT)[: 32 + 1184], "the response of the ioctl"),
    "empty table": (REPORT + bytes(4096), "a report with its certificate table"),
    "table": (REPORT + table({"VCEK": der(CHAIN.vcek)}), "a report with its certificate table"),
    "table in base64": (
        base64.b64encode(REPORT + table({"VCEK": der(CHAIN.vcek)})),
        "a report with its certificate table, in base64",
    ),
}


@pytest.mark.parametrize(("data", "form"), FORMS.values(), ids=FORMS)
def test_report_is_read_in_every_form_and_the_form_is_said(data: bytes, form: str) -> None:
    file = read_report(data, "report")
    assert (file.report.to_bytes(), file.form) == (REPORT, form)


@pytest.mark.parametrize("little", [False, True])
def test_table_says_what_each_entry_is(little: bool) -> None:
    entries = {"ARK": der(CHAIN.ark), "ASK": der(CHAIN.ask), "VCEK": der(CHAIN.vcek)}
    file = read_report(REPORT + table(entries, little=little).ljust(16384, b"\0"), "report")
    assert dict(file.certificates) == entries
    pool = parse_pool(table(entries, little=little), "auxblob")
    assert (pool.roots, pool.intermediates, pool.leaves) == ([CHAIN.ark], [CHAIN.ask], [CHAIN.vcek])


def response_with(status: int, size: int) -> bytes:
    return status.to_bytes(4, "little") + size.to_bytes(4, "little") + ioctl_response(REPORT)[8:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (REPORT[:-1], "1183 bytes"),
        (REPORT + b"\0", "1185 bytes"),
        (HEX.encode()[:-2], "2366 bytes"),
        (HEX.encode()[:-1], "begin with no version|bytes"),
        (BASE64[:-8], "bytes"),
        (b"-----BEGIN CERTIFICATE-----\n", "a report has 1184"),
        (bytes(4000), "status 0x0 and 0 bytes: no report"),
        (response_with(0x16, 0), "status 0x16"),
        (response_with(0, 1183), "1183 bytes: no report"),
        (ioctl_response(REPORT)[:-1] + b"x", "something lies around the report"),
        (REPORT + b"x" * 4096, "lies outside"),
        (REPORT + table({"VCEK": der(CHAIN.vcek)})[:-1], "lies outside"),
        (REPORT + table({"VCEK": der(CHAIN.vcek)}) + b"more", "no certificate table"),
        (REPORT + bytes(100) + b"more", "no certificate table"),
        (b"\1" + REPORT[1:], "version 1"),
        (b"\xff" * 1184, "begin with no version"),
    ],
)
def test_what_is_no_report_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_report(data, "report.bin")
    assert caught.value.remedy
    assert str(caught.value).startswith("report.bin")


@pytest.mark.parametrize("version", [6, 7, 0x40])
def test_newer_version_is_read_and_not_vouched_for(version: int) -> None:
    file = read_report(bytes((version,)) + REPORT[1:], "report")
    with pytest.raises(ImageError, match=f"version {version}, known are 2 to 5: what its new fields say"):
        validate_version(file.report, "report")


CRL = revocation_list("ARK-Milan")
FILES = {
    "PEM": pem(CHAIN.ark),
    "DER": der(CHAIN.ark),
    "AMD's bundle": pem(CHAIN.ask, CHAIN.ark),
    "bundle, root first": pem(CHAIN.ark, CHAIN.ask),
    "bundle of DER": der(CHAIN.ask) + der(CHAIN.ark),
    "words around": b"subject: x\n" + pem(CHAIN.ark) + b"\nend\n",
    "all and a list": pem(*CHAIN) + CRL.public_bytes(Encoding.PEM),
    "table": table({"ARK": der(CHAIN.ark), "CRL": CRL.public_bytes(Encoding.DER)}),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_root_is_found_in_every_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert pick(str(tmp_path / "file"), "ARK") == CHAIN.ark


def test_revocation_lists_are_read_in_either_form() -> None:
    for encoding in (Encoding.PEM, Encoding.DER):
        assert parse_pool(CRL.public_bytes(encoding), "crl").crls == [CRL]


@pytest.mark.parametrize("case", [Case(), VLEK, TURIN], ids=["VCEK", "VLEK", "Turin"])
def test_folder_as_tools_make_it_is_read(case: Case, tmp_path: Path) -> None:
    ark, ask, leaf = case.chain
    (tmp_path / "cert_chain").write_bytes(pem(ask, ark))
    (tmp_path / "vcek.der").write_bytes(der(leaf))
    (tmp_path / "crl.der").write_bytes(CRL.public_bytes(Encoding.DER))
    (tmp_path / "report.bin").write_bytes(case.report)
    (tmp_path / "notes.txt").write_text("no certificate")
    pool = load_pool(tmp_path)
    assert (pool.roots, pool.intermediates, pool.leaves, pool.crls) == ([ark], [ask], [leaf], [CRL])


def test_mirror_of_the_key_service_is_read(tmp_path: Path) -> None:
    ark, ask, leaf = CHAIN
    folder = tmp_path / "vcek" / "v1" / "Milan"
    folder.mkdir(parents=True)
    (folder / "cert_chain").write_bytes(pem(ask, ark))
    (folder / "010203?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219").write_bytes(der(leaf))
    (folder / "crl").write_bytes(CRL.public_bytes(Encoding.DER))
    (folder / "notes").write_bytes(b"\x30\x03\x02\x01\x00")
    pool = load_pool(tmp_path)
    assert (pool.roots, pool.intermediates, pool.leaves, pool.crls) == ([ark], [ask], [leaf], [CRL])
    (folder / "broken.der").write_bytes(der(leaf)[:-1])
    with pytest.raises(ImageError, match=r"broken\.der"):
        load_pool(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no certificate"),
        (b"\x30\x03", "no certificate"),
        (der(CHAIN.ark)[:-1], "no certificate"),
        (der(CHAIN.ark) + b"\0", "no certificate"),
        (pem(CHAIN.ark).replace(b"CERTIFICATE", b"PRIVATE KEY"), "holds 'private key'"),
        (pem(CHAIN.ark).replace(b"MII", b"NII"), "no certificate"),
        (AttestationReport().to_bytes(), "no certificate"),
    ],
)
def test_what_is_no_certificate_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        parse_pool(data, "x.pem")


def test_bundle_without_what_is_asked_for_says_so(tmp_path: Path) -> None:
    (tmp_path / "two.pem").write_bytes(pem(CHAIN.ask, certificate("SEV-Genoa", "ARK-Genoa")))
    with pytest.raises(ImageError, match="none of its 2 certificates is an ARK"):
        pick(str(tmp_path / "two.pem"), "ARK")
    assert pick(str(tmp_path / "two.pem"), "ASK") is None


LOOP = bytes.fromhex(GUIDS["VCEK"].replace("-", "")) + bytes(4) + (1000).to_bytes(4, "little")


@pytest.mark.parametrize(
    "data",
    [
        b"-----BEGIN CERTIFICATE-----" * 30_000,
        b"-----BEGIN X-----" * 60_000,
        pem(CHAIN.ark) * 700,
        b"\x30\x00" * 500_000,
        b"\x30\x83\x0f\xff\xf0" + bytes(0xFFFF0),
        LOOP * 40_000,
    ],
    ids=["open ends", "other ends", "many", "empty", "long", "table"],
)
def test_file_that_would_take_for_ever_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_pool(data, "x")


def test_table_that_holds_itself_many_times_is_refused() -> None:
    with pytest.raises(ImageError, match="over 32 entries"):
        read_report(REPORT + LOOP * 40_000, "report")
