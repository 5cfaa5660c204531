"""Every rule on a line that breaks it and on the line put right; the lines of public documents."""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from public_command_lines import LINES, Line

from casemate.advise.lint import all_rules, lint
from casemate.advise.rule import Finding, HostFacts, Severity
from casemate.errors import SpecError
from casemate.firmware import guids
from casemate.firmware.image import FirmwareImage
from casemate.qemu.domain_xml import words_of_domain
from casemate.qemu.guest_request import GuestRequest, Kind
from casemate.qemu.releases import QemuFacts, version_of
from casemate.qemu.source import read_commands
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
    "started.fd": ImageBuilder(0x200000).reset_block(0x80B004).build(),
    "text.fd": b"read me first, this is no firmware\n" * 4096,
    "odd.fd": bytes(5000),
    "huge.fd": bytes(9 << 20),
    "s.b64": b64encode(bytes(128)),
    "d.b64": b64encode(bytes(2084)),
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
    ("cbitpos-impossible", SEV.replace("51", "31"), SEV.replace("51", "47")),
    ("cbitpos-impossible", SEV.replace("51", "52"), SEV.replace("51", "39")),
    ("cbitpos-impossible", SEV_ES.replace("=51", "=0"), SEV_ES),
    ("cbitpos-impossible", SNP.replace("51", "0x40"), SNP.replace("51", "0x33")),
    ("cbitpos-value", SNP.replace("51", "47"), SNP),
    ("cbitpos-value", SEV.replace("51", "48"), SEV.replace("51", "47")),
    ("cbitpos-value", SEV_ES.replace("=51", "=39"), SEV_ES),
    ("number-wrong", f"{SEV},policy=none", f"{SEV},policy=0x1"),
    ("number-wrong", f"{SEV},policy=0b101", f"{SEV},policy=05"),
    ("number-wrong", f"{SEV},policy=08", f"{SEV},policy=0"),
    ("value-wrong", f"{SEV},kernel-hashes=1", f"{SEV},kernel-hashes=yes"),
    ("value-wrong", "-machine q35,smm=of", "-machine q35,smm=auto"),
    ("value-wrong", "-machine q35,kernel-irqchip=spilt", "-machine q35,kernel_irqchip=split"),
    ("value-wrong", "-accel kvmm", "-accel kvm,kernel-irqchip=split"),
    ("value-wrong", "-machine q35,accel=kmv:tcg", "-machine q35,accel=kvm:tcg"),
    ("reduced-phys-bits", SEV.replace("bits=1", "bits=5"), SEV),
    ("reduced-phys-bits-range", SEV.replace("bits=1", "bits=99"), SEV.replace("bits=1", "bits=63")),
    ("reduced-phys-bits-range", SNP.replace("bits=1", "bits=0"), SNP),
    ("reduced-phys-bits-range", SEV_ES.replace("bits=1", "bits=0x40"), SEV_ES),
    ("features-without-es", f"{SEV},debug-swap=on", f"{SEV_ES},debug-swap=on"),
    ("legacy-with-features", f"{SEV_ES},debug-swap=on,legacy-vm-type=on", f"{SEV_ES},debug-swap=on"),
    ("tsc-frequency-alone", f"{SNP},tsc-frequency=1000000000", f"{SNP},secure-tsc=on,tsc-frequency=1000000000"),
    ("policy-debug", f"{SEV},policy=0", f"{SEV},policy=1"),
    ("policy-debug", f"{SNP},policy=0xb0000", f"{SNP},policy=0x30000"),
    ("sev-policy", f"{SEV},policy=0x30000", f"{SEV},policy=0x10001"),
    ("sev-policy", f"{SEV},policy=0x100000005", SEV_ES),
    ("sev-policy", f"{SEV},policy=196613", f"{SNP},policy=0x30000"),
    ("snp-policy", f"{SNP},policy=0x5", f"{SNP},policy=0x20000"),
    ("snp-policy-bits", f"{SNP},policy=0x70000", f"{SNP},policy=0x130000"),
    ("snp-policy-bits", f"{SNP},policy=0x230000", f"{SNP},policy=0x3001f"),
    ("snp-policy-bits", f"{SNP},policy=0x8000000000030000", SNP),
    ("option-unknown", "-machine q35 -dirve if=pflash", "-machine q35"),
    ("option-unknown", "-machine q35 -enable-kvmm", "-machine q35 -enable-kvm"),
    ("option-unknown", "-m 1G -smpp 2", "-m 1G -smp 2"),
    ("object-unknown", "-object nocc,id=x", "-object rng-builtin,id=x"),
    ("object-unknown", "-object sev-snp-gest,id=x", "-object sev-snp-guest,id=x"),
    ("object-unknown", """-object '{"qom-type":"sev-emulated","id":"x"}'""", "-object igvm-cfg,id=x,file=f"),
    ("object-property-unknown", f"{SNP},polcy=0x30000", f"{SNP},policy=0x30000"),
    ("object-property-unknown", f"{SEV_ES},debug-swap=on", SEV_ES),
    ("object-property-unknown", f"{SEV},init-flags=0", f"{SEV},handle=0"),
    ("object-property-unknown", "-object memory-backend-ram,id=m,siez=1G", "-object memory-backend-ram,id=m,size=1G"),
    ("machine-property-unknown", "-machine q35,kvm-type=protected", "-machine q35,vmport=off"),
    ("machine-property-unknown", "-machine q35,kernel-irqchp=split", "-machine q35,kernel-irqchip=split"),
    ("machine-property-unknown", "-M q35,memroy-backend=m", "-M q35,memory-backend=m,cxl-fmw.0.size=1G"),
    ("machine-unknown", "-machine q53", "-machine q35"),
    ("machine-unknown", "-M pc-q35-12.9", "-M pc-q35-rhel9.4.0"),
    ("machine-unknown", "-machine pc-i440fx-99.0", "-machine pc-i440fx-noble"),
    ("value-unknown", "qemu-kvm -machine $BOARD", "qemu-kvm -machine q35"),
    ("value-unknown", 'A="-m $SIZE"; qemu-kvm $A', 'SIZE=1G; A="-m $SIZE"; qemu-kvm $A'),
    ("value-unknown", "test $1 && A=-S; qemu-kvm -m 1 $A", "A=(-S); qemu-kvm -m 1 ${A[@]}"),
    ("id-auth-length", f"{SNP},id-auth={'A' * 8000}", f"{SNP},id-auth={'A' * 4000}"),
    ("session-contents", f"{SEV},session-file=s.b64,dh-cert-file=s.b64", f"{SEV},session-file=s.b64"),
    ("session-contents", f"{SEV},session-file=x", f"{SEV},session-file=s.b64,dh-cert-file=d.b64"),
    ("session-contents", f"{SEV},session-file=d.b64,dh-cert-file=s.b64", SEV),
    ("session-contents", f"{SEV},session-file=none,dh-cert-file=code.fd", SEV),
    ("amdsev-without-kernel", f"{SEV} -bios verifying.fd", f"{SEV} -bios verifying.fd -kernel k"),
    ("amdsev-without-kernel", "-pflash verifying.fd", "-pflash generic.fd"),
    ("amdsev-without-kernel", f"{SNP} -bios verifying.fd", f"{SNP} -bios verifying.fd $EXTRA"),
    ("flash-unreadable", "-drive if=pflash,format=qcow2,file=q.img", CODE),
    ("flash-unexamined", "-drive if=pflash,format=vmdk,file=vars.fd", "-drive if=pflash,format=vmdk,file=new"),
    ("firmware-not-for-guest", f"{SEV_ES} -bios amdsev.fd", f"{SEV_ES} -bios started.fd"),
    ("firmware-not-for-guest", f"{SNP} -machine firmware=amdsev.fd", f"-machine firmware=amdsev.fd,igvm-cfg=i {SNP}"),
    ("firmware-not-for-guest", "-bios text.fd", "-bios started.fd"),
    ("firmware-not-for-guest", "-bios q.img", "-bios combined.fd"),
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
    ("snp-policy", f"{SNP},policy=0x20000", "linux-6.16", "linux-6.18"),
    ("snp-policy-bits", f"{SNP},policy=0x130000", "linux-6.11", "linux-6.18"),
    ("unasked-debug-swap", SEV_ES, "linux-6.6", "linux-6.8"),
    ("pflash-sev-es-init2", f"{SEV_ES},debug-swap=on {CODE}", "linux-6.11", "linux-6.10"),
]
QEMU_RULES = [
    ("object-unknown", SNP, "9.0", "9.1"),
    ("object-unknown", TDX, "10.0", "10.1"),
    ("object-unknown", "-object igvm-cfg,id=i,file=f", "9.2", "10.1.2"),
    ("object-property-unknown", f"{SEV},legacy-vm-type=off", "9.0", "9.1"),
    ("machine-property-unknown", "-machine q35,shim=s", "7.2", "10.0"),
    ("machine-unknown", "-machine pc-q35-9.2", "7.2", "10.0"),
    ("machine-unknown", "-machine pc-q35-10.2", "10.1", "10.2"),
    ("option-unknown", "-machine q35 -no-hpet", "10.0", "7.2"),
    ("reset-ends-guest", SNP, "10.2", "11.0"),
    ("kernel-header-rewritten", f"{TDX} -kernel k", "10.1", "10.2"),
]


