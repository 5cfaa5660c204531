"""Tiny firmware that misbehaves, and how each kind of guest with each protection ends of it (docs/design/hostile.md).

``HOSTILE`` is the table; ``image`` makes one of them. They expect a writable unit 1 of ``IMAGE_SIZE`` bytes right below
the image, filled with 0xEE, on the board q35 with 16 MiB of RAM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from casemate.address import FOUR_GIB
from casemate.guests.actions import store, store_all, tell, tell_memory
from casemate.guests.entry import IMAGE_SIZE, Bits, make_image

CODE = FOUR_GIB - IMAGE_SIZE
VARS = CODE - IMAGE_SIZE
EXIT_VALUE = 7

COLUMNS = ("slot", "vma kill", "vma drop", "view kill", "uffd drop", "bios", "sev-es slot", "sev-es vma")
"""Protection and what happens on a store; SEV-ES guests as the kernel of Linux 6.1 and of 6.18 protects them."""
ENDINGS = {
    "e": "exit-port",
    "v": "violation",
    "h": "host-limit",
    "f": "triple-fault",
    "t": "timeout",
}
"""By the letters of the table; a dash is a run that makes no sense."""

_END = tell(EXIT_VALUE)
_RAM_COPY = 0x30000


@dataclass(frozen=True, slots=True)
class HostileGuest:
    """A guest, and one letter of ``ENDINGS`` for each of ``COLUMNS``."""

    name: str
    purpose: str
    code: bytes
    model: str
    kvm: dict[str, str] = field(default_factory=dict)
    """Letters for KVM by vendor module, where they differ from the model's."""
    bits: Bits = 32
    programs: bool = False
    """Whether behind a read-only slot it does change unit 1, by commands, as is its right."""

    def ending(self, column: str, host: str) -> str | None:
        """The word of the ending on ``model`` or a vendor module, or None where it is not run."""
        letters = dict(zip(COLUMNS, self.kvm.get(host, self.model), strict=True))
        if host != "model":
            if host not in self.kvm:
                letters["uffd drop"] = letters["vma drop"]
            letters["sev-es slot"] = letters["sev-es vma"] = "-"
        return ENDINGS.get(letters[column])


def image(guest: HostileGuest) -> bytes:
    """Its firmware image."""
    return make_image(guest.code, guest.bits)


_END = tell(EXIT_VALUE)
_RAM_COPY = 0x30000
_AX = 0x41414141
_INTERPRETED = {"kvm_pvm": "evevee--"}
"""Supervisor code is interpreted there, so that a fault becomes an MMIO exit, which can be dropped."""
_NOT_INTERPRETED = {"kvm_pvm": "ehhhhe--"}
"""The same, where its interpreter gives up."""


def _from_ram(code: bytes) -> bytes:
    """Copy ``code`` to RAM and run it there: flash that takes commands cannot be executed."""
    copy = (
        b"\xe8\x00\x00\x00\x00\x5e\x83\xc6\x17"  # call 1f; 1: pop esi; add esi, code - 1b
        + b"\xbf" + struct.pack("<I", _RAM_COPY)  # mov edi, _RAM_COPY
        + b"\xb9" + struct.pack("<I", len(code))  # mov ecx, length
        + b"\xf3\xa4"  # rep movsb
        + b"\xb8" + struct.pack("<I", _RAM_COPY) + b"\xff\xe0"  # mov eax, _RAM_COPY; jmp eax
    )  # fmt: skip
    assert len(copy) == 5 + 0x17
    return copy + code


def _commands(gpa: int, *values: int) -> bytes:
    return store_all([(gpa, value) for value in values])


def _to_edi(gpa: int) -> bytes:
    return b"\xbf" + struct.pack("<I", gpa)  # mov edi, gpa


def _dword(gpa: int, value: int) -> bytes:
    return b"\xc7\x05" + struct.pack("<II", gpa, value)  # mov dword [gpa], value


def _dma(target: int, length: int) -> bytes:
    """fw_cfg: read ``length`` bytes of the signature to ``target``."""
    access = struct.pack(">IIQ", 1 << 3 | 1 << 1, length, target)
    words = struct.unpack("<4I", access)
    return b"".join(_dword(0x4000 + 4 * index, word) for index, word in enumerate(words)) + (
        b"\x66\xba\x14\x05\x31\xc0\xef"  # mov dx, 0x514; xor eax, eax; out dx, eax
        + b"\x66\xba\x18\x05\xb8" + struct.pack(">I", 0x4000) + b"\xef"  # mov dx, 0x518; mov eax, ...; out dx, eax
    )  # fmt: skip


