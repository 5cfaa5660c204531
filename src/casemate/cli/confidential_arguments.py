"""The options of ``casemate boot`` that are for confidential guests and kernels (docs/guide/confidential.md)."""

from __future__ import annotations

import argparse
from pathlib import Path

from casemate.cli.options import integer, seconds
from casemate.cli.parser import MORE
from casemate.errors import SpecError


def add_guest_argument(parser: argparse.ArgumentParser) -> None:
    """The kind of guest."""
    guest = parser.add_argument_group("guest")
    guest.add_argument(
        "--guest",
        choices=("plain", "sev", "sev-es", "snp", "tdx"),
        default="plain",
        help="kind of guest (%(default)s)",
    )
    guest.add_argument(
        "--feature",
        metavar="A[,B]",
        action="append",
        default=[],
        help="feature of a sev-es or snp guest: debug-swap",
    )


def add_confidential_arguments(parser: argparse.ArgumentParser) -> None:
    """What the launch of a confidential guest is asked for."""
    guest = parser.add_argument_group(f"{MORE}: confidential guest")
    guest.add_argument(
        "--policy", metavar="N", type=integer, help="launch policy (0x1, sev-es: 0x5, snp: 0x30000)"
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
        "--tik", metavar="F", type=Path, help="key of the launch session, to verify the measurement"
    )
    guest.add_argument(
        "--session-file", metavar="F", type=Path, help="the owner's launch session, 128 bytes (or base64)"
    )
    guest.add_argument(
        "--dh-cert-file",
        metavar="F",
        type=Path,
        help="the certificate that goes with it, 2084 bytes (or base64)",
    )
    guest.add_argument(
        "--attest-cmd",
        metavar="CMD",
        help="asked before the guest runs: gets the measurement, answers with a secret, or refuses by its exit code",
    )
    guest.add_argument(
        "--attest-socket", metavar="PATH", type=Path, help="the same, of whoever connects to this socket"
    )
    guest.add_argument(
        "--attest-timeout",
        metavar="S",
        type=seconds,
        default=60.0,
        help="how long to wait for an answer (%(default)g)",
    )
    guest.add_argument(
        "--launch-only", action="store_true", help="launch and measure, and do not run the guest"
    )
    guest.add_argument(
        "--kernel-hashes",
        action="store_true",
        help="measure kernel, initrd and command line; needs firmware with an area for them",
    )
    guest.add_argument(
        "--dry-run", action="store_true", help="print slots, ioctls, steps and digest, and open no host"
    )


def add_snp_arguments(parser: argparse.ArgumentParser) -> None:
    """What only an SNP guest has."""
    snp = parser.add_argument_group(f"{MORE}: SNP guest")
    snp.add_argument(
        "--id-block", metavar="F", type=Path, help="start only the guest that this block expects"
    )
    snp.add_argument("--id-auth", metavar="F", type=Path, help="who signed it (casemate measure makes both)")
    snp.add_argument("--host-data", metavar="HEX", help="32 bytes of yours for its reports")
    snp.add_argument("--gosvw", metavar="HEX", help="16 bytes of guest-visible workarounds (zeros)")
    snp.add_argument("--report-data", metavar="HEX", help="64 bytes that its report shall carry (zeros)")
    snp.add_argument(
        "--attestation", metavar="DIR", type=Path, help="write report and certificates there (modelled)"
    )


def add_kernel_arguments(parser: argparse.ArgumentParser) -> None:
    """A Linux kernel for the guest."""
    kernel = parser.add_argument_group("kernel")
    kernel.add_argument(
        "--kernel",
        metavar="F",
        type=Path,
        help="Linux kernel: for the firmware to start, or, with neither --code nor --bios, started without",
    )
    kernel.add_argument("--initrd", metavar="F", type=Path, help="its initial RAM disk")
    kernel.add_argument("--append", metavar="CMDLINE", help="its command line")


SNP_ONLY = ("id_block", "id_auth", "host_data", "gosvw", "report_data", "attestation")
"""Attributes of what only SNP guests have."""
_LAUNCH_ONLY = (
    "policy",
    "feature",
    "kernel_hashes",
    "expect_digest",
    "tik",
    "session_file",
    "dh_cert_file",
    "attest_cmd",
    "attest_socket",
    "vcpu_type",
    "launch_only",
    "dry_run",
)


def validate_launch_words(args: argparse.Namespace) -> None:
    """Refuse options without what they belong to. Raises SpecError."""
    for option in ("initrd", "append"):
        if getattr(args, option) is not None and args.kernel is None:
            raise SpecError(f"--{option} without --kernel", "give the kernel, or leave it out")
    if args.guest != "plain":
        return
    used = next((name for name in _LAUNCH_ONLY + SNP_ONLY if getattr(args, name)), None)
    if used or args.init != "auto":
        option = (used or "init").replace("_", "-")
        raise SpecError(
            f"--{option} belongs to the launch of a confidential guest", "say --guest sev, sev-es or snp"
        )
