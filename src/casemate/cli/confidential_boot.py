"""What ``casemate boot`` does for confidential guests alone; plain ones do not load it (docs/guide/confidential.md)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.cli.confidential_options import dry_run_text, launch_options, write_attestation
from casemate.cli.state_folder import model_platform_folder
from casemate.confidential.dry_run import dry_run
from casemate.confidential.dry_run_tdx import dry_run_tdx
from casemate.confidential.preparation import AttestationRequest, LaunchSecret, PreparedLaunch, prepare
from casemate.confidential.warnings import launch_warnings
from casemate.host.clock import GuestClock
from casemate.machine.host_choice import HostChoice
from casemate.machine.outcome import LaunchRecord
from casemate.machine.spec import MachineSpec


class ConfidentialBoot:
    """The launch that the options ask for; ``owner`` is a guest owner whom no option names.

    Raises SpecError before any file is looked for.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        owner: Callable[[AttestationRequest], LaunchSecret | None] | None,
    ) -> None:
        self._args = args
        self._options = launch_options(args, owner)
        self.prepared: PreparedLaunch | None = None
        """The launch once it is prepared; None for a guest that is never launched."""

    @property
    def platform_folder(self) -> Path | None:
        """Where the platform's keys are that the owner's session was made for."""
        return None if self._args.session_file is None else model_platform_folder()

    def prepare(self, spec: MachineSpec, chosen: HostChoice) -> None:
        """Prepare the launch; a dry run is printed, and leaves nothing to start."""
        host = chosen.make(GuestClock())
        if spec.kind is GuestKind.TDX:
            self._print(dry_run_tdx(spec))
            return
        prepared = prepare(spec, self._options, host)
        if self._args.dry_run:
            self._print(dry_run(prepared, host))
        else:
            self.prepared = prepared

    def warnings(self) -> list[str]:
        """What the user should know about the launch."""
        return launch_warnings(self.prepared) if self.prepared else []

    def keep_attestation(self, record: LaunchRecord) -> None:
        """Write report and certificates where ``--attestation`` says. Raises HostError."""
        if self._args.attestation is not None and record.attestation is not None:
            write_attestation(
                self._args.attestation, record.attestation.report, record.attestation.certificates
            )

    def _print(self, plan: dict[str, object]) -> None:
        print(json.dumps(plan, indent=2) if self._args.json else dry_run_text(plan))
