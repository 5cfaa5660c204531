"""A guest that shows whether a host runs supervisor code at speed, and x87 instructions (Intel SDM)."""

from __future__ import annotations

from casemate.guests.entry import make_image
from casemate.native.code import guest_code

_LOOPS = 8000
_LOOP_INSTRUCTIONS = 2 * _LOOPS
_PORT = 0x81


def probe_image() -> tuple[bytes, int]:
    """The image, and how many instructions lie between two of its reads of a port.

    The guest counts, reads the port, and does so again while the answer is 0. Then it stores an x87 register to RAM
    below 64 KiB, writes to the port, and spins.
    """
    code = guest_code("guests/probe.guest", loops=_LOOPS, port=_PORT)
    return make_image(code, 32), _LOOP_INSTRUCTIONS
