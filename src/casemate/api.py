"""The main jobs as calls: boot, measure, explain, inspect, lint, verify, open_variables (docs/guide/python.md).

Paths may be ``str`` or ``Path``; where an enum is meant, its value as text will do (``kind="sev-es"``). Errors are
``CasemateError`` with a cause and a remedy; what a guest does is never an exception but part of the ``Outcome``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.abi.guest_kind import GuestKind
from casemate.abi.kernel_eras import NEWEST
from casemate.advise.inspect import Inspection, inspect_image
from casemate.advise.lint import lint as lint_words
from casemate.advise.rule import Finding, HostFacts
from casemate.advise.variable_file import VariableFile
from casemate.confidential.preparation import (
    DEFAULT_VCPU_TYPE,
    LaunchOptions,
    PreparedLaunch,
    prepare,
    unfit_for_sev_es,
)
from casemate.confidential.stages import launch as launch_machine
from casemate.digest.cpu_models import model_signature
from casemate.digest.explain import Explanation, Owner, Search
from casemate.digest.hypotheses import Claim, DirectBoot
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.plan import LaunchPlan
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.plan_snp import plan_snp
from casemate.digest.plan_tdx import plan_tdx
from casemate.digest.sev_init import SevInit
from casemate.digest.trace import running_digests
from casemate.errors import ImageError, SpecError
from casemate.files import read_file
from casemate.firmware.descriptors import FirmwarePair, firmware_roots
from casemate.firmware.descriptors import find_firmware as find_pair
from casemate.firmware.image import FirmwareImage
from casemate.host.clock import GuestClock
from casemate.machine.boot import Attachments
from casemate.machine.boot import boot as boot_machine
from casemate.machine.host_choice import HostChoice, choose_host
from casemate.machine.machine import Machine
from casemate.machine.outcome import LaunchRecord, Outcome
from casemate.machine.spec import MachineSpec
from casemate.qemu.source import read_commands

if TYPE_CHECKING:
    from casemate.advise.attestation import Check, Expectations

Source = str | Path


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a launch will measure: ``digest`` (32 bytes of SEV and SEV-ES, 48 of SNP and TDX), and the steps to it."""

    digest: bytes
    plan: LaunchPlan


def boot(
    spec: MachineSpec,
    launch: LaunchOptions | PreparedLaunch | None = None,
    *,
    host: str | HostChoice = "model",
    until: str | None = None,
    timeout: float | None = None,
    watchdog: float | None = None,
    typed: Sequence[str] = (),
    prompt: str = "Shell> ",
    attachments: Attachments | None = None,
    on_created: Callable[[Machine], None] | None = None,
    on_launched: Callable[[LaunchRecord], None] | None = None,
) -> Outcome:
    """Boot one guest, plain or confidential, and run it until it ends or something ends it.

    ``launch`` says how a confidential guest is launched; plain guests take none. ``host`` is ``model``,
    ``model:linux-6.10`` for another kernel era, ``kvm``, or ``auto`` (KVM if it runs supervisor code at speed). The
    run ends when the guest prints ``until``, after ``timeout`` seconds, after ``watchdog`` seconds of CPU time without
    an access to any device, or by itself. Each text of ``typed`` is typed at a ``prompt``. ``on_created`` gets the
    machine before its launch, ``on_launched`` what the launch showed.

    Raises SpecError, ImageError, UnsupportedError, HostError, FirmwareStatusError, and InsecureError if the launch
    measures something else than it should.
    """
    chosen = choose_host(host, spec) if isinstance(host, str) else host
    prepared: PreparedLaunch | None = None
    if isinstance(launch, PreparedLaunch):
        prepared = launch
    elif spec.kind.is_confidential:
        prepared = prepare(spec, launch or LaunchOptions(), chosen.make(GuestClock()))

    def assemble(machine: Machine) -> LaunchRecord | None:
        if on_created:
            on_created(machine)
        if prepared is None:
            machine.assemble()
            return None
        record = launch_machine(machine, prepared)
        if on_launched:
            on_launched(record)
        return record

    return boot_machine(
        prepared.spec if prepared else spec,
        until=until,
        timeout=timeout,
        watchdog=watchdog,
        typed=typed,
        prompt=prompt,
        attachments=attachments,
        hypervisor=chosen.make,
        host_why=chosen.why,
        assemble=assemble,
    )