def domain(launch: str, system: str = "<type arch='x86_64' machine='q35'>hvm</type>") -> str:
    return f"<domain type='kvm'><os>{system}</os><cpu mode='maximum'/>{launch}</domain>"


SNP_DOMAIN = "<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>"
DOMAIN_RULES = [
    ("libvirt-unknown", domain("<launchSecurity type='sev-es'/>"), domain(SNP_DOMAIN)),
    ("libvirt-unknown", domain("<launchSecurity type='snp'/>"), domain(SNP_DOMAIN)),
    ("libvirt-unknown", domain(SNP_DOMAIN.replace("policy>", "polcy>")), domain(SNP_DOMAIN)),
    (
        "libvirt-unknown",
        domain(SNP_DOMAIN.replace("'sev-snp'", "'sev-snp' kernelHash='yes'")),
        domain(SNP_DOMAIN.replace("'sev-snp'", "'sev-snp' kernelHashes='yes'")),
    ),
    ("firmware-autoselect", domain("").replace("<os>", "<os firmware='efi'>"), domain("")),
]


def load(path: str) -> FirmwareImage | None:
    return FirmwareImage.from_bytes(FILES[path], path) if path in FILES else None


def findings(line: str, era: str = "linux-6.18") -> list[Finding]:
    command = read_commands(line.encode(), "line")[0] if "$" in line else shlex.split(line)
    return lint(command, HostFacts.of_era(era), load)[0]


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


