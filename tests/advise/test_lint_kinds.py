"""Kinds of what people give to lint: domains, scripts and documents, each kind in several shapes."""

from __future__ import annotations

import pytest

from casemate.advise.confidential_rules import MODELLED_C_BIT
from casemate.advise.lint import lint
from casemate.advise.rule import HostFacts, Severity
from casemate.errors import SpecError
from casemate.host.model.cpu.cpuid import C_BIT
from casemate.qemu.source import read_commands

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
SNP = "<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>"
EFI = "<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os>"
LOADER = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"


def domain(inside: str = "", system: str = EFI, kind: str = "kvm", more: str = "") -> str:
    return (
        f"<domain type='{kind}'{more}><name>g</name><memory unit='GiB'>2</memory>{system}"
        f"<cpu><model>EPYC-v4</model></cpu>{inside}</domain>"
    )


def flash(inside: str = "") -> str:
    return f"<os><type arch='x86_64' machine='q35'>hvm</type>{LOADER}{inside}</os>"


def arguments(*words: str, prefix: str = "qemu") -> str:
    inside = "".join(f"<{prefix}:arg value='{word}'/>" for word in words)
    return f"<{prefix}:commandline>{inside}</{prefix}:commandline>"


def errors(text: str | bytes) -> set[str]:
    """The rules whose findings are errors, of all guests in a file."""
    data = text.encode() if isinstance(text, str) else text
    found = [
        finding
        for command in read_commands(data, "input")
        for finding in lint(command, HostFacts.of_era(), lambda _: None)[0]
    ]
    return {finding.id for finding in found if finding.severity is Severity.ERROR}


def launch(kind: str, inside: str = "<policy>0x5</policy>", attributes: str = "") -> str:
    return domain(f"<launchSecurity type='{kind}'{attributes}>{inside}</launchSecurity>")


COMPLETED = [
    domain(SNP),
    launch("sev"),
    launch("sev", "<policy>5</policy><cbitpos>51</cbitpos>"),
    launch("tdx", ""),
    launch("sev-snp", "<policy>30000</policy>"),
    domain(SNP, EFI.replace("</os>", "<nvram template='/x/OVMF_VARS.fd'/></os>")),
    f"<domstatus state='running'>{domain(SNP)}</domstatus>",
    f"<domainsnapshot><name>s</name>{domain(SNP)}</domainsnapshot>",
    "<?xml version='1.0'?>\n<!-- made by a tool -->\n" + domain(SNP),
]


@pytest.mark.parametrize("text", COMPLETED)
def test_what_libvirt_completes_is_no_error(text: str) -> None:
    assert errors(text) == set()


def test_text_of_powershell_is_read() -> None:
    assert errors(domain(launch("snp")).encode("utf-16")) == {"libvirt-unknown"}


REFUSED_BY_LIBVIRT = [
    *(launch(kind) for kind in ("SEV", "snp", "sevsnp", "sev_snp", "sev-guest", "tdx-guest", "td", "")),
    launch("sev", ""),
    launch("sev", "<policy>yes</policy>"),
    launch("sev", "<policy>0x5 </policy>"),
    launch("sev", "<policy>0x100000005</policy>"),
    launch("sev", "<policy>5</policy><cbitpos>0x33</cbitpos>"),
    launch("sev", "<policy>5</policy><cbitPos>51</cbitPos>"),
    launch("sev", attributes=" kernelHashes='true'"),
    launch("sev", attributes=" kernelhashes='yes'"),
    launch("sev-snp", "<policy>0x30000</policy>", " vcek='off'"),
    domain("", EFI.replace("'efi'", "'uefi'")),
    domain("", EFI.replace("</os>", "<firmware><feature name='secureboot' enabled='yes'/></firmware></os>")),
    domain("", flash().replace("'pflash'", "'flash'")),
    domain("", flash().replace("'yes'", "'true'")),
    domain("<features><smm state='yes'/></features>"),
    domain("", "<os><type>hvm</type><nvram>/n.fd</nvram></os>"),
]
IGNORED_BY_LIBVIRT = [
    domain(SNP.replace("launchSecurity", "launchsecurity")),
    domain(f"<devices>{SNP}</devices>"),
    domain("", EFI.replace("</os>", f"{SNP}</os>")),
    launch("sev").replace("</domain>", f"{SNP}</domain>"),
    domain(arguments("-S"), more=" xmlns:qemu='http://libvirt.org/schemas/domain/qemu/2.0'"),
    domain(SNP, EFI.replace("'efi'", "'bios'")),
]


