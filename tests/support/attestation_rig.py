"""Chains and reports of every kind that AMD's processors make, signed with keys made for the tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.abi.sev.id_block import ECDSA_P384_SHA384, EcdsaSignature
from casemate.abi.sev.report import (
    SIGNED_SIZE,
    VCEK_CHIP_ID,
    VCEK_FMC,
    VCEK_TCB,
    VLEK_CSP_ID,
    AttestationReport,
    Tcb,
)
from casemate.advise.attestation import Chain

START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2044, 1, 1, tzinfo=UTC)
NOW = datetime(2027, 1, 1, tzinfo=UTC)
MILAN_TCB, TURIN_TCB = Tcb(4, 0, 24, 219), Tcb(2, 1, 4, 80, 1)
CHIP = bytes(range(1, 65))
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """A key for root or intermediate; short, for that makes no difference here."""
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def leaf_key(name: str = "leaf") -> ec.EllipticCurvePrivateKey:
    """A key that signs reports."""
    return ec.generate_private_key(ec.SECP384R1())


@functools.cache
def certificate(
    subject: str,
    issuer: str,
    extensions: tuple[tuple[str, bytes], ...] = (),
    serial: int = 1,
    first: datetime = START,
    last: datetime = END,
    key: str = "",
) -> x509.Certificate:
    """A certificate by common names; ``key`` names the key where it is not the subject's."""
    is_leaf = subject in ("SEV-VCEK", "SEV-VLEK") or key == "leaf"
    private = leaf_key() if is_leaf else rsa_key(key or subject)
    builder = x509.CertificateBuilder(
        issuer_name=_name(issuer),
        subject_name=_name(subject),
        public_key=private.public_key(),
        serial_number=serial,
        not_valid_before=first,
        not_valid_after=last,
    )
    for oid, value in extensions:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(unknown, critical=False)
    return builder.sign(rsa_key(issuer), hashes.SHA384(), rsa_padding=_PSS)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _integer(number: int) -> bytes:
    return bytes((2, 1, number)) if number < 0x80 else bytes((2, 2, 0, number))


def revocation_list(
    issuer: str, serials: Sequence[int] = (), last: datetime = START, following: datetime = END
) -> x509.CertificateRevocationList:
    """A list of ``issuer`` that revokes certificates by their serial numbers."""
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=_name(issuer), last_update=last, next_update=following
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=START + timedelta(1))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(rsa_key(issuer), hashes.SHA384(), rsa_padding=_PSS)


@dataclass(frozen=True)
class Case:
    """A guest on a processor: what is in its report, and in the certificate of what signed it."""

    version: int = 3
    family: int = 0x19
    model: int = 1
    tcb: Tcb = MILAN_TCB
    chip_id: bytes = CHIP
    signing_key: int = 0
    leaf: str = "SEV-VCEK"
    ask: str = "SEV-Milan"
    ark: str = "ARK-Milan"
    hardware_id: bytes | None = CHIP
    csp_id: bytes | None = None
    stated: Tcb | None = None
    ask_serial: int = 2
    leaf_serial: int = 3
    dates: tuple[tuple[datetime, datetime], ...] = field(default=((START, END),) * 3)

    @property
    def chain(self) -> Chain:
        """Root, intermediate and leaf."""
        ark_dates, ask_dates, leaf_dates = self.dates
        return Chain(
            certificate(self.ark, self.ark, (), 1, *ark_dates),
            certificate(self.ask, self.ark, (), self.ask_serial, *ask_dates),
            certificate(self.leaf, self.ask, self._extensions(), self.leaf_serial, *leaf_dates),
        )

    def _extensions(self) -> tuple[tuple[str, bytes], ...]:
        stated = self.stated or self.tcb
        levels = [*VCEK_TCB, *([VCEK_FMC] if self.family >= 0x1A else [])]
        found = [(level.oid, _integer(getattr(stated, level.part))) for level in levels]
        if self.hardware_id is not None:
            found.append((VCEK_CHIP_ID.oid, self.hardware_id))
        if self.csp_id is not None:
            found.append((VLEK_CSP_ID.oid, self.csp_id))
        return tuple(found)

    @property
    def report(self) -> bytes:
        """The signed report, 1184 bytes."""
        report = AttestationReport(
            version=self.version,
            policy=0x30000,
            signature_algo=ECDSA_P384_SHA384,
            flags=self.signing_key << 2,
        )
        tcb = self.tcb.pack(self.family)
        report.current_tcb = report.reported_tcb = report.committed_tcb = report.launch_tcb = tcb
        report.chip_id[: len(self.chip_id)] = self.chip_id
        if self.version >= 3:
            report.cpuid_family, report.cpuid_model, report.cpuid_stepping = self.family, self.model, 1
        return sign(report)


def sign(report: AttestationReport) -> bytes:
    """The report with the leaf's signature."""
    message = report.to_bytes()[:SIGNED_SIZE]
    numbers = utils.decode_dss_signature(leaf_key().sign(message, ec.ECDSA(hashes.SHA384())))
    report.signature = EcdsaSignature.of(*numbers)
    return report.to_bytes()


def pem(*certificates: x509.Certificate) -> bytes:
    """A bundle."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    """A certificate's DER."""
    return certificate.public_bytes(Encoding.DER)


TURIN = Case(
    family=0x1A,
    model=2,
    tcb=TURIN_TCB,
    chip_id=CHIP[:8],
    hardware_id=CHIP[:8],
    ask="SEV-Turin",
    ark="ARK-Turin",
)
VLEK = Case(signing_key=1, leaf="SEV-VLEK", ask="SEV-VLEK-Milan", hardware_id=None, csp_id=b"\x16\x05cloud")
