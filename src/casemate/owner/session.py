"""Launch sessions: two keys, wrapped for one platform and bound to one policy (AMD 55766 SEV API 0.24, 2.1 and 6.2)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from casemate.abi.sev.certificates import KeyUsage
from casemate.abi.sev.session import KEY_SIZE, SessionBlob, mac, policy_message, wrapping_keys
from casemate.abi.sev.signatures import make_certificate, parse_certificate, shared_secret
from casemate.digest.measurement import validate_policy_size
from casemate.errors import SpecError
from casemate.host.secure_processor import LaunchSession, TransportKeys


class OwnerSession(NamedTuple):
    """What the host gets, and what the owner keeps."""

    launch: LaunchSession
    keys: TransportKeys


def make_session(
    pdh: bytes,
    policy: int,
    keys: TransportKeys | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> OwnerSession:
    """A session for the platform whose PDH certificate (2084 bytes) is ``pdh``; makes the keys if there are none.

    Raises SpecError if that is no PDH certificate, or ``policy`` no 32-bit number.
    """
    validate_policy_size(policy)
    own_key = ec.generate_private_key(ec.SECP384R1())
    try:
        peer = parse_certificate(pdh)
        if peer.usage != KeyUsage.PDH:
            raise ValueError(f"its key is a {KeyUsage(peer.usage).name}")
        secret = shared_secret(own_key, peer)
    except ValueError as error:
        raise SpecError(
            f"this is no PDH certificate: {error}", "give what the platform exports, PDH first"
        ) from None
    keys = keys or TransportKeys(random(KEY_SIZE), random(KEY_SIZE))
    nonce, iv = random(KEY_SIZE), random(KEY_SIZE)
    encryption, integrity = wrapping_keys(secret, nonce)
    cipher = Cipher(algorithms.AES(encryption), modes.CTR(iv)).encryptor()
    wrapped = cipher.update(keys.tek + keys.tik) + cipher.finalize()
    blob = SessionBlob()
    blob.nonce[:], blob.wrap_tk[:], blob.wrap_iv[:] = nonce, wrapped, iv
    blob.wrap_mac[:], blob.policy_mac[:] = mac(integrity, wrapped), mac(keys.tik, policy_message(policy))
    certificate = make_certificate(
        KeyUsage.PDH, own_key.public_key(), (peer.api_major, peer.api_minor)
    ).to_bytes()
    return OwnerSession(LaunchSession(certificate, blob.to_bytes()), keys)
