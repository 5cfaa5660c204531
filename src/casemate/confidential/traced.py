"""A secure processor that writes down what it is asked, for the report of a launch (docs/design/confidential.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from casemate.abi.sev.commands import GuestState, SevCommand
from casemate.address import Hva
from casemate.host.secure_processor import LaunchMeasurement, LaunchSession, SecureProcessor, VcpuReset

REGISTER_REGION = "KVM_MEMORY_ENCRYPT_REG_REGION"


class TracedCommand(NamedTuple):
    """One ioctl and its arguments in words."""

    command: str
    detail: str


class TracedProcessor:
    """Passes every command on to ``processor``; ``commands`` has those that were begun, also the one that failed."""

    def __init__(self, processor: SecureProcessor) -> None:
        self.commands: list[TracedCommand] = []
        self._processor = processor

    @property
    def version(self) -> tuple[int, int, int]:
        """The firmware's version."""
        return self._processor.version

    @property
    def state(self) -> GuestState:
        """How far the launch is."""
        return self._processor.state

    @property
    def pdh(self) -> bytes:
        """The platform's certificate."""
        return self._processor.pdh

    def launch_start(self, policy: int, session: LaunchSession | None) -> None:
        """Key and policy."""
        self._note(SevCommand.LAUNCH_START, f"policy {policy:#x}, {'with a' if session else 'no'} session")
        self._processor.launch_start(policy, session)

    def register_region(self, hva: Hva, size: int) -> None:
        """Pin."""
        self.commands.append(TracedCommand(REGISTER_REGION, f"{size:#x} bytes"))
        self._processor.register_region(hva, size)

    def launch_update_data(self, hva: Hva, size: int) -> None:
        """Measure and encrypt."""
        self._note(SevCommand.LAUNCH_UPDATE_DATA, f"{size:#x} bytes")
        self._processor.launch_update_data(hva, size)

    def launch_update_vmsa(self, vcpus: Sequence[VcpuReset]) -> None:
        """Registers."""
        self._note(SevCommand.LAUNCH_UPDATE_VMSA, f"{len(vcpus)} vCPUs")
        self._processor.launch_update_vmsa(vcpus)

    def launch_measure(self) -> LaunchMeasurement:
        """Close the digest."""
        self._note(SevCommand.LAUNCH_MEASURE, "")
        return self._processor.launch_measure()

    def launch_secret(self, header: bytes, hva: Hva, data: bytes) -> None:
        """A secret packet."""
        self._note(SevCommand.LAUNCH_SECRET, f"{len(data):#x} bytes")
        self._processor.launch_secret(header, hva, data)

    def launch_finish(self) -> None:
        """The end."""
        self._note(SevCommand.LAUNCH_FINISH, "")
        self._processor.launch_finish()

    def _note(self, command: SevCommand, detail: str) -> None:
        self.commands.append(TracedCommand(command.kernel_name, detail))