@pytest.mark.parametrize(("name", "line", "broken", "right"), QEMU_RULES)
def test_rule_depends_on_the_release_of_qemu(name: str, line: str, broken: str, right: str) -> None:
    found = {}
    for release in (broken, right):
        facts = QemuFacts(version_of(release))
        found[release] = {one.id for one in lint(shlex.split(line), HostFacts.of_era(), load, facts)[0]}
    assert name in found[broken]
    assert name not in found[right]


def of_domain(text: str) -> list[Finding]:
    (command,) = read_commands(text.encode(), "domain.xml")
    return lint(command, HostFacts.of_era(), load)[0]


@pytest.mark.parametrize(("name", "broken", "right"), DOMAIN_RULES)
def test_rule_knows_what_libvirt_takes(name: str, broken: str, right: str) -> None:
    assert name in {one.id for one in of_domain(broken)}
    assert name not in {one.id for one in of_domain(right)}


def test_every_rule_is_tried_and_has_a_paragraph_in_the_guide() -> None:
    names = [rule.id for rule in all_rules()]
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "lint.md").read_text("utf-8")
    assert len(names) == len(set(names)) >= 25
    tried = {rule[0] for rule in (*RULES, *ERA_RULES, *QEMU_RULES, *DOMAIN_RULES)}
    assert set(names) == tried | {"firmware-not-for-snp"}, "the last one needs a real image, below"
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
    assert found == {
        "pflash-with-snp",
        "firmware-not-for-guest",
        "smm-confidential",
        "cpu-host",
        "kernel-hashes-no-kernel",
    }


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
