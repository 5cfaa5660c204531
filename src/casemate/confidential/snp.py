"""Launches an SNP guest between the machine's stages (Linux x86/amd-memory-encryption.rst; QEMU target/i386/sev.c).

Its memory is private from the start and is filled out of host memory, which the guest never sees: no protection is
armed or lifted.
"""

from __future__ import annotations

import ctypes
import hmac
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EAGAIN
from typing import Any

from casemate.abi.sev.commands import SevCommand
from casemate.abi.sev.report import AttestationReport
from casemate.abi.sev.snp import SnpPageType
from casemate.abi.sev.snp_pages import CpuidFunction, CpuidPage
from casemate.abi.sev.status import SevStatus, refused
from casemate.address import PAGE_SIZE, Hva
from casemate.confidential.features import feature_names
from casemate.confidential.launch_report import launch_report
from casemate.confidential.preparation import PreparedLaunch
from casemate.confidential.traced import TracedCommand
from casemate.confidential.warnings import launch_warnings
from casemate.digest.steps import SnpPages
from casemate.errors import FirmwareStatusError, HostError, InsecureError, InternalError, SpecError
from casemate.host.snp_processor import SnpProcessor, SnpUpdate
from casemate.machine.machine import Machine
from casemate.machine.outcome import Attestation, Ending, LaunchRecord
from casemate.memory.region import Ram

SET_ATTRIBUTES = "KVM_SET_MEMORY_ATTRIBUTES"
_REGISTERS = ("eax", "ebx", "ecx", "edx")


@dataclass(frozen=True, slots=True)
class SnpStarted:
    """SNP_LAUNCH_START is done; ``commands`` are those that were begun, also the one that failed."""

    machine: Machine
    prepared: PreparedLaunch
    processor: SnpProcessor
    commands: list[TracedCommand]

    @classmethod
    def start(cls, machine: Machine, prepared: PreparedLaunch) -> SnpStarted:
        """SNP_LAUNCH_START on the VM of a machine that was just created."""
        processor = machine.vm.snp_processor
        if processor is None:
            raise InternalError("this VM has no secure processor for SNP")
        started = cls(machine, prepared, processor, [])
        started.note(SevCommand.SNP_LAUNCH_START.kernel_name, f"policy {prepared.policy:#x}")
        processor.launch_start(prepared.policy, prepared.options.gosvw)
        return started

    def finish(self) -> SnpFinished:
        """Place memory and firmware, launch them as planned, and check a report where one can be had.

        Raises HostError, FirmwareStatusError or SpecError, InsecureError if something else was launched.
        """
        self.machine.register_memory()
        self.machine.place_firmware()
        for slot in self.machine.platform.map.slots:
            self.note(SET_ATTRIBUTES, f"{slot.range.size:#x} bytes at {slot.range.start:#x}: private")
            self.processor.set_private(slot.range)
        for step in self.prepared.plan.steps:
            if isinstance(step, SnpPages):
                self._update(step)
        vcpus = self.prepared.vcpus
        self.note(SevCommand.SNP_LAUNCH_FINISH.kernel_name, f"{len(vcpus)} vCPUs")
        self.processor.launch_finish(self.prepared.options.snp, vcpus)
        report = self.processor.guest_report(self.prepared.options.report_data)
        if report is not None:
            _check(report, self.prepared)
        return SnpFinished(self.machine, self.prepared, self.processor, self.commands, report)

    def note(self, command: str, detail: str) -> None:
        """Write down what is asked next."""
        self.commands.append(TracedCommand(command, detail))

    def _update(self, pages: SnpPages) -> None:
        _validate_memory(pages, self.machine)
        with _source(pages, self.processor) as hva:
            update = SnpUpdate(pages.gpa, hva, pages.size, pages.page_type)
            self.note(SevCommand.SNP_LAUNCH_UPDATE.kernel_name, describe_pages(pages))
            before = ctypes.string_at(hva, PAGE_SIZE)
            try:
                run_update(self.processor, update)
            except FirmwareStatusError as error:
                if pages.page_type is SnpPageType.CPUID and error.status == SevStatus.INVALID_PARAM:
                    after = ctypes.string_at(hva, PAGE_SIZE)
                    words = "; ".join(cpuid_corrections(before, after)) or "it does not say which"
                    raise refused(error.command, error.status, words, snp=True) from error
                raise


