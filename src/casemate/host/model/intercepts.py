"""Accesses that leave the modelled CPU: ports and MMIO go to the bus, writes to protected memory become faults.

Source: Linux Documentation/virt/kvm/api.rst (KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_MEM_READONLY) for what goes where.

A write that its slot does not take is either made on the bus at once, and ignored by the engine, or undone with its
instruction; then ``finish`` does the rest while the engine stands between two instructions.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

from casemate.abi.kvm.exit_reasons import InternalErrorSuberror
from casemate.abi.kvm.write_outcome import WriteOutcome
from casemate.address import GuestRange
from casemate.host.exits import KvmInternalError, MemoryFault, NestedFaultLoop
from casemate.host.hypervisor import FlashProgram, IoBus
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.hooks import (
    REFUSED_WRITE,
    Callbacks,
)
from casemate.host.model.cpu.records import (
    MmioRead,
    MmioWrite,
    PortRead,
    PortWrite,
    WriteDecider,
)
from casemate.host.model.cpu.unicorn_api import unicorn_const
from casemate.host.model.kvm_emulator import PortInput, WriteJudge
from casemate.host.model.slots import SlotTable
from casemate.host.slots import MemorySlot

_INVALID_OPCODE, _PAGE_FAULT = 6, 14
"""Vectors."""


class _Undone(NamedTuple):
    """A write whose instruction did not happen."""

    outcome: WriteOutcome
    gpa: int
    size: int
    value: int


class AccessIntercepts:
    """The engine's memory and port callbacks. An exception in one of them ends the run and is kept in ``error``.

    ``readonly_slot`` and ``readonly_mapping`` say how a write ends that the slot or its mapping does not take. Of a
    ``sealed`` guest the host learns no more than that there was one. With ``judge`` it depends on the instruction, too.
    """

    def __init__(
        self,
        engine: Engine,
        slots: SlotTable,
        readonly_slot: WriteOutcome,
        readonly_mapping: WriteOutcome,
        *,
        protected: bool,
        encrypted: bool = False,
    ) -> None:
        self.bus = cast(IoBus, None)
        self.fault: MemoryFault | NestedFaultLoop | KvmInternalError | None = None
        self._slots = slots
        self.judge: WriteJudge | None = None
        self.port_input: PortInput | None = None
        self._engine = engine
        self._ends = {True: readonly_slot, False: readonly_mapping}
        self._protected = protected
        self._aliases = (0, 1 << C_BIT) if encrypted else (0,)
        self._mask = ~(1 << C_BIT) if encrypted else -1
        self._undone: _Undone | None = None
        self._programmed: GuestRange | None = None
        self._trapped: set[tuple[int, int]] = set()
        self._raising: set[tuple[int, int]] = set()
        engine.hooks.call_back(
            Callbacks(
                PortRead(self._read_port),
                PortWrite(self._write_port),
                MmioRead(self._read_mmio),
                MmioWrite(self._write_mmio),
                WriteDecider(self._decide),
            )
        )

    def intercept_writes(self, slot: MemorySlot) -> None:
        """Catch writes to a slot that does not take them.

        A range once trapped stays so: the hook costs nothing where writes are refused, and stays out of others.
        """
        first, last = int(slot.range.start), int(slot.range.end) - 1
        if (first, last) in self._trapped:
            return
        self._trapped.add((first, last))
        kind = unicorn_const.UC_HOOK_MEM_WRITE_PROT
        for alias in self._aliases:
            self._engine.hook(kind, "hook_refused_store", begin=first | alias, end=last | alias)

    def raise_vc_at(self, first: int, last: int) -> None:
        """Accesses to unmapped memory raise the #VC of a nested page fault."""
        if (first, last) not in self._raising:
            self._raising.add((first, last))
            kinds = unicorn_const.UC_HOOK_MEM_READ_UNMAPPED | unicorn_const.UC_HOOK_MEM_WRITE_UNMAPPED
            self._engine.hook(kinds, "hook_unmapped", begin=first, end=last)

    def answer_programs(self, where: GuestRange, take: Callable[[list[FlashProgram]], None]) -> None:
        """Let the hooks note programs of a flash unit. A command whose data did not come yet goes to the bus."""
        hooks = self._engine.hooks
        if self._programmed != where:
            self._programmed = where

            def hand_over(count: int, has_pending: int) -> None:
                try:
                    if count:
                        take(hooks.programs(count))
                    if has_pending:
                        offset, size, value = hooks.pending_command()
                        self.bus.write_mmio(where.start + offset, size, value)
                except BaseException as error:
                    self._fail(error)

            hooks.take_programs(where, hand_over)
        hooks.note_programs()

    def finish(self) -> None:
        """Do what is to be done instead of the undone instruction, RIP on it."""
        assert self._undone is not None
        undone, self._undone = self._undone, None
        try:
            if undone.outcome is WriteOutcome.INPUT and self.port_input is not None:
                self.port_input.execute(self.bus)
            elif undone.outcome is WriteOutcome.INTERNAL_ERROR:
                self._give_up()
            elif undone.outcome is WriteOutcome.EFAULT:
                self._record_fault(undone.gpa, undone.size, undone.value)
        except BaseException as error:
            self._fail(error)

    def _decide(self) -> int:
        """0 if the engine is to ignore the write, else the exception that undoes its instruction."""
        record = self._engine.hooks.record
        outcome = self._take_write(record.store_gpa & self._mask, record.store_size, record.store_value)
        if outcome is WriteOutcome.UNDEFINED:
            self._undone = None  # the engine delivers this one by itself
            return _INVALID_OPCODE
        if outcome is WriteOutcome.INPUT and self.port_input is not None:
            error_code = self.port_input.page_fault()
            if error_code is not None:
                self._undone = None
                return _PAGE_FAULT | error_code << 16
        return 0 if outcome is WriteOutcome.MMIO else REFUSED_WRITE

    def _take_write(self, gpa: int, size: int, value: int) -> WriteOutcome:
        value &= (1 << 8 * size) - 1
        try:
            outcome = self._outcome(gpa)
            if outcome is WriteOutcome.MMIO:
                self.bus.write_mmio(gpa, size, value)
            else:
                self._undone = _Undone(outcome, gpa, size, value)
        except BaseException as error:
            self._fail(error)
            return WriteOutcome.MMIO
        return outcome

    def _outcome(self, gpa: int) -> WriteOutcome:
        end = self._outcome_at(gpa)
        if self.judge is None or end is WriteOutcome.LIVELOCK:
            return WriteOutcome.MMIO if end is WriteOutcome.MMIO else WriteOutcome.EFAULT
        return (
            self.judge.behind_readonly_slot()
            if end is WriteOutcome.MMIO
            else self.judge.behind_readonly_mapping()
        )

    def _outcome_at(self, gpa: int) -> WriteOutcome:
        slot = self._slots.slot_at(gpa)
        return self._ends[slot is not None and slot.readonly]

    def _record_fault(self, gpa: int, size: int, value: int) -> None:
        if self._outcome_at(gpa) is WriteOutcome.LIVELOCK:
            self.fault = NestedFaultLoop()
        elif self._protected:
            self.fault = MemoryFault()
        else:
            self.fault = MemoryFault(gpa, size, value, self._engine.read(registers.RIP))
        self._engine.stop()

    def _give_up(self) -> None:
        text = f"KVM internal error {InternalErrorSuberror.EMULATION.name}"
        self.fault = KvmInternalError(text, self._engine.read(registers.RIP))
        self._engine.stop()

    def _read_port(self, port: int, size: int) -> int:
        try:
            return self.bus.read_port(port, size)
        except BaseException as error:
            return self._fail(error)

    def _write_port(self, port: int, size: int, value: int) -> None:
        try:
            self.bus.write_port(port, size, value)
        except BaseException as error:
            self._fail(error)

    def _read_mmio(self, gpa: int, size: int) -> int:
        try:
            return self.bus.read_mmio(gpa & self._mask, size)
        except BaseException as error:
            return self._fail(error)

    def _write_mmio(self, gpa: int, size: int, value: int) -> None:
        try:
            self.bus.write_mmio(gpa & self._mask, size, value)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> int:
        self._engine.hooks.fail(error)
        return 0
