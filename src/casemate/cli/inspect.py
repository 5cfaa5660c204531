"""``casemate inspect``: says what firmware files are and which guests can use them (docs/guide/inspect.md)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from casemate.advise.claims import find_claims
from casemate.advise.descriptor_check import check_descriptor, is_descriptor
from casemate.advise.inspect import inspect_image
from casemate.advise.inspection_json import report_to_dict
from casemate.advise.pairing import check_pairs
from casemate.firmware.image import FirmwareImage
from casemate.firmware.volume import Allowance

EPILOG = """\
examples:
  casemate inspect /usr/share/OVMF/OVMF_CODE_4M.fd
  casemate inspect OVMF_CODE_4M.fd OVMF_VARS_4M.fd     also checks that the two belong together
  casemate inspect --files OVMF.fd                     lists every driver
  casemate inspect --json OVMF.fd
  casemate inspect /usr/share/qemu/firmware/60-edk2-x86_64.json    a descriptor, and what it offers

exit code: 0 if every file is usable, every pair fits and every descriptor is right, else 4
"""

_UNUSABLE = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and how to show them."""
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="firmware or variable store")
    parser.add_argument(
        "--files", dest="list_files", action="store_true", help="list the files in each volume"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON document, with all files of all volumes"
    )


def run(args: argparse.Namespace) -> int:
    """Inspect each file, pair them up, print; 0, or 4 if something is not usable."""

    descriptors = [check_descriptor(path) for path in args.files if is_descriptor(path)]
    named = {report.path for report in descriptors}
    allowance = Allowance()
    inspections = [
        inspect_image(FirmwareImage.load(path), allowance=allowance)
        for path in args.files
        if path not in named
    ]
    claims = [find_claims(inspection) for inspection in inspections]
    pairs = check_pairs(inspections)
    if args.json:
        print(
            json.dumps(
                report_to_dict(list(zip(inspections, claims, strict=True)), pairs, descriptors), indent=2
            )
        )
    else:
        from casemate.cli.inspect_text import print_inspections  # by rich, which takes a while to load

        print_inspections(list(zip(inspections, claims, strict=True)), descriptors, pairs, args.list_files)
    is_good = all(inspection.is_usable for inspection in inspections) and not any(
        pair.fault for pair in pairs
    )
    is_good = is_good and all(report.is_right for report in descriptors)
    return 0 if is_good else _UNUSABLE
