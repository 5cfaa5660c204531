"""``casemate measure``: predicts the launch digest of a SEV or SEV-ES guest from files (docs/guide/measure.md)."""

from __future__ import annotations

from casemate.cli.options import Option, add_options, integer
from casemate.records import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from casemate.host.guest_kind import GuestKind
    from casemate.measure.kernel_hashes import KernelHashes
    from casemate.measure.measurement import PlatformVersion
    from casemate.measure.plan import LaunchPlan

EPILOG = """\
examples:
  casemate measure --mode sev --ovmf OVMF_CODE.fd
  casemate measure --mode seves --ovmf OVMF_CODE.fd --vcpus 4 --vcpu-type EPYC-v4
  casemate measure --mode seves --ovmf OVMF.amdsev.fd --vcpus 1 --vcpu-type EPYC-Milan \\
      --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --trace
  casemate measure --mode sev --ovmf OVMF_CODE.fd --tik tik.bin --nonce 00112233445566778899aabbccddeeff \\
      --policy 0x1 --api-major 1 --api-minor 55 --build-id 21
"""

_COLUMNS = "{:<16} {:>12} {:>9}  {:<64}  {}"


_LAUNCH = (
    Option("--mode", choices=("sev", "seves"), required=True, help="kind of guest"),
    Option("--ovmf", "FILE", "firmware: flash unit 0, or -bios", required=True),
)
_BOOT = (
    Option("--kernel", "FILE"),
    Option("--initrd", "FILE"),
    Option("--append", "CMDLINE", "kernel command line"),
)
_CPU = (
    Option("--vcpus", "N", "how many", type=integer),
    Option("--vcpu-type", "MODEL", "QEMU's name, such as EPYC-v4"),
    Option("--vcpu-sig", "N", "CPUID signature instead of a name", type=integer),
    *(
        Option(f"--vcpu-{name}", "N", "all three instead of a name", type=integer)
        for name in ("family", "model", "stepping")
    ),
    Option("--guest-features", "N", "VMSA features (default: 0)", type=integer, default=0),
    Option(
        "--init",
        choices=("legacy", "init2"),
        default="init2",
        help="how the host sets the guest up; QEMU without features uses legacy (default: init2)",
    ),
)
_SAVE_AREAS = Option("--dump-vmsa", help="write the save areas to vmsa<N>.bin")
_OWNER = (
    Option("--tik", "FILE", "transport integrity key, 16 bytes"),
    Option("--nonce", "HEX", "the measurement's nonce, 16 bytes"),
    *(Option(f"--{name}", "N", type=integer) for name in ("policy", "api-major", "api-minor", "build-id")),
)
_OUTPUT = (
    Option("--output-format", choices=("hex", "base64"), default="hex", help="(default: hex)"),
    Option("--trace", help="show every step, its hash and the running digest"),
    Option("--json", help="one JSON document, with the trace"),
)
OPTIONS = (*_LAUNCH, *_BOOT, *_CPU, _SAVE_AREAS, *_OWNER, *_OUTPUT)
"""All of them, named as those of sev-snp-measure where it has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``OPTIONS`` in their groups."""
    _SAVE_AREAS.add_to(add_launch_arguments(parser))
    add_owner_arguments(parser, "launch measurement instead of digest (all needed)")
    add_options(parser.add_argument_group("output"), _OUTPUT)


