"""The packet in which a guest owner sends a secret to a measured guest (AMD 55766 SEV API 0.24, 6.6)."""

from __future__ import annotations

from ctypes import c_uint8, c_uint32

from casemate.abi.layout import Struct

SECRET_CONTEXT = b"\x01"
"""First byte of what the packet's MAC covers."""
MEASURE_CONTEXT = b"\x04"
"""First byte of what the measurement's MAC covers."""


class SecretHeader(Struct):
    """The header in front of a secret that is encrypted with AES-128-CTR; bit 0 of ``flags`` is compression."""

    SIZE = 52
    SOURCE = "AMD 55766 SEV API 0.24, table 55"
    _fields_ = (("flags", c_uint32), ("iv", c_uint8 * 16), ("mac", c_uint8 * 32))


def secret_mac_message(flags: int, iv: bytes, data: bytes, measurement: bytes) -> bytes:
    """What the MAC of a packet covers: ``data`` is the ciphertext, ``measurement`` the guest's MAC of 32 bytes."""
    length = len(data).to_bytes(4, "little")
    return SECRET_CONTEXT + flags.to_bytes(4, "little") + iv + length + length + data + measurement
