"""Certificates of the SEV platform, and AMD's that sign them (AMD 55766 SEV API 0.24, appendices B and C).

All numbers in them are little-endian, keys and signatures too.
"""

from __future__ import annotations

from ctypes import c_uint8, c_uint32
from enum import IntEnum

from casemate.abi.layout import Struct

KEY_ID_SIZE = 16
"""Bytes by which AMD's certificates name keys."""
ECC_NUMBER_SIZE = 72
"""Bytes of a coordinate, or of either half of an ECDSA signature."""


class KeyUsage(IntEnum):
    """Whose key it is."""

    ARK = 0x0000
    """AMD's root key; it signs ASKs."""
    ASK = 0x0013
    """AMD's key for a generation of processors; it signs CEKs."""
    INVALID = 0x1000
    OCA = 0x1001
    """The platform owner's key; signs the PEK, too."""
    PEK = 0x1002
    """The platform's key, made anew by each owner."""
    PDH = 0x1003
    """The platform's Diffie-Hellman key, against which sessions are made."""
    CEK = 0x1004
    """The chip's key, out of its fuses; signs the PEK."""


class KeyAlgorithm(IntEnum):
    """What a key is for, and the hash that goes with it."""

    INVALID = 0
    RSA_SHA256 = 0x001
    ECDSA_SHA256 = 0x002
    ECDH_SHA256 = 0x003
    RSA_SHA384 = 0x101
    ECDSA_SHA384 = 0x102
    ECDH_SHA384 = 0x103


class Curve(IntEnum):
    """Elliptic curves."""

    P256 = 1
    P384 = 2


class EccPublicKey(Struct):
    """A point; it fills the place of a key in ``SevCertificate``."""

    SIZE = 1028
    SOURCE = "AMD 55766 SEV API 0.24, table 112"
    _fields_ = (
        ("curve", c_uint32),
        ("x", c_uint8 * ECC_NUMBER_SIZE),
        ("y", c_uint8 * ECC_NUMBER_SIZE),
        ("reserved", c_uint8 * 880),
    )


class SevSignature(Struct):
    """A signature and whose it is; ``value`` holds ``r`` and ``s``, or one number of RSA."""

    SIZE = 520
    SOURCE = "AMD 55766 SEV API 0.24, table 109"
    _fields_ = (("usage", c_uint32), ("algorithm", c_uint32), ("value", c_uint8 * 512))


class SevCertificate(Struct):
    """OCA, PEK, PDH and CEK; signed is everything before the signatures."""

    SIZE = 2084
    SOURCE = "AMD 55766 SEV API 0.24, table 109"
    _fields_ = (
        ("version", c_uint32),
        ("api_major", c_uint8),
        ("api_minor", c_uint8),
        ("reserved", c_uint8 * 2),
        ("usage", c_uint32),
        ("algorithm", c_uint32),
        ("public_key", EccPublicKey),
        ("signature_1", SevSignature),
        ("signature_2", SevSignature),
    )


SIGNED_SIZE = 1044
"""Bytes of a ``SevCertificate`` that its signatures cover."""


class AmdCertificateHead(Struct):
    """The head of ARK and ASK; exponent, modulus and signature follow, as many bits as the sizes say."""

    SIZE = 64
    SOURCE = "AMD 55766 SEV API 0.24, table 106"
    _fields_ = (
        ("version", c_uint32),
        ("key_id", c_uint8 * KEY_ID_SIZE),
        ("certifying_id", c_uint8 * KEY_ID_SIZE),
        ("usage", c_uint32),
        ("reserved", c_uint8 * 16),
        ("exponent_bits", c_uint32),
        ("modulus_bits", c_uint32),
    )
