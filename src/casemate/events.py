"""Events that devices, memory and host report while a guest runs, and the sink that listens (docs/design/events.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class ViolationKind(StrEnum):
    """Why a guest access counts as a violation of firmware protection."""

    READONLY_UNIT = "store to a read-only flash unit"
    PROTECTED_MEMORY = "store to write-protected memory"
    LIVELOCK = "livelock (endless nested page fault): store of a sealed guest to a read-only slot"
    NOT_A_COMMAND = "byte that is no flash command"
    DMA = "device DMA outside of RAM"


@dataclass(frozen=True, slots=True)
class Violation:
    """A guest access to protected firmware; ``gpa``, ``value`` and ``rip`` are None where the host cannot know them."""

    kind: ViolationKind
    unit: int | None
    gpa: int | None
    size: int | None
    value: int | None
    rip: int | None = None
    instruction: str | None = None
    """The instruction at ``rip``, disassembled."""


class ProtectionAction(StrEnum):
    """What happened to the write protection of a flash unit."""

    ARMED = "armed"
    LIFTED = "lifted"


@dataclass(frozen=True, slots=True)
class ProtectionChange:
    """The protection of flash unit ``unit`` was armed or lifted; ``why`` says for what."""

    what: ProtectionAction
    unit: int
    why: str


@dataclass(frozen=True, slots=True)
class Milestone:
    """The guest showed by what it did that it reached a firmware phase (``PEI``, ``DXE``, ``BDS``, ``shell``)."""

    phase: str


Event = Violation | ProtectionChange | Milestone


class EventSink(Protocol):
    """Whoever wants to know; called on the vCPU's thread, so it must return quickly and must not raise."""

    def report(self, event: Event) -> None:
        """Take note of one event."""
