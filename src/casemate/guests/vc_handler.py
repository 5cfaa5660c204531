"""A #VC handler for tiny 32-bit guests: OUT of AL becomes a request by GHCB (AMD 56421, 4.1.2), all else halts.

With it a guest that writes to ports runs the same as plain, SEV and SEV-ES guest. Its GHCB lies in memory that the
guest maps no other way than its own: on hardware a GHCB is shared, which takes paging.
"""

from __future__ import annotations

from casemate.native.code import guest_code

GHCB = 0x9000
"""Guest-physical address of the block."""
VECTOR = 29


def vc_handler() -> bytes:
    """32-bit code that an interrupt gate for ``VECTOR`` leads to."""
    return guest_code("guests/vc_handler.handler", ghcb=GHCB)
