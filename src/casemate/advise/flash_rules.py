"""Rules about firmware files and how they are attached (QEMU hw/i386/pc_sysfw.c; edk2 OvmfPkg/README)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from casemate.address import PAGE_SIZE
from casemate.advise.rule import Found, Guest, RuleSet, Severity
from casemate.advise.store_check import check_store
from casemate.errors import CasemateError
from casemate.firmware.bios import MAX_FLASH
from casemate.firmware.completeness import BIOS_GRANULE, is_variable_store
from casemate.firmware.image import FirmwareImage
from casemate.firmware.placement import validate_pair
from casemate.firmware.qcow2 import MAGIC
from casemate.firmware.smm import requires_smm
from casemate.firmware.variables_json import variables_from_json
from casemate.firmware.varstore import has_rewrite_in_spare
from casemate.qemu.guest_request import Flash, Kind

FLASH_RULES = RuleSet()

_SYSFW = "QEMU hw/i386/pc_sysfw.c"
_README = "edk2 OvmfPkg/README"
_UEFI_VARS = "QEMU hw/uefi/var-service-json.c"
_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _name(path: str) -> str:
    return PurePath(path).name.lower()


def _needs_smm(guest: Guest) -> bool:
    """By contents if the file could be read, else by the names that distributions use."""
    flash = guest.request.unit(0)
    image = guest.image(0)
    if image is not None:
        return requires_smm(image.data)
    return flash is not None and ".secboot." in _name(flash.file)


@FLASH_RULES.add("pflash-gap", _ERROR, _SYSFW)
def _gap(guest: Guest) -> Iterator[Found]:
    if guest.request.hides_options:
        return
    for flash in guest.request.flash:
        if flash.unit and guest.request.unit(flash.unit - 1) is None:
            cause = f"flash unit {flash.unit} without unit {flash.unit - 1}"
            yield flash.option, cause, "give CODE as unit 0 and VARS as unit 1"


@FLASH_RULES.add("pflash-unit", _ERROR, _SYSFW)
def _unit(guest: Guest) -> Iterator[Found]:
    for flash in guest.request.flash:
        if flash.unit > 1:
            yield (
                flash.option,
                f"there is no flash unit {flash.unit}, only 0 and 1",
                "use unit=0 or unit=1",
            )


@FLASH_RULES.add("pflash-twice", _ERROR, "QEMU blockdev.c, drive_new")
def _twice(guest: Guest) -> Iterator[Found]:
    units = [flash.unit for flash in guest.request.flash]
    for index, flash in enumerate(guest.request.flash):
        if flash.unit in units[:index]:
            yield flash.option, f"flash unit {flash.unit} is given twice", "give each unit one file"


@FLASH_RULES.add("flash-format-missing", _WARNING, "QEMU docs/system/invocation, -drive format")
def _format_missing(guest: Guest) -> Iterator[Found]:
    for flash in guest.request.flash:
        if flash.format is None and flash.option.name == "-drive":
            cause = "without format= QEMU guesses, and then forbids writes to the first block"
            yield flash.option, cause, "add format=raw"


@FLASH_RULES.add("flash-format-wrong", _ERROR, "QEMU docs/interop/qcow2; github.com/AMDESE/AMDSEV/issues/218")
def _format_wrong(guest: Guest) -> Iterator[Found]:
    for flash in guest.request.flash:
        image = guest.images.get(flash.file)
        is_qcow2 = image.data.startswith(MAGIC) if image else _name(flash.file).endswith(".qcow2")
        known = image is not None or is_qcow2
        if known and flash.format in ("raw", "qcow2") and is_qcow2 != (flash.format == "qcow2"):
            is_format = "qcow2" if is_qcow2 else "raw"
            cause = (
                f"{flash.file} is {is_format}, and is attached as {flash.format}: firmware would be garbage"
            )
            yield flash.option, cause, f"say format={is_format}"


@FLASH_RULES.add("flash-unreadable", _ERROR, "QEMU docs/interop/qcow2")
def _unreadable(guest: Guest) -> Iterator[Found]:
    yield from guest.problems


@FLASH_RULES.add("flash-unexamined", _NOTE, "QEMU docs/interop/qcow2; docs/system/images")
def _unexamined(guest: Guest) -> Iterator[Found]:
    yield from guest.unexamined


@FLASH_RULES.add("flash-size", _ERROR, _SYSFW)
def _flash_size(guest: Guest) -> Iterator[Found]:
    total = 0
    for flash in guest.request.flash:
        image = guest.image(flash.unit)
        if image is None or image.data.startswith(MAGIC):
            continue
        total += image.size
        if image.size % PAGE_SIZE:
            cause = f"{image.name} has {image.size} bytes, no multiple of {PAGE_SIZE}"
            yield flash.option, cause, "the file is truncated or no raw image; copy it anew"
        if total > MAX_FLASH:
            cause = f"{total} bytes of flash, at most {MAX_FLASH} fit"
            yield flash.option, cause, "use an image for x86_64, or raise -machine max-fw-size"


@FLASH_RULES.add("flash-swapped", _ERROR, _README)
def _swapped(guest: Guest) -> Iterator[Found]:
    flash, image = guest.request.unit(0), guest.image(0)
    if flash is None:
        return
    name = _name(flash.file)
    if is_variable_store(image) if image else "vars" in name and "code" not in name:
        yield flash.option, "unit 0 holds variables, no code: nothing could start", "make CODE unit 0"


@FLASH_RULES.add(
    "flash-pair",
    _ERROR,
    "edk2 OvmfPkg/Include/Fdf/OvmfPkgDefines.fdf.inc; github.com/kholia/OSX-KVM/issues/278",
)
def _pair(guest: Guest) -> Iterator[Found]:
    code, variables, flash = guest.image(0), guest.image(1), guest.request.unit(1)
    if flash is None or (code and code.variable_volume):
        return
    if code and variables:
        if code.code_volumes:
            yield from _content_pair(code, variables, flash)
        return
    first = guest.request.unit(0)
    names = [_name(one.template or one.file) for one in (first, flash) if one]
    if (
        len(names) == 2
        and all("ovmf" in name for name in names)
        and len({"4m" in name for name in names}) == 2
    ):
        cause = "CODE and VARS of different builds (2M and 4M), by their names"
        yield flash.option, cause, "take CODE and VARS from one pair (both 2M or both 4M)"


def _content_pair(code: FirmwareImage, variables: FirmwareImage, flash: Flash) -> Iterator[Found]:
    try:
        validate_pair(code, variables)
    except CasemateError as error:
        remedy = error.remedy
        if variables.variable_volume is None and not has_rewrite_in_spare(variables.data):
            remedy = "copy the VARS template of the same package, such as OVMF_VARS_4M.fd"
        yield flash.option, error.cause, remedy


@FLASH_RULES.add("vars-unused", _WARNING, _README)
def _vars_unused(guest: Guest) -> Iterator[Found]:
    code, flash = guest.image(0), guest.request.unit(1)
    if flash and code and code.variable_volume and code.code_volumes:
        cause = "unit 0 is a combined image and uses the store in itself: this file stays as it is"
        yield flash.option, cause, "use the split CODE image as unit 0, or leave unit 1 out"


@FLASH_RULES.add("code-without-vars", _WARNING, _README)
def _code_alone(guest: Guest) -> Iterator[Found]:
    flash, image, request = guest.request.unit(0), guest.image(0), guest.request
    is_completed = guest.domain.is_libvirt or request.hides_options
    if flash is None or request.unit(1) is not None or request.variable_devices or is_completed:
        return
    if image.variable_volume is None if image else "code" in _name(flash.file):
        cause = "CODE without VARS: variables, boot entries and Secure Boot keys are lost at every reset"
        yield flash.option, cause, "add a copy of the VARS template of the same build as unit 1"


@FLASH_RULES.add("uefi-vars-forgets", _WARNING, _UEFI_VARS)
def _variables_without_file(guest: Guest) -> Iterator[Found]:
    for device in guest.request.variable_devices:
        if "jsonfile" not in device.fields:
            cause = "no jsonfile: variables, boot entries and Secure Boot keys are lost when QEMU ends"
            yield (
                device,
                cause,
                "add jsonfile=F; casemate vars migrate --to json makes one of a flash store",
            )


@FLASH_RULES.add("uefi-vars-file", _ERROR, _UEFI_VARS)
def _variable_file(guest: Guest) -> Iterator[Found]:
    for device in guest.request.variable_devices:
        name = device.fields.get("jsonfile", "")
        image = guest.images.get(name)
        if image is None:
            continue
        try:
            variables_from_json(image.data.decode(errors="replace"), name)
        except CasemateError as error:
            yield device, error.cause, "make one: casemate vars migrate VARS.fd --to json -o vars.json"


@FLASH_RULES.add("combined-readonly", _WARNING, _README)
def _combined_readonly(guest: Guest) -> Iterator[Found]:
    flash, image = guest.request.unit(0), guest.image(0)
    if flash and flash.readonly and image and image.variable_volume and image.code_volumes:
        cause = "the image holds its variables, and cannot be written to"
        yield flash.option, cause, "use the split CODE and VARS files, or leave readonly=on out"


@FLASH_RULES.add("vars-readonly", _WARNING, _README)
def _vars_readonly(guest: Guest) -> Iterator[Found]:
    flash = guest.request.unit(1)
    if flash and flash.readonly:
        cause = "variables cannot be written: firmware may stop, or forget everything at reset"
        yield flash.option, cause, "give a copy of the template, without readonly=on"


@FLASH_RULES.add("vars-template", _WARNING, "Debian ovmf, README.Debian")
def _vars_template(guest: Guest) -> Iterator[Found]:
    flash = guest.request.unit(1)
    if flash is None or flash.readonly or flash.option.has("snapshot") or guest.request.has("-snapshot"):
        return
    if flash.file.startswith("/usr/share/"):
        cause = "this is the package's template: all guests would write into the one file"
        yield flash.option, cause, "copy it, one copy a guest"


@FLASH_RULES.add("code-writable", _WARNING, _README)
def _code_writable(guest: Guest) -> Iterator[Found]:
    flash = guest.request.unit(0)
    if flash and not flash.readonly and flash.option.name != "-pflash" and guest.request.unit(1):
        cause = "the guest may rewrite its firmware, and the file with it"
        yield flash.option, cause, "add readonly=on"


@FLASH_RULES.add("bios-ignored", _WARNING, _SYSFW)
def _bios_ignored(guest: Guest) -> Iterator[Found]:
    option = guest.request.last("-bios")
    if option and guest.request.unit(0):
        yield option, "flash unit 0 is given too, and QEMU then ignores -bios", "keep one of the two"


@FLASH_RULES.add("bios-size", _ERROR, "QEMU hw/i386/x86-common.c, x86_bios_rom_init")
def _bios_size(guest: Guest) -> Iterator[Found]:
    option, image = guest.request.last("-bios"), guest.bios
    if option and image and image.size % BIOS_GRANULE:
        cause = f"{image.size:#x} bytes, no multiple of 64 KiB: QEMU cannot load it as -bios"
        yield option, cause, "use the combined image, or attach CODE as flash"


@FLASH_RULES.add("bios-code", _WARNING, _README)
def _bios_code(guest: Guest) -> Iterator[Found]:
    option = guest.request.last("-bios")
    if option and "_code" in _name(option.value):
        cause = "a split CODE image as -bios: the 4M builds do not load at all, the others have no variables"
        yield option, cause, "use the combined image, such as OVMF.fd"


@FLASH_RULES.add("bios-variables", _NOTE, _README)
def _bios_variables(guest: Guest) -> Iterator[Found]:
    option = guest.request.last("-bios")
    is_plain = guest.request.kind is Kind.PLAIN and not guest.request.variable_devices
    if option and is_plain and "ovmf" in _name(option.value):
        cause = "with -bios OVMF keeps its variables in memory: boot entries may be gone after a reset"
        yield option, cause, "attach CODE and VARS as flash"


@FLASH_RULES.add("igvm-pflash", _ERROR, _SYSFW)
def _igvm(guest: Guest) -> Iterator[Found]:
    flash = guest.request.unit(0)
    if flash and guest.request.machine.get("igvm-cfg"):
        yield (
            flash.option,
            "flash cannot be given with an IGVM file",
            "leave the flash out: IGVM brings it",
        )


@FLASH_RULES.add("smm-missing", _ERROR, f"{_README}, SMM support")
def _smm_missing(guest: Guest) -> Iterator[Found]:
    request, flash = guest.request, guest.request.unit(0)
    if flash is None or not _needs_smm(guest):
        return
    missing = None
    if request.kind not in (Kind.PLAIN, Kind.SEV):
        missing = f"a {request.kind} guest has none"
    elif request.may_say("-machine", "-M"):
        return
    elif "q35" not in request.machine_type:
        missing = f"the machine {request.machine_type} has none for OVMF"
    elif request.machine.get("smm") == "off":
        missing = "the machine has smm=off"
    if missing:
        cause = f"the firmware requires SMM, and {missing}: it stops in SEC or PEI"
        yield (
            flash.option,
            cause,
            "use a build without SMM, or -machine q35,smm=on for a guest that may have it",
        )


@FLASH_RULES.add("flash-insecure", _WARNING, f"{_README}, SMM support")
def _insecure(guest: Guest) -> Iterator[Found]:
    flash = guest.request.unit(0)
    if flash is None or not _needs_smm(guest) or guest.request.may_say("-global"):
        return
    given = [option for option in guest.request.options if option.name == "-global"]
    if not any("pflash01" in option.value and "secure" in option.value for option in given):
        cause = "a build with SMM, yet code outside of SMM can write the flash: Secure Boot protects nothing"
        remedy = "add -global driver=cfi.pflash01,property=secure,value=on"
        yield flash.option, cause, remedy


@FLASH_RULES.add("secure-boot-without-smm", _WARNING, "github.com/tianocore/edk2/pull/12979")
def _secure_boot(guest: Guest) -> Iterator[Found]:
    variables, code = guest.request.unit(1), guest.request.unit(0)
    if variables is None or code is None or _needs_smm(guest) or not _has_keys(guest, variables):
        return
    is_named_so = any(part in _name(code.file) for part in (".ms.", ".secboot."))
    if guest.image(0) is not None or not is_named_so:
        cause = (
            "Secure Boot keys in a store that every driver of the guest can write; edk2 of 2026 refuses it"
        )
        yield variables.option, cause, "use the .secboot CODE build, with -machine q35,smm=on"


def _has_keys(guest: Guest, flash: Flash) -> bool:
    """Whether a platform key is enrolled, by contents if the file could be read, else by its name."""
    image = guest.image(flash.unit)
    if image is None:
        name = _name(flash.template or flash.file)
        return any(part in name for part in (".ms.", ".secboot.", ".snakeoil."))
    try:
        variables = check_store(image.data, image.name).variables
    except CasemateError:
        return False
    return any(variable.name == "PK" and variable.data for variable in variables)
