from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from casemate.abi.sev.commands import MAX_SECRET, GuestState
from casemate.abi.sev.secret import SecretHeader, secret_mac_message
from casemate.abi.sev.status import SevStatus, meaning
from casemate.errors import FirmwareStatusError
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.model.sev.psp import ModelPsp
from casemate.host.secure_processor import LaunchSession, TransportKeys
from casemate.owner.session import make_session

KEYS = TransportKeys(tek=b"t" * 16, tik=b"k" * 16)
PLATFORM = ModelPlatform()


def session(policy: int) -> LaunchSession:
    """The keys, wrapped for the platform and bound to the policy."""
    return make_session(PLATFORM.pdh, policy, KEYS).launch


def packet(
    measurement: bytes, secret: bytes, keys: TransportKeys = KEYS, flags: int = 0
) -> tuple[bytes, bytes]:
    """Header and ciphertext as a guest owner makes them."""
    iv = bytes(range(16))
    data = Cipher(algorithms.AES(keys.tek), modes.CTR(iv)).encryptor().update(secret)
    mac = hmac.new(keys.tik, secret_mac_message(flags, iv, data, measurement), hashlib.sha256).digest()
    return flags.to_bytes(4, "little") + iv + mac, data


class LaunchMachine(RuleBasedStateMachine):
    """Any commands in any order: the state decides which are taken, and the digest which bytes were."""

    @initialize()
    def build(self) -> None:
        self.psp = ModelPsp(sev_es=True, platform=PLATFORM)
        self.state = GuestState.UNINIT
        self.taken = hashlib.sha256()

    def expect(self, state: GuestState, command: Callable[[], object], then: GuestState) -> bool:
        if self.state is state:
            command()
            self.state = then
            return True
        with pytest.raises(FirmwareStatusError) as refused:
            command()
        assert refused.value.status == SevStatus.INVALID_GUEST_STATE
        return False

    @rule()
    def start(self) -> None:
        self.expect(GuestState.UNINIT, lambda: self.psp.launch_start(5, session(5)), GuestState.LAUNCH_UPDATE)

    @rule(blocks=st.integers(1, 4), at=st.integers(0, 8))
    def update_data(self, blocks: int, at: int) -> None:
        data = bytes(range(16)) * blocks
        update = GuestState.LAUNCH_UPDATE
        if self.expect(update, lambda: self.psp.launch_update_data(at * 16, data), update):
            self.taken.update(data)

    @rule()
    def update_vmsa(self) -> None:
        update = GuestState.LAUNCH_UPDATE
        if self.expect(update, lambda: self.psp.launch_update_vmsa(bytes(4096)), update):
            self.taken.update(bytes(4096))

    @rule()
    def measure(self) -> None:
        self.expect(GuestState.LAUNCH_UPDATE, self.psp.launch_measure, GuestState.LAUNCH_SECRET)

    @rule()
    def secret(self) -> None:
        header, data = packet(self.psp._measurement, b"0123456789abcdef")
        secret = GuestState.LAUNCH_SECRET
        self.expect(secret, lambda: self.psp.launch_secret(header, 0, data), secret)

    @rule()
    def finish(self) -> None:
        self.expect(GuestState.LAUNCH_SECRET, self.psp.launch_finish, GuestState.RUNNING)

    @invariant()
    def state_and_digest_are_what_the_commands_made_them(self) -> None:
        if hasattr(self, "psp"):
            assert self.psp.state is self.state
            assert self.psp.digest == self.taken.digest()


TestLaunchOrder = LaunchMachine.TestCase


def refusal(command: Callable[[], object]) -> SevStatus:
    with pytest.raises(FirmwareStatusError) as refused:
        command()
    return SevStatus(refused.value.status)


def started(policy: int = 5) -> ModelPsp:
    psp = ModelPsp(sev_es=True, platform=PLATFORM)
    psp.launch_start(policy, session(policy))
    return psp


@pytest.mark.parametrize(
    ("sev_es", "policy"), [(True, 0x1), (False, 0x5), (True, 0x20005), (True, 0x38010005)]
)
def test_psp_refuses_a_policy_it_cannot_keep(sev_es: bool, policy: int) -> None:
    psp = ModelPsp(sev_es=sev_es)
    assert refusal(lambda: psp.launch_start(policy, None)) is SevStatus.POLICY_FAILURE
    assert psp.state is GuestState.UNINIT


@pytest.mark.parametrize(
    ("sev_es", "policy"), [(True, 0x5), (False, 0x1), (True, 0x37010005), (True, 0xFF000005)]
)
def test_psp_takes_a_policy_it_can_keep(sev_es: bool, policy: int) -> None:
    psp = ModelPsp(sev_es=sev_es)
    psp.launch_start(policy, None)
    assert psp.state is GuestState.LAUNCH_UPDATE


