"""Sequences of port and MMIO accesses, DMA and interrupts on whole boards (docs/design/devices.md)."""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from casemate.address import FOUR_GIB, IOAPIC_BASE, LAPIC_BASE, Gpa
from casemate.guests.entry import make_image
from casemate.host.clock import GuestClock
from casemate.machine.console import Console
from casemate.machine.devices import Controls
from casemate.machine.firmware import FirmwareFile
from casemate.machine.platform import Platform
from casemate.machine.recorder import Recorder
from casemate.machine.spec import BoardName, MachineSpec
from casemate.memory.protection import choose as choose_protection
from casemate.testing.images import variable_store
from casemate.testing.recording_vm import RecordingVm
from fuzz.packed import NUMBERS, Packed
from fuzz.target import Target, count, quick

MIB = 1 << 20
SPARE = 0x8000
"""Guest memory where requests for DMA are written."""
PORTS = (
    *(0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x40, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x92, 0x80, 0xE9),
    *(
        0x3F8,
        0x3F9,
        0x3FA,
        0x3FB,
        0x3FC,
        0x3FD,
        0x3FE,
        0x402,
        0x510,
        0x511,
        0x514,
        0x518,
        0xCF8,
        0xCF9,
        0xCFC,
        0xCFE,
    ),
    *(0x600, 0x604, 0x608, 0xB000, 0xB004, 0xB008, 0xAFE0, 0xE0, 0xF4, 0x2000, 0xFFFF),
)
PLACES = (
    *(
        0,
        SPARE,
        0x9FFFC,
        0xA0000,
        0xE0000,
        0xFFFFC,
        MIB - 2,
        LAPIC_BASE,
        LAPIC_BASE + 0x80,
        LAPIC_BASE + 0x300,
    ),
    *(
        LAPIC_BASE + 0x320,
        LAPIC_BASE + 0x380,
        LAPIC_BASE + 0x3E0,
        IOAPIC_BASE,
        IOAPIC_BASE + 0x10,
        0xB0000000,
    ),
    *(
        0xE0000000,
        0xFED00000,
        FOUR_GIB - 16,
        FOUR_GIB - 0x10000,
        FOUR_GIB - 0x20000,
        FOUR_GIB,
        1 << 39,
        (1 << 52) - 8,
    ),
)
DMA_KEYS = (0x0, 0x1, 0x5, 0x19, 0x20, 0x21, 0x24, 0x28, 0x7FFF, 0xC020)
WIDTHS = (1, 2, 4, 8)


class Board:
    """A board without CPUs; ``asked`` counts what its devices wanted of the machine."""

    def __init__(self, name: BoardName, *, in_flash: bool) -> None:
        spec, vm, self.clock = _spec(name, in_flash), RecordingVm(), GuestClock()
        self.asked = 0
        recorder = Recorder()
        protection = choose_protection(
            spec.kind,
            flash=in_flash,
            capabilities=vm.capabilities,
            requested=spec.protection,
            on_write=spec.on_write,
        )
        controls = Controls(self._ask, self._ask, self._ask)
        self.platform = Platform(
            spec, vm, protection, self.clock, Console(recorder), recorder, controls, threading.RLock()
        )
        self.platform.register_memory()
        images = [make_image(b"\xf4", 32), variable_store(0x20000)] if in_flash else [make_image(b"\xf4", 32)]
        end, files = FOUR_GIB, []
        for number, image in enumerate(images):
            end -= len(image)
            files.append(FirmwareFile(f"image {number}", Gpa(end), image))
        self.platform.place_firmware(files)

    def do(self, choose: Packed) -> None:
        """One thing that a guest, or its CPU, may do."""
        bus, interrupts = self.platform.bus, self.platform.interrupts
        what = choose.below(10)
        size = choose.of(WIDTHS[:3])
        port = choose.of((*PORTS, choose.bits(16)))
        wide = choose.of((1, 2, 4, 8, 4, 4))
        gpa = choose.of(PLACES) + choose.of((0, 0, 0, choose.bits(12)))
        value = choose.of((choose.bits(8), choose.bits(32), 0, (1 << 64) - 1))
        match what:
            case 0 | 1:
                assert 0 <= bus.read_port(port, size) < 1 << 8 * size
            case 2 | 3 | 4:
                bus.write_port(port, size, value & ((1 << 8 * size) - 1))
            case 5:
                assert 0 <= bus.read_mmio(gpa, wide) < 1 << 8 * wide
            case 6:
                bus.write_mmio(gpa, wide, value & ((1 << 8 * wide) - 1))
            case 7:
                self._dma(choose, gpa)
            case 8:
                bus.write_port(0xCF8, 4, 0x80000000 | choose.bits(16) & 0xFFFC | port << 16 & 0x0F0000)
                bus.write_port(0xCFC + choose.below(4), 1, value & 0xFF)
            case _:
                if interrupts is not None:
                    interrupts.deadline()
                    if interrupts.pending():
                        assert -1 <= interrupts.acknowledge() <= 0xFF
                    self.clock.skip(choose.of((0, 1, 1_000_000, 1 << 40, 1 << 55)))

    def _dma(self, choose: Packed, gpa: int) -> None:
        bus = self.platform.bus
        control = choose.bits(5) | choose.of(DMA_KEYS) << 16
        length = choose.of((0, 1, 4, 56, 0x1000, 0x20000, choose.bits(20), 0xFFFFFFFF))
        request = struct.pack(">IIQ", control, length, gpa)
        at = choose.of((SPARE, SPARE, SPARE, 0x9FFF8, FOUR_GIB - 8, gpa))
        for offset in range(0, len(request), 4):
            bus.write_mmio(at + offset, 4, int.from_bytes(request[offset : offset + 4], "little"))
        bus.write_port(0x514, 4, int.from_bytes((at >> 32 & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        bus.write_port(0x518, 4, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "big"), "little"))

    def _ask(self) -> None:
        self.asked += 1


@functools.cache
def _spec(name: BoardName, in_flash: bool) -> MachineSpec:
    spec = MachineSpec(bios=Path("BIOS.fd"), machine=name, memory=2 * MIB, test_device=name != "bare")
    return spec.replace(bios=None, code=Path("CODE.fd"), variables=Path("VARS.fd")) if in_flash else spec


@quick(200)
@given(
    st.sampled_from(("q35", "q35", "pc", "bare")), st.booleans(), st.lists(NUMBERS, min_size=10, max_size=40)
)
def check(name: BoardName, in_flash: bool, sequence: Sequence[int]) -> None:
    """Every access is answered within its width; a reset afterwards works, and so does the board."""
    board = Board(name, in_flash=in_flash)
    try:
        for number in sequence:
            board.do(Packed(number))
        board.platform.reset()
        assert board.platform.bus.read_port(0x3FD, 1) & 0x60 == 0x60
        assert len(board.platform.bus.unclaimed) <= 4096
    finally:
        board.platform.close()
    count(len(sequence))


TARGET = Target("devices", "ports, MMIO, DMA and interrupts of whole boards", check, "accesses")
