"""fw_cfg by port and by DMA, with good and bad requests."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.address import Gpa
from casemate.devices.fw_cfg.fw_cfg import FwCfg
from casemate.devices.fw_cfg.keys import Key
from casemate.errors import SpecError
from casemate.events import Milestone, Violation
from casemate.memory.backing import Backing
from casemate.memory.guest_memory import GuestMemory
from casemate.memory.map import MemoryMap
from casemate.memory.region import Ram
from casemate.testing.recording_vm import RecordingSink, RecordingVm

RAM_SIZE = 0x400000
REQUEST, BUFFER = 0x1000, 0x2000
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
E820 = bytes(range(60))


class Machine:
    def __init__(self) -> None:
        self.sink = RecordingSink()
        vm = RecordingVm()
        memory_map = MemoryMap(vm)
        self._backing = Ram("ram", Backing("ram", RAM_SIZE))
        self.ram = self._backing.backing.writable.view
        memory_map.add(self._backing, Gpa(0))
        memory_map.commit()
        self.device = FwCfg(GuestMemory(memory_map, vm, self.sink), self.sink)
        self.device.add_file("etc/e820", E820)

    def select(self, key: int) -> None:
        assert self.device.write_port(0, 2, key)

    def read(self, count: int) -> bytes:
        return bytes(self.device.read_port(1, 1) or 0 for _ in range(count))

    def key_of(self, name: str) -> int:
        self.select(Key.FILE_DIR)
        (count,) = struct.unpack(">I", self.read(4))
        for _ in range(count):
            _size, key, _, raw = struct.unpack(">IHH56s", self.read(64))
            if raw.rstrip(b"\0").decode() == name:
                return int(key)
        raise AssertionError(f"no file {name}")

    def start_dma(self, gpa: int) -> None:
        halves = struct.unpack("<II", struct.pack(">Q", gpa))
        assert self.device.write_port(4, 4, halves[0])
        assert self.device.write_port(8, 4, halves[1])

    def dma(self, control: int, length: int, target: int = BUFFER, at: int = REQUEST) -> int:
        self.ram[at : at + 16] = struct.pack(">IIQ", control, length, target)
        self.start_dma(at)
        return int(struct.unpack_from(">I", self.ram, at)[0])

    def dma_read(self, key: int, length: int) -> bytes:
        assert self.dma(key << 16 | SELECT | READ, length) == 0
        return bytes(self.ram[BUFFER : BUFFER + length])


def test_fw_cfg_shows_signature_and_features() -> None:
    machine = Machine()
    machine.select(Key.SIGNATURE)
    assert machine.read(6) == b"QEMU\0\0"
    machine.select(Key.ID)
    assert machine.read(4) == b"\x03\0\0\0"


def test_fw_cfg_directory_is_sorted_and_numbered_from_0x20() -> None:
    machine = Machine()
    machine.device.add_file("bootorder", b"x\0")
    machine.device.add_file("opt/casemate", b"abc")
    machine.select(Key.FILE_DIR)
    directory = machine.read(4 + 3 * 64)
    assert directory[:4] == b"\0\0\0\x03"
    entries = [struct.unpack_from(">IHH56s", directory, 4 + 64 * i) for i in range(3)]
    assert [(size, key, name.rstrip(b"\0")) for size, key, _, name in entries] == [
        (2, 0x20, b"bootorder"),
        (60, 0x21, b"etc/e820"),
        (3, 0x22, b"opt/casemate"),
    ]


def test_fw_cfg_reads_files_by_port_with_zeros_behind_the_end() -> None:
    machine = Machine()
    machine.select(machine.key_of("etc/e820"))
    assert machine.read(64) == E820 + bytes(4)
    machine.select(0x1234)
    assert machine.read(2) == b"\0\0"


def test_fw_cfg_selecting_starts_over_and_ignores_the_write_bit() -> None:
    machine = Machine()
    machine.select(Key.SIGNATURE)
    machine.read(2)
    machine.select(Key.SIGNATURE | 0x4000)
    assert machine.read(4) == b"QEMU"


@pytest.mark.parametrize("name", ["", "x" * 56, "etc/\xe4", "a\0b", "etc/e820"])
def test_fw_cfg_refuses_bad_file_names(name: str) -> None:
    with pytest.raises(SpecError, match="fw_cfg file"):
        Machine().device.add_file(name, b"")


def test_fw_cfg_dma_register_shows_its_signature() -> None:
    device = Machine().device
    assert device.read_port(4, 4) == int.from_bytes(b"QEMU", "little")
    assert device.read_port(8, 4) == int.from_bytes(b" CFG", "little")
    assert device.read_port(11, 1) == ord("G")
    assert device.read_port(10, 4) is None


def test_fw_cfg_dma_reads_in_parts_like_the_port() -> None:
    machine = Machine()
    key = machine.key_of("etc/e820")
    assert machine.dma_read(key, 10) == E820[:10]
    assert machine.dma(SKIP, 10) == 0
    assert machine.dma(READ, 5) == 0
    assert bytes(machine.ram[BUFFER : BUFFER + 5]) == E820[20:25]
    assert machine.read(1) == E820[25:26]


def test_fw_cfg_dma_fills_with_zeros_behind_the_end() -> None:
    machine = Machine()
    machine.ram[BUFFER : BUFFER + 0x300000] = b"\xee" * 0x300000
    assert machine.dma_read(machine.key_of("etc/e820"), 0x250000) == E820 + bytes(0x250000 - len(E820))
    assert machine.ram[BUFFER + 0x250000] == 0xEE


def test_fw_cfg_dma_select_alone_moves_nothing() -> None:
    machine = Machine()
    assert machine.dma(Key.SIGNATURE << 16 | SELECT, 100) == 0
    assert bytes(machine.ram[BUFFER : BUFFER + 4]) == bytes(4)
    assert machine.read(4) == b"QEMU"


@pytest.mark.parametrize("target", [RAM_SIZE, RAM_SIZE - 4, 0xFFC00000, (1 << 64) - 4, (1 << 64) - 1])
def test_fw_cfg_dma_to_a_bad_address_is_an_error_and_reported(target: int) -> None:
    machine = Machine()
    assert machine.dma(Key.SIGNATURE << 16 | SELECT | READ, 8, target) == ERROR
    assert any(isinstance(event, Violation) for event in machine.sink.events)


@pytest.mark.parametrize("gpa", [RAM_SIZE - 8, RAM_SIZE, (1 << 64) - 8])
def test_fw_cfg_dma_request_outside_of_ram_is_survived(gpa: int) -> None:
    machine = Machine()
    machine.start_dma(gpa)
    assert any(isinstance(event, Violation) for event in machine.sink.events)
    assert machine.dma_read(Key.SIGNATURE, 4) == b"QEMU"


def test_fw_cfg_dma_of_four_gigabytes_ends_at_the_end_of_ram() -> None:
    assert Machine().dma(SELECT | READ | 0x1234 << 16, 0xFFFFFFFF) == ERROR


def test_fw_cfg_dma_writes_writable_files_only() -> None:
    machine = Machine()
    machine.device.add_file("etc/features", b"\0" * 8, writable=True)
    key = machine.key_of("etc/features")
    machine.ram[BUFFER : BUFFER + 4] = b"abcd"
    assert machine.dma(key << 16 | SELECT | WRITE, 4) == 0
    assert machine.device.file("etc/features") == b"abcd" + bytes(4)
    assert machine.dma(WRITE, 5) == ERROR
    assert machine.dma(machine.key_of("etc/e820") << 16 | SELECT | WRITE, 4) == ERROR
    assert machine.device.file("etc/e820") == E820


def test_fw_cfg_reports_the_first_selection_once() -> None:
    machine = Machine()
    machine.select(Key.SIGNATURE)
    machine.device.reset()
    machine.select(Key.ID)
    assert machine.sink.events == [Milestone("PEI")]


def test_fw_cfg_refuses_odd_accesses() -> None:
    device = Machine().device
    assert not device.write_port(0, 1, 0)
    assert not device.write_port(8, 2, 0)
    assert not device.write_port(2, 1, 0)
    assert device.read_port(2, 1) is None
    assert device.read_port(1, 2) is None


@given(
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0x5000),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, RAM_SIZE),
)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_fw_cfg_dma_never_fails_whatever_the_guest_asks(
    control: int, length: int, target: int, low: int
) -> None:
    machine = MACHINE
    for where in (target, low):
        answer = machine.dma(control, length, where, at=RAM_SIZE - 16)
        assert answer in (0, ERROR) or where < RAM_SIZE <= where + length


MACHINE = Machine()


def test_file_that_is_replaced_is_read_anew_and_keeps_its_size() -> None:
    machine = Machine()
    key = machine.key_of("etc/e820")
    machine.device.replace_file("etc/e820", E820[::-1])
    machine.select(key)
    assert machine.read(len(E820)) == E820[::-1]
    with pytest.raises(SpecError, match="cannot change its size"):
        machine.device.replace_file("etc/e820", b"short")