@pytest.mark.parametrize(
    ("address", "size", "status"),
    [(8, 16, SevStatus.INVALID_ADDRESS), (0, 0, SevStatus.INVALID_LEN), (0, 24, SevStatus.INVALID_LEN)],
)
def test_psp_refuses_what_is_no_whole_blocks(address: int, size: int, status: SevStatus) -> None:
    psp = started()
    assert refusal(lambda: psp.launch_update_data(address, bytes(size))) is status
    assert psp.digest == hashlib.sha256().digest()


def encrypted(psp: ModelPsp, address: int, plaintext: bytes) -> bytes:
    """What the host sees."""
    target = bytearray(len(plaintext))
    psp.encrypt(address, plaintext, memoryview(target))
    return bytes(target)


def test_psp_encrypts_with_the_address_and_a_key_of_its_own() -> None:
    one, other = started(), started()
    data = bytes(8192)
    ciphertext = encrypted(one, 0x1000, data)
    assert ciphertext[:4096] != ciphertext[4096:], "equal pages look different"
    assert ciphertext[4096:] == encrypted(one, 0x2000, data[4096:])
    assert ciphertext != encrypted(other, 0x1000, data)


@pytest.mark.parametrize("size", [16, 1 << 20, (1 << 20) + 16])
def test_psp_encrypts_memory_in_place(size: int) -> None:
    psp, memory = started(), bytearray(size)
    psp.encrypt(0x3000, memoryview(memory), memoryview(memory))
    assert memory == encrypted(psp, 0x3000, bytes(size))
    assert memory != bytes(size)


def test_psp_measures_with_a_fresh_nonce_over_the_digest() -> None:
    nonces = set()
    for _ in range(4):
        psp = started(0x5)
        psp.launch_update_data(0, b"firmware" * 2)
        mac, nonce = psp.launch_measure()
        digest = hashlib.sha256(b"firmware" * 2).digest()
        message = b"\x04" + bytes(psp.version) + (5).to_bytes(4, "little") + digest + nonce
        assert mac == hmac.new(KEYS.tik, message, hashlib.sha256).digest()
        nonces.add(nonce)
    assert len(nonces) == 4


def test_psp_without_a_session_has_keys_that_nobody_knows() -> None:
    psp = ModelPsp(sev_es=False)
    psp.launch_start(1, None)
    mac, nonce = psp.launch_measure()
    message = b"\x04" + bytes(psp.version) + (1).to_bytes(4, "little") + hashlib.sha256().digest() + nonce
    assert mac != hmac.new(b"", message, hashlib.sha256).digest()


def test_psp_hands_the_secret_to_the_guest() -> None:
    psp = started()
    mac, _ = psp.launch_measure()
    header, data = packet(mac, b"open sesame 1234")
    assert psp.launch_secret(header, 0, data) == b"open sesame 1234"


@pytest.mark.parametrize("what", ["mac", "iv", "data", "measurement", "keys"])
def test_psp_refuses_a_secret_that_is_not_for_this_launch(what: str) -> None:
    psp = started()
    mac, _ = psp.launch_measure()
    keys = TransportKeys(KEYS.tek, bytes(16)) if what == "keys" else KEYS
    header, data = packet(bytes(32) if what == "measurement" else mac, b"open sesame 1234", keys)
    if what == "mac":
        header = header[:-1] + bytes((header[-1] ^ 1,))
    elif what == "iv":
        header = header[:4] + bytes((header[4] ^ 1,)) + header[5:]
    elif what == "data":
        data = bytes((data[0] ^ 1,)) + data[1:]
    assert refusal(lambda: psp.launch_secret(header, 0, data)) is SevStatus.BAD_MEASUREMENT
    assert psp.state is GuestState.LAUNCH_SECRET


def test_psp_refuses_malformed_secrets() -> None:
    psp = started()
    mac, _ = psp.launch_measure()
    header, data = packet(mac, bytes(16))
    assert refusal(lambda: psp.launch_secret(header[:-1], 0, data)) is SevStatus.INVALID_LEN
    assert refusal(lambda: psp.launch_secret(header, 0, data[:-1])) is SevStatus.INVALID_LEN
    assert refusal(lambda: psp.launch_secret(header, 0, b"")) is SevStatus.INVALID_LEN
    assert refusal(lambda: psp.launch_secret(header, 8, data)) is SevStatus.INVALID_ADDRESS
    long = packet(mac, bytes(MAX_SECRET + 16))
    assert refusal(lambda: psp.launch_secret(long[0], 0, long[1])) is SevStatus.INVALID_LEN
    compressed = packet(mac, bytes(16), flags=1)
    assert refusal(lambda: psp.launch_secret(compressed[0], 0, compressed[1])) is SevStatus.UNSUPPORTED


def test_secret_header_is_laid_out_as_documented() -> None:
    header = SecretHeader.from_bytes(bytes(4) + b"i" * 16 + b"m" * 32)
    assert (header.flags, bytes(header.iv), bytes(header.mac)) == (0, b"i" * 16, b"m" * 32)


def test_every_status_has_words() -> None:
    assert all(meaning(status) for status in SevStatus)
    assert meaning(0x27) == "unknown status"
