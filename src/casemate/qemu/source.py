"""Reads a guest from whatever people have: script, process, journal, unit, domain XML (proc(5), systemd.service(5)).

What is neither a QEMU command line nor a domain is refused by what it looks like, for a check that looked at nothing
must not pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from casemate.errors import SpecError
from casemate.qemu.domain_xml import Domain, read_domain
from casemate.qemu.shell import LONGEST_TEXT, Word, words_of_script

_PROGRAM = re.compile(r"(?:qemu-system-(?:x86_64|i386|amd64)|qemu-kvm|qemu-amd64|kvm|qemu)(?:[.-][\w.+-]*)?")
_OTHER_TARGET = re.compile(r"qemu-system-(?!x86_64|i386|amd64)[a-z0-9]+")
_OTHERS = {
    "cloud-hypervisor": "Cloud Hypervisor",
    "ch-remote": "Cloud Hypervisor",
    "firecracker": "Firecracker",
    "jailer": "Firecracker",
    "crosvm": "crosvm",
    "lkvm": "kvmtool",
    "vm": "kvmtool",
    "kvmtool": "kvmtool",
    "virt-install": "virt-install; give what virsh dumpxml prints of the guest it made",
    "virt-xml": "virt-xml; give what virsh dumpxml prints",
    "virsh": "virsh; give what virsh dumpxml prints",
    "systemd-vmspawn": "systemd-vmspawn",
    "vmspawn": "systemd-vmspawn",
    "qemu-img": "qemu-img",
    "qemu-nbd": "qemu-nbd",
    "qm": "Proxmox's qm; give what qm showcmd prints",
    "multipass": "Multipass",
    "quickemu": "quickemu; give the .sh file that it writes",
    "bhyve": "bhyve",
    "propolis-server": "Propolis",
    "openvmm": "OpenVMM",
    "krunvm": "libkrun",
    "VBoxManage": "VirtualBox",
    "casemate": "casemate's own",
}
_TYPICAL = frozenset((
    "-machine", "-M", "-drive", "-blockdev", "-object", "-bios", "-pflash", "-accel", "-enable-kvm", "-cpu", "-smp",
    "-m", "-kernel", "-device", "-nographic", "-netdev", "-hda", "-cdrom", "-display", "-nodefaults",
))  # fmt: skip
_RUNNERS = frozenset(
    {"sudo", "env", "exec", "nohup", "setsid", "time", "nice", "ionice", "taskset", "numactl", "doas"}
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_RESEMBLES = re.compile(r"[\w.+-]*(?:qemu|kvm)[\w.+-]*", re.IGNORECASE)
_YAML = re.compile(r"^\s*(?:- )?[\w./-]+:(?:\s|$)")
_UNIT = re.compile(r"^\[(?:Unit|Service)\]\s*$", re.MULTILINE)
_EXEC = re.compile(r"^ExecStart[ \t]*=[ \t]*[-@:+!|]*((?:[^\n\\]|\\[^\n]|\\\n)*)", re.MULTILINE)
_ENVIRONMENT = re.compile(r"^Environment[ \t]*=[ \t]*\"?([A-Za-z_]\w*)=([^\"\n]*)", re.MULTILINE)
_SPECIFIER = re.compile(r"%[A-Za-z]")
_REMEDY = "give a QEMU command line, a script with one, or what virsh dumpxml prints"


@dataclass(frozen=True, slots=True)
class Command:
    """One guest that is asked for: the words of QEMU's command line, or those that libvirt would make of a domain."""

    words: tuple[Word, ...]
    what: str = "QEMU command line"
    domain: Domain = field(default_factory=Domain)
    """What a domain XML says beside QEMU's words; empty for a command line."""


def command_of_words(words: Sequence[str], what: str = "QEMU command line") -> Command:
    """A command line that is at hand as words. Raises SpecError if it is not QEMU's."""
    return Command(tuple(_of_qemu([Word(word) for word in words])), what)


def read_commands(data: bytes, name: str) -> list[Command]:
    """Every guest in a file called ``name``. Raises SpecError if it holds none, saying what it looks like."""
    try:
        if len(data) > LONGEST_TEXT:
            raise SpecError(f"over {LONGEST_TEXT} bytes are no command line and no domain", _REMEDY)
        return _read(data)
    except SpecError as error:
        raise SpecError(f"{name}: {error.cause}", error.remedy) from None


