"""Whether an SNP guest's attestation report can be believed, check by check (AMD 56860, 7.3; AMD 57230)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.abi.sev.id_block import ECDSA_P384_SHA384
from casemate.abi.sev.report import (
    CHIP_ID_SIZE,
    NEW_FAMILY,
    OLD_FAMILY,
    SHORT_CHIP_ID_SIZE,
    SIGNED_SIZE,
    VCEK_CHIP_ID,
    VCEK_FMC,
    VCEK_TCB,
    VLEK_CSP_ID,
    AttestationReport,
    Tcb,
)
from casemate.abi.sev.snp_policy import SnpPolicy, policy_words
from casemate.advise.certificate_file import LEAF_NAMES, common_name, is_issued_by, serial_number, signed_by

AMD_ROOTS = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "AMD's root for EPYC 7003 (Milan)",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "AMD's root for EPYC 9004 (Genoa)",
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": "AMD's root for EPYC 9005 (Turin)",
}
"""SHA-256 of AMD's root certificates (DER), as its key service hands them out; any other is as good as where you have
it from."""

_VLEK_INTERMEDIATE = "SEV-VLEK-"
_VCEK_INTERMEDIATES = ("SEV-Milan", "SEV-Genoa", "SEV-Turin")


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


def check_report(
    report: AttestationReport,
    chain: Chain,
    expected: Expectations,
    now: datetime,
    crls: Sequence[x509.CertificateRevocationList] = (),
    *,
    trusts_root: bool = True,
) -> list[Check]:
    """All checks, whether those before passed or not.

    ``now`` is the time that certificates must be valid at; ``trusts_root`` says that the verifier chose the root, which
    otherwise has to be one of ``AMD_ROOTS``.
    """
    return [
        _check_root(chain, trusts_root),
        *_check_chain(chain, now),
        _check_revocation(chain, crls, now),
        *_check_signer(report, chain),
        *_check_guest(report, chain, expected),
        *_check_values(report, expected),
    ]


def root_name(chain: Chain) -> str:
    """Who vouches for the report: a known root, or the fingerprint of an unknown one."""
    fingerprint = hashlib.sha256(chain.ark.public_bytes(Encoding.DER)).hexdigest()
    return AMD_ROOTS.get(fingerprint, f"unknown, SHA-256 {fingerprint}")


def is_modelled(chain: Chain) -> bool:
    """Whether the chain says of itself that it is the model's."""
    return "casemate model" in chain.ark.subject.rfc4514_string()


def leaf_name(chain: Chain) -> str:
    """VCEK or VLEK, by the name of the certificate; VCEK, too, if that is neither."""
    return LEAF_NAMES.get(common_name(chain.vcek.subject), "VCEK")


def family_of(report: AttestationReport, leaf: x509.Certificate | None = None) -> int:
    """The CPU family whose layout the report's versions have.

    Reports of version 2 do not say: the signer's certificate does by what it states, or else the ID of the chip.
    """
    if report.family:
        return report.family
    if leaf is not None:
        stated = hardware_id(leaf)
        is_new = _extension(leaf, VCEK_FMC.oid) is not None or len(stated or b"") == SHORT_CHIP_ID_SIZE
    else:
        is_new = not report.has_masked_chip_id and not any(report.chip_id[SHORT_CHIP_ID_SIZE:])
    return NEW_FAMILY if is_new else OLD_FAMILY


def hardware_id(leaf: x509.Certificate) -> bytes | None:
    """The chip that a VCEK's certificate is for, kept raw or as an OCTET STRING; None if it names none."""
    value = _extension(leaf, VCEK_CHIP_ID.oid)
    for size in (CHIP_ID_SIZE, SHORT_CHIP_ID_SIZE):
        if value is not None and len(value) == size + 2 and value[:2] == bytes((4, size)):
            return value[2:]
    return value


def _check_root(chain: Chain, trusts_root: bool) -> Check:
    name = root_name(chain)
    if trusts_root or not name.startswith("unknown"):
        return Check("root", True, name)
    return Check("root", False, f"{name}, is not AMD's; give it with --ark if you trust it")


