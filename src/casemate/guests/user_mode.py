"""From 64-bit supervisor mode into user mode, for guests whose stores the processor itself must make (Intel SDM).

Hosts differ in who executes supervisor code: some interpret it. User code runs on the processor everywhere.
"""

from __future__ import annotations

from casemate.guests.entry import PAGE_TABLES, STACK_TOP
from casemate.native.code import guest_code

USER_STACK = STACK_TOP - 0x1000

_DESCRIPTORS = (
    0,
    0x00CF9B000000FFFF,
    0x00CF93000000FFFF,
    0x00AF9B000000FFFF,
    0x00CFF3000000FFFF,
    0x00AFFB000000FFFF,
)


def in_user_mode(payload: bytes) -> bytes:
    """64-bit code for ``entry.make_image`` that opens all pages to user mode and runs ``payload`` there."""
    return (
        guest_code("guests/user_mode.open_pages", tables=PAGE_TABLES)
        + b"".join(
            guest_code("guests/user_mode.push_descriptor", descriptor=each) for each in reversed(_DESCRIPTORS)
        )
        + guest_code("guests/user_mode.load_descriptors", limit=8 * len(_DESCRIPTORS) - 1)
        + guest_code("guests/user_mode.leave", user_stack=USER_STACK)
        + payload
    )