def _read(data: bytes) -> list[Command]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise SpecError("cannot be read: it is no text", _REMEDY) from None
    if "\0" in text:
        return [_process(text)]
    head = text.lstrip("\ufeff \t\r\n")
    if not head:
        raise SpecError("no command line: nothing is in it", _REMEDY)
    if head.startswith("<"):
        domain, words = read_domain(text)
        return [Command(tuple(words), "domain XML", domain)]
    if _UNIT.search(text):
        return _of_script(text, "systemd unit", _exec_starts(text))
    what = "libvirt log" if "starting up libvirt version" in text else "shell script"
    return _of_script(text, what, words_of_script(text))


def _process(text: str) -> Command:
    """``/proc/PID/cmdline``."""
    words, column = [], 1
    for part in text.removesuffix("\0").split("\0"):
        words.append(Word(part, 1, column))
        column += len(part) + 1
    return Command(tuple(_of_qemu(words)), "arguments of a process")


def _exec_starts(text: str) -> Iterator[list[Word]]:
    variables = dict(_ENVIRONMENT.findall(text))
    for match in _EXEC.finditer(text):
        for words in words_of_script(text, match.start(1), match.end(1), variables):
            yield [
                word._replace(unknown=(*word.unknown, *_SPECIFIER.findall(word.text)), is_plain=word.is_plain)
                for word in words
            ]


def _of_script(text: str, what: str, commands: Iterator[list[Word]]) -> list[Command]:
    found, refused = [], None
    for words in commands:
        try:
            found.append(Command(tuple(_of_qemu(words)), what))
        except SpecError as error:
            # The last one says most: scripts begin with mkdir and cp.
            refused = error
    if found:
        return found
    raise _refusal(text) or refused or SpecError("no command line: nothing is in it", _REMEDY)


def _refusal(text: str) -> SpecError | None:
    """What documents that are no scripts look like."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if text.lstrip().startswith(("{", "[")):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return SpecError("this looks like JSON, not like a QEMU command line or a domain", _REMEDY)
    if lines and sum(bool(_YAML.match(line)) for line in lines) * 2 > len(lines):
        return SpecError("this looks like YAML, not like a QEMU command line or a domain", _REMEDY)
    return None


def _of_qemu(words: list[Word]) -> list[Word]:
    """The words from QEMU's name on; Raises SpecError if they do not start QEMU."""
    if not words:
        raise SpecError("no command line: nothing is in it", _REMEDY)
    if words[0].text.startswith("-") and _looks_like_options(words):
        return words
    for index, word in enumerate(words):
        name = PurePath(word.text).name
        if (
            name in _OTHERS
            and (index == 0 or not word.text.startswith("-"))
            and not _starts_qemu(words[index:])
        ):
            raise SpecError(
                f"this looks like a command line of {_OTHERS[name]}; lint knows QEMU's alone", _REMEDY
            )
        if _OTHER_TARGET.fullmatch(name) and index + 1 < len(words) and words[index + 1].text.startswith("-"):
            raise SpecError(f"{name} is no x86 machine, and the rules are about those", _REMEDY)
        is_value = index > 0 and words[index - 1].text.startswith("-") and not name.startswith("qemu-")
        if _starts_qemu(words[index:]) and not is_value:
            return words[index:]
    if _looks_like_options(words):
        return words
    shown = " ".join(word.text for word in words[:4])[:60]
    raise SpecError(f"{shown!r} does not start QEMU", _REMEDY)


def _starts_qemu(words: list[Word]) -> bool:
    program = PurePath(words[0].text).name
    if not _PROGRAM.fullmatch(program) or words[0].text.startswith("-"):
        return False
    following = words[1] if len(words) > 1 else None
    # "kvm" and "qemu" are words of prose and values of options, too.
    is_whole = program.startswith("qemu-") and following is None
    return is_whole or (following is not None and (following.text.startswith("-") or bool(following.unknown)))


def _looks_like_options(words: list[Word]) -> bool:
    """Options without a program, or behind one whose name only resembles QEMU's or is in a variable."""
    start = 0
    while start < len(words) and (words[start].text in _RUNNERS or _ASSIGNMENT.match(words[start].text)):
        start += 1
    if start < len(words) and not words[start].text.startswith("-"):
        name = PurePath(words[start].text).name
        if not words[start].unknown and not _RESEMBLES.fullmatch(name):
            return False
        start += 1
    names = {re.sub("^--", "-", word.text) for word in words[start:]}
    return bool(names & _TYPICAL)
