"""The stages of a launch as types: only the one before makes the next (docs/design/confidential.md).

LaunchStarted --measure--> LaunchMeasured --finish--> LaunchFinished --ready--> the machine may run
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.confidential import sev
from casemate.confidential.features import feature_names
from casemate.confidential.launch_report import launch_report
from casemate.confidential.preparation import (
    AttestationRequest,
    LaunchAbandoned,
    LaunchSecret,
    PreparedLaunch,
)
from casemate.confidential.snp import launch_snp
from casemate.confidential.traced import TracedProcessor
from casemate.confidential.warnings import launch_warnings
from casemate.digest.measurement import PlatformVersion, predict_measurement
from casemate.errors import InsecureError, InternalError
from casemate.host.secure_processor import LaunchMeasurement, LaunchSession
from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending, LaunchRecord
from casemate.memory.backing import Backing


@dataclass(frozen=True, slots=True)
class _Launch:
    """What all stages know."""

    machine: Machine
    prepared: PreparedLaunch
    processor: TracedProcessor


class LaunchStarted(_Launch):
    """The guest has a key; whatever memory the machine gets from now on is registered while it is still writable."""

    @classmethod
    def start(cls, machine: Machine, prepared: PreparedLaunch, processor: TracedProcessor) -> LaunchStarted:
        """LAUNCH_START on the VM of a machine that was just created."""
        processor.launch_start(prepared.policy, _session(prepared, processor))

        def register(backing: Backing) -> None:
            processor.register_region(backing.writable.hva, backing.size)

        machine.platform.on_memory = register
        return cls(machine, prepared, processor)

    def measure(self) -> LaunchMeasured:
        """Place memory and firmware, measure them as planned, and check the measurement.

        Raises InsecureError if the secure processor measured something else.
        """
        self.machine.register_memory()
        self.machine.place_firmware()
        sev.execute(self.prepared.plan, self.machine, self.processor, self.prepared.vcpus)
        measurement = self.processor.launch_measure()
        verified = _verify(self.prepared, self.processor.version, measurement)
        return LaunchMeasured(self.machine, self.prepared, self.processor, measurement, verified)


@dataclass(frozen=True, slots=True)
class LaunchMeasured(_Launch):
    """The digest is closed; ``is_verified`` says whether the measurement proves it, None that nobody has the key."""

    measurement: LaunchMeasurement
    is_verified: bool | None

    def finish(self) -> LaunchFinished:
        """Ask the owner, hand over the secret, if there is one, and close the launch."""
        options, secret = self.prepared.options, self.prepared.options.secret
        if options.attest is not None:
            secret = options.attest(self._request())
        if secret is not None:
            self._inject(secret)
        self.processor.launch_finish()
        return LaunchFinished(self.machine, self.prepared, self.processor, self.measurement, self.is_verified)

    def record(self) -> LaunchRecord:
        """What the launch showed so far."""
        return LaunchRecord(
            features=tuple(feature_names(self.prepared.setup.features)),
            launch=launch_report(self.prepared, self.processor.state, self.processor.commands),
            measurement=_report_measurement(self),
            warnings=tuple(launch_warnings(self.prepared)),
        )

    def _inject(self, secret: LaunchSecret) -> None:
        sev.inject(secret, self.machine, self.processor)

    def _request(self) -> AttestationRequest:
        prepared = self.prepared
        return AttestationRequest(
            kind=prepared.spec.kind,
            firmware=prepared.image.name,
            measurement=self.measurement,
            policy=prepared.policy,
            version=self.processor.version,
            digest=prepared.digest,
            secret_area=prepared.image.sev_secret,
            inject=self._inject,
        )


class LaunchFinished(LaunchMeasured):
    """The guest may run."""

    def ready(self) -> LaunchRecord:
        """The machine's last stage; a guest that this host cannot run as it is ends here, saying why."""
        self.machine.ready()
        if reason := self.prepared.stops_after_launch:
            self.machine.state.end(Ending.LAUNCHED, f"launched, and not run: {reason}")
        return self.record()


def launch(machine: Machine, prepared: PreparedLaunch) -> LaunchRecord:
    """Take a created machine through its launch to its last stage, and return what the launch showed.

    Where the run was ended while the owner was asked, the machine has its ending and is never run. Raises what went
    wrong; the machine is then not ready to run and never will be.
    """
    if prepared.spec.kind is GuestKind.SNP:
        return launch_snp(machine, prepared)
    processor = machine.vm.secure_processor
    if processor is None:
        raise InternalError("this VM has no secure processor")
    measured = LaunchStarted.start(machine, prepared, TracedProcessor(processor)).measure()
    try:
        return measured.finish().ready()
    except LaunchAbandoned:
        return measured.record()


def _session(prepared: PreparedLaunch, processor: TracedProcessor) -> LaunchSession | None:
    options = prepared.options
    if options.session is not None or options.keys is None:
        return options.session

    from casemate.owner.session import make_session

    return make_session(processor.pdh, prepared.policy, options.keys).launch


def _verify(
    prepared: PreparedLaunch, version: tuple[int, int, int], measurement: LaunchMeasurement
) -> bool | None:
    keys = prepared.options.keys
    if keys is None:
        return None
    expected = predict_measurement(
        prepared.digest, keys.tik, measurement.nonce, prepared.policy, PlatformVersion(*version)
    )
    if not hmac.compare_digest(expected, measurement.mac):
        raise InsecureError(
            f"the launch measurement does not prove the digest {prepared.digest.hex()}",
            "the host launched something else, or the session has another TIK: give this guest no secret",
        )
    return True


def _report_measurement(launch: LaunchMeasured) -> dict[str, Any]:
    major, minor, build = launch.processor.version
    return {
        "mac": launch.measurement.mac.hex(),
        "nonce": launch.measurement.nonce.hex(),
        "api_major": major,
        "api_minor": minor,
        "build_id": build,
        "verified": launch.is_verified,
        "note": _verification(launch),
    }


def _verification(launch: LaunchMeasured) -> str:
    if launch.is_verified:
        return "verified with the TIK"
    if launch.prepared.options.attest is not None and isinstance(launch, LaunchFinished):
        return "accepted by the guest owner, who was asked"
    return "unverified: no TIK"
