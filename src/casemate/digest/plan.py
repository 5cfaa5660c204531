"""A confidential launch as a value: the ordered steps of it (AMD 55766 chapter 6; AMD 56860, 8.17; Intel 348549).

Predicting the digest, executing the launch and modelling the secure processor all read this one list.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from casemate.abi.guest_kind import GuestKind
from casemate.address import Gpa
from casemate.digest.steps import SnpPages, UpdateData, UpdateVmsa


class TdxOperation(StrEnum):
    """What is done with the pages of a TD's section, and so enters MRTD."""

    ADD = "add"
    """TDH.MEM.PAGE.ADD of every page: its address is measured."""
    EXTEND = "extend"
    """TDH.MR.EXTEND of every page that was added before: its contents are measured."""
    ADD_EXTEND = "add-extend"
    """Both for one page, then for the next."""


class TdxPages(NamedTuple):
    """TDH.MEM.PAGE.ADD and TDH.MR.EXTEND of one section; ``data`` is what it starts with, zeros follow."""

    what: str
    gpa: Gpa
    size: int
    operation: TdxOperation
    data: bytes = b""

    def __repr__(self) -> str:
        return f"TdxPages({self.what!r}, {self.gpa:#x}, {self.size:#x} bytes, {self.operation})"


LaunchStep = UpdateData | UpdateVmsa | SnpPages | TdxPages


class LaunchPlan(NamedTuple):
    """The steps in their order, for a guest of ``kind``."""

    kind: GuestKind
    steps: tuple[LaunchStep, ...]
