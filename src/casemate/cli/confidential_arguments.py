"""The options of ``casemate boot`` that are for confidential guests and kernels (docs/guide/confidential.md)."""

from __future__ import annotations

import argparse

from casemate.cli.options import Option, file_path, integer, seconds
from casemate.errors import SpecError

GUEST = (
    Option(
        "--guest",
        choices=("plain", "sev", "sev-es", "snp", "tdx"),
        default="plain",
        help="kind of guest (%(default)s)",
    ),
    Option("--policy", "N", "launch policy (0x1, sev-es: 0x5, snp: 0x30000)", type=integer),
    Option("--feature", "A[,B]", "feature of a sev-es or snp guest: debug-swap", repeatable=True),
    Option(
        "--init",
        choices=("auto", "legacy", "init2"),
        default="auto",
        help="type of VM: the default one, SEV's own, or the former unless a feature needs the latter (%(default)s)",
    ),
    Option("--vcpu-type", "MODEL", "vCPU whose signature is measured (EPYC-v4)"),
    Option("--expect-digest", "HEX", "refuse (exit 3) if the launch digest would be another"),
    Option("--tik", "F", "key of the launch session, to verify the measurement", type=file_path),
    Option("--session-file", "F", "the owner's launch session, 128 bytes (or base64)", type=file_path),
    Option(
        "--dh-cert-file",
        "F",
        "the certificate that goes with it, 2084 bytes (or base64)",
        type=file_path,
    ),
    Option(
        "--attest-cmd",
        "CMD",
        "asked before the guest runs: gets the measurement, answers with a secret, or refuses by its exit code",
    ),
    Option("--attest-socket", "PATH", "the same, of whoever connects to this socket", type=file_path),
    Option(
        "--attest-timeout", "S", "how long to wait for an answer (%(default)g)", type=seconds, default=60.0
    ),
    Option("--launch-only", help="launch and measure, and do not run the guest"),
    Option("--dry-run", help="print slots, ioctls, steps and digest, and open no host"),
)
SNP = (
    Option("--id-block", "F", "start only the guest that this block expects", type=file_path),
    Option("--id-auth", "F", "who signed it (casemate measure makes both)", type=file_path),
    Option("--host-data", "HEX", "32 bytes of yours for its reports"),
    Option("--gosvw", "HEX", "16 bytes of guest-visible workarounds (zeros)"),
    Option("--report-data", "HEX", "64 bytes that its report shall carry (zeros)"),
    Option("--attestation", "DIR", "write report and certificates there (modelled)", type=file_path),
)
KERNEL = (
    Option(
        "--kernel",
        "F",
        "Linux kernel: for the firmware to start, or, with neither --code nor --bios, started without",
        type=file_path,
    ),
    Option("--initrd", "F", type=file_path),
    Option("--append", "CMDLINE", "kernel command line"),
    Option("--kernel-hashes", help="measure the three; needs firmware with an area for them"),
)
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
