"""Every rule on a line that breaks it and on the line put right; the lines of public documents."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from public_command_lines import LINES, Line

from casemate.advise.domain_xml import words_of_domain
from casemate.advise.guest_request import GuestRequest, Kind
from casemate.advise.lint import all_rules, lint
from casemate.advise.rule import Finding, HostFacts, Severity
from casemate.errors import SpecError
from casemate.firmware import guids
from casemate.firmware.image import FirmwareImage
from casemate.testing.images import ImageBuilder, kernel_loader, variable_store

CODE_SIZE = 0x200000 - 0x20000


def with_loader(constants: bytes) -> ImageBuilder:
    """An image with kernel hashes, and edk2's loader of kernels with ``constants`` in its code."""
    return ImageBuilder(0x200000).hashes(0x80CC00).volume_of(kernel_loader(constants))


FILES = {
    "code.fd": ImageBuilder(CODE_SIZE, volume=True).reset_block(0x80B004).hashes(0, 0).build(),
    "vars.fd": variable_store(0x20000),
    "other.fd": variable_store(0x84000),
    "combined.fd": variable_store(0x20000) + ImageBuilder(CODE_SIZE, volume=True).build(),
    "amdsev.fd": ImageBuilder(0x200000).hashes(0x80CC00).build(),
    "generic.fd": with_loader(b"").build(),
    "verifying.fd": with_loader(guids.KERNEL_HASH_ENTRY).build(),
    "vars.json": b'{"version": 2, "variables": []}',
    "odd.fd": bytes(5000),
    "huge.fd": bytes(9 << 20),
    "q.img": b"QFI\xfb" + bytes(4092),
}
CODE = "-drive if=pflash,format=raw,unit=0,readonly=on,file=code.fd"
VARS = "-drive if=pflash,format=raw,unit=1,file=vars.fd"
SECBOOT = "-drive if=pflash,unit=0,format=raw,readonly=on,file=x.secboot.fd"
SECURE = "-global driver=cfi.pflash01,property=secure,value=on"
KVM = "-accel kvm -cpu EPYC -machine q35,confidential-guest-support=s"
BITS = "id=s,cbitpos=51,reduced-phys-bits=1"
SEV, SEV_ES = f"{KVM} -object sev-guest,{BITS}", f"{KVM} -object sev-guest,{BITS},policy=5"
SNP = f"{KVM} -object sev-snp-guest,{BITS}"
TDX = "-accel kvm -machine q35,confidential-guest-support=s -object tdx-guest,id=s"

