"""The exceptions casemate raises; each says whose fault it is and how the process ends (docs/design/errors.md).

    CasemateError
    ├── SpecError             the request contradicts itself or a rule          exit 4
    ├── ImageError            a firmware or variable file is not as it must be  exit 4
    ├── InsecureError         refused: a digest or signature is not as expected exit 3
    ├── UnsupportedError      this host cannot; what to do instead              exit 5
    ├── HostError             the host refused a system call or ioctl           exit 5
    ├── FirmwareStatusError   the secure processor refused a command            exit 5
    └── InternalError         a bug of ours                                     exit 6

What a guest does is never an exception: it is a device result, an exit, or an ``Outcome``.
"""

from __future__ import annotations

import os
from pathlib import Path


def printable(text: str) -> str:
    """Text out of a file or a path, with nothing in it that a terminal would obey: ``\\x1b`` for an escape."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


class CasemateError(Exception):
    """Base of all errors; ``cause`` says what is wrong, ``remedy`` what to do about it (may be empty)."""

    exit_code = 6

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}; {self.remedy}" if self.remedy else self.cause


class SpecError(CasemateError):
    """The request is invalid: options that contradict each other or a rule of the platform."""

    exit_code = 4


class ImageError(CasemateError):
    """An input file is not what it must be; names the file, where known the offset, the rule and the remedy."""

    exit_code = 4

    def __init__(self, path: str | Path, cause: str, remedy: str = "", offset: int | None = None) -> None:
        where = f"{path}" if offset is None else f"{path} at offset {offset:#x}"
        super().__init__(f"{where}: {cause}", remedy)
        self.path = os.fspath(path)
        self.offset = offset


class InsecureError(CasemateError):
    """Going on would be insecure: a digest, measurement or signature is not as expected."""

    exit_code = 3


class UnsupportedError(CasemateError):
    """This host, or this build, cannot do what was asked; the remedy names what can be done instead."""

    exit_code = 5


class HostError(CasemateError):
    """A system call or ioctl failed; ``call`` is its name, ``errno`` the host's answer."""

    exit_code = 5

    def __init__(self, call: str, errno: int, detail: str = "", remedy: str = "") -> None:
        text = f"{call} failed: {os.strerror(errno)} (errno {errno})"
        super().__init__(f"{text}: {detail}" if detail else text, remedy)
        self.call = call
        self.errno = errno


class FirmwareStatusError(CasemateError):
    """The secure processor answered a launch command with an error status."""

    exit_code = 5

    def __init__(self, command: str, status: int, meaning: str, remedy: str = "") -> None:
        super().__init__(f"{command}: firmware status {status:#x} ({meaning})", remedy)
        self.command = command
        self.status = status


class InternalError(CasemateError):
    """A state that cannot happen did; please report it."""

    exit_code = 6
