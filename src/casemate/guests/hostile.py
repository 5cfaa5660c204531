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
from casemate.native.code import guest_code

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
_RAM_COPY, _DMA_LIST = 0x30000, 0x4000


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


_AX = 0x41414141
_INTERPRETED = {"kvm_pvm": "evevee--"}
"""Supervisor code is interpreted there, so that a fault becomes an MMIO exit, which can be dropped."""
_NOT_INTERPRETED = {"kvm_pvm": "ehhhhe--"}
"""The same, where its interpreter gives up."""


def _piece(name: str, **parameters: int) -> bytes:
    return guest_code(f"guests/hostile.{name}", **parameters)


def _from_ram(code: bytes) -> bytes:
    """Copy ``code`` to RAM and run it there: flash that takes commands cannot be executed."""
    return _piece("from_ram", ram_copy=_RAM_COPY, length=len(code)) + code


def _commands(gpa: int, *values: int) -> bytes:
    return store_all([(gpa, value) for value in values])


def _dword(gpa: int, value: int) -> bytes:
    return _piece("store_dword", gpa=gpa, value=value)


def _dma(target: int, length: int) -> bytes:
    """fw_cfg: read ``length`` bytes of the signature to ``target``."""
    access = struct.pack(">IIQ", 1 << 3 | 1 << 1, length, target)
    words = struct.unpack("<4I", access)
    stores = (_dword(_DMA_LIST + 4 * index, word) for index, word in enumerate(words))
    swapped = int.from_bytes(_DMA_LIST.to_bytes(4, "big"), "little")
    return b"".join(stores) + _piece("start_dma", list_swapped=swapped)


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
        _piece("modify_next_instruction"), "evev-evv",
    ),
    HostileGuest(
        "or", "modifies a byte in place",
        _piece("or_byte", gpa=VARS) + _END, "evvv-evv", _INTERPRETED,
    ),
    HostileGuest(
        "locked", "sets a bit with the bus locked",
        _piece("lock_bts", gpa=VARS) + _END, "evvv-evv", _NOT_INTERPRETED,
    ),
    HostileGuest(
        "exchange", "swaps a register with flash",
        _piece("exchange", gpa=VARS) + _END, "evvv-evv", _NOT_INTERPRETED,
    ),
    HostileGuest(
        "string", "fills 64 bytes by a repeated string instruction",
        _piece("string", gpa=VARS) + _END, "evvv-evv", _INTERPRETED,
    ),
    HostileGuest(
        "x87", "stores an x87 register, which no KVM emulates",
        _piece("x87", gpa=VARS) + _END, "hvvv-evv",
        {"kvm_amd": "hvvvvh--", "kvm_pvm": "hhhhhh--"},
    ),
    HostileGuest(
        "stack-in-flash", "pushes onto a stack in flash",
        _piece("push", gpa=VARS + 0x100) + _END, "evvv-evv", _INTERPRETED,
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
        _piece("store_qword", gpa=VARS) + _END, "evev-e--", bits=64,
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
        _piece("ten_thousand", gpa=VARS) + _END, "evev-evv",
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
        _piece("triple_fault"), "ffff-fff",
    ),
    HostileGuest("spin", "does nothing for ever", _piece("spin"), "tttt-t--"),
    HostileGuest("halt", "halts with interrupts off", _piece("halt"), "tttt-t--"),
)  # fmt: skip
