"""Reading, making and checking certificates of the SEV platform (AMD 55766 SEV API 0.24, appendices B and C)."""

from __future__ import annotations

from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from casemate.abi.sev.certificates import (
    ECC_NUMBER_SIZE,
    SIGNED_SIZE,
    AmdCertificateHead,
    Curve,
    EccPublicKey,
    KeyAlgorithm,
    KeyUsage,
    SevCertificate,
    SevSignature,
)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_CURVES: dict[int, type[ec.EllipticCurve]] = {Curve.P256: ec.SECP256R1, Curve.P384: ec.SECP384R1}
_SHA384_FLAG = 0x100
_RSA_SIZES = (2048, 4096)


class AmdCertificate(NamedTuple):
    """An ARK or ASK certificate as it is in AMD's files."""

    usage: int
    key_id: bytes
    certifying_id: bytes
    key: rsa.RSAPublicKey
    signed: bytes
    signature: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole certificate."""
        return len(self.signed) + len(self.signature)

    def is_signed_by(self, signer: AmdCertificate) -> bool:
        """Whether ``signer``'s key made the signature, and is the one that is named."""
        algorithm = KeyAlgorithm.RSA_SHA256 if self.key.key_size == _RSA_SIZES[0] else KeyAlgorithm.RSA_SHA384
        named = self.certifying_id == signer.key_id
        return named and _is_rsa_signature(signer.key, self.signature, self.signed, algorithm)


def parse_amd_certificate(data: bytes) -> AmdCertificate:
    """The certificate that ``data`` starts with. Raises ValueError if there is none."""
    head = AmdCertificateHead.from_bytes(data)
    if head.version != 1 or head.modulus_bits not in _RSA_SIZES or head.exponent_bits not in _RSA_SIZES:
        raise ValueError("this is no certificate of AMD's root")
    modulus, exponent = head.modulus_bits // 8, head.exponent_bits // 8
    end = AmdCertificateHead.SIZE + exponent + modulus
    if len(data) < end + modulus:
        raise ValueError(f"the certificate is cut off, {len(data)} of {end + modulus} bytes are there")
    numbers = data[AmdCertificateHead.SIZE : end]
    key = _rsa_key(numbers[:exponent], numbers[exponent:])
    named = bytes(head.key_id), bytes(head.certifying_id)
    return AmdCertificate(head.usage, *named, key, data[:end], data[end : end + modulus])


def make_amd_certificate(
    usage: KeyUsage, key_id: bytes, certifying_id: bytes, key: rsa.RSAPublicKey, signer: rsa.RSAPrivateKey
) -> bytes:
    """A certificate for ``key``, signed by ``signer``."""
    numbers, size = key.public_numbers(), key.key_size // 8
    head = AmdCertificateHead(version=1, usage=usage, exponent_bits=key.key_size, modulus_bits=key.key_size)
    head.key_id[:], head.certifying_id[:] = key_id, certifying_id
    signed = head.to_bytes() + numbers.e.to_bytes(size, "little") + numbers.n.to_bytes(size, "little")
    algorithm = KeyAlgorithm.RSA_SHA256 if size * 8 == _RSA_SIZES[0] else KeyAlgorithm.RSA_SHA384
    return signed + _rsa_sign(signer, signed, algorithm)


def make_certificate(usage: KeyUsage, key: ec.EllipticCurvePublicKey, api: tuple[int, int]) -> SevCertificate:
    """A certificate for a key on P-384, without signatures yet."""
    algorithm = KeyAlgorithm.ECDH_SHA256 if usage is KeyUsage.PDH else KeyAlgorithm.ECDSA_SHA256
    point, public = key.public_numbers(), EccPublicKey(curve=Curve.P384)
    public.x[:], public.y[:] = _little(point.x), _little(point.y)
    certificate = SevCertificate(
        version=1,
        api_major=api[0],
        api_minor=api[1],
        usage=usage,
        algorithm=algorithm,
        public_key=public,
    )
    for signature in (certificate.signature_1, certificate.signature_2):
        signature.usage = KeyUsage.INVALID
    return certificate


