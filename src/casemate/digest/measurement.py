"""The launch measurement: the digest signed with the guest owner's key (AMD 55766 SEV API 0.24, 6.5.1)."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.policy import LARGEST_POLICY, SevPolicy
from casemate.errors import ImageError, SpecError

KEY_SIZE = 16
"""Bytes of the transport integrity key (TIK) and of the nonce."""
_MEASUREMENT_CONTEXT = b"\x04"


class PlatformVersion(NamedTuple):
    """Version of the SEV firmware that measures; each a byte."""

    api_major: int
    api_minor: int
    build: int

    def to_bytes(self) -> bytes:
        """The three bytes in the order that is signed. Raises SpecError if a number does not fit."""
        for name, value in (
            ("API major", self.api_major),
            ("API minor", self.api_minor),
            ("build", self.build),
        ):
            if not 0 <= value <= 0xFF:
                raise SpecError(
                    f"{name} {value} is not between 0 and 255", "give what the host's platform status says"
                )
        return bytes((self.api_major, self.api_minor, self.build))


def predict_measurement(
    digest: bytes, tik: bytes, nonce: bytes, policy: int, version: PlatformVersion
) -> bytes:
    """What LAUNCH_MEASURE returns before its nonce: an HMAC of 32 bytes. Raises SpecError if an input does not fit."""
    validate_policy_size(policy)
    for name, value in (("TIK", tik), ("nonce", nonce)):
        if len(value) != KEY_SIZE:
            raise SpecError(
                f"the {name} has {len(value)} bytes, not {KEY_SIZE}", f"give a {name} of {KEY_SIZE} bytes"
            )
    message = _MEASUREMENT_CONTEXT + version.to_bytes() + policy.to_bytes(4, "little") + digest + nonce
    return hmac.new(tik, message, hashlib.sha256).digest()


def validate_policy(policy: int, kind: GuestKind) -> None:
    """Check that a guest of ``kind`` can be launched under ``policy``. Raises SpecError if not."""
    validate_policy_size(policy)
    if bool(policy & SevPolicy.ES) != (kind is GuestKind.SEV_ES):
        says = "asks for" if policy & SevPolicy.ES else "does not ask for"
        cause = f"policy {policy:#x} {says} SEV-ES (bit 2), the guest is {kind.value}"
        raise SpecError(cause, "correct the policy or the kind of guest")


def validate_policy_size(policy: int) -> None:
    """Raises SpecError if no launch session could be bound to ``policy``."""
    if not 0 <= policy <= LARGEST_POLICY:
        raise SpecError(
            f"policy {policy:#x} is no 32-bit number", "give the policy that the guest is launched with"
        )


def parse_nonce(text: str) -> bytes:
    """The nonce out of 32 hex digits. Raises SpecError if it is not that."""
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if len(nonce) != KEY_SIZE:
        raise SpecError(
            f"nonce {text!r} is not {2 * KEY_SIZE} hex digits", "give the nonce of the measurement"
        )
    return nonce


def read_tik(path: str | Path) -> bytes:
    """The key out of a file of 16 raw bytes. Raises ImageError if it is not that."""
    try:
        with open(path, "rb") as file:
            key = file.read(KEY_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(path, f"cannot be read: {reason}", "check the path") from None
    if len(key) != KEY_SIZE:
        raise ImageError(
            path, f"a TIK is a file of {KEY_SIZE} raw bytes", "give the key that made the launch session"
        )
    return key
