"""Makes and signs ID blocks, by which a host can start only the expected guest (AMD 56860, SNP_LAUNCH_FINISH)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from casemate.abi.sev.id_block import ECDSA_P384_SHA384, EcdsaPublicKey, EcdsaSignature, IdAuth, IdBlock
from casemate.abi.sev.snp import DIGEST_SIZE
from casemate.abi.sev.snp_policy import DEFAULT_POLICY
from casemate.digest.steps_snp import validate_policy
from casemate.errors import ImageError, SpecError
from casemate.files import read_file

_ID_SIZE = 16


class Identity(NamedTuple):
    """What an ID block says of a guest beside its digest; the IDs (16 bytes) and the SVN are the owner's to choose."""

    policy: int = DEFAULT_POLICY
    family_id: bytes = bytes(_ID_SIZE)
    image_id: bytes = bytes(_ID_SIZE)
    guest_svn: int = 0


DEFAULT_IDENTITY = Identity()
"""QEMU's default policy, and nothing else said."""


class SignedIdBlock(NamedTuple):
    """The block, its authentication, and the digests of the keys as reports show them (48 bytes; None: no such key)."""

    block: bytes
    auth: bytes
    id_key_digest: bytes
    author_key_digest: bytes | None


def make_id_block(digest: bytes, identity: Identity = DEFAULT_IDENTITY) -> bytes:
    """The block (96 bytes) for a guest with this launch digest. Raises SpecError if a value does not fit."""
    for name, value, size in (
        ("launch digest", digest, DIGEST_SIZE),
        ("family ID", identity.family_id, _ID_SIZE),
        ("image ID", identity.image_id, _ID_SIZE),
    ):
        if len(value) != size:
            raise SpecError(f"the {name} has {len(value)} bytes, not {size}", f"give {2 * size} hex digits")
    if not 0 <= identity.guest_svn < 1 << 32:
        raise SpecError(f"guest SVN {identity.guest_svn} is no 32-bit number", "correct it")
    validate_policy(identity.policy)
    numbers = (
        value.to_bytes(size, "little")
        for value, size in ((IdBlock.VERSION, 4), (identity.guest_svn, 4), (identity.policy, 8))
    )
    return digest + identity.family_id + identity.image_id + b"".join(numbers)


def sign_id_block(
    block: bytes, id_key: EllipticCurvePrivateKey, author_key: EllipticCurvePrivateKey | None = None
) -> SignedIdBlock:
    """Sign a block with the ID key, and the ID key with the author's. Raises SpecError for keys not on P-384."""
    public = _public(id_key)
    auth = IdAuth(id_key_algo=ECDSA_P384_SHA384, id_block_sig=_sign(id_key, block), id_key=public)
    author_digest = None
    if author_key is not None:
        author = _public(author_key)
        auth.auth_key_algo, auth.author_key = ECDSA_P384_SHA384, author
        auth.id_key_sig = _sign(author_key, public.to_bytes())
        author_digest = _digest(author)
    return SignedIdBlock(block, auth.to_bytes(), _digest(public), author_digest)


def load_key(path: str | Path) -> EllipticCurvePrivateKey:
    """A private key on P-384 out of a PEM file. Raises ImageError if it is not that."""
    remedy = "make one: openssl ecparam -name secp384r1 -genkey -noout -out key.pem"
    try:
        key = load_pem_private_key(read_file(path), None)
    except TypeError:
        raise ImageError(path, "the key is encrypted", "decrypt it: openssl ec -in KEY -out PLAIN") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ImageError(path, "this is no private key in PEM form", remedy) from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise ImageError(path, "this key is not on the curve P-384, the only one for ID blocks", remedy)
    return key


def _public(key: EllipticCurvePrivateKey) -> EcdsaPublicKey:
    numbers = key.public_key().public_numbers()
    if key.key_size != 384:
        raise SpecError("an ID block is signed with a key on the curve P-384", "use such a key")
    return EcdsaPublicKey.of(numbers.x, numbers.y)


def _sign(key: EllipticCurvePrivateKey, message: bytes) -> EcdsaSignature:
    return EcdsaSignature.of(*decode_dss_signature(key.sign(message, ECDSA(SHA384()))))


def _digest(key: EcdsaPublicKey) -> bytes:
    return hashlib.sha384(key.to_bytes()).digest()
