"""Messages about launches that failed, and what they mean (QEMU, libvirt, Linux and edk2; the source of each rule)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LONGEST_LINE = 2000
"""Characters of a line that are looked at."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Of terminals; dmesg and firmware colour words."""

FIRMWARE_ERRORS = {
    0: "none, it refused nothing",
    1: "the platform is in another state than the command needs",
    2: "the guest is in another state than the command needs",
    3: "the platform's configuration does not allow it",
    4: "a buffer is too small",
    5: "the platform has an owner already",
    6: "a certificate is invalid",
    7: "the policy does not allow it",
    8: "the guest is not active",
    9: "an address is invalid",
    10: "a signature does not verify",
    11: "the measurement is not the expected one",
    12: "the ASID belongs to another guest",
    13: "the ASID is invalid",
    14: "WBINVD has not been executed",
    15: "DF_FLUSH has not been executed",
    16: "the guest's handle is invalid",
    17: "the command does not exist",
    18: "the guest is active already",
    19: "a hardware error",
    20: "the hardware is not safe to use",
    21: "the feature is not supported",
    22: "a parameter is invalid",
    23: "the firmware has no resources left",
    24: "a part failed its integrity check",
}
"""Status of the secure processor in words (AMD 55766 SEV API 0.24, table 5; Linux include/uapi/linux/psp-sev.h)."""


class TriageRule(NamedTuple):
    """A kind of message: how it is told, why it comes, what to do, and what to look at next."""

    id: str
    pattern: re.Pattern[str]
    cause: str
    remedy: str
    check: str
    source: str


class Diagnosis(NamedTuple):
    """A rule that knows a line; ``line`` counts from 1, ``times`` says how many lines it knows."""

    rule: TriageRule
    line: int
    text: str
    cause: str
    times: int


def _rule(name: str, pattern: str, cause: str, remedy: str, check: str, source: str) -> TriageRule:
    return TriageRule(name, re.compile(pattern), cause, remedy, check, source)


_SEV_C = "QEMU target/i386/sev.c"
_SYSFW = "QEMU hw/i386/pc_sysfw.c"
_CCP = "Linux drivers/crypto/ccp/sev-dev.c"

