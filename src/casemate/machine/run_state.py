"""Why a run ends, and whether a reset is wanted: what any thread may ask of it (docs/design/machine.md)."""

from __future__ import annotations

from collections.abc import Callable

from casemate.machine.outcome import Ending


class RunState:
    """The state of one run. ``on_change`` is called behind each request, to make the vCPUs look at it."""

    def __init__(self, *, allows_one_write: bool = False) -> None:
        self.ending: Ending | None = None
        self.detail = ""
        """What to tell about the ending, where whoever ended the run knew more than its name."""
        self.resets = 0
        """Platform resets that were made."""
        self.reset_wanted = False
        self.on_change: Callable[[], None] = lambda: None
        self.on_reset: Callable[[], None] = lambda: None
        """Hears of every platform reset, once it is made; on a vCPU's thread."""
        self._allowance = allows_one_write

    def end(self, ending: Ending, detail: str = "") -> None:
        """End the run; the first reason stays. From any thread, or a signal handler."""
        if self.ending is None:
            self.ending, self.detail = ending, detail
        self.on_change()

    def request_reset(self) -> None:
        """Reset as soon as all vCPUs are parked; called by devices, or from any thread."""
        self.reset_wanted = True
        self.on_change()

    def take_allowance(self) -> bool:
        """Whether this write is the one that ``--on-write allow-once`` lets through."""
        allowed, self._allowance = self._allowance, False
        return allowed