@pytest.mark.parametrize("text", [*REFUSED_BY_LIBVIRT, *IGNORED_BY_LIBVIRT])
def test_what_libvirt_refuses_or_ignores_is_an_error(text: str) -> None:
    assert "libvirt-unknown" in errors(text)


OBJECT = "sev-snp-guest,id=s,policy=0x5,cbitpos=51,reduced-phys-bits=1"
JSON_OBJECT = '{"qom-type":"sev-snp-guest","id":"s","policy":5,"cbitpos":51,"reduced-phys-bits":1}'.replace(
    '"', "&quot;"
)
USES = ("-machine", "confidential-guest-support=s")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (arguments("-object", OBJECT, *USES), "snp-policy"),
        (arguments("-object", JSON_OBJECT, *USES), "snp-policy"),
        (arguments("-object", OBJECT, *USES, prefix="q"), "pflash-with-snp"),
        (arguments("-object", "tdx-guest,id=s", *USES), "pflash-with-tdx"),
        (arguments("-object", "sev-guest,id=s,policy=0x30000", *USES), "sev-policy"),
        ("<qemu:commandline><qemu:arg/></qemu:commandline>", "libvirt-unknown"),
    ],
)
def test_arguments_for_qemu_in_a_domain_are_read(text: str, rule: str) -> None:
    prefix = "q" if "<q:" in text else "qemu"
    assert rule in errors(domain(text, flash(), more=f" xmlns:{prefix}='{QEMU_NAMESPACE}'"))


@pytest.mark.parametrize(
    "nvram",
    [
        "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>new.fd</nvram>",
        "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'/>",
        "<nvram type='file' template='/usr/share/OVMF/OVMF_VARS.fd'><source file='/n.fd'/></nvram>",
        "<nvram template='/usr/share/edk2/ovmf/OVMF_VARS.fd' templateFormat='raw' format='qcow2'>/n.qcow2</nvram>",
        "<nvram template='/usr/share/qemu/ovmf-x86_64-vars.bin'>\n n.fd\n</nvram>",
    ],
)
def test_template_of_another_build_is_an_error(nvram: str) -> None:
    assert errors(domain("", flash(nvram))) == {"flash-pair"}
    assert errors(domain("", flash(nvram.replace("VARS.fd", "VARS_4M.fd").replace("64-v", "64-4m-v")))) == (
        set()
    )


