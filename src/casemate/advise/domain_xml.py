"""libvirt's domain XML as QEMU's options, as far as firmware and confidentiality go (libvirt docs/formatdomain)."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from casemate.errors import SpecError

_LAUNCHES = {"sev": "sev-guest", "sev-snp": "sev-snp-guest", "tdx": "tdx-guest"}


def words_of_domain(text: str) -> list[str]:
    """QEMU options that libvirt would give for a domain. Raises SpecError if this is no domain XML."""
    try:
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ElementTree.ParseError("a document type")
        domain = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise SpecError(f"this is no domain XML: {error}", "give what virsh dumpxml prints") from None
    if domain.tag != "domain":
        raise SpecError(f"the XML begins with <{domain.tag}>, not <domain>", "give what virsh dumpxml prints")
    return [word for pair in _pairs(domain) for word in pair if word]


def _pairs(domain: ElementTree.Element) -> Iterator[tuple[str, str]]:
    if domain.get("type") == "kvm":
        yield "-accel", "kvm"
    yield from _firmware(domain)
    machine = _path(domain, "os/type").get("machine", "pc")
    smm = domain.find("features/smm")
    if smm is not None:
        machine += f",smm={smm.get('state', 'on')}"
    launch = domain.find("launchSecurity")
    if launch is not None and launch.get("type") in _LAUNCHES:
        machine += ",confidential-guest-support=lsec0"
        yield "-object", _launch(launch)
    yield "-machine", machine
    cpu = domain.find("cpu")
    if cpu is not None:
        mode = cpu.get("mode", "custom")
        model = cpu.findtext("model", "").strip()
        yield "-cpu", "host" if mode.startswith("host-passthrough") else model or "host"
    vcpus = domain.findtext("vcpu", "").strip()
    if vcpus:
        yield "-smp", vcpus
    for tag, option in (("kernel", "-kernel"), ("initrd", "-initrd"), ("cmdline", "-append")):
        value = domain.findtext(f"os/{tag}")
        if value is not None:
            yield option, value.strip()


def _firmware(domain: ElementTree.Element) -> Iterator[tuple[str, str]]:
    loader, nvram = domain.find("os/loader"), domain.find("os/nvram")
    if loader is not None and (loader.text or "").strip():
        path = (loader.text or "").strip().replace(",", ",,")
        if loader.get("type") == "pflash":
            readonly = "on" if loader.get("readonly") == "yes" else "off"
            kind = loader.get("format", "raw")
            yield "-drive", f"if=pflash,unit=0,format={kind},readonly={readonly},file={path}"
        else:
            yield "-bios", path.replace(",,", ",")
        if loader.get("secure") == "yes":
            yield "-global", "driver=cfi.pflash01,property=secure,value=on"
    if nvram is not None and (nvram.text or "").strip():
        path = (nvram.text or "").strip().replace(",", ",,")
        yield "-drive", f"if=pflash,unit=1,format={nvram.get('format', 'raw')},file={path}"


def _launch(launch: ElementTree.Element) -> str:
    names = {"cbitpos": "cbitpos", "reducedPhysBits": "reduced-phys-bits", "policy": "policy"}
    names |= {"idBlock": "id-block", "idAuth": "id-auth", "hostData": "host-data"}
    words = [_LAUNCHES[launch.get("type", "")], "id=lsec0"]
    for tag, name in names.items():
        value = launch.findtext(tag)
        if value is not None:
            words.append(f"{name}={value.strip()}")
    for tag, name in (("dhCert", "dh-cert-file"), ("session", "session-file")):
        if launch.find(tag) is not None:
            words.append(f"{name}={tag}")
    if launch.get("kernelHashes") == "yes":
        words.append("kernel-hashes=on")
    return ",".join(words)


def _path(domain: ElementTree.Element, path: str) -> ElementTree.Element:
    found = domain.find(path)
    return ElementTree.Element("none") if found is None else found
