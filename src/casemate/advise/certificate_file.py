"""Files of AMD's certificates: PEM, DER, bundles, tables, folders (AMD 57230 VCEK certificate specification).

A certificate that is odd is refused when it is read, with what is odd about it: nothing odd comes from AMD, and no
check further on has to expect it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.advise.report_file import is_certificate_table, parse_certificate_table
from casemate.errors import ImageError
from casemate.files import read_file

LEAF_NAMES = {"SEV-VCEK": "VCEK", "SEV-VLEK": "VLEK"}
"""Common names of the keys that sign reports, and what a report calls them."""
SUFFIXES = (".pem", ".der", ".crt", ".cer", ".cert", ".crl", ".bin")
"""What files of a folder are called that are looked into, or ``cert_chain``, ``vcek``, ``vlek``, ``crl`` alone."""

_BARE_NAMES = ("cert_chain", "vcek", "vlek", "crl", "auxblob")
_REMEDY = "give a certificate in PEM or DER form, as AMD's key service hands it out"
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_ODDITIES = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(slots=True)
class Pool:
    """Certificates and revocation lists, in the order in which they came."""

    certificates: list[x509.Certificate] = field(default_factory=list)
    crls: list[x509.CertificateRevocationList] = field(default_factory=list)

    @property
    def roots(self) -> list[x509.Certificate]:
        """Those that name themselves as their issuer."""
        return [c for c in self.certificates if c.subject == c.issuer]

    @property
    def intermediates(self) -> list[x509.Certificate]:
        """Those with a key that signs certificates, without the roots."""
        keys = ((c, c.public_key()) for c in self.certificates if c.subject != c.issuer)
        return [c for c, key in keys if isinstance(key, rsa.RSAPublicKey)]

    @property
    def leaves(self) -> list[x509.Certificate]:
        """Those with a key that signs reports."""
        return [c for c in self.certificates if isinstance(c.public_key(), ec.EllipticCurvePublicKey)]

    def add(self, other: Pool) -> None:
        """Take what ``other`` has and this has not."""
        self.certificates += [c for c in other.certificates if c not in self.certificates]
        self.crls += [crl for crl in other.crls if crl not in self.crls]


def load_pool(path: str | Path) -> Pool:
    """Everything in a file, or in the files of a folder. Raises ImageError if a file has nothing, or something odd."""
    path = Path(path)
    if not path.is_dir():
        return parse_pool(read_file(path), str(path))
    pool = Pool()
    try:
        files = sorted(path.iterdir())
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror}", "check its permissions") from None
    for file in files:
        is_named = file.suffix.lower() in SUFFIXES or file.name in _BARE_NAMES
        if is_named and file.is_file() and _holds_certificates(data := read_file(file)):
            pool.add(parse_pool(data, str(file)))
    if not pool.certificates and not pool.crls:
        raise ImageError(path, "no certificate is in this folder", _REMEDY)
    return pool


def pick(path: str, kind: str) -> x509.Certificate | None:
    """The certificate of a file that can be ``kind`` (ARK, ASK or VCEK): the only one, or in a bundle the only such.

    None if a bundle has several, so that the chain has to tell. Raises ImageError if it has none.
    """
    pool = load_pool(path)
    if len(pool.certificates) == 1:
        return pool.certificates[0]
    candidates = {"ARK": pool.roots, "ASK": pool.intermediates}.get(kind, pool.leaves)
    if not candidates:
        raise ImageError(path, f"none of its {len(pool.certificates)} certificates is an {kind}", _REMEDY)
    return candidates[0] if len(candidates) == 1 else None


def load_certificate(path: str | Path) -> x509.Certificate:
    """The one certificate of a file. Raises ImageError if it has none, several, or an odd one."""
    certificates = parse_pool(read_file(path), str(path)).certificates
    if len(certificates) != 1:
        raise ImageError(path, f"this is no certificate, but {len(certificates)} of them", _REMEDY)
    return certificates[0]


def parse_pool(data: bytes, name: str) -> Pool:
    """Everything in the bytes of a file called ``name``. Raises ImageError as ``load_pool`` does."""
    pool = Pool()
    for kind, der in _parts(data, name):
        with warnings.catch_warnings(action="ignore"):  # AMD's own have the serial number 0
            if kind == "CRL":
                pool.crls.append(_parse_crl(der, name))
            else:
                pool.certificates.append(_parse_certificate(der, name))
    if not pool.certificates and not pool.crls:
        raise ImageError(name, "this is no certificate", _REMEDY)
    return pool


def _holds_certificates(data: bytes) -> bool:
    return data.startswith(b"\x30") or b"-----BEGIN " in data or is_certificate_table(data)


def _parts(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Kind and DER of each part; "CRL" is one, anything else a certificate."""
    if is_certificate_table(data):
        yield from parse_certificate_table(data, name)
        return
    if b"-----BEGIN " not in data:
        yield from _der_parts(data, name)
        return
    for match in _PEM.finditer(data):
        label = match[1].decode()
        kind = {"X509 CRL": "CRL", "CERTIFICATE": "certificate"}.get(label)
        if kind is None:
            raise ImageError(name, f"holds a {label.lower()}", _REMEDY)
        try:
            yield kind, _pem_body(match[0], kind)
        except _ODDITIES as error:
            raise ImageError(name, f"this is no {kind} in PEM form: {_words(error)}", _REMEDY) from None


