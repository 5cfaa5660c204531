"""libvirt's domain XML as QEMU's options, as far as firmware and confidentiality go (libvirt docs/formatdomain)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from casemate.errors import SpecError
from casemate.qemu.releases import nearest
from casemate.qemu.shell import Word

_LAUNCHES = {"sev": "sev-guest", "sev-snp": "sev-snp-guest", "tdx": "tdx-guest", "s390-pv": ""}
_NUMBERS = {"cbitpos": "cbitpos", "reducedPhysBits": "reduced-phys-bits", "policy": "policy"}
_TEXTS = {
    "sev": {"dhCert": "dh-cert-file", "session": "session-file"},
    "sev-snp": {
        "guestVisibleWorkarounds": "guest-visible-workarounds",
        "idBlock": "id-block",
        "idAuth": "id-auth",
        "hostData": "host-data",
    },
    "tdx": {"mrConfigId": "mrconfigid", "mrOwner": "mrowner", "mrOwnerConfig": "mrownerconfig"},
    "s390-pv": {},
}
_SWITCHES = {
    "sev": {"kernelHashes": "kernel-hashes"},
    "sev-snp": {
        "kernelHashes": "kernel-hashes",
        "authorKey": "author-key-enabled",
        "vcek": "vcek-disabled",
    },
    "tdx": {},
    "s390-pv": {},
}
_OTHER_CHILDREN = {"tdx": {"policy", "quoteGenerationService"}}
_LONGEST_POLICY = {"sev": 32}
"""Bits, where it is not 64."""
_YES = ("yes", "no")
_VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "os": {"firmware": ("efi", "bios")},
    "os/loader": {"type": ("pflash", "rom"), "readonly": _YES, "secure": _YES, "format": ("raw", "qcow2")},
    "os/nvram": {"format": ("raw", "qcow2"), "templateFormat": ("raw", "qcow2")},
    "features/smm": {"state": ("on", "off")},
    "launchSecurity": {"kernelHashes": _YES, "authorKey": _YES, "vcek": _YES},
}
"""What attributes may say, by the path of their element."""
_FEATURES = ("secure-boot", "enrolled-keys")
_QEMU_TYPES = ("", "kvm", "qemu", "hvf", "test")
_X86 = ("", "x86_64", "i686", "i386", "amd64")
_AROUND = ("domstatus", "domainsnapshot", "domaincheckpoint", "domainbackup")
"""Documents of libvirt's that have a domain in them."""
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_MADE_BY_LIBVIRT = "/var/lib/libvirt/qemu/nvram"
_MOST_ELEMENTS = 100_000
_REMEDY = "give what virsh dumpxml prints"


@dataclass(slots=True)
class Element:
    """One element and where it begins."""

    tag: str
    attributes: dict[str, str]
    line: int
    column: int
    children: list[Element] = field(default_factory=list)
    text: str = ""
    raw: str = ""
    """The text with the white space around it."""

    def find(self, path: str) -> Element | None:
        """The first element below, by a path like ``os/loader``."""
        element: Element | None = self
        for tag in path.split("/"):
            element = (
                next((child for child in element.children if child.tag == tag), None) if element else None
            )
        return element

    def get(self, name: str, default: str = "") -> str:
        """An attribute."""
        return self.attributes.get(name, default)

    def word(self, text: str) -> Word:
        """Text that stands for this element."""
        return Word(text, self.line, self.column, False)

    def below(self) -> Iterator[Element]:
        """Every element in this one."""
        stack = [self]
        while stack:
            element = stack.pop()
            yield from element.children
            stack += element.children


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that libvirt refuses: where, why, and what to do."""

    word: Word
    cause: str
    remedy: str


@dataclass(slots=True)
class Domain:
    """What a domain says beside QEMU's words."""

    is_libvirt: bool = False
    """Whether libvirt completes the words from its host's capabilities."""
    templates: dict[str, str] = field(default_factory=dict)
    """By path of a variable store: what it is copied from if it is not there."""
    contents: dict[str, str] = field(default_factory=dict)
    """By QEMU's property: base64 that stands in the XML, for which QEMU gets a file."""
    problems: list[Problem] = field(default_factory=list)
    unexamined: list[Word] = field(default_factory=list)
    """What is there, and no rule looks at."""
    chooses_firmware: Word | None = None
    """Where ``<os firmware='efi'>`` stands, if libvirt picks the loader by descriptors."""
    features: dict[str, bool] = field(default_factory=dict)
    """Firmware features that the domain asks for or rules out."""


