"""What vendors ship as working gives no error; each with the source of its shape."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import NamedTuple

import pytest
from support.firmware_images import require_image

from casemate.advise.lint import lint
from casemate.advise.rule import HostFacts, Severity
from casemate.firmware.image import FirmwareImage
from casemate.qemu.releases import QemuFacts
from casemate.qemu.source import read_commands


class Default(NamedTuple):
    """A vendor's configuration, where its shape is from, and whether its files can be stood in for."""

    vendor: str
    source: str
    text: str


def domain(machine: str, system: str, rest: str = "", attributes: str = "") -> str:
    return (
        f"<domain type='kvm'><name>g</name><memory unit='GiB'>2</memory><vcpu>2</vcpu><os{attributes}>"
        f"<type arch='x86_64' machine='{machine}'>hvm</type>{system}<boot dev='hd'/></os>"
        f"<features><acpi/>{rest}</features><cpu mode='host-model'/></domain>"
    )


DEFAULTS = [
    Default(
        "Fedora", "edk2-ovmf, 31-edk2-ovmf-4m-qcow2-x64-nosb.json; libvirt docs/formatdomain, format=",
        domain(
            "pc-q35-9.2",
            "<loader readonly='yes' type='pflash' format='qcow2'>/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2</loader>"
            "<nvram template='/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2' templateFormat='qcow2' format='qcow2'>"
            "/var/lib/libvirt/qemu/nvram/g_VARS.qcow2</nvram>",
            attributes=" firmware='efi'",
        ),
    ),
    Default(
        "Debian", "ovmf, README.Debian; 60-edk2-x86_64.json",
        domain(
            "pc-q35-10.0",
            "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/g_VARS.fd</nvram>",
        ),
    ),
    Default(
        "Ubuntu", "ovmf, 40-edk2-x86_64-secure-enrolled.json; libvirt's machine of noble",
        domain(
            "pc-q35-noble",
            "<loader readonly='yes' secure='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>"
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/g_VARS.fd</nvram>",
            "<smm state='on'/>",
        ),
    ),
    Default(
        "Proxmox", "qemu-server, src/PVE/QemuServer/OVMF.pm; qm showcmd",
        "/usr/bin/kvm -id 100 -name g,debug-threads=on -no-shutdown -daemonize"
        " -drive 'if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/pve-edk2-firmware//OVMF_CODE_4M.fd'"
        " -drive 'if=pflash,unit=1,id=drive-efidisk0,format=raw,file=/dev/pve/vm-100-OVMF_VARS_4M,size=540672'"
        " -smp 2,sockets=1,cores=2,maxcpus=2 -nodefaults -cpu x86-64-v2-AES,enforce -m 2048"
        " -machine 'type=pc-i440fx-9.2+pve1'",
    ),
    Default(
        "libvirt", "libvirt docs/kbase/launch_security_sev, firmware auto-selection",
        domain("q35", "", attributes=" firmware='efi'").replace(
            "</domain>", "<launchSecurity type='sev-snp'><policy>0x00030000</policy></launchSecurity></domain>"
        ),
    ),
    Default(
        "KubeVirt", "github.com/kubevirt/kubevirt/pull/1814, domain of a VirtualMachineInstance",
        domain(
            "pc-q35-rhel9.6.0",
            "<loader readonly='yes' secure='no' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
            "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/run/kubevirt-private/nvram/g_VARS.fd</nvram>",
        ),
    ),
    Default(
        "NixOS", "nixpkgs nixos/modules/virtualisation/qemu-vm.nix; github.com/NixOS/nixpkgs/pull/187887",
        'NIX_DISK_IMAGE=$(readlink -f "${NIX_DISK_IMAGE:-./nixos.qcow2}")\n'
        'NIX_EFI_VARS=$(readlink -f "${NIX_EFI_VARS:-./nixos-efi-vars.fd}")\n'
        "exec /nix/store/x-qemu-host-cpu-only/bin/qemu-kvm -cpu max \\\n -name nixos -m 1024 -smp 1 \\\n"
        " -device virtio-rng-pci -drive cache=writeback,file=\"$NIX_DISK_IMAGE\",id=drive1,if=none \\\n"
        " -drive if=pflash,format=raw,unit=0,readonly=on,file=/nix/store/x-OVMF-202411-fd/FV/OVMF_CODE.fd \\\n"
        ' -drive if=pflash,format=raw,unit=1,readonly=off,file="$NIX_EFI_VARS" $QEMU_OPTS "$@"\n',
    ),
    Default(
        "Incus", "github.com/lxc/incus, internal/server/instance/drivers/driver_qemu.go",
        "/opt/incus/bin/qemu-system-x86_64\0-S\0-name\0g\0-daemonize\0-cpu\0host,hv_passthrough\0-nographic\0"
        "-serial\0chardev:console\0-nodefaults\0-no-user-config\0-sandbox\0on,obsolete=deny\0"
        "-readconfig\0/run/incus/g/qemu.conf\0-pidfile\0/run/incus/g/qemu.pid\0",
    ),
    Default(
        "Arch", "edk2-ovmf; github.com/archlinux/archinstall/pull/4472, README",
        "qemu-system-x86_64 -enable-kvm -machine q35,accel=kvm -m 4096 -cpu host -smp 4 -vga std -boot d"
        " -drive if=pflash,format=raw,readonly=on,file=/usr/share/edk2/x64/OVMF_CODE.4m.fd"
        " -drive if=pflash,format=raw,file=OVMF_VARS.4m.fd -cdrom archlinux-x86_64.iso",
    ),
    Default(
        "OpenStack", "nova/virt/libvirt/config.py, LibvirtConfigGuest; nova/virt/libvirt/driver.py",
        domain(
            "pc-q35-6.2",
            "<loader type='pflash' readonly='yes' secure='no'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'/>",
        ),
    ),
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], FirmwareImage | None]:
    """Debian's images in place of each vendor's, by the names; qcow2 made of them by qemu-img."""

    def load(path: str) -> FirmwareImage | None:
        name = PurePath(path).name.replace(".4m.fd", "_4M.fd").replace("CODE_4M.ms", "CODE_4M.secboot")
        for known in (
            "OVMF_CODE_4M.secboot.fd",
            "OVMF_VARS_4M.ms.fd",
            "OVMF_CODE_4M",
            "OVMF_VARS_4M",
            "OVMF_CODE",
        ):
            if known.removesuffix(".fd") in name:
                return stand_in(known if known.endswith(".fd") else f"{known}.fd", name.endswith(".qcow2"))
        return None

    def stand_in(name: str, is_qcow2: bool) -> FirmwareImage:
        image = require_image(name, "bookworm")
        if not is_qcow2:
            return FirmwareImage.load(image)
        program = shutil.which("qemu-img")
        if program is None:
            pytest.skip("no qemu-img (Debian: qemu-utils)")
        target = tmp_path / f"{name}.qcow2"
        command = [program, "convert", "-f", "raw", "-O", "qcow2", str(image), str(target)]
        subprocess.run(command, check=True, capture_output=True)
        return FirmwareImage.load(target)

    return load


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda default: default.vendor)
def test_default_of_a_vendor_has_no_error(
    default: Default, files: Callable[[str], FirmwareImage | None]
) -> None:
    (command,) = read_commands(default.text.encode(), default.vendor)
    for load in (files, lambda _: None):
        found, _ = lint(command, HostFacts.of_era(), load, QemuFacts())
        assert [finding for finding in found if finding.severity is Severity.ERROR] == []


def test_ten_vendors_are_asked() -> None:
    assert len({default.vendor for default in DEFAULTS}) == len(DEFAULTS) == 10


@pytest.mark.parametrize(
    ("what", "before", "after", "rule"),
    [
        ("Fedora", "OVMF_CODE_4M.qcow2", "OVMF_VARS_4M.qcow2", "flash-swapped"),
        ("Debian", "machine='pc-q35-10.0'", "machine='pc-q35-99.0'", "machine-unknown"),
        ("Proxmox", "size=540672", "size=131072", "flash-pair"),
        ("libvirt", "type='sev-snp'", "type='sev-sno'", "libvirt-unknown"),
    ],
)
def test_a_fault_in_such_a_default_is_found(
    what: str, before: str, after: str, rule: str, files: Callable[[str], FirmwareImage | None]
) -> None:
    text = next(default.text for default in DEFAULTS if default.vendor == what)
    assert before in text
    (command,) = read_commands(text.replace(before, after).encode(), what)
    assert rule in {finding.id for finding in lint(command, HostFacts.of_era(), files)[0]}
