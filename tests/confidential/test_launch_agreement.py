from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from support.confidential_launches import MIB, Launch
from support.firmware_images import find_images

from casemate.abi.guest_kind import GuestKind
from casemate.confidential.preparation import LaunchOptions
from casemate.confidential.setup import InitRequest
from casemate.digest.steps import UpdateData
from casemate.digest.trace import trace_digest
from casemate.errors import ImageError
from casemate.firmware.completeness import validate_complete
from casemate.firmware.image import FirmwareImage
from casemate.host.secure_processor import TransportKeys
from casemate.machine import firmware
from casemate.machine.spec import MachineSpec

KEYS = TransportKeys(bytes(16), bytes(range(16)))


def _launchable() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in find_images():
        try:
            image = FirmwareImage.load(path)
            validate_complete(image)
        except ImageError:
            continue
        found.setdefault(hashlib.sha256(image.data).hexdigest(), path)
    return {f"{path.name}-{digest[:8]}": path for digest, path in sorted(found.items())}


IMAGES = _launchable()

Way = tuple[GuestKind, str, InitRequest, tuple[str, ...], int]

WAYS: list[Way] = [
    *((GuestKind.SEV, "linux-6.18", "auto", (), vcpus) for vcpus in (1, 2, 4)),
    *((GuestKind.SEV_ES, "linux-6.18", "auto", ("debug-swap",), vcpus) for vcpus in (1, 2, 4)),
    *((GuestKind.SEV_ES, "linux-6.18", "legacy", (), vcpus) for vcpus in (1, 2, 4)),
    (GuestKind.SEV_ES, "linux-6.18", "init2", (), 4),
    (GuestKind.SEV_ES, "linux-6.6", "auto", (), 2),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way)))
@pytest.mark.parametrize("name", IMAGES)
def test_prediction_execution_and_secure_processor_agree(
    name: str, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether an image boots on these boards, or is loaded so, is no matter of its launch.
    monkeypatch.setattr(firmware, "validate_bios", lambda image: None)
    kind, era, init, features, vcpus = way
    options = LaunchOptions(features=features, init=init, vcpus=vcpus, keys=KEYS, launch_only=True)
    guest = Launch(MachineSpec(bios=IMAGES[name], kind=kind, memory=4 * MIB), options, era)
    starts_others = FirmwareImage.load(IMAGES[name]).sev_es_reset is not None
    if kind is GuestKind.SEV_ES and vcpus > 1 and not starts_others:
        with pytest.raises(ImageError, match="reset block"):
            guest.assembled()
        return
    with guest.assembled():
        assert guest.prepared is not None
        assert guest.host.watcher is not None
        plan = guest.prepared.plan
        handed_over = [step.data for step in plan.steps if isinstance(step, UpdateData)]
        assert guest.host.watcher.updates == handed_over
        assert guest.host.watcher.inner.psp.digest == guest.prepared.digest  # type: ignore[attr-defined]
        assert trace_digest(plan)[-1].running == guest.prepared.digest
        assert guest.record is not None
        assert guest.record.measurement is not None
        assert guest.record.measurement["verified"] is True


def test_there_are_images_to_compare() -> None:
    if not IMAGES:
        pytest.skip("no firmware images: unpack some into $CASEMATE_FIRMWARE")
    assert any("OVMF" in name for name in IMAGES)
