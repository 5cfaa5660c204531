"""Every rule of triage on lines of the shape that QEMU, libvirt, the kernel and firmware print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.advise.triage import RULES, triage
from casemate.cli import main

QEMU = "qemu-system-x86_64: "
LINES: dict[str, tuple[str, ...]] = {
    "readonly-slot": (
        f"{QEMU}kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=2, start=0xffc84000, "
        "size=0x37c000, flags=0x2, guest_memfd=-1, guest_memfd_offset=0x0: Invalid argument",
        f"{QEMU}kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=3, start=0xffc00000, "
        "size=0x400000, flags=0x6, guest_memfd=20, guest_memfd_offset=0x0: Invalid argument",
        "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=1, start=0xfffc0000, size=0x40000, "
        "flags=0x3: Invalid argument",
    ),
    "memory-slot": (
        "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=0, start=0x0, size=0x80000000: "
        "Cannot allocate memory",
        f"{QEMU}kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=1, start=0x0, size=0x1000, "
        "flags=0x4, guest_memfd=9, guest_memfd_offset=0x0: File exists",
        "kvm_set_phys_mem: error registering slot: Invalid argument",
    ),
    "pflash-readonly": (
        f"{QEMU}pflash with kvm requires KVM readonly memory support",
        "2026-01-01T00:00:00.1Z qemu-system-x86_64: pflash with kvm requires KVM readonly memory support",
        "error: unsupported configuration: Intel TDX launch security is not supported with pflash loader",
    ),
    "cbitpos": (
        f"{QEMU}sev_common_kvm_init: cbitpos check failed, host '51' requested '0'",
        f"{QEMU}-accel kvm: sev_kvm_init: cbitpos check failed, host '51' requested '0'",
        "error: internal error: process exited while connecting to monitor: 2026-01-01T00:00:00.0Z "
        f"{QEMU}sev_common_kvm_init: cbitpos check failed, host '51' requested '0'",
    ),
    "reduced-phys-bits": (
        "sev_common_kvm_init: reduced_phys_bits check failed, it should be in the range of 1 to 63, requested '99'",
        f"{QEMU}sev_kvm_init: reduced_phys_bits check failed, it should be >=1, requested '0'",
        f"{QEMU}-accel kvm: sev_common_kvm_init: reduced_phys_bits check failed, it should be in the range of 1 to 63",
    ),
    "dev-sev": (
        f"{QEMU}sev_common_kvm_init: Failed to open /dev/sev 'Permission denied'",
        "sev_kvm_init: Failed to open /dev/sev 'No such file or directory'",
        "error: internal error: unable to execute QEMU command: SEV: Failed to open /dev/sev",
    ),
    "sev-es-unavailable": (
        "sev_common_kvm_init: guest policy requires SEV-ES, but host SEV-ES support unavailable",
        f"{QEMU}sev_kvm_init: guest policy requires SEV-ES, but host SEV-ES support unavailable",
        f"{QEMU}-accel kvm: sev_common_kvm_init: guest policy requires SEV-ES, but host SEV-ES support unavailable",
    ),
    "sev-es-disabled": (
        "[   12.345678] kvm_amd: SEV-ES disabled (ASIDs 0 - 0)",
        "Nov 29 12:00:00 host kernel: kvm_amd: SEV-ES unusable (ASIDs 1 - 0)",
        "[    3.1] ccp 0000:22:00.1: SEV: TMR allocation failed, SEV-ES support unavailable",
    ),
    "platform-init": (
        "[    9.118442] ccp 0000:22:00.1: SEV-SNP: failed to INIT error 0x3, rc -5",
        "ccp 0000:47:00.1: SEV: failed to INIT rc -5, error 0x3",
        "Nov 29 12:00:00 host kernel: ccp 0000:22:00.1: SEV-SNP: failed to SNP_INIT error 0x3, rc -5",
        "ccp 0000:22:00.1: SEV: failed to get status. Error: 0x3",
    ),
    "psp-silent": (
        "ccp 0000:22:00.1: sev command 0x4 timed out, disabling PSP",
        "ccp 0000:47:00.1: sev command 0x81 failed (0x00000001)",
        "Nov 29 12:00:00 host kernel: ccp 0000:02:00.5: sev command 0x1 timed out, disabling PSP",
    ),
    "sev-disabled": (
        "[    3.1] kvm_amd: SEV disabled (ASIDs 100 - 509)",
        "kvm_amd: SEV-SNP disabled (ASIDs 0 - 0)",
        "Nov 29 12:00:00 host kernel: kvm_amd: SEV unusable (ASIDs 510 - 509)",
    ),
    "snp-iommu": (
        "AMD-Vi: SNP: IOMMU disabled by user config, SNP cannot be supported.",
        "[    0.4] AMD-Vi: SNP: IOMMU is configured in passthrough mode, SNP cannot be supported.",
        "AMD-Vi: SNP: IOMMU is configured with V2 page table mode, SNP cannot be supported.",
    ),
    "irqchip": (
        f"{QEMU}sev_common_kvm_init: SEV-ES guests require in-kernel irqchipsupport",
        f"{QEMU}sev_kvm_init: SEV-ES guests require in-kernel irqchip support",
        f"{QEMU}TDX VM requires kernel_irqchip to be split",
    ),
    "smm": (
        f"{QEMU}SEV-SNP does not support SMM.",
        "error: unsupported configuration: Intel TDX launch security is not supported with SMM enabled",
        "2026-01-01T00:00:00Z qemu-kvm: -accel kvm: SEV-SNP does not support SMM.",
    ),
    "memory-pinned": (
        f"{QEMU}sev_ram_block_added: failed to register region (0x7f00+0x8000) error 'Cannot allocate memory'",
        f"{QEMU}mlock: Cannot allocate memory",
        "mlockall: Cannot allocate memory",
    ),
    "private-memory": (
        f"{QEMU}cannot set up private guest memory for sev-snp-guest: KVM required",
        f"{QEMU}kvm_set_memory_attributes: failed to set memory (0x0+0x1000) with attr 0x8 error 'Invalid argument'",
        f"{QEMU}KVM does not support guest_memfd",
        f"{QEMU}Error creating KVM guest_memfd",
    ),
    "rmp-missing": (
        "[    0.000000] SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
        "Nov 29 12:00:00 host kernel: SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
        "SEV-SNP: RMP table cannot be mapped",
    ),
    "sev-init": (
        f"{QEMU}sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''",
        f"{QEMU}sev_kvm_init: failed to initialize ret=-25 fw_error=0 ''",
        "sev_common_kvm_init: failed to initialize ret=-22 fw_error=0 ''",
    ),
    "vm-type": (
        "SEV: host kernel does not support requested KVM_X86_SEV_ES_VM VM type, which is required for the set",
        f"{QEMU}sev_common_kvm_init: host kernel does not support the requested SEV configuration.",
        f"{QEMU}vm-type tdx not supported by KVM",
    ),
    "snp-launch-start": (
        "sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''",
        f"{QEMU}sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''",
        f"error: internal error: QEMU unexpectedly closed the monitor (vm='g'): {QEMU}SNP_LAUNCH_START ret=-22",
    ),
    "policy-refused": (
        "sev_launch_start: LAUNCH_START ret=1 fw_error=7 'Policy restriction is violated'",
        f"{QEMU}sev_snp_launch_start: SNP_LAUNCH_START ret=-5 fw_error=7 'Policy restriction is violated'",
        f"{QEMU}-accel kvm: sev_launch_start: LAUNCH_START ret=-5 fw_error=7 'Policy restriction is violated'",
    ),
    "id-block-size": (
        f"{QEMU}-object sev-snp-guest,id=s: sev_snp_guest_set_id_block: Invalid SEV-SNP ID block: incorrect size",
        f"{QEMU}Invalid SEV-SNP ID auth block: incorrect size",
        f"{QEMU}cgs: An ID block/ID auth block has been provided but SEV-SNP is not enabled",
    ),
    "id-block": (
        "sev_snp_launch_finish: SNP_LAUNCH_FINISH ret=-5 fw_error=11 'Bad measurement'",
        f"{QEMU}SNP_LAUNCH_FINISH ret=-5 fw_error=10 'Bad signature'",
        f"{QEMU}sev_snp_launch_finish: SNP_LAUNCH_FINISH ret=-5 fw_error=11 'Bad measurement'",
    ),
    "vmsa-config": (
        "sev_launch_update_vmsa: LAUNCH_UPDATE_VMSA ret=-5 fw_error=3 'Platform configuration is invalid'",
        f"{QEMU}sev_launch_update_vmsa: LAUNCH_UPDATE_VMSA ret=-22 fw_error=3 ''",
        "LAUNCH_UPDATE_VMSA ret=1 fw_error=3 'Platform configuration is invalid'",
    ),
    "snp-cpuid": (
        "SEV-SNP: CPUID validation failed for function 0x80000021, index: 0x0, provided: eax:0x1",
        f"{QEMU}SEV-SNP: CPUID validation failed for function 0x7, index: 0x0, provided: eax:0x00000000, ebx: 0x1",
        f"{QEMU}SEV-SNP: CPUID validation failed for function 0xd, index: 0x1, provided: eax:0x0000000f",
    ),
    "hashes-missing": (
        f"{QEMU}SEV: kernel specified but guest firmware has no hashes table GUID",
        f"{QEMU}SEV: guest firmware hashes table area is invalid (base=0x0 size=0x0)",
        f"{QEMU}SEV: kernel specified but guest firmware hashes table area is invalid (base=0x0 size=0x0)",
    ),
    "no-launch-metadata": (
        f"{QEMU}-accel kvm: snp_populate_metadata_pages: Failed to locate SEV metadata header",
        f"{QEMU}SEV-SNP: failed to configure initialprivate guest memory",
        f"{QEMU}SEV information block/Firmware GUID Table block not found in pflash rom",
    ),
    "kvm-refuses-command": (
        f"{QEMU}sev_launch_update_vmsa: LAUNCH_UPDATE_VMSA ret=-22 fw_error=0 ''",
        f"{QEMU}sev_snp_launch_update: SNP_LAUNCH_UPDATE ret=-14 fw_error=0 ''",
        f"{QEMU}sev_launch_finish: LAUNCH_FINISH ret=-12 fw_error=0 ''",
    ),
    "firmware-status": (
        "sev_launch_get_measure: LAUNCH_MEASURE ret=-5 fw_error=2 'Guest state is invalid'",
        f"{QEMU}sev_common_kvm_init: failed to get platform status ret=-5 fw_error='1: Platform state is invalid'",
        "SEV: Failed to export PDH cert ret=-5 fw_err=1 (Platform state is invalid)",
        f"{QEMU}sev_snp_launch_update: SNP_LAUNCH_UPDATE ret=-5 fw_error=22 'Invalid parameter'",
    ),
    "efault": (
        "error: kvm run failed Bad address",
        f"{QEMU}error: kvm run failed Bad address",
        "2026-01-01T00:00:00.0Z error: kvm run failed Bad address",
    ),
    "encrypted-mmio": (
        "MMIO using encrypted memory: B00F8040",
        "MMIO using encrypted memory: E0000000",
        "CcExit: MMIO using encrypted memory: FEE00030",
    ),
    "guest-terminated": (
        "[  77.000001] SEV-ES guest requested termination: 0x0:0x2",
        "kvm_amd: SEV-ES guest requested termination: 0x1:0x31",
        f"{QEMU}SEV termination (reason set: 0 code: 1)",
    ),
    "ghcb-unregistered": (
        "kvm [1507554]: vcpu0, guest rIP: 0x0 vmgexit: GHCB GPA [0x4e14000] is not registered.",
        "vcpu1, guest rIP: 0xfff0 vmgexit: GHCB GPA [0x80000000] is not registered.",
        "Nov 29 12:00:00 host kernel: kvm_amd: vmgexit: GHCB GPA [0x1000] is not registered.",
    ),
    "ghcb-refused": (
        "kvm [4]: vcpu0, guest rIP: 0x0 vmgexit: exit code 0x80000010 is not valid",
        "vmgexit: unsupported event - exit_info_1=0x4, exit_info_2=0x0",
        "kvm_amd: vmgexit: scratch area is not setup",
    ),
    "guest-exception": (
        "!!!! X64 Exception Type - 1D(#VC - VMM Communication)  CPU Apic ID - 00000000 !!!!",
        "[    1.0] SEV: Unsupported exit-code 0x403 in #VC exception (IP: 0xffffffff81000000)",
        "SEV: Failure in communication with VMM (exit-code 0x400 IP: 0xffffffff81000000)",
        "!!!! X64 Exception Type - 14(#VE - Virtualization Exception)  CPU Apic ID - 00000000 !!!!",
    ),
    "run-refused": (
        "error: kvm run failed Invalid argument",
        "KVM: unknown exit reason 24",
        "KVM: unknown exit, hardware reason 24",
    ),
    "entry-failed": (
        "KVM: entry failed, hardware error 0x80000021",
        "KVM: entry failed, hardware error 0xffffffff",
        f"{QEMU}KVM: entry failed, hardware error 0x7",
    ),
    "run-failed": (
        "error: kvm run failed Operation not permitted",
        "error: kvm run failed Input/output error",
        "KVM: unknown exit, hardware reason 31",
    ),
    "object-type": (
        "-object sev-snp-guest,id=s: Parameter 'qom-type' does not accept value 'sev-snp-guest'",
        f"{QEMU}-object tdx-guest,id=t: invalid object type: tdx-guest",
        f"{QEMU}-object nocc,id=t: 'nocc' is not a valid object type name",
    ),
    "property": (
        f"{QEMU}-object sev-guest,id=s,debug-swap=on: Property 'sev-guest.debug-swap' not found",
        f"{QEMU}-machine q35,kvm-type=protected: Property 'pc-q35-9.1-machine.kvm-type' not found",
        f"{QEMU}-object sev-snp-guest,id=s,polcy=0x5: Parameter 'polcy' is unexpected",
        f"{QEMU}-drive if=pflash,fromat=raw: Invalid parameter 'fromat'",
    ),
    "write-lock": (
        f'{QEMU}-drive if=pflash,file=V.fd: Failed to get "write" lock',
        'Failed to get shared "write" lock',
        "Is another process using the image [/var/lib/libvirt/qemu/nvram/g_VARS.fd]?",
    ),
    "flash-exact-size": (
        "device requires 540672 bytes, block backend provides 4194304 bytes",
        f"{QEMU}cfi.pflash01 device '/machine/system.flash1' requires 131072 bytes, pflash1 block backend provides "
        "540672 bytes",
        f"{QEMU}device requires 131072 bytes, block backend provides 540672 bytes",
    ),
    "flash-size": (
        f"{QEMU}system firmware block device pflash0 has invalid size 296960",
        f"{QEMU}system firmware block device pflash1 has invalid size 4194305",
        f"{QEMU}combined size of system firmware exceeds 8388608 bytes",
    ),
    "flash-gap": (
        f"{QEMU}pflash1 requires pflash0",
        "2026-01-01T00:00:00.0Z qemu-kvm: pflash1 requires pflash0",
        "error: internal error: process exited while connecting to monitor: pflash1 requires pflash0",
    ),
    "bios-file": (
        "qemu: could not load PC BIOS 'OVMF_CODE_4M.fd'",
        "2026-01-01T00:00:00.0Z qemu: could not load PC BIOS '/usr/share/ovmf/OVMF.fd'",
        "error: internal error: qemu: could not load PC BIOS 'bios-256k.bin'",
    ),
    "file-missing": (
        f"{QEMU}-drive if=pflash,file=x: Could not open 'x': No such file or directory",
        f"{QEMU}-blockdev driver=file,node-name=f: Could not open '/var/lib/V.fd': Permission denied",
        "Could not open 'OVMF_VARS.fd': Read-only file system",
    ),
    "igvm-pflash": (
        f"{QEMU}pflash devices cannot be configured when using IGVM",
        "2026-01-01T00:00:00.0Z qemu-kvm: pflash devices cannot be configured when using IGVM",
        "error: internal error: pflash devices cannot be configured when using IGVM",
    ),
    "no-firmware-fits": (
        "error: operation failed: Unable to find any firmware to satisfy 'efi'",
        "error: operation failed: Unable to find 'efi' firmware that is compatible with the current configuration",
        "debug : qemuFirmwareMatchDomain:1: Domain requires SEV-SNP firmware '/usr/60.json' doesn't support it",
    ),
    "launch-security-unsupported": (
        "error: unsupported configuration: launchSecurity type 'sev-snp' is not supported",
        "error: unsupported configuration: SEV SNP launch security is not supported with this QEMU binary",
        "error: unsupported configuration: 'sev' launch security is not supported with this QEMU binary",
    ),
    "kvm-access": (
        "Could not access KVM kernel module: Permission denied",
        "Could not access KVM kernel module: No such file or directory",
        f"{QEMU}-accel kvm: failed to initialize kvm: Device or resource busy",
    ),
    "tdx-init": (
        f"{QEMU}KVM_TDX_INIT_VM failed: Invalid argument",
        "virt/tdx: module not loaded, err=-19",
        "kvm_intel: TDX not supported",
        f"{QEMU}TDX ioctl KVM_TDX_FINALIZE_VM failed, hw_errors: 0xc000010000000000",
    ),
    "tdx-firmware": (
        f"{QEMU}failed to parse TDVF for TDX VM",
        f"{QEMU}Cannot find TDX_METADATA_OFFSET_GUID",
        f"{QEMU}TDVF metadata len (0x10) mismatch, expected (0x20)",
    ),
    "tdx-parameters": (
        f"{QEMU}Invalid attributes 0x1 for TDX VM (KVM supported: 0x10000000)",
        f"{QEMU}TDX requires guest CPU physical bits (46) to match host CPU physical bits (52)",
        f"{QEMU}TDX 'mrowner' sha384 digest was 32 bytes, expected 48 bytes",
    ),
    "tdx-fatal": (
        f'{QEMU}TDX guest reports fatal error. error code: 0x1 error message:"no CC blob"',
        'TDX guest reports fatal error. error code: 0x1 error message:""',
        f'2026-01-01T00:00:00.0Z {QEMU}TDX guest reports fatal error. error code: 0x2 error message:"x"',
    ),
    "variable-store-assert": (
        "ASSERT [VariableRuntimeDxe] /b/Universal/Variable/RuntimeDxe/Variable.c(12)",
        "ASSERT /build/edk2/MdeModulePkg/Universal/FaultTolerantWriteDxe/FtwMisc.c(600): ((BOOLEAN)(0==1))",
        "ASSERT [FvbServicesRuntimeDxe] /b/OvmfPkg/QemuFlashFvbServicesRuntimeDxe/FwBlockService.c(300): x",
    ),
}
HARMLESS = (
    "[    3.1] kvm_amd: SEV enabled (ASIDs 100 - 509)",
    "kvm_amd: SEV-SNP enabled (ASIDs 1 - 99)",
    "ccp 0000:22:00.1: SEV API:1.55 build:21",
    "SEV-SNP: RMP table physical range [0x0000000037500000 - 0x0000000077bfffff]",
    "virt/tdx: BIOS enabled: private KeyID range [64, 128)",
    "virt/tdx: module initialized",
    "char device redirected to /dev/pts/3 (label charserial0)",
    "2026-01-01 00:00:00.000+0000: starting up libvirt version: 12.8.0",
    "kvm_set_user_memory AddrSpace#0 Slot#2 flags=0x2 gpa=0xffc84000 size=0x37c000 guest_memfd=-1 ret=0",
    "BdsDxe: starting Boot0001",
    "Memory Encryption Features active: AMD SEV SEV-ES SEV-SNP",
)


def test_there_are_25_rules_and_each_has_a_line_and_a_paragraph() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "triage.md").read_text("utf-8")
    names = [rule.id for rule in RULES]
    assert len(names) == len(set(names)) >= 25
    assert set(names) == set(LINES)
    assert [name for name in names if f"`{name}`" not in guide] == []


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in LINES.items() for line in lines])
def test_line_is_known_and_explained(name: str, line: str) -> None:
    (found,) = triage(["some other line", line])
    assert (found.rule.id, found.line, found.times) == (name, 2, 1)
    assert "{" not in found.cause
    assert all((found.cause, found.rule.remedy, found.rule.check, found.rule.source))


def test_each_rule_has_three_lines() -> None:
    assert [name for name, lines in LINES.items() if len(set(lines)) < 3] == []


@pytest.mark.parametrize("line", HARMLESS)
def test_line_of_a_launch_that_goes_well_is_unknown(line: str) -> None:
    assert triage([line]) == []


def test_colours_of_a_terminal_do_not_hide_a_message() -> None:
    assert triage(["\x1b[31merror: kvm run \x1b[0mfailed Bad address"])[0].rule.id == "efault"


def test_values_of_the_line_are_in_the_cause() -> None:
    assert "bit 51, and cbitpos=0" in triage(LINES["cbitpos"])[0].cause
    assert "the platform's configuration does not allow it" in triage(LINES["platform-init"])[0].cause
    assert "not known here" in triage(["fw_error=99999999999999999999"])[0].cause


def test_command_reads_a_log_and_says_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "guest.log"
    log.write_text(f"booting\n{LINES['efault'][0]}\n\x1b[31m{LINES['efault'][0]}\n")
    assert main(["triage", "--json", str(log)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["known"]
    assert (entry["id"], entry["line"], entry["lines"]) == ("efault", 2, 2)
    assert main(["triage", str(log)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    log.write_text("all is well\n")
    assert main(["triage", str(log)]) == 1
    assert capsys.readouterr().out.startswith("unknown: ")
    assert main(["triage", str(tmp_path / "none")]) == 4


@given(
    st.lists(
        st.one_of(st.sampled_from([line for lines in LINES.values() for line in lines]), st.text()).map(
            lambda text: text * 3
        ),
        max_size=5,
    )
)
def test_any_text_is_known_or_unknown(lines: list[str]) -> None:
    for found in triage(lines):
        assert 1 <= found.line <= len(lines)
