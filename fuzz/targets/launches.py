"""What owners and platforms hand to a launch: sessions, certificates, ID blocks, keys (AMD 55766, AMD 56860)."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from casemate.abi.sev.snp import SnpPageType
from casemate.digest.id_block import load_key, make_id_block, sign_id_block
from casemate.digest.measurement import parse_nonce, read_tik
from casemate.host.model.sev.platform import ModelPlatform
from casemate.host.model.sev.psp import ModelPsp
from casemate.host.model.snp.psp import SnpPsp
from casemate.host.model.snp.rmp import Rmp
from casemate.host.secure_processor import LaunchSession
from casemate.host.snp_processor import SnpFinish
from casemate.owner.platform import parse_chain
from casemate.owner.session import make_session
from fuzz.edits import EDITS, damaged
from fuzz.target import Target, quick, refusals

POLICY, SNP_POLICY, ASID = 5, 0x30000, 1


@functools.cache
def _platform() -> ModelPlatform:
    return ModelPlatform()


@functools.cache
def _session() -> LaunchSession:
    return make_session(_platform().certificates.pdh, POLICY).launch


@functools.cache
def _keys() -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePrivateKey]:
    return ec.derive_private_key(7, ec.SECP384R1()), ec.derive_private_key(11, ec.SECP384R1())


@functools.cache
def _signed() -> tuple[bytes, bytes]:
    signed = sign_id_block(make_id_block(_launched().digest), *_keys())
    return signed.block, signed.auth


@functools.cache
def _pem() -> bytes:
    return _keys()[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _launched() -> SnpPsp:
    rmp = Rmp()
    rmp.assign(1, 0x1000, ASID, immutable=True)
    psp = SnpPsp(rmp, ASID)
    psp.launch_start(SNP_POLICY, bytes(16))
    psp.launch_update(1, SnpPageType.NORMAL, bytes(4096))
    return psp


def session_blob(edits: Sequence[int]) -> None:
    """LAUNCH_START with a session; only the sound one is taken."""
    sound = _session()
    changed = damaged(sound.blob, edits)[:128].ljust(128, b"\0")
    ModelPsp(sev_es=True, platform=_platform()).launch_start(
        POLICY, LaunchSession(sound.certificate, changed)
    )
    assert changed == sound.blob


def session_certificate(edits: Sequence[int]) -> None:
    """LAUNCH_START with the owner's certificate, whose key alone matters."""
    sound = _session()
    changed = damaged(sound.certificate, edits, places=[(0, 128)])[:2084].ljust(2084, b"\0")
    ModelPsp(sev_es=True, platform=_platform()).launch_start(POLICY, LaunchSession(changed, sound.blob))


def platform_chain(edits: Sequence[int]) -> None:
    """``casemate session check``."""
    chain = parse_chain(damaged(_platform().certificates.to_bytes(), edits, places=[(0, 128), (2084, 128)]))
    assert chain.checks()
    assert chain.checks(any_root=True)
    make_session(chain.pdh, POLICY)


def id_block(edits: Sequence[int]) -> None:
    """SNP_LAUNCH_FINISH with an ID block."""
    block, auth = _signed()
    changed = damaged(block, edits)[: len(block)].ljust(len(block), b"\0")
    _launched().launch_finish(SnpFinish(changed, auth, has_author_key=True))
    assert changed == block


def id_auth(edits: Sequence[int]) -> None:
    """SNP_LAUNCH_FINISH with authentication of an ID block."""
    block, auth = _signed()
    changed = damaged(auth, edits, places=[(0, 64), (0x40, 0x400), (0x680, 0x400)])[: len(auth)].ljust(
        len(auth), b"\0"
    )
    _launched().launch_finish(SnpFinish(block, changed, has_author_key=bool(edits[0] & 1)))


def key_file(edits: Sequence[int]) -> None:
    """Private keys, transport keys and nonces as files and words."""
    path = Path(tempfile.gettempdir(), "key")
    changed = damaged(
        _pem(), edits, (b"-----BEGIN EC PRIVATE KEY-----\n", b"ENCRYPTED ", b"Proc-Type: 4,ENCRYPTED\n")
    )
    path.write_bytes(changed)
    for read in (load_key, read_tik):
        with refusals():
            read(path)
    parse_nonce(changed.decode("latin-1"))


KINDS: tuple[Callable[[Sequence[int]], None], ...] = (
    *(session_blob, session_certificate, platform_chain, id_block, id_auth, key_file),
)


@quick(150)
@given(st.sampled_from(KINDS), EDITS)
def check(kind: Callable[[Sequence[int]], None], edits: Sequence[int]) -> None:
    """It is taken, or refused with a status or a cause."""
    with refusals():
        kind(edits)


TARGET = Target("launches", "sessions, platform certificates, ID blocks and keys", check)
