"""A confidential launch, decided and predicted before any host is asked for a VM (docs/design/confidential.md)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from casemate.abi.guest_kind import GuestKind
from casemate.abi.sev.report import REPORT_DATA_SIZE
from casemate.confidential.features import parse_features
from casemate.confidential.setup import InitRequest, SetupChoice, choose_setup
from casemate.digest import steps_snp
from casemate.digest.cpu_models import DEFAULT_VCPU_TYPE, model_signature
from casemate.digest.kernel_hashes import KernelHashes
from casemate.digest.measurement import validate_policy
from casemate.digest.plan import LaunchPlan
from casemate.digest.plan_linux import plan_snp_linux, with_linux
from casemate.digest.plan_sev import plan_sev, plan_sev_es
from casemate.digest.plan_snp import plan_snp
from casemate.digest.trace import running_digests
from casemate.digest.vmsa_pages import RESET_VECTOR
from casemate.errors import ImageError, InsecureError, SpecError, UnsupportedError
from casemate.firmware.guided_table import GuestArea
from casemate.firmware.image import FirmwareImage
from casemate.firmware.sec_core import unfit_for_sev_es
from casemate.host.capabilities import VmCapabilities
from casemate.host.hypervisor import Hypervisor
from casemate.host.secure_processor import LaunchMeasurement, LaunchSession, TransportKeys, VcpuReset
from casemate.host.snp_processor import GOSVW_SIZE, SnpFinish
from casemate.machine.direct_kernel import lay_out_linux
from casemate.machine.spec import MachineSpec
from casemate.memory.protection import choose

_DEFAULT_POLICIES = {GuestKind.SEV: 0x1, GuestKind.SEV_ES: 0x5, GuestKind.SNP: 0x30000}
_NO_ID_BLOCK = SnpFinish()
_NO_SLOTS = VmCapabilities(readonly_memory=False)


@dataclass(frozen=True, slots=True)
class LaunchSecret:
    """A packet of the guest owner (AMD 55766, 6.6): header, ciphertext, and where its contents go."""

    header: bytes
    data: bytes = field(repr=False)
    gpa: int


class LaunchAbandoned(Exception):
    """Raised by who is asked, once the run was ended instead of the question being answered."""


@dataclass(frozen=True, slots=True)
class AttestationRequest:
    """What a guest owner is told before the guest runs."""

    kind: GuestKind
    firmware: str
    measurement: LaunchMeasurement
    policy: int
    version: tuple[int, int, int]
    """The secure processor's API major and minor, and build."""
    digest: bytes
    """What was predicted here; an owner predicts it again."""
    secret_area: GuestArea | None
    inject: Callable[[LaunchSecret], None]
    """Hands a packet over at once, for an owner who wants to hear of it: raises FirmwareStatusError, HostError, or
    SpecError where there is no RAM. Not once the question is answered."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What a launch can be asked for beside the machine."""

    policy: int | None = None
    """None is no debugging, and for SEV-ES its bit."""
    features: tuple[str, ...] = ()
    init: InitRequest = "auto"
    kernel_hashes: bool = False
    """Measure the machine's kernel, initrd and command line."""
    expected_digest: bytes | None = None
    keys: TransportKeys | None = None
    """What the launch session agreed on; without it nobody here can verify the measurement."""
    session: LaunchSession | None = None
    """The owner's session; with keys and without this one, a session of these keys is made here."""
    secret: LaunchSecret | None = None
    attest: Callable[[AttestationRequest], LaunchSecret | None] | None = None
    """Asked once the guest is measured; it raises InsecureError if the guest must not run."""
    vcpus: int = 1
    """How many vCPUs are measured; a host may run fewer, then the guest stops after its launch."""
    signature: int = model_signature(DEFAULT_VCPU_TYPE)
    """CPUID leaf 1 EAX of the vCPUs."""
    launch_only: bool = False
    """Launch and measure, and do not run the guest."""
    snp: SnpFinish = _NO_ID_BLOCK
    """What the launch of an SNP guest ends with: ID block and host data."""
    gosvw: bytes = bytes(GOSVW_SIZE)
    """Guest-visible workarounds of an SNP guest."""
    report_data: bytes = bytes(REPORT_DATA_SIZE)
    """What the report of an SNP guest shall carry."""


@dataclass(frozen=True, slots=True)
class PreparedLaunch:
    """Everything that is known before the launch; ``spec`` is the machine it is for."""

    spec: MachineSpec
    options: LaunchOptions
    image: FirmwareImage
    policy: int
    setup: SetupChoice
    vcpus: tuple[VcpuReset, ...]
    plan: LaunchPlan
    digest: bytes
    host_runs_snp: bool

    @property
    def stops_after_launch(self) -> str | None:
        """Why the guest will not run, or None if it will."""
        if self.options.launch_only:
            return "only the launch was asked for"
        if self.spec.kind is GuestKind.SNP and not self.host_runs_snp:
            return "this host launches SNP guests and does not run them"
        runs = self.spec.vcpus
        return None if runs == len(self.vcpus) else f"this host runs {runs} vCPU of {len(self.vcpus)}"


