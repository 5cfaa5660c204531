"""The assumptions that a launch digest depends on, and what else may be true of each (docs/guide/explain.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Generic, NamedTuple, TypeVar

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.features import SevFeatures
from casemate.digest.cpu_models import CPU_MODELS, cpu_signature
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.kernel_header import patched_kernel
from casemate.digest.sev_init import SevInit
from casemate.digest.vmm_flavours import UNSET_SIGNATURE, Launcher
from casemate.firmware.image import FirmwareImage

T_co = TypeVar("T_co", covariant=True)

PROCESSORS = {
    **CPU_MODELS,
    "EPYC 7003 stepping B0": cpu_signature(25, 1, 0),
    "EPYC 7003X": cpu_signature(25, 1, 2),
    "EPYC 9004": cpu_signature(25, 17, 1),
    "EPYC 9004X": cpu_signature(25, 17, 2),
    "EPYC 97x4 stepping A1": cpu_signature(25, 160, 1),
    "EPYC 97x4": cpu_signature(25, 160, 2),
    "EPYC 9005": cpu_signature(26, 2, 1),
    "EPYC 9005 dense": cpu_signature(26, 17, 0),
    "qemu64 (no -cpu given)": cpu_signature(15, 107, 1),
    "kvm64": cpu_signature(15, 6, 1),
    "no CPUID at all": UNSET_SIGNATURE,
}
"""Signatures by QEMU's models, and by processors, which ``-cpu host`` shows (linux-firmware amd-ucode/README)."""

FEATURES = (
    0,
    int(SevFeatures.DEBUG_SWAP),
    int(SevFeatures.SECURE_TSC),
    int(SevFeatures.DEBUG_SWAP | SevFeatures.SECURE_TSC),
    int(SevFeatures.SNP_ACTIVE),
    int(SevFeatures.SNP_ACTIVE | SevFeatures.DEBUG_SWAP),
    int(SevFeatures.RESTRICTED_INJECTION),
    int(SevFeatures.ALTERNATE_INJECTION),
    int(SevFeatures.SECURE_AVIC),
)
"""VMSA features that are tried; the ones with bit 0 belong to SNP guests, but are often given by mistake."""

_MEMORY_BELOW_4G = tuple(size << 20 for size in (512, 1024, 2048, 3072))
_LAUNCHERS = {
    Launcher.INIT2: "KVM_SEV_INIT2 (Linux 6.10) put the FPU state (MXCSR 0x1f80, x87 control word 0x37f) into the"
    " save areas",
    Launcher.LEGACY: "KVM_SEV_ES_INIT left the FPU state (MXCSR, x87 control word) of the save areas zero, which"
    " KVM_SEV_INIT2 does not",
    Launcher.EC2: "the save areas are those of EC2: other CS, SS and TR attributes, no CPU signature, no FPU state",
    Launcher.GCE: "the save areas are those of GCE: another PAT, no CPU signature, no FPU state",
}


class Deviation(NamedTuple):
    """One assumption that was not as given: its ``id`` (docs/guide/explain.md), the cause, and what to change."""

    id: str
    cause: str
    remedy: str


class Option(NamedTuple, Generic[T_co]):
    """One value, and where it deviates from what was given."""

    value: T_co
    deviations: tuple[Deviation, ...] = ()


class DirectBoot(NamedTuple):
    """The contents of what a direct boot hands over; an empty initrd is none."""

    kernel: bytes
    cmdline: bytes = b""
    initrd: bytes = b""


class Claim(NamedTuple):
    """What somebody believes about a launch; None is not known."""

    image: FirmwareImage
    kind: GuestKind
    vcpus: int | None = None
    signature: int | None = None
    features: int = 0
    init: SevInit = SevInit.INIT2
    boot: DirectBoot | None = None
    variables: FirmwareImage | None = None


class Registers(NamedTuple):
    """What the save areas of a SEV-ES guest are made from."""

    launcher: Launcher
    signature: int
    features: int