def read_domain(text: str) -> tuple[Domain, list[Word]]:
    """The domain, and the QEMU options that libvirt would make of it. Raises SpecError if this is no domain XML."""
    document = _parse(text)
    root = document.find("domain") if document.tag in _AROUND else document
    if root is None or root.tag != "domain":
        tag = document.tag.rpartition(" ")[2]
        raise SpecError(f"the XML begins with <{tag[:40]}>, and holds no <domain>", _REMEDY)
    kind = root.find("os/type")
    if root.get("type") not in _QEMU_TYPES:
        raise SpecError(f"this is a domain of type {root.get('type')[:40]!r}, which is not QEMU's", _REMEDY)
    if kind and kind.get("arch") not in _X86:
        raise SpecError(f"{kind.get('arch')[:40]} is no x86 machine, and the rules are about those", _REMEDY)
    domain = Domain(is_libvirt=True)
    _check_values(root, domain)
    return domain, [word for pair in _pairs(root, domain) for word in pair if word.text]


def words_of_domain(text: str) -> list[str]:
    """QEMU options that libvirt would give for a domain. Raises SpecError if this is no domain XML."""
    return [word.text for word in read_domain(text)[1]]


def _parse(text: str) -> Element:
    parser = expat.ParserCreate(namespace_separator=" ")
    root = Element("", {}, 0, 0)
    stack = [root]
    count = 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > _MOST_ELEMENTS:
            raise SpecError(f"this is no domain XML: over {_MOST_ELEMENTS} elements", _REMEDY)
        element = Element(
            name.replace(f"{_QEMU_NAMESPACE} ", "qemu:"),
            attributes,
            parser.CurrentLineNumber,
            parser.CurrentColumnNumber + 1,
        )
        stack[-1].children.append(element)
        stack.append(element)

    pieces: dict[int, list[str]] = {}

    def characters(data: str) -> None:
        pieces.setdefault(id(stack[-1]), []).append(data)

    def end(_: str) -> None:
        element = stack.pop()
        element.raw = "".join(pieces.pop(id(element), ()))
        element.text = element.raw.strip()

    def refuse(*_: object) -> None:
        raise SpecError("this is no domain XML: a document type", _REMEDY)

    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        raise SpecError(f"this is no domain XML: {error}", _REMEDY) from None
    return root.children[0]


def _pairs(root: Element, domain: Domain) -> Iterator[tuple[Word, ...]]:
    if root.get("type") == "kvm":
        yield Word("-accel"), root.word("kvm")
    yield from _firmware(root, domain)
    kind = root.find("os/type")
    machine = kind.get("machine", "pc") if kind else "pc"
    smm = root.find("features/smm")
    if smm:
        machine += f",smm={smm.get('state', 'on')}"
    launch = root.find("launchSecurity")
    if launch:
        words = _launch(launch, domain)
        if words:
            machine += ",confidential-guest-support=lsec0"
            yield Word("-object"), launch.word(words)
    yield Word("-machine"), (kind or root).word(machine)
    cpu = root.find("cpu")
    if cpu:
        model = cpu.find("model")
        is_host = cpu.get("mode", "custom").startswith(("host-passthrough", "maximum"))
        yield Word("-cpu"), cpu.word("host" if is_host or model is None else model.text or "host")
    vcpus = root.find("vcpu")
    if vcpus and vcpus.text:
        yield Word("-smp"), vcpus.word(vcpus.text)
    for tag, option in (("kernel", "-kernel"), ("initrd", "-initrd"), ("cmdline", "-append")):
        element = root.find(f"os/{tag}")
        if element:
            yield Word(option), element.word(element.text)
    line = root.find("qemu:commandline")
    for argument in line.children if line else ():
        if argument.tag == "qemu:arg":
            yield (argument.word(argument.get("value")),)
            if not argument.get("value"):
                domain.problems.append(Problem(argument.word("<qemu:arg>"), "it has no value", "give one"))