RULES = (
    _rule(
        "readonly-slot",
        r"KVM_SET_USER_MEMORY_REGION2? failed.*flags=0x[2367ab].*Invalid argument",
        "the guest's type takes no read-only memory, and a slot (flags has bit 1) asks for it",
        "load the firmware with -bios; a QEMU of 9.1 on Linux 6.11 needs an update even so",
        "casemate lint on the command line, rules pflash-with-snp and pflash-sev-es-init2",
        "Linux 66155de93bcf; github.com/AMDESE/AMDSEV/issues/242",
    ),
    _rule(
        "memory-slot",
        r"KVM_SET_USER_MEMORY_REGION2? failed|kvm_set_phys_mem: error registering slot",
        "KVM refuses a piece of guest memory",
        "see errno at its end: EEXIST is an overlap, ENOMEM a limit of memory",
        "ulimit -l, and the kernel's log",
        "Linux virt/kvm/kvm_main.c",
    ),
    _rule(
        "pflash-readonly",
        r"pflash with kvm requires KVM readonly memory support|launch security is not supported with pflash loader",
        "flash in a guest of a type that has no read-only memory: SNP, TDX, or SEV-ES with VMSA features",
        "load the firmware with -bios, or leave the features out",
        "casemate lint",
        f"{_SYSFW}; Linux d30d9ee94cc0",
    ),
    _rule(
        "cbitpos",
        r"cbitpos check failed, host '(?P<host>\d+)' requested '(?P<asked>\d+)'",
        "the host's C-bit is bit {host}, and cbitpos={asked} was asked for",
        "say the host's value in cbitpos=",
        "casemate caps",
        _SEV_C,
    ),
    _rule(
        "reduced-phys-bits",
        r"reduced_phys_bits check failed",
        "reduced-phys-bits is out of its range of 1 to 63",
        "say reduced-phys-bits=1",
        "casemate lint",
        _SEV_C,
    ),
    _rule(
        "dev-sev",
        r"[Ff]ailed to open '?/dev/sev|SEV: [Ff]ailed to open",
        "the device of the secure processor is not there, or not for this user",
        "load the ccp module, and give the user the group of /dev/sev; libvirt does that by itself",
        "ls -l /dev/sev; dmesg | grep -i ccp",
        _SEV_C,
    ),
    _rule(
        "sev-es-unavailable",
        r"guest policy requires SEV-ES, but host SEV-ES support unavailable",
        "the platform is not initialized for SEV-ES",
        "set the minimum SEV ASID above 1 in the BIOS; load kvm_amd sev_es=1",
        "dmesg | grep 'SEV-ES'",
        _SEV_C,
    ),
    _rule(
        "sev-es-disabled",
        r"SEV-ES (?:disabled|unusable) \(ASIDs|TMR allocation failed, SEV-ES support unavailable",
        "no ASIDs are left for SEV-ES guests, or the secure processor got no memory for them",
        "set the minimum SEV ASID (SEV-ES ASID space limit) above 1 in the BIOS; load kvm_amd early after boot",
        "dmesg | grep ASIDs",
        "Linux arch/x86/kvm/svm/sev.c, sev_hardware_setup",
    ),
    _rule(
        "platform-init",
        r"SEV(?:-SNP)?:? (?:failed to (?:SNP_)?INIT\w*|INIT failed|failed to get status)[,.:]?"
        r"(?: rc -?\d+,)?(?: (?:fw_)?[Ee]rror:?)? (?P<error>0x[0-9a-f]+|\d+)",
        "the secure processor does not start ({error}): a matter of the host, whatever the guest asks for",
        "update the BIOS and linux-firmware's amd_sev_*.sbin; check SEV, SNP and RMP in the BIOS",
        "dmesg | grep -i -e ccp -e SEV -e RMP",
        f"{_CCP}; github.com/AMDESE/AMDSEV/issues/176",
    ),
    _rule(
        "rmp-missing",
        r"RMP table has not been reserved|SEV-SNP: .*RMP.*(?:not|cannot|failed)",
        "the BIOS set no RMP table apart, so there are no SNP guests",
        "enable SNP memory (RMP) coverage in the BIOS",
        "dmesg | grep -i RMP",
        "Linux arch/x86/virt/svm/sev.c",
    ),
    _rule(
        "psp-silent",
        r"sev command (?P<command>0x[0-9a-f]+) (?:timed out|failed)",
        "the secure processor does not answer, or not as it should (command {command})",
        "switch the host off and on; update its BIOS",
        "dmesg | grep -i -e ccp -e psp",
        _CCP,
    ),
    _rule(
        "sev-disabled",
        r"SEV(?:-SNP)? (?:disabled|unusable) \(ASIDs",
        "KVM has no ASIDs for such guests: others have all, or the BIOS or a module's parameter rules them out",
        "set SEV's ASID limits and SNP in the BIOS; load kvm_amd sev=1 sev_es=1 sev_snp=1",
        "dmesg | grep ASIDs; casemate caps",
        "Linux arch/x86/kvm/svm/sev.c, sev_hardware_setup",
    ),
    _rule(
        "snp-iommu",
        r"AMD-Vi: SNP: .*(?:cannot|not) .*(?:support|enable)",
        "the IOMMU is off or set up so that SNP cannot use it",
        "enable it in the BIOS; take iommu=off and amd_iommu=off, pgtbl_v2 from the kernel's command line",
        "dmesg | grep -e AMD-Vi -e SNP",
        "Linux drivers/iommu/amd/init.c, iommu_snp_enable",
    ),
    _rule(
        "irqchip",
        r"require in-kernel irqchip|TDX VM requires kernel_irqchip to be split",
        "the interrupt controllers are not where this kind of guest needs them",
        "leave kernel-irqchip out for SEV-ES, and say kernel-irqchip=split for TDX",
        "casemate lint, rule irqchip",
        f"{_SEV_C}; QEMU target/i386/kvm/tdx.c",
    ),
    _rule(
        "smm",
        r"SEV-SNP does not support SMM|launch security is not supported with SMM|TDX VM .*SMM",
        "System Management Mode is on, which this kind of guest cannot have",
        "say smm=off (libvirt: <smm state='off'/>), and use firmware built without SMM",
        "casemate lint, rule smm-confidential",
        f"{_SEV_C}; libvirt src/qemu/qemu_validate.c",
    ),
    _rule(
        "memory-pinned",
        r"failed to register region|mlock\w*: Cannot allocate memory|KVM_MEMORY_ENCRYPT_REG_REGION failed",
        "the guest's memory cannot be pinned: it is more than this user may lock, or than there is",
        "raise the limit of locked memory (ulimit -l; libvirt: <memtune><hard_limit>), or give the guest less",
        "casemate caps, the line memory",
        f"{_SEV_C}; Linux sev_pin_memory",
    ),
    _rule(
        "private-memory",
        r"KVM does not support guest_memfd|creating KVM guest_memfd"
        r"|cannot set up private guest memory|failed to set memory (?:attribute|\(0x)",
        "KVM makes no private memory for the guest (guest_memfd, memory attributes)",
        "use Linux 6.11 or later with KVM_SW_PROTECTED_VM or SNP built in, and no memory backend that is shared",
        "casemate caps, GUEST_MEMFD and MEMORY_ATTRIBUTES",
        "QEMU accel/kvm/kvm-all.c; Linux Documentation/virt/kvm/api.rst",
    ),
    _rule(
        "sev-init",
        r"failed to initialize ret=(?P<ret>-?\d+) fw_error=(?P<error>\d+)",
        "KVM does not make the guest a confidential one",
        "EINVAL (-22): a feature or type that this kernel lacks; EBUSY (-16): no ASID",
        "casemate caps",
        _SEV_C,
    ),
    _rule(
        "vm-type",
        r"host kernel does not support (?:the )?requested (?:SEV configuration|\w+ VM type|KVM_X86_\w+)"
        r"|vm-type \S+ not supported by KVM",
        "the kernel has no VMs of the type that the options need",
        "use Linux 6.10 (SEV-ES with features), 6.11 (SNP), 6.16 (TDX), or drop the features",
        "casemate lint --era, rule vm-type-missing",
        _SEV_C,
    ),
    _rule(
        "snp-launch-start",
        r"SNP_LAUNCH_START ret=-22",
        "KVM refuses the policy: a bit that it does not know, or bit 17 (before Linux 6.17 also 16) is clear",
        "use policy=0x30000",
        "casemate lint, rules snp-policy and snp-policy-bits",
        "Linux arch/x86/kvm/svm/sev.c; github.com/AMDESE/AMDSEV/issues/240",
    ),
    _rule(
        "policy-refused",
        r"LAUNCH_START ret=-?\d+ fw_error=(?P<error>7)\b",
        "the secure processor refuses the guest's policy: it wants newer firmware, or rules SMT out where it is on",
        "use 0x1 or 0x5 for SEV, 0x30000 for SNP",
        "casemate lint, rules sev-policy and snp-policy",
        "AMD 55766 SEV API, chapter 3; AMD 56860, guest policy",
    ),
    _rule(
        "id-block-size",
        r"Invalid SEV-SNP ID (?:auth )?block|ID block/ID auth block has been provided but",
        "the ID block or its authentication is not what QEMU expects: base64 of 96 and of up to 4096 bytes",
        "make both anew",
        "casemate measure --help, --id-block; casemate lint, rules blob-length and id-auth-length",
        _SEV_C,
    ),
    _rule(
        "id-block",
        r"SNP_LAUNCH_FINISH.*fw_error=(?P<error>10|11)\b",
        "the ID block does not fit: another launch digest (11) or another signature (10) than the guest's",
        "make it anew for the digest of this firmware, kernel, vCPUs and features",
        "casemate explain; casemate measure",
        "AMD 56860, SNP_LAUNCH_FINISH; github.com/AMDESE/AMDSEV/issues/195",
    ),
    _rule(
        "vmsa-config",
        r"LAUNCH_UPDATE_VMSA.*fw_error=3\b",
        "the platform's configuration does not allow encrypted registers: old firmware (API 0.16), or SEV-ES is off",
        "update the BIOS",
        "sevctl ok, or casemate caps",
        "github.com/AMDESE/AMDSEV/issues/41",
    ),
    _rule(
        "snp-cpuid",
        r"SEV-SNP: CPUID validation failed for function (?P<leaf>0x[0-9a-f]+)",
        "the secure processor refuses the CPUID table: leaf {leaf} says more than the processor has",
        "name a -cpu model that this host has, such as EPYC-v4",
        "QEMU's lines below: provided, expected",
        _SEV_C,
    ),
    _rule(
        "hashes-missing",
        r"guest firmware (?:has no hashes table GUID|hashes table area is invalid)|no hashes table",
        "kernel-hashes=on, and the firmware sets no usable area apart for the hashes",
        "use edk2's AmdSev build (Debian: ovmf-amdsev)",
        "casemate inspect",
        f"{_SEV_C}; github.com/AMDESE/AMDSEV/issues/142",
    ),
    _rule(
        "no-launch-metadata",
        r"Failed to locate SEV metadata|failed to configure initial ?private guest memory"
        r"|SEV information block/Firmware GUID Table block not found",
        "the firmware has no tables for this kind of guest",
        "use a build for it: for SNP guests Debian's ovmf-amdsev or ovmf-generic, Fedora's edk2-ovmf",
        "casemate inspect FIRMWARE",
        f"{_SEV_C}; edk2 OvmfPkg/ResetVector",
    ),
    _rule(
        "kvm-refuses-command",
        r"(?P<command>[A-Z_]*LAUNCH_[A-Z_]+) ret=-(?P<errno>\d+) fw_error=0\b",
        "KVM itself refuses {command} (errno {errno}), and the secure processor did not see it",
        "EINVAL (22): an order or a value that KVM does not take; ENOMEM (12): memory; EFAULT (14): an address",
        "casemate boot --host model with the same firmware; casemate conform -- COMMAND",
        "Linux arch/x86/kvm/svm/sev.c",
    ),
    _rule(
        "firmware-status",
        r"fw_err(?:or)?[=:]? ?'?(?P<error>0x[0-9a-fA-F]+|\d+)",
        "the secure processor refuses a command",
        "see what the command was given",
        "the line before, for the command's name",
        "AMD 55766 SEV API 0.24, table 5",
    ),
    _rule(
        "efault",
        r"kvm run failed Bad address",
        "KVM could not reach memory for the guest (EFAULT): most likely it wrote to write-protected firmware",
        "look where RIP is; firmware that stores to flash directly does not fit a SEV-ES guest",
        "casemate boot --host model shows the write and its address",
        "Linux virt/kvm/kvm_main.c, hva_to_pfn",
    ),
    _rule(
        "encrypted-mmio",
        r"MMIO using encrypted memory",
        "firmware or kernel read a device through an encrypted mapping (MMCONFIG, mostly)",
        "use newer firmware",
        "casemate boot --guest sev-es --host model",
        "edk2 OvmfPkg/Library/CcExitLib; github.com/AMDESE/AMDSEV/issues/92",
    ),
    _rule(
        "guest-terminated",
        r"(?:guest requested termination: |SEV termination \(reason set: )(?P<set>[0-9a-fx]+)(?::| code: )"
        r"(?P<code>[0-9a-fx]+)",
        "the guest ended itself (set {set}, code {code}); in set 0, 1 is the protocol's version and 2 features of SNP",
        "use firmware and kernel for this kind of guest",
        "casemate boot --host model with the same firmware",
        "AMD 56421 GHCB, termination request; Linux arch/x86/kvm/svm/sev.c",
    ),
    _rule(
        "ghcb-unregistered",
        r"vmgexit: GHCB GPA \[0x[0-9a-f]+\] is not registered",
        "the guest uses a GHCB that it did not register, as SNP demands it",
        "use firmware and kernel that know SNP, and the same GHCB version as the host",
        "casemate inspect FIRMWARE, and casemate boot --guest snp --host model",
        "AMD 56421 GHCB, 2.3.2; github.com/AMDESE/linux-svsm/issues/11",
    ),
    _rule(
        "ghcb-refused",
        r"vmgexit: (?P<what>[^,;]{1,80})",
        "KVM cannot serve what the guest asks for by its GHCB ({what})",
        "use firmware and kernel of the guest that fit the host's, or a newer host kernel",
        "casemate boot --host model names the request",
        "Linux arch/x86/kvm/svm/sev.c; AMD 56421 GHCB",
    ),
    _rule(
        "guest-exception",
        r"Exception Type - 1D ?\(#VC|SEV: (?:Unsupported ex|Failure in communication with VMM)"
        r"|Exception Type - 14 ?\(#VE",
        "the guest did something that its own handler of #VC or #VE does not emulate",
        "use newer firmware or kernel in the guest; leave out devices that it reaches by MMIO with odd instructions",
        "casemate boot --guest sev-es --host model",
        "edk2 OvmfPkg/Library/CcExitLib; Linux arch/x86/coco/sev",
    ),
    _rule(
        "run-refused",
        r"kvm run failed Invalid argument|KVM: unknown exit(?: reason|, hardware reason) 24\b",
        "the guest ended itself or broke the GHCB protocol; the registers below are encrypted and say nothing",
        "read the host kernel's log of that moment",
        "dmesg | grep -e termination -e vmgexit, and give that to casemate triage",
        "github.com/AMDESE/AMDSEV/issues/138, 182",
    ),
    _rule(
        "entry-failed",
        r"KVM: entry failed, hardware error (?P<number>0x[0-9a-f]+)",
        "the processor does not enter the guest ({number}); Intel refuses a state with 0x80000021, AMD with 0xffffffff",
        "look at the registers below; after a change of SEV settings switch the host off and on",
        "dmesg of that moment; casemate boot --host model",
        "Linux arch/x86/kvm/vmx, svm; Intel SDM volume 3, 27.8",
    ),
    _rule(
        "run-failed",
        r"kvm run failed (?P<why>[A-Z][\w /]{1,60})|KVM: unknown exit(?: reason|, hardware reason) (?P<number>\w+)",
        "KVM_RUN ended in a way that QEMU does not know: {why}{number}",
        "read the host kernel's log of that moment",
        "dmesg, and give that to casemate triage",
        "QEMU accel/kvm/kvm-all.c",
    ),
    _rule(
        "object-type",
        r"Parameter 'qom-type' does not accept value '(?P<type>[\w-]+)'|invalid object type: (?P<old>[\w-]+)"
        r"|is not a valid object type",
        "this QEMU has no such object",
        "SNP needs QEMU 9.1, TDX 10.1; check the spelling",
        "casemate lint --this-qemu PATH",
        "QEMU qapi/qom.json",
    ),
    _rule(
        "property",
        r"Property '(?P<name>[\w.-]+)' not found|Parameter '(?P<parameter>[\w.-]+)' is unexpected"
        r"|Invalid parameter '(?P<old>[\w.-]+)'",
        "this QEMU has no such property",
        "check the spelling; debug-swap and secure-tsc are in no release up to 11.1",
        "casemate lint --this-qemu PATH",
        "QEMU qapi/qom.json",
    ),
    _rule(
        "write-lock",
        r"Failed to get (?:shared |exclusive )?\"?[a-z -]+\"? lock|Is another process using the image",
        "another guest has this file, mostly the variable store",
        "give each guest a copy of its own",
        "lsof FILE",
        "QEMU block/file-posix.c",
    ),
    _rule(
        "flash-exact-size",
        r"requires (?P<wanted>\d+) bytes, (?:\S+ )?block backend provides (?P<found>\d+) bytes",
        "a flash file has {found} bytes where {wanted} are wanted",
        "do not pad or cut it; copy the package's file anew",
        "casemate inspect FILE",
        "QEMU hw/block/block.c",
    ),
    _rule(
        "flash-size",
        r"system firmware block device \S+ has invalid size|combined size of system firmware exceeds",
        "a flash file's size is no multiple of 4 KiB, or too large",
        "copy the file anew, or give -drive size=",
        "casemate inspect FILE",
        _SYSFW,
    ),
    _rule(
        "flash-gap",
        r"pflash\d requires pflash\d",
        "flash unit 1 without unit 0",
        "give CODE as unit 0",
        "casemate lint",
        _SYSFW,
    ),
    _rule(
        "bios-file",
        r"could not load PC BIOS '(?P<file>[^']*)'",
        "QEMU does not find the file {file}, or its size is no multiple of 64 KiB",
        "check the path; a split CODE image is no -bios file",
        "casemate inspect FILE",
        "QEMU hw/i386/x86-common.c",
    ),
    _rule(
        "file-missing",
        r"Could not open '(?P<file>[^']*)': (?P<why>[\w ]+)",
        "QEMU cannot open {file}: {why}",
        "check the path, who owns the file, and what AppArmor or SELinux allow QEMU",
        "ls -l FILE; casemate lint on the command line",
        "QEMU block/file-posix.c",
    ),
    _rule(
        "igvm-pflash",
        r"pflash devices cannot be configured when using IGVM",
        "flash and an IGVM file are both given, and each brings the firmware",
        "leave the flash out",
        "casemate lint, rule igvm-pflash",
        _SYSFW,
    ),
    _rule(
        "no-firmware-fits",
        r"[Uu]nable to find (?:any firmware to satisfy '?efi|'?\w+'? firmware that is compatible)"
        r"|Domain requires (?:SEV|TDX)[\w-]*,? firmware '[^']*' doesn't support it",
        "none of the host's firmware descriptors has what the domain asks for",
        "install it: for SNP guests Debian's ovmf-amdsev, Fedora's edk2-ovmf",
        "casemate inspect /usr/share/qemu/firmware/*.json",
        "libvirt src/qemu/qemu_firmware.c",
    ),
    _rule(
        "launch-security-unsupported",
        r"[Ll]aunch ?[Ss]ecurity.*(?:is )?not supported|SEV(?:-SNP)? .*not supported with this QEMU",
        "libvirt asked QEMU and KVM, and they have no such guests",
        "load kvm_amd sev=1 sev_es=1 sev_snp=1 and restart libvirtd",
        "virsh domcapabilities | grep -A5 sev",
        "libvirt src/qemu/qemu_validate.c",
    ),
    _rule(
        "kvm-access",
        r"(?:Could not access KVM kernel module|failed to initialize kvm): (?P<why>[\w ]+)",
        "no KVM for this user: {why}",
        "join the group kvm, or load kvm_amd or kvm_intel",
        "ls -l /dev/kvm",
        "QEMU accel/kvm/kvm-all.c",
    ),
    _rule(
        "tdx-init",
        r"KVM_TDX_\w+ failed|TDX ioctl \S+ failed|TDX (?:module )?(?:is )?not (?:enabled|initialized|supported)"
        r"|virt/tdx: .*(?:failed|not loaded|not supported|disabled)",
        "the TDX module is not there, or refuses the TD's parameters",
        "enable TDX in the BIOS, load kvm_intel tdx=1, Linux 6.16 or later",
        "dmesg | grep -i tdx",
        "QEMU target/i386/kvm/tdx.c; Linux arch/x86/virt/vmx/tdx",
    ),
    _rule(
        "tdx-firmware",
        r"parse TDVF|TDX_METADATA|TDVF (?:metadata|contains|section)|Unsupported TDVF|fw entries \(\d+\) in TDVF",
        "the firmware has no usable TDX metadata",
        "use a build for TDX, as one file: Debian's ovmf-inteltdx, Fedora's OVMF.inteltdx.fd",
        "casemate inspect FIRMWARE",
        "QEMU hw/i386/tdvf.c; TDVF design guide, 11",
    ),
    _rule(
        "tdx-parameters",
        r"Invalid (?:attributes|XFAM) 0x[0-9a-f]+ for TDX VM|TDX requires guest CPU physical bits|for TDX yet"
        r"|TDX 'mr\w+' sha384 digest was",
        "the TD's attributes, CPU or identities are not what this host's TDX module takes",
        "use -cpu host, leave phys-bits out, and give mrconfigid, mrowner and mrownerconfig as base64 of 48 bytes",
        "casemate lint",
        "QEMU target/i386/kvm/tdx.c",
    ),
    _rule(
        "tdx-fatal",
        r"TDX guest reports fatal error\. error code: (?P<code>0x[0-9a-f]+) error message:\"(?P<message>[^\"]*)",
        "the TD ended itself ({code}): {message}",
        "read the message; a kernel or firmware without TDX support says so here",
        "casemate inspect FIRMWARE",
        "Intel GHCI, TDG.VP.VMCALL<ReportFatalError>; QEMU target/i386/kvm/tdx.c",
    ),
    _rule(
        "variable-store-assert",
        r"ASSERT.*(?:FaultTolerantWrite|FtwMisc|VariableRuntimeDxe|Variable\.c|NvVarStore|QemuFlashFvb|FvbServices)",
        "firmware does not survive its variable store",
        "repair or replace it: casemate vars repair, or a copy of the template",
        "casemate vars fsck FILE",
        "edk2 MdeModulePkg/Universal/Variable",
    ),
)
"""The first rule that knows a line counts."""


def triage(lines: Iterable[str]) -> list[Diagnosis]:
    """What is known of a log, in the order of its lines, each rule once."""
    found: dict[str, Diagnosis] = {}
    for number, line in enumerate(lines, 1):
        text = _ESCAPES.sub("", line[:LONGEST_LINE]).strip()
        for rule, match in _knowing(text):
            known = found.get(rule.id)
            if known is None:
                found[rule.id] = Diagnosis(rule, number, text, _cause(rule, match), 1)
            else:
                found[rule.id] = known._replace(times=known.times + 1)
            break
    return list(found.values())


def _knowing(text: str) -> Iterator[tuple[TriageRule, re.Match[str]]]:
    for rule in RULES:
        if match := rule.pattern.search(text):
            yield rule, match


def _cause(rule: TriageRule, match: re.Match[str]) -> str:
    values = {name: value or "" for name, value in match.groupdict().items()}
    cause = rule.cause.format(**values)
    error = values.get("error", "")
    if error:
        number = int(error, 16 if error.startswith("0x") else 10) if len(error) < 12 else -1
        cause += f"; its status {error}: {FIRMWARE_ERRORS.get(number, 'not known here')}"
    return cause