QEMU = "qemu-system-x86_64 -accel kvm -cpu EPYC-v4"
MACHINE = "-machine q35,confidential-guest-support=s -bios OVMF.fd"
LINE = f"{QEMU} {MACHINE} -object {OBJECT}"
EXPANDED = {
    "a default": f"P=${{POLICY:-0x5}}\n{QEMU} {MACHINE} -object {OBJECT.replace('0x5', '$P')}\n",
    "an array": f'A=(-object "{OBJECT}")\nA+=({MACHINE})\n{QEMU} "${{A[@]}}"\n',
    "a text that grows": f'A="-object {OBJECT}"\nA="$A {MACHINE}"\n{QEMU} $A\n',
    "a text that may grow": f'A="{MACHINE} -object {OBJECT}"\nif test -e x; then A="$A -S"; fi\n{QEMU} $A\n',
    "an exported variable": f'export S={OBJECT}\n{QEMU} {MACHINE} -object "$S"\n',
    "a local variable": f"f() {{\n  local s={OBJECT}\n  {QEMU} {MACHINE} -object $s\n}}\nf\n",
    "parameters": f'set -- {MACHINE}\nset -- "$@" -object {OBJECT}\n{QEMU} "$@"\n',
    "the whole command": f'C="{LINE}"\nexec $C\n',
    "a shell": f'bash -c "{LINE}"\n',
    "a shell below sudo": f"sudo -u qemu sh -c '{LINE}'\n",
    "another host": f"ssh -t host '{LINE}'\n",
    "a terminal": f"tmux new-session -d '{LINE}'\n",
    "eval": f'eval "{LINE}"\n',
    "runners": f"sudo numactl -m 0 systemd-run --scope {LINE}\n",
    "a container": f"docker run --device /dev/kvm image {LINE}\n",
    "a makefile": f"run: disk\n\t@{LINE}\n",
    "Markdown": f"# Guest\n\nStart it so:\n\n```sh\n{LINE}\n```\n",
    "a prompt": f"root@host:~# {LINE}\n",
    "ps": f"root  4711  1.0  2.0 1 1 ?  Sl 12:00 0:01 /usr/bin/{LINE}\nroot 4712 0 0 1 1 ? S 12:00 0:00 grep qemu\n",
    "systemctl": f"  CGroup: /machine.slice/x\n     └─4711 /usr/bin/{LINE}\n",
    "a unit": f"[Service]\nEnvironment=S={OBJECT}\nExecStart=/usr/bin/{QEMU} {MACHINE} -object ${{S}}\n",
    "a unit with several variables": f'[Service]\nEnvironment=A=1 "S={OBJECT}"\nEnvironment="B=-S"\n'
    f"ExecStart=/usr/bin/{QEMU} {MACHINE} -object $S $B\n",
    "a unit with a shell": f"[Unit]\n[Service]\nExecStart=/bin/sh -c 'exec {LINE}'\n",
    "PowerShell": f"& qemu-system-x86_64.exe -accel kvm `\n  {MACHINE} `\n  -object {OBJECT}\n",
    "cmd.exe": f'"C:\\qemu\\qemu-system-x86_64.exe" -accel kvm ^\r\n {MACHINE} ^\r\n -object {OBJECT}\r\n',
}


@pytest.mark.parametrize("text", EXPANDED.values(), ids=EXPANDED)
def test_policy_is_found_wherever_the_command_line_stands(text: str) -> None:
    assert errors(text) == {"snp-policy"}


UNKNOWN = {
    "program": f"$PROGRAM -enable-kvm {MACHINE} $OBJECT\n",
    "object": f"{QEMU} {MACHINE} -object $OBJECT\n",
    "objects": f'{QEMU} {MACHINE} "$@"\n',
    "machine": f"{QEMU} -machine $BOARD -bios x -object {OBJECT.replace('policy=0x5,', '')}\n",
    "name of the object": f"{QEMU} -machine q35,confidential-guest-support=$ID -bios x\n",
    "policy": f"{QEMU} {MACHINE} -object {OBJECT.replace('0x5', '${POLICY:?}')}\n",
    "numbers": f"{QEMU} {MACHINE} -object sev-guest,id=s,cbitpos=$C,reduced-phys-bits=$R,policy=5\n",
    "more of the object": f'{QEMU} {MACHINE} -object "sev-guest,id=s,$MORE"\n',
    "type of the object": f"{QEMU} {MACHINE} -object $TYPE,id=s\n",
    "flash": f"{QEMU} -machine q35 $CODE -drive if=pflash,unit=1,format=raw,file=$VARS\n",
    "firmware": f"{QEMU} -machine q35,firmware=$(ls OVMF*.fd | head -1)\n",
    "variable of cmd.exe": f"{QEMU} {MACHINE} -object %OBJECT%\n",
    "condition": f"O=-S\ncase $1 in snp) O='-object {OBJECT}';; esac\n{QEMU} {MACHINE} $O\n",
    "makefile": f"run:\n\tqemu-system-x86_64 -bios $(FW) -object $(OBJECT) {MACHINE} -enable-kvm\n",
}


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_unknown_is_a_note_and_no_error(text: str) -> None:
    (command,) = read_commands(text.encode(), "input")
    found = lint(command, HostFacts.of_era(), lambda _: None)[0]
    assert "value-unknown" in {one.id for one in found}
    assert [one for one in found if one.severity is Severity.ERROR] == []


