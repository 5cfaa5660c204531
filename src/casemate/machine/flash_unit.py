"""A flash unit of a machine: its file, its memory, its command state machine and its log (docs/design/flash.md)."""

from __future__ import annotations

from typing import NamedTuple

from casemate.devices.flash.cfi import CfiFlash
from casemate.evidence.flash_log import FlashLog
from casemate.evidence.owner import owner_of
from casemate.host.hypervisor import Vm
from casemate.machine.firmware import FirmwareFile
from casemate.machine.recorder import Recorder
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.protection import WriteProtection
from casemate.memory.region import RomDevice


class FlashUnit(NamedTuple):
    """One flash unit: its file, its memory and its command state machine."""

    number: int
    source: FirmwareFile
    memory: FlashMemory
    device: CfiFlash

    def contains(self, gpa: int) -> bool:
        """Whether a guest-physical address lies in the unit."""
        return self.source.gpa <= gpa < self.source.gpa + self.memory.size

    def owner_at(self, gpa: int) -> str:
        """What of the unit's file lies at a guest-physical address."""
        offset = gpa - self.source.gpa
        return f"offset {offset:#x}, {owner_of(self.source.data, offset)}"


def make_flash_unit(
    number: int,
    source: FirmwareFile,
    backing: Backing,
    protection: WriteProtection,
    vm: Vm,
    recorder: Recorder,
    *,
    coalesced: bool,
) -> tuple[FlashUnit, RomDevice]:
    """A unit over ``backing``, which is not filled through it, and the region that shows it to the guest."""
    memory = FlashMemory(number, backing, protection, vm, recorder, coalesced=coalesced)
    device = CfiFlash(number, memory, source.file, recorder)
    recorder.watch_flash(number, FlashLog(memory.view))
    return FlashUnit(number, source, memory, device), RomDevice(f"flash{number}", backing, device)
