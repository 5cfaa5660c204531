"""What a run showed, as plain data in the documented JSON form (docs/guide/boot.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord
from casemate.machine.recorder import TimedChange, TimedViolation
from casemate.machine.violation import owner

if TYPE_CHECKING:
    from casemate.machine.flash_unit import FlashUnit

    _Digest = Callable[[bytes | memoryview], str | None]


def make_report(
    machine: Machine, launch: LaunchRecord, host_facts: dict[str, Any], *, digests: bool = True
) -> dict[str, Any]:
    """Everything about a machine after its run but how it ended.

    ``host_facts`` goes into ``host``: why it was taken, and the sandbox that the guest ran in. Without ``digests``
    those of its firmware are None.
    """
    digest_of = _sha256 if digests else _no_digest
    return {
        "warnings": [*machine.warnings, *launch.warnings],
        "host": {
            "backend": machine.host_name,
            "era": machine.host_era,
            "modelled": machine.host_name == "model",
        }
        | host_facts,
        "guest": {
            "kind": str(machine.spec.kind),
            "machine": machine.spec.machine,
            "vcpus": machine.spec.vcpus,
            "memory": machine.spec.memory,
            "features": list(launch.features),
            "resets": machine.state.resets,
        },
        "flash": [_flash(machine, unit, digest_of) for unit in machine.platform.flash],
        "bios": _bios(machine, digest_of),
        "kernel": _kernel(machine),
        "protection_changes": machine.recorder.protection_count,
        "protection_audit": [_change(timed) for timed in machine.recorder.protection],
        "launch": launch.launch,
        "measurement": launch.measurement,
        "vcpus": [
            {"number": number} | facts._asdict() for number, facts in enumerate(machine.vm.vcpu_facts())
        ],
        "requests": machine.vm.guest_requests() or None,
        "writes": _writes(machine),
        "phases": [{"name": name, "at": round(at, 3)} for name, at in machine.recorder.phases.items()],
        "unclaimed": [
            {"kind": str(kind), "where": where, "count": count}
            for (kind, where), count in machine.platform.bus.unclaimed.most_common()
        ],
        "exit_port": machine.platform.devices.exit_port.value,
    }


def _writes(machine: Machine) -> dict[str, Any]:
    units = [{"unit": number} | log.to_json() for number, log in machine.recorder.flash.items()]
    return {
        "commands": sum(unit.device.commands for unit in machine.platform.flash),
        "programs": sum(unit["programs"] for unit in units),
        "erases": sum(unit["erases"] for unit in units),
        "probes": sum(unit["probes"] for unit in units) + machine.recorder.probes,
        "violations": machine.recorder.violation_count,
        "events": [_violation(machine, timed) for timed in machine.recorder.violations],
        "units": units,
    }


def _protection(machine: Machine) -> dict[str, Any]:
    choice = machine.platform.protection
    return {
        "protection": str(choice.protection),
        "reason": choice.reason,
        "rejected": [
            {"protection": str(other.protection), "reason": other.reason} for other in choice.rejected
        ],
    }


def _flash(machine: Machine, unit: FlashUnit, digest_of: _Digest) -> dict[str, Any]:
    return {
        "unit": unit.number,
        "file": str(unit.source.path),
        "input_sha256": digest_of(unit.source.data),
        # Memory that was encrypted in place shows ciphertext; a read-only unit still is what its file is.
        "sha256": digest_of(unit.source.data if unit.device.readonly else unit.memory.view),
        "gpa": unit.source.gpa,
        "size": unit.memory.size,
        "readonly": unit.device.readonly,
    } | _protection(machine)


def _bios(machine: Machine, digest_of: _Digest) -> dict[str, Any] | None:
    if machine.spec.bios is None:
        return None
    image = machine.firmware[0]
    digest = digest_of(image.data)
    return {
        "file": str(image.path),
        "input_sha256": digest,
        "sha256": digest,
        "gpa": image.gpa,
        "size": len(image.data),
    } | _protection(machine)


def _sha256(data: bytes | memoryview) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


def _no_digest(data: bytes | memoryview) -> None:
    """Of what nobody is going to read."""


def _kernel(machine: Machine) -> dict[str, Any] | None:
    spec = machine.spec
    if spec.kernel is None:
        return None
    return {
        "file": str(spec.kernel),
        "initrd": str(spec.initrd) if spec.initrd else None,
        "append": spec.append,
        "started_by": "casemate" if spec.is_direct else "firmware",
    }


def _change(timed: TimedChange) -> dict[str, Any]:
    return {
        "what": str(timed.event.what),
        "unit": timed.event.unit,
        "why": timed.event.why,
        "at": round(timed.at, 3),
    }


def _violation(machine: Machine, timed: TimedViolation) -> dict[str, Any]:
    event = timed.event
    return {
        "kind": str(event.kind),
        "unit": event.unit,
        "gpa": event.gpa,
        "size": event.size,
        "value": event.value,
        "rip": event.rip,
        "instruction": event.instruction,
        "path": event.path and str(event.path),
        "vcpu": event.vcpu,
        "owner": owner(machine, event),
        "at": round(timed.at, 3),
    }
