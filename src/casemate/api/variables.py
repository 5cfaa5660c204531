"""Variables for firmware that is found, as calls: a guest's own copy of the template (docs/guide/python.md)."""

from __future__ import annotations

from pathlib import Path

from casemate.advise.store_check import check_store, rewrite_store
from casemate.devices.flash.file import copy_template, locked_image
from casemate.errors import SpecError
from casemate.files import write_whole
from casemate.firmware.boot_options import shell_as_next_boot
from casemate.firmware.descriptors import FirmwarePair
from casemate.firmware.image import FirmwareImage


def new_variables(firmware: FirmwarePair, target: str | Path) -> Path:
    """Make ``target`` the variables of a guest with this firmware: a copy of its template that leads to the shell.

    Returns the path of ``target``. Raises SpecError if the firmware has no template, ImageError if that cannot be
    read, HostError if the copy cannot be written.
    """
    if firmware.vars_template is None:
        raise SpecError(
            f"{firmware.code} keeps no variables", "use firmware of two files, code and variables"
        )
    target = Path(target)
    copy_template(firmware.vars_template, target)
    lead_to_shell(firmware.code, target)
    return target


def lead_to_shell(code: Path, variables: Path) -> None:
    """Name the firmware's shell as the next boot in ``variables``, if nothing would be booted.

    A store that is damaged is left alone. Raises ImageError if a guest uses the file, or it cannot be written.
    """
    with locked_image(variables):
        data = FirmwareImage.load(variables).data
        check = check_store(data, str(variables))
        if not check.is_healthy:
            return
        changed = shell_as_next_boot(check.variables, FirmwareImage.load(code))
        if changed is not None:
            write_whole(variables, rewrite_store(data, check, changed))