def prepare(spec: MachineSpec, options: LaunchOptions, host: Hypervisor) -> PreparedLaunch:
    """Decide, plan and predict; only firmware and kernel files are read.

    Raises SpecError, ImageError or UnsupportedError, InsecureError if the digest is not the expected one.
    """
    validate_kind(spec.kind, flash=spec.in_flash)
    if options.kernel_hashes and spec.kernel is None:
        raise SpecError("--kernel-hashes: there is no kernel to measure", "give it with --kernel")
    if options.kernel_hashes and spec.is_direct:
        cause = "--kernel-hashes: there is no firmware that would compare them"
        raise SpecError(cause, "leave it out: without firmware the kernel itself is measured")
    setup = choose_setup(spec.kind, parse_features(options.features, spec.kind), options.init, host)
    policy = _DEFAULT_POLICIES[spec.kind] if options.policy is None else options.policy
    _validate_policy(policy, spec.kind)
    if spec.is_direct:
        _validate_direct(host)
        spec = spec.replace(linux=lay_out_linux(spec, host.c_bit))
    path = spec.code or spec.bios or spec.kernel
    assert path is not None
    image = FirmwareImage.from_bytes(spec.linux.image, str(path)) if spec.linux else FirmwareImage.load(path)
    runs_as_sev_es = spec.kind is GuestKind.SEV_ES and not options.launch_only
    if runs_as_sev_es and (refusal := unfit_for_sev_es(image)):
        raise ImageError(
            path, refusal, "use an image whose SEC phase is 64-bit, as OVMF's 2M builds, or --guest sev"
        )
    plan = _plan(spec, options, setup, image)
    *_, digest = running_digests(plan)
    _expect(digest, options.expected_digest, path)
    ap_start = spec.linux.ap_start if spec.linux else None
    others = VcpuReset(ap_start or image.sev_es_reset or 0, options.signature)
    vcpus = (VcpuReset(RESET_VECTOR, options.signature), *(others,) * (options.vcpus - 1))
    known = host.expected_capabilities(spec.kind, setup.sev)
    runs = min(options.vcpus, known.max_vcpus) if known else options.vcpus
    launched = spec.replace(sev=setup.sev, isa_bios=False, vcpus=runs)
    return PreparedLaunch(launched, options, image, policy, setup, vcpus, plan, digest, host.runs_snp)


def validate_kind(kind: GuestKind, *, flash: bool, dry_run: bool = False) -> None:
    """Check what needs no file. Raises SpecError or UnsupportedError for a guest that cannot be launched."""
    if not kind.takes_flash:
        choose(kind, flash=flash, capabilities=_NO_SLOTS)
    if dry_run:
        return
    if kind is GuestKind.TDX:
        cause = "TDX guests are measured, not launched: the modelled host is AMD's"
        raise UnsupportedError(cause, "say --dry-run, or use casemate measure --mode tdx")


def _validate_direct(host: Hypervisor) -> None:
    if host.c_bit is None:
        cause = f"the host {host.name} does not say where the C-bit is, which a kernel without firmware needs"
        raise UnsupportedError(cause, "use --host model, or start the kernel by firmware")


def _validate_policy(policy: int, kind: GuestKind) -> None:
    if kind is GuestKind.SNP:
        steps_snp.validate_policy(policy)
    else:
        validate_policy(policy, kind)


def _plan(spec: MachineSpec, options: LaunchOptions, setup: SetupChoice, image: FirmwareImage) -> LaunchPlan:
    hashes = None
    if options.kernel_hashes and spec.kernel is not None:
        hashes = KernelHashes.of_files(spec.kernel, spec.initrd, spec.append)
    if spec.kind is GuestKind.SEV:
        plan = plan_sev(image, hashes)
    elif spec.kind is GuestKind.SNP:
        if spec.linux is not None:
            return plan_snp_linux(image, spec.linux, options.vcpus, options.signature, setup.features)
        plan = plan_snp(image, options.vcpus, options.signature, hashes, setup.features)
    else:
        plan = plan_sev_es(image, options.vcpus, options.signature, hashes, setup.features, setup.init)
    return plan if spec.linux is None else with_linux(plan, spec.linux)


def _expect(digest: bytes, expected: bytes | None, path: Path | str) -> None:
    if expected is not None and not hmac.compare_digest(digest, expected):
        raise InsecureError(
            f"the launch digest with {path} would be {digest.hex()}, expected is {expected.hex()}",
            "check firmware, features, --init and vCPUs; casemate measure --trace shows every step",
        )
