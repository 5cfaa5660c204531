"""What a debugger of the host's wants of a modelled CPU, for its hooks (``native/hooks/delivery.c``; Linux api.rst)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from casemate.host.model.cpu.records import CpuRecord, Watch

VECTOR_DB = 1
AT_BREAKPOINT, AT_DEBUG_REGISTER = 0x2604, 0x2605
"""Pseudo exceptions: an instruction with a breakpoint, and MOV DR that the debugger forbids."""
_STEPS, _INT3, _BLOCKS, _REGISTERS = 1, 2, 4, 8


class Stop(NamedTuple):
    """The exception, or pseudo exception, that stopped the engine, and which watches were hit, as bits."""

    what: int
    watched: int


class DebugControl:
    """Of one CPU's ``record``; ``watch_accesses`` has the engine tell of all accesses."""

    def __init__(self, record: CpuRecord, watch_accesses: Callable[[], None]) -> None:
        self._record = record
        self._watch_accesses = watch_accesses
        self._watches_data = False

    def stop_at(self, *, steps: bool, int3: bool, blocks_interrupts: bool, guards_registers: bool) -> None:
        """What stops the engine instead of being the guest's: #DB, #BP, MOV DR; and whether interrupts wait."""
        self._record.debug = (
            _STEPS * steps | _INT3 * int3 | _BLOCKS * blocks_interrupts | _REGISTERS * guards_registers
        )

    def set_breakpoints(self, places: Iterable[int]) -> None:
        """Instructions that are translated from now on stop the engine at these linear addresses, at most four."""
        self._record.breakpoint_count = 0
        for number, place in enumerate(places):
            self._record.breakpoints[number] = place
            self._record.breakpoint_count = number + 1

    def watch(self, watches: Iterable[tuple[int, int, bool]]) -> None:
        """Stop the engine behind instructions that access these, at most four: guest-physical start, end, reads, too.

        From the first call on all accesses are slow.
        """
        found = list(watches)
        if found and not self._watches_data:
            self._watches_data = True
            self._watch_accesses()
        for number, row in enumerate(found):
            self._record.watches[number] = Watch(*row)
        self._record.watch_count = len(found)

    def take_stop(self) -> Stop | None:
        """What stopped the engine for the debugger since the last time, if anything did."""
        found, self._record.debugged = self._record.debugged, 0
        watched, self._record.watch_hits = self._record.watch_hits, 0
        return Stop(found - 1, watched) if found else None
