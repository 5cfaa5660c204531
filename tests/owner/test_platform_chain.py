"""The chain from a platform's key to its root: every link matters."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import ImageError, SpecError
from casemate.host.model.sev.platform import ModelPlatform, make_chain
from casemate.owner import platform
from casemate.owner.platform import load_chain, parse_chain
from casemate.owner.session import make_session

CHAIN = make_chain(ec.generate_private_key(ec.SECP384R1()))
CERTIFICATE, SIGNED = 2084, 1044
ROOT_SIZE = 832


@pytest.fixture(autouse=True)
def known_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own root, taken for one of AMD's."""
    name = hashlib.sha256(CHAIN[-ROOT_SIZE:]).hexdigest()
    monkeypatch.setitem(platform.AMD_ROOTS, name, "test")


def holds(data: bytes) -> bool:
    return all(check.holds for check in parse_chain(data).checks())


def test_whole_chain_holds_and_names_its_root() -> None:
    chain = parse_chain(CHAIN)
    assert chain.root == "test"
    assert holds(CHAIN)


def test_amd_part_may_be_another_file_in_either_order(tmp_path: Path) -> None:
    own, amd = CHAIN[: 4 * CERTIFICATE], CHAIN[4 * CERTIFICATE :]
    (tmp_path / "platform").write_bytes(own)
    for pair in (amd, amd[ROOT_SIZE:] + amd[:ROOT_SIZE]):
        (tmp_path / "amd").write_bytes(pair)
        assert all(check.holds for check in load_chain(tmp_path / "platform", tmp_path / "amd").checks())
    assert not holds(own)


@pytest.mark.parametrize("amd", [b"", b"x" * 2000, CHAIN[4 * CERTIFICATE : -1]])
def test_amd_part_that_is_none_is_refused_by_its_name(tmp_path: Path, amd: bytes) -> None:
    (tmp_path / "platform").write_bytes(CHAIN)
    (tmp_path / "amd").write_bytes(amd)
    with pytest.raises(ImageError, match="amd: no ASK and ARK"):
        load_chain(tmp_path / "platform", tmp_path / "amd")


@settings(max_examples=150, deadline=None)
@given(
    which=st.integers(0, 3),
    at=st.integers(16, SIGNED - 1).filter(lambda at: at < 20 + 144),
    bit=st.integers(0, 7),
)
def test_flipped_bit_of_a_key_breaks_the_chain(which: int, at: int, bit: int) -> None:
    data = bytearray(CHAIN)
    data[which * CERTIFICATE + at] ^= 1 << bit
    with suppress(ImageError):
        assert not holds(bytes(data))


@settings(max_examples=60, deadline=None)
@given(at=st.integers(64, 2 * ROOT_SIZE - 1), bit=st.integers(0, 7))
def test_flipped_bit_of_amds_part_breaks_the_chain(at: int, bit: int) -> None:
    data = bytearray(CHAIN)
    data[4 * CERTIFICATE + at] ^= 1 << bit
    with suppress(ImageError):
        assert not holds(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "here are 0 bytes"),
        (CHAIN[:CERTIFICATE], "4 certificates of 2084 bytes"),
        (bytes(len(CHAIN)), "no certificate of a SEV platform"),
        (CHAIN[CERTIFICATE : 4 * CERTIFICATE] + CHAIN[:CERTIFICATE], "the PEK is where the PDH belongs"),
        (CHAIN[:-1], "cut off"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        parse_chain(data)


@pytest.mark.parametrize("pdh", [b"", bytes(CERTIFICATE), CHAIN[CERTIFICATE : 2 * CERTIFICATE]])
def test_session_needs_a_pdh(pdh: bytes) -> None:
    with pytest.raises(SpecError, match="no PDH certificate"):
        make_session(pdh, 5)


def test_kept_platform_stays_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("platform")
    first, second = ModelPlatform(folder), ModelPlatform(folder)
    assert first.certificates == second.certificates
    assert first.pdh_key.private_numbers() == second.pdh_key.private_numbers()
    assert (folder / "pdh.pem").stat().st_mode & 0o777 == 0o600
