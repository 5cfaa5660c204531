"""Rules about SEV, SEV-ES, SEV-SNP and TDX guests (QEMU target/i386/sev.c, kvm/tdx.c; Linux arch/x86/kvm)."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator

from casemate.abi.kvm.vm_types import VmType
from casemate.abi.sev.snp_policy import SnpPolicy
from casemate.advise.rule import Found, Guest, RuleSet, Severity
from casemate.digest.kernel_hashes import find_hashes_area
from casemate.errors import CasemateError
from casemate.firmware.hash_use import HashUse, hash_use
from casemate.qemu.command_line import Option
from casemate.qemu.guest_request import Kind
from casemate.qemu.releases import nearest

CONFIDENTIAL_RULES = RuleSet()

_SEV_C = "QEMU target/i386/sev.c"
_TDX = "QEMU docs/system/i386/tdx"
_SLOTS = "Linux 66155de93bcf, d30d9ee94cc0"
_LAUNCHES = ("sev-guest", "sev-snp-guest", "tdx-guest")
_SEV_KINDS = (Kind.SEV, Kind.SEV_ES, Kind.SNP)
_SEALED = (Kind.SEV_ES, Kind.SNP, Kind.TDX)
_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
_C_BITS = (47, 51)
MODELLED_C_BIT = 39
"""Of the kernel that casemate kvm models (casemate.host.model.cpu.cpuid, which knows nothing of advice)."""
_ADDRESS_BITS = range(32, 52)
_HOSTS_BIT = "51 (EPYC 7003 and later) or 47; casemate caps and --this-host know it"
_NEWEST_SEV_API = 1
"""Major version of AMD 55766 SEV API that any firmware has."""
_MOST_REDUCED = 63
_BOOLEAN = ("on", "off", "yes", "no", "true", "false", "y", "n")
_LAUNCH_WORDS = {
    **dict.fromkeys(
        ("kernel-hashes", "debug-swap", "author-key-enabled", "vcek-disabled", "secure-tsc"), _BOOLEAN
    ),
    "legacy-vm-type": ("on", "off", "auto"),
}
_MACHINE_WORDS = {
    "smm": ("on", "off", "auto"),
    "vmport": ("on", "off", "auto"),
    "kernel-irqchip": ("on", "off", "split"),
    "kernel_irqchip": ("on", "off", "split"),
}
_ACCELERATORS = ("kvm", "tcg", "xen", "hvf", "whpx", "nvmm", "mshv", "nitro", "qtest", "hax", "help")
_SIZES = {"id-block": 96, "host-data": 32, "guest-visible-workarounds": 16}


@CONFIDENTIAL_RULES.add("pflash-with-snp", _ERROR, f"{_SLOTS}; github.com/AMDESE/AMDSEV/issues/223, 236, 242")
def _flash_snp(guest: Guest) -> Iterator[Found]:
    yield from _flash_with(
        guest, Kind.SNP, "private memory takes no read-only slots: KVM refuses it (EINVAL)"
    )


@CONFIDENTIAL_RULES.add("pflash-with-tdx", _ERROR, _TDX)
def _flash_tdx(guest: Guest) -> Iterator[Found]:
    yield from _flash_with(guest, Kind.TDX, "TDX has no read-only memory, so firmware cannot be flash")


def _number(option: Option | None, name: str) -> int | None:
    """A number of an option; None if it is missing, not known or none."""
    try:
        return option.number(name) if option else None
    except ValueError:
        return None


def _flash_with(guest: Guest, kind: Kind, why: str) -> Iterator[Found]:
    if guest.request.kind is kind:
        for flash in guest.request.flash:
            yield flash.option, f"flash in a {kind} guest: {why}", "load one combined image with -bios"


@CONFIDENTIAL_RULES.add("pflash-sev-es-init2", _ERROR, f"{_SLOTS}; {_SEV_C}")
def _flash_init2(guest: Guest) -> Iterator[Found]:
    request, flash = guest.request, guest.request.unit(0)
    if flash and guest.vm_type is VmType.SEV_ES and VmType.SEV_ES not in guest.host.readonly:
        why = " and ".join(request.features) or "legacy-vm-type=off"
        cause = (
            f"{why} needs a VM of type SEV_ES, which has no read-only memory on {guest.host.name}: QEMU stops"
        )
        remedy = "load the firmware with -bios, leave the feature out, or use a QEMU that protects by mapping"
        yield flash.option, cause, remedy


@CONFIDENTIAL_RULES.add("pflash-sev-es-livelock", _NOTE, f"{_SLOTS}; edk2 QemuFlashFvbServicesRuntimeDxe")
def _livelock(guest: Guest) -> Iterator[Found]:
    request, flash = guest.request, guest.request.unit(0)
    if flash and request.kind is Kind.SEV_ES and guest.vm_type in guest.host.readonly:
        cause = "a direct store of a SEV-ES guest to read-only flash faults for ever; OVMF asks by VMGEXIT instead"
        yield flash.option, cause, "with firmware other than OVMF, use -bios"


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
        yield launch, cause, remedy


@CONFIDENTIAL_RULES.add("launch-object-missing", _ERROR, "QEMU docs/system/confidential-guest-support")
def _object_missing(guest: Guest) -> Iterator[Found]:
    request = guest.request
    for key in ("confidential-guest-support", "memory-encryption"):
        option = request.machine_option(key)
        is_sure = option.is_known(key) and not request.may_say("-object")
        if is_sure and request.machine[key] not in request.objects:
            cause = f"{key}={request.machine[key]} names an object that is not there"
            yield option, cause, f"add -object sev-guest,id={request.machine[key]},... or correct it"


@CONFIDENTIAL_RULES.add("launch-object-unused", _ERROR, "QEMU docs/system/confidential-guest-support")
def _object_unused(guest: Guest) -> Iterator[Found]:
    if guest.request.may_say("-machine", "-M"):
        return
    for option in guest.request.of_type(*_LAUNCHES):
        if option is not guest.request.launch:
            name = option.fields.get("id", "")
            cause = "no machine option refers to this object: the guest would not be confidential at all"
            yield option, cause, f"add -machine confidential-guest-support={name}"


@CONFIDENTIAL_RULES.add("memory-encryption-alias", _NOTE, "QEMU docs/system/confidential-guest-support")
def _alias(guest: Guest) -> Iterator[Found]:
    if "memory-encryption" in guest.request.machine:
        option = guest.request.machine_option("memory-encryption")
        yield option, "the old name of confidential-guest-support", "use the new one"


@CONFIDENTIAL_RULES.add("kvm-missing", _ERROR, _SEV_C)
def _kvm(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and not guest.request.uses_kvm and not guest.request.may_say("-accel", "-machine", "-M"):
        yield launch, "confidential guests need KVM, and it is not asked for", "add -accel kvm"


@CONFIDENTIAL_RULES.add("cbitpos-missing", _ERROR, _SEV_C)
def _bits_missing(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    # libvirt fills both in from its host's capabilities.
    is_completed = guest.domain.is_libvirt and launch is not None and launch.fields.get("id") == "lsec0"
    if launch and guest.request.kind in _SEV_KINDS and not is_completed and not launch.is_unknown:
        for name, value in (("cbitpos", "51 (EPYC 7003 and later) or 47"), ("reduced-phys-bits", "1")):
            if name not in launch.fields:
                yield (
                    launch,
                    f"{name} is missing; QEMU checks it against the host",
                    f"add {name}={value}",
                )


@CONFIDENTIAL_RULES.add(
    "cbitpos-impossible", _ERROR, f"{_SEV_C}; CPUID 0x8000001f EBX; AMD APM volume 2, 7.10.1"
)
def _cbitpos_impossible(guest: Guest) -> Iterator[Found]:
    launch, host = guest.request.launch, guest.host
    position = _number(launch, "cbitpos")
    if launch is None or guest.request.kind not in _SEV_KINDS or position is None:
        return
    if host.c_bit is not None and position != host.c_bit:
        cause = f"the C-bit of {host.name} is bit {host.c_bit}, not {position}: QEMU stops"
        yield launch.at("cbitpos"), cause, f"say cbitpos={host.c_bit}"
    elif host.c_bit is None and position not in _ADDRESS_BITS:
        cause = (
            f"the C-bit is a bit of long physical addresses, 32 to 51, which {position} is not: QEMU stops"
        )
        yield launch.at("cbitpos"), cause, f"say the host's, {_HOSTS_BIT}"


@CONFIDENTIAL_RULES.add("cbitpos-value", _WARNING, f"{_SEV_C}; CPUID 0x8000001f EBX")
def _cbitpos(guest: Guest) -> Iterator[Found]:
    launch, position = guest.request.launch, _number(guest.request.launch, "cbitpos")
    if launch is None or guest.host.c_bit is not None or position not in _ADDRESS_BITS:
        return
    if guest.request.kind is Kind.SNP and position == _C_BITS[0]:
        cause = "processors with SNP (EPYC 7003 and later) have the C-bit at 51: QEMU refuses another"
        yield launch.at("cbitpos"), cause, "say cbitpos=51"
    elif guest.request.kind in _SEV_KINDS and position not in _C_BITS:
        cause = f"every EPYC so far has its C-bit at 47 or 51, and QEMU stops where it is not {position}"
        if position == MODELLED_C_BIT:
            cause = f"bit {position} is the C-bit of casemate kvm; on an EPYC, with 47 or 51, QEMU stops"
        yield launch.at("cbitpos"), cause, f"say the host's, {_HOSTS_BIT}"


@CONFIDENTIAL_RULES.add(
    "value-wrong", _ERROR, "QEMU qapi/common.json, OnOffAuto; qapi/qobject-input-visitor.c; -accel help"
)
def _switches(guest: Guest) -> Iterator[Found]:
    request = guest.request
    options = [(request.launch, _LAUNCH_WORDS)] if request.launch else []
    options += [(request.machine_option(name), {name: words}) for name, words in _MACHINE_WORDS.items()]
    for option, known in options:
        for name, words in known.items():
            if option and option.is_known(name) and option.fields[name] not in words:
                cause = f"{name}={option.fields[name][:40]}: QEMU takes {', '.join(words)}, and stops"
                yield option.at(name), cause, f"correct it{nearest(option.fields[name], words)}"
    accel = request.last("-accel")
    given = [(accel, accel.value.partition(",")[0])] if accel and not accel.is_unknown else []
    machine = request.machine_option("accel")
    given += [
        (machine, name) for name in request.machine.get("accel", "").split(":") if machine.is_known("accel")
    ]
    for option, name in given:
        if name.removeprefix("accel=") not in _ACCELERATORS:
            cause = f"there is no accelerator {name[:40]!r}: QEMU stops"
            yield option, cause, f"say kvm{nearest(name, _ACCELERATORS)}"


@CONFIDENTIAL_RULES.add("number-wrong", _ERROR, _SEV_C)
def _numbers(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    for name in ("policy", "cbitpos", "reduced-phys-bits", "handle", "tsc-frequency"):
        try:
            if launch:
                launch.number(name)
        except ValueError:
            assert launch
            yield launch.at(name), f"{name}={launch.fields[name]} is no number", "give a number"


@CONFIDENTIAL_RULES.add("reduced-phys-bits-range", _ERROR, _SEV_C)
def _reduced_range(guest: Guest) -> Iterator[Found]:
    launch, bits = guest.request.launch, _number(guest.request.launch, "reduced-phys-bits")
    if launch and guest.request.kind in _SEV_KINDS and bits is not None and not 1 <= bits <= _MOST_REDUCED:
        cause = f"reduced-phys-bits={bits}: QEMU takes 1 to {_MOST_REDUCED} and stops"
        yield launch.at("reduced-phys-bits"), cause, "say reduced-phys-bits=1"


@CONFIDENTIAL_RULES.add("reduced-phys-bits", _WARNING, _SEV_C)
def _reduced(guest: Guest) -> Iterator[Found]:
    launch, bits = guest.request.launch, _number(guest.request.launch, "reduced-phys-bits")
    if launch and bits is not None and 1 < bits <= _MOST_REDUCED:
        cause = (
            f"reduced-phys-bits={bits}: a guest loses one bit; others are accepted, 5 is from old documents"
        )
        yield launch.at("reduced-phys-bits"), cause, "say reduced-phys-bits=1"


@CONFIDENTIAL_RULES.add("features-without-es", _ERROR, f"{_SEV_C}, check_sev_features")
def _features(guest: Guest) -> Iterator[Found]:
    launch, features = guest.request.launch, guest.request.features
    if launch and features and guest.request.kind is Kind.SEV and not launch.is_unknown:
        cause = (
            f"{' and '.join(features)} needs SEV-ES or SNP, and policy {guest.request.policy:#x} asks for SEV"
        )
        yield launch, cause, "set bit 2 of the policy, such as policy=0x5"


@CONFIDENTIAL_RULES.add("legacy-with-features", _ERROR, _SEV_C)
def _legacy(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.request.features and launch.fields.get("legacy-vm-type") == "on":
        cause = "legacy-vm-type=on rules out VMSA features"
        yield launch, cause, "leave legacy-vm-type out, or the features"


@CONFIDENTIAL_RULES.add("tsc-frequency-alone", _ERROR, f"{_SEV_C}, check_sev_features")
def _tsc(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and "tsc-frequency" in launch.fields and not launch.has("secure-tsc"):
        yield launch, "tsc-frequency counts only with secure TSC", "add secure-tsc=on"


@CONFIDENTIAL_RULES.add("policy-debug", _WARNING, "AMD 55766, chapter 3; AMD 56860, guest policy")
def _debug(guest: Guest) -> Iterator[Found]:
    launch, policy, kind = guest.request.launch, guest.request.policy, guest.request.kind
    allows = (
        policy & SnpPolicy.DEBUG if kind is Kind.SNP else kind in (Kind.SEV, Kind.SEV_ES) and not policy & 1
    )
    if launch and allows and not launch.is_unknown:
        bit = "clear bit 19" if kind is Kind.SNP else "set bit 0"
        yield launch.at("policy"), f"policy {policy:#x} lets the host read the guest by debug commands", bit


@CONFIDENTIAL_RULES.add("sev-policy", _ERROR, "AMD 55766 SEV API, chapter 3 and LAUNCH_START")
def _sev_policy(guest: Guest) -> Iterator[Found]:
    launch, policy = guest.request.launch, guest.request.policy
    if launch is None or guest.request.kind not in (Kind.SEV, Kind.SEV_ES):
        return
    major = policy >> 16 & 0xFF
    if policy >> 32:
        yield launch.at("policy"), f"policy {policy:#x} has over 32 bits", "use 0x1, or 0x5 for SEV-ES"
    elif major > _NEWEST_SEV_API:
        cause = f"policy {policy:#x} wants firmware of SEV API {major}.{policy >> 24:d}, which there is not"
        remedy = "use 0x1, or 0x5 for SEV-ES; 0x30000 is a policy of SNP guests"
        yield launch.at("policy"), cause, remedy


@CONFIDENTIAL_RULES.add("snp-policy", _ERROR, "Linux arch/x86/kvm/svm/sev.c, snp_launch_start; AMD 56860")
def _snp_policy(guest: Guest) -> Iterator[Found]:
    launch, policy = guest.request.launch, guest.request.policy
    if launch and guest.request.kind is Kind.SNP:
        required = (
            (SnpPolicy.SMT, SnpPolicy.RESERVED_ONE) if guest.host.needs_snp_smt else (SnpPolicy.RESERVED_ONE,)
        )
        missing = [bit.bit_length() - 1 for bit in required if not policy & bit]
        if missing:
            bits = " and ".join(map(str, missing))
            cause = f"policy {policy:#x} lacks bit {bits}, which KVM requires; SEV's policies do not fit SNP"
            yield launch.at("policy"), cause, "use 0x30000, and add to it"


@CONFIDENTIAL_RULES.add("snp-policy-bits", _ERROR, "Linux arch/x86/kvm/svm/sev.c, SNP_POLICY_MASK_VALID")
def _snp_policy_bits(guest: Guest) -> Iterator[Found]:
    launch, policy = guest.request.launch, guest.request.policy
    if launch and guest.request.kind is Kind.SNP:
        wrong = [
            bit
            for bit in range(policy.bit_length())
            if policy >> bit & 1 and bit not in guest.host.snp_policy
        ]
        if wrong:
            names = ", ".join(_policy_bit(bit) for bit in wrong[:4])
            cause = f"policy {policy:#x}: {guest.host.name} refuses {names} (EINVAL at SNP_LAUNCH_START)"
            yield launch.at("policy"), cause, "clear it, or use a kernel that takes it"


def _policy_bit(bit: int) -> str:
    known = {flag.bit_length() - 1: flag.name for flag in SnpPolicy}
    return f"bit {bit} ({known[bit]})" if bit in known else f"bit {bit}"


@CONFIDENTIAL_RULES.add("kernel-hashes-off", _WARNING, f"{_SEV_C}; docs/guide/measure.md")
def _hashes_off(guest: Guest) -> Iterator[Found]:
    launch, kernel = guest.request.launch, guest.request.last("-kernel")
    if (
        launch
        and kernel
        and guest.request.kind in _SEV_KINDS
        and not launch.has("kernel-hashes")
        and not launch.is_unknown
    ):
        cause = "the kernel is not measured: the host could give any other"
        yield kernel, cause, "add kernel-hashes=on to the object, with firmware made for it (AmdSev)"


@CONFIDENTIAL_RULES.add("kernel-hashes-no-kernel", _WARNING, _SEV_C)
def _hashes_alone(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and launch.has("kernel-hashes") and not guest.request.may_have("-kernel"):
        cause = (
            "kernel-hashes=on without -kernel: nothing is measured, and AmdSev firmware boots nothing else"
        )
        yield launch, cause, "give -kernel, or leave kernel-hashes out"


@CONFIDENTIAL_RULES.add("kernel-hashes-unused", _WARNING, "edk2 OvmfPkg/AmdSev/BlobVerifierLibSevHashes")
def _hashes_unused(guest: Guest) -> Iterator[Found]:
    launch, image = guest.request.launch, guest.firmware
    has_hashes = launch and image and launch.has("kernel-hashes") and guest.request.has("-kernel")
    if launch and image and has_hashes and hash_use(guest.volumes) is HashUse.IGNORED:
        cause = f"{image.name}: the hashes are measured, but no driver of this build compares them with the kernel"
        yield launch, cause, "use a build that does, such as edk2's AmdSev"


@CONFIDENTIAL_RULES.add(
    "kernel-hashes-no-area", _ERROR, f"{_SEV_C}; github.com/AMDESE/AMDSEV/issues/142, 262"
)
def _hashes_area(guest: Guest) -> Iterator[Found]:
    launch, image = guest.request.launch, guest.firmware
    if launch and image and launch.has("kernel-hashes") and guest.request.has("-kernel"):
        try:
            find_hashes_area(image)
        except CasemateError as error:
            yield launch, error.cause, error.remedy


@CONFIDENTIAL_RULES.add("session-half", _ERROR, "AMD 55766, LAUNCH_START")
def _session(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    names = ("dh-cert-file", "session-file")
    given = [name for name in names if launch and name in launch.fields]
    if launch and len(given) == 1 and not launch.is_unknown:
        other = names[1 - names.index(given[0])]
        yield launch, f"{given[0]} without {other}: they make one session", f"add {other}"


@CONFIDENTIAL_RULES.add("blob-length", _ERROR, f"{_SEV_C}; AMD 56860")
def _blobs(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    for name, size in _SIZES.items():
        if launch and launch.is_known(name):
            try:
                found = len(b64decode(launch.fields[name], validate=True))
            except ValueError:
                yield launch.at(name), f"{name} is no base64", f"give base64 of {size} bytes"
                continue
            if found != size:
                yield launch.at(name), f"{name} has {found} bytes, not {size}", f"give base64 of {size} bytes"


@CONFIDENTIAL_RULES.add("smm-confidential", _ERROR, "QEMU docs/system/i386/amd-memory-encryption; tdx")
def _smm(guest: Guest) -> Iterator[Found]:
    if guest.request.kind in _SEALED and guest.request.machine.get("smm") == "on":
        cause = f"a {guest.request.kind} guest has no SMM: its registers are out of the host's reach"
        yield guest.request.machine_option("smm"), cause, "leave smm=on out, and use firmware without SMM"


@CONFIDENTIAL_RULES.add("irqchip", _ERROR, f"{_SEV_C}; {_TDX}")
def _irqchip(guest: Guest) -> Iterator[Found]:
    key = "kernel-irqchip" if "kernel-irqchip" in guest.request.machine else "kernel_irqchip"
    chip, kind = guest.request.machine.get(key), guest.request.kind
    option = guest.request.machine_option(key)
    if kind is Kind.SEV_ES and chip == "off":
        yield option, "SEV-ES needs interrupt controllers in the kernel", "leave it out"
    if kind is Kind.TDX and chip not in (None, "auto", "split"):
        yield option, "TDX needs a split interrupt controller", "say kernel-irqchip=split"


@CONFIDENTIAL_RULES.add("cpu-default", _WARNING, "AMD APM volume 2, table B-4 (RDX at reset)")
def _cpu(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.request.kind in (Kind.SEV_ES, Kind.SNP) and not guest.request.may_have("-cpu"):
        cause = "without -cpu the vCPUs have qemu64's signature, which is measured, and few CPU features"
        yield launch, cause, "name a model, such as -cpu EPYC-v4"


@CONFIDENTIAL_RULES.add("cpu-host", _NOTE, "AMD APM volume 2, table B-4 (RDX at reset)")
def _cpu_host(guest: Guest) -> Iterator[Found]:
    cpu = guest.request.last("-cpu")
    if cpu and guest.request.kind in (Kind.SEV_ES, Kind.SNP) and cpu.value.split(",")[0] == "host":
        cause = "the processor's signature is measured: another host gives another digest"
        yield cpu, cause, "name a model, if digests shall be the same on all hosts"


@CONFIDENTIAL_RULES.add("init2-digest", _NOTE, "Linux eb4441864e03; docs/guide/measure.md")
def _init2(guest: Guest) -> Iterator[Found]:
    launch = guest.request.launch
    if launch and guest.vm_type is VmType.SEV_ES:
        cause = (
            "KVM_SEV_INIT2 puts the FPU state into the save areas: the digest is not that of a legacy launch"
        )
        yield launch, cause, "predict it with casemate measure --init init2"


@CONFIDENTIAL_RULES.add("unasked-debug-swap", _NOTE, "Linux d1f85fbe836e, 5abf6dceb066")
def _unasked(guest: Guest) -> Iterator[Found]:
    launch, features = guest.request.launch, guest.host.unasked_features
    if launch and features and guest.request.kind is Kind.SEV_ES and guest.vm_type is VmType.DEFAULT:
        cause = f"{guest.host.name} sets debug-swap ({features:#x}) unasked where the CPU has it, and it is measured"
        yield launch, cause, "load kvm_amd with debug_swap=0, or measure with --guest-features 0x20"


@CONFIDENTIAL_RULES.add("memfd-private", _WARNING, "AMDESE/AMDSEV, branch snp-latest")
def _memfd(guest: Guest) -> Iterator[Found]:
    for option in guest.request.of_type("memory-backend-memfd-private"):
        cause = "this backend was in development trees only; released QEMU does not know it"
        yield option, cause, "use memory-backend-memfd, or none"
