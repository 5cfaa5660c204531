"""What the options of ``casemate boot`` ask of a launch, and a dry run as text (docs/guide/confidential.md)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.id_block import IdAuth, IdBlock
from casemate.abi.sev.report import REPORT_DATA_SIZE
from casemate.abi.sev.session import SessionBlob
from casemate.abi.x86.cpu_models import find_model
from casemate.cli.confidential_arguments import SNP_ONLY
from casemate.cli.options import hex_bytes
from casemate.confidential.attestation import OwnerChannel, ask_command, ask_socket
from casemate.confidential.features import parse_features
from casemate.confidential.preparation import (
    AttestationRequest,
    LaunchOptions,
    LaunchSecret,
    validate_kind,
)
from casemate.digest.cpu_models import DEFAULT_VCPU_TYPE, model_signature
from casemate.digest.measurement import KEY_SIZE, read_tik
from casemate.errors import HostError, SpecError
from casemate.files import read_blob, write_file
from casemate.host.secure_processor import CERTIFICATE_SIZE, LaunchSession, TransportKeys
from casemate.host.snp_processor import GOSVW_SIZE, HOST_DATA_SIZE, Certificates, SnpFinish

_SESSION_REMEDY = "give what casemate session make wrote"
_ID_REMEDY = "make it with casemate measure"
_DIGEST_SIZE, _LONG_DIGEST_SIZE = 32, 48


def launch_options(
    args: argparse.Namespace, attest: Callable[[AttestationRequest], LaunchSecret | None] | None = None
) -> LaunchOptions:
    """What the launch of a confidential guest is asked for; ``attest`` is an owner who is no option.

    Raises SpecError before any file is looked for.
    """

    kind = GuestKind(args.guest)
    in_flash = args.bios is None and (args.code is not None or args.kernel is None)
    validate_kind(kind, flash=in_flash, dry_run=args.dry_run)
    if kind is GuestKind.SNP and args.tik is not None:
        raise SpecError("--tik: an SNP launch has no session; its guest proves itself", "leave it out")
    if kind is not GuestKind.SNP and (used := next((n for n in SNP_ONLY if getattr(args, n)), None)):
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
        attest=attest or _owner(args),
        signature=_signature(args),
        launch_only=args.launch_only,
        vcpus=args.cpus,
        snp=_snp_finish(args),
        gosvw=hex_bytes(args, "gosvw", GOSVW_SIZE) or bytes(GOSVW_SIZE),
        report_data=hex_bytes(args, "report_data", REPORT_DATA_SIZE) or bytes(REPORT_DATA_SIZE),
    )


def _signature(args: argparse.Namespace) -> int:
    """CPUID's signature as the launch measures it: that of ``--vcpu-type``, else of the processor."""
    if args.vcpu_type is None and args.cpu is not None:
        return find_model(args.cpu.model).signature
    return model_signature(args.vcpu_type or DEFAULT_VCPU_TYPE)


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

    return LaunchSession(
        read_blob(certificate, CERTIFICATE_SIZE, "a Diffie-Hellman certificate", _SESSION_REMEDY),
        read_blob(blob, SessionBlob.SIZE, "a launch session", _SESSION_REMEDY),
    )


def _owner(args: argparse.Namespace) -> OwnerChannel | None:
    if args.attest_cmd is None and args.attest_socket is None:
        return None

    if args.attest_cmd is not None and args.attest_socket is not None:
        raise SpecError("--attest-cmd and --attest-socket: one owner is asked", "leave one of them out")
    if args.attest_cmd is not None:
        return OwnerChannel(ask_command(args.attest_cmd, args.attest_timeout), "--attest-cmd")
    return OwnerChannel(ask_socket(args.attest_socket, args.attest_timeout), "--attest-socket")


def _keys(path: Path | None) -> TransportKeys | None:
    if path is None:
        return None

    # Without a secret to send, the other key of the session is nobody's business.
    return TransportKeys(os.urandom(KEY_SIZE), read_tik(path))