def combine(
    *axes: Sequence[Option[T_co]], most: int
) -> Iterator[tuple[tuple[T_co, ...], tuple[Deviation, ...]]]:
    """Every combination of options with at most ``most`` deviations."""
    for options in product(*axes):
        deviations = tuple(deviation for option in options for deviation in option.deviations)
        if len(deviations) <= most:
            yield tuple(option.value for option in options), deviations


def firmware_options(claim: Claim) -> list[Option[bytes]]:
    """The file as given; with the variables before it; without the variables in it."""
    image, options = claim.image, [Option(claim.image.data)]
    if claim.variables is not None:
        cause = "flash unit 0 held variables and code together, not the code alone"
        remedy = "--ovmf with the combined image, or give the guest CODE and VARS as two units"
        options.append(
            Option(claim.variables.data + image.data, (Deviation("firmware-combined", cause, remedy),))
        )
    store = image.variable_volume
    if store is not None and image.code_volumes and store.offset == 0:
        cause = "flash unit 0 held the code alone, without the variables that the given file begins with"
        options.append(
            Option(
                image.data[store.length :],
                (Deviation("firmware-code-alone", cause, "--ovmf with the split CODE image"),),
            )
        )
    return options


def table_options(claim: Claim, most: int) -> list[Option[bytes | None]]:
    """The table of kernel hashes, or None where it is not measured."""
    if claim.boot is None:
        return [Option(None)]
    axes = (
        _kernel_options(claim.boot),
        _initrd_options(claim.boot.initrd),
        _cmdline_options(claim.boot.cmdline),
    )
    found: list[Option[bytes | None]] = [
        Option(KernelHashes(*digests).to_bytes(), deviations)
        for digests, deviations in combine(*axes, most=most)
    ]
    cause = "the kernel was not measured: the guest ran without kernel-hashes=on"
    remedy = "add kernel-hashes=on to QEMU's -object, or leave --kernel out"
    return [*found, Option(None, (Deviation("kernel-hashes-off", cause, remedy),))]


def register_options(claim: Claim, most: int) -> list[Option[Registers | None]]:
    """How vCPUs begin; None is a SEV guest, whose registers are not measured."""
    plain: Option[Registers | None] = Option(None)
    kind: tuple[Deviation, ...] = ()
    if claim.kind is GuestKind.SNP:
        options: list[Option[Registers | None]] = []
    elif claim.kind is GuestKind.SEV_ES:
        cause = "the registers were not measured: the guest was SEV, not SEV-ES"
        plain = Option(None, (Deviation("guest-kind", cause, "--mode sev, or launch with policy bit 2 set"),))
        options = [plain]
    else:
        options = [plain]
        cause = "registers were measured: the guest was SEV-ES, not SEV"
        kind = (Deviation("guest-kind", cause, "--mode seves, or launch with policy bit 2 clear"),)
    axes: tuple[list[Option[int]], ...] = (
        _signature_options(claim.signature),
        _feature_options(claim.features, claim.kind),
    )
    launchers = _launcher_options(claim.init)
    if claim.kind is GuestKind.SNP:  # its VM type knows no other way
        launchers = [launcher for launcher in launchers if launcher.value is not Launcher.LEGACY]
    for launcher in launchers:
        room = most - len(kind) - len(launcher.deviations)
        unsigned = launcher.value in (Launcher.EC2, Launcher.GCE)
        chosen = ([Option(UNSET_SIGNATURE)], axes[1]) if unsigned else axes
        options += [
            Option(Registers(launcher.value, signature, features), (*kind, *launcher.deviations, *deviations))
            for (signature, features), deviations in combine(*chosen, most=room)
        ]
    return options


def vcpus_deviation(found: int, given: int | None) -> tuple[Deviation, ...]:
    """Nothing if the count is the given one."""
    if found == given:
        return ()
    not_given = "" if given is None else f", not {given}"
    return (Deviation("vcpus", f"the guest had {count_words(found)}{not_given}", f"--vcpus {found}"),)


def count_words(vcpus: int) -> str:
    """``1 vCPU``, ``2 vCPUs``."""
    return f"{vcpus} vCPU{'s' if vcpus > 1 else ''}"


