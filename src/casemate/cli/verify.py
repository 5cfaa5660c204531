"""``casemate verify``: says whether an SNP guest's attestation report can be believed (docs/guide/verify.md)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.report import CHIP_ID_SIZE, SHORT_CHIP_ID_SIZE, AttestationReport, Tcb
from casemate.advise.attestation import (
    Chain,
    Check,
    Expectations,
    check_report,
    is_modelled,
    is_report_signed_by,
    root_name,
)
from casemate.advise.certificate_file import LEAF_NAMES, Pool, common_name, load_pool, parse_pool, pick
from casemate.advise.report_file import LARGEST_REPORT_FILE, ReportFile, read_report, validate_version
from casemate.advise.report_text import report_fields
from casemate.cli.options import hex_bytes, integer
from casemate.digest.digest_snp import predict_digest
from casemate.digest.plan_json import plan_from_json
from casemate.errors import ImageError, SpecError
from casemate.files import read_file, read_text

EPILOG = """\
examples:
  casemate verify report.bin --show
      every field, and nothing checked
  casemate verify report.bin --certs certs --measurement d74bd3ea...
      certificates out of a folder, as snpguest fetch makes it; the root must be AMD's
  casemate verify report.bin --ark cert_chain.pem --vcek vcek.der --crl crl.der
      as AMD's key service hands them out: the root, the ASK in the same file, the processor's key
  casemate verify report.bin --ark ark.pem --ask ask.pem --vcek vcek.pem --measurement d74bd3ea...
      every check, and what the report shows; 3 if one fails
  casemate verify report.bin --ark ark.pem --ask ask.pem --vcek vcek.pem --plan launch.json --policy 0x30000
      against a launch that casemate measure --plan-out wrote
  casemate boot --guest snp --bios OVMF.amdsev.fd --launch-only --attestation out && cd out &&
  casemate verify report.bin --ark ark.pem --ask ask.pem --vcek vcek.pem
      a modelled report, which proves nothing about any hardware