RULES = [
    ("pflash-gap", VARS, f"{CODE} {VARS}"),
    ("pflash-unit", f"{CODE} {VARS} -drive if=pflash,unit=2,format=raw,file=b", f"{CODE} {VARS}"),
    ("pflash-twice", f"{CODE} {CODE}", f"{CODE} {VARS}"),
    ("flash-format-missing", "-drive if=pflash,file=b", "-drive if=pflash,format=raw,file=b"),
    ("flash-format-wrong", "-drive if=pflash,format=raw,file=q.img", "-drive if=pflash,format=qcow2,file=q.img"),
    ("flash-format-wrong", "-drive if=pflash,format=qcow2,file=vars.fd", CODE),
    ("flash-size", "-drive if=pflash,format=raw,file=odd.fd", CODE),
    ("flash-size", "-pflash huge.fd", "-pflash combined.fd"),
    ("flash-swapped", "-drive if=pflash,format=raw,file=vars.fd", CODE),
    ("flash-swapped", "-drive if=pflash,format=raw,file=my_VARS.fd", "-drive if=pflash,format=raw,file=my_CODE.fd"),
    ("flash-pair", f"{CODE} {VARS.replace('vars', 'other')}", f"{CODE} {VARS}"),
    ("flash-pair", "-pflash OVMF_CODE_4M.fd -pflash OVMF_VARS.fd", "-pflash OVMF_CODE.fd -pflash OVMF_VARS.fd"),
    ("code-without-vars", CODE, f"{CODE} {VARS}"),
    ("code-without-vars", CODE, f"{CODE} -device uefi-vars-x64,jsonfile=vars.json"),
    ("uefi-vars-forgets", f"{CODE} -device uefi-vars-x64", f"{CODE} -device uefi-vars-x64,jsonfile=vars.json"),
    ("uefi-vars-file", "-device uefi-vars-x64,jsonfile=vars.fd", "-device uefi-vars-x64,jsonfile=vars.json"),
    (
        "uefi-vars-file",
        """-device '{"driver":"uefi-vars-x64","jsonfile":"odd.fd"}'""",
        """-device '{"driver":"uefi-vars-x64","jsonfile":"new.json"}'""",
    ),
    ("combined-readonly", CODE.replace("code", "combined"), "-pflash combined.fd"),
    ("vars-unused", f"-pflash combined.fd {VARS}", f"{CODE} {VARS}"),
    ("smm-missing", f"{SECBOOT} {SEV_ES}", f"{CODE} {SEV_ES}"),
    ("vars-readonly", f"{CODE} {VARS},readonly=on", f"{CODE} {VARS}"),
    ("vars-template", f"{CODE} -pflash /usr/share/OVMF/OVMF_VARS.fd", f"{CODE} {VARS}"),
    ("vars-template", "-pflash c -pflash /usr/share/V.fd", "-pflash c -pflash /usr/share/V.fd -snapshot"),
    ("code-writable", f"{CODE.replace('readonly=on,', '')} {VARS}", f"{CODE} {VARS}"),
    ("bios-ignored", f"{CODE} -bios combined.fd", "-bios combined.fd"),
    ("bios-size", "-bios odd.fd", "-bios combined.fd"),
    ("bios-code", "-bios OVMF_CODE_4M.fd", "-bios OVMF.fd"),
    ("bios-variables", "-bios OVMF.fd", f"{SNP} -bios OVMF.fd"),
    ("igvm-pflash", f"{CODE} -machine q35,igvm-cfg=i", CODE),
    ("smm-missing", f"{SECBOOT} -machine q35,smm=off", f"{SECBOOT} -machine q35"),
    ("smm-missing", f"{SECBOOT} -machine pc", f"{SECBOOT} -machine q35,smm=on"),
    ("flash-insecure", f"{SECBOOT} -machine q35", f"{SECBOOT} -machine q35 {SECURE}"),
    ("secure-boot-without-smm", "-pflash CODE.fd -pflash VARS.ms.fd", "-pflash CODE.ms.fd -pflash VARS.ms.fd"),
    ("pflash-with-snp", f"{SNP} {CODE}", f"{SNP} -bios combined.fd"),
    ("pflash-with-tdx", f"{TDX} {CODE}", f"{TDX} -bios combined.fd"),
    ("pflash-sev-es-init2", f"{SEV_ES},debug-swap=on {CODE}", f"{SEV_ES} {CODE}"),
    ("pflash-sev-es-init2", f"{SEV_ES},legacy-vm-type=off {CODE}", f"{SEV_ES},debug-swap=on -bios combined.fd"),
    ("pflash-sev-es-livelock", f"{SEV_ES} {CODE}", f"{SEV} {CODE}"),
    ("launch-object-missing", "-machine q35,confidential-guest-support=s", SEV),
    ("launch-object-unused", f"-object sev-guest,{BITS}", SEV),
    ("memory-encryption-alias", f"-machine q35,memory-encryption=s -object sev-guest,{BITS}", SEV),
    ("kvm-missing", SEV.replace("-accel kvm ", ""), SEV),
    ("cbitpos-missing", f"{KVM} -object sev-guest,id=s,cbitpos=51", SEV),
    ("cbitpos-value", SEV.replace("51", "48"), SEV.replace("51", "47")),
    ("cbitpos-value", SNP.replace("51", "47"), SNP),
    ("number-wrong", f"{SEV},policy=none", f"{SEV},policy=0x1"),
    ("reduced-phys-bits", SEV.replace("bits=1", "bits=5"), SEV),
    ("features-without-es", f"{SEV},debug-swap=on", f"{SEV_ES},debug-swap=on"),
    ("legacy-with-features", f"{SEV_ES},debug-swap=on,legacy-vm-type=on", f"{SEV_ES},debug-swap=on"),
    ("tsc-frequency-alone", f"{SNP},tsc-frequency=1000000000", f"{SNP},secure-tsc=on,tsc-frequency=1000000000"),
    ("policy-debug", f"{SEV},policy=0", f"{SEV},policy=1"),
    ("policy-debug", f"{SNP},policy=0xb0000", f"{SNP},policy=0x30000"),
    ("snp-policy", f"{SNP},policy=0x5", SNP),
    ("kernel-hashes-off", f"{SEV} -kernel k", f"{SEV},kernel-hashes=on -kernel k"),
    ("kernel-hashes-no-kernel", f"{SEV},kernel-hashes=on", f"{SEV},kernel-hashes=on -kernel k"),
    (
        "kernel-hashes-no-area",
        f"{SEV},kernel-hashes=on -kernel k {CODE}",
        f"{SEV},kernel-hashes=on -kernel k -bios amdsev.fd",
    ),
    (
        "kernel-hashes-unused",
        f"{SEV},kernel-hashes=on -kernel k -bios generic.fd",
        f"{SEV},kernel-hashes=on -kernel k -bios verifying.fd",
    ),
    ("session-half", f"{SEV},session-file=f", f"{SEV},session-file=f,dh-cert-file=g"),
    ("blob-length", f"{SNP},host-data=AAAA", f"{SNP},host-data={'A' * 43}="),
    ("blob-length", f"{SNP},id-block=!", SNP),
    ("smm-confidential", f"{SEV_ES} -machine smm=on", f"{SEV} -machine smm=on"),
    ("irqchip", f"{SEV_ES} -machine kernel-irqchip=off", SEV_ES),
    ("irqchip", f"{TDX} -machine kernel_irqchip=on", f"{TDX} -machine kernel_irqchip=split"),
    ("cpu-default", SNP.replace("-cpu EPYC ", ""), SNP),
    ("cpu-host", SNP.replace("EPYC", "host"), SNP),
    ("init2-digest", f"{SEV_ES},debug-swap=on", SEV_ES),
    ("memfd-private", f"{SNP} -object memory-backend-memfd-private,id=r", f"{SNP} -object memory-backend-memfd,id=r"),
]  # fmt: skip
ERA_RULES = [
    ("vm-type-missing", SNP, "linux-6.10", "linux-6.11"),
    ("vm-type-missing", f"{SEV_ES},debug-swap=on", "linux-6.8", "linux-6.10"),
    ("vm-type-missing", TDX, "linux-6.11", "linux-6.16"),
    ("unasked-debug-swap", SEV_ES, "linux-6.6", "linux-6.8"),
    ("pflash-sev-es-init2", f"{SEV_ES},debug-swap=on {CODE}", "linux-6.11", "linux-6.10"),
]