def _launcher_options(given: SevInit) -> list[Option[Launcher]]:
    own = Launcher(given.value)
    remedies = {Launcher.INIT2: "--init init2", Launcher.LEGACY: "--init legacy"}
    options = [Option(own)]
    for launcher, cause in _LAUNCHERS.items():
        if launcher is not own:
            remedy = remedies.get(launcher, "compare with that cloud's reference values")
            name = f"launcher-{launcher}"
            options.append(Option(launcher, (Deviation(name, cause, remedy),)))
    return options


def _signature_options(given: int | None) -> list[Option[int]]:
    options = [] if given is None else [Option(given)]
    names: dict[int, list[str]] = {}
    for name, signature in PROCESSORS.items():
        names.setdefault(signature, []).append(name)
    for signature, same in names.items():
        if signature != given:
            not_given = "" if given is None else f", not {given:#x}"
            cause = f"the vCPUs have signature {signature:#x} ({' or '.join(same)}){not_given}"
            remedy = f"--vcpu-sig {signature:#x}, or another -cpu for the guest"
            options.append(Option(signature, (Deviation("vcpu-signature", cause, remedy),)))
    return options


def _feature_options(given: int, kind: GuestKind) -> list[Option[int]]:
    options = [Option(given)]
    tried: Sequence[int] = FEATURES
    if kind is GuestKind.SNP:
        tried = sorted({features | int(SevFeatures.SNP_ACTIVE) for features in FEATURES})
    for features in tried:
        if features != given:
            cause = f"the VMSA features are {feature_words(features)}, not {feature_words(given)}"
            remedy = f"--guest-features {features:#x}"
            options.append(Option(features, (Deviation("guest-features", cause, remedy),)))
    return options


def feature_words(features: int) -> str:
    """``0x20 (debug-swap)``."""
    names = [str(flag.name).lower().replace("_", "-") for flag in SevFeatures if flag & features]
    return f"{features:#x} ({', '.join(names)})" if names else f"{features:#x}"


def _kernel_options(boot: DirectBoot) -> list[Option[bytes]]:
    options = [Option(_sha256(boot.kernel))]
    for memory in _MEMORY_BELOW_4G:
        patched = patched_kernel(boot.kernel, len(boot.initrd), memory)
        if patched is not None:
            cause = "QEMU wrote its loader fields into the kernel's setup header before it was hashed"
            remedy = (
                "use a QEMU that leaves the kernel of confidential guests alone, or hash the patched kernel"
            )
            options.append(Option(_sha256(patched), (Deviation("kernel-header-patched", cause, remedy),)))
    return list(_distinct(options))


def _initrd_options(given: bytes) -> list[Option[bytes]]:
    missing = Deviation(
        "initrd-missing", "no initrd was measured", "leave --initrd out, or give the guest -initrd"
    )
    return list(_distinct((Option(_sha256(given)), Option(_sha256(b""), (missing,)))))


def _cmdline_options(given: bytes) -> list[Option[bytes]]:
    options = [Option(_sha256(given + b"\0"))]
    for name, text, what in (
        ("cmdline-no-nul", given, "the command line was hashed without its terminating NUL"),
        ("cmdline-space", given + b" \0", "the command line ended in a space"),
        ("cmdline-newline", given + b"\n\0", "the command line ended in a newline"),
        ("cmdline-newline", given + b"\n", "the command line ended in a newline, and was hashed without NUL"),
        ("cmdline-stripped", given.strip() + b"\0", "the command line had no space or newline at its ends"),
        ("cmdline-missing", b"\0", "the command line was empty"),
    ):
        options.append(
            Option(_sha256(text), (Deviation(name, what, "make --append equal to QEMU's -append"),))
        )
    return list(_distinct(options))


def _distinct(options: Iterable[Option[bytes]]) -> Iterator[Option[bytes]]:
    seen = set()
    for option in options:
        if option.value not in seen:
            seen.add(option.value)
            yield option


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
