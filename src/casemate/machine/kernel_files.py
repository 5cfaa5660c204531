"""A kernel handed to firmware through fw_cfg, its file unchanged (QEMU hw/i386/x86-common.c, Linux boot.rst)."""

from __future__ import annotations

from pathlib import Path

from casemate.devices.fw_cfg.fw_cfg import FwCfg
from casemate.devices.fw_cfg.keys import Key
from casemate.errors import ImageError
from casemate.files import LARGEST_KERNEL, read_regular

_SETUP_SECTORS = 0x1F1
_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_SECTOR = 512


def is_linux(image: bytes) -> bool:
    """Whether a file has the setup header of a Linux kernel for x86."""
    return image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def add_kernel(fw_cfg: FwCfg, kernel: Path, initrd: Path | None, append: str) -> None:
    """Offer kernel, initrd and command line. Raises ImageError if a file cannot be read or is no Linux kernel.

    Nothing in the setup header is patched, so that the kernel's hash is that of its file.
    """
    image = read_regular(kernel, LARGEST_KERNEL, "give a bzImage")
    if not is_linux(image):
        raise ImageError(kernel, "this is no Linux kernel (no HdrS)", "give a bzImage", _MAGIC_AT)
    setup = ((image[_SETUP_SECTORS] or 4) + 1) * _SECTOR
    parts = (
        (Key.SETUP_SIZE, Key.SETUP_DATA, image[:setup]),
        (Key.KERNEL_SIZE, Key.KERNEL_DATA, image[setup:]),
        (
            Key.INITRD_SIZE,
            Key.INITRD_DATA,
            read_regular(initrd, LARGEST_KERNEL, "give an initrd") if initrd else b"",
        ),
        (Key.CMDLINE_SIZE, Key.CMDLINE_DATA, append.encode(errors="surrogateescape") + b"\0"),
    )
    for size_key, data_key, data in parts:
        fw_cfg.add_item(size_key, len(data).to_bytes(4, "little"))
        fw_cfg.add_item(data_key, data)
