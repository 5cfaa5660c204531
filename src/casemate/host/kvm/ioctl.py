"""The only caller of ioctl: names the call when it fails (ioctl(2))."""

from __future__ import annotations

import ctypes
import fcntl
from typing import TYPE_CHECKING, TypeAlias

from casemate.errors import HostError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from casemate.abi.kvm.ioctls import Ioctl
    from casemate.abi.sev.platform import SevIoctl

Request: TypeAlias = "Ioctl | SevIoctl"
"""What can be asked, of whom is the descriptor's business."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)


def call(fd: int, request: Request, argument: int | Buffer = 0, detail: str = "") -> int:
    """One ioctl with an int, or a writable buffer that the kernel may change. Raises HostError with the call's name."""
    if isinstance(argument, int):
        # Python's own ioctl takes no int above 2 GiB, where KVM wants addresses.
        result = int(_libc.ioctl(fd, request, argument))
        failure = ctypes.get_errno() if result < 0 else 0
    else:
        result, failure = _call_with_buffer(fd, request, argument)
    if failure:
        raise HostError(request.kernel_name, failure, detail)
    return result


def _call_with_buffer(fd: int, request: Request, buffer: Buffer) -> tuple[int, int]:
    try:
        return int(fcntl.ioctl(fd, request, buffer)), 0
    except OSError as error:
        return -1, error.errno or 0
