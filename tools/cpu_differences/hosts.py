"""Who runs the guest: the model, this machine's KVM, QEMU's TCG (qemu-system-x86_64(1), virt/kvm/api.rst)."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from support.assembler import assemble
from support.guest_rig import Rig

from casemate.abi.guest_kind import GuestKind
from casemate.errors import CasemateError
from casemate.guests.entry import make_image
from casemate.host.clock import GuestClock
from casemate.host.hypervisor import Vm
from casemate.host.kvm.hypervisor import KvmHypervisor
from casemate.host.model.hypervisor import ModelHypervisor
from casemate.memory.backing import Backing
from tools.cpu_differences.monitor import END_PORT, START, WINDOWS, Batch, Result

LIMIT = 300
"""Seconds after which a guest is taken to hang."""
QEMU = "qemu-system-x86_64"


class HostError(Exception):
    """A host that is not there, or a guest that did not come to its end on it."""


Host = Callable[[Batch], list[Result]]


def on_model(batch: Batch) -> list[Result]:
    """Results of casemate's own processor. Raises HostError."""
    return _on_vm(batch, lambda: ModelHypervisor(GuestClock()).create_vm(GuestKind.PLAIN))


def on_kvm(batch: Batch) -> list[Result]:
    """Results of this machine's processor, which executes user mode itself. Raises HostError."""
    return _on_vm(batch, lambda: KvmHypervisor().create_vm(GuestKind.PLAIN))


def _on_vm(batch: Batch, make: Callable[[], Vm]) -> list[Result]:
    windows = batch.windows()
    memory = Backing("windows", len(windows))
    try:
        memory.writable.view[:] = windows
        with Rig(assemble(START, 64), 64, make()) as rig:
            rig.ram.writable.view[:] = batch.low_memory()
            rig.add(5, WINDOWS, len(windows), memory.writable.hva)
            rig.bus.on_write_port[END_PORT] = rig.vcpu.stop
            watchdog = threading.Timer(LIMIT, rig.vcpu.stop)
            watchdog.start()
            try:
                end = rig.vcpu.run()
            finally:
                watchdog.cancel()
            if not any(kind == "out" and port == END_PORT for kind, port, _, _ in rig.bus.log):
                raise HostError(f"the guest ended with {end}")
        return batch.results(memory.writable.view)
    except CasemateError as error:
        raise HostError(str(error)) from error
    finally:
        memory.close()


def on_qemu(batch: Batch) -> list[Result]:
    """Results of QEMU's translator. Raises HostError."""
    if shutil.which(QEMU) is None:
        raise HostError(f"{QEMU} is not installed")
    with tempfile.TemporaryDirectory(prefix="casemate-") as name:
        memory, image = Path(name, "memory"), Path(name, "image")
        memory.write_bytes(batch.low_memory() + batch.windows())
        image.write_bytes(make_image(assemble(START, 64), 64))
        size = -(-memory.stat().st_size >> 20) << 20
        os.truncate(memory, size)
        line = [QEMU, "-accel", "tcg", "-cpu", "max", "-M", "pc,memory-backend=ram", "-m", f"{size >> 20}M"]
        line += ["-object", f"memory-backend-file,id=ram,share=on,size={size},mem-path={memory}"]
        line += ["-bios", str(image), "-device", f"isa-debug-exit,iobase={END_PORT:#x},iosize=1"]
        line += ["-nodefaults", "-display", "none", "-no-reboot"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            raise HostError("the guest hangs") from None
        if not done.returncode & 1:
            raise HostError(done.stderr.strip() or f"{QEMU} ended with {done.returncode}")
        with memory.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            windows = memoryview(view)[WINDOWS:]
            results = batch.results(windows)
            windows.release()
            return results


HOSTS: dict[str, Host] = {"model": on_model, "kvm": on_kvm, "qemu": on_qemu}
