"""``casemate measure``: predicts the launch digest of a confidential guest from files (docs/guide/measure.md)."""

from __future__ import annotations

import argparse
from base64 import b64encode
from typing import TYPE_CHECKING

from casemate.abi.guest_kind import GuestKind
from casemate.cli.id_block_options import (
    ID_BLOCK_OPTIONS,
    add_id_block_arguments,
    identity_to_dict,
    print_identity,
    sign_identity,
)
from casemate.cli.options import hex_bytes, integer, option_name
from casemate.digest.cpu_models import cpu_signature, model_signature
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.measurement import (
    PlatformVersion,
    parse_nonce,
    predict_measurement,
    read_tik,
    validate_policy,
)
from casemate.digest.plan import LaunchPlan
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.sev_init import SevInit
from casemate.digest.steps import UpdateVmsa
from casemate.digest.trace import running_digests, trace_digest
from casemate.errors import SpecError
from casemate.files import json_text, write_file
from casemate.firmware.image import FirmwareImage

if TYPE_CHECKING:
    from casemate.digest.id_block import SignedIdBlock

EPILOG = """\
examples:
  casemate measure --mode sev --ovmf OVMF_CODE.fd
  casemate measure --mode seves --ovmf OVMF_CODE.fd --vcpus 4 --vcpu-type EPYC-v4
  casemate measure --mode seves --ovmf OVMF.amdsev.fd --vcpus 1 --vcpu-type EPYC-Milan \\
      --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --trace
  casemate measure --mode snp --ovmf OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Genoa --idkey id.pem
      the digest of an SNP guest, and an ID block by which a host starts no other
  casemate measure --mode tdx --ovmf OVMF.inteltdx.ms.fd
  casemate measure --mode sev --ovmf OVMF_CODE.fd --tik tik.bin --nonce 00112233445566778899aabbccddeeff \\
      --policy 0x1 --api-major 1 --api-minor 55 --build-id 21
"""

_COLUMNS = "{:<16} {:>12} {:>9}  {:<64}  {}"