def sign_certificate(certificate: SevCertificate, usage: KeyUsage, key: PrivateKey) -> None:
    """Add the signature of ``key``, which is the key of ``usage``, in the first free place."""
    places = certificate.signature_1, certificate.signature_2
    place = next(place for place in places if place.usage == KeyUsage.INVALID)
    signed = certificate.to_bytes()[:SIGNED_SIZE]
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = KeyAlgorithm.RSA_SHA256
        value = _rsa_sign(key, signed, algorithm)
    else:
        algorithm = KeyAlgorithm.ECDSA_SHA256
        r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        value = _little(r) + _little(s)
    place.usage, place.algorithm = usage, algorithm
    place.value[: len(value)] = value


def is_signed_by(certificate: SevCertificate, usage: KeyUsage, key: PublicKey) -> bool:
    """Whether the certificate bears a signature of ``key``, the key of ``usage``."""
    signed = certificate.to_bytes()[:SIGNED_SIZE]
    places = certificate.signature_1, certificate.signature_2
    return any(_is_signature(place, signed, key) for place in places if place.usage == usage)


def parse_certificate(data: bytes) -> SevCertificate:
    """The certificate that ``data`` starts with. Raises ValueError if there is none."""
    certificate = SevCertificate.from_bytes(data)
    if certificate.version != 1 or certificate.usage not in set(KeyUsage):
        raise ValueError("this is no certificate of a SEV platform")
    return certificate


def public_key(certificate: SevCertificate) -> ec.EllipticCurvePublicKey:
    """The certificate's key. Raises ValueError if it is no point of a curve that is known."""
    point, curve = certificate.public_key, _CURVES.get(certificate.public_key.curve)
    if curve is None:
        raise ValueError(f"the certificate's key is on curve {point.curve}, which is not known")
    x, y = (int.from_bytes(bytes(number), "little") for number in (point.x, point.y))
    return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()


def shared_secret(key: ec.EllipticCurvePrivateKey, peer: SevCertificate) -> bytes:
    """What ECDH of ``key`` and the certificate's key gives, 48 bytes. Raises ValueError for keys that do not fit."""
    return key.exchange(ec.ECDH(), public_key(peer))


def _is_signature(place: SevSignature, signed: bytes, key: PublicKey) -> bool:
    value = bytes(place.value)
    if isinstance(key, rsa.RSAPublicKey):
        return _is_rsa_signature(key, value[: key.key_size // 8], signed, place.algorithm)
    r, s = (int.from_bytes(value[at : at + ECC_NUMBER_SIZE], "little") for at in (0, ECC_NUMBER_SIZE))
    try:
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(_hash(place.algorithm)))
    except InvalidSignature:
        return False
    return True


def _is_rsa_signature(key: rsa.RSAPublicKey, value: bytes, signed: bytes, algorithm: int) -> bool:
    try:
        key.verify(value[::-1], signed, _pss(algorithm), _hash(algorithm))
    except InvalidSignature:
        return False
    return True


def _rsa_sign(key: rsa.RSAPrivateKey, signed: bytes, algorithm: KeyAlgorithm) -> bytes:
    return key.sign(signed, _pss(algorithm), _hash(algorithm))[::-1]


def _rsa_key(exponent: bytes, modulus: bytes) -> rsa.RSAPublicKey:
    e, n = (int.from_bytes(number, "little") for number in (exponent, modulus))
    return rsa.RSAPublicNumbers(e, n).public_key()


def _pss(algorithm: int) -> padding.PSS:
    digest = _hash(algorithm)
    return padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)


def _hash(algorithm: int) -> hashes.HashAlgorithm:
    return hashes.SHA384() if algorithm & _SHA384_FLAG else hashes.SHA256()


def _little(number: int) -> bytes:
    return number.to_bytes(ECC_NUMBER_SIZE, "little")
