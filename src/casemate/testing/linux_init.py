"""A first program for Linux and its archive, without a compiler (Linux buffer-format.rst; ELF 64, x86-64 ABI).

initrd.write_bytes(initramfs(printing_init("hello")))
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from casemate.native.code import guest_code

DIRECTORY, PROGRAM, FILE, CHARACTER_DEVICE = 0o040755, 0o100755, 0o100644, 0o020600
_CONSOLE = (5, 1)
_BASE, _HEADERS = 0x400000, 64 + 56
_WRITE, _NANOSLEEP, _REBOOT = 1, 35, 169
_REBOOT_MAGIC, _REBOOT_MAGIC2, _POWER_OFF = 0xFEE1DEAD, 672274793, 0x4321FEDC
_ARGUMENTS = "first_argument", "second_argument", "third_argument"


def initramfs(init: bytes, files: Mapping[str, bytes] | None = None) -> bytes:
    """An archive of a console, ``/init``, a static program, and ``files`` by path, at most one folder deep."""
    folders = {path.split("/")[0] for path in files or {} if "/" in path}
    return b"".join(
        (
            archive_entry("dev", DIRECTORY),
            archive_entry("dev/console", CHARACTER_DEVICE, device=_CONSOLE),
            *(archive_entry(folder, DIRECTORY) for folder in sorted(folders)),
            *(archive_entry(path, FILE, data) for path, data in (files or {}).items()),
            archive_entry("init", PROGRAM, init),
            archive_entry("TRAILER!!!", 0),
        )
    )


def archive_entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file of a cpio archive in the new ASCII form."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return _padded(head) + _padded(data)


def printing_init(text: str) -> bytes:
    """A static program that prints a line, waits for it to leave, and powers the machine off."""
    line = text.encode() + b"\n"
    pause = struct.pack("<QQ", 0, 50_000_000)
    # Position of the data depends on the size of the code, which does not depend on the position.
    for at in (0, _BASE + _HEADERS + len(_printing_code(0, line, pause))):
        code = _printing_code(at, line, pause)
    return static_program(code + line + pause)


def static_program(code: bytes) -> bytes:
    """An ELF file whose ``code`` starts at its first byte."""
    entry, size = _BASE + _HEADERS, _HEADERS + len(code)
    header = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + code


def _printing_code(data_at: int, line: bytes, pause: bytes) -> bytes:
    return (
        _system_call(_WRITE, 1, data_at, len(line))
        + _system_call(_NANOSLEEP, data_at + len(line), 0)
        + _system_call(_REBOOT, _REBOOT_MAGIC, _REBOOT_MAGIC2, _POWER_OFF)
        + _piece("spin")
    )


def _system_call(number: int, *arguments: int) -> bytes:
    code = b"".join(_piece(piece, value=value) for piece, value in zip(_ARGUMENTS, arguments, strict=False))
    return code + _piece("system_call", number=number)


def _piece(name: str, **parameters: int) -> bytes:
    return guest_code(f"testing/linux_init.{name}", **parameters)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
