"""Whether a platform's Diffie-Hellman key leads back to AMD (AMD 55766 SEV API 0.24, 2.2 and appendix B)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from casemate.abi.sev.certificates import KeyUsage, SevCertificate
from casemate.abi.sev.signatures import (
    AmdCertificate,
    is_signed_by,
    parse_amd_certificate,
    parse_certificate,
    public_key,
)
from casemate.errors import ImageError
from casemate.files import read_file
from casemate.host.secure_processor import CERTIFICATE_SIZE

AMD_ROOTS = {
    "dedabca561e1dece8cc00b7bda864cf5f20b95017864408cfe18eaee0dce24b9": "AMD Naples",
    "865977b268c16d5b27772b00aaefb4e737ba9499e818ed8e9f65b0cecefbc529": "AMD Rome",
    "1246469862b78a7a8625579b0378d1f8e975eb8b82a1623b579d7968a5969888": "AMD Milan",
    "8f4e3fd36589c23f1fe0c8338465bac7e2e066d97fc92f228bbee4fd356fb674": "AMD Genoa",
    "f6405e5096a6eee1eb7d5df75c49f9b9f7c8357a31c7fff150149d68588a7bf7": "AMD Turin",
}
"""SHA-256 of AMD's root certificates, as its key server publishes them, and their generation of processors."""

_ORDER = (KeyUsage.PDH, KeyUsage.PEK, KeyUsage.OCA, KeyUsage.CEK)


class Check(NamedTuple):
    """One link of the chain: what is claimed, and whether it holds."""

    claim: str
    holds: bool


class PlatformChain(NamedTuple):
    """What was given: PDH, PEK, OCA and CEK, then ASK and ARK if they were there."""

    certificates: tuple[SevCertificate, ...]
    amd: tuple[AmdCertificate, ...]

    @property
    def pdh(self) -> bytes:
        """The certificate that sessions are made against."""
        return self.certificates[0].to_bytes()

    @property
    def root(self) -> str | None:
        """Whose root it is; None if AMD's part is missing or the root is not known."""
        if not self.amd:
            return None
        ark = self.amd[1]
        return AMD_ROOTS.get(hashlib.sha256(ark.signed + ark.signature).hexdigest())

    def checks(self, *, any_root: bool = False) -> list[Check]:
        """Every link, from the PDH to the root; with ``any_root`` nobody asks whose root it is, if there is one."""
        pdh, pek, oca, cek = self.certificates
        checks = [
            Check("the PDH is signed by the PEK", _is_signed(pdh, KeyUsage.PEK, pek)),
            Check("the PEK is signed by the OCA", _is_signed(pek, KeyUsage.OCA, oca)),
            Check("the PEK is signed by the CEK", _is_signed(pek, KeyUsage.CEK, cek)),
            Check("the OCA is signed by itself", _is_signed(oca, KeyUsage.OCA, oca)),
        ]
        root = Check("AMD's ASK and ARK are there", False)
        if self.amd:
            ask, ark = self.amd
            checks += [
                Check("the CEK is signed by the ASK", is_signed_by(cek, KeyUsage.ASK, ask.key)),
                Check("the ASK is signed by the ARK", ask.is_signed_by(ark)),
                Check("the ARK is signed by itself", ark.is_signed_by(ark)),
            ]
            root = Check("the ARK is one of AMD's", self.root is not None)
        return checks if any_root else [*checks, root]


def load_chain(platform: Path, amd: Path | None = None) -> PlatformChain:
    """The chain out of a platform's file; ``amd`` has AMD's own pair, if it is another file. Raises ImageError."""
    chain = parse_chain(read_file(platform), platform)
    return chain if amd is None else chain._replace(amd=_parse_amd(read_file(amd), amd))


def parse_chain(data: bytes, path: str | Path = "platform") -> PlatformChain:
    """Certificates one behind the other as a platform exports them, with or without AMD's pair at their end.

    ``path`` names them in errors. Raises ImageError if they are not that.
    """
    certificates = _parse_platform(data, path)
    rest = data[len(_ORDER) * CERTIFICATE_SIZE :]
    return PlatformChain(certificates, _parse_amd(rest, path) if rest else ())


def _parse_platform(data: bytes, path: str | Path) -> tuple[SevCertificate, ...]:
    size = len(_ORDER) * CERTIFICATE_SIZE
    if len(data) < size:
        cause = f"a platform exports {len(_ORDER)} certificates of {CERTIFICATE_SIZE} bytes, here are {len(data)} bytes"
        remedy = "give PDH, PEK, OCA and CEK one behind the other, as sevctl export writes them"
        raise ImageError(path, cause, remedy)
    try:
        certificates = tuple(
            parse_certificate(data[at : at + CERTIFICATE_SIZE]) for at in range(0, size, CERTIFICATE_SIZE)
        )
        for certificate, usage in zip(certificates, _ORDER, strict=True):
            if certificate.usage != usage:
                raise ValueError(f"the {KeyUsage(certificate.usage).name} is where the {usage.name} belongs")
    except ValueError as error:
        raise ImageError(path, str(error), "export the platform's certificates anew") from None
    return certificates


def _parse_amd(data: bytes, path: str | Path) -> tuple[AmdCertificate, ...]:
    try:
        first = parse_amd_certificate(data)
        pair = first, parse_amd_certificate(data[first.size :])
    except ValueError as error:
        raise ImageError(
            path, f"no ASK and ARK: {error}", "give AMD's file for the processor's series"
        ) from None
    # AMD's files begin with the ASK; who concatenates them by hand may not.
    return tuple(sorted(pair, key=lambda certificate: certificate.usage, reverse=True))


def _is_signed(certificate: SevCertificate, usage: KeyUsage, signer: SevCertificate) -> bool:
    try:
        return is_signed_by(certificate, usage, public_key(signer))
    except ValueError:
        return False
