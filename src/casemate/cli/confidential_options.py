"""Options of ``casemate boot`` for confidential guests, and their dry run as text (docs/guide/confidential.md)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.errors import SpecError

if TYPE_CHECKING:
    from casemate.confidential.preparation import LaunchOptions
    from casemate.host.secure_processor import TransportKeys

_KINDS = ("plain", "sev", "sev-es", "snp", "tdx")
_LAUNCH_ONLY = (
    "policy",
    "feature",
    "kernel_hashes",
    "expect_digest",
    "tik",
    "vcpu_type",
    "launch_only",
    "dry_run",
)
_DIGEST_SIZE = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    guest = parser.add_argument_group("confidential guest")
    guest.add_argument("--guest", choices=_KINDS, default="plain", help="kind of guest (%(default)s)")
    guest.add_argument("--policy", type=_number, metavar="N", help="launch policy (0x1, sev-es: 0x5)")
    guest.add_argument(
        "--feature",
        action="append",
        default=[],
        metavar="A[,B]",
        help="feature of a sev-es guest: debug-swap",
    )
    guest.add_argument(
        "--init",
        choices=("auto", "legacy", "init2"),
        default="auto",
        help="type of VM: the default one, SEV's own, or the former unless a feature needs the latter (%(default)s)",
    )
    guest.add_argument("--vcpu-type", metavar="MODEL", help="vCPU whose signature is measured (EPYC-v4)")
    guest.add_argument(
        "--expect-digest", metavar="HEX", help="refuse (exit 3) if the launch digest would be another"
    )
    guest.add_argument(
        "--tik", type=Path, metavar="F", help="key of the launch session, to verify the measurement"
    )
    guest.add_argument(
        "--launch-only", action="store_true", help="launch and measure, and do not run the guest"
    )
    guest.add_argument(
        "--dry-run", action="store_true", help="print slots, ioctls, steps and digest, and open no host"
    )
    kernel = parser.add_argument_group("direct kernel boot")
    kernel.add_argument(
        "--kernel",
        type=Path,
        metavar="F",
        help="Linux kernel: for the firmware to start, or, with neither --code nor --bios, started without",
    )
    kernel.add_argument("--initrd", type=Path, metavar="F")
    kernel.add_argument("--append", metavar="CMDLINE", help="kernel command line")
    kernel.add_argument(
        "--kernel-hashes", action="store_true", help="measure the three; needs firmware with an area for them"
    )


def launch_options(args: argparse.Namespace) -> LaunchOptions | None:
    """What the launch is asked for, None for a plain guest. Raises SpecError before any file is looked for."""
    for option in ("initrd", "append"):
        if getattr(args, option) is not None and args.kernel is None:
            raise SpecError(f"--{option} without --kernel", "give the kernel, or leave it out")
    if args.guest == "plain":
        used = next((name for name in _LAUNCH_ONLY if getattr(args, name)), None)
        if used or args.init != "auto":
            option = (used or "init").replace("_", "-")
            raise SpecError(
                f"--{option} belongs to the launch of a confidential guest", "say --guest sev or sev-es"
            )
        return None

    from casemate.confidential.features import parse_features
    from casemate.confidential.preparation import DEFAULT_VCPU_TYPE, LaunchOptions, validate_kind
    from casemate.host.guest_kind import GuestKind
    from casemate.measure.cpu_models import model_signature

    kind = GuestKind(args.guest)
    validate_kind(kind, flash=args.bios is None and (args.code is not None or args.kernel is None))
    features = tuple(name for text in args.feature for name in text.split(","))
    parse_features(features, kind)
    return LaunchOptions(
        policy=args.policy,
        features=features,
        init=args.init,
        kernel_hashes=args.kernel_hashes,
        expected_digest=_digest(args.expect_digest),
        keys=_keys(args.tik),
        signature=model_signature(args.vcpu_type or DEFAULT_VCPU_TYPE),
        launch_only=args.launch_only,
    )


def dry_run_text(plan: dict[str, Any]) -> str:
    """The dry run for people."""
    guest, host, protection = plan["guest"], plan["host"], plan["protection"]
    features = f" with {', '.join(guest['features'])}" if guest["features"] else ""
    lines = [
        f"dry run: {guest['kind']} guest{features} on {host['backend']} {host['era'] or ''}; nothing was started",
        f"protection  {protection['protection']}: {protection['reason']}",
        *(f"warning     {warning}" for warning in plan["warnings"]),
        "slots",
        *(f"  {s['gpa']:#011x} {s['size']:#011x}  {s['name']}, {s['protection']}" for s in plan["slots"]),
        "ioctls, and mprotect between them",
        *(f"  {row['command']:<30}  {row['detail']}".rstrip() for row in plan["ioctls"]),
        "steps that are measured",
        *(f"  {step['sha256']}  {step['what']}, {step['length']} bytes" for step in plan["steps"]),
        f"digest      {plan['digest']}",
        f"then runs   {plan['runs']}",
    ]
    return "\n".join(lines)


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write 5 or 0x5") from None


def _digest(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != _DIGEST_SIZE:
        raise SpecError(
            f"--expect-digest {text!r} is not {2 * _DIGEST_SIZE} hex digits",
            "give what casemate measure prints",
        )
    return digest


def _keys(path: Path | None) -> TransportKeys | None:
    if path is None:
        return None
    from casemate.host.secure_processor import TransportKeys
    from casemate.measure.measurement import KEY_SIZE, read_tik

    # Without a secret to send, the other key of the session is nobody's business.
    return TransportKeys(os.urandom(KEY_SIZE), read_tik(path))
