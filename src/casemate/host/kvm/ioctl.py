"""The only caller of ioctl: names the call when it fails (ioctl(2))."""

from __future__ import annotations

import fcntl
from typing import Any

from casemate.abi.kvm.ioctls import Ioctl
from casemate.errors import HostError


def call(fd: int, request: Ioctl, argument: Any = 0, detail: str = "") -> int:
    """One ioctl with an int, or a buffer that the kernel may change. Raises HostError with the call's name."""
    try:
        return int(fcntl.ioctl(fd, request, argument))
    except OSError as error:
        raise HostError(request.kernel_name, error.errno or 0, detail) from error


def run(fd: int) -> int:
    """KVM_RUN; returns 0, or the errno it failed with, for that is part of what the guest did."""
    try:
        fcntl.ioctl(fd, Ioctl.RUN, 0)
    except OSError as error:
        return error.errno or 0
    return 0