def _pem_body(block: bytes, kind: str) -> bytes:
    if kind == "CRL":
        return x509.load_pem_x509_crl(block).public_bytes(Encoding.DER)
    with warnings.catch_warnings(action="ignore"):
        return x509.load_pem_x509_certificate(block).public_bytes(Encoding.DER)


def _der_parts(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """DER objects one behind the other, as ``cat`` makes a bundle of them."""
    while data:
        size = _der_size(data)
        if size is None or size > len(data):
            raise ImageError(name, "this is no certificate", _REMEDY)
        part, data = data[:size], data[size:]
        yield ("CRL" if _is_crl(part) else "certificate"), part


def _der_size(data: bytes) -> int | None:
    """Bytes of the SEQUENCE that ``data`` begins with, or None."""
    if len(data) < 2 or data[0] != 0x30:
        return None
    if data[1] < 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    if not 0 < count <= 4:
        return None
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def _is_crl(der: bytes) -> bool:
    try:
        x509.load_der_x509_crl(der)
    except _ODDITIES:
        return False
    return True


def _parse_certificate(der: bytes, name: str) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
    except _ODDITIES as error:
        raise ImageError(name, f"this is no certificate: {_words(error)}", _REMEDY) from None
    for what, look in (
        ("version", lambda: certificate.version),
        ("names", lambda: (certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string())),
        ("extensions", lambda: list(certificate.extensions)),
        ("key", certificate.public_key),
        ("validity", lambda: (certificate.not_valid_before_utc, certificate.not_valid_after_utc)),
        ("signature", lambda: certificate.signature_algorithm_parameters),
    ):
        try:
            look()
        except _ODDITIES as error:
            raise ImageError(name, f"the certificate's {what} is odd: {_words(error)}", _REMEDY) from None
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, ec.SECP384R1):
        raise ImageError(name, f"the certificate's key is on the curve {key.curve.name}", _REMEDY)
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise ImageError(name, "the certificate's key is neither RSA nor on P-384", _REMEDY)
    _validate_ending(der, certificate.signature, name)
    if serial_number(certificate) < 0:
        raise ImageError(name, "the certificate's serial number is negative", _REMEDY)
    if certificate.version is not x509.Version.v3:
        raise ImageError(name, f"the certificate has version {certificate.version.name}, not v3", _REMEDY)
    return certificate


def _parse_crl(der: bytes, name: str) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_der_x509_crl(der)
        crl.issuer.rfc4514_string()
        _validate_ending(der, crl.signature, name)
        list(crl.extensions)
        for entry in crl:
            list(entry.extensions)
    except _ODDITIES as error:
        raise ImageError(
            name, f"this is no revocation list: {_words(error)}", "give AMD's CRL anew"
        ) from None
    return crl


def _validate_ending(der: bytes, signature: bytes, name: str) -> None:
    """Raise ImageError unless the signature's BIT STRING has no unused bits: the signature covers no such count."""
    if not der.endswith(b"\0" + signature):
        raise ImageError(name, "the signature ends within a byte", _REMEDY)


def common_name(name: x509.Name) -> str:
    """The common name if there is just one, else an empty text."""
    values = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    value = values[0].value if len(values) == 1 else ""
    return value if isinstance(value, str) else ""


def serial_number(certificate: x509.Certificate) -> int:
    """The serial number, which is 0 in many of AMD's certificates."""
    with warnings.catch_warnings(action="ignore"):
        return certificate.serial_number


def is_issued_by(subject: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` is named as the issuer, and its key made the signature."""
    try:
        subject.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_ODDITIES):
        return False
    return True


def signed_by(crl: x509.CertificateRevocationList, issuers: Iterable[x509.Certificate]) -> str | None:
    """Common name of the one that issued and signed the list, or None."""
    for issuer in issuers:
        key = issuer.public_key()
        if crl.issuer != issuer.subject or not isinstance(key, rsa.RSAPublicKey):
            continue
        try:
            if crl.is_signature_valid(key):
                return common_name(issuer.subject)
        except _ODDITIES:
            continue
    return None


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