def load(path: str) -> FirmwareImage | None:
    return FirmwareImage.from_bytes(FILES[path], path) if path in FILES else None


def findings(line: str, era: str = "linux-6.18") -> list[Finding]:
    return lint(shlex.split(line), HostFacts.of_era(era), load)[0]


def ids(line: str, era: str = "linux-6.18") -> set[str]:
    return {finding.id for finding in findings(line, era)}


@pytest.mark.parametrize(("name", "broken", "right"), RULES, ids=[rule[0] for rule in RULES])
def test_rule_finds_the_broken_line_and_not_the_right_one(name: str, broken: str, right: str) -> None:
    assert name in ids(broken)
    assert name not in ids(right)


@pytest.mark.parametrize(("name", "line", "broken", "right"), ERA_RULES)
def test_rule_depends_on_the_kernel(name: str, line: str, broken: str, right: str) -> None:
    assert name in ids(line, broken)
    assert name not in ids(line, right)


def test_every_rule_is_tried_and_has_a_paragraph_in_the_guide() -> None:
    names = [rule.id for rule in all_rules()]
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "lint.md").read_text("utf-8")
    assert len(names) == len(set(names)) >= 25
    assert set(names) == {rule[0] for rule in RULES} | {rule[0] for rule in ERA_RULES}
    assert sorted(names) == sorted(re.findall(r"^### `([\w-]+)`", guide, re.MULTILINE))


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.source)
def test_public_line_has_the_known_findings(line: Line) -> None:
    found = findings(line.command)
    assert {finding.id for finding in found} == line.ids
    if line.works:
        assert not [finding for finding in found if finding.severity is Severity.ERROR]


