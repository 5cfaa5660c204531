"""Secrets for a measured guest: the table that firmware looks for, and the packet (edk2 SecretDxe; AMD 55766, 6.6)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from casemate.abi.sev.commands import BLOCK_SIZE, MAX_SECRET
from casemate.abi.sev.secret import SecretHeader, secret_mac_message
from casemate.abi.sev.session import KEY_SIZE, mac
from casemate.errors import SpecError
from casemate.firmware.guids import guid
from casemate.host.secure_processor import TransportKeys

LUKS_KEY = guid("736869e5-84f0-4973-92ec-06879ce3da0b")
"""The entry that holds a disk's passphrase."""

_TABLE = guid("1e74f542-71dd-4d66-963e-ef4287ff173b")
_HEAD = 20
"""Bytes of a GUID and a u32 length, which counts them in."""


def secret_table(entries: Mapping[bytes, bytes]) -> bytes:
    """The table of secrets by GUID, as OVMF hands it to its system table; padded to whole blocks of 16 bytes."""
    body = b"".join(_entry(name, data) for name, data in entries.items())
    table = _entry(_TABLE, body)
    return table + bytes(-len(table) % BLOCK_SIZE)


def seal_secret(
    secret: bytes, keys: TransportKeys, measurement: bytes, random: Callable[[int], bytes] = os.urandom
) -> tuple[bytes, bytes]:
    """The packet for the guest that has this ``measurement`` (32 bytes): its header (52 bytes), and the ciphertext.

    Raises SpecError if no firmware would take so many bytes.
    """
    if not secret or len(secret) % BLOCK_SIZE or len(secret) > MAX_SECRET:
        raise SpecError(
            f"a secret has a multiple of {BLOCK_SIZE} bytes, at most {MAX_SECRET}; this one has {len(secret)}",
            "pad it, or send it as an entry of a table, which is padded",
        )
    iv = random(KEY_SIZE)
    cipher = Cipher(algorithms.AES(keys.tek), modes.CTR(iv)).encryptor()
    data = cipher.update(secret) + cipher.finalize()
    header = SecretHeader(flags=0)
    header.iv[:], header.mac[:] = iv, mac(keys.tik, secret_mac_message(0, iv, data, measurement))
    return header.to_bytes(), data


def _entry(name: bytes, data: bytes) -> bytes:
    return name + (_HEAD + len(data)).to_bytes(4, "little") + data
