"""The thread beside a modelled guest that sees to it that what is due is not overlooked (docs/design/model.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from casemate.host.clock import NANOSECONDS, GuestClock


class Ticker:
    """Calls ``look`` again and again while ``executing`` is set; it returns the seconds until the next time."""

    def __init__(self, clock: GuestClock, look: Callable[[], float]) -> None:
        self.executing = threading.Event()
        """Set while there is a guest to look after."""
        self._clock = clock
        self._look = look
        self._closed = False
        self._timer_set = threading.Lock()
        """Free for a moment when it is to look at once: an event for one thread, and much faster."""
        self._timer_set.acquire()
        self._looks_at = 0
        self._thread = threading.Thread(target=self._run, name="casemate-ticker", daemon=True)

    def start(self) -> None:
        """Begin; once all that ``look`` uses is there."""
        self._thread.start()

    def timer_was_set(self, time: int) -> None:
        """Look at once if it would be late for ``time``, in guest nanoseconds."""
        if time < self._looks_at:
            self._looks_at = time
            self._wake()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self.executing.set()
        self._wake()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            self.executing.wait()
            wait = self._look()
            self._looks_at = self._clock.now() + int(wait * NANOSECONDS)
            self._timer_set.acquire(timeout=wait)

    def _wake(self) -> None:
        if self._timer_set.locked():
            self._timer_set.release()
