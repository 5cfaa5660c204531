"""The launch measurement: an HMAC whose message is spelled out here a second time."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from casemate.abi.guest_kind import GuestKind
from casemate.digest.cpu_models import cpu_signature, model_signature
from casemate.digest.measurement import (
    PlatformVersion,
    parse_nonce,
    predict_measurement,
    read_tik,
    validate_policy,
)
from casemate.errors import ImageError, SpecError

DIGEST, TIK, NONCE = bytes(range(32)), bytes(16), bytes(range(16))


def test_measurement_signs_version_policy_digest_and_nonce() -> None:
    message = bytes.fromhex("04 01 37 15 05000000") + DIGEST + NONCE
    expected = hmac.new(TIK, message, hashlib.sha256).digest()
    assert predict_measurement(DIGEST, TIK, NONCE, 5, PlatformVersion(1, 55, 21)) == expected


@pytest.mark.parametrize("numbers", [(256, 0, 0), (0, -1, 0), (0, 0, 1000)])
def test_version_of_more_than_a_byte_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match="not between 0 and 255"):
        PlatformVersion(*numbers).to_bytes()


@pytest.mark.parametrize(
    ("policy", "kind", "message"),
    [
        (1 << 32, GuestKind.SEV, "32-bit"),
        (-1, GuestKind.SEV, "32-bit"),
        (0x1, GuestKind.SEV_ES, "does not ask for SEV-ES"),
        (0x5, GuestKind.SEV, "asks for SEV-ES"),
    ],
)
def test_policy_that_does_not_fit_the_guest_is_refused(policy: int, kind: GuestKind, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        validate_policy(policy, kind)


@pytest.mark.parametrize(("policy", "kind"), [(0x1, GuestKind.SEV), (0x33_01_0007, GuestKind.SEV_ES)])
def test_policy_of_the_guest_is_taken(policy: int, kind: GuestKind) -> None:
    validate_policy(policy, kind)


@pytest.mark.parametrize("text", ["", "xyz", "00" * 15, "00" * 17, "é" * 32])
def test_nonce_that_is_not_32_hex_digits_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="hex digits"):
        parse_nonce(text)


@pytest.mark.parametrize("size", [0, 15, 17, 5000])
def test_key_file_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "tik.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(ImageError, match="16 raw bytes"):
        read_tik(path)


def test_signature_of_epyc_is_the_documented_one() -> None:
    assert cpu_signature(23, 1, 2) == 0x800F12
    assert model_signature("EPYC-Genoa-v9") == 0xA10F10
    assert model_signature("EPYC-Turin") == 0xB00F00


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (271, 0, 0), (23, 256, 0), (23, 1, 16)])
def test_signature_number_that_does_not_fit_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match="is not between"):
        cpu_signature(*numbers)


@pytest.mark.parametrize("name", ["", "epyc", "EPYC-", "EPYC-v", "EPYC-vx", "qemu64", "-v1"])
def test_unknown_model_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(SpecError, match="EPYC-Milan") as caught:
        model_signature(name)
    assert caught.value.exit_code == 4
