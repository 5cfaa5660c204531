"""libvirt's domain XML as QEMU's options, as far as firmware and confidentiality go (libvirt docs/formatdomain)."""

from __future__ import annotations

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
    chooses_firmware: Word | None = None
    """Where ``<os firmware='efi'>`` stands, if libvirt picks the loader by descriptors."""
    features: dict[str, bool] = field(default_factory=dict)
    """Firmware features that the domain asks for or rules out."""


def read_domain(text: str) -> tuple[Domain, list[Word]]:
    """The domain, and the QEMU options that libvirt would make of it. Raises SpecError if this is no domain XML."""
    root = _parse(text)
    if root.tag != "domain":
        raise SpecError(f"the XML begins with <{root.tag[:40]}>, not <domain>", _REMEDY)
    domain = Domain(is_libvirt=True)
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
            name.replace("http://libvirt.org/schemas/domain/qemu/1.0 ", "qemu:"),
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
        element.text = "".join(pieces.pop(id(element), ())).strip()

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


def _firmware(root: Element, domain: Domain) -> Iterator[tuple[Word, Word]]:
    system = root.find("os")
    loader, nvram, store = root.find("os/loader"), root.find("os/nvram"), root.find("os/varstore")
    if system and system.get("firmware") == "efi":
        feature = root.find("os/firmware")
        for child in feature.children if feature else ():
            domain.features[child.get("name")] = child.get("enabled") == "yes"
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
    if nvram and nvram.text and domain.chooses_firmware is None:
        path = nvram.text.replace(",", ",,")
        if nvram.get("template"):
            domain.templates[nvram.text] = nvram.get("template")
        yield Word("-drive"), nvram.word(f"if=pflash,unit=1,format={nvram.get('format', 'raw')},file={path}")
    if store:
        path = (store.get("path") or store.text).replace(",", ",,")
        yield Word("-device"), store.word(f"uefi-vars-x64,jsonfile={path or 'made-by-libvirt.json'}")


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
    for child in launch.children:
        value = child.text.replace(",", ",,")
        if child.tag in numbers:
            words.append(f"{numbers[child.tag]}={value}")
        elif child.tag in ("dhCert", "session") and child.tag in texts:
            domain.contents[texts[child.tag]] = child.text
            words.append(f"{texts[child.tag]}={child.tag}")
        elif child.tag in texts:
            words.append(f"{texts[child.tag]}={value}")
        elif child.tag == "policy":
            words.append(f"attributes={value}")
    for attribute, name in switches.items():
        if launch.get(attribute):
            # libvirt says vcek='no' where QEMU says vcek-disabled=on.
            is_on = launch.get(attribute) == ("no" if attribute == "vcek" else "yes")
            words.append(f"{name}={'on' if is_on else 'off'}")
    return ",".join(words)


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
