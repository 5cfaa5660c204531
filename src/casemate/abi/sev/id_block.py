"""ID blocks of SNP guests, and AMD's form of keys and signatures (AMD 56860, SNP_LAUNCH_FINISH and chapter 10)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint32, c_uint64
from typing import Self

from casemate.abi.layout import Struct

ECDSA_P384_SHA384 = 1
"""The only algorithm there is (chapter 10)."""
CURVE_P384 = 2
_NUMBER_SIZE = 72
"""Bytes in which a number of 384 bits is kept, little-endian."""


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_SIZE, "little")


class EcdsaSignature(Struct):
    """A signature: r and s, little-endian."""

    SIZE = 512
    SOURCE = "AMD 56860, chapter 10, ECDSA P-384 signature"
    _fields_ = (
        ("r", c_uint8 * _NUMBER_SIZE),
        ("s", c_uint8 * _NUMBER_SIZE),
        ("reserved", c_uint8 * 368),
    )

    @classmethod
    def of(cls, r: int, s: int) -> Self:
        """Out of the two numbers. Raises OverflowError if they do not fit."""
        return cls.from_bytes((_number(r) + _number(s)).ljust(cls.SIZE, b"\0"))

    @property
    def numbers(self) -> tuple[int, int]:
        """r and s."""
        return int.from_bytes(self.r, "little"), int.from_bytes(self.s, "little")


class EcdsaPublicKey(Struct):
    """A public key: curve and point, little-endian."""

    SIZE = 1028
    SOURCE = "AMD 56860, chapter 10, ECDSA P-384 public key"
    _fields_ = (
        ("curve", c_uint32),
        ("qx", c_uint8 * _NUMBER_SIZE),
        ("qy", c_uint8 * _NUMBER_SIZE),
        ("reserved", c_uint8 * 880),
    )

    @classmethod
    def of(cls, x: int, y: int) -> Self:
        """Out of a point on P-384. Raises OverflowError if it does not fit."""
        return cls.from_bytes(
            (CURVE_P384.to_bytes(4, "little") + _number(x) + _number(y)).ljust(cls.SIZE, b"\0")
        )

    @property
    def point(self) -> tuple[int, int]:
        """x and y."""
        return int.from_bytes(self.qx, "little"), int.from_bytes(self.qy, "little")


class IdBlock(Struct):
    """What a guest's owner expects: the firmware compares digest and policy, the rest goes into reports."""

    SIZE = 96
    SOURCE = "AMD 56860, SNP_LAUNCH_FINISH, ID_BLOCK"
    VERSION = 1
    _fields_ = (
        ("launch_digest", c_uint8 * 48),
        ("family_id", c_uint8 * 16),
        ("image_id", c_uint8 * 16),
        ("version", c_uint32),
        ("guest_svn", c_uint32),
        ("policy", c_uint64),
    )


class IdAuth(Struct):
    """Who signed the ID block, and perhaps who signed the signer's key."""

    SIZE = 4096
    SOURCE = "AMD 56860, SNP_LAUNCH_FINISH, ID_AUTH"
    _fields_ = (
        ("id_key_algo", c_uint32),
        ("auth_key_algo", c_uint32),
        ("reserved_0x8", c_uint8 * 56),
        ("id_block_sig", EcdsaSignature),
        ("id_key", EcdsaPublicKey),
        ("reserved_0x644", c_uint8 * 60),
        ("id_key_sig", EcdsaSignature),
        ("author_key", EcdsaPublicKey),
        ("reserved_0xc84", c_uint8 * 892),
    )
