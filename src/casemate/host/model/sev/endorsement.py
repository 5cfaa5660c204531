"""The model's own chain of keys, ARK, ASK and VCEK, in the form of AMD's (AMD 57230 VCEK certificate specification).

Nobody vouches for these keys: they are made when they are first needed, and their names say that they are modelled.
"""

from __future__ import annotations

import datetime
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding

from casemate.abi.sev.id_block import EcdsaSignature
from casemate.abi.sev.report import SIGNED_SIZE, VCEK_CHIP_ID, VCEK_TCB, AttestationReport, Tcb
from casemate.host.snp_processor import Certificates

ORGANIZATION = "casemate model (no hardware)"

_RSA_BITS = 4096
_FIRST_DAY = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_LAST_DAY = datetime.datetime(2045, 1, 1, tzinfo=datetime.UTC)
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)


class Endorsement:
    """What a chip of the model proves its reports with; ``tcb`` and ``chip_id`` (64 bytes) are in the certificate."""

    def __init__(self, chip_id: bytes, tcb: Tcb) -> None:
        self.chip_id = chip_id
        self.tcb = tcb

    def sign(self, report: AttestationReport) -> bytes:
        """The report (1184 bytes) with the VCEK's signature."""
        message = report.to_bytes()[:SIGNED_SIZE]
        numbers = utils.decode_dss_signature(self._vcek_key.sign(message, ec.ECDSA(hashes.SHA384())))
        report.signature = EcdsaSignature.of(*numbers)
        return report.to_bytes()

    @cached_property
    def chain(self) -> Certificates:
        """The certificates; making the root's keys takes a second or so."""
        ark_key, ask_key = (rsa.generate_private_key(65537, _RSA_BITS) for _ in range(2))
        ark = _certificate("ARK-Modelled", "ARK-Modelled", ark_key.public_key(), ark_key)
        ask = _certificate("SEV-Modelled", "ARK-Modelled", ask_key.public_key(), ark_key)
        vcek = _certificate(
            "SEV-VCEK", "SEV-Modelled", self._vcek_key.public_key(), ask_key, self._extensions()
        )
        return Certificates(*(certificate.public_bytes(Encoding.PEM) for certificate in (ark, ask, vcek)))

    @cached_property
    def _vcek_key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP384R1())

    def _extensions(self) -> list[tuple[str, bytes]]:
        levels = [(extension.oid, _integer(getattr(self.tcb, extension.part))) for extension in VCEK_TCB]
        return [*levels, (VCEK_CHIP_ID.oid, self.chip_id)]


def _certificate(
    subject: str,
    issuer: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signer: rsa.RSAPrivateKey,
    extensions: list[tuple[str, bytes]] | None = None,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        issuer_name=_name(issuer),
        subject_name=_name(subject),
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=_FIRST_DAY,
        not_valid_after=_LAST_DAY,
    )
    for oid, value in extensions or []:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(unknown, critical=False)
    return builder.sign(signer, hashes.SHA384(), rsa_padding=_PSS)


def _integer(number: int) -> bytes:
    """A number from 0 to 255 in DER."""
    return bytes((2, 1, number)) if number < 0x80 else bytes((2, 2, 0, number))


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common),
        ]
    )
