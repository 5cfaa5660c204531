"""An inspection as plain values for JSON (docs/guide/inspect.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from casemate.advise.claims import Claim
from casemate.advise.descriptor_check import DescriptorReport
from casemate.advise.inspect import Inspection, try_read
from casemate.advise.pairing import Pair
from casemate.firmware.guided_table import GuestArea
from casemate.firmware.guids import guid_text
from casemate.firmware.volume import FirmwareFile, FirmwareVolume


def report_to_dict(
    inspections: Sequence[tuple[Inspection, tuple[Claim, ...]]],
    pairs: Sequence[Pair],
    descriptors: Sequence[DescriptorReport] = (),
) -> dict[str, Any]:
    """All files, pairs and descriptors of one run."""
    return {
        "files": [_inspection(inspection, claims) for inspection, claims in inspections],
        "pairs": [pair._asdict() for pair in pairs],
        "descriptors": [_descriptor(report) for report in descriptors],
    }


def _descriptor(report: DescriptorReport) -> dict[str, Any]:
    claim, descriptor = report.claim, report.descriptor
    return {
        "file": str(report.path),
        "device": descriptor.device,
        "files": [str(file) for file in descriptor.files],
        "features": list(descriptor.features),
        "usable": report.is_right,
        "problems": list(report.problems),
        "false": list(claim.false) if claim else [],
        "silent": list(claim.silent) if claim else [],
    }


def _inspection(inspection: Inspection, claims: tuple[Claim, ...]) -> dict[str, Any]:
    image, store = inspection.image, inspection.store
    table = try_read(lambda: image.guided_table)
    sev, tdvf = try_read(lambda: image.sev_metadata), try_read(lambda: image.tdvf)
    reset = try_read(lambda: image.sev_es_reset)
    return {
        "file": image.name,
        "size": image.size,
        "role": inspection.role.value,
        "wrapper": inspection.wrapper,
        "usable": inspection.is_usable,
        "problems": list(inspection.problems),
        "table": [{"guid": guid_text(e.guid), "name": e.name, "data": e.data.hex()} for e in table.entries]
        if table
        else None,
        "sev_es_reset": None if reset is None else f"{reset:#x}",
        "kernel_hashes": _hashes(inspection),
        "launch_secret": _area(try_read(lambda: image.sev_secret)),
        "sev_metadata": [section._asdict() for section in sev.sections] if sev else None,
        "tdx_metadata": [section._asdict() for section in tdvf.sections] if tdvf else None,
        "variable_store": store._asdict() if store else None,
        "volumes": [_volume(volume) for volume in inspection.volumes],
        "verdicts": [
            {
                "guest": verdict.guest.value,
                "placement": verdict.placement.value,
                "usable": verdict.is_usable,
                "reasons": list(verdict.reasons),
            }
            for verdict in inspection.verdicts
        ],
        "descriptors": [claim._asdict() | {"descriptor": str(claim.descriptor)} for claim in claims],
    }


def _hashes(inspection: Inspection) -> dict[str, Any] | None:
    area = _area(try_read(lambda: inspection.image.sev_hashes))
    return area and area | {"use": inspection.hash_use.value}


def _area(area: GuestArea | None) -> dict[str, Any] | None:
    return area._asdict() | {"usable": area.is_usable} if area else None


def _volume(volume: FirmwareVolume) -> dict[str, Any]:
    return {
        "offset": volume.header.offset,
        "length": volume.header.length,
        "file_system": guid_text(volume.header.file_system),
        "damage": volume.damage,
        "files": [_file(file) for file in volume.files if not file.is_padding],
    }


def _file(file: FirmwareFile) -> dict[str, Any]:
    return {
        "guid": guid_text(file.guid),
        "name": file.name,
        "type": file.type_name,
        "size": file.size,
        "volumes": [_volume(volume) for volume in file.volumes],
    }
