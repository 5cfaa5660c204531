"""Flash that a tiny guest programs on KVM: each command an exit, or late (docs/decisions/0007-late-commands.md)."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from struct import pack
from time import perf_counter_ns

from benches.table import Table
from casemate.abi.guest_kind import GuestKind
from casemate.address import FOUR_GIB, Gpa
from casemate.devices.bus import Bus
from casemate.devices.flash.cfi import CfiFlash
from casemate.devices.flash.file import FlashFile
from casemate.evidence.flash_log import FlashLog
from casemate.guests.entry import IMAGE_SIZE, make_image
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.kvm.modules import loaded_vendor_module
from casemate.host.kvm.vcpu import KvmVcpu
from casemate.machine.recorder import Recorder
from casemate.memory.backing import Backing
from casemate.memory.flash_memory import FlashMemory
from casemate.memory.map import MemoryMap
from casemate.memory.protection import WriteProtection
from casemate.memory.region import Ram, Rom, RomDevice

BYTES, FLASH_SIZE, RAM_SIZE = 4096, 0x84000, 0x200000
FLASH = Gpa(FOUR_GIB - 0x400000)
PORT = 0x80
PROGRAM = (
    b"\xbf" + pack("<I", FLASH) + b"\xb9" + pack("<I", BYTES) + b"\xe6\x80"  # mov edi; mov ecx; out 0x80, al
    + b"\xc6\x07\x10\x88\x0f\x47\xe2\xf8"  # 1: mov byte [edi], 0x10; mov [edi], cl; inc edi; loop 1b
    + b"\xc6\x47\xff\xff\xe6\x80\xeb\xfe"  # mov byte [edi - 1], 0xff; out 0x80, al; jmp $
)  # fmt: skip


class _Marks:
    """The port that the guest writes to before and after: notes when, and after how many exits."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.exits: list[int] = []
        self.vcpu: KvmVcpu | None = None

    def read_port(self, offset: int, size: int) -> int | None:
        return None

    def write_port(self, offset: int, size: int, value: int) -> bool:
        self.times.append(perf_counter_ns())
        assert self.vcpu is not None
        self.exits.append(self.vcpu.runs)
        if len(self.times) == 2:
            self.vcpu.stop()
        return True


def table(runs: int) -> Table:
    """Microseconds and exits a byte. Raises UnsupportedError without KVM."""
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(runs):
        for coalesced, values in found.items():
            values.append(_program(coalesced))
    rows = tuple(
        (name, *(statistics.median(column) for column in zip(*found[coalesced], strict=True)))
        for name, coalesced in (("each command an exit", False), ("coalesced", True))
    )
    note = f"{loaded_vendor_module()}, {BYTES} bytes with their file, medians of {runs} interleaved runs"
    return Table("Flash programmed on KVM", ("a byte", "us", "exits"), rows, (note,))


def _program(coalesced: bool) -> tuple[float, float]:
    recorder, vm, marks = Recorder(), KvmHypervisor().create_vm(GuestKind.PLAIN), _Marks()
    ram, rom, flash = Backing("ram", RAM_SIZE), Backing("rom", IMAGE_SIZE), Backing("flash", FLASH_SIZE)
    rom.writable.view[:] = make_image(PROGRAM, 32)
    memory_map = MemoryMap(vm)
    memory_map.add(Ram("ram", ram), Gpa(0))
    memory_map.add(Rom("rom", rom), Gpa(FOUR_GIB - IMAGE_SIZE))
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as folder:
        path = Path(folder) / "vars.fd"
        path.write_bytes(bytes(FLASH_SIZE))
        file = FlashFile.open(path, readonly=False)
        memory = FlashMemory(1, flash, WriteProtection.READONLY_SLOT, vm, recorder, coalesced=coalesced)
        device = CfiFlash(1, memory, file, recorder)
        recorder.watch_flash(1, FlashLog(memory.view))
        memory.attach(memory_map, RomDevice("flash1", flash, device), FLASH)
        bus = Bus(memory_map, vm, recorder)
        bus.claim_ports(PORT, 1, marks)
        marks.vcpu = vm.create_vcpu(bus, None)
        marks.vcpu.run()
        vm.close()
        file.close()
    for backing in (ram, rom, flash):
        backing.close()
    (begin, end), (before, after) = marks.times, marks.exits
    return (end - begin) / 1000 / BYTES, (after - before) / BYTES
