"""From the options of ``casemate boot`` to the machine that they describe (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice, find_model
from casemate.api.variables import lead_to_shell
from casemate.cli.state_folder import state_folder
from casemate.confidential.preparation import unfit_for_sev_es
from casemate.devices.flash.file import copy_template
from casemate.devices.flash.sync import Sync
from casemate.digest.cpu_models import model_signature
from casemate.errors import HostError, ImageError, SpecError
from casemate.files import read_file
from casemate.firmware.descriptors import find_firmware, firmware_roots
from casemate.firmware.image import FirmwareImage
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite

_SMALL_BUILDS = (0x1E0000, 0x200000)
"""Sizes of what OVMF builds for 2 MiB of flash, its code alone and with variables. Distributions ended these builds
before the #VC handler of their PCI code was mended."""


def make_spec(args: argparse.Namespace) -> MachineSpec:
    """The machine that the options describe; finds firmware and prepares variables where they leave it open."""
    code, variables = args.code, args.vars
    if args.code is None and args.bios is None and args.kernel is None:
        code, variables = _installed_firmware(args)
    elif args.vars_template is not None:
        if args.code is None:
            raise SpecError("--vars-template: there is no flash", "leave it out, or use --code")
        variables = variables or _kept_variables(args, code)
        _copy_once(args.vars_template, variables)
    kind = GuestKind(args.guest)
    spec = MachineSpec(
        code=code,
        variables=variables,
        bios=args.bios,
        machine=args.machine or "q35",
        memory=args.memory,
        vcpus=args.cpus,
        cpu=_chosen_cpu(args),
        test_device=args.test_device,
        sync=Sync(args.vars_sync),
        kind=kind,
        protection=args.protection,
        on_write=OnWrite(args.on_write) if args.on_write else None,
        kernel=args.kernel,
        initrd=args.initrd,
        append=args.append or "",
        fw_cfg=tuple((name, _contents(source)) for name, source in args.fw_cfg),
    )
    return spec if args.machine or not _fails_on_q35(spec) else replace(spec, machine="pc")


def _chosen_cpu(args: argparse.Namespace) -> CpuChoice | None:
    """The processor that ``--cpu`` names, else that of the signature that is measured; None for a usual one."""
    cpu: CpuChoice | None = args.cpu
    if cpu is not None or args.vcpu_type is None:
        return cpu
    model_signature(args.vcpu_type)  # of which any version counts
    try:
        return CpuChoice(find_model(args.vcpu_type).name)
    except SpecError:
        return CpuChoice(args.vcpu_type.rpartition("-v")[0])


def _installed_firmware(args: argparse.Namespace) -> tuple[Path, Path | None]:
    pair = find_firmware(firmware_roots(os.environ), _unfit(args.guest))
    if args.verbose:
        print(f"casemate: firmware: {pair.why}", file=sys.stderr)
        for reason in pair.skipped:
            print(f"casemate: passed over: {reason}", file=sys.stderr)
    template = args.vars_template or pair.vars_template
    variables = args.vars
    if template is not None:
        if variables is None:
            variables = _kept_variables(args, pair.code)
            _copy_once(template, variables)
            lead_to_shell(pair.code, variables)
        else:
            _copy_once(template, variables)
    return pair.code, variables


def _fails_on_q35(spec: MachineSpec) -> bool:
    """Whether this firmware is known to fail on the default board; then that is said."""
    firmware = spec.code or spec.bios
    if spec.kind is not GuestKind.SEV_ES or firmware is None:
        return False
    try:
        image = FirmwareImage.load(firmware)
    except ImageError:
        return False  # who opens it says so
    if image.size not in _SMALL_BUILDS or not image.code_volumes:
        return False
    cause = "as SEV-ES guests, OVMF's 2M builds find no PCI devices on q35"
    print(f"casemate: on the board pc: {cause}", file=sys.stderr)
    return True


def _unfit(guest: str) -> Callable[[Path], str | None]:
    if guest != "sev-es":
        return lambda code: None

    return lambda code: unfit_for_sev_es(FirmwareImage.load(code))


def _kept_variables(args: argparse.Namespace, code: Path) -> Path:
    name: str = args.name
    if not args.name or "/" in args.name or args.name.startswith("."):
        raise SpecError(
            f"--name {args.name!r} cannot be the name of a folder", "use letters, digits and dashes"
        )
    return state_folder() / name / f"{code.stem}.vars.fd"


def _copy_once(template: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            "mkdir", error.errno or 0, str(target.parent), "name a place for the variables with --vars"
        ) from error
    copy_template(template, target)


def _contents(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    return read_file(source)
