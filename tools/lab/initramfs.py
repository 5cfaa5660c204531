"""The first file system of the rig's kernel: busybox, modules, and an init (Linux buffer-format.rst)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from casemate.testing.linux_init import DIRECTORY, PROGRAM, archive_entry
from tools.lab.kernel import Kernel

_FOLDERS = ("bin", "proc", "sys", "dev", "modules", "work", "below", "above", "machine")

# The machine's own files appear read-only below a tmpfs, so that nothing that is written reaches them.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
share=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o $share,cache=none work /work
mount -t 9p -o $share,cache=loose,ro below /below
mount -t tmpfs above /above; mkdir /above/upper /above/work
mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work overlay /machine
mount -t proc proc /machine/proc; mount -t sysfs sys /machine/sys; mount --move /dev /machine/dev
mkdir -p /machine/dev/shm /machine/out; mount -t tmpfs shm /machine/dev/shm; mount --move /work /machine/out
ip link set lo up
port=/dev/$(ls /sys/class/virtio-ports)
chroot /machine /bin/sh -c "exec /bin/sh /out/command </dev/null >$port 2>&1"
echo $? >/machine/out/status
sync; echo o >/proc/sysrq-trigger; sleep 60
"""


def build_initramfs(kernel: Kernel) -> bytes:
    """The compressed archive."""
    return gzip.compress(b"".join(_entries(kernel)), 1)


def _entries(kernel: Kernel) -> Iterator[bytes]:
    for folder in _FOLDERS:
        yield archive_entry(folder, DIRECTORY)
    yield archive_entry("bin/busybox", PROGRAM, kernel.busybox.read_bytes())
    yield archive_entry("init", PROGRAM, _INIT.encode())
    yield archive_entry("modules/order", PROGRAM, "\n".join(name for name, _ in kernel.modules).encode())
    for name, data in kernel.modules:
        yield archive_entry(f"modules/{name}.ko", PROGRAM, data)
    yield archive_entry("TRAILER!!!", 0)