def add_launch_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a launch is measured from; returns the group of options about vCPUs."""
    add_options(parser, _LAUNCH)
    add_options(parser.add_argument_group("direct kernel boot (kernel-hashes=on)"), _BOOT)
    cpu = parser.add_argument_group("vCPUs (seves)")
    add_options(cpu, _CPU)
    return cpu


def add_owner_arguments(parser: argparse.ArgumentParser, title: str) -> None:
    """What a measurement is signed with."""
    add_options(parser.add_argument_group(title), _OWNER)


def run(args: argparse.Namespace) -> int:
    """Plan the launch, predict, print; 0."""
    from casemate.measure.digest_sev import predict_digest

    plan = _plan(args)
    digest = predict_digest(plan)
    measurement = _measurement(args, plan, digest)
    if args.dump_vmsa:
        _dump_vmsas(plan)
    if args.json:
        _print_json(args, plan, digest, measurement)
        return 0
    if args.trace:
        _print_trace(plan)
    print(_encode(measurement or digest, args.output_format))
    return 0


def _plan(args: argparse.Namespace) -> LaunchPlan:
    from casemate.errors import SpecError
    from casemate.firmware.image import FirmwareImage
    from casemate.measure.plan_sev import plan_sev, plan_sev_es
    from casemate.measure.vmsa_pages import SevInit

    is_sev_es = args.mode == "seves"
    if not is_sev_es and (args.guest_features or args.dump_vmsa):
        option = "--dump-vmsa" if args.dump_vmsa else "--guest-features"
        raise SpecError(f"{option}: a SEV guest has no save areas", "use --mode seves")
    if is_sev_es and args.vcpus is None:
        raise SpecError("--vcpus is missing", "say how many vCPUs the guest has: each is measured")
    image, hashes = FirmwareImage.load(args.ovmf), _hashes(args)
    if not is_sev_es:
        return plan_sev(image, hashes)
    return plan_sev_es(image, args.vcpus, signature_of(args), hashes, args.guest_features, SevInit(args.init))


def _hashes(args: argparse.Namespace) -> KernelHashes | None:
    from casemate.errors import SpecError

    if args.kernel is None:
        for option in ("initrd", "append"):
            if getattr(args, option) is not None:
                raise SpecError(f"--{option} without --kernel", "give the kernel, or leave both out")
        return None

    from casemate.measure.kernel_hashes import KernelHashes

    return KernelHashes.of_files(args.kernel, args.initrd, args.append or "")


def signature_of(args: argparse.Namespace) -> int:
    """The CPUID signature, named in one of three ways. Raises SpecError if not in exactly one."""
    from casemate.errors import SpecError
    from casemate.measure.cpu_models import cpu_signature, model_signature

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
    from casemate.measure.measurement import predict_measurement

    return predict_measurement(digest, *signing)


def signing_of(args: argparse.Namespace, kind: GuestKind) -> tuple[bytes, bytes, int, PlatformVersion] | None:
    """TIK, nonce, policy and version that sign, or None. Raises SpecError if some are missing or impossible."""
    from casemate.errors import SpecError

    names = ("tik", "nonce", "policy", "api_major", "api_minor", "build_id")
    missing = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise SpecError(f"a launch measurement also needs {', '.join(missing)}", "all of them are signed")

    from casemate.measure import measurement as owner

    owner.validate_policy(args.policy, kind)
    version = owner.PlatformVersion(args.api_major, args.api_minor, args.build_id)
    return owner.read_tik(args.tik), owner.parse_nonce(args.nonce), args.policy, version


def _dump_vmsas(plan: LaunchPlan) -> None:
    from casemate.errors import HostError
    from casemate.measure.plan import UpdateVmsa

    for step in plan.steps:
        if isinstance(step, UpdateVmsa):
            path = f"vmsa{step.vcpu}.bin"
            try:
                with open(path, "wb") as file:
                    file.write(step.data)
            except OSError as error:
                raise HostError("write", error.errno or 0, path, "run in a folder you may write to") from None


def _print_trace(plan: LaunchPlan) -> None:
    from casemate.measure.trace import trace_digest

    print(_COLUMNS.format("step", "gpa", "bytes", "sha256", "running digest"))
    for step in trace_digest(plan):
        gpa = "-" if step.gpa is None else f"{step.gpa:#x}"
        print(_COLUMNS.format(step.what, gpa, step.length, step.sha256.hex(), step.running.hex()))


def _print_json(args: argparse.Namespace, plan: LaunchPlan, digest: bytes, measurement: bytes | None) -> None:
    import json

    from casemate.measure.trace import trace_digest

    steps = [
        {
            "what": step.what,
            "gpa": None if step.gpa is None else f"{step.gpa:#x}",
            "length": step.length,
            "sha256": step.sha256.hex(),
            "running": step.running.hex(),
        }
        for step in trace_digest(plan)
    ]
    document = {
        "guest": plan.kind.value,
        "firmware": args.ovmf,
        "digest": _encode(digest, args.output_format),
        "measurement": _encode(measurement, args.output_format) if measurement else None,
        "steps": steps,
    }
    print(json.dumps(document, indent=2))


def _encode(value: bytes, encoding: str) -> str:
    if encoding == "hex":
        return value.hex()
    from base64 import b64encode

    return b64encode(value).decode()
