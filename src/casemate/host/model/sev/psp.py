"""A secure processor in software: guest state, digest, measurement, secrets, encryption (AMD 55766 SEV API 0.24).

It extends its digest by the bytes that it is handed and knows nothing of what anybody predicted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from casemate.abi.sev.commands import BLOCK_SIZE, MAX_SECRET, GuestState, SevCommand
from casemate.abi.sev.policy import SevPolicy
from casemate.abi.sev.secret import MEASURE_CONTEXT, SecretHeader, secret_mac_message
from casemate.abi.sev.session import KEY_SIZE, SessionBlob, mac, policy_message, wrapping_keys
from casemate.abi.sev.signatures import parse_certificate, shared_secret
from casemate.abi.sev.status import SevStatus, refused
from casemate.errors import FirmwareStatusError
from casemate.host.model.sev.platform import API, ModelPlatform
from casemate.host.secure_processor import LaunchMeasurement, LaunchSession, TransportKeys

BUILD = 21
"""The build that the model claims; it has what that one has of launch commands."""
_CHUNK = 1 << 20


class ModelPsp:
    """The context of one guest. ``random`` gives keys and nonces, ``platform`` is one, or the folder of its keys.

    Every command raises FirmwareStatusError with the status that the firmware would answer.
    """

    version = *API, BUILD

    def __init__(
        self,
        *,
        sev_es: bool,
        random: Callable[[int], bytes] = os.urandom,
        platform: ModelPlatform | Path | None = None,
    ) -> None:
        self.platform = platform if isinstance(platform, ModelPlatform) else ModelPlatform(platform)
        self.state = GuestState.UNINIT
        self._sev_es = sev_es
        self._random = random
        self._digest = hashlib.sha256()
        self._policy = 0
        self._keys = TransportKeys(b"", b"")
        self._memory_key = b""
        self._measurement = b""

    @property
    def digest(self) -> bytes:
        """The launch digest as of now (32 bytes); real firmware tells its HMAC only."""
        return self._digest.digest()

    def launch_start(self, policy: int, session: LaunchSession | None) -> None:
        """Make the guest's memory key.

        POLICY_FAILURE for a policy that this guest or firmware cannot keep, INVALID_CERTIFICATE and BAD_MEASUREMENT
        for a session that was not made for this platform, or for another policy.
        """
        self._expect(SevCommand.LAUNCH_START, GuestState.UNINIT)
        wanted = policy >> 16 & 0xFF, policy >> 24 & 0xFF
        if bool(policy & SevPolicy.ES) is not self._sev_es or wanted > API:
            raise _refusal(SevCommand.LAUNCH_START, SevStatus.POLICY_FAILURE)
        self._policy = policy
        self._keys = (
            self._open(session) if session else TransportKeys(*map(self._random, (KEY_SIZE, KEY_SIZE)))
        )
        self._memory_key = self._random(KEY_SIZE)
        self.state = GuestState.LAUNCH_UPDATE

    def launch_update_data(self, address: int, plaintext: bytes | memoryview) -> None:
        """Extend the digest by what is at ``address``, which is to be encrypted."""
        command = SevCommand.LAUNCH_UPDATE_DATA
        self._expect(command, GuestState.LAUNCH_UPDATE)
        if address % BLOCK_SIZE:
            raise _refusal(command, SevStatus.INVALID_ADDRESS)
        if not len(plaintext) or len(plaintext) % BLOCK_SIZE:
            raise _refusal(command, SevStatus.INVALID_LEN)
        self._digest.update(plaintext)

    def launch_update_vmsa(self, page: bytes) -> None:
        """Extend the digest by one save area."""
        self._expect(SevCommand.LAUNCH_UPDATE_VMSA, GuestState.LAUNCH_UPDATE)
        self._digest.update(page)

    def launch_measure(self) -> LaunchMeasurement:
        """Close the digest and sign it, with a fresh nonce."""
        self._expect(SevCommand.LAUNCH_MEASURE, GuestState.LAUNCH_UPDATE)
        nonce = self._random(KEY_SIZE)
        message = (
            MEASURE_CONTEXT + bytes(self.version) + self._policy.to_bytes(4, "little") + self.digest + nonce
        )
        self._measurement = mac(self._keys.tik, message)
        self.state = GuestState.LAUNCH_SECRET
        return LaunchMeasurement(self._measurement, nonce)

    def launch_secret(self, packet: bytes, address: int, data: bytes) -> bytes:
        """Check a packet; returns the secret, which is to be encrypted at ``address``."""
        command = SevCommand.LAUNCH_SECRET
        self._expect(command, GuestState.LAUNCH_SECRET)
        if len(packet) != SecretHeader.SIZE or not 0 < len(data) <= MAX_SECRET or len(data) % BLOCK_SIZE:
            raise _refusal(command, SevStatus.INVALID_LEN)
        if address % BLOCK_SIZE:
            raise _refusal(command, SevStatus.INVALID_ADDRESS)
        header = SecretHeader.from_bytes(packet)
        if header.flags:
            raise _refusal(command, SevStatus.UNSUPPORTED)
        message = secret_mac_message(header.flags, bytes(header.iv), data, self._measurement)
        if not hmac.compare_digest(mac(self._keys.tik, message), bytes(header.mac)):
            raise _refusal(command, SevStatus.BAD_MEASUREMENT)
        cipher = Cipher(algorithms.AES(self._keys.tek), modes.CTR(bytes(header.iv))).decryptor()
        return cipher.update(data) + cipher.finalize()

    def launch_finish(self) -> None:
        """The guest may run."""
        self._expect(SevCommand.LAUNCH_FINISH, GuestState.LAUNCH_SECRET)
        self.state = GuestState.RUNNING

    def debug(self, command: SevCommand) -> None:
        """Whether memory of the guest may be decrypted, or changed: its policy says it, and it was launched."""
        if self._policy & SevPolicy.NODBG:
            raise _refusal(command, SevStatus.POLICY_FAILURE)
        self._expect(command, GuestState.RUNNING)

    def _open(self, session: LaunchSession) -> TransportKeys:
        command = SevCommand.LAUNCH_START
        if len(session.blob) != SessionBlob.SIZE:
            raise _refusal(command, SevStatus.INVALID_LEN)
        try:
            secret = shared_secret(self.platform.pdh_key, parse_certificate(session.certificate))
        except ValueError as error:
            raise _refusal(command, SevStatus.INVALID_CERTIFICATE, str(error)) from None
        blob = SessionBlob.from_bytes(session.blob)
        encryption, integrity = wrapping_keys(secret, bytes(blob.nonce))
        wrapped = bytes(blob.wrap_tk)
        if not hmac.compare_digest(mac(integrity, wrapped), bytes(blob.wrap_mac)):
            raise _refusal(
                command, SevStatus.BAD_MEASUREMENT, "the session's keys are not wrapped for this PDH"
            )
        cipher = Cipher(algorithms.AES(encryption), modes.CTR(bytes(blob.wrap_iv))).decryptor()
        unwrapped = cipher.update(wrapped) + cipher.finalize()
        keys = TransportKeys(unwrapped[:KEY_SIZE], unwrapped[KEY_SIZE:])
        if not hmac.compare_digest(mac(keys.tik, policy_message(self._policy)), bytes(blob.policy_mac)):
            raise _refusal(command, SevStatus.BAD_MEASUREMENT, "the session is for another policy")
        return keys

    def _expect(self, command: SevCommand, state: GuestState) -> None:
        if self.state is not state:
            raise _refusal(command, SevStatus.INVALID_GUEST_STATE, f"it is {self.state}, not {state}")

    def encrypt(self, address: int, plaintext: bytes | memoryview, target: memoryview) -> None:
        """Make ``target``, at ``address``, the ciphertext of whole 16-byte blocks; it may be the plaintext itself."""
        # A stream that depends on the address, so that equal contents look different wherever they lie. The hardware's
        # mode works on blocks; of the model's ciphertext nobody needs more than that it says nothing.
        stream = modes.CTR((address // BLOCK_SIZE).to_bytes(BLOCK_SIZE, "big"))
        cipher = Cipher(algorithms.AES(self._memory_key), stream).encryptor()
        for at in range(0, len(plaintext), _CHUNK):
            target[at : at + _CHUNK] = cipher.update(plaintext[at : at + _CHUNK])


def _refusal(command: SevCommand, status: SevStatus, detail: str = "") -> FirmwareStatusError:
    return refused(f"{command.kernel_name} (modelled)", status, detail)
