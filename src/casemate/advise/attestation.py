"""Whether an SNP guest's attestation report can be believed, check by check (AMD 56860, 7.3; AMD 57230)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from casemate.abi.sev.id_block import ECDSA_P384_SHA384
from casemate.abi.sev.report import (
    NEWEST_VERSION,
    OLDEST_VERSION,
    SIGNED_SIZE,
    VCEK_CHIP_ID,
    VCEK_FMC,
    VCEK_TCB,
    AttestationReport,
    Tcb,
)
from casemate.abi.sev.snp_policy import SnpPolicy, policy_words
from casemate.errors import ImageError
from casemate.files import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography import x509

AMD_ROOTS = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "AMD's root for EPYC 7003 (Milan)"
}
"""SHA-256 of root certificates (DER) that are known here; any other is as good as where you have it from."""


class Check(NamedTuple):
    """One check: None in ``passed`` means that there was nothing to hold the value against."""

    name: str
    passed: bool | None
    detail: str


class Chain(NamedTuple):
    """The certificates: root, intermediate, and the chip's key (or the cloud's, VLEK)."""

    ark: x509.Certificate
    ask: x509.Certificate
    vcek: x509.Certificate


class Expectations(NamedTuple):
    """What the report must show; None is anything. Digests are bytes, the policy must be the very one."""

    measurement: bytes | None = None
    policy: int | None = None
    report_data: bytes | None = None
    host_data: bytes | None = None
    id_key_digest: bytes | None = None
    author_key_digest: bytes | None = None
    chip_id: bytes | None = None
    least_svn: int | None = None
    least_tcb: Tcb | None = None
    most_vmpl: int = 0
    allow_debug: bool = False
    allow_migration: bool = False


def parse_report(data: bytes, name: str) -> AttestationReport:
    """The report in ``data``. Raises ImageError if it is none that is understood here."""
    if len(data) != AttestationReport.SIZE:
        cause = f"{len(data)} bytes, a report has {AttestationReport.SIZE}"
        raise ImageError(name, cause, "give the report alone, as the guest's driver returned it")
    report = AttestationReport.from_bytes(data)
    if not OLDEST_VERSION <= report.version <= NEWEST_VERSION:
        cause = f"report of version {report.version}, known are {OLDEST_VERSION} to {NEWEST_VERSION}"
        raise ImageError(name, cause, "the file is no report, or of newer firmware")
    return report


def load_certificate(path: str | Path) -> x509.Certificate:
    """A certificate in PEM or DER form. Raises ImageError if the file is none."""
    from cryptography import x509

    data = read_file(path)
    try:
        load = x509.load_pem_x509_certificate if data.startswith(b"-----") else x509.load_der_x509_certificate
        with warnings.catch_warnings(action="ignore"):  # AMD's own have the serial number 0
            return load(data)
    except ValueError:
        raise ImageError(path, "this is no certificate", "give one in PEM or DER form") from None


def check_report(
    report: AttestationReport, chain: Chain, expected: Expectations, now: datetime
) -> list[Check]:
    """All checks, whether those before passed or not; ``now`` is the time that certificates must be valid at."""
    return [
        *_check_chain(chain, now),
        *_check_signer(report, chain.vcek),
        *_check_guest(report, expected),
        *_check_values(report, expected),
    ]


def root_name(chain: Chain) -> str:
    """Who vouches for the report: a known root, or the fingerprint of an unknown one."""
    from cryptography.hazmat.primitives.serialization import Encoding

    fingerprint = hashlib.sha256(chain.ark.public_bytes(Encoding.DER)).hexdigest()
    return AMD_ROOTS.get(fingerprint, f"unknown, SHA-256 {fingerprint}")


def is_modelled(chain: Chain) -> bool:
    """Whether the chain says of itself that it is the model's."""
    return "casemate model" in chain.ark.subject.rfc4514_string()


def _check_chain(chain: Chain, now: datetime) -> Iterator[Check]:
    names = ("ARK", "ASK", "VCEK")
    for index, subject in enumerate(chain):
        issuer = chain[max(index - 1, 0)]
        signer = "itself" if index == 0 else f"the {names[index - 1]}"
        passed = _is_issued_by(subject, issuer)
        text = f"signed by {signer}" if passed else f"not signed by {signer}"
        yield Check(f"certificate {names[index]}", passed, text)
    ends = [(c.not_valid_before_utc, c.not_valid_after_utc) for c in chain]
    valid = all(start <= now <= end for start, end in ends)
    first, last = max(start for start, _ in ends), min(end for _, end in ends)
    yield Check("certificates valid now", valid, f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}")