HOSTILE = (
    HostileGuest(
        "store-code", "stores a byte into its own code",
        store(CODE + 0x8000, 0x41) + _END, "evev-evv",
    ),
    HostileGuest(
        "store-vars", "stores a byte that is no command into its variables",
        store(VARS + 0x10, 0x41) + _END, "evev-evv",
    ),
    HostileGuest(
        "store-reset-vector", "overwrites what the next reset would run",
        store(FOUR_GIB - 16, 0xEB) + _END, "evev-evv",
    ),
    HostileGuest(
        "store-legacy-window", "goes for its code by the window below 1 MiB, where a sealed guest has RAM",
        store(0xF8000, 0x41) + _END, "evev-eee",
    ),
    HostileGuest(
        "modify-next-instruction", "rewrites the operand of the instruction that it runs next",
        # call 1f; 1: pop esi; mov byte [esi + 6], 6; mov al, 7; out 0xf4, al; jmp $
        b"\xe8\x00\x00\x00\x00\x5e\xc6\x46\x06\x06\xb0\x07\xe6\xf4\xeb\xfe", "evev-evv",
    ),
    HostileGuest(
        "or", "modifies a byte in place",
        b"\x80\x0d" + struct.pack("<IB", VARS, 1) + _END, "evvv-evv", _INTERPRETED,
    ),
    HostileGuest(
        "locked", "sets a bit with the bus locked",
        b"\xf0\x0f\xba\x2d" + struct.pack("<IB", VARS, 0) + _END, "evvv-evv", _NOT_INTERPRETED,
    ),
    HostileGuest(
        "exchange", "swaps a register with flash",
        b"\x87\x05" + struct.pack("<I", VARS) + _END, "evvv-evv", _NOT_INTERPRETED,
    ),
    HostileGuest(
        "string", "fills 64 bytes by a repeated string instruction",
        _to_edi(VARS) + b"\xb0\x41\xb9\x40\x00\x00\x00\xf3\xaa" + _END, "evvv-evv", _INTERPRETED,
    ),
    HostileGuest(
        "x87", "stores an x87 register, which no KVM emulates",
        b"\xdb\xe3\xd9\xe8\xd9\x1d" + struct.pack("<I", VARS) + _END, "hvvv-evv",
        {"kvm_amd": "hvvvvh--", "kvm_pvm": "hhhhhh--"},
    ),
    HostileGuest(
        "stack-in-flash", "pushes onto a stack in flash",
        b"\xbc" + struct.pack("<I", VARS + 0x100) + b"\x50" + _END, "evvv-evv", _INTERPRETED,
    ),
    HostileGuest(
        "across-units", "stores four bytes over the border of both units",
        _dword(CODE - 2, _AX) + _END, "evev-evv",
    ),
    HostileGuest(
        "across-hole", "stores four bytes from where nothing is into flash",
        _dword(VARS - 2, _AX) + _END, "evev-e--",
    ),
    HostileGuest(
        "across-pages", "stores four bytes over the end of a page",
        _dword(VARS + 0xFFE, _AX) + _END, "evev-evv",
    ),
    HostileGuest(
        "qword", "stores eight bytes at once",
        b"\x48\xb8" + b"\x41" * 8 + _to_edi(VARS) + b"\x48\x89\x07" + _END, "evev-e--", bits=64,
    ),
    HostileGuest(
        "program-code", "programs its own code by a proper command",
        _from_ram(_commands(CODE + 0x8000, 0x10, 0x41, 0xFF) + _END), "evev-evv",
    ),
    HostileGuest(
        "erase-code", "erases its own code by a proper command",
        _from_ram(_commands(CODE + 0x8000, 0x20, 0xD0, 0xFF) + _END), "evev-evv",
    ),
    HostileGuest(
        "erase-vars", "erases variables by a proper command",
        _commands(VARS, 0x20, 0xD0, 0xFF) + _END, "evev-evv", programs=True,
    ),
    HostileGuest(
        "half-a-program", "begins a program and goes away",
        _commands(VARS, 0x10) + _END, "evev-evv",
    ),
    HostileGuest(
        "endless-buffer", "leaves the block of a buffered program",
        _commands(VARS, 0xE8, 0xFF)
        + _commands(VARS + 0x8000, 1, 2, 3, 4)
        + _commands(VARS, *([0xFF] * 260))
        + _END,
        "evev-evv",
    ),
    HostileGuest(
        "leave-status-mode-on", "reads its variables while they show status",
        _commands(VARS, 0x70) + tell_memory(VARS), "evev-evv",
    ),
    HostileGuest(
        "ten-thousand", "stores ten thousand times",
        # mov ecx, 10000; 1: mov byte [VARS], 0x41; dec ecx; jnz 1b
        b"\xb9\x10\x27\x00\x00" + store(VARS, 0x41) + b"\x49\x75\xf6" + _END, "evev-evv",
    ),
    HostileGuest(
        "dma-into-code", "lets a device store into its code",
        _dma(CODE + 0x8000, 4) + _END, "evev-e--",
    ),
    HostileGuest(
        "dma-that-wraps", "lets a device store over the end of memory",
        _dma((1 << 64) - 8, 16) + _END, "evev-e--",
    ),
    HostileGuest(
        "triple-fault", "has no handler for its fault",
        b"\x0f\x01\x1d\x00\x10\x00\x00\x0f\x0b", "ffff-fff",  # lidt [0x1000]; ud2
    ),
    HostileGuest("spin", "does nothing for ever", b"\xeb\xfe", "tttt-t--"),
    HostileGuest("halt", "halts with interrupts off", b"\xfa\xf4\xeb\xfc", "tttt-t--"),
)  # fmt: skip
