"""``casemate verify``: says whether an SNP guest's attestation report can be believed (docs/guide/verify.md)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from casemate.cli.options import hex_bytes, integer

if TYPE_CHECKING:
    from casemate.abi.sev.report import AttestationReport, Tcb
    from casemate.advise.attestation import Chain, Check, Expectations

EPILOG = """\
examples:
  casemate verify report.bin --ark ark.pem --ask ask.pem --vcek vcek.pem --measurement d74bd3ea...
      every check, and what the report shows; 3 if one fails
  casemate verify report.bin --ark ark.pem --ask ask.pem --vcek vcek.pem --plan launch.json --policy 0x30000
      against a launch that casemate measure --plan-out wrote
  casemate boot --guest snp --bios OVMF.amdsev.fd --launch-only --attestation out && cd out &&
  casemate verify report.bin --ark ark.pem --ask ask.pem --vcek vcek.pem
      a modelled report, which proves nothing about any hardware

The root (--ark) is what you trust: have it from AMD, not from whoever sent the report.
exit code: 0 if all checks pass, 3 if one fails, 4 if a file is no report or no certificate
"""

_REFUSED = 3
_CERTIFICATES = ("ark", "ask", "vcek")
_DIGEST = 48
_VALUES = (
    ("measurement", _DIGEST, "launch digest that the guest must have (casemate measure --mode snp)"),
    ("report-data", 64, "what the guest was to put into the report"),
    ("host-data", 32, "what the host was to put into the report"),
    ("id-key-digest", _DIGEST, "who must have signed the guest's ID block"),
    ("author-key-digest", _DIGEST, "who must have signed the ID key"),
    ("chip-id", 64, "the processor that the guest must run on"),
)
_MARKS = {True: "ok", False: "FAILED", None: "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.add_argument(
        "report", metavar="REPORT", help="the report's 1184 bytes, as the guest's driver gives them"
    )
    chain = parser.add_argument_group("who signed (certificates, PEM or DER)")
    chain.add_argument("--ark", metavar="FILE", required=True, help="AMD's root, which you trust")
    chain.add_argument("--ask", metavar="FILE", required=True, help="AMD's key for the processor's series")
    chain.add_argument(
        "--vcek", metavar="FILE", required=True, help="the processor's key (or the cloud's, VLEK)"
    )
    expected = parser.add_argument_group("what the report must show (hex)")
    for name, size, words in _VALUES:
        expected.add_argument(f"--{name}", metavar="HEX", help=f"{words}, {size} bytes")
    expected.add_argument("--plan", metavar="FILE", help="launch plan whose digest the guest must have")
    expected.add_argument("--policy", metavar="N", type=integer, help="the very policy")
    expected.add_argument("--min-svn", metavar="N", type=integer, help="least version of the guest")
    expected.add_argument(
        "--min-tcb", metavar="NAME=N,..", help="least versions: bootloader, tee, snp, microcode, fmc"
    )
    expected.add_argument(
        "--max-vmpl",
        type=int,
        choices=range(4),
        default=0,
        help="least privileged level that may have asked for it (%(default)s)",
    )
    expected.add_argument("--allow-debug", action="store_true", help="accept a guest that its host may read")
    expected.add_argument("--allow-migration", action="store_true", help="accept a guest that may be moved")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(args: argparse.Namespace) -> int:
    """Check, print every check; 0, or 3 if one failed."""
    from datetime import UTC, datetime

    from casemate.advise.attestation import Chain, check_report, load_certificate, parse_report
    from casemate.files import read_file

    expected = _expectations(args)
    report = parse_report(read_file(args.report), args.report)
    chain = Chain(*(load_certificate(getattr(args, name)) for name in _CERTIFICATES))
    checks = check_report(report, chain, expected, datetime.now(UTC))
    (_print_json if args.json else _print)(report, chain, checks)
    return _REFUSED if any(check.passed is False for check in checks) else 0


def _expectations(args: argparse.Namespace) -> Expectations:
    from casemate.advise.attestation import Expectations

    values = [hex_bytes(args, name.replace("-", "_"), size) for name, size, _ in _VALUES]
    measurement, report_data, host_data, id_key, author_key, chip_id = values
    if args.plan is not None:
        measurement = _planned(args.plan, measurement)
    return Expectations(
        measurement,
        args.policy,
        report_data,
        host_data,
        id_key,
        author_key,
        chip_id,
        args.min_svn,
        _tcb(args.min_tcb),
        args.max_vmpl,
        args.allow_debug,
        args.allow_migration,
    )


def _planned(path: str, measurement: bytes | None) -> bytes:
    from casemate.abi.guest_kind import GuestKind
    from casemate.errors import SpecError
    from casemate.files import read_text
    from casemate.measure.digest_snp import predict_digest
    from casemate.measure.plan import LaunchPlan

    if measurement is not None:
        raise SpecError("--plan and --measurement say the same thing", "give one of them")
    plan = LaunchPlan.from_json(read_text(path), path)
    if plan.kind is not GuestKind.SNP:
        raise SpecError(f"--plan {path} is the launch of a {plan.kind} guest", "give that of an SNP guest")
    return predict_digest(plan)


def _tcb(text: str | None) -> Tcb | None:
    from casemate.abi.sev.report import Tcb
    from casemate.errors import SpecError

    if text is None:
        return None
    floor = Tcb(0, 0, 0, 0)
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in Tcb._fields or not number.isdecimal() or int(number) > 0xFF:
            remedy = f"write NAME=N with one of {', '.join(Tcb._fields)}, and a number up to 255"
            raise SpecError(f"--min-tcb {part!r} is no version", remedy)
        floor = floor._replace(**{name: int(number)})
    return floor


def _print(report: AttestationReport, chain: Chain, checks: list[Check]) -> None:
    from casemate.advise.attestation import is_modelled, root_name

    print(f"report of version {report.version}, root: {root_name(chain)}")
    if is_modelled(chain):
        print("modelled: casemate's own model made this report; it proves nothing about any hardware")
    for check in checks:
        print(f"{_MARKS[check.passed]:<7} {check.name:<22} {check.detail}")
    failed = [check.name for check in checks if check.passed is False]
    unknown = [check.name for check in checks if check.passed is None]
    if failed:
        print(f"do not believe it: {', '.join(failed)}")
    else:
        rest = f"; not compared with anything: {', '.join(unknown)}" if unknown else ""
        print(f"all checks passed{rest}")


def _print_json(report: AttestationReport, chain: Chain, checks: list[Check]) -> None:
    import json

    from casemate.advise.attestation import is_modelled, root_name

    document = {
        "verified": not any(check.passed is False for check in checks),
        "modelled": is_modelled(chain),
        "root": root_name(chain),
        "version": report.version,
        "checks": [check._asdict() for check in checks],
    }
    print(json.dumps(document, indent=2))
