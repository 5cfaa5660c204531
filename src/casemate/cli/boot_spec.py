"""From the options of ``casemate boot`` to the machine that they describe (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.abi.guest_kind import GuestKind
from casemate.devices.flash.sync import Sync
from casemate.errors import ImageError
from casemate.files import read_file
from casemate.firmware.image import FirmwareImage
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import OnWrite

if TYPE_CHECKING:
    from casemate.abi.x86.cpu_models import CpuChoice

_SMALL_BUILDS = (0x1E0000, 0x200000)
"""Sizes of what OVMF builds for 2 MiB of flash, its code alone and with variables. Distributions ended these builds
before the #VC handler of their PCI code was mended."""


def make_spec(args: argparse.Namespace) -> MachineSpec:
    """The machine that the options describe; finds firmware and prepares variables where they leave it open."""
    code, variables = _flash(args)
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
    return spec if args.machine or not _fails_on_q35(spec) else spec.replace(machine="pc")


def _flash(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """The files of flash units 0 and 1, where there is flash."""
    is_named = args.code is not None or args.bios is not None or args.kernel is not None
    if is_named and args.vars_template is None:
        return args.code, args.vars
    from casemate.cli.installed_firmware import flash_from_template, installed_flash

    return flash_from_template(args) if is_named else installed_flash(args)


def _chosen_cpu(args: argparse.Namespace) -> CpuChoice | None:
    """The processor that ``--cpu`` names, else that of the signature that is measured; None for a usual one."""
    cpu: CpuChoice | None = args.cpu
    if cpu is not None or args.vcpu_type is None:
        return cpu
    from casemate.cli.cpu_option import processor_of_type

    return processor_of_type(args.vcpu_type)


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


def _contents(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    return read_file(source)
