"""What people keep an attestation report in, and the report out of it (AMD 56860, 8.26; AMD 56421 GHCB, 4.1.8.1)."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from casemate.abi.sev.report import NEWEST_VERSION, OLDEST_VERSION, AttestationReport
from casemate.errors import ImageError

RESPONSE_SIZE = 4000
"""Bytes of the buffer that Linux' SNP_GET_REPORT ioctl fills (include/uapi/linux/sev-guest.h)."""
RESPONSE_HEADER_SIZE = 32
"""Bytes of MSG_REPORT_RSP before the report: status, report's size, reserved."""
LARGEST_REPORT_FILE = 1 << 20
"""Bytes, in whatever form and with whatever certificates."""
_TABLE_ENTRY = 24
_MOST_ENTRIES = 32
_PLAUSIBLE_VERSION = 0xFF
_UTF8, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
"""What texts of Windows begin with."""
_DUMP_WIDTH = 16
"""Bytes of a line; what follows are the same as letters, which may look like digits."""
_DUMP_LINE = re.compile(
    rb"([0-9a-fA-F]{8})(?::(?= )|(?=  [0-9a-fA-F]{2} |$))((?: {1,2}[0-9a-fA-F]{2}(?:[0-9a-fA-F]{2})?(?![0-9a-fA-F]))*)"
)
"""Offset, and the bytes as pairs of digits, or as two pairs, in their order."""