@dataclass(frozen=True, slots=True)
class SnpFinished(SnpStarted):
    """The guest may run; ``report`` is what it would be given now, None where nobody but the guest can ask."""

    report: bytes | None

    def ready(self) -> LaunchRecord:
        """The machine's last stage; a guest that this host cannot run ends here, saying why."""
        machine, prepared = self.machine, self.prepared
        machine.ready()
        if reason := prepared.stops_after_launch:
            machine.state.end(Ending.LAUNCHED, f"launched, and not run: {reason}")
        return LaunchRecord(
            features=tuple(feature_names(prepared.setup.features)),
            launch=launch_report(prepared, self.processor.state, self.commands),
            measurement=_report_measurement(self.report),
            attestation=self._attestation(),
            warnings=tuple(launch_warnings(prepared)),
        )

    def _attestation(self) -> Attestation | None:
        return None if self.report is None else Attestation(self.report, self.processor.certificates)


def describe_pages(pages: SnpPages) -> str:
    """A step in words."""
    return f"{pages.what}, {pages.page_type.name}, {pages.size:#x} bytes at {pages.gpa:#x}"


def _report_measurement(report: bytes | None) -> dict[str, Any]:
    if report is None:
        return {
            "measurement": None,
            "verified": None,
            "note": "only the running guest can ask for its report",
        }
    shown = bytes(AttestationReport.from_bytes(report).measurement).hex()
    return {"measurement": shown, "verified": True, "note": "out of a modelled report"}


def run_update(processor: SnpProcessor, update: SnpUpdate) -> None:
    """SNP_LAUNCH_UPDATE until nothing is left: the kernel may be interrupted, and says how far it came."""
    while update.size:
        before = update.size
        try:
            processor.launch_update(update)
        except HostError as error:
            if error.errno != EAGAIN or update.size == before:
                raise


def cpuid_corrections(before: bytes, after: bytes) -> Iterator[str]:
    """What the firmware changed in a table that it refused, one text for each register."""
    given, corrected = CpuidPage.from_bytes(before), CpuidPage.from_bytes(after)
    if given.count != corrected.count:
        yield f"{given.count} entries, and the firmware takes {corrected.count}"
        return
    for entry, expected in zip(given.used(), corrected.used(), strict=True):
        for register in _REGISTERS:
            have, want = getattr(entry, register), getattr(expected, register)
            if have != want:
                yield f"{_leaf(entry)} {register} {have:#x}, and the firmware takes {want:#x}"


def _leaf(entry: CpuidFunction) -> str:
    return f"leaf {entry.eax_in:#x} index {entry.ecx_in:#x}"


@contextmanager
def _source(pages: SnpPages, processor: SnpProcessor) -> Iterator[Hva]:
    """Host memory with what the pages shall hold; the firmware fills in secrets by itself."""
    with mmap.mmap(-1, pages.size) as memory:
        data = processor.cpuid_table().to_bytes() if pages.page_type is SnpPageType.CPUID else pages.data
        memory[: len(data)] = data
        start = ctypes.c_char.from_buffer(memory)
        try:
            yield Hva(ctypes.addressof(start))
        finally:
            del start


def _validate_memory(pages: SnpPages, machine: Machine) -> None:
    found = machine.platform.map.find(pages.gpa)
    end = machine.platform.map.find(pages.gpa + pages.size - 1)
    if found is None or end is None or found[0] is not end[0] or not isinstance(found[0], Ram):
        where = f"[{pages.gpa:#x}, {pages.gpa + pages.size:#x})"
        cause = f"{pages.what} belongs at {where}, where this guest has no RAM"
        raise SpecError(cause, "give it more --memory")


def _check(report: bytes, prepared: PreparedLaunch) -> None:
    shown = bytes(AttestationReport.from_bytes(report).measurement)
    if not hmac.compare_digest(shown, prepared.digest):
        raise InsecureError(
            f"the guest's report shows the digest {shown.hex()}, predicted is {prepared.digest.hex()}",
            "the host launched something else: do not trust this guest",
        )


def launch_snp(machine: Machine, prepared: PreparedLaunch) -> LaunchRecord:
    """Take a created machine through an SNP launch to its last stage, and return what the launch showed.

    Raises what went wrong.
    """
    return SnpStarted.start(machine, prepared).finish().ready()
