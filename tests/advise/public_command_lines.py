"""QEMU command lines out of public documents, cut down to what says something about firmware and confidentiality.

Where a document elides (``-machine ...``) or uses a variable of its script, a plausible value stands here. ``works`` is
what the document claims or reports, on hosts of its time; ``ids`` are the findings on the newest known kernel.
"""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """One line: the project, where it is written, whether it works, what is to be found."""

    project: str
    source: str
    command: str
    works: bool
    ids: frozenset[str]


def _line(project: str, source: str, command: str, *ids: str, works: bool = True) -> Line:
    return Line(project, source, f"qemu-system-x86_64 {command}", works, frozenset(ids))


_QEMU = "https://github.com/qemu/qemu/blob/master/docs/system"
_OVMF = "https://github.com/tianocore/edk2/blob/master/OvmfPkg/README"
_AMDSEV = "https://github.com/AMDESE/AMDSEV/issues"
_OPENSUSE = "https://build.opensuse.org/projects/SUSE:SLE-15-SP5:Update/packages/ovmf.17494/files/README"
_GIST = "https://gist.github.com"

LINES = (
    _line(
        "QEMU", f"{_QEMU}/confidential-guest-support.rst",
        "-accel kvm -machine q35,confidential-guest-support=sev0"
        " -object sev-guest,id=sev0,cbitpos=47,reduced-phys-bits=1",
    ),
    _line(
        "QEMU", f"{_QEMU}/i386/amd-memory-encryption.rst",
        "-accel kvm -cpu EPYC -machine q35,confidential-guest-support=sev0"
        " -object sev-guest,id=sev0,cbitpos=47,reduced-phys-bits=1,policy=0x5",
    ),
    _line(
        "QEMU", f"{_QEMU}/i386/tdx.rst",
        "-accel kvm -cpu host -object tdx-guest,id=tdx0 -machine q35,confidential-guest-support=tdx0 -bios OVMF.fd",
    ),
    _line(
        "QEMU", "qemu-options.hx of QEMU 7.0, -object sev-guest",
        "-enable-kvm -object sev-guest,id=sev0,cbitpos=47,reduced-phys-bits=5 -machine q35,memory-encryption=sev0",
        "reduced-phys-bits", "memory-encryption-alias",
    ),
    _line(
        "QEMU", f"{_QEMU}/igvm.rst",
        "-accel kvm -machine q35,confidential-guest-support=sev0,igvm-cfg=igvm0"
        " -object sev-guest,id=sev0,cbitpos=47,reduced-phys-bits=1 -object igvm-cfg,id=igvm0,file=sev-snp.igvm",
    ),
    _line(
        "edk2", f"{_OVMF}, SMM support",
        "-machine q35,smm=on,accel=kvm -m 2048 -smp 2 -global driver=cfi.pflash01,property=secure,value=on"
        " -drive if=pflash,format=raw,unit=0,file=OVMF_CODE.fd,readonly=on"
        " -drive if=pflash,format=raw,unit=1,file=copy_of_OVMF_VARS.fd -global ICH9-LPC.disable_s3=1",
    ),
    _line("edk2", f"{_OVMF}, option 1", "-pflash path/to/OVMF.fd"),
    _line("edk2", f"{_OVMF}, option 2", "-bios path/to/OVMF.fd", "bios-variables"),
    _line(
        "edk2", f"{_OVMF}, debug messages",
        "-pflash OVMF.fd -debugcon file:debug.log -global isa-debugcon.iobase=0x402",
    ),
    _line(
        "COCONUT-SVSM", "https://github.com/coconut-svsm/svsm/blob/main/Documentation/docs/installation/INSTALL.md",
        "-enable-kvm -cpu EPYC-v4 -machine q35,confidential-guest-support=sev0,memory-backend=ram1,igvm-cfg=igvm0"
        " -object memory-backend-memfd,id=ram1,size=8G,share=true,prealloc=false,reserve=false"
        " -object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1 -object igvm-cfg,id=igvm0,file=coconut-qemu.igvm"
        " -smp 8 -no-reboot -vga none -serial stdio",
    ),
    _line(
        "Ubuntu Server", "https://github.com/canonical/ubuntu-server-documentation, sev-snp.md",
        "-enable-kvm -nographic -machine q35 -smp 6 -m 6G -cpu EPYC-v4 -machine memory-encryption=sev0,vmport=off"
        " -object memory-backend-memfd,id=ram1,size=6G,share=true,prealloc=false -machine memory-backend=ram1"
        " -object sev-snp-guest,id=sev0,cbitpos=47,reduced-phys-bits=1,kernel-hashes=on,policy=0x30000"
        " -kernel ./vmlinuz -append root=/dev/vda1 -bios /usr/share/ovmf/OVMF.amdsev.fd",
        "cbitpos-value", "memory-encryption-alias",
    ),
    _line("openSUSE", f"{_OPENSUSE}, flash mode", "-pflash ovmf-x86_64.bin"),
    _line(
        "openSUSE", f"{_OPENSUSE}, flash mode with two files",
        "-drive if=pflash,format=raw,unit=0,readonly,file=/usr/share/qemu/ovmf-x86_64-code.bin"
        " -drive if=pflash,format=raw,unit=1,file=ovmf-x86_64-vars.bin",
    ),
    _line(
        "openSUSE", "https://build.opensuse.org/projects/SUSE:SLE-15-SP2:GA/packages/ovmf.9469/files/README",
        "-bios /usr/share/qemu/ovmf-x86_64.bin", "bios-variables",
    ),
    _line(
        "archinstall", "https://github.com/archlinux/archinstall/blob/master/README.md, Using a Live ISO Image",
        "-enable-kvm -m 4096 -cpu host -smp 4 -vga std -hda disk.qcow2 -cdrom archlinux-x86_64.iso -boot d"
        " -drive if=pflash,format=raw,readonly=on,file=/usr/share/edk2/x64/OVMF_CODE.4m.fd"
        " -drive if=pflash,format=raw,file=/usr/share/ovmf/x64/OVMF_VARS.4m.fd",
        "vars-template",
    ),
    _line(
        "AMDSEV", f"{_AMDSEV}/236",
        "-enable-kvm -smp 4 -m 8G,slots=5,maxmem=10G -cpu EPYC"
        " -machine q35,confidential-guest-support=sev0,memory-backend=ram1 -no-reboot -bios OVMF.fd"
        " -object memory-backend-memfd,id=ram1,size=8G,share=true,prealloc=false"
        " -object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1 -nographic -monitor pty",
        works=False,
    ),
    _line(
        "AMDSEV", f"{_AMDSEV}/242",
        "-enable-kvm -cpu EPYC -machine q35,confidential-guest-support=sev0,memory-backend=ram1 -bios OVMF_CODE_4M.fd"
        " -object memory-backend-memfd,id=ram1,size=8G,share=true,prealloc=false"
        " -object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on -kernel bzImage -initrd initrd",
        "bios-code", works=False,
    ),
    _line(
        "AMDSEV", f"{_AMDSEV}/199",
        "-enable-kvm -cpu EPYC-v4 -machine q35 -smp 4,maxcpus=255 -no-reboot"
        " -drive if=pflash,format=raw,unit=0,file=OVMF_CODE.fd,readonly=on -machine memory-encryption=sev0,vmport=off"
        " -object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1",
        "pflash-with-snp", "code-without-vars", "memory-encryption-alias", works=False,
    ),
    _line(
        "AMDSEV", f"{_AMDSEV}/77",
        "-enable-kvm -cpu EPYC-Milan -machine q35 -smp 2,maxcpus=64 -no-reboot"
        " -drive if=pflash,format=raw,unit=0,file=OVMF_CODE.fd,readonly=on"
        " -drive if=pflash,format=raw,unit=1,file=OVMF_VARS.fd -vnc :0 -machine memory-encryption=sev0,vmport=off"
        " -object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1",
        "pflash-with-snp", "memory-encryption-alias", works=False,
    ),
    _line(
        "VFIO tips", "http://vfio.blogspot.com/2014/09/ovmf-split-image-support.html",
        "-drive if=pflash,format=raw,readonly,file=/path/to/OVMF_CODE.fd"
        " -drive if=pflash,format=raw,file=/copy/of/OVMF_VARS.fd",
    ),
    _line(
        "linuiz", "https://github.com/linuiz-project/linuiz, qemu-run.bat",
        "-m 256M -serial stdio -machine q35 -cpu qemu64,+x2apic"
        " -drive if=pflash,format=raw,unit=0,file=./ovmf/OVMF_CODE-pure-efi.fd,readonly=on"
        " -drive if=pflash,format=raw,unit=1,file=./ovmf/OVMF_VARS-pure-efi.fd,readonly=on -net none",
        "vars-readonly",
    ),
    _line(
        "memflow", "https://github.com/memflow/memflow-efi, scripts/run_with_qemu.sh",
        "-enable-kvm -drive if=pflash,format=raw,readonly=on,file=/usr/share/edk2/x64/OVMF_CODE.fd"
        " -drive if=pflash,format=raw,readonly=on,file=/usr/share/edk2/x64/OVMF_VARS.fd",
        "vars-readonly",
    ),
    _line(
        "uefi-graphics-driver", "https://docs.rs/crate/uefi-graphics-driver/latest",
        "-nodefaults -machine q35 -smp 4 -m 256M -vga std --enable-kvm -device isa-debug-exit,iobase=0xf4,iosize=0x04"
        " -drive if=pflash,format=raw,readonly=on,file=OVMF_CODE.fd"
        " -drive if=pflash,format=raw,readonly=on,file=OVMF_VARS.fd",
        "vars-readonly",
    ),
    _line(
        "gist", f"{_GIST}/ericcurtin/cff6748e538f32a367c5fcabdb0559d6",
        "-drive file=/usr/share/OVMF/OVMF_CODE.fd,if=pflash,format=raw,unit=0,readonly=on"
        " -drive file=/usr/share/OVMF/OVMF_VARS.fd,if=pflash,format=raw,unit=1,snapshot=on,readonly=off -smp 8 -m 4G"
        " -machine q35 -nographic",
    ),
    _line(
        "gist", f"{_GIST}/iori-yja/c2cdb828057ba71d8f6d",
        "-enable-kvm -net none -m 1500 -pflash ovmf_x64.bin",
    ),
    _line(
        "CVM evaluation", "https://github.com/rcastellotti/gr, sev.sh",
        "-enable-kvm -cpu EPYC-v4,host-phys-bits=true -smp 16"
        " -machine type=q35,confidential-guest-support=sev0,memory-backend=ram1,kvm-type=protected,vmport=off"
        " -object memory-backend-memfd-private,id=ram1,size=16G,share=true -object sev-snp-guest,id=sev0,"
        "policy=0x30000,cbitpos=51,reduced-phys-bits=1,init-flags=0,host-data=b2l3bmNvd3FuY21wbXA"
        " -drive if=pflash,format=raw,unit=0,file=OVMF_CODE_sev.fd,readonly=on"
        " -drive if=pflash,format=raw,unit=1,file=OVMF_VARS_sev.fd -nographic",
        "pflash-with-snp", "memfd-private", "blob-length", "machine-property-unknown", "object-property-unknown",
        works=False,
    ),
)  # fmt: skip
