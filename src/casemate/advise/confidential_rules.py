"""Rules about SEV, SEV-ES, SEV-SNP and TDX guests (QEMU target/i386/sev.c, kvm/tdx.c; Linux arch/x86/kvm)."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator

from casemate.abi.kvm.vm_types import VmType
from casemate.advise.guest_request import Kind
from casemate.advise.rule import Found, Guest, RuleSet, Severity
from casemate.digest.kernel_hashes import find_hashes_area
from casemate.errors import CasemateError
from casemate.firmware.hash_use import HashUse, hash_use
from casemate.firmware.volume import read_volumes

CONFIDENTIAL_RULES = RuleSet()

_SEV_C = "QEMU target/i386/sev.c"
_TDX = "QEMU docs/system/i386/tdx"
_SLOTS = "Linux 66155de93bcf, d30d9ee94cc0"
_LAUNCHES = ("sev-guest", "sev-snp-guest", "tdx-guest")
_SEV_KINDS = (Kind.SEV, Kind.SEV_ES, Kind.SNP)
_SEALED = (Kind.SEV_ES, Kind.SNP, Kind.TDX)
_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
_SNP_SMT, _SNP_RESERVED, _SNP_DEBUG = 1 << 16, 1 << 17, 1 << 19
_SIZES = {"id-block": 96, "host-data": 32, "guest-visible-workarounds": 16}


@CONFIDENTIAL_RULES.add("pflash-with-snp", _ERROR, f"{_SLOTS}; github.com/AMDESE/AMDSEV/issues/223, 236, 242")
def _flash_snp(guest: Guest) -> Iterator[Found]:
    yield from _flash_with(
        guest, Kind.SNP, "private memory takes no read-only slots: KVM refuses it (EINVAL)"
    )


@CONFIDENTIAL_RULES.add("pflash-with-tdx", _ERROR, _TDX)
def _flash_tdx(guest: Guest) -> Iterator[Found]:
    yield from _flash_with(guest, Kind.TDX, "TDX has no read-only memory, so firmware cannot be flash")


def _flash_with(guest: Guest, kind: Kind, why: str) -> Iterator[Found]:
    if guest.request.kind is kind:
        for flash in guest.request.flash:
            yield str(flash.option), f"flash in a {kind} guest: {why}", "load one combined image with -bios"


@CONFIDENTIAL_RULES.add("pflash-sev-es-init2", _ERROR, f"{_SLOTS}; {_SEV_C}")
def _flash_init2(guest: Guest) -> Iterator[Found]:
    request, flash = guest.request, guest.request.unit(0)
    if flash and guest.vm_type is VmType.SEV_ES and VmType.SEV_ES not in guest.host.readonly:
        why = " and ".join(request.features) or "legacy-vm-type=off"
        cause = (
            f"{why} needs a VM of type SEV_ES, which has no read-only memory on {guest.host.name}: QEMU stops"
        )
        remedy = "load the firmware with -bios, leave the feature out, or use a QEMU that protects by mapping"
        yield str(flash.option), cause, remedy


@CONFIDENTIAL_RULES.add("pflash-sev-es-livelock", _NOTE, f"{_SLOTS}; edk2 QemuFlashFvbServicesRuntimeDxe")
def _livelock(guest: Guest) -> Iterator[Found]:
    request, flash = guest.request, guest.request.unit(0)
    if flash and request.kind is Kind.SEV_ES and guest.vm_type in guest.host.readonly:
        cause = "a direct store of a SEV-ES guest to read-only flash faults for ever; OVMF asks by VMGEXIT instead"
        yield str(flash.option), cause, "with firmware other than OVMF, use -bios"


@CONFIDENTIAL_RULES.add(
    "vm-type-missing", _ERROR, "Linux 26c44aa9e076, 4f5defae7089; docs/design/kernel-eras.md"
)
def _vm_type(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.vm_type not in guest.host.vm_types:
        cause = f"{guest.host.name} has no VMs of type {guest.vm_type.kernel_name}"
        remedy = "use a newer kernel"
        if guest.request.kind in (Kind.SEV, Kind.SEV_ES):
            remedy += ", or leave features and legacy-vm-type=off out"
        yield str(launch), cause, remedy


@CONFIDENTIAL_RULES.add("launch-object-missing", _ERROR, "QEMU docs/system/confidential-guest-support")
def _object_missing(guest: Guest) -> Iterator[Found]:
    machine = guest.request.machine
    for key in ("confidential-guest-support", "memory-encryption"):
        if key in machine and machine[key] not in guest.request.objects:
            cause = f"{key}={machine[key]} names an object that is not there"
            yield (
                f"-machine {key}={machine[key]}",
                cause,
                f"add -object sev-guest,id={machine[key]},... or correct it",
            )


@CONFIDENTIAL_RULES.add("launch-object-unused", _ERROR, "QEMU docs/system/confidential-guest-support")
def _object_unused(guest: Guest) -> Iterator[Found]:
    for option in guest.request.of_type(*_LAUNCHES):
        if option is not guest.request.launch:
            name = option.fields.get("id", "")
            cause = "no machine option refers to this object: the guest would not be confidential at all"
            yield str(option), cause, f"add -machine confidential-guest-support={name}"


@CONFIDENTIAL_RULES.add("memory-encryption-alias", _NOTE, "QEMU docs/system/confidential-guest-support")
def _alias(guest: Guest) -> Iterator[Found]:
    if "memory-encryption" in guest.request.machine:
        option = f"-machine memory-encryption={guest.request.machine['memory-encryption']}"
        yield option, "the old name of confidential-guest-support", "use the new one"


@CONFIDENTIAL_RULES.add("kvm-missing", _ERROR, _SEV_C)
def _kvm(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and not guest.request.uses_kvm:
        yield str(launch), "confidential guests need KVM, and it is not asked for", "add -accel kvm"


@CONFIDENTIAL_RULES.add("cbitpos-missing", _ERROR, _SEV_C)
def _bits_missing(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.request.kind in _SEV_KINDS:
        for name, value in (("cbitpos", "51 (EPYC 7003 and later) or 47"), ("reduced-phys-bits", "1")):
            if name not in launch.fields:
                yield (
                    str(launch),
                    f"{name} is missing; QEMU checks it against the host",
                    f"add {name}={value}",
                )


@CONFIDENTIAL_RULES.add("cbitpos-value", _WARNING, f"{_SEV_C}; CPUID 0x8000001f EBX")
def _cbitpos(guest: Guest) -> Iterator[Found]:
    launch, kind = guest.request.launch, guest.request.kind
    if launch is None or kind not in _SEV_KINDS or "cbitpos" not in launch.fields:
        return
    position = launch.fields["cbitpos"]
    if position not in ("47", "51"):
        cause = f"the C-bit is bit 47 or 51 on every EPYC so far, not {position}"
        yield str(launch), cause, "read it from the host: casemate caps, or sevctl ok"
    elif kind is Kind.SNP and position == "47":
        cause = "processors with SNP (EPYC 7003 and later) have the C-bit at 51: QEMU refuses another"
        yield str(launch), cause, "say cbitpos=51"


@CONFIDENTIAL_RULES.add("number-wrong", _ERROR, _SEV_C)
def _numbers(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    for name in ("policy", "cbitpos", "reduced-phys-bits", "handle", "tsc-frequency"):
        try:
            if launch:
                launch.number(name)
        except ValueError:
            yield str(launch), f"{name}={launch.fields[name] if launch else ''} is no number", "give a number"


@CONFIDENTIAL_RULES.add("reduced-phys-bits", _WARNING, _SEV_C)
def _reduced(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    text = launch.fields.get("reduced-phys-bits", "1") if launch else "1"
    if text != "1":
        cause = (
            f"reduced-phys-bits={text}: a guest loses one bit; 1 to 63 are accepted, 5 is from old documents"
        )
        yield str(launch), cause, "say reduced-phys-bits=1"


@CONFIDENTIAL_RULES.add("features-without-es", _ERROR, f"{_SEV_C}, check_sev_features")
def _features(guest: Guest) -> Iterator[Found]:
    launch, features = guest.request.launch, guest.request.features
    if launch and features and guest.request.kind is Kind.SEV:
        cause = (
            f"{' and '.join(features)} needs SEV-ES or SNP, and policy {guest.request.policy:#x} asks for SEV"
        )
        yield str(launch), cause, "set bit 2 of the policy, such as policy=0x5"


@CONFIDENTIAL_RULES.add("legacy-with-features", _ERROR, _SEV_C)
def _legacy(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.request.features and launch.fields.get("legacy-vm-type") == "on":
        cause = "legacy-vm-type=on rules out VMSA features"
        yield str(launch), cause, "leave legacy-vm-type out, or the features"


@CONFIDENTIAL_RULES.add("tsc-frequency-alone", _ERROR, f"{_SEV_C}, check_sev_features")
def _tsc(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and "tsc-frequency" in launch.fields and not launch.has("secure-tsc"):
        yield str(launch), "tsc-frequency counts only with secure TSC", "add secure-tsc=on"


@CONFIDENTIAL_RULES.add("policy-debug", _WARNING, "AMD 55766, chapter 3; AMD 56860, guest policy")
def _debug(guest: Guest) -> Iterator[Found]:
    launch, policy, kind = guest.request.launch, guest.request.policy, guest.request.kind
    allows = policy & _SNP_DEBUG if kind is Kind.SNP else kind in (Kind.SEV, Kind.SEV_ES) and not policy & 1
    if launch and allows:
        bit = "clear bit 19" if kind is Kind.SNP else "set bit 0"
        yield str(launch), f"policy {policy:#x} lets the host read the guest by debug commands", bit


@CONFIDENTIAL_RULES.add("snp-policy", _ERROR, "Linux arch/x86/kvm/svm/sev.c, snp_launch_start; AMD 56860")
def _snp_policy(guest: Guest) -> Iterator[Found]:
    launch, policy = guest.request.launch, guest.request.policy
    if launch and guest.request.kind is Kind.SNP:
        missing = [bit for bit in (_SNP_SMT, _SNP_RESERVED) if not policy & bit]
        if missing:
            bits = " and ".join(str(bit.bit_length() - 1) for bit in missing)
            cause = f"policy {policy:#x} lacks bit {bits}, which KVM requires; SEV's policies do not fit SNP"
            yield str(launch), cause, "use 0x30000, and add to it"


@CONFIDENTIAL_RULES.add("kernel-hashes-off", _WARNING, f"{_SEV_C}; docs/guide/measure.md")
def _hashes_off(guest: Guest) -> Iterator[Found]:
    launch, kernel = guest.request.launch, guest.request.last("-kernel")
    if launch and kernel and guest.request.kind in _SEV_KINDS and not launch.has("kernel-hashes"):
        cause = "the kernel is not measured: the host could give any other"
        yield str(kernel), cause, "add kernel-hashes=on to the object, with firmware made for it (AmdSev)"


@CONFIDENTIAL_RULES.add("kernel-hashes-no-kernel", _WARNING, _SEV_C)
def _hashes_alone(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and launch.has("kernel-hashes") and not guest.request.has("-kernel"):
        cause = (
            "kernel-hashes=on without -kernel: nothing is measured, and AmdSev firmware boots nothing else"
        )
        yield str(launch), cause, "give -kernel, or leave kernel-hashes out"


@CONFIDENTIAL_RULES.add("kernel-hashes-unused", _WARNING, "edk2 OvmfPkg/AmdSev/BlobVerifierLibSevHashes")
def _hashes_unused(guest: Guest) -> Iterator[Found]:
    launch, image = guest.request.launch, guest.firmware
    if launch and image and launch.has("kernel-hashes") and guest.request.has("-kernel"):
        volumes = read_volumes(image.data, image.code_volumes)
        if hash_use(volumes) is HashUse.IGNORED:
            cause = f"{image.name}: the hashes are measured, but no driver of this build compares them with the kernel"
            yield str(launch), cause, "use a build that does, such as edk2's AmdSev"


@CONFIDENTIAL_RULES.add(
    "kernel-hashes-no-area", _ERROR, f"{_SEV_C}; github.com/AMDESE/AMDSEV/issues/142, 262"
)
def _hashes_area(guest: Guest) -> Iterator[Found]:
    launch, image = guest.request.launch, guest.firmware
    if launch and image and launch.has("kernel-hashes") and guest.request.has("-kernel"):
        try:
            find_hashes_area(image)
        except CasemateError as error:
            yield str(launch), error.cause, error.remedy


@CONFIDENTIAL_RULES.add("session-half", _ERROR, "AMD 55766, LAUNCH_START")
def _session(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    names = ("dh-cert-file", "session-file")
    given = [name for name in names if launch and name in launch.fields]
    if len(given) == 1:
        other = names[1 - names.index(given[0])]
        yield str(launch), f"{given[0]} without {other}: they make one session", f"add {other}"


@CONFIDENTIAL_RULES.add("blob-length", _ERROR, f"{_SEV_C}; AMD 56860")
def _blobs(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    for name, size in _SIZES.items():
        if launch and name in launch.fields:
            try:
                found = len(b64decode(launch.fields[name], validate=True))
            except ValueError:
                yield str(launch), f"{name} is no base64", f"give base64 of {size} bytes"
                continue
            if found != size:
                yield str(launch), f"{name} has {found} bytes, not {size}", f"give base64 of {size} bytes"


@CONFIDENTIAL_RULES.add("smm-confidential", _ERROR, "QEMU docs/system/i386/amd-memory-encryption; tdx")
def _smm(guest: Guest) -> Iterator[Found]:
    if guest.request.kind in _SEALED and guest.request.machine.get("smm") == "on":
        cause = f"a {guest.request.kind} guest has no SMM: its registers are out of the host's reach"
        yield "-machine smm=on", cause, "leave smm=on out, and use firmware without SMM"


@CONFIDENTIAL_RULES.add("irqchip", _ERROR, f"{_SEV_C}; {_TDX}")
def _irqchip(guest: Guest) -> Iterator[Found]:
    chip = guest.request.machine.get("kernel-irqchip") or guest.request.machine.get("kernel_irqchip")
    kind = guest.request.kind
    option = f"-machine kernel-irqchip={chip}"
    if kind is Kind.SEV_ES and chip == "off":
        yield option, "SEV-ES needs interrupt controllers in the kernel", "leave it out"
    if kind is Kind.TDX and chip not in (None, "auto", "split"):
        yield option, "TDX needs a split interrupt controller", "say kernel-irqchip=split"


@CONFIDENTIAL_RULES.add("cpu-default", _WARNING, "AMD APM volume 2, table B-4 (RDX at reset)")
def _cpu(guest: Guest) -> Iterator[Found]:
    launch, cpu = guest.request.launch, guest.request.last("-cpu")
    if launch and guest.request.kind in (Kind.SEV_ES, Kind.SNP) and cpu is None:
        cause = "without -cpu the vCPUs have qemu64's signature, which is measured, and few CPU features"
        yield str(launch), cause, "name a model, such as -cpu EPYC-v4"


@CONFIDENTIAL_RULES.add("cpu-host", _NOTE, "AMD APM volume 2, table B-4 (RDX at reset)")
def _cpu_host(guest: Guest) -> Iterator[Found]:
    cpu = guest.request.last("-cpu")
    if cpu and guest.request.kind in (Kind.SEV_ES, Kind.SNP) and cpu.value.split(",")[0] == "host":
        cause = "the processor's signature is measured: another host gives another digest"
        yield str(cpu), cause, "name a model, if digests shall be the same on all hosts"


@CONFIDENTIAL_RULES.add("init2-digest", _NOTE, "Linux eb4441864e03; docs/guide/measure.md")
def _init2(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.vm_type is VmType.SEV_ES:
        cause = (
            "KVM_SEV_INIT2 puts the FPU state into the save areas: the digest is not that of a legacy launch"
        )
        yield str(launch), cause, "predict it with casemate measure --init init2"


@CONFIDENTIAL_RULES.add("unasked-debug-swap", _NOTE, "Linux d1f85fbe836e, 5abf6dceb066")
def _unasked(guest: Guest) -> Iterator[Found]:
    launch, features = guest.request.launch, guest.host.unasked_features
    if launch and features and guest.request.kind is Kind.SEV_ES and guest.vm_type is VmType.DEFAULT:
        cause = f"{guest.host.name} sets debug-swap ({features:#x}) unasked where the CPU has it, and it is measured"
        yield str(launch), cause, "load kvm_amd with debug_swap=0, or measure with --guest-features 0x20"


@CONFIDENTIAL_RULES.add("memfd-private", _WARNING, "AMDESE/AMDSEV, branch snp-latest")
def _memfd(guest: Guest) -> Iterator[Found]:
    for option in guest.request.of_type("memory-backend-memfd-private"):
        cause = "this backend was in development trees only; released QEMU does not know it"
        yield str(option), cause, "use memory-backend-memfd, or none"
