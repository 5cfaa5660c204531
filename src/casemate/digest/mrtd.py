"""MRTD, the launch measurement of a TD: one SHA-384 over what was added (Intel TDX Module ABI, 348551, TDH.MR.EXTEND).

It was compared with no hardware: the tests hold it against a recipe of their own (docs/guide/measure.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from casemate.address import PAGE_SIZE
from casemate.digest.plan import LaunchPlan, TdxOperation, TdxPages
from casemate.errors import InternalError

_CHUNK = 256
"""Bytes that one TDH.MR.EXTEND measures."""
_ADD, _EXTEND = (name.ljust(16, b"\0") for name in (b"MEM.PAGE.ADD", b"MR.EXTEND"))
_ZEROS = bytes(104)


def predict_mrtd(plan: LaunchPlan) -> bytes:
    """MRTD (48 bytes) as TDH.MR.FINALIZE leaves it."""
    digest = hashlib.sha384()
    for _ in _measured(plan, digest):
        pass
    return digest.digest()


def running_digests(plan: LaunchPlan) -> Iterator[bytes]:
    """What MRTD would be if the TD were finalized after each step."""
    digest = hashlib.sha384()
    for _ in _measured(plan, digest):
        yield digest.digest()


def _measured(plan: LaunchPlan, digest: hashlib._Hash) -> Iterator[TdxPages]:
    for step in plan.steps:
        if not isinstance(step, TdxPages):
            raise InternalError(f"{step!r} is no step of a TD's launch")
        if step.operation is TdxOperation.ADD:
            for offset in range(0, step.size, PAGE_SIZE):
                digest.update(_add(step.gpa + offset))
        else:
            adds = step.operation is TdxOperation.ADD_EXTEND
            for offset in range(0, step.size, PAGE_SIZE):
                page = step.data[offset : offset + PAGE_SIZE]
                added = _add(step.gpa + offset) if adds else b""
                digest.update(added + _extend(step.gpa + offset, page.ljust(PAGE_SIZE, b"\0")))
        yield step


def _add(gpa: int) -> bytes:
    return _ADD + gpa.to_bytes(8, "little") + _ZEROS


def _extend(gpa: int, page: bytes) -> bytes:
    return b"".join(
        _EXTEND + (gpa + offset).to_bytes(8, "little") + _ZEROS + page[offset : offset + _CHUNK]
        for offset in range(0, PAGE_SIZE, _CHUNK)
    )
