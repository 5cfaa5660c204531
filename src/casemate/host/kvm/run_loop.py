"""The loop around KVM_RUN, which is C (``native/run``), and the calls by which it reaches devices (Linux api.rst)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int, c_long, c_uint32, c_uint64, c_void_p
from mmap import mmap
from typing import TYPE_CHECKING, Any

from casemate import native
from casemate.errors import UnsupportedError

if TYPE_CHECKING:
    from casemate.host.hypervisor import IoBus

_READ_PORT = CFUNCTYPE(c_uint64, c_uint32, c_uint32)
_WRITE_PORT = CFUNCTYPE(None, c_uint32, c_uint32, c_uint32)
_READ_MMIO = CFUNCTYPE(c_uint64, c_uint64, c_uint32)
_WRITE_MMIO = CFUNCTYPE(None, c_uint64, c_uint32, c_uint64)
_DELIVER = CFUNCTYPE(None)


class LoopRecord(ctypes.Structure):
    """``struct loop`` of ``native/run/run.c``."""

    _fields_ = (
        ("run", c_void_p),
        ("ring", c_void_p),
        ("read_port", _READ_PORT),
        ("write_port", _WRITE_PORT),
        ("read_mmio", _READ_MMIO),
        ("write_mmio", _WRITE_MMIO),
        ("deliver_coalesced", _DELIVER),
        ("runs", c_uint64),
        ("failed", c_uint64),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(native.RUN))
    except OSError as error:
        raise UnsupportedError(
            f"KVM cannot run guests here: casemate's machine code was not built ({error})",
            "install casemate's wheel for Linux on x86-64",
        ) from None
    library.run_loop.argtypes = (c_void_p, c_int)
    library.run_loop.restype = c_long
    library.loop_size.restype = c_uint64
    return library


def record_size() -> int:
    """Bytes of the record, as the library has it. Raises UnsupportedError where there is none."""
    return int(_library().loop_size())


class RunLoop:
    """One vCPU's loop. ``area`` is what it shares with KVM, ``ring`` where its coalesced writes are counted.

    ``deliver_coalesced`` is called when there are some. Raises UnsupportedError where the library was not built.
    """

    def __init__(self, area: mmap, ring: int, bus: IoBus, deliver_coalesced: Callable[[], None]) -> None:
        self._run = _library().run_loop
        self._error: BaseException | None = None
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        self._record = LoopRecord(
            address,
            address + ring,
            _READ_PORT(self._guarded(bus.read_port)),
            _WRITE_PORT(self._guarded(bus.write_port)),
            _READ_MMIO(self._guarded(bus.read_mmio)),
            _WRITE_MMIO(self._guarded(bus.write_mmio)),
            _DELIVER(self._guarded(deliver_coalesced)),
        )
        self._record_at = ctypes.addressof(self._record)

    @property
    def runs(self) -> int:
        """How often KVM_RUN was called."""
        return int(self._record.runs)

    def run(self, fd: int) -> int:
        """Until an exit that is no access: its reason, or the negative errno with which KVM_RUN failed.

        Raises what a device raised.
        """
        result: int = self._run(self._record_at, fd)
        if self._record.failed:
            self._record.failed, error, self._error = 0, self._error, None
            assert error is not None
            raise error
        return result

    def _guarded(self, access: Callable[..., Any]) -> Callable[..., Any]:
        """An exception cannot pass through C: it is kept, and ends the loop."""

        def call(*arguments: int) -> Any:
            try:
                return access(*arguments)
            except BaseException as error:
                self._error, self._record.failed = error, 1
                return 0

        return call
