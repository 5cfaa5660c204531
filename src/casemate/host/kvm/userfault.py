"""Write protection by userfaultfd: who writes is held until somebody decided (Linux admin-guide/mm/userfaultfd.rst)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import threading
from collections.abc import Callable

from casemate.abi import userfaultfd as abi
from casemate.address import Hva
from casemate.errors import HostError, UnsupportedError

_libc = ctypes.CDLL(None, use_errno=True)
_NEEDED = abi.Feature.PAGEFAULT_FLAG_WP | abi.Feature.WP_HUGETLBFS_SHMEM
_REMEDY = (
    f"let this user open {abi.DEVICE}, or set the sysctl vm.unprivileged_userfaultfd to 1, or run with CAP_SYS_PTRACE;"
    " or use --protection vma"
)


class WriteWatch:
    """Holds every write to ``[hva, hva + size)`` and calls ``on_write`` with its page, on a thread of its own.

    The write is tried again when ``on_write`` returns, so it must make sure that the write fails. Raises
    UnsupportedError, with a remedy, where this process may not do this or the kernel cannot.
    """

    def __init__(self, hva: Hva, size: int, on_write: Callable[[Hva], None]) -> None:
        self._on_write = on_write
        self._fd = open_userfaultfd()
        try:
            _call(
                self._fd,
                abi.Ioctl.UFFDIO_REGISTER,
                abi.UffdioRegister(start=hva, len=size, mode=abi.REGISTER_MODE_WP),
            )
            protect = abi.UffdioWriteprotect(start=hva, len=size, mode=abi.WRITEPROTECT_MODE_WP)
            _call(self._fd, abi.Ioctl.UFFDIO_WRITEPROTECT, protect)
        except BaseException:
            os.close(self._fd)
            raise
        self._end = os.eventfd(0)
        self._range = abi.UffdioRange(start=hva, len=size)
        self._thread = threading.Thread(target=self._watch, name="casemate-userfault", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go; harmless when repeated."""
        if self._fd >= 0:
            os.eventfd_write(self._end, 1)
            self._thread.join()
            os.close(self._fd)
            os.close(self._end)
            self._fd = -1

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while not any(fd == self._end for fd, _ in poll.poll()):
            try:
                message = abi.UffdMsg.from_bytes(os.read(self._fd, abi.UffdMsg.SIZE))
            except BlockingIOError:  # who written was interrupted
                continue
            if message.event == abi.EVENT_PAGEFAULT:
                self._on_write(Hva(message.address))
                _call(self._fd, abi.Ioctl.UFFDIO_WAKE, self._range)


def open_userfaultfd() -> int:
    """A descriptor that hears of the kernel's own faults, too, as KVM's are. Raises UnsupportedError."""
    fd = _new_descriptor()
    try:
        api = abi.UffdioApi(api=abi.API, features=_NEEDED)
        fcntl.ioctl(fd, abi.Ioctl.UFFDIO_API, api)
    except OSError as error:
        os.close(fd)
        raise UnsupportedError(
            f"this kernel's userfaultfd cannot write-protect shared memory ({error.strerror})",
            "use Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP, or --protection vma",
        ) from error
    return fd


def _new_descriptor() -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        device = os.open(abi.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # before Linux 6.1, or closed to this user
        fd = int(_libc.syscall(abi.SYSCALL, flags))
        if fd >= 0:
            return fd
        failure = ctypes.get_errno()
        if failure == errno.ENOSYS:
            raise UnsupportedError("this kernel has no userfaultfd", "use --protection vma") from None
        raise UnsupportedError(f"userfaultfd is refused: {os.strerror(failure)}", _REMEDY) from None
    try:
        return int(_libc.ioctl(device, abi.Ioctl.USERFAULTFD_IOC_NEW, flags))
    finally:
        os.close(device)


def _call(fd: int, request: abi.Ioctl, argument: ctypes.Structure) -> None:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise HostError(request.name, error.errno or 0) from error
