"""Options of ``casemate measure`` that make an ID block for an SNP guest (docs/guide/measure.md)."""

from __future__ import annotations

import argparse
from base64 import b64encode
from typing import TYPE_CHECKING

from casemate.cli.options import hex_bytes, integer, option_name
from casemate.errors import SpecError
from casemate.files import write_file

if TYPE_CHECKING:
    from casemate.digest.id_block import SignedIdBlock

ID_BLOCK_OPTIONS = (
    "idkey",
    "authorkey",
    "family_id",
    "image_id",
    "guest_svn",
    "id_block_out",
    "id_auth_out",
)
"""Where argparse keeps them; keys are named as those of snp-create-id-block."""

_ID_SIZE = 16


def add_id_block_arguments(parser: argparse._ArgumentGroup) -> None:
    """Declare ``ID_BLOCK_OPTIONS``."""
    parser.add_argument(
        "--idkey", metavar="FILE", help="private key (PEM, P-384) that signs an ID block for the digest"
    )
    parser.add_argument("--authorkey", metavar="FILE", help="private key that signs the ID key")
    parser.add_argument("--family-id", metavar="HEX", help="16 bytes of yours for the ID block")
    parser.add_argument("--image-id", metavar="HEX", help="16 bytes of yours for the ID block")
    parser.add_argument(
        "--guest-svn", metavar="N", type=integer, help="version of the guest for the ID block"
    )
    parser.add_argument("--id-block-out", metavar="FILE", help="write the ID block (96 bytes)")
    parser.add_argument("--id-auth-out", metavar="FILE", help="write its authentication (4096 bytes)")


def sign_identity(args: argparse.Namespace, digest: bytes) -> SignedIdBlock | None:
    """The ID block for a digest, or None if none was asked for; writes the files that were. Raises SpecError."""
    if args.idkey is None:
        _refuse_without_key(args)
        return None
    from casemate.digest import id_block

    identity = id_block.Identity(
        id_block.DEFAULT_IDENTITY.policy if args.policy is None else args.policy,
        hex_bytes(args, "family_id", _ID_SIZE) or bytes(_ID_SIZE),
        hex_bytes(args, "image_id", _ID_SIZE) or bytes(_ID_SIZE),
        args.guest_svn or 0,
    )
    author = id_block.load_key(args.authorkey) if args.authorkey else None
    signed = id_block.sign_id_block(
        id_block.make_id_block(digest, identity), id_block.load_key(args.idkey), author
    )
    for path, data in ((args.id_block_out, signed.block), (args.id_auth_out, signed.auth)):
        if path is not None:
            write_file(path, data)
    return signed


def _refuse_without_key(args: argparse.Namespace) -> None:
    for name in ID_BLOCK_OPTIONS:
        if getattr(args, name) is not None:
            raise SpecError(f"{option_name(name)} without --idkey", "give the key that signs the ID block")
    if args.mode == "snp" and args.policy is not None:
        raise SpecError("--policy does not enter the digest", "leave it out, or give --idkey for an ID block")


def print_identity(signed: SignedIdBlock) -> None:
    """The block as properties of QEMU's sev-snp-guest, and the digests of the keys as reports show them."""

    block, auth = (b64encode(data).decode() for data in (signed.block, signed.auth))
    author = ",author-key-enabled=on" if signed.author_key_digest else ""
    print(f"id-block={block},id-auth={auth}{author}")
    print(f"id-key-digest: {signed.id_key_digest.hex()}")
    if signed.author_key_digest:
        print(f"author-key-digest: {signed.author_key_digest.hex()}")


def identity_to_dict(signed: SignedIdBlock) -> dict[str, str | None]:
    """For JSON: block and authentication in base64, digests in hex."""

    author = signed.author_key_digest
    return {
        "id_block": b64encode(signed.block).decode(),
        "id_auth": b64encode(signed.auth).decode(),
        "id_key_digest": signed.id_key_digest.hex(),
        "author_key_digest": author.hex() if author else None,
    }