MODES = ("sev", "seves", "snp", "tdx")
_OWNER_OPTIONS = ("tik", "nonce", "policy", "api_major", "api_minor", "build_id")
_SNP_OPTIONS = ("snp_ovmf_hash", *ID_BLOCK_OPTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, named as those of sev-snp-measure where it has them."""
    _add_mode(
        parser,
        (*MODES[:3], "snp:ovmf-hash", "tdx"),
        "kind of guest; snp:ovmf-hash is the digest of the firmware alone, for --snp-ovmf-hash",
    )
    cpu = _add_launch(parser)
    cpu.add_argument("--dump-vmsa", action="store_true", help="write the save areas to vmsa<N>.bin")
    add_owner_arguments(parser, "launch measurement instead of digest (all needed; --policy is snp's, too)")
    snp = parser.add_argument_group("SNP")
    snp.add_argument(
        "--snp-ovmf-hash",
        metavar="HEX",
        help="what snp:ovmf-hash printed; the firmware is then not hashed again",
    )
    add_id_block_arguments(snp)
    _add_tdx(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--plan-out",
        metavar="FILE",
        help="write the launch as JSON, contents and all, for casemate diff",
    )
    output.add_argument("--output-format", choices=("hex", "base64"), default="hex", help="(default: hex)")
    output.add_argument(
        "--trace", action="store_true", help="show every step, its hash and the running digest"
    )
    output.add_argument("--json", action="store_true", help="one JSON document, with the trace")


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """What a launch is measured from, for whoever explains one."""
    _add_mode(parser, MODES, "kind of guest")
    _add_launch(parser)
    _add_tdx(parser)


def add_owner_arguments(parser: argparse.ArgumentParser, title: str) -> None:
    """What a measurement is signed with."""
    owner = parser.add_argument_group(title)
    owner.add_argument("--tik", metavar="FILE", help="transport integrity key, 16 bytes")
    owner.add_argument("--nonce", metavar="HEX", help="the measurement's nonce, 16 bytes")
    for name in ("policy", "api-major", "api-minor", "build-id"):
        owner.add_argument(f"--{name}", metavar="N", type=integer)


def _add_mode(parser: argparse.ArgumentParser, modes: tuple[str, ...], words: str) -> None:
    parser.add_argument("--mode", choices=modes, required=True, help=words)
    parser.add_argument("--ovmf", metavar="FILE", required=True, help="firmware: flash unit 0, or -bios")


def _add_launch(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    boot = parser.add_argument_group("direct kernel boot (kernel-hashes=on)")
    boot.add_argument("--kernel", metavar="FILE")
    boot.add_argument("--initrd", metavar="FILE")
    boot.add_argument("--append", metavar="CMDLINE", help="kernel command line")
    cpu = parser.add_argument_group("vCPUs (seves, snp)")
    cpu.add_argument("--vcpus", metavar="N", type=integer, help="how many")
    cpu.add_argument("--vcpu-type", metavar="MODEL", help="QEMU's name, such as EPYC-v4")
    cpu.add_argument("--vcpu-sig", metavar="N", type=integer, help="CPUID signature instead of a name")
    for name in ("family", "model", "stepping"):
        cpu.add_argument(f"--vcpu-{name}", metavar="N", type=integer, help="all three instead of a name")
    cpu.add_argument("--guest-features", metavar="N", type=integer, help="VMSA features (default: 0, snp: 1)")
    cpu.add_argument(
        "--init",
        choices=("legacy", "init2"),
        default="init2",
        help="how the host sets the guest up; QEMU without features uses legacy (default: init2)",
    )
    return cpu


def _add_tdx(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("TDX").add_argument(
        "--page-order",
        choices=("interleaved", "two-pass"),
        default="interleaved",
        help="pages are added and measured one by one (Linux 6.16), or section by section"
        " (default: interleaved)",
    )


def run(args: argparse.Namespace) -> int:
    """Plan the launch, predict, print; 0."""
    _validate_mode(args)
    plan, firmware = _plan(args), _firmware_hash(args)
    digest = _predict(plan, firmware)
    measurement, identity = _measurement(args, plan, digest), sign_identity(args, digest)
    if args.dump_vmsa:
        _dump_vmsas(plan)
    if args.plan_out:
        from casemate.digest.plan_json import plan_to_json

        write_file(args.plan_out, plan_to_json(plan).encode())
    if args.json:
        _print_json(args, plan, firmware, digest, measurement, identity)
        return 0
    if args.trace:
        _print_trace(plan, firmware)
    print(_encode(measurement or digest, args.output_format))
    if identity:
        print_identity(identity)
    return 0


def _validate_mode(args: argparse.Namespace) -> None:
    has_save_areas = args.mode in ("seves", "snp")
    if not has_save_areas and (args.guest_features or args.dump_vmsa):
        option = "--dump-vmsa" if args.dump_vmsa else "--guest-features"
        kind = {"sev": "SEV", "tdx": "TDX"}.get(args.mode, "firmware alone, not a guest:")
        raise SpecError(f"{option}: a {kind} guest has no save areas", "use --mode seves or snp")
    if has_save_areas and args.vcpus is None:
        raise SpecError("--vcpus is missing", "say how many vCPUs the guest has: each is measured")
    if args.mode != "snp" and (
        used := next((name for name in _SNP_OPTIONS if getattr(args, name) is not None), None)
    ):
        raise SpecError(f"{option_name(used)} belongs to SNP guests", "use --mode snp")
    if args.mode in ("snp:ovmf-hash", "tdx") and args.kernel is not None:
        what = "firmware alone" if args.mode != "tdx" else "MRTD: a kernel is measured at run time, in RTMR"
        raise SpecError(f"--kernel does not enter the {what}", "leave it out")
    if args.mode == "snp" and args.init == "legacy":
        raise SpecError("--init legacy: SNP guests have a VM type of their own", "leave --init out")


def _plan(args: argparse.Namespace) -> LaunchPlan:
    image, hashes = FirmwareImage.load(args.ovmf), _hashes(args)
    if args.mode == "tdx":
        from casemate.digest.plan_tdx import AddOrder, plan_tdx

        return plan_tdx(image, AddOrder(args.page_order))
    if args.mode in ("snp", "snp:ovmf-hash"):
        from casemate.digest.plan_snp import plan_snp, plan_snp_firmware

        if args.mode == "snp:ovmf-hash":
            return plan_snp_firmware(image)
        return plan_snp(image, args.vcpus, signature_of(args), hashes, features_of(args))

    if args.mode == "sev":
        return plan_sev(image, hashes)
    return plan_sev_es(image, args.vcpus, signature_of(args), hashes, features_of(args), SevInit(args.init))


def features_of(args: argparse.Namespace) -> int:
    """VMSA features: those given, else what the kind of guest has without any."""
    if args.guest_features is not None:
        return int(args.guest_features)
    return 1 if args.mode == "snp" else 0


def _predict(plan: LaunchPlan, firmware: bytes | None) -> bytes:
    *_, digest = running_digests(plan, firmware)
    return digest


def _firmware_hash(args: argparse.Namespace) -> bytes | None:
    return hex_bytes(args, "snp_ovmf_hash", 48)


def _hashes(args: argparse.Namespace) -> KernelHashes | None:
    if args.kernel is None:
        for option in ("initrd", "append"):
            if getattr(args, option) is not None:
                raise SpecError(f"--{option} without --kernel", "give the kernel, or leave both out")
        return None

    return KernelHashes.of_files(args.kernel, args.initrd, args.append or "")


def signature_of(args: argparse.Namespace) -> int:
    """The CPUID signature, named in one of three ways. Raises SpecError if not in exactly one."""

    numbers = (args.vcpu_family, args.vcpu_model, args.vcpu_stepping)
    has_numbers = any(number is not None for number in numbers)
    if (args.vcpu_type is not None) + (args.vcpu_sig is not None) + has_numbers != 1:
        remedy = "give --vcpu-type, or --vcpu-sig, or --vcpu-family with --vcpu-model and --vcpu-stepping"
        raise SpecError("the vCPU must be named in exactly one way", remedy)
    if args.vcpu_type is not None:
        return model_signature(args.vcpu_type)
    if args.vcpu_sig is not None:
        return int(args.vcpu_sig)
    if None in numbers:
        raise SpecError("--vcpu-family, --vcpu-model and --vcpu-stepping belong together", "give all three")
    return cpu_signature(*numbers)


def _measurement(args: argparse.Namespace, plan: LaunchPlan, digest: bytes) -> bytes | None:
    signing = signing_of(args, plan.kind)
    if signing is None:
        return None
    return predict_measurement(digest, *signing)


def signing_of(args: argparse.Namespace, kind: GuestKind) -> tuple[bytes, bytes, int, PlatformVersion] | None:
    """TIK, nonce, policy and version that sign, or None. Raises SpecError if some are missing or impossible."""
    names = _OWNER_OPTIONS
    if not kind.is_signed_at_launch:
        used = next((n for n in names if n != "policy" and getattr(args, n) is not None), None)
        if used:
            raise SpecError(
                f"{option_name(used)}: SNP and TDX guests have no launch measurement", "leave it out"
            )
        return None
    missing = [option_name(name) for name in names if getattr(args, name) is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise SpecError(f"a launch measurement also needs {', '.join(missing)}", "all of them are signed")
    validate_policy(args.policy, kind)
    version = PlatformVersion(args.api_major, args.api_minor, args.build_id)
    return read_tik(args.tik), parse_nonce(args.nonce), args.policy, version


def _dump_vmsas(plan: LaunchPlan) -> None:
    for step in plan.steps:
        if isinstance(step, UpdateVmsa):
            write_file(f"vmsa{step.vcpu}.bin", step.data)


def _print_trace(plan: LaunchPlan, firmware: bytes | None) -> None:
    print(_COLUMNS.format("step", "gpa", "bytes", "sha256", "running digest"))
    for step in trace_digest(plan, firmware):
        gpa = "-" if step.gpa is None else f"{step.gpa:#x}"
        print(_COLUMNS.format(step.what, gpa, step.length, step.sha256.hex(), step.running.hex()))


def _print_json(
    args: argparse.Namespace,
    plan: LaunchPlan,
    firmware: bytes | None,
    digest: bytes,
    measurement: bytes | None,
    identity: SignedIdBlock | None,
) -> None:
    steps = [
        {
            "what": step.what,
            "gpa": None if step.gpa is None else f"{step.gpa:#x}",
            "length": step.length,
            "sha256": step.sha256.hex(),
            "running": step.running.hex(),
            "kind": step.kind,
        }
        for step in trace_digest(plan, firmware)
    ]
    document = {
        "guest": plan.kind.value,
        "firmware": args.ovmf,
        "digest": _encode(digest, args.output_format),
        "measurement": _encode(measurement, args.output_format) if measurement else None,
        "identity": identity_to_dict(identity) if identity else None,
        "steps": steps,
    }
    print(json_text(document))


def _encode(value: bytes, encoding: str) -> str:
    if encoding == "hex":
        return value.hex()

    return b64encode(value).decode()