def find_firmware(kind: GuestKind | str = GuestKind.PLAIN) -> FirmwarePair:
    """The installed OVMF pair that a guest of this kind can boot: code, and the template of its variables.

    Searches the folders of ``$CASEMATE_FIRMWARE`` first, then the system's. Raises UnsupportedError if there is none.
    """

    def unfit(code: Path) -> str | None:
        return unfit_for_sev_es(FirmwareImage.load(code)) if kind == GuestKind.SEV_ES else None

    return find_pair(firmware_roots(os.environ), unfit)


def measure(
    ovmf: Source,
    kind: GuestKind | str,
    *,
    vcpus: int = 1,
    vcpu_type: str = DEFAULT_VCPU_TYPE,
    features: int | None = None,
    init: SevInit | str = SevInit.INIT2,
    kernel: Source | None = None,
    initrd: Source | None = None,
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
    ovmf: Source,
    kind: GuestKind | str,
    *,
    vcpus: int | None = None,
    vcpu_type: str | None = None,
    features: int = 0,
    init: SevInit | str = SevInit.INIT2,
    variables: Source | None = None,
    kernel: Source | None = None,
    initrd: Source | None = None,
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


def inspect(path: Source) -> Inspection:
    """Say what a firmware file is, and which guests can use it. Raises ImageError if it cannot be read."""
    return inspect_image(FirmwareImage.load(path))


def lint(command: str | Sequence[str], era: str = NEWEST) -> list[Finding]:
    """What is wrong with a guest before it is started: a QEMU command line as words, or as text whatever
    ``casemate lint FILE`` reads: a script, a libvirt domain as XML.

    ``era`` is the kernel of the host, such as ``linux-6.8``. Raises SpecError for what is neither.
    """

    def load(path: str) -> FirmwareImage | None:
        try:
            return FirmwareImage.load(path)
        except ImageError:
            return None

    if not isinstance(command, str):
        return lint_words(command, HostFacts.of_era(era), load)[0]
    found = (
        lint_words(each, HostFacts.of_era(era), load)[0] for each in read_commands(command.encode(), "lint")
    )
    return [finding for findings in found for finding in findings]


def verify(
    report: Source | bytes,
    *,
    ark: Source,
    ask: Source,
    vcek: Source,
    crls: Iterable[Source] = (),
    expected: Expectations | None = None,
    now: datetime | None = None,
) -> list[Check]:
    """Check an SNP attestation report against the certificates of who signed it, and against what is ``expected``.

    ``ark`` is the root that you trust, ``ask`` what it signed (ASK or ASVK), ``vcek`` the key of the chip or the host
    (VCEK or VLEK): files in PEM or DER, or AMD's bundles. Every check is returned; the report can be believed if none
    has ``passed`` False. Raises ImageError or SpecError for files that are not that. Source: AMD 56860, 57230.
    """
    from casemate.advise import attestation
    from casemate.advise.certificate_file import load_pool, pick
    from casemate.advise.report_file import read_report

    data = report if isinstance(report, bytes) else read_file(report)
    file = read_report(data, "report" if isinstance(report, bytes) else str(report))
    found = {name: pick(str(path), name) for name, path in (("ARK", ark), ("ASK", ask), ("VCEK", vcek))}
    root, intermediate, leaf = found["ARK"], found["ASK"], found["VCEK"]
    if root is None or intermediate is None or leaf is None:
        missing = next(name for name, certificate in found.items() if certificate is None)
        raise SpecError(f"the file for the {missing} has several that it could be", "give a file of one")
    return attestation.check_report(
        file.report,
        attestation.Chain(root, intermediate, leaf),
        expected or attestation.Expectations(),
        now or datetime.now(UTC),
        [crl for path in crls for crl in load_pool(path).crls],
    )


def open_variables(path: Source) -> VariableFile:
    """Read a UEFI variable store: a flash image, or the JSON of QEMU's ``uefi-vars`` device.

    ``VariableFile.encode`` makes the file with other variables. Raises ImageError if it is neither form.
    """
    return VariableFile.parse(read_file(path), str(path))