def _check_chain(chain: Chain, now: datetime) -> Iterator[Check]:
    names = ("ARK", "ASK" if leaf_name(chain) == "VCEK" else "ASVK", leaf_name(chain))
    for index, subject in enumerate(chain):
        issuer = chain[max(index - 1, 0)]
        signer = "itself" if index == 0 else f"the {names[index - 1]}"
        signs_certificates = isinstance(subject.public_key(), rsa.RSAPublicKey)
        passed = is_issued_by(subject, issuer)
        text = f"signed by {signer}" if passed else f"not signed by {signer}"
        if signs_certificates != (index < 2):
            passed, text = False, "its key is of the wrong kind"
        yield Check(f"certificate {names[index]}", passed, text)
    ends = [(c.not_valid_before_utc, c.not_valid_after_utc) for c in chain]
    wrong = [
        f"the {name} expired on {end:%Y-%m-%d}" if now > end else f"the {name} is valid from {start:%Y-%m-%d}"
        for name, (start, end) in zip(names, ends, strict=True)
        if not start <= now <= end
    ]
    first, last = max(start for start, _ in ends), min(end for _, end in ends)
    detail = ", ".join(wrong) or f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
    yield Check("certificates valid now", not wrong, detail)


def _check_revocation(chain: Chain, crls: Sequence[x509.CertificateRevocationList], now: datetime) -> Check:
    if not crls:
        return Check("revocation", None, "no revocation list was given")
    faults = [fault for crl in crls for fault in _revocation_faults(chain, crl, now)]
    issuers = ", ".join(sorted({signed_by(crl, chain[:2]) or "" for crl in crls} - {""}))
    return Check("revocation", not faults, ", ".join(faults) or f"not revoked by the lists of {issuers}")


def _revocation_faults(chain: Chain, crl: x509.CertificateRevocationList, now: datetime) -> Iterator[str]:
    if signed_by(crl, chain[:2]) is None:
        yield "a revocation list is not signed by this chain"
        return
    if crl.last_update_utc > now:
        yield f"a revocation list is from {crl.last_update_utc:%Y-%m-%d}, which is to come"
    if crl.next_update_utc is None or crl.next_update_utc < now:
        end = "says no day" if crl.next_update_utc is None else f"was due {crl.next_update_utc:%Y-%m-%d}"
        yield f"a revocation list is out of date: the next {end}"
    names = ("ARK", "ASK" if leaf_name(chain) == "VCEK" else "ASVK", leaf_name(chain))
    for name, certificate in zip(names, chain, strict=True):
        entry = crl.get_revoked_certificate_by_serial_number(serial_number(certificate))
        if certificate.issuer == crl.issuer and entry is not None:
            yield f"the {name} was revoked on {entry.revocation_date_utc:%Y-%m-%d}"


def _check_signer(report: AttestationReport, chain: Chain) -> Iterator[Check]:
    yield _check_signing_key(report, chain)
    leaf = chain.vcek
    algorithm = report.signature_algo == ECDSA_P384_SHA384
    signed = algorithm and _is_signed_by(report, leaf)
    text = f"by the {leaf_name(chain)}" if signed else f"does not verify with the {leaf_name(chain)}'s key"
    yield Check("signature", signed, text if algorithm else f"unknown algorithm {report.signature_algo}")
    yield _check_chip(report, chain)
    family = family_of(report, leaf)
    wanted = (*VCEK_TCB, VCEK_FMC) if family >= NEW_FAMILY else VCEK_TCB
    parts = {extension.part: _number(leaf, extension.oid) for extension in wanted}
    if missing := [part for part, number in parts.items() if number is None]:
        yield Check("reported TCB", False, f"the certificate states no version of {', '.join(missing)}")
        return
    tcb = Tcb(**{part: number or 0 for part, number in parts.items()})
    reported = Tcb.parse(report.reported_tcb, family)
    detail = str(reported) if tcb == reported else f"{reported}, and the certificate is for {tcb}"
    yield Check("reported TCB", tcb == reported, detail)