def test_public_lines_are_from_five_projects_and_more() -> None:
    assert len(LINES) >= 20
    assert len({line.project for line in LINES}) >= 5


def test_worst_findings_come_first_and_say_everything() -> None:
    found = findings(f"{SNP.replace('-cpu EPYC ', '')} {CODE}")
    order = [list(Severity).index(finding.severity) for finding in found]
    assert order == sorted(order)
    assert all(finding.cause and finding.remedy and finding.reference and finding.option for finding in found)


def test_files_that_cannot_be_read_are_named() -> None:
    assert lint(shlex.split(f"{CODE} -bios nowhere.fd"), HostFacts.of_era(), load)[1] == ["nowhere.fd"]


def test_blockdev_and_json_are_understood() -> None:
    blocks = (
        '-blockdev \'{"driver":"file","filename":"code.fd","node-name":"f0","read-only":true}\''
        " -blockdev driver=raw,node-name=p0,file=f0 -machine q35,pflash0=p0,confidential-guest-support=s"
        ' -object \'{"qom-type":"sev-snp-guest","id":"s","cbitpos":51,"reduced-phys-bits":1}\''
    )
    request = GuestRequest.of_words(shlex.split(blocks))
    assert request.kind is Kind.SNP
    assert [(flash.unit, flash.file, flash.readonly) for flash in request.flash] == [(0, "code.fd", True)]


DOMAIN = """
<domain type='kvm'>
  <vcpu>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type>
    <loader readonly='yes' type='pflash'>code.fd</loader><nvram>vars.fd</nvram></os>
  <features><smm state='on'/></features>
  <cpu mode='host-passthrough'/>
  <launchSecurity type='sev-snp' kernelHashes='yes'>
    <cbitpos>51</cbitpos><reducedPhysBits>1</reducedPhysBits><policy>0x00030000</policy>
  </launchSecurity>
</domain>
"""


def test_domain_xml_is_read_as_the_options_it_becomes() -> None:
    found = ids(shlex.join(words_of_domain(DOMAIN)))
    assert found == {"pflash-with-snp", "smm-confidential", "cpu-host", "kernel-hashes-no-kernel"}


@pytest.mark.parametrize("text", ["<domain", "<volume/>", "<!DOCTYPE a><domain/>"])
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        words_of_domain(text)


@pytest.mark.parametrize("line", ["-drive", "-object '{'"])
def test_broken_command_line_is_refused(line: str) -> None:
    with pytest.raises(SpecError):
        findings(line)


WORDS = st.sampled_from(
    [word for rule in RULES for line in rule[1:] for word in shlex.split(line)]
    + [
        "-drive",
        "-object",
        "-machine",
        "-blockdev",
        "-bios",
        "{",
        "[" * 3000,
        '{"a":{"b":[1]}}',
        "",
        "-",
        "--",
        "=,=,,",
    ]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(WORDS, st.text(max_size=20)), max_size=12))
def test_any_words_give_findings_or_a_refusal(words: list[str]) -> None:
    for era in ("linux-6.1", "linux-6.18"):
        with suppress(SpecError):
            lint(words, HostFacts.of_era(era), load)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(RULES), st.integers(0, 200), st.text(max_size=3))
def test_damaged_lines_give_findings_or_a_refusal(
    rule: tuple[str, str, str], position: int, inserted: str
) -> None:
    line = rule[1][:position] + inserted + rule[1][position + 1 :]
    with suppress(SpecError):
        lint(line.split(" "), HostFacts.of_era(), load)
