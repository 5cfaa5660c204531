"""Options of ``casemate boot`` for confidential guests, and their dry run as text (docs/guide/confidential.md)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.cli.options import hex_bytes, integer, seconds
from casemate.errors import HostError, SpecError

if TYPE_CHECKING:
    from casemate.confidential.attestation import OwnerChannel
    from casemate.confidential.preparation import LaunchOptions
    from casemate.host.guest_kind import GuestKind
    from casemate.host.secure_processor import LaunchSession, TransportKeys
    from casemate.host.snp_processor import Certificates, SnpFinish

_KINDS = ("plain", "sev", "sev-es", "snp", "tdx")
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
_SNP_ONLY = ("id_block", "id_auth", "host_data", "gosvw", "report_data", "attestation")
_SESSION_REMEDY = "give what casemate session make wrote"
_ID_REMEDY = "make it with casemate measure"
_DIGEST_SIZE, _LONG_DIGEST_SIZE = 32, 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare options."""
    guest = parser.add_argument_group("confidential guest")
    guest.add_argument("--guest", choices=_KINDS, default="plain", help="kind of guest (%(default)s)")
    guest.add_argument(
        "--policy", type=integer, metavar="N", help="launch policy (0x1, sev-es: 0x5, snp: 0x30000)"
    )
    guest.add_argument(
        "--feature",
        action="append",
        default=[],
        metavar="A[,B]",
        help="feature of a sev-es or snp guest: debug-swap",
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
        "--session-file", type=Path, metavar="F", help="the owner's launch session, 128 bytes (or base64)"
    )
    guest.add_argument(
        "--dh-cert-file",
        type=Path,
        metavar="F",
        help="the certificate that goes with it, 2084 bytes (or base64)",
    )
    guest.add_argument(
        "--attest-cmd",
        metavar="CMD",
        help="asked before the guest runs: gets the measurement, answers with a secret, or refuses by its exit code",
    )
    guest.add_argument(
        "--attest-socket", type=Path, metavar="PATH", help="the same, of whoever connects to this socket"
    )
    guest.add_argument(
        "--attest-timeout",
        type=seconds,
        default=60.0,
        metavar="S",
        help="how long to wait for an answer (%(default)g)",
    )
    guest.add_argument(
        "--launch-only", action="store_true", help="launch and measure, and do not run the guest"
    )
    guest.add_argument(
        "--dry-run", action="store_true", help="print slots, ioctls, steps and digest, and open no host"
    )
    snp = parser.add_argument_group("snp guest")
    snp.add_argument(
        "--id-block", type=Path, metavar="F", help="start only the guest that this block expects"
    )
    snp.add_argument("--id-auth", type=Path, metavar="F", help="who signed it (casemate measure makes both)")
    snp.add_argument("--host-data", metavar="HEX", help="32 bytes of yours for its reports")
    snp.add_argument("--gosvw", metavar="HEX", help="16 bytes of guest-visible workarounds (zeros)")
    snp.add_argument("--report-data", metavar="HEX", help="64 bytes that its report shall carry (zeros)")
    snp.add_argument(
        "--attestation", type=Path, metavar="DIR", help="write report and certificates there (modelled)"
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
        used = next((name for name in _LAUNCH_ONLY + _SNP_ONLY if getattr(args, name)), None)
        if used or args.init != "auto":
            option = (used or "init").replace("_", "-")
            raise SpecError(
                f"--{option} belongs to the launch of a confidential guest", "say --guest sev, sev-es or snp"
            )
        return None

    from casemate.abi.sev.report import REPORT_DATA_SIZE
    from casemate.confidential.features import parse_features
    from casemate.confidential.preparation import DEFAULT_VCPU_TYPE, LaunchOptions, validate_kind
    from casemate.host.guest_kind import GuestKind
    from casemate.host.snp_processor import GOSVW_SIZE
    from casemate.measure.cpu_models import model_signature

    kind = GuestKind(args.guest)
    in_flash = args.bios is None and (args.code is not None or args.kernel is None)
    validate_kind(kind, flash=in_flash, dry_run=args.dry_run)
    if kind is GuestKind.SNP and args.tik is not None:
        raise SpecError("--tik: an SNP launch has no session; its guest proves itself", "leave it out")
    if kind is not GuestKind.SNP and (used := next((n for n in _SNP_ONLY if getattr(args, n)), None)):
        raise SpecError(f"--{used.replace('_', '-')} belongs to SNP guests", "say --guest snp")
    features = tuple(name for text in args.feature for name in text.split(","))
    parse_features(features, kind)
    return LaunchOptions(
        policy=args.policy,
        features=features,
        init=args.init,
        kernel_hashes=args.kernel_hashes,
        expected_digest=_digest(args, kind),
        keys=_keys(args.tik),
        session=_session(args.dh_cert_file, args.session_file),
        attest=_owner(args),
        signature=model_signature(args.vcpu_type or DEFAULT_VCPU_TYPE),
        launch_only=args.launch_only,
        vcpus=args.cpus,
        snp=_snp_finish(args),
        gosvw=hex_bytes(args, "gosvw", GOSVW_SIZE) or bytes(GOSVW_SIZE),
        report_data=hex_bytes(args, "report_data", REPORT_DATA_SIZE) or bytes(REPORT_DATA_SIZE),
    )


def platform_folder(args: argparse.Namespace) -> Path | None:
    """Where the platform's keys are that the owner's session was made for; None if there is no such session."""
    if args.session_file is None:
        return None
    from casemate.cli.session import model_platform_folder

    return model_platform_folder()


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


def _digest(args: argparse.Namespace, kind: GuestKind) -> bytes | None:
    size = _DIGEST_SIZE if kind.takes_flash else _LONG_DIGEST_SIZE
    return hex_bytes(args, "expect_digest", size, "give what casemate measure prints")


def _snp_finish(args: argparse.Namespace) -> SnpFinish:
    from casemate.abi.sev.id_block import IdAuth, IdBlock
    from casemate.files import read_blob
    from casemate.host.snp_processor import HOST_DATA_SIZE, SnpFinish

    if (args.id_block is None) != (args.id_auth is None):
        raise SpecError("--id-block and --id-auth belong together", "give both, or neither")
    host_data = hex_bytes(args, "host_data", HOST_DATA_SIZE) or bytes(HOST_DATA_SIZE)
    if args.id_block is None:
        return SnpFinish(host_data=host_data)
    block = read_blob(args.id_block, IdBlock.SIZE, "an ID block", _ID_REMEDY)
    auth = read_blob(args.id_auth, IdAuth.SIZE, "an ID authentication", _ID_REMEDY)
    has_author_key = IdAuth.from_bytes(auth).auth_key_algo != 0
    return SnpFinish(block, auth, has_author_key=has_author_key, host_data=host_data)


def write_attestation(folder: Path, report: bytes, certificates: Certificates) -> None:
    """Put a report and the certificates of its signer into a folder. Raises HostError if the disk refuses."""
    from casemate.files import write_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError("mkdir", error.errno or 0, str(folder), "name another folder") from None
    write_file(folder / "report.bin", report)
    for name, data in certificates._asdict().items():
        write_file(folder / f"{name}.pem", data)


def _session(certificate: Path | None, blob: Path | None) -> LaunchSession | None:
    if certificate is None and blob is None:
        return None
    if certificate is None or blob is None:
        missing = "--dh-cert-file" if certificate is None else "--session-file"
        raise SpecError(f"{missing} is missing: the two belong together", "casemate session make writes both")
    from casemate.abi.sev.session import SessionBlob
    from casemate.files import read_blob
    from casemate.host.secure_processor import CERTIFICATE_SIZE, LaunchSession

    return LaunchSession(
        read_blob(certificate, CERTIFICATE_SIZE, "a Diffie-Hellman certificate", _SESSION_REMEDY),
        read_blob(blob, SessionBlob.SIZE, "a launch session", _SESSION_REMEDY),
    )


def _owner(args: argparse.Namespace) -> OwnerChannel | None:
    if args.attest_cmd is None and args.attest_socket is None:
        return None
    from casemate.confidential.attestation import OwnerChannel, ask_command, ask_socket

    if args.attest_cmd is not None and args.attest_socket is not None:
        raise SpecError("--attest-cmd and --attest-socket: one owner is asked", "leave one of them out")
    if args.attest_cmd is not None:
        return OwnerChannel(ask_command(args.attest_cmd, args.attest_timeout), "--attest-cmd")
    return OwnerChannel(ask_socket(args.attest_socket, args.attest_timeout), "--attest-socket")


def _keys(path: Path | None) -> TransportKeys | None:
    if path is None:
        return None
    from casemate.host.secure_processor import TransportKeys
    from casemate.measure.measurement import KEY_SIZE, read_tik

    # Without a secret to send, the other key of the session is nobody's business.
    return TransportKeys(os.urandom(KEY_SIZE), read_tik(path))