def _check_signing_key(report: AttestationReport, chain: Chain) -> Check:
    """Whether report, leaf and intermediate say the same of what signed."""
    said, leaf = report.signing_key.name, common_name(chain.vcek.subject)
    intermediate = common_name(chain.ask.subject)
    name = LEAF_NAMES.get(leaf)
    if said not in LEAF_NAMES.values():
        return Check("signing key", False, f"the report says that {said} signed it")
    if name is None:
        return Check("signing key", False, f"the certificate is called {leaf!r}, not SEV-VCEK or SEV-VLEK")
    if name != said:
        return Check("signing key", False, f"the report says {said}, and the certificate is a {name}")
    is_vlek = intermediate.startswith(_VLEK_INTERMEDIATE)
    if (name == "VCEK" and is_vlek) or (name == "VLEK" and intermediate in _VCEK_INTERMEDIATES):
        return Check("signing key", False, f"{intermediate!r} signs no {name}s")
    return Check("signing key", True, f"{said}, as the certificate")


def _check_chip(report: AttestationReport, chain: Chain) -> Check:
    stated = hardware_id(chain.vcek)
    if leaf_name(chain) == "VLEK":
        if stated is not None:
            return Check("chip", False, "the certificate of a VLEK names a chip, which none does")
        cloud = _text(_extension(chain.vcek, VLEK_CSP_ID.oid))
        return Check("chip", None, f"a VLEK is of no chip, but of a cloud: {cloud}")
    if stated is None:
        return Check("chip", False, "the certificate names no chip")
    sizes = (
        (SHORT_CHIP_ID_SIZE, CHIP_ID_SIZE) if family_of(report, chain.vcek) >= NEW_FAMILY else (CHIP_ID_SIZE,)
    )
    if len(stated) not in sizes:
        return Check("chip", False, f"the certificate's chip ID has {len(stated)} bytes, not {sizes[0]}")
    if report.has_masked_chip_id:
        return Check("chip", None, "masked (MASK_CHIP_ID): the host leaves the ID out of reports")
    same = stated.ljust(CHIP_ID_SIZE, b"\0") == bytes(report.chip_id)
    return Check("chip", same, "the certificate's" if same else "not the certificate's: another chip signed")


def _is_signed_by(report: AttestationReport, leaf: x509.Certificate) -> bool:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    try:
        signature = utils.encode_dss_signature(*report.signature.numbers)
        key.verify(signature, report.to_bytes()[:SIGNED_SIZE], ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return not any(bytes(report.signature.reserved))


def _check_guest(report: AttestationReport, chain: Chain, expected: Expectations) -> Iterator[Check]:
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
    tcb = Tcb.parse(report.reported_tcb, family_of(report, chain.vcek))
    floor = expected.least_tcb
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
            same = value == wanted.ljust(len(value) if name == "chip ID" else 0, b"\0")
            is_masked = name == "chip ID" and report.has_masked_chip_id
            said = "masked (MASK_CHIP_ID)" if is_masked else value.hex()
            yield Check(name, same and not is_masked, said if same else f"{said}, expected is {wanted.hex()}")


def _extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    try:
        value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def _number(certificate: x509.Certificate, oid: str) -> int | None:
    """A version: an INTEGER of up to 255, be it written with or without the leading zero that it needs."""
    value = _extension(certificate, oid)
    if value is None or len(value) not in (3, 4) or value[:2] != bytes((2, len(value) - 2)):
        return None
    number = int.from_bytes(value[2:], "big")
    return number if number <= 0xFF else None


def _text(value: bytes | None) -> str:
    """An IA5String, or what else is there, for people."""
    if value is None:
        return "not said"
    text = (
        value[2:]
        if len(value) > 2 and value[0] in (0x0C, 0x13, 0x16) and value[1] == len(value) - 2
        else value
    )
    return repr(text.decode("ascii", "replace"))
