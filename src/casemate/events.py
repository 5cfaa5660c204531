"""Events that devices, memory and host report while a guest runs, and the sink that listens (docs/design/events.md)."""

from enum import StrEnum
from typing import NamedTuple, Protocol


class ViolationKind(StrEnum):
    """Why a guest access counts as a violation of firmware protection."""

    READONLY_UNIT = "write to a read-only flash unit"
    PROTECTED_MEMORY = "write to write-protected memory"
    LIVELOCK = (
        "livelock (endless nested page fault): write of a guest with protected state to a read-only slot"
    )
    NOT_A_COMMAND = "byte that is no flash command"
    DMA = "device DMA outside of RAM"


class AccessPath(StrEnum):
    """How a guest's write came to the monitor."""

    READONLY_SLOT = "write to a read-only slot"
    NO_SLOT = "write where no slot is"
    COALESCED = "write that KVM coalesced, made earlier"
    GHCB = "request by GHCB"
    FAULT = "KVM_RUN failed with EFAULT"
    USERFAULT = "userfaultfd"
    EMULATOR = "the host's instruction emulator"
    NESTED_FAULT = "nested page faults without end"
    DMA = "device DMA"


class Violation(NamedTuple):
    """A guest access to protected firmware; ``gpa``, ``value`` and ``rip`` are None where the host cannot know them."""

    kind: ViolationKind
    unit: int | None
    gpa: int | None
    size: int | None
    value: int | None
    rip: int | None = None
    instruction: str | None = None
    """The instruction at ``rip``, disassembled."""
    path: AccessPath | None = None
    vcpu: int | None = None
    """Number of the vCPU that made it, or told the device to."""


class ProtectionAction(StrEnum):
    """What happened to the write protection of a flash unit."""

    ARMED = "armed"
    LIFTED = "lifted"


class ProtectionChange(NamedTuple):
    """The protection of flash unit ``unit`` was armed or lifted; ``why`` says for what."""

    what: ProtectionAction
    unit: int
    why: str


class Milestone(NamedTuple):
    """The guest showed by what it did that it reached a firmware phase (``PEI``, ``DXE``, ``BDS``, ``shell``)."""

    phase: str


class FlashAction(StrEnum):
    """What flash commands are for."""

    PROBE = "probe"
    """Asks for status, identifier or query table, or programs a byte of a read-only unit with what it holds."""
    PROGRAM = "program"
    ERASE = "erase"
    LOCK = "lock"


class FlashCommand(NamedTuple):
    """A flash unit is about to do something with ``size`` bytes at ``offset``; a tuple, for there are many."""

    unit: int
    action: FlashAction
    offset: int
    size: int
    ago: float = 0.0
    """How many seconds ago that was."""


Event = Violation | ProtectionChange | Milestone | FlashCommand


class EventSink(Protocol):
    """Whoever wants to know; called on the vCPU's thread, so it must return quickly and must not raise."""

    def report(self, event: Event) -> None:
        """Take note of one event."""
