"""ID blocks against those of sev-snp-measure, and what cannot be signed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

pytest.importorskip("sevsnpmeasure", reason="sev-snp-measure is not installed (./dev test says why)")

from sevsnpmeasure import id_block as oracle

from casemate.abi.sev.id_block import IdAuth, IdBlock
from casemate.digest.id_block import Identity, load_key, make_id_block, sign_id_block
from casemate.errors import ImageError, SpecError

DIGEST = hashlib.sha384(b"a guest").digest()
ID_KEY, AUTHOR_KEY = (ec.derive_private_key(number, ec.SECP384R1()) for number in (0x1234, 0x5678))


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, secret: bytes = b"") -> bytes:
    encryption: KeySerializationEncryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.fixture
def key_files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "id.pem", tmp_path / "author.pem"
    for path, key in zip(paths, (ID_KEY, AUTHOR_KEY), strict=True):
        path.write_bytes(pem(key))
    return paths


def test_block_and_keys_are_those_of_sev_snp_measure(key_files: tuple[Path, Path]) -> None:
    text = oracle.snp_calc_id_block(DIGEST, str(key_files[0]), str(key_files[1]))
    options, id_key, author_key = text.splitlines()
    block, auth = (base64.b64decode(part.partition("=")[2]) for part in options.split(","))
    ours = sign_id_block(make_id_block(DIGEST), load_key(key_files[0]), load_key(key_files[1]))
    assert ours.block == block
    assert base64.b64encode(ours.id_key_digest).decode() == id_key.partition(": ")[2]
    assert ours.author_key_digest == base64.b64decode(author_key.partition(": ")[2])
    mine, theirs = IdAuth.from_bytes(ours.auth), IdAuth.from_bytes(auth)
    for name in ("id_block_sig", "id_key_sig"):  # signatures have a random part
        setattr(mine, name, getattr(theirs, name))
    assert mine.to_bytes() == auth


def test_block_says_what_its_owner_says() -> None:
    identity = Identity(0xB0000, b"f" * 16, b"i" * 16, 7)
    block = IdBlock.from_bytes(make_id_block(DIGEST, identity))
    assert (block.version, block.guest_svn, block.policy) == (1, 7, 0xB0000)
    assert (bytes(block.family_id), bytes(block.image_id)) == (b"f" * 16, b"i" * 16)


def test_without_author_key_its_half_is_empty() -> None:
    auth = IdAuth.from_bytes(sign_id_block(make_id_block(DIGEST), ID_KEY).auth)
    assert auth.auth_key_algo == 0
    assert not any(auth.author_key.to_bytes() + auth.id_key_sig.to_bytes())


@pytest.mark.parametrize(
    ("digest", "identity", "message"),
    [
        (DIGEST[:32], Identity(), "launch digest has 32 bytes, not 48"),
        (DIGEST, Identity(family_id=b"x"), "family ID has 1 bytes"),
        (DIGEST, Identity(guest_svn=1 << 32), "32-bit"),
        (DIGEST, Identity(policy=0x10000), "bit 17"),
        (DIGEST, Identity(policy=1 << 64), "64-bit"),
    ],
)
def test_value_that_does_not_fit_is_refused(digest: bytes, identity: Identity, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make_id_block(digest, identity)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"no key", "no private key"),
        (pem(rsa.generate_private_key(65537, 2048)), "P-384"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "P-384"),
        (pem(ID_KEY, b"secret"), "encrypted"),
    ],
)
def test_file_that_holds_no_usable_key_is_refused(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "key.pem").write_bytes(contents)
    with pytest.raises(ImageError, match=message) as caught:
        load_key(tmp_path / "key.pem")
    assert caught.value.remedy
    with pytest.raises(ImageError, match="No such file"):
        load_key(tmp_path / "none.pem")


def test_other_curve_signs_nothing() -> None:
    with pytest.raises(SpecError, match="P-384"):
        sign_id_block(make_id_block(DIGEST), ec.generate_private_key(ec.SECP256R1()))