def _is_issued_by(subject: x509.Certificate, issuer: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        subject.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _check_signer(report: AttestationReport, vcek: x509.Certificate) -> Iterator[Check]:
    algorithm = report.signature_algo == ECDSA_P384_SHA384
    signed = algorithm and _is_signed_by(report, vcek)
    text = f"by the {report.signing_key.name}" if signed else "does not verify with the VCEK's key"
    yield Check("signature", signed, text if algorithm else f"unknown algorithm {report.signature_algo}")
    stated = _extension(vcek, VCEK_CHIP_ID.oid)
    if stated is None:
        yield Check("chip", None, "the certificate names no chip")
    else:
        # Processors from family 1Ah on have IDs of 8 bytes; the rest of the field is zero.
        same = stated.ljust(len(report.chip_id), b"\0") == bytes(report.chip_id)
        yield Check(
            "chip", same, "the certificate's" if same else "not the certificate's: another chip signed"
        )
    parts = {e.part: _number(vcek, e.oid) for e in (*VCEK_TCB, VCEK_FMC)}
    if None in [parts[e.part] for e in VCEK_TCB]:
        yield Check("reported TCB", None, "the certificate states none")
        return
    tcb = Tcb(**{part: number or 0 for part, number in parts.items()})
    reported = Tcb.parse(report.reported_tcb, report.family)
    detail = str(reported) if tcb == reported else f"{reported}, and the certificate is for {tcb}"
    yield Check("reported TCB", tcb == reported, detail)


def _is_signed_by(report: AttestationReport, vcek: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA384

    key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    try:
        signature = utils.encode_dss_signature(*report.signature.numbers)
        key.verify(signature, report.to_bytes()[:SIGNED_SIZE], ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return not any(bytes(report.signature.reserved))


def _check_guest(report: AttestationReport, expected: Expectations) -> Iterator[Check]:
    words = policy_words(report.policy)
    if expected.policy is None:
        yield Check("policy", None, f"{report.policy:#x} allows {words}; no policy was given")
    else:
        same = report.policy == expected.policy
        other = "" if same else f", expected is {expected.policy:#x}"
        yield Check("policy", same, f"{report.policy:#x} allows {words}{other}")
    debug = bool(report.policy & SnpPolicy.DEBUG)
    yield Check(
        "no debugging", not debug or expected.allow_debug, "the host may read it" if debug else "forbidden"
    )
    movable = bool(report.policy & SnpPolicy.MIGRATE_MA)
    passed = not movable or expected.allow_migration
    yield Check("no migration", passed, "it may be moved" if movable else "forbidden")
    yield Check("VMPL", report.vmpl <= expected.most_vmpl, f"{report.vmpl}, at most {expected.most_vmpl}")
    svn, least = report.guest_svn, expected.least_svn
    passed_svn, floor_text = (None, "") if least is None else (svn >= least, f", at least {least}")
    yield Check("guest SVN", passed_svn, f"{svn}{floor_text}")
    tcb, floor = Tcb.parse(report.reported_tcb, report.family), expected.least_tcb
    detail = str(tcb) if floor is None else f"{tcb}; at least {floor}"
    yield Check("least TCB", None if floor is None else tcb.meets(floor), detail)


def _check_values(report: AttestationReport, expected: Expectations) -> Iterator[Check]:
    for name, shown, wanted in (
        ("measurement", report.measurement, expected.measurement),
        ("report data", report.report_data, expected.report_data),
        ("host data", report.host_data, expected.host_data),
        ("ID key", report.id_key_digest, expected.id_key_digest),
        ("author key", report.author_key_digest, expected.author_key_digest),
        ("chip ID", report.chip_id, expected.chip_id),
    ):
        value = bytes(shown)
        if wanted is None:
            yield Check(name, None, value.hex())
        else:
            same = value == wanted
            yield Check(name, same, value.hex() if same else f"{value.hex()}, expected is {wanted.hex()}")


def _extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    from cryptography import x509

    try:
        value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def _number(certificate: x509.Certificate, oid: str) -> int | None:
    value = _extension(certificate, oid)
    is_integer = value is not None and len(value) > 2 and value[0] == 2 and value[1] == len(value) - 2
    return int.from_bytes(value[2:], "big") if value is not None and is_integer else None
