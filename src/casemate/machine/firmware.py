"""Firmware files opened for a machine: flash units with locks, or one ``--bios`` image (QEMU hw/i386/pc_sysfw.c)."""

from pathlib import Path
from typing import TYPE_CHECKING

from casemate.address import FOUR_GIB, Gpa
from casemate.firmware.bios import validate_bios
from casemate.firmware.image import FirmwareImage
from casemate.machine.spec import MachineSpec

if TYPE_CHECKING:
    from casemate.devices.flash.file import FlashFile
    from casemate.linux.direct_boot import DirectBoot


class FirmwareFile:
    """One image, where it goes, and its lock; a ``--bios`` image has no lock, for nobody writes it back."""

    def __init__(self, path: Path | str, gpa: Gpa, data: bytes, file: "FlashFile | None" = None) -> None:
        self.path, self.gpa, self.data, self.file = path, gpa, data, file


def open_firmware(spec: MachineSpec, linux: "DirectBoot | None" = None) -> list[FirmwareFile]:
    """The images of ``spec``, the topmost first, checked; entry code where there is no firmware.

    Raises ImageError or SpecError.
    """
    if linux is not None:
        assert spec.kernel is not None
        return [FirmwareFile(spec.kernel, Gpa(FOUR_GIB - len(linux.image)), linux.image)]
    if spec.bios is not None:
        image = FirmwareImage.load(spec.bios)
        validate_bios(image)
        return [FirmwareFile(spec.bios, Gpa(FOUR_GIB - image.size), image.data)]

    return _open_flash(spec)


def _open_flash(spec: MachineSpec) -> list[FirmwareFile]:
    from casemate.devices.flash.file import FlashFile
    from casemate.firmware.placement import validate_flash

    assert spec.code is not None
    paths = [spec.code] if spec.variables is None else [spec.code, spec.variables]
    files: list[FirmwareFile] = []
    end = FOUR_GIB
    try:
        for unit, path in enumerate(paths):
            file = FlashFile.open(path, readonly=unit == 0, sync=spec.sync)
            end -= file.size
            files.append(FirmwareFile(path, Gpa(end), b"", file))
            files[-1] = FirmwareFile(path, Gpa(end), file.read(), file)
        validate_flash(*(FirmwareImage.from_bytes(entry.data, str(entry.path)) for entry in files))
    except BaseException:
        close_firmware(files)
        raise
    return files


def settle_firmware(files: list[FirmwareFile]) -> None:
    """Called now and then: what has been quiet goes to the disk, if that was asked for. Raises HostError."""
    for entry in files:
        if entry.file is not None:
            entry.file.settle()


def close_firmware(files: list[FirmwareFile]) -> None:
    """Bring what was written to the disk and unlock. Raises HostError if the disk refuses."""
    for entry in files:
        if entry.file is not None:
            entry.file.close()
