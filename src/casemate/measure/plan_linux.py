"""The launch of a kernel without firmware: all that it starts from is measured (casemate's own: no standard has it).

What stands in for firmware comes first, then each piece in RAM, then the save areas. Nothing that the guest reads
before it can check for itself is left out: entry code, page tables, boot parameters, command line, ACPI tables, the
unpacked kernel, the initrd.
"""

from __future__ import annotations

from casemate.address import Gpa
from casemate.linux.direct_boot import DirectBoot
from casemate.measure.plan import LaunchPlan
from casemate.measure.steps import UpdateData


def with_linux(plan: LaunchPlan, linux: DirectBoot) -> LaunchPlan:
    """``plan``, which measures ``linux.image``, with the pieces behind that."""
    entry, *others = plan.steps
    assert isinstance(entry, UpdateData)
    pieces = (UpdateData(piece.what, Gpa(piece.gpa), piece.data) for piece in linux.pieces)
    return LaunchPlan(plan.kind, (entry._replace(what="entry code"), *pieces, *others))
