"""A kernel handed to firmware through fw_cfg, or laid out to run without (QEMU hw/i386/x86-common.c, Linux boot.rst).

To firmware its file goes unchanged.
"""

from __future__ import annotations

from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.devices.fw_cfg.fw_cfg import FwCfg
from casemate.devices.fw_cfg.keys import Key
from casemate.errors import ImageError
from casemate.files import LARGEST_KERNEL, read_regular
from casemate.linux.bzimage import LinuxKernel
from casemate.linux.direct_boot import DirectBoot, prepare_linux
from casemate.machine.boards import find_board
from casemate.machine.spec import MachineSpec

_SETUP_SECTORS = 0x1F1
_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_SECTOR = 512


def add_kernel(fw_cfg: FwCfg, kernel: Path, initrd: Path | None, append: str) -> None:
    """Offer kernel, initrd and command line. Raises ImageError if a file cannot be read or is no Linux kernel.

    Nothing in the setup header is patched, so that the kernel's hash is that of its file.
    """
    image = read_regular(kernel, LARGEST_KERNEL, "give a bzImage")
    if image[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
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


def lay_out_linux(spec: MachineSpec, c_bit: int | None) -> DirectBoot:
    """The kernel of ``spec`` for its RAM; ``c_bit`` is that of an encrypted guest.

    Raises ImageError or SpecError if there is none that could run so.
    """
    assert spec.kernel is not None
    kernel = LinuxKernel.load(spec.kernel)
    initrd = read_regular(spec.initrd, LARGEST_KERNEL, "give an initrd") if spec.initrd else b""
    ram = [(piece.gpa, piece.size) for piece in find_board(spec.machine).ram(spec.memory)]
    is_snp = spec.kind is GuestKind.SNP
    return prepare_linux(kernel, initrd, spec.append, ram, c_bit, is_snp=is_snp, vcpus=spec.vcpus)
