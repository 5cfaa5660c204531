"""INVD and WBINVD of a SEV-ES guest raise #VC (AMD APM volume 2, 15.35.5).

The engine translates them to nothing at all, so that there is no helper to patch. A native hook looks through each new
block for their bytes, and only where it finds them a decoder is asked and a native hook put on the instruction.
"""

from __future__ import annotations

import ctypes
import re
import struct
from typing import Any

from unicorn import unicorn_const

from casemate.abi.sev.ghcb import ExitCode
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.unicorn_api import EdgeHook
from casemate.host.model.cpu.vc import absolute_jump

_BYTES = re.compile(rb"\x0f[\x08\x09]")


class _Record(ctypes.Structure):
    """What the native hooks know: their user data."""

    _fields_ = (("env", ctypes.c_uint64), ("on_candidate", ctypes.c_uint64))


class CacheControl:
    """All such instructions of one engine that were met, by address. Install what is pending after each run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: set[int] = set()
        self._pending: list[tuple[int, int, int]] = []
        self._callback = EdgeHook(self._on_candidate)
        callback = ctypes.cast(self._callback, ctypes.c_void_p).value
        self._record = _Record(engine.hooks.env, callback)
        self._search, self._raise = engine.hooks.emit(_search, _raise)
        engine.hook(unicorn_const.UC_HOOK_EDGE_GENERATED, self._search, user_data=self._user_data)

    @property
    def _user_data(self) -> int:
        return ctypes.addressof(self._record)

    def install_pending(self) -> None:
        """Place the hooks that the engine was stopped for."""
        for address, block, size in self._pending:
            self._engine.hook(
                unicorn_const.UC_HOOK_CODE, self._raise, begin=address, end=address, user_data=self._user_data
            )
            self._engine.drop_translation(block, block + size)
        self._pending.clear()

    def _on_candidate(self, _uc: int, block: Any, _previous: Any, _user: int | None) -> None:
        pc, size = block.contents.pc, block.contents.size
        code = self._engine.read_virtual(pc, size) or b""
        for found in _BYTES.finditer(code):
            address = pc + found.start()
            if address not in self._known and _starts_instruction(code, found.start()):
                self._known.add(address)
                self._pending.append((address, pc, size))
        if self._pending:
            self._engine.stop()


def _starts_instruction(code: bytes, at: int) -> bool:
    """Whether an instruction of the block ``code`` starts at ``at``, decoded from its start as the engine does."""
    from iced_x86 import Decoder

    return any(at in {instruction.ip for instruction in Decoder(bits, code, ip=0)} for bits in (64, 32, 16))


def _search(load_byte: int, _raiser: int) -> bytes:
    """A hook on new blocks (rsi block, rcx record) that calls ``on_candidate`` for one with such bytes in it."""
    load = b"\x49\x8b\x3c\x24\x48\x89\xde\x48\xff\xc3" + _call(load_byte)  # rdi = env; rsi = rbx++; call
    test = (
        b"\x0f\xb6\xc0\x41\x83\xfe\x0f\x41\x89\xc6"  # movzx eax, al; cmp r14d, 0x0f; mov r14d, eax
        + b"\x75" + struct.pack("<b", -(4 + len(load) + 12))  # jne next
        + b"\x24\xfe\x3c\x08\x75" + struct.pack("<b", -(4 + len(load) + 18))  # and al, 0xfe; cmp al, 8; jne next
        + b"\x4c\x89\xee\x41\xff\x54\x24\x08"  # mov rsi, r13; call [r12 + on_candidate]
    )  # fmt: skip
    return (
        b"\x53\x55\x41\x54\x41\x55\x41\x56"  # push rbx, rbp, r12, r13, r14
        + b"\x48\x8b\x1e\x0f\xb7\x6e\x0a\x49\x89\xcc\x49\x89\xf5"  # rbx = pc; ebp = size; r12 = record; r13 = block
        + b"\x45\x31\xf6"  # xor r14d, r14d: the byte before
        + b"\xff\xcd\x78" + bytes([len(load) + len(test)])  # next: dec ebp; js done
        + load + test
        + b"\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3"  # done: pop r14, r13, r12, rbp, rbx; ret
    )  # fmt: skip


def _raise(load_byte: int, raiser: int) -> bytes:
    """A hook on an instruction (rsi address, rcx record) that raises #VC, if it still is one of these."""
    leave = b"\x41\x5c\x5d\x5b"  # pop r12, rbp, rbx
    ret = leave + b"\xc3"
    raised = (
        b"\xba" + struct.pack("<I", ExitCode.INVD)  # mov edx, INVD
        + b"\x3c\x09\x75\x05\xba" + struct.pack("<I", ExitCode.WBINVD)  # cmp al, 9; jne +5; mov edx, WBINVD
        + b"\x49\x8b\x3c\x24" + leave + b"\xbe\x1d\x00\x00\x00\x31\xc9"  # rdi = env; esi = 29; ecx = 0
        + absolute_jump(raiser)
    )  # fmt: skip
    second = b"\x49\x8b\x3c\x24\x48\x8d\x73\x01" + _call(load_byte)  # rdi = env; lea rsi, [rbx + 1]; call
    is_one = b"\x89\xc5\x24\xfe\x3c\x08\x89\xe8\x75" + bytes(
        [len(raised)]
    )  # ebp = eax; and al, 0xfe; cmp al, 8; jne
    return (
        b"\x53\x55\x41\x54\x48\x89\xf3\x49\x89\xcc"  # push rbx, rbp, r12; rbx = rsi; r12 = rcx
        + b"\x49\x8b\x3c\x24"  # rdi = env
        + _call(load_byte) + b"\x3c\x0f\x75" + bytes([len(second) + len(is_one) + len(raised)])  # cmp al, 0x0f; jne
        + second + is_one + raised + ret
    )  # fmt: skip


def _call(function: int) -> bytes:
    return b"\x48\xb8" + struct.pack("<Q", function) + b"\xff\xd0"  # mov rax, function; call rax
