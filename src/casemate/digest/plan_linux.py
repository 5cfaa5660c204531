"""The launch of a kernel without firmware: all that it starts from is measured (casemate's own: no standard has it).

What stands in for firmware comes first, then each piece in RAM, then the save areas. Nothing that the guest reads
before it can check for itself is left out: entry code, page tables, boot parameters, command line, ACPI tables, the
unpacked kernel, the initrd.
"""

from __future__ import annotations

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.snp import SnpPageType
from casemate.address import Gpa
from casemate.digest import steps_snp
from casemate.digest.plan import LaunchPlan
from casemate.digest.sev_init import SevInit
from casemate.digest.steps import SnpPages, UpdateData
from casemate.digest.steps_sev import vmsa_steps
from casemate.firmware.image import FirmwareImage
from casemate.linux.direct_boot import DirectBoot, Piece


def plan_snp_linux(
    image: FirmwareImage, linux: DirectBoot, vcpus: int, signature: int, features: int
) -> LaunchPlan:
    """The launch of an SNP guest; ``image`` is ``linux.image``. Raises SpecError if numbers are impossible."""
    steps_snp.validate_features(features)
    entry = steps_snp.firmware_step(image)._replace(what="entry code")
    pieces = (
        SnpPages(piece.what, Gpa(piece.gpa), len(piece.data), *_contents(piece)) for piece in linux.pieces
    )
    vmsas = vmsa_steps(image, vcpus, signature, features, SevInit.INIT2, linux.ap_start)
    return LaunchPlan(GuestKind.SNP, (entry, *pieces, *vmsas))


def _contents(piece: Piece) -> tuple[SnpPageType, bytes]:
    return piece.page_type, bytes(piece.data) if piece.page_type.has_contents else b""


def with_linux(plan: LaunchPlan, linux: DirectBoot) -> LaunchPlan:
    """``plan``, which measures ``linux.image``, with the pieces behind that."""
    entry, *others = plan.steps
    assert isinstance(entry, UpdateData)
    pieces = (UpdateData(piece.what, Gpa(piece.gpa), bytes(piece.data)) for piece in linux.pieces)
    return LaunchPlan(plan.kind, (entry._replace(what="entry code"), *pieces, *others))
