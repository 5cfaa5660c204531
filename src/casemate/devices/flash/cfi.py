"""The command state machine of a flash unit (JEDEC JESD68.01, behaviour of QEMU hw/block/pflash_cfi01.c)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.address import PAGE_SIZE
from casemate.devices.flash import spec
from casemate.devices.flash.file import FlashFile
from casemate.events import EventSink, FlashAction, FlashCommand, Violation, ViolationKind
from casemate.host.hypervisor import FlashProgram
from casemate.memory.flash_memory import FlashMemory

_ARRAY_COMMANDS = frozenset({spec.READ_ARRAY, spec.READ_ARRAY_AMD, spec.READ_ARRAY_ZERO, spec.CLEAR_STATUS})
_ONE_CYCLE_COMMANDS = frozenset({spec.READ_STATUS, spec.READ_IDENT})
_PROGRAM_COMMANDS = (spec.PROGRAM, spec.PROGRAM_ALTERNATE)
_PROBES = frozenset({spec.CLEAR_STATUS, spec.READ_STATUS, spec.READ_IDENT, spec.QUERY})
_TWO_CYCLE_COMMANDS = frozenset(
    {spec.PROGRAM, spec.PROGRAM_ALTERNATE, spec.ERASE, spec.LOCK_SETUP, spec.QUERY, spec.BUFFERED_PROGRAM}
)
_COMMANDS = _ARRAY_COMMANDS | _ONE_CYCLE_COMMANDS | _TWO_CYCLE_COMMANDS
_STATUS_COMMANDS = _TWO_CYCLE_COMMANDS - {spec.QUERY} | {spec.READ_STATUS}
_HARMLESS = _ARRAY_COMMANDS | _PROBES | {spec.LOCK_SETUP, *_PROGRAM_COMMANDS}
"""First cycles that change nothing by themselves."""
_ACCEPTED = frozenset(
    {(spec.ERASE, spec.CONFIRM), (spec.LOCK_SETUP, spec.CONFIRM), (spec.LOCK_SETUP, spec.LOCK)}
)
_ERASED_SECTOR = b"\xff" * spec.SECTOR_SIZE
_NO_COMMAND = 0x00

OnChange = Callable[[int, bytes, bytes], bytes]
"""Takes the offset, the old and the new bytes."""


class CfiFlash:
    """Flash ``unit``: decodes the stores that reach it, and keeps ``memory`` and ``file`` the same.

    Without a file, contents live as long as the guest. A read-only unit answers commands and changes nothing; cycles
    that would have changed it are violations. ``commands`` counts the first cycles that were a command,
    ``violations`` the stores that were reported.
    """

    def __init__(
        self,
        unit: int,
        memory: FlashMemory,
        file: FlashFile | None,
        sink: EventSink,
        *,
        readonly: bool = False,
    ) -> None:
        self.unit = unit
        self.readonly = readonly or (file is not None and file.readonly)
        self.commands = 0
        self.violations = 0
        self._memory = memory
        self._file = file
        self._sink = sink
        self._query = spec.query_table(memory.size)
        self._cycle = 0
        self._command = _NO_COMMAND
        self._status = spec.STATUS_READY
        self._words_left = 0
        self._buffer: bytearray | None = None
        self._buffer_start = 0
        self.on_change: OnChange | None = None
        """Asked before each change of the array what really gets there."""
        self._cycles = (self._first_cycle, self._second_cycle, self._buffer_cycle, self._confirm_cycle)

    @property
    def status(self) -> int:
        """The status register."""
        return self._status

    def reset(self) -> None:
        """Back to array mode; contents stay."""
        self._status = spec.STATUS_READY
        self._read_array()

    def read_mmio(self, offset: int, size: int) -> int | None:
        """Load of 1, 2, 4 or 8 bytes: contents, status, identifier or query table, by the last command."""
        if not 0 <= offset <= self._memory.size - size:
            return None
        command = self._command
        if command == _NO_COMMAND:
            return int.from_bytes(self._memory.view[offset : offset + size], "little")
        if size == 8:
            return self._answer(offset, 4) | self._answer(offset + 4, 4) << 32
        return self._answer(offset, size)

    def write_mmio(self, offset: int, size: int, value: int) -> bool:
        """Store of 1, 2, 4 or 8 bytes: one write cycle, or two for 8 bytes."""
        if not 0 <= offset <= self._memory.size - size:
            return False
        if self.readonly and (size == 8 or not self._is_harmless(offset, size, value)):
            self._violation(ViolationKind.READONLY_UNIT, offset, size, value)
        if size == 8:
            self._cycles[self._cycle](offset, 4, value & 0xFFFFFFFF)
            self._cycles[self._cycle](offset + 4, 4, value >> 32)
        else:
            self._cycles[self._cycle](offset, size, value)
        return True

    def _is_harmless(self, offset: int, size: int, value: int) -> bool:
        """Whether this cycle would leave the array as it is if the unit were not read-only."""
        if self._cycle == 0:
            return value & 0xFF in _HARMLESS
        if self._cycle == 1 and self._command in _PROGRAM_COMMANDS:
            # So edk2 finds out whether it may write.
            return self._memory.read(offset, size) == _to_bytes(size, value)
        return self._cycle == 1 and self._command in (spec.LOCK_SETUP, spec.QUERY)

    def _answer(self, offset: int, size: int) -> int:
        if self._command in _STATUS_COMMANDS:
            # The upper half of a wide bus would be a second chip.
            return self._status | self._status << 16 if size > 2 else self._status
        if self._command == spec.QUERY:
            index = offset & 0xFF
            return self._query[index] if index < len(self._query) else 0
        return 0  # identifiers of the PC's flash are all zero

    def _first_cycle(self, offset: int, size: int, value: int) -> None:
        command = value & 0xFF
        if command not in _COMMANDS and not self.readonly:
            self._violation(ViolationKind.NOT_A_COMMAND, offset, size, value)
        if command in _ONE_CYCLE_COMMANDS:
            self._begin(command, 0)
        elif command in _TWO_CYCLE_COMMANDS:
            self._begin(command, 1)
            if command == spec.ERASE:
                self._erase(offset & ~(spec.SECTOR_SIZE - 1))
            elif command == spec.BUFFERED_PROGRAM:
                self._status |= spec.STATUS_READY
        else:
            if command == spec.CLEAR_STATUS:
                self._status = 0
            self._read_array()
        if command in _COMMANDS:
            self.commands += 1
        if command in _PROBES:
            self._sink.report(FlashCommand(self.unit, FlashAction.PROBE, offset, size))

    def _second_cycle(self, offset: int, size: int, value: int) -> None:
        command, data = self._command, value & 0xFF
        if command in _PROGRAM_COMMANDS:
            if self.readonly:
                self._status |= spec.STATUS_PROGRAM_ERROR
                if self._is_harmless(offset, size, value):
                    self._sink.report(FlashCommand(self.unit, FlashAction.PROBE, offset, size))
            else:
                self._store(FlashAction.PROGRAM, offset, _to_bytes(size, value))
            self._finish()
            if self._programs_may_be_late:
                self._memory.answer_programs(self._take_programs)
        elif command == spec.BUFFERED_PROGRAM:
            self._words_left = data
            self._cycle = 2
        elif (command, data) in _ACCEPTED:
            if command == spec.LOCK_SETUP:
                self._sink.report(FlashCommand(self.unit, FlashAction.LOCK, offset, size))
            self._finish()
        elif command != spec.QUERY or data == spec.READ_ARRAY:
            self._read_array()

    @property
    def _programs_may_be_late(self) -> bool:
        """Whether further programs, until something else happens, change nothing that must be seen at once."""
        is_ready = self._status == spec.STATUS_READY and not self.readonly and self.on_change is None
        return is_ready and (self._file is None or not self._file.writes_through)

    def _take_programs(self, programs: list[FlashProgram]) -> None:
        """Make programs that the host answered. Neighbours in a page are stored in one go."""
        report, unit, action = self._sink.report, self.unit, FlashAction.PROGRAM
        start, data = programs[0].offset, bytearray()
        for offset, size, value, ago in programs:
            if offset != start + len(data) or not offset % PAGE_SIZE:
                self._store_run(start, data)
                start, data = offset, bytearray()
            report(FlashCommand(unit, action, offset, size, ago))
            data += _to_bytes(size, value)
        self._store_run(start, data)
        self.commands += len(programs)

    def _store_run(self, start: int, data: bytes | bytearray) -> None:
        self._memory.store(start, data)
        if self._file is not None:
            self._file.write_back(start, data)

    def _buffer_cycle(self, offset: int, size: int, value: int) -> None:
        if self._buffer is None:
            # The first data word says which block. (Of QEMU some versions go by the word count, some refuse one word.)
            self._buffer_start = offset & ~(spec.WRITE_BLOCK_SIZE - 1)
            self._buffer = bytearray(self._memory.read(self._buffer_start, spec.WRITE_BLOCK_SIZE))
        start = offset - self._buffer_start
        fits = 0 <= start <= spec.WRITE_BLOCK_SIZE - size
        if self.readonly or self._buffer is None or not fits:
            self._status |= spec.STATUS_PROGRAM_ERROR
        else:
            self._buffer[start : start + size] = _to_bytes(size, value)
        self._status |= spec.STATUS_READY
        if self._words_left == 0:
            self._cycle = 3
        else:
            self._words_left -= 1

    def _confirm_cycle(self, offset: int, size: int, value: int) -> None:
        confirmed = value & 0xFF == spec.CONFIRM and not self._status & spec.STATUS_PROGRAM_ERROR
        if self._buffer is not None and confirmed:
            self._store(FlashAction.PROGRAM, self._buffer_start, self._buffer)
            self._buffer = None
            self._finish()
        else:
            self._read_array()

    def _begin(self, command: int, cycle: int) -> None:
        self._memory.leave_array_mode()
        self._command, self._cycle = command, cycle

    def _finish(self) -> None:
        self._status |= spec.STATUS_READY
        self._cycle = 0

    def _read_array(self) -> None:
        self._command, self._cycle, self._buffer = _NO_COMMAND, 0, None
        self._memory.enter_array_mode()

    def _erase(self, start: int) -> None:
        if self.readonly:
            self._status |= spec.STATUS_ERASE_ERROR
        else:
            self._store(FlashAction.ERASE, start, _ERASED_SECTOR)
        self._status |= spec.STATUS_READY

    def _store(self, action: FlashAction, offset: int, data: bytes | bytearray) -> None:
        self._sink.report(FlashCommand(self.unit, action, offset, len(data)))
        if self.on_change is not None:
            data = self.on_change(offset, self._memory.read(offset, len(data)), bytes(data))
        self._store_run(offset, data)

    def _violation(self, kind: ViolationKind, offset: int, size: int, value: int) -> None:
        self.violations += 1
        gpa = None if self._memory.gpa is None else self._memory.gpa + offset
        self._sink.report(Violation(kind, self.unit, gpa, size, value, path=self._memory.store_path))


def _to_bytes(size: int, value: int) -> bytes:
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")
