"""The thread beside a modelled guest that sees to it that what is due is not overlooked (docs/design/model.md)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_uint32, c_uint64, c_void_p
from time import monotonic_ns

from casemate.host.clock import NANOSECONDS, GuestClock
from casemate.host.model.cpu.hooks import hook_address
from casemate.host.model.cpu.records import TickerRecord


class Ticker:
    """Calls ``look`` again and again while ``executing`` is set; it returns the seconds until the next time.

    In between the thread sleeps without Python. When something is due it kicks the CPU whose record is ``cpu``; if that
    is 0, it looks.
    """

    def __init__(self, clock: GuestClock, look: Callable[[], float], cpu: int = 0) -> None:
        self.executing = threading.Event()
        """Set while there is a guest to look after."""
        self._clock = clock
        self._look = look
        self._cpu = cpu
        self._record = TickerRecord()
        self._at = ctypes.addressof(self._record)
        self._sleep = CFUNCTYPE(None, c_void_p, c_void_p, c_uint64, c_uint32)(hook_address("ticker_sleep"))
        self._set = CFUNCTYPE(None, c_void_p, c_uint64)(hook_address("ticker_set"))
        self._add = CFUNCTYPE(None, c_void_p, c_uint64)(hook_address("ticker_add"))
        self._skip = CFUNCTYPE(None, c_void_p, c_uint64)(hook_address("ticker_skip"))
        self._wake = CFUNCTYPE(None, c_void_p)(hook_address("ticker_wake"))
        self._thread = threading.Thread(target=self._run, name="casemate-ticker", daemon=True)

    def start(self) -> None:
        """Begin; once all that ``look`` uses is there."""
        self._thread.start()

    def set_due(self, time: int | None) -> None:
        """Something is due at this guest time, in nanoseconds, and nothing before, or nothing at all.

        On the CPU's thread.
        """
        self._set(self._at, 0 if time is None else self._clock.host_time(time))

    def add_due(self, time: int) -> None:
        """Something is due at this guest time, in nanoseconds, and perhaps something before. From any thread."""
        self._add(self._at, self._clock.host_time(time))

    def time_skipped(self, nanoseconds: int) -> None:
        """Guest time moved forward by so much."""
        self._skip(self._at, nanoseconds)

    def close(self) -> None:
        """End the thread."""
        self._record.closed = 1
        self.executing.set()
        self._wake(self._at)
        self._thread.join()

    def _run(self) -> None:
        while not self._record.closed:
            self.executing.wait()
            signals = self._record.signals
            wait = self._look()
            self._sleep(self._at, self._cpu, monotonic_ns() + int(wait * NANOSECONDS), signals)
