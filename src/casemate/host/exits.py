"""Why a vCPU stopped running: the closed union of exits a run loop must handle (Linux api.rst, struct kvm_run).

Port and MMIO accesses are not in the union: they are the hot path, and go straight to the ``IoBus`` the vCPU
was created with (docs/decisions/0003-exits.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hlt:
    """The guest halted and nothing can wake it: interrupts are off, or no interrupt source is armed."""

    interrupts_enabled: bool


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Triple fault."""

    rip: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryFault:
    """A guest access that the host could not back, such as a write to a write-protected mapping.

    ``gpa``, ``size``, ``value`` and ``rip`` are None where the host cannot know them. Memory is unchanged and
    ``rip`` stands on the instruction, so that the access may be retried.
    """

    gpa: int | None = None
    size: int | None = None
    value: int | None = None
    rip: int | None = None


@dataclass(frozen=True, slots=True)
class NestedFaultLoop:
    """The same nested page fault for ever: a guest with protected state written to a read-only slot.

    A real host never tells: its ``KVM_RUN`` just does not return. The model does, at the first fault.
    """


@dataclass(frozen=True, slots=True)
class SevTermination:
    """A SEV-ES guest asked by GHCB for its own end, or for what no host does (KVM_SYSTEM_EVENT_SEV_TERM).

    ``ghcb`` is the GHCB MSR as the guest left it.
    """

    detail: str
    ghcb: int = 0


@dataclass(frozen=True, slots=True)
class KvmInternalError:
    """The host cannot go on executing this guest; ``detail`` says why (KVM_EXIT_INTERNAL_ERROR, FAIL_ENTRY)."""

    detail: str
    rip: int | None = None


@dataclass(frozen=True, slots=True)
class DebugEvent:
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


@dataclass(frozen=True, slots=True)
class Interrupted:
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
