"""Event descriptors: stores of the guest that signal one, and ones that raise an interrupt (Linux api.rst).

KVM_IOEVENTFD and KVM_IRQFD. Both keep a descriptor of their own of what they were given, as the kernel keeps the file.
"""

import os
import select
import threading
from collections.abc import Callable
from errno import EEXIST, EINVAL, ENOENT, ENOSPC
from typing import NamedTuple

from casemate.abi.kvm.structs import IOEVENTFD_DATAMATCH, IOEVENTFD_DEASSIGN, IOEVENTFD_PIO, Ioeventfd
from casemate.userkvm.library import Inside
from casemate.userkvm.table import Refused

_LENGTHS = (0, 1, 2, 4, 8)
_KNOWN_FLAGS = IOEVENTFD_DATAMATCH | IOEVENTFD_PIO | IOEVENTFD_DEASSIGN


class _Event(NamedTuple):
    address: int
    length: int
    is_pio: bool
    match: int | None
    file: tuple[int, int]


def _file(fd: int) -> tuple[int, int]:
    try:
        found = os.fstat(fd)
    except OSError as error:
        raise Refused(error.errno or EINVAL, f"no descriptor {fd}") from None
    return found.st_dev, found.st_ino


def _same(fd: int, other: int) -> bool:
    # Event descriptors share one inode; /proc tells them apart.
    return _identity(fd) == _identity(other)


def _identity(fd: int) -> str:
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            return next((line for line in file if line.startswith("eventfd-id")), "")
    except OSError as error:
        raise Refused(error.errno or EINVAL, f"no descriptor {fd}") from None


class Ioeventfds:
    """Those of one VM."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._events: list[tuple[_Event, int]] = []

    def change(self, wanted: Ioeventfd) -> None:
        """KVM_IOEVENTFD. Raises Refused."""
        if wanted.flags & ~_KNOWN_FLAGS or wanted.len not in _LENGTHS:
            raise Refused(EINVAL, "flags or length")
        if not wanted.len and wanted.flags & IOEVENTFD_DATAMATCH:
            raise Refused(EINVAL, "no data can match without a length")
        is_pio = bool(wanted.flags & IOEVENTFD_PIO)
        match = wanted.datamatch if wanted.flags & IOEVENTFD_DATAMATCH else None
        event = _Event(wanted.addr, wanted.len, is_pio, match, _file(wanted.fd))
        if wanted.flags & IOEVENTFD_DEASSIGN:
            self._remove(event, wanted.fd)
            return
        if any(_collides(event, other) for other, _ in self._events):
            raise Refused(EEXIST, f"{wanted.addr:#x} has one already")
        if is_pio:
            self._inside.add_ports(wanted.addr & 0xFFFF, 1)
        elif not self._inside.add_mmio(wanted.addr, max(wanted.len, 1)):
            raise Refused(ENOSPC, "too many")
        self._events.append((event, os.dup(wanted.fd)))

    def signal(self, address: int, size: int, value: int, *, pio: bool) -> bool:
        """A store of the guest; whether it was meant for one of them."""
        for event, fd in self._events:
            is_place = event.address == address and event.is_pio == pio and event.length in (0, size)
            if is_place and event.match in (None, value & (1 << 8 * size) - 1):
                os.eventfd_write(fd, 1)
                return True
        return False

    def close(self) -> None:
        """Give the descriptors back."""
        for _, fd in self._events:
            os.close(fd)
        self._events.clear()

    def _remove(self, event: _Event, fd: int) -> None:
        for row in self._events:
            if row[0] == event and _same(row[1], fd):
                os.close(row[1])
                self._events.remove(row)
                return
        raise Refused(ENOENT, f"{event.address:#x} has none")


def _collides(event: _Event, other: _Event) -> bool:
    same_place = (event.address, event.is_pio) == (other.address, other.is_pio)
    same_length = not event.length or not other.length or event.length == other.length
    return (
        same_place
        and same_length
        and (event.match is None or other.match is None or event.match == other.match)
    )


class Irqfds:
    """Descriptors of one VM that raise interrupts, looked after by one thread."""

    def __init__(self, set_level: Callable[[int, bool], None]) -> None:
        self._set_level = set_level
        self._poll = select.epoll()
        self._lines: dict[int, int] = {}
        """GSI by our descriptor."""
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._end, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def assign(self, fd: int, gsi: int) -> None:
        """Watch ``fd``. Raises Refused."""
        _file(fd)
        ours = os.dup(fd)
        self._lines[ours] = gsi
        try:
            self._poll.register(ours, select.EPOLLIN)
        except OSError as error:
            self._drop(ours)
            raise Refused(error.errno or EINVAL, "no event descriptor") from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="casemate-irqfd", daemon=True)
            self._thread.start()

    def deassign(self, fd: int, gsi: int) -> None:
        """No more."""
        for ours, line in list(self._lines.items()):
            if line == gsi and _same(ours, fd):
                self._poll.unregister(ours)
                self._drop(ours)

    def close(self) -> None:
        """End the thread, give the descriptors back."""
        os.eventfd_write(self._end, 1)
        if self._thread is not None:
            self._thread.join()
        for ours in list(self._lines):
            self._drop(ours)
        self._poll.close()
        os.close(self._end)

    def _drop(self, ours: int) -> None:
        del self._lines[ours]
        os.close(ours)

    def _watch(self) -> None:
        while True:
            for ours, _ in self._poll.poll():
                if ours == self._end:
                    return
                self._raise(ours)

    def _raise(self, ours: int) -> None:
        try:
            os.eventfd_read(ours)
            gsi = self._lines[ours]
        except (OSError, KeyError):  # it was taken away meanwhile
            return
        self._set_level(gsi, True)
        self._set_level(gsi, False)
