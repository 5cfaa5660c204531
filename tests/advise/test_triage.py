"""Every rule of triage on lines of the shape that QEMU, libvirt, the kernel and firmware print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.advise.triage import RULES, triage
from casemate.cli import main

LINES = {
    "readonly-slot": "qemu-system-x86_64: kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION2 failed, slot=2, "
    "start=0xffc84000, size=0x37c000, flags=0x2, guest_memfd=-1, guest_memfd_offset=0x0: Invalid argument",
    "memory-slot": "kvm_set_user_memory_region: KVM_SET_USER_MEMORY_REGION failed, slot=0, start=0x0, size=0x80000000: "
    "Cannot allocate memory",
    "pflash-readonly": "qemu-system-x86_64: pflash with kvm requires KVM readonly memory support",
    "cbitpos": "qemu-system-x86_64: sev_common_kvm_init: cbitpos check failed, host '51' requested '0'",
    "reduced-phys-bits": "sev_common_kvm_init: reduced_phys_bits check failed, it should be in the range of 1 to 63, "
    "requested '99'",
    "dev-sev": "qemu-system-x86_64: sev_common_kvm_init: Failed to open /dev/sev 'Permission denied'",
    "sev-es-unavailable": "sev_common_kvm_init: guest policy requires SEV-ES, but host SEV-ES support unavailable",
    "sev-es-disabled": "[   12.345678] kvm_amd: SEV-ES disabled (ASIDs 0 - 0)",
    "platform-init": "[    9.118442] ccp 0000:22:00.1: SEV-SNP: failed to INIT error 0x3, rc -5",
    "rmp-missing": "[    0.000000] SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
    "sev-init": "qemu-system-x86_64: sev_common_kvm_init: failed to initialize ret=-16 fw_error=0 ''",
    "vm-type": "SEV: host kernel does not support requested KVM_X86_SEV_ES_VM VM type, which is required for the set",
    "snp-launch-start": "sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''",
    "id-block": "sev_snp_launch_finish: SNP_LAUNCH_FINISH ret=-5 fw_error=11 'Bad measurement'",
    "vmsa-config": "sev_launch_update_vmsa: LAUNCH_UPDATE_VMSA ret=-5 fw_error=3 'Platform configuration is invalid'",
    "snp-cpuid": "SEV-SNP: CPUID validation failed for function 0x80000021, index: 0x0, provided: eax:0x1",
    "hashes-missing": "qemu-system-x86_64: SEV: kernel specified but guest firmware has no hashes table GUID",
    "firmware-status": "sev_launch_get_measure: LAUNCH_MEASURE ret=-5 fw_error=2 'Guest state is invalid'",
    "efault": "error: kvm run failed Bad address",
    "encrypted-mmio": "MMIO using encrypted memory: B00F8040",
    "guest-terminated": "[  77.000001] SEV-ES guest requested termination: 0x0:0x2",
    "ghcb-unregistered": "kvm [1507554]: vcpu0, guest rIP: 0x0 vmgexit: GHCB GPA [0x4e14000] is not registered.",
    "run-refused": "error: kvm run failed Invalid argument",
    "object-type": "-object sev-snp-guest,id=s: Parameter 'qom-type' does not accept value 'sev-snp-guest'",
    "property": "qemu-system-x86_64: -object sev-guest,id=s,debug-swap=on: Property 'sev-guest.debug-swap' not found",
    "write-lock": 'qemu-system-x86_64: -drive if=pflash,file=V.fd: Failed to get "write" lock',
    "flash-exact-size": "device requires 540672 bytes, block backend provides 4194304 bytes",
    "flash-size": "qemu-system-x86_64: system firmware block device pflash0 has invalid size 296960",
    "flash-gap": "qemu-system-x86_64: pflash1 requires pflash0",
    "bios-file": "qemu: could not load PC BIOS 'OVMF_CODE_4M.fd'",
    "no-firmware-fits": "error: operation failed: Unable to find any firmware to satisfy 'efi'",
    "launch-security-unsupported": "error: unsupported configuration: launchSecurity type 'sev-snp' is not supported",
    "kvm-access": "Could not access KVM kernel module: Permission denied",
    "tdx-init": "qemu-system-x86_64: KVM_TDX_INIT_VM failed: Invalid argument",
    "variable-store-assert": "ASSERT [VariableRuntimeDxe] /b/Universal/Variable/RuntimeDxe/Variable.c(12)",
}


def test_there_are_25_rules_and_each_has_a_line_and_a_paragraph() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "triage.md").read_text("utf-8")
    names = [rule.id for rule in RULES]
    assert len(names) == len(set(names)) >= 25
    assert set(names) == set(LINES)
    assert [name for name in names if f"`{name}`" not in guide] == []


@pytest.mark.parametrize("name", LINES)
def test_line_is_known_and_explained(name: str) -> None:
    (found,) = triage(["some other line", LINES[name]])
    assert (found.rule.id, found.line, found.times) == (name, 2, 1)
    assert "{" not in found.cause
    assert all((found.cause, found.rule.remedy, found.rule.check, found.rule.source))


def test_values_of_the_line_are_in_the_cause() -> None:
    assert "bit 51, and cbitpos=0" in triage([LINES["cbitpos"]])[0].cause
    assert "the platform's configuration does not allow it" in triage([LINES["platform-init"]])[0].cause
    assert "not known here" in triage(["fw_error=99999999999999999999"])[0].cause


def test_command_reads_a_log_and_says_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "guest.log"
    log.write_text(f"booting\n{LINES['efault']}\n\x1b[31m{LINES['efault']}\n")
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
        st.one_of(st.sampled_from(list(LINES.values())), st.text()).map(lambda text: text * 3), max_size=5
    )
)
def test_any_text_is_known_or_unknown(lines: list[str]) -> None:
    for found in triage(lines):
        assert 1 <= found.line <= len(lines)
