"""Devices, CPUs and kernels of an unmodified QEMU on the modelled KVM (QEMU's -accel kvm; Linux boot protocol)."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.firmware_images import require_kernel
from support.kvm_guests import TEXT, bootable_disk, disk, flash, guest, wait_until

from casemate import native
from casemate.testing.linux_init import initramfs, printing_init

pytestmark = [
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
    pytest.mark.skipif(not native.KVM.exists(), reason="casemate's library for other VMMs was not built"),
]
ROM = Path("/usr/lib/ipxe/qemu/pxe-virtio.rom")
HELLO = "user mode reached"


@pytest.mark.parametrize("machine", ["q35", "pc", "q35,kernel-irqchip=split", "pc,kernel-irqchip=off"])
def test_seabios_boots_from_a_virtio_disk_and_the_timer_ticks(tmp_path: Path, machine: str) -> None:
    with guest(tmp_path, "-M", machine, "-m", "64", *disk(bootable_disk(tmp_path))) as found:
        found.wait_for(f"{TEXT}..")
        found.monitor().call("quit")
        (vm,) = found.summary()["vms"]
    assert (vm["irqchip"], vm["violations"]) == ("irqchip=off" not in machine, [])


def test_guest_that_was_migrated_to_a_file_goes_on_with_its_timer(tmp_path: Path) -> None:
    state, before, after = tmp_path / "state", tmp_path / "before", tmp_path / "after"
    machine = ("-M", "q35", "-m", "64", *disk(bootable_disk(tmp_path)))
    for folder in (before, after):
        folder.mkdir()
    with guest(before, *machine) as source:
        source.wait_for(f"{TEXT}.")
        monitor = source.monitor()
        monitor.call("migrate", uri=f"exec:cat > {state}")
        wait_until(lambda: monitor.call("query-migrate").get("status") in ("completed", "failed"))
        assert monitor.call("query-migrate")["status"] == "completed"
        monitor.call("quit")
        source.summary()
    with guest(after, *machine, "-incoming", f"exec:cat {state}") as target:
        target.wait_for("..")
        assert TEXT not in target.serial()
        target.monitor().call("quit")
        target.summary()


class _Server(ThreadingHTTPServer):
    """Of two scripts for iPXE, the first of which asks for the second."""

    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        url = f"http://10.0.2.2:{self.server.server_port}/second"
        body = (f"#!ipxe\nimgfetch {url}\n" if self.path == "/first" else "#!ipxe\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def scripts() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(not ROM.exists(), reason="iPXE for QEMU's network cards is not installed (ipxe-qemu)")
def test_guest_exchanges_data_by_tcp_with_this_host_through_a_virtio_card(tmp_path: Path) -> None:
    with scripts() as server:
        network = f"user,id=n,bootfile=http://10.0.2.2:{server.server_port}/first"
        card = ("-netdev", network, "-device", "virtio-net-pci,netdev=n,bootindex=1")
        with guest(tmp_path, "-M", "q35", "-m", "256", *card) as found:
            wait_until(lambda: "/second" in server.asked or found.process.poll() is not None)
            found.monitor().call("quit")
            found.summary()
    assert server.asked[:2] == ["/first", "/second"]


@pytest.mark.boot
@pytest.mark.parametrize(
    ("release", "machine", "processor", "has_ovmf"),
    [
        ("bookworm", "q35", "host", False),
        ("bookworm", "q35,kernel-irqchip=split", "host", False),
        ("bookworm", "q35,kernel-irqchip=off", "host", False),
        ("trixie", "pc", "max", False),
        ("trixie", "q35", "qemu64", True),
    ],
)
def test_debians_kernel_comes_to_user_mode_and_powers_off(
    tmp_path: Path, release: str, machine: str, processor: str, has_ovmf: bool
) -> None:
    kernel, archive = require_kernel(release), tmp_path / "initrd"
    archive.write_bytes(initramfs(printing_init(HELLO)))
    firmware = flash(tmp_path, "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd") if has_ovmf else []
    line = ("-kernel", str(kernel), "-initrd", str(archive), "-append", "console=ttyS0 panic=-1 quiet")
    with guest(
        tmp_path, "-M", machine, "-cpu", processor, "-m", "512", "-no-reboot", *line, *firmware
    ) as linux:
        linux.wait_for(HELLO)
        (vm,) = linux.summary()["vms"]
    assert vm["violations"] == []


def _held(pid: int) -> tuple[int, int, int]:
    """Descriptors, threads and mappings of a process."""
    process = Path("/proc", str(pid))
    descriptors, threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
    return descriptors, threads, len((process / "maps").read_text().splitlines())


def test_two_hundred_stops_and_resets_leave_nothing_behind(tmp_path: Path) -> None:
    said = tmp_path / "seabios"
    console = ("-chardev", f"file,id=said,path={said}", "-device", "isa-debugcon,iobase=0x402,chardev=said")

    def starts() -> int:
        return said.read_text("latin-1").count("No bootable device") if said.exists() else 0

    # Without a disk: QEMU's threads for disks come and go.
    with guest(tmp_path, "-M", "q35", "-m", "64", *console, options=("--quiet",)) as found:
        wait_until(lambda: starts() > 0)
        monitor, before = found.monitor(), (0, 0, 0)
        for number in range(240):
            if number == 40:
                before = _held(found.process.pid)
            assert monitor.call("stop") == {}
            if number % 4 == 0:
                assert monitor.call("system_reset") == {}
            assert monitor.call("cont") == {}
        so_far = starts()
        monitor.call("system_reset")
        wait_until(lambda: starts() > so_far)
        after = _held(found.process.pid)
        monitor.call("quit")
        assert found.process.wait(60) == 0
    assert after[:2] == before[:2]
    assert after[2] <= before[2] + 40


def test_killed_monitor_leaves_no_process(tmp_path: Path) -> None:
    with guest(
        tmp_path, "-M", "q35", "-m", "64", *disk(bootable_disk(tmp_path)), options=("--quiet",)
    ) as found:
        found.wait_for(TEXT)
        found.process.kill()
        assert found.process.wait(60) == -signal.SIGKILL
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert str(found.process.pid) not in children
