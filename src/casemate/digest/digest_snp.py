"""The launch digest of SNP guests: a chain of SHA-384 over one PAGE_INFO per page (AMD 56860 SEV-SNP ABI, 8.17.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct

from casemate.abi.sev.snp import DIGEST_SIZE, VMSA_GPA, SnpPageType
from casemate.address import PAGE_SIZE
from casemate.digest.plan import LaunchPlan, LaunchStep
from casemate.digest.sha384 import sha384
from casemate.digest.steps import SnpPages, UpdateVmsa
from casemate.errors import InternalError

INITIAL = bytes(DIGEST_SIZE)
"""The digest before the first page."""

_NO_CONTENTS = bytes(DIGEST_SIZE)
# digest, contents, length, page type, IMI; permissions of VMPL 3, 2 and 1 and a reserved byte are zero; address
_PAGE_INFO = Struct("<48s48sHBB4xQ")


def predict_digest(plan: LaunchPlan, firmware: bytes | None = None) -> bytes:
    """The digest (48 bytes) that the secure processor arrives at.

    ``firmware`` is the digest after the plan's first step, where it is known; it is then not hashed again.
    """
    return digest_of_steps(plan.steps, firmware)


def digest_of_steps(steps: Iterable[LaunchStep], firmware: bytes | None = None) -> bytes:
    """The same of steps that are not a plan yet."""
    *_, digest = _running(steps, firmware)
    return digest


def running_digests(plan: LaunchPlan, firmware: bytes | None = None) -> Iterator[bytes]:
    """The digest after each step."""
    return _running(plan.steps, firmware)


def _running(steps: Iterable[LaunchStep], firmware: bytes | None) -> Iterator[bytes]:
    digest = INITIAL
    contents: dict[int, bytes] = {}  # vCPUs share one page object, which is hashed once
    for index, step in enumerate(steps):
        match step:
            case SnpPages() if index == 0 and firmware is not None:
                digest = firmware
            case SnpPages():
                digest = extend(digest, step)
            case UpdateVmsa(_, data):
                known = contents.get(id(data)) or contents.setdefault(id(data), hash_page(data))
                digest = extend_vmsa(digest, known)
            case _:
                raise InternalError(f"{step!r} is no step of an SNP launch")
        yield digest


def extend(digest: bytes, pages: SnpPages) -> bytes:
    """The digest after all pages of a step, lowest address first."""
    page_type, gpa = pages.page_type, int(pages.gpa)
    if not page_type.has_contents:
        for offset in range(0, pages.size, PAGE_SIZE):
            digest = _next(digest, _NO_CONTENTS, page_type, gpa + offset)
        return digest
    page, contents = b"", b""
    for offset in range(0, pages.size, PAGE_SIZE):
        before, page = page, pages.data[offset : offset + PAGE_SIZE]
        if page != before:  # images are full of equal pages that follow each other
            contents = hash_page(page)
        digest = _next(digest, contents, page_type, gpa + offset)
    return digest


def extend_vmsa(digest: bytes, contents: bytes) -> bytes:
    """The digest after a save area with this ``hash_page``."""
    return _next(digest, contents, SnpPageType.VMSA, VMSA_GPA)


def hash_page(data: bytes) -> bytes:
    """What a page's contents enter PAGE_INFO as."""
    return sha384(data).digest()


def _next(digest: bytes, contents: bytes, page_type: int, gpa: int) -> bytes:
    info = _PAGE_INFO.pack(digest, contents, _PAGE_INFO.size, page_type, 0, gpa)
    return sha384(info).digest()
