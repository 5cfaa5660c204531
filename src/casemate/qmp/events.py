"""How a run's end is told: QEMU's events and run states (QEMU qapi/run-state.json)."""

from __future__ import annotations

from typing import Any

from casemate.machine.outcome import Ending

SHUTDOWN, RESET, STOP, RESUME, GUEST_PANICKED = "SHUTDOWN", "RESET", "STOP", "RESUME", "GUEST_PANICKED"

BY_GUEST = {"guest": True, "reason": "guest-reset"}
BY_CLIENT = {"guest": False, "reason": "host-qmp-system-reset"}
"""Who asked for a reset."""

_STATES = {
    Ending.KERNEL_PANIC: "guest-panicked",
    Ending.SEV_TERMINATION: "guest-panicked",
    Ending.HOST_LIMIT: "internal-error",
    Ending.INTERNAL_ERROR: "internal-error",
    Ending.STUCK: "watchdog",
}
_REASONS = {
    Ending.POWER_OFF: (True, "guest-shutdown"),
    Ending.EXIT_PORT: (True, "guest-shutdown"),
    Ending.RESET: (True, "guest-reset"),
    Ending.TRIPLE_FAULT: (True, "guest-reset"),
    Ending.KERNEL_PANIC: (True, "guest-panic"),
    Ending.SEV_TERMINATION: (True, "guest-panic"),
    Ending.QUIT: (False, "host-qmp-quit"),
    Ending.INTERRUPTED: (False, "host-signal"),
    Ending.TERMINATED: (False, "host-signal"),
    Ending.VIOLATION: (False, "host-error"),
    Ending.HOST_LIMIT: (False, "host-error"),
    Ending.INTERNAL_ERROR: (False, "host-error"),
    Ending.STUCK: (False, "host-error"),
}
_BY_COMMAND_LINE = (False, "host-ui")
"""A text, a time or a power cut that casemate was told to end the run at."""


def run_state(ending: Ending) -> str:
    """What ``query-status`` says of a guest that has ended."""
    return _STATES.get(ending, "shutdown")


def shutdown_data(ending: Ending) -> dict[str, Any]:
    """The data of SHUTDOWN."""
    guest, reason = _REASONS.get(ending, _BY_COMMAND_LINE)
    return {"guest": guest, "reason": reason}
