"""What ``casemate kvm`` tells the monitor's process, by an environment variable (docs/design/user-space-kvm.md)."""

from typing import NamedTuple

OPTIONS = "CASEMATE_KVM_OPTIONS"
"""The variable, with ``Options`` as JSON."""
SET_STACK = "PyUnstable_ThreadState_SetStackProtection"
"""What Python 3.14 has to be told a stack by; its first releases have no such call."""


class Options(NamedTuple):
    """``log`` is a file, ``socket`` where summaries go; ``faults`` are rules as ``faults.parse_fault`` takes them."""

    era: str
    faults: tuple[str, ...] = ()
    log: str | None = None
    socket: str | None = None
    has_sev: bool = True
    platform: str | None = None
    """The folder that keeps the secure processor's keys, and gets the certificates of SNP guests' reports."""
    traces: bool = False
    """Whether summaries have the steps that ``casemate conform`` judges."""
