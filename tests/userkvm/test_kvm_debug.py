"""A debugger at the gdb stub of an unmodified QEMU on the modelled KVM (GDB remote serial protocol)."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kvm_guests import TEXT, bootable_disk, guest, wait_until

from casemate import native

pytestmark = [
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
    pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built"),
]
BOOT, READ, AFTER_READING, TEXT_AT = 0x7C00, 0x7C14, 0x7C1D, 0x8000
"""Of the boot sector: its start, the INT 13h that reads the disk, behind its LODSB, and what that reads."""
RIP_AT, FLAGS_AT, TF = 128, 136, 1 << 8
"""Bytes of the registers that the stub tells: 16 general ones, then these."""
STOPPED = "T05"


class Debugger:
    """The debugger's side."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        wait_until(path.exists)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rb")

    def call(self, packet: str) -> str:
        """What the stub answers, sooner or later."""
        self._socket.sendall(f"${packet}#{sum(packet.encode()) & 255:02x}".encode())
        while self._stream.read(1) != b"$":
            continue
        found = b""
        while (letter := self._stream.read(1)) != b"#":
            found += letter
        self._stream.read(2)
        self._socket.sendall(b"+")
        return found.decode()

    def where(self) -> tuple[int, int]:
        """RIP and the flags."""
        registers = bytes.fromhex(self.call("g").replace("x", "0"))
        rip, flags = registers[RIP_AT : RIP_AT + 8], registers[FLAGS_AT : FLAGS_AT + 4]
        return int.from_bytes(rip, "little"), int.from_bytes(flags, "little")

    def memory(self, at: int, size: int) -> bytes:
        return bytes.fromhex(self.call(f"m{at:x},{size:x}"))


@pytest.fixture
def debugger(tmp_path: Path) -> Iterator[Debugger]:
    """Of a guest that waits before its first instruction, and whose boot sector prints a text."""
    disk = f"file={bootable_disk(tmp_path)},if=virtio,format=raw"
    stub = f"socket,path={tmp_path / 'stub'},server=on,wait=off,id=stub"
    with guest(
        tmp_path, "-M", "pc", "-m", "16", "-S", "-drive", disk, "-chardev", stub, "-gdb", "chardev:stub"
    ) as _:
        yield Debugger(tmp_path / "stub")


def test_breakpoints_stop_the_guest_and_a_step_is_one_instruction(debugger: Debugger) -> None:
    assert debugger.call(f"Z1,{BOOT:x},1") == "OK"
    assert debugger.call("c").startswith(STOPPED)
    assert debugger.where()[0] == BOOT
    assert debugger.call(f"z1,{BOOT:x},1") == "OK"
    code = debugger.memory(BOOT, 32)
    seen = []
    for _ in range(4):
        assert debugger.call("s").startswith(STOPPED)
        rip, flags = debugger.where()
        seen.append(rip - BOOT)
        assert not flags & TF, "the flag that steps are made by is not the guest's"
    assert seen == [2, 4, 6, 9]
    assert debugger.call(f"Z0,{READ:x},1") == "OK"
    assert debugger.call("c").startswith(STOPPED)
    assert debugger.where()[0] == READ
    assert debugger.memory(BOOT, 32) == code[: READ - BOOT] + b"\xcc" + code[READ - BOOT + 1 :]
    assert debugger.call(f"z0,{READ:x},1") == "OK"
    assert debugger.call("s").startswith(STOPPED), "one step, and no interrupt meanwhile"
    assert debugger.where()[0] != READ


def test_access_to_watched_data_stops_the_guest_behind_its_instruction(debugger: Debugger) -> None:
    assert debugger.call(f"Z1,{BOOT:x},1") == "OK"
    assert debugger.call("c").startswith(STOPPED)
    assert debugger.call(f"z1,{BOOT:x},1") == "OK"
    assert debugger.call(f"Z4,{TEXT_AT + 2:x},1") == "OK"
    # The sector comes there by DMA, which no breakpoint sees; then LODSB reads its third letter.
    assert debugger.call("c") == f"T05thread:01;awatch:{TEXT_AT + 2:016x};"
    assert debugger.where()[0] == AFTER_READING
    assert debugger.memory(TEXT_AT, len(TEXT)).decode() == TEXT
    assert debugger.call(f"z4,{TEXT_AT + 2:x},1") == "OK"
