"""The session by which a guest owner hands two keys to the secure processor (AMD 55766 SEV API 0.24, 2.1 and 6.2)."""

from __future__ import annotations

import hashlib
import hmac
from ctypes import c_uint8

from casemate.abi.layout import Struct

KEY_SIZE = 16
"""Bytes of every key, nonce and initialization vector here."""


class SessionBlob(Struct):
    """LAUNCH_START's session: the wrapped keys, and what proves them and the policy."""

    SIZE = 128
    SOURCE = "AMD 55766 SEV API 0.24, table 41"
    _fields_ = (
        ("nonce", c_uint8 * KEY_SIZE),
        ("wrap_tk", c_uint8 * (2 * KEY_SIZE)),
        ("wrap_iv", c_uint8 * KEY_SIZE),
        ("wrap_mac", c_uint8 * 32),
        ("policy_mac", c_uint8 * 32),
    )


def wrapping_keys(shared_secret: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    """The keys that encrypt and that authenticate the transport keys, 16 bytes each, out of an ECDH secret."""
    master = _derive(shared_secret, b"sev-master-secret", nonce)
    return _derive(master, b"sev-kek"), _derive(master, b"sev-kik")


def mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-256, 32 bytes."""
    return hmac.new(key, message, hashlib.sha256).digest()


def policy_message(policy: int) -> bytes:
    """What the session's MAC of the policy covers."""
    return policy.to_bytes(4, "little")


def _derive(key: bytes, label: bytes, context: bytes = b"") -> bytes:
    # NIST SP 800-108, counter mode, one block; the firmware's numbers are little-endian.
    length = (8 * KEY_SIZE).to_bytes(4, "little")
    return mac(key, (1).to_bytes(4, "little") + label + b"\0" + context + length)[:KEY_SIZE]
