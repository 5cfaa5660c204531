"""A kernel laid out in RAM to run without firmware (Linux boot.rst; QEMU hw/i386/x86-common.c for other kinds)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.errors import ImageError, SpecError
from casemate.files import LARGEST_KERNEL, read_regular
from casemate.linux.bzimage import LinuxKernel
from casemate.linux.direct_boot import DirectBoot, prepare_linux
from casemate.linux.elf import MAGIC as ELF_MAGIC
from casemate.linux.elf import ElfImage
from casemate.linux.elf_boot import Module
from casemate.linux.multiboot import MultibootKernel, prepare_multiboot
from casemate.linux.pvh import PvhKernel, prepare_pvh
from casemate.machine.boards import find_board
from casemate.machine.kernel_files import is_linux
from casemate.machine.spec import MachineSpec

_KINDS = "give a bzImage, a multiboot image, or an ELF kernel with a PVH entry"


def lay_out_linux(spec: MachineSpec, c_bit: int | None) -> DirectBoot:
    """The kernel of ``spec`` for its RAM, whichever kind it is; ``c_bit`` is that of an encrypted guest.

    Raises ImageError or SpecError if there is none that could run so.
    """
    assert spec.kernel is not None
    image = read_regular(spec.kernel, LARGEST_KERNEL, _KINDS)
    ram = [(piece.gpa, piece.size) for piece in find_board(spec.machine).ram(spec.memory)]
    if not is_linux(image):
        return _lay_out_other(spec, spec.kernel, image, ram)
    kernel = LinuxKernel.from_bytes(image, spec.kernel)
    initrd = read_regular(spec.initrd, LARGEST_KERNEL, "give an initrd") if spec.initrd else b""
    is_snp = spec.kind is GuestKind.SNP
    return prepare_linux(kernel, initrd, spec.append, ram, c_bit, is_snp=is_snp, vcpus=spec.vcpus)


def _lay_out_other(spec: MachineSpec, path: Path, image: bytes, ram: Sequence[tuple[int, int]]) -> DirectBoot:
    """Multiboot first, as QEMU does, for an image may be both."""
    multiboot = MultibootKernel.from_bytes(image, path)
    pvh = None
    if multiboot is None and image.startswith(ELF_MAGIC):
        pvh = PvhKernel.from_elf(ElfImage.from_bytes(image, path))
    if multiboot is None and pvh is None:
        cause = "this is no Linux kernel (no HdrS), no multiboot image and no ELF file with a PVH entry"
        raise ImageError(path, cause, _KINDS)
    if spec.kind.is_confidential:
        cause = f"{path}: multiboot and PVH kernels start in plain guests alone"
        raise SpecError(cause, f"give a bzImage to a {spec.kind.value} guest")
    if multiboot is not None:
        words = f"{path} {spec.append}".rstrip()  # as boot loaders name it
        return prepare_multiboot(multiboot, _modules(spec.initrd), words, ram, vcpus=spec.vcpus)
    assert pvh is not None
    modules = [Module(read_regular(spec.initrd, LARGEST_KERNEL, "give an initrd"))] if spec.initrd else []
    return prepare_pvh(pvh, modules, spec.append, ram, vcpus=spec.vcpus)


def _modules(text: Path | None) -> list[Module]:
    """``FILE WORDS,FILE WORDS``, as QEMU takes multiboot's modules; their words begin with the file's name."""
    if text is None:
        return []
    found = [str(text)] if text.exists() else str(text).split(",")
    return [
        Module(read_regular(words.split(" ")[0], LARGEST_KERNEL, "give a module"), words) for words in found
    ]
