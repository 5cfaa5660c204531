"""What people hand over in place of raw firmware (QEMU docs/interop/qcow2.rst; UEFI 2.10, 23; Linux boot.rst)."""

from __future__ import annotations

from casemate.firmware.guids import CAPSULES, GUID_SIZE

_MAGIC = {
    b"QFI\xfb": ("a qcow2 disk image", "convert it: qemu-img convert -O raw FILE FILE.raw"),
    b"KDMV": ("a VMDK disk image", "convert it: qemu-img convert -O raw FILE FILE.raw"),
    b"vhdxfile": ("a VHDX disk image", "convert it: qemu-img convert -O raw FILE FILE.raw"),
    b"\x7fELF": ("an ELF program", "give a raw firmware image"),
    b"\x1f\x8b": ("gzip-compressed", "unpack it with gunzip"),
    b"\xfd7zXZ\x00": ("xz-compressed", "unpack it with unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it with unzstd"),
    b"!<arch>\ndebian-binary": (
        "a Debian package",
        "unpack it with dpkg-deb -x and give the .fd file inside",
    ),
    b"IGVM": ("an IGVM file", "give it to QEMU 10.1 or later: -object igvm-cfg,file=FILE"),
    b"-----BEGIN ": ("a certificate or key in PEM form", "give a raw firmware image"),
}
_KERNEL, _KERNEL_AT = b"HdrS", 0x202


def find_wrapper(data: bytes) -> tuple[str, str] | None:
    """What ``data`` is wrapped in and what to do about it, or None if it looks raw."""
    for magic, answer in _MAGIC.items():
        if data.startswith(magic):
            return answer
    if data.startswith(_KERNEL, _KERNEL_AT):
        return "a Linux kernel", "start it with casemate boot --kernel"
    if capsule := CAPSULES.get(data[:GUID_SIZE]):
        return f"a capsule update ({capsule})", "give the raw image that the capsule carries"
    return None
