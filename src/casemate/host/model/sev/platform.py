"""The identity of the modelled secure processor: its keys and certificates (AMD 55766 SEV API 0.24, chapter 5).

Nobody vouches for its root, and its root's name says that it is a model.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from casemate.abi.sev.certificates import KeyUsage, SevCertificate
from casemate.abi.sev.signatures import make_amd_certificate, make_certificate, sign_certificate
from casemate.errors import HostError
from casemate.host.secure_processor import PlatformCertificates

API = 1, 55

_ROOT_ID, _SIGNER_ID = b"casemate-model-R", b"casemate-model-S"
_RSA_BITS = 2048
_FILES = "pdh.pem", "chain.cert"


class ModelPlatform:
    """One platform. ``folder`` keeps its Diffie-Hellman key and chain, so that a session can be made before a launch.

    Without a folder it is another platform each time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @cached_property
    def pdh_key(self) -> ec.EllipticCurvePrivateKey:
        """The Diffie-Hellman key. Raises HostError if the folder cannot be used."""
        if self._folder is None:
            return _new_key()
        self._keep()
        key = load_pem_private_key(self._read(_FILES[0]), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise HostError(
                "read", 0, f"{self._folder / _FILES[0]} is no key on a curve", "remove the folder"
            )
        return key

    @cached_property
    def certificates(self) -> PlatformCertificates:
        """PDH and chain. Raises HostError if the folder cannot be used."""
        if self._folder is None:
            return PlatformCertificates.from_bytes(make_chain(self.pdh_key))
        self._keep()
        return PlatformCertificates.from_bytes(self._read(_FILES[1]))

    @cached_property
    def pdh(self) -> bytes:
        """The certificate of the Diffie-Hellman key alone; nobody signed it where there is no folder."""
        if self._folder is None:
            return make_certificate(KeyUsage.PDH, self.pdh_key.public_key(), API).to_bytes()
        return self.certificates.pdh

    def _keep(self) -> None:
        assert self._folder is not None
        try:
            if all((self._folder / name).exists() for name in _FILES):
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            key = _new_key()
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            for name, data in zip(_FILES, (pem, make_chain(key)), strict=True):
                _write_private(self._folder / name, data)
        except OSError as error:
            raise self._refused("write", error) from None

    def _read(self, name: str) -> bytes:
        assert self._folder is not None
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise self._refused("read", error) from None

    def _refused(self, call: str, error: OSError) -> HostError:
        return HostError(
            call, error.errno or 0, f"the model's platform keys in {self._folder}", "make the folder yours"
        )


def make_chain(pdh_key: ec.EllipticCurvePrivateKey) -> bytes:
    """PDH, PEK, OCA, CEK, ASK and ARK, one behind the other as they are exported, with new keys but for the first."""
    root, signer = (rsa.generate_private_key(65537, _RSA_BITS) for _ in range(2))
    owner, platform, chip = (_new_key() for _ in range(3))
    ark = make_amd_certificate(KeyUsage.ARK, _ROOT_ID, _ROOT_ID, root.public_key(), root)
    ask = make_amd_certificate(KeyUsage.ASK, _SIGNER_ID, _ROOT_ID, signer.public_key(), root)
    oca = _certificate(KeyUsage.OCA, owner, (KeyUsage.OCA, owner))
    cek = _certificate(KeyUsage.CEK, chip, (KeyUsage.ASK, signer))
    pek = _certificate(KeyUsage.PEK, platform, (KeyUsage.OCA, owner), (KeyUsage.CEK, chip))
    pdh = _certificate(KeyUsage.PDH, pdh_key, (KeyUsage.PEK, platform))
    return b"".join(certificate.to_bytes() for certificate in (pdh, pek, oca, cek)) + ask + ark


def _certificate(
    usage: KeyUsage,
    key: ec.EllipticCurvePrivateKey,
    *signers: tuple[KeyUsage, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey],
) -> SevCertificate:
    certificate = make_certificate(usage, key.public_key(), API)
    for signer in signers:
        sign_certificate(certificate, *signer)
    return certificate


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _write_private(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    part.replace(path)
