"""One instruction of a guest: its text, and whether it can be skipped (Intel SDM volume 2).

As the decoder, it is loaded before the guest runs (docs/guide/sandbox.md).
"""

from __future__ import annotations

from casemate.host.decoder import Decoder, Formatter, FormatterSyntax, OpKind, is_mov


class GuestInstruction:
    """The first one of ``code``, which is of ``bits`` bits and at ``rip``."""

    def __init__(self, code: bytes, bits: int, rip: int = 0) -> None:
        self._decoded = Decoder(bits, code, ip=rip).decode()

    @property
    def text(self) -> str | None:
        """As an assembler has it; None for what is no instruction."""
        return Formatter(FormatterSyntax.INTEL).format(self._decoded) if self._decoded else None

    @property
    def plain_write_length(self) -> int | None:
        """Its bytes, if writing to memory is all that it does."""
        # MOV to memory has no other effect; anything else (XCHG, string, read-modify-write) would have half happened.
        plain = is_mov(self._decoded) and self._decoded.op0_kind == OpKind.MEMORY
        return self._decoded.len if plain else None
