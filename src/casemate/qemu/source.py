"""Reads a guest from whatever people have: script, process, journal, unit, domain XML (proc(5), systemd.service(5)).

What is neither a QEMU command line nor a domain is refused by what it looks like, for a check that looked at nothing
must not pass.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from casemate.errors import SpecError
from casemate.qemu.domain_xml import Domain, read_domain
from casemate.qemu.shell import LONGEST_TEXT, Word, words_of_script

_PROGRAM = re.compile(r"(?:qemu-system-(?:x86_64|i386|amd64)|qemu-kvm|qemu-amd64|kvm|qemu)(?:[.-][\w.+-]*)?")
_OTHER_TOOL = re.compile(
    r"qemu-(?:img|nbd|io|ga|storage-daemon|pr-helper|bridge-helper|vhost-\w+|edid|keymap|vmsr-helper|trace-stap"
    r"|(?:x86_64|i386|aarch64|arm|riscv64|ppc64le|s390x)(?:-static)?)(?:\.exe)?"
)
"""QEMU's other programs, and those that run a program for another processor."""
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
    "qm": "Proxmox's qm; give what qm showcmd prints",
    "multipass": "Multipass",
    "quickemu": "quickemu; give the .sh file that it writes",
    "bhyve": "bhyve",
    "propolis-server": "Propolis",
    "openvmm": "OpenVMM",
    "krunvm": "libkrun",
    "stratovirt": "StratoVirt",
    "alioth": "Alioth",
    "dstack-vmm": "dstack",
    "xl": "Xen",
    "xm": "Xen",
    "incus": "Incus; give /proc/PID/cmdline of the guest",
    "lxc": "LXD; give /proc/PID/cmdline of the guest",
    "limactl": "Lima; give /proc/PID/cmdline of the guest",
    "podman": "Podman",
    "docker": "Docker",
    "kata-runtime": "Kata Containers",
    "vagrant": "Vagrant; give what virsh dumpxml prints",
    "vmrun": "VMware",
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
_SHELLS = frozenset({
    "sh", "bash", "dash", "ash", "ksh", "zsh", "eval", "su", "runuser", "ssh", "tmux", "screen", "xterm", "script",
    "watch", "flock", "nix-shell",
})  # fmt: skip
"""What runs a word as a command line of its own."""
_MOST_NESTED = 4
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_RESEMBLES = re.compile(r"[\w.+-]*(?:qemu|kvm)[\w.+-]*", re.IGNORECASE)
_YAML = re.compile(r"^\s*(?:- )?[\w./-]+:(?:\s|$)")
_UNIT = re.compile(r"^\[(?:Unit|Service)\]\s*$", re.MULTILINE)
_EXEC = re.compile(r"^ExecStart[ \t]*=[ \t]*[-@:+!|]*((?:[^\n\\]|\\[^\n]|\\\n)*)", re.MULTILINE)
_ENVIRONMENT = re.compile(r"^Environment[ \t]*=((?:[^\n\\]|\\[^\n]|\\\n)*)", re.MULTILINE)
_SPECIFIER = re.compile(r"%[A-Za-z]")
_BATCH_VARIABLE = re.compile(r"%[A-Za-z_]\w*%")
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""How texts begin that PowerShell wrote."""
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
        text = data.decode(_BOMS.get(data[:2], "utf-8") if len(data) > 2 else "utf-8")
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
    variables: dict[str, str] = {}
    for match in _ENVIRONMENT.finditer(text):
        try:
            words_set = shlex.split(match[1])
        except ValueError:  # a quote without an end
            continue
        for word in words_set:
            name, separator, value = word.partition("=")
            variables |= {name: value} if separator else {}
    for match in _EXEC.finditer(text):
        for words in words_of_script(text, match.start(1), match.end(1), variables):
            yield [
                word._replace(unknown=(*word.unknown, *_SPECIFIER.findall(word.text)), is_plain=word.is_plain)
                for word in words
            ]


def _of_script(text: str, what: str, commands: Iterator[list[Word]]) -> list[Command]:
    found, refused = [], None
    for words in _with_nested(commands, _MOST_NESTED):
        try:
            found.append(Command(tuple(_of_qemu(words)), what))
        except SpecError as error:
            # The last one says most: scripts begin with mkdir and cp.
            refused = error
    if found:
        return found
    raise _refusal(text) or refused or SpecError("no command line: nothing is in it", _REMEDY)


def _with_nested(commands: Iterable[list[Word]], depth: int) -> Iterator[list[Word]]:
    """The commands, each followed by those that it hands to a shell as one word, as in ``bash -c 'qemu-kvm ...'``."""
    for words in commands:
        yield [_with_batch_variables(word) for word in words]
        if depth and any(PurePath(word.text).name in _SHELLS for word in words[:-1]):
            for word in words[1:]:
                if " " in word.text.strip():
                    inner = words_of_script(word.text)
                    yield from _with_nested(
                        ([_placed(each, word) for each in line] for line in inner), depth - 1
                    )


def _placed(inner: Word, outer: Word) -> Word:
    return inner._replace(line=outer.line, column=outer.column, is_plain=False)


def _with_batch_variables(word: Word) -> Word:
    found = tuple(_BATCH_VARIABLE.findall(word.text))
    return word._replace(unknown=word.unknown + found) if found else word


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
    for index in range(len(words)):
        is_alone = index + 1 == len(words) and not _are_runners(words[:index])
        if _starts_qemu(words[index:]) and not is_alone and not _is_value(words, index):
            return words[index:]
    for index, word in enumerate(words):
        if (name := _name(word)) in _OTHERS and (index == 0 or not word.text.startswith("-")):
            raise SpecError(
                f"this looks like a command line of {_OTHERS[name]}; lint knows QEMU's alone", _REMEDY
            )
        if _OTHER_TOOL.fullmatch(name) and not _is_value(words, index):
            raise SpecError(
                f"this looks like a command line of {name}; lint knows QEMU's guests alone", _REMEDY
            )
        if _OTHER_TARGET.fullmatch(name) and index + 1 < len(words) and words[index + 1].text.startswith("-"):
            raise SpecError(f"{name} is no x86 machine, and the rules are about those", _REMEDY)
    if _looks_like_options(words):
        return words
    shown = " ".join(word.text for word in words[:4])[:60]
    raise SpecError(f"{shown!r} does not start QEMU", _REMEDY)


def _name(word: Word) -> str:
    """The last part of a path, of Windows's, too, without the ``@`` that makefiles and cmd.exe have before it."""
    return PurePath(word.text.replace("\\", "/")).name.lstrip("@")


def _is_value(words: list[Word], index: int) -> bool:
    """Whether it may be the value of an option of another program, such as ``grep -e kvm``."""
    return index > 0 and words[index - 1].text.startswith("-") and not _name(words[index]).startswith("qemu-")


def _are_runners(words: list[Word]) -> bool:
    """Whether nothing stands before QEMU's name that could be a command of its own."""
    return all(word.text in _RUNNERS or _ASSIGNMENT.match(word.text) for word in words)


def _starts_qemu(words: list[Word]) -> bool:
    program = _name(words[0])
    is_other = _OTHER_TOOL.fullmatch(program) or _OTHER_TARGET.fullmatch(program)
    if not _PROGRAM.fullmatch(program) or words[0].text.startswith("-") or is_other:
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
        name = _name(words[start])
        if not words[start].unknown and not _RESEMBLES.fullmatch(name):
            return False
        start += 1
    names = {re.sub("^--", "-", word.text) for word in words[start:]}
    return bool(names & _TYPICAL)
