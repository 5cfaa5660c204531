"""What the owner of a guest should know before trusting its digest (docs/guide/confidential.md)."""

from __future__ import annotations

from casemate.confidential.preparation import PreparedLaunch
from casemate.firmware.hash_use import HashUse, hash_use
from casemate.firmware.volume import read_volumes


def launch_warnings(prepared: PreparedLaunch) -> list[str]:
    """Warnings about a launch, for standard error and the outcome."""
    image = prepared.image
    if not prepared.options.kernel_hashes:
        return []
    volumes = read_volumes(image.data, image.code_volumes)
    if hash_use(volumes) is not HashUse.IGNORED:
        return []
    cause = "the kernel's hashes are measured, but no driver of this build compares them with the kernel it is offered"
    return [f"{image.name}: {cause}; edk2's AmdSev build does"]
