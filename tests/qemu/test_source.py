"""Whatever people have a guest in: read, or refused by what it looks like."""

from __future__ import annotations

import pytest

from casemate.errors import SpecError
from casemate.qemu.guest_request import GuestRequest
from casemate.qemu.source import read_commands

LOG = """\
2026-01-01 10:00:00.000+0000: starting up libvirt version: 12.1.0, qemu version: 10.0.2, kernel: 6.12.1, hostname: h
LC_ALL=C \\
PATH=/usr/bin \\
/usr/bin/qemu-system-x86_64 \\
-name guest=g1,debug-threads=on \\
-machine pc-q35-10.0,usb=off,pflash0=libvirt-pflash0-format \\
-accel kvm \\
-blockdev '{"driver":"file","filename":"/usr/share/OVMF/OVMF_CODE_4M.fd","node-name":"libvirt-pflash0-storage"}' \\
-blockdev '{"node-name":"libvirt-pflash0-format","read-only":true,"driver":"raw","file":"libvirt-pflash0-storage"}' \\
-msg timestamp=on
char device redirected to /dev/pts/0 (label charserial0)
"""
UNIT = """\
[Unit]
Description=A guest

[Service]
Environment=MEMORY=2G
ExecStart=/usr/bin/qemu-system-x86_64 -accel kvm -m ${MEMORY} \\
    -name %i -bios OVMF.fd
Restart=no
"""
READ = [
    ("shell script", "#!/bin/sh\nset -e\nmkdir -p x\nexec sudo qemu-system-x86_64 -m 1G\n"),
    ("shell script", "-m 1G -bios OVMF.fd"),
    ("shell script", "numactl -N 0 /opt/qemu/bin/qemu-system-x86_64 -m 1G"),
    ("shell script", "  4711 pts/0  Sl+  3:10 /usr/libexec/qemu-kvm -m 1G"),
    ("shell script", "root 12 0.0 1.5 123 456 ? Sl 10:00 0:01 /usr/bin/kvm -id 100 -m 2G"),
    ("shell script", "env FOO=1 $QEMU --enable-kvm -m 1G"),
    (
        "shell script",
        "libvirt 19403 100 0.8 2896956 144824 ? Sl 09:02 47:27 /usr/bin/qemu-system-x86_64 -name guest=g -object "
        '{"qom-type":"secret","id":"masterKey0","format":"raw"} -blockdev {"driver":"file","filename":"/v.fd"}',
    ),
    ("arguments of a process", "/usr/bin/qemu-system-x86_64\0-m\x001G\0"),
    ("arguments of a process", "qemu-kvm\0-name\0a b\0"),
    ("libvirt log", LOG),
    ("systemd unit", UNIT),
    ("domain XML", "<?xml version='1.0'?>\n<domain type='kvm'><os/></domain>"),
]


@pytest.mark.parametrize(("what", "text"), READ)
def test_guest_is_read_from(what: str, text: str) -> None:
    (command,) = read_commands(text.encode(), "file")
    assert command.what == what
    assert GuestRequest.of_words(command.words).options


def test_log_and_unit_keep_the_place_of_each_word() -> None:
    (command,) = read_commands(LOG.encode(), "g1.log")
    request = GuestRequest.of_words(command.words)
    assert [(flash.unit, flash.file, flash.readonly) for flash in request.flash] == [
        (0, "/usr/share/OVMF/OVMF_CODE_4M.fd", True)
    ]
    assert request.flash[0].option.word.line == 9
    (command,) = read_commands(UNIT.encode(), "g.service")
    request = GuestRequest.of_words(command.words)
    memory, name = request.last("-m"), request.last("-name")
    assert memory
    assert (memory.value, memory.word.line) == ("2G", 6)
    assert name
    assert name.word.unknown == ("%i",)


def test_all_command_lines_of_a_script_are_read() -> None:
    script = b"case $1 in\na) qemu-system-x86_64 -m 1G;;\nb) qemu-system-x86_64 -m 2G;;\nesac\n"
    assert [command.words[0].line for command in read_commands(script, "s")] == [2, 3]


REFUSED = [
    ("Cloud Hypervisor", "cloud-hypervisor --platform sev_snp=on --igvm guest.igvm"),
    ("Cloud Hypervisor", "sudo /usr/bin/cloud-hypervisor \\\n --kernel vmlinux -v"),
    ("Firecracker", "firecracker --api-sock /run/fc.sock --config-file vm.json"),
    ("crosvm", "crosvm run --cpus 2 -m 1024 vmlinux"),
    ("kvmtool", "lkvm run -k bzImage -m 512"),
    ("virt-install", "virt-install --name g --memory 2048 --boot uefi --launchSecurity sev"),
    ("systemd-vmspawn", "systemd-vmspawn --image=disk.raw --firmware=OVMF.fd"),
    ("qm", "qm start 100"),
    ("YAML", "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec:\n  running: true\n"),
    ("YAML", "vm:\n  - name: a\n    qemu: -m 1G\n"),
    ("JSON", '{"boot-source": {"kernel_image_path": "vmlinux"}}'),
    ("does not start QEMU", "hello world"),
    ("does not start QEMU", "The guest is started by qemu-system-x86_64 and a script, see there."),
    ("does not start QEMU", "apt-get install qemu-system-x86 ovmf"),
    ("no x86 machine", "qemu-system-aarch64 -machine virt -m 1G"),
    ("qemu-img", "qemu-img create -f qcow2 disk.qcow2 10G"),
    ("<network>", "<network><name>default</name></network>"),
    ("document type", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain/>"),
    ("no text", "\udcff\udcfe"),
    ("nothing is in it", " \n"),
    ("bytes are no command line", "x" * (3 << 20)),
]


@pytest.mark.parametrize(("what", "text"), REFUSED)
def test_other_things_are_refused_by_what_they_look_like(what: str, text: str) -> None:
    with pytest.raises(SpecError, match=what) as caught:
        read_commands(text.encode("utf-8", "surrogateescape"), "file")
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith("file: ")
