"""Why a vCPU stopped running: the closed union of exits a run loop must handle (Linux api.rst, struct kvm_run).

Port and MMIO accesses are not in the union: they are the hot path, and go straight to the ``IoBus`` the vCPU
was created with (docs/decisions/0003-exits.md).
"""

from typing import NamedTuple


class _Bare:
    """An exit of which there is nothing more to say: all of one kind are equal."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Hlt(NamedTuple):
    """The guest halted and nothing can wake it: interrupts are off, or no interrupt source is armed."""

    interrupts_enabled: bool


class Shutdown(NamedTuple):
    """Triple fault."""

    rip: int | None = None


class MemoryFault(NamedTuple):
    """A guest access that the host could not back, such as a write to a write-protected mapping.

    ``gpa``, ``size``, ``value`` and ``rip`` are None where the host cannot know them. Memory is unchanged and
    ``rip`` stands on the instruction, so that the access may be retried.
    """

    gpa: int | None = None
    size: int | None = None
    value: int | None = None
    rip: int | None = None


class NestedFaultLoop(_Bare):
    """The same nested page fault for ever: a guest with protected state written to a read-only slot.

    A real host never tells: its ``KVM_RUN`` just does not return. The model does, at the first fault.
    """


class SevTermination(NamedTuple):
    """A SEV-ES guest asked by GHCB for its own end, or for what no host does (KVM_SYSTEM_EVENT_SEV_TERM).

    ``ghcb`` is the GHCB MSR as the guest left it.
    """

    detail: str
    ghcb: int = 0


class KvmInternalError(NamedTuple):
    """The host cannot go on executing this guest; ``detail`` says why (KVM_EXIT_INTERNAL_ERROR, FAIL_ENTRY)."""

    detail: str
    rip: int | None = None


class DebugEvent(NamedTuple):
    """A step or a breakpoint that a debugger of the host's asked for (KVM_EXIT_DEBUG).

    ``address`` is linear: of the next instruction after a step, of INT3, or of the one with a breakpoint in a register,
    for which ``is_breakpoint`` stands. ``watched`` has a bit for each breakpoint of data that was hit.
    ``is_register``: the guest was about to access a debug register.
    """

    vector: int
    address: int
    is_breakpoint: bool
    watched: int = 0
    is_register: bool = False


class Interrupted(_Bare):
    """``Vcpu.stop`` was called."""


VmExit = (
    Hlt
    | Shutdown
    | MemoryFault
    | NestedFaultLoop
    | SevTermination
    | KvmInternalError
    | DebugEvent
    | Interrupted
)