def _firmware(root: Element, domain: Domain) -> Iterator[tuple[Word, Word]]:
    system = root.find("os")
    loader, nvram, store = root.find("os/loader"), root.find("os/nvram"), root.find("os/varstore")
    if system and system.get("firmware") == "efi":
        _features(root, domain)
        if loader and loader.get("secure"):
            domain.features.setdefault("secure-boot", loader.get("secure") == "yes")
        if loader is None or not loader.text:
            domain.chooses_firmware = system.word("firmware='efi'")
    if loader and loader.text:
        path = loader.text.replace(",", ",,")
        if loader.get("type") == "pflash":
            readonly = "on" if loader.get("readonly") == "yes" else "off"
            kind = loader.get("format", "raw")
            words = f"if=pflash,unit=0,format={kind},readonly={readonly},file={path}"
            yield Word("-drive"), loader.word(words)
        else:
            yield Word("-bios"), loader.word(loader.text)
        if loader.get("secure") == "yes":
            yield Word("-global"), loader.word("driver=cfi.pflash01,property=secure,value=on")
    if nvram and domain.chooses_firmware is None:
        yield from _nvram(nvram, root, domain)
    if store:
        path = (store.get("path") or store.text).replace(",", ",,")
        yield Word("-device"), store.word(f"uefi-vars-x64,jsonfile={path or 'made-by-libvirt.json'}")


def _features(root: Element, domain: Domain) -> None:
    asked = root.find("os/firmware")
    for child in asked.children if asked else ():
        name = child.get("name")
        domain.features[name] = child.get("enabled") == "yes"
        if name not in _FEATURES:
            cause = f"there is no firmware feature {name[:40]!r}: libvirt refuses it"
            problem = Problem(child.word(f"<{child.tag}>"), cause, f"correct it{nearest(name, _FEATURES)}")
            domain.problems.append(problem)


def _nvram(nvram: Element, root: Element, domain: Domain) -> Iterator[tuple[Word, Word]]:
    source, template = nvram.find("source"), nvram.get("template")
    path = nvram.text or (source.get("file") if source else "")
    if template:
        name = root.find("name")
        path = path or f"{_MADE_BY_LIBVIRT}/{name.text if name else ''}_VARS.fd"
        domain.templates[path] = template
    if path and root.find("os/loader") is None:
        cause = "nvram without a loader: libvirt refuses it where it shall not pick the firmware"
        domain.problems.append(Problem(nvram.word("<nvram>"), cause, "add <loader>, or firmware='efi'"))
    elif path:
        path = path.replace(",", ",,")
        words = f"if=pflash,unit=1,format={nvram.get('format', 'raw')},file={path}"
        yield Word("-drive"), nvram.word(words)


def _launch(launch: Element, domain: Domain) -> str:
    kind = launch.get("type")
    if kind not in _LAUNCHES:
        cause = f"launchSecurity type {kind[:40]!r} does not exist"
        remedy = f"use one of {', '.join(_LAUNCHES)}{nearest(kind, _LAUNCHES)}"
        if kind.lower().replace("_", "-") in ("sev-es", "seves"):
            remedy = "use type='sev'; bit 2 of the policy, as in 0x5, makes it SEV-ES"
        domain.problems.append(Problem(launch.word(f"launchSecurity type='{kind}'"), cause, remedy))
        return ""
    if not _LAUNCHES[kind]:
        return ""
    words = [_LAUNCHES[kind], "id=lsec0"]
    numbers = {} if kind == "tdx" else _NUMBERS
    texts, switches = _TEXTS[kind], _SWITCHES[kind]
    _check_names(launch, domain, {*numbers, *texts, *_OTHER_CHILDREN.get(kind, ())}, {"type", *switches})
    if launch.find("policy") is None and kind != "tdx":
        cause = f"launchSecurity of type {kind} has no policy: libvirt refuses it"
        domain.problems.append(Problem(launch.word("launchSecurity"), cause, "add <policy>"))
    for child in launch.children:
        value = child.text.replace(",", ",,")
        if child.tag == "policy" or child.tag in numbers:
            number = _number(child, domain, _LONGEST_POLICY.get(kind, 64))
            words.append(f"{numbers.get(child.tag, 'attributes')}={number}" if number else "")
        elif child.tag in ("dhCert", "session") and child.tag in texts:
            domain.contents[texts[child.tag]] = child.text
            words.append(f"{texts[child.tag]}={child.tag}")
        elif child.tag in texts:
            words.append(f"{texts[child.tag]}={value}")
    for attribute, name in switches.items():
        if launch.get(attribute):
            # libvirt says vcek='no' where QEMU says vcek-disabled=on.
            is_on = launch.get(attribute) == ("no" if attribute == "vcek" else "yes")
            words.append(f"{name}={'on' if is_on else 'off'}")
    return ",".join(filter(None, words))


