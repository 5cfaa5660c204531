"""Predicting launch digests, and explaining unexpected ones, as calls (docs/guide/python.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.digest.cpu_models import DEFAULT_VCPU_TYPE, model_signature
from casemate.digest.explain import Explanation, Owner, Search
from casemate.digest.hypotheses import Claim, DirectBoot
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan import LaunchPlan
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.plan_snp import plan_snp
from casemate.digest.plan_tdx import plan_tdx
from casemate.digest.sev_init import SevInit
from casemate.digest.trace import running_digests
from casemate.files import read_file
from casemate.firmware.image import FirmwareImage


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a launch will measure: ``digest`` (32 bytes of SEV and SEV-ES, 48 of SNP and TDX), and the steps to it."""

    digest: bytes
    plan: LaunchPlan


def measure(
    ovmf: str | Path,
    kind: GuestKind | str,
    *,
    vcpus: int = 1,
    vcpu_type: str = DEFAULT_VCPU_TYPE,
    features: int | None = None,
    init: SevInit | str = SevInit.INIT2,
    kernel: str | Path | None = None,
    initrd: str | Path | None = None,
    append: str = "",
) -> Prediction:
    """Predict the launch digest of a confidential guest from its files; opens no host.

    ``vcpu_type`` is QEMU's name of the CPU model, ``features`` the VMSA's ``sev_features`` (none, of SNP guests
    ``SNPActive``), ``init`` how the host sets a SEV-ES guest up. With ``kernel``, the table of kernel hashes is part of
    the launch. Raises ImageError or SpecError. Source: AMD 55766, 56860; Intel 348549.
    """
    kind = GuestKind(kind)
    image = FirmwareImage.load(ovmf)
    hashes = None if kernel is None else KernelHashes.of_files(kernel, initrd, append)
    signature = model_signature(vcpu_type)
    match kind:
        case GuestKind.TDX:
            plan = plan_tdx(image)
        case GuestKind.SNP:
            plan = plan_snp(image, vcpus, signature, hashes, 1 if features is None else features)
        case GuestKind.SEV_ES:
            plan = plan_sev_es(image, vcpus, signature, hashes, features or 0, SevInit(init))
        case _:
            plan = plan_sev(image, hashes)
    *_, digest = running_digests(plan)
    return Prediction(digest, plan)


def explain(
    observed: bytes | str,
    ovmf: str | Path,
    kind: GuestKind | str,
    *,
    vcpus: int | None = None,
    vcpu_type: str | None = None,
    features: int = 0,
    init: SevInit | str = SevInit.INIT2,
    variables: str | Path | None = None,
    kernel: str | Path | None = None,
    initrd: str | Path | None = None,
    append: str = "",
    owner: Owner | None = None,
    deviations: int = 3,
) -> Explanation:
    """Find out why a SEV, SEV-ES or SNP guest has the launch digest ``observed`` (bytes or hex) and not another.

    Tries up to ``deviations`` deviations at once from what is given; ``vcpus`` and ``vcpu_type`` may be unknown. With
    ``owner``, ``observed`` is the measurement that was signed with it. Raises ImageError or SpecError.
    """
    value = bytes.fromhex(observed) if isinstance(observed, str) else observed
    boot_files = None
    if kernel is not None:
        ramdisk = read_file(initrd) if initrd is not None else b""
        boot_files = DirectBoot(read_file(kernel), append.encode(errors="surrogateescape"), ramdisk)
    store = None if variables is None else FirmwareImage.load(variables)
    signature = None if vcpu_type is None else model_signature(vcpu_type)
    claim = Claim(
        FirmwareImage.load(ovmf),
        GuestKind(kind),
        vcpus,
        signature,
        features,
        SevInit(init),
        boot_files,
        store,
    )
    return Search(claim, value, owner, deviations).explain(map)
