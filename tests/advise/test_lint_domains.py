"""What lint knows of libvirt: completions, templates, inline certificates, words for QEMU, the choice of firmware."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from casemate.advise.lint import lint
from casemate.advise.rule import Finding, HostFacts
from casemate.firmware.descriptors import Descriptor
from casemate.qemu.source import read_commands

CERTIFICATE, SESSION = b64encode(bytes(2084)).decode(), b64encode(bytes(128)).decode()
SNP = "<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>"


def domain(inside: str, system: str = "") -> str:
    chosen = "" if system else " firmware='efi'"
    return (
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
        f"<os{chosen}><type arch='x86_64' machine='q35'>hvm</type>{system}</os>\n"
        f"<cpu><model>EPYC-v4</model></cpu>\n{inside}</domain>"
    )


def findings(text: str, *descriptors: Descriptor) -> list[Finding]:
    (command,) = read_commands(text.encode(), "domain.xml")
    return lint(command, HostFacts.of_era(), lambda _: None, None, descriptors)[0]


def ids(text: str) -> set[str]:
    return {finding.id for finding in findings(text)}


def sev(certificate: str, session: str) -> str:
    inside = f"<policy>0x5</policy><dhCert>{certificate}</dhCert><session>{session}</session>"
    return domain(f"<launchSecurity type='sev'>{inside}</launchSecurity>")


@pytest.mark.parametrize("kind", ["sev", "sev-snp"])
def test_libvirt_completes_what_it_knows_of_the_host(kind: str) -> None:
    found = ids(domain(SNP.replace("sev-snp", kind).replace("0x30000", "0x30005")))
    assert not found & {"cbitpos-missing", "kvm-missing", "code-without-vars"}


@pytest.mark.parametrize(
    ("certificate", "session", "is_wrong"),
    [
        (CERTIFICATE, SESSION, False),
        (f"\n {CERTIFICATE[:64]}\n{CERTIFICATE[64:]}\n", SESSION, False),
        (SESSION, CERTIFICATE, True),
        ("/etc/sev/godh.b64", SESSION, True),
        (CERTIFICATE, "session.b64", True),
        ("", "", True),
    ],
)
def test_certificate_and_session_stand_in_the_domain(certificate: str, session: str, is_wrong: bool) -> None:
    assert ("session-contents" in ids(sev(certificate, session))) is is_wrong


def arguments(*words: str) -> str:
    lines = "\n".join(f"<qemu:arg value='{word}'/>" for word in words)
    return domain(f"<qemu:commandline>\n{lines}\n</qemu:commandline>", "<loader type='rom'>x.fd</loader>")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            "snp-policy",
            ("-object", "sev-snp-guest,id=s,policy=0x5", "-machine", "confidential-guest-support=s"),
        ),
        ("cbitpos-missing", ("-object", "sev-guest,id=s", "-machine", "confidential-guest-support=s")),
        ("pflash-gap", ("-drive", "if=pflash,unit=1,format=raw,file=x")),
        ("object-unknown", ("-object", "nocc,id=n")),
    ],
)
def test_arguments_for_qemu_are_read_with_their_place(rule: str, words: tuple[str, ...]) -> None:
    found = [finding for finding in findings(arguments(*words)) if finding.id == rule]
    assert found
    assert {finding.line for finding in found} == {6}


@pytest.mark.parametrize(
    ("code", "template", "is_wrong"),
    [
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS.fd", True),
        ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", True),
        ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.fd", True),
        ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", False),
    ],
)
def test_a_store_that_is_not_there_yet_is_its_template(code: str, template: str, is_wrong: bool) -> None:
    system = (
        f"<loader readonly='yes' type='pflash'>{code}</loader><nvram template='{template}'>new.fd</nvram>"
    )
    assert ("flash-pair" in ids(domain("", system))) is is_wrong


def test_variables_in_json_need_no_flash() -> None:
    system = "<loader type='rom'>/usr/share/ovmf/OVMF.fd</loader><varstore path='/var/lib/g.json'/>"
    assert not ids(domain("", system)) & {"bios-variables", "uefi-vars-forgets"}


def descriptor(name: str, device: str, *features: str) -> Descriptor:
    executable = Path(f"/usr/share/{name}.fd")
    return Descriptor(
        Path(f"{name}.json"),
        name,
        device,
        executable,
        None,
        ("raw",),
        ("uefi",),
        ("x86_64",),
        features,
    )


@pytest.mark.parametrize(
    ("inside", "chosen"),
    [
        (SNP, "amdsev"),
        ("", "plain"),
        (SNP.replace("sev-snp", "tdx"), "none of those"),
    ],
)
def test_the_choice_of_firmware_is_told(inside: str, chosen: str) -> None:
    offered = (descriptor("plain", "flash", "amd-sev"), descriptor("amdsev", "memory", "amd-sev-snp"))
    (found,) = [one for one in findings(domain(inside), *offered) if one.id == "firmware-autoselect"]
    assert chosen in found.cause
    assert found.line == 2