The root (--ark) is what you trust: have it from AMD, not from whoever sent the report.
REPORT is the 1184 bytes, or those in hex or base64, the 4000 bytes of the ioctl, a TSM outblob, or a report with its
certificate table.
exit code: 0 if all checks pass, 2 if no certificates are given, 3 if a check fails, 4 if a file is no report or no
certificate
"""

_REFUSED = 3
_DIGEST = 48
_VALUES = (
    ("measurement", _DIGEST, "launch digest that the guest must have (casemate measure --mode snp)"),
    ("report-data", 64, "what the guest was to put into the report"),
    ("host-data", 32, "what the host was to put into the report"),
    ("id-key-digest", _DIGEST, "who must have signed the guest's ID block"),
    ("author-key-digest", _DIGEST, "who must have signed the ID key"),
    (
        "chip-id",
        CHIP_ID_SIZE,
        "the processor that the guest must run on (from Turin on the first 8 bytes do)",
    ),
)
_MARKS = {True: "ok", False: "FAILED", None: "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("report", metavar="REPORT", help="the report, in any form that tools leave it in")
    parser.add_argument(
        "--show", action="store_true", help="print every field; check only if there are certificates"
    )
    chain = parser.add_argument_group("who signed (PEM, DER, a bundle or a certificate table)")
    chain.add_argument("--ark", metavar="FILE", help="AMD's root, which you trust")
    chain.add_argument(
        "--ask", metavar="FILE", help="AMD's key for the processor's series (for a VLEK, the ASVK)"
    )
    chain.add_argument("--vcek", "--vlek", metavar="FILE", help="the processor's key (or the cloud's, VLEK)")
    chain.add_argument(
        "--certs",
        metavar="PATH",
        action="append",
        default=[],
        help="a file or folder with those that are not given one by one; its root must be AMD's (repeatable)",
    )
    chain.add_argument(
        "--crl", metavar="FILE", action="append", default=[], help="AMD's revocation list (repeatable)"
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
    expected = _expectations(args)
    file = read_report(read_file(args.report, LARGEST_REPORT_FILE), args.report)
    pool = _pool(args, file)
    has_certificates = bool(args.ark or args.ask or args.vcek or args.certs or file.certificates)
    if args.show:
        (_show_json if args.json else _show)(file)
        if args.json or not has_certificates:
            return 0
    if not has_certificates:
        args.usage_error(
            "who signed? give --ark, --ask and --vcek, or --certs; --show prints the report without them"
        )
    validate_version(file.report, args.report)
    chain = _chain(args, file.report, pool)
    checks = check_report(
        file.report, chain, expected, datetime.now(UTC), pool.crls, trusts_root=args.ark is not None
    )
    (_print_json if args.json else _print)(file, chain, checks)
    return _REFUSED if any(check.passed is False for check in checks) else 0


def _pool(args: argparse.Namespace, file: ReportFile) -> Pool:
    """Everything that was given; what came with the report is the last choice."""
    pool = Pool()
    for path in (args.ark, args.ask, args.vcek, *args.certs, *args.crl):
        if path is not None:
            pool.add(load_pool(path))
    for kind, der in file.certificates:
        if kind != "unknown":
            pool.add(parse_pool(der, f"{args.report} ({kind})"))
    return pool


def _chain(args: argparse.Namespace, report: AttestationReport, pool: Pool) -> Chain:
    """Root, intermediate and leaf: each the one that was named, or else the one that issued the next."""
    leaf = (pick(args.vcek, "VCEK") if args.vcek else None) or _first(
        [
            *(c for c in pool.leaves if is_report_signed_by(report, c)),
            *(c for c in pool.leaves if LEAF_NAMES.get(common_name(c.subject)) == report.signing_key.name),
            *pool.leaves,
        ],
        "the processor's key",
        "--vcek",
    )
    ask = (pick(args.ask, "ASK") if args.ask else None) or _first(
        [*(c for c in pool.intermediates if c.subject == leaf.issuer), *pool.intermediates],
        "AMD's key for the series",
        "--ask",
    )
    roots = load_pool(args.ark).roots if args.ark else pool.roots
    ark = (pick(args.ark, "ARK") if args.ark else None) or _first(
        [*(c for c in roots if c.subject == ask.issuer), *roots], "AMD's root", "--ark"
    )
    return Chain(ark, ask, leaf)


def _first(found: Sequence[x509.Certificate], what: str, option: str) -> x509.Certificate:
    if not found:
        raise SpecError(f"{what} is missing", f"give it with {option}, or in --certs")
    return found[0]


def _expectations(args: argparse.Namespace) -> Expectations:
    if args.chip_id is not None:
        args.chip_id = args.chip_id.lower().removeprefix("0x")
        if len(args.chip_id) == 2 * SHORT_CHIP_ID_SIZE:
            args.chip_id += "00" * (CHIP_ID_SIZE - SHORT_CHIP_ID_SIZE)
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
    if measurement is not None:
        raise SpecError("--plan and --measurement say the same thing", "give one of them")
    plan = plan_from_json(read_text(path), path)
    if plan.kind is not GuestKind.SNP:
        raise SpecError(f"--plan {path} is the launch of a {plan.kind} guest", "give that of an SNP guest")
    return predict_digest(plan)


def _tcb(text: str | None) -> Tcb | None:
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


def _show(file: ReportFile) -> None:
    print(f"read as: {file.form}")
    for name, value in report_fields(file.report):
        print(f"{name:<34} {value}")
    if file.certificates:
        print(f"{'certificates':<34} {', '.join(kind for kind, _ in file.certificates)}")
    try:
        validate_version(file.report, "the report")
    except ImageError as error:
        print(f"casemate: warning: {error.cause}", file=sys.stderr)


def _show_json(file: ReportFile) -> None:
    document = {
        "form": file.form,
        "fields": dict(report_fields(file.report)),
        "certificates": [kind for kind, _ in file.certificates],
    }
    print(json.dumps(document, indent=2))


def _print(file: ReportFile, chain: Chain, checks: list[Check]) -> None:
    print(f"report of version {file.report.version}, root: {root_name(chain)}")
    print(f"read as: {file.form}")
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


def _print_json(file: ReportFile, chain: Chain, checks: list[Check]) -> None:
    document = {
        "verified": not any(check.passed is False for check in checks),
        "modelled": is_modelled(chain),
        "root": root_name(chain),
        "version": file.report.version,
        "form": file.form,
        "checks": [check._asdict() for check in checks],
    }
    print(json.dumps(document, indent=2))