OTHERS = {
    "a unit of another hypervisor": domain("", kind="xen"),
    "a container of libvirt's": domain("", kind="lxc"),
    "a domain for another processor": domain("", EFI.replace("x86_64", "aarch64")),
    "VirtualBox": "<VirtualBox xmlns='http://www.virtualbox.org/'/>",
    "capabilities": "<domainCapabilities><path>/usr/bin/qemu</path></domainCapabilities>",
    "Firecracker": "firecracker --api-sock /run/x --config-file vm.json\n",
    "crosvm": "crosvm run --bios OVMF.fd disk.img\n",
    "StratoVirt": "stratovirt -machine q35 -kernel x -append y\n",
    "Xen": "xl create guest.cfg\n",
    "Proxmox": "bios: ovmf\ncores: 2\nefidisk0: local:vm-100-disk-0,efitype=4m\nmachine: q35\n",
    "kubevirt": "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nspec:\n  template:\n    spec:\n      domain: {}\n",
    "JSON": '{"boot-source": {"kernel_image_path": "x"}}',
    "TOML": '[hypervisor.qemu]\npath = "/usr/bin/qemu-system-x86_64"\nfirmware = "/x/OVMF.fd"\n',
    "VMware": 'firmware = "efi"\nsev.enable = "TRUE"\n',
    "a configuration of QEMU's": '[machine]\n  type = "q35"\n[drive "pflash0"]\n  file = "x"\n',
    "Nix": '{ virtualisation.qemu.options = [ "-bios ${pkgs.OVMF.fd}/FV/OVMF.fd" ]; }\n',
    "a list of words": f'["{QEMU}", "-bios", "OVMF.fd"]\n',
    "Python": 'import subprocess\nsubprocess.run(["qemu-system-x86_64", "-accel", "kvm", "-bios", "x"])\n',
    "prose": "To start it, run qemu-system-x86_64 with -enable-kvm and firmware.\n",
    "a usage message": 'echo "usage: qemu-system-x86_64 -bios OVMF.fd"\n',
    "a comment": "# qemu-system-x86_64 -bios OVMF.fd\n",
    "a helper of QEMU's": "qemu-storage-daemon --blockdev driver=file,node-name=f,filename=x\n",
    "user mode": "qemu-x86_64 -cpu max ./program\n",
    "another processor": "qemu-system-aarch64 -M virt -bios x\n",
    "words that are written to a file": 'add_opts() { echo -n "$* " >> "$LINE"; }\nadd_opts qemu-system-x86_64\n'
    'add_opts "-object sev-snp-guest,policy=0x5"\nbash $LINE\n',
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_what_nobody_looked_at_does_not_pass(text: str) -> None:
    with pytest.raises(SpecError):
        read_commands(text.encode(), "input")


def test_c_bit_of_the_modelled_kernel_is_known() -> None:
    assert MODELLED_C_BIT == C_BIT


@pytest.mark.parametrize(("position", "is_wrong"), [(51, False), (47, True), (39, True), (0, True)])
def test_c_bit_is_compared_with_that_of_the_host_where_it_is_asked(position: int, is_wrong: bool) -> None:
    known = HostFacts.of_era()
    host = HostFacts("this host", known.vm_types, known.readonly, c_bit=51)
    text = f"{LINE.replace('policy=0x5', 'policy=0x30000').replace('=51', f'={position}')}\n"
    (command,) = read_commands(text.encode(), "input")
    found = {one.id for one in lint(command, host, lambda _: None)[0]}
    assert ("cbitpos-impossible" in found) is is_wrong
    assert "cbitpos-value" not in found