CERTIFICATE_KINDS = {
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
    "63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}
"""What an entry of a certificate table holds, by its GUID (AMD 56421 GHCB, table 9)."""

_REMEDY = (
    "give the report as the guest's driver returned it: 1184 bytes, or those in hex or base64, "
    "the 4000 bytes of the ioctl, or a report with its certificate table"
)


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A report, what it was kept in, and the certificates (DER) that came with it by their kind."""

    report: AttestationReport
    form: str
    certificates: tuple[tuple[str, bytes], ...] = ()


def read_report(data: bytes, name: str) -> ReportFile:
    """The report in the file called ``name``. Raises ImageError if there is none, or its version is no version yet.

    What lies around a report must be empty, so that a changed byte is never overlooked.
    """
    raw, words = _decode(data)
    if not raw:
        raise ImageError(name, f"{len(data)} bytes, and a report has {AttestationReport.SIZE}", _REMEDY)
    body, form = _unwrap(raw, name)
    report = AttestationReport.from_bytes(body)
    if report.version > _PLAUSIBLE_VERSION:
        cause = f"these {len(data)} bytes begin with no version; a report has {AttestationReport.SIZE}"
        raise ImageError(name, cause, _REMEDY)
    if report.version < OLDEST_VERSION:
        cause = f"report of version {report.version}, known are {OLDEST_VERSION} to {NEWEST_VERSION}"
        raise ImageError(name, cause, "the file is no report")
    table = body[AttestationReport.SIZE :]
    certificates = parse_certificate_table(table, name) if form.endswith("table") else ()
    return ReportFile(report, f"{form}{words}", certificates)


def parse_report(data: bytes, name: str) -> AttestationReport:
    """The report in a file, if all of it is understood here. Raises ImageError if it is not, or there is none."""
    report = read_report(data, name).report
    validate_version(report, name)
    return report


def validate_version(report: AttestationReport, name: str) -> None:
    """Raise ImageError if a report is of a version that came after this was written."""
    if report.version > NEWEST_VERSION:
        cause = (
            f"report of version {report.version}, known are {OLDEST_VERSION} to {NEWEST_VERSION}: "
            "what its new fields say nobody here would check"
        )
        raise ImageError(name, cause, f"--show prints it as version {NEWEST_VERSION} has it; update casemate")


def is_certificate_table(data: bytes) -> bool:
    """Whether the bytes begin as a table of certificates with at least one entry does."""
    return len(data) >= _TABLE_ENTRY and _kind(data[:16]) is not None


def parse_certificate_table(table: bytes, name: str) -> tuple[tuple[str, bytes], ...]:
    """Kind and contents of each entry. Raises ImageError if the table is cut off or has something around them."""
    found: list[tuple[str, bytes]] = []
    at, used = 0, bytearray(len(table))
    while any(entry := table[at : at + _TABLE_ENTRY]):
        offset, length = (int.from_bytes(entry[start : start + 4], "little") for start in (16, 20))
        if len(found) == _MOST_ENTRIES:
            raise ImageError(name, f"a certificate table of over {_MOST_ENTRIES} entries", _REMEDY)
        if len(entry) < _TABLE_ENTRY or offset + length > len(table) or not length:
            raise ImageError(
                name, f"entry {len(found)} of the certificate table lies outside of it", _REMEDY, at
            )
        found.append((_kind(entry[:16]) or "unknown", table[offset : offset + length]))
        used[at : at + _TABLE_ENTRY] = b"\1" * _TABLE_ENTRY
        used[offset : offset + length] = b"\1" * length
        at += _TABLE_ENTRY
    if any(byte and not is_used for byte, is_used in zip(table, used, strict=True)):
        raise ImageError(name, "something lies behind the report that is no certificate table", _REMEDY)
    return tuple(found)


def _kind(raw: bytes) -> str | None:
    text = "-".join(raw[a:b].hex() for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 16)))
    swapped = raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]
    other = "-".join(swapped[a:b].hex() for a, b in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 16)))
    return CERTIFICATE_KINDS.get(text) or CERTIFICATE_KINDS.get(other)


def _decode(data: bytes) -> tuple[bytes, str]:
    """The bytes that a text stands for, and how it was written; bytes stay as they are."""
    size = AttestationReport.SIZE
    if data[:2] in _UTF16:
        data = data.decode("utf-16", "replace").encode()
    elif data[:1] in (b"\x02", b"\x03", b"\x04", b"\x05") or b"\0" in data:
        return (data if len(data) >= size else b""), ""
    data = data.removeprefix(_UTF8)
    if dump := _undump(data):
        return (dump, ", in a hex dump") if len(dump) >= size else (b"", "")
    text = re.sub(rb"-----(BEGIN|END) [A-Z0-9 ]+-----|\s", b"", data)
    digits = re.sub(rb"0[xX]|[,:]|\\x", b"", text)
    if re.fullmatch(rb"[0-9a-fA-F]+", digits) and len(digits) % 2 == 0 and len(digits) >= 2 * size:
        return bytes.fromhex(digits.decode()), ", in hex"
    if data.lstrip().startswith(b"-----") or re.fullmatch(rb"[0-9A-Za-z+/_-]+={0,2}", text):
        standard = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            raw = base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
        except ValueError:
            return b"", ""
        return (raw, ", in base64") if len(raw) >= size else (b"", "")
    return (data if len(data) >= size else b""), ""


def _undump(data: bytes) -> bytes:
    """The bytes that ``xxd`` or ``hexdump -C`` printed; none if this is no such dump."""
    found = b""
    for line in data.splitlines():
        match = _DUMP_LINE.match(line)
        if match is None or int(match[1], 16) != len(found):
            return b""
        found += bytes.fromhex(match[2].decode())[:_DUMP_WIDTH]
    return found


def _unwrap(data: bytes, name: str) -> tuple[bytes, str]:
    size = AttestationReport.SIZE
    if len(data) == size:
        return data, "the report alone"
    status, length = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    body = data[RESPONSE_HEADER_SIZE : RESPONSE_HEADER_SIZE + size]
    is_response = len(data) == RESPONSE_SIZE or (status == 0 and length == size)
    if is_response and len(body) == size:
        if status or length != size:
            cause = f"the secure processor answered with status {status:#x} and {length} bytes: no report"
            raise ImageError(name, cause, "ask for the report again")
        if any(data[8:RESPONSE_HEADER_SIZE]) or any(data[RESPONSE_HEADER_SIZE + size :]):
            raise ImageError(name, "something lies around the report in the ioctl's buffer", _REMEDY)
        return body, "the response of the ioctl"
    if len(data) - size < _TABLE_ENTRY:
        raise ImageError(name, f"{len(data)} bytes, and a report has {size}", _REMEDY)
    return data, "a report with its certificate table"