def _number(element: Element, domain: Domain, bits: int) -> str:
    """A number as QEMU gets it; empty, and a problem, if libvirt does not take it: policies are in hex, others not."""
    is_policy = element.tag == "policy"
    pattern = r"\s*[+]?(?:0[xX])?[0-9a-fA-F]{1,40}" if is_policy else r"\s*[+]?[0-9]{1,9}"
    if re.fullmatch(pattern, element.raw, re.ASCII):
        number = int(element.raw, 16 if is_policy else 10)
        if number < 1 << bits:
            return f"{number:#x}" if is_policy else str(number)
    form = f"hex of {bits} bits" if is_policy else "a decimal number"
    cause = f"<{element.tag}> is {element.raw[:40]!r}, not {form}: libvirt refuses it"
    domain.problems.append(Problem(element.word(f"<{element.tag}>"), cause, f"give {form}"))
    return ""


def _check_values(root: Element, domain: Domain) -> None:
    """What libvirt refuses for what an attribute says, and what it ignores for where it stands."""
    for path, attributes in _VALUES.items():
        element = root.find(path)
        for name, values in attributes.items():
            given = element.get(name, values[0]) if element else values[0]
            if element and given not in values:
                cause = f"<{element.tag} {name}={given[:40]!r}>: libvirt takes {', '.join(values)}"
                problem = Problem(
                    element.word(f"{name}='{given}'"), cause, f"correct it{nearest(given, values)}"
                )
                domain.problems.append(problem)
    taken = root.find("launchSecurity")
    for element in root.below():
        tag = element.tag.rpartition(" ")[2]
        if tag.lower() == "launchsecurity" and element is not taken:
            cause = f"libvirt ignores this <{tag[:40]}>: the guest is not protected by it"
            remedy = "write one <launchSecurity>, in <domain> itself"
            domain.problems.append(Problem(element.word(f"<{tag}>"), cause, remedy))
        elif tag in ("commandline", "arg") and tag != element.tag:
            cause = f"libvirt ignores <{tag}> of another namespace than QEMU's"
            remedy = f"declare xmlns:qemu='{_QEMU_NAMESPACE}'"
            domain.problems.append(Problem(element.word(f"<{tag}>"), cause, remedy))
    system, override = root.find("os"), root.find("qemu:override")
    if taken and system and system.get("firmware") == "bios":
        cause = "firmware='bios' picks SeaBIOS, which starts no confidential guest"
        domain.problems.append(Problem(system.word("firmware='bios'"), cause, "say firmware='efi'"))
    if override:
        domain.unexamined.append(override.word("<qemu:override>"))


def _check_names(launch: Element, domain: Domain, children: set[str], attributes: set[str]) -> None:
    for child in launch.children:
        if child.tag not in children:
            cause = f"launchSecurity of type {launch.get('type')} has no element <{child.tag[:40]}>"
            remedy = f"remove it{nearest(child.tag, children)}"
            domain.problems.append(Problem(child.word(f"<{child.tag}>"), cause, remedy))
    for name in launch.attributes:
        if name not in attributes:
            cause = f"launchSecurity of type {launch.get('type')} has no attribute {name[:40]!r}"
            remedy = f"remove it{nearest(name, attributes)}"
            domain.problems.append(Problem(launch.word(name), cause, remedy))
