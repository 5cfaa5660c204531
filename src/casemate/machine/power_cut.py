"""Power that fails at a chosen flash command, and the journal to choose from (docs/guide/power-cuts.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from casemate.machine.machine import Machine
from casemate.machine.outcome import Ending

VARIABLES_UNIT = 1


class FlashChange(NamedTuple):
    """A command that changed the array: the first byte, and what was and is there."""

    offset: int
    old: bytes
    new: bytes


class FlashJournal:
    """Keeps every change of the variable store, in order."""

    def __init__(self) -> None:
        self.changes: list[FlashChange] = []

    def attach(self, machine: Machine) -> None:
        """Listen to a machine that has not run yet."""
        for unit in machine.platform.flash[VARIABLES_UNIT:]:
            unit.device.on_change = self._on_change

    def _on_change(self, offset: int, old: bytes, new: bytes) -> bytes:
        self.changes.append(FlashChange(offset, old, new))
        return new


class PowerCut:
    """Ends the run at the ``number``-th change of the variable store (from 1), which it tears."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._count = 0
        self._machine: Machine | None = None

    def attach(self, machine: Machine) -> None:
        """Take the power of a machine that has not run yet."""
        self._machine = machine
        for unit in machine.platform.flash[VARIABLES_UNIT:]:
            unit.device.on_change = self._on_change

    def _on_change(self, offset: int, old: bytes, new: bytes) -> bytes:
        self._count += 1
        if self._count < self.number or self._machine is None:
            return new
        if self._count > self.number:
            return old  # until the CPU has really stopped
        detail = f"the power failed at flash command {self.number}, at offset {offset:#x}, {len(new)} bytes"
        self._machine.state.end(Ending.POWER_CUT, detail)
        return torn(old, new)


def torn(old: bytes, new: bytes) -> bytes:
    """What a cut leaves of a change: its first half, of a single byte the low four bits."""
    if len(new) == 1:
        return bytes((old[0] & 0xF0 | new[0] & 0x0F,))
    half = len(new) // 2
    return new[:half] + old[half:]


def store_after_cut(template: bytes, changes: Sequence[FlashChange], number: int) -> bytes:
    """The store that a cut at change ``number`` (from 1) leaves, if it was ``template`` at first."""
    store = bytearray(template)
    for change in changes[: number - 1]:
        store[change.offset : change.offset + len(change.new)] = change.new
    last = changes[number - 1]
    store[last.offset : last.offset + len(last.new)] = torn(last.old, last.new)
    return bytes(store)
