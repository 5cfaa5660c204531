"""Where hosts differ over a stream, and over which of its instructions (Intel SDM volume 2, flags affected)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iced_x86 import Instruction, RflagsBits

from tools.cpu_differences.hosts import Host
from tools.cpu_differences.monitor import Batch, Result
from tools.cpu_differences.streams import Stream, decoded, mnemonic_name, uses_mmx

_INVALID_OPCODE = 6
_RESUME = 1 << 16
_WRITE = 1 << 1
"""Of a page fault's error code."""
_EXCEPTIONS = 0x3F
"""Of MXCSR and of the status word of x87: flags that nothing else depends on as long as exceptions are masked."""
_FLAGS = {"CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "DF": 10, "OF": 11}
_CONDITIONS = {"C0": 8, "C2": 10, "C3": 14}
_ROUNDED_UP = 1 << 9
"""C1, which tells how a result was rounded."""

KINDS = {
    "fault": "how the stream ended: the vector, where, and the address of a page fault",
    "access": "whether a page fault tells of a write",
    "registers": "general registers",
    "flags": "flags that the instructions define",
    "xmm": "registers of SSE",
    "mxcsr": "control bits of MXCSR",
    "x87": "control word, status word, tags and registers of x87 and MMX",
    "memory": "the page of data",
    "resume": "the resume flag of a fault",
    "exceptions": "flags of exceptions of SSE and x87, and C1; looked at where nothing else differs",
}
BATCH = 1000
"""Cases for one start of each guest."""
Groups = tuple[tuple[str, ...], ...]
"""The hosts that agree with each other; most of them first."""
Answers = Mapping[str, Result | None]
"""What each host answers about a case; None is no answer."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What one instruction of a stream makes differ."""

    kind: str
    """One of ``KINDS``."""
    groups: Groups
    stream: Stream
    """It ends with that instruction."""
    values: Mapping[str, str]
    """By host, for people."""

    @property
    def code(self) -> bytes:
        """That instruction."""
        return self.stream.code[-1]

    @property
    def instruction(self) -> Instruction:
        """The same, decoded."""
        return decoded(self.stream.bits, self.code)

    @property
    def mnemonic(self) -> str:
        """In lower case."""
        return mnemonic_name(self.instruction.mnemonic)


def run_everywhere(hosts: Mapping[str, Host], streams: Sequence[Stream]) -> list[Answers]:
    """Answers about each stream. Raises HostError."""
    found: list[Answers] = []
    for start in range(0, len(streams), BATCH):
        part = streams[start : start + BATCH]
        columns = {name: host(Batch(part)) for name, host in hosts.items()}
        for index, stream in enumerate(part):
            answers = {name: column[index] for name, column in columns.items()}
            found.append(_believable(stream, answers))
    return found


def find_differences(hosts: Mapping[str, Host], streams: Sequence[Stream]) -> list[Difference]:
    """Those of each stream, at the first of its instructions that makes some. Raises HostError."""
    found, to_narrow = [], []
    for stream, answers in zip(streams, run_everywhere(hosts, streams), strict=True):
        kinds = _kinds(stream, answers)
        if "exceptions" in kinds:  # they stay, so that the instruction is of no interest
            found += _differences(stream, answers, kinds)
        elif kinds:
            to_narrow += [stream.beginning(length + 1) for length in range(len(stream.code))]
    seen = set()
    for stream, answers in zip(to_narrow, run_everywhere(hosts, to_narrow), strict=True):
        kinds = _kinds(stream, answers)
        if kinds and "exceptions" not in kinds and stream.number not in seen:
            seen.add(stream.number)
            found += _differences(stream, answers, kinds)
    return found


def _differences(stream: Stream, answers: Answers, kinds: Mapping[str, Groups]) -> list[Difference]:
    return [
        Difference(kind, groups, stream, _values(stream, kind, answers)) for kind, groups in kinds.items()
    ]


def _believable(stream: Stream, answers: Mapping[str, Result]) -> Answers:
    """A KVM that interprets what the processor should execute, as code of 32 bits and what faults, knows too little."""
    kvm = answers.get("kvm")
    is_interpreted = kvm is not None and (
        stream.bits == 32
        or (kvm.vector == _INVALID_OPCODE and any(_end(answer) != _end(kvm) for answer in answers.values()))
    )
    return {**answers, "kvm": None} if is_interpreted else answers


def _end(result: Result) -> tuple[int, int]:
    return result.vector, result.rip


def _kinds(stream: Stream, answers: Answers) -> dict[str, Groups]:
    """Who agrees with whom, by the kind of what differs; of faults nothing else is looked at."""
    aspects = {name: _aspects(stream, result) for name, result in answers.items() if result is not None}
    found = {}
    for kind in KINDS:
        groups: dict[object, list[str]] = {}
        for name, each in aspects.items():
            groups.setdefault(each[kind], []).append(name)
        if len(groups) > 1:
            found[kind] = tuple(sorted(map(tuple, groups.values()), key=len, reverse=True))
            if kind == "fault":
                break
    return {kind: groups for kind, groups in found.items() if kind != "exceptions"} or found


def _aspects(stream: Stream, result: Result) -> dict[str, object]:
    """What is compared, without what nobody defines."""
    undefined = stream.undefined[_executed(stream, result)]
    count, mask = (16, (1 << 64) - 1) if stream.bits == 64 else (8, 0xFFFFFFFF)
    return {
        "fault": (result.vector, result.error & ~_WRITE, result.rip, result.cr2),
        "access": result.error & _WRITE,
        "registers": tuple(value & mask for value in result.registers[:count]),
        "flags": result.flags & _defined(_FLAGS, undefined),
        "xmm": result.vectors,
        "mxcsr": result.mxcsr & ~_EXCEPTIONS,
        "x87": _x87(result.x87, undefined, _register_bytes(stream)),
        "memory": result.memory,
        "resume": result.flags & _RESUME,
        "exceptions": (
            result.mxcsr & _EXCEPTIONS,
            result.x87[2] & _EXCEPTIONS,
            result.x87[3] & _ROUNDED_UP >> 8,
        ),
    }


def _executed(stream: Stream, result: Result) -> int:
    """How many instructions were."""
    if result.at_end:
        return len(stream.code)
    at = 0
    for index, code in enumerate(stream.code):
        if at >= result.rip:
            return index
        at += len(code)
    return len(stream.code)


def _defined(bits: Mapping[str, int], undefined: int) -> int:
    return sum(1 << bit for name, bit in bits.items() if not undefined & getattr(RflagsBits, name))


def _register_bytes(stream: Stream) -> int:
    """How much of an x87 register is compared: MMX sets the rest on a processor alone (LIMITATIONS.md)."""
    return 8 if any(uses_mmx(decoded(stream.bits, code)) for code in stream.code) else 10


def _x87(state: bytes, undefined: int, size: int) -> tuple[object, ...]:
    """Control word, status word, tags, and the registers that are not empty."""
    control, status, tags = struct.unpack_from("<HHB", state)
    top = status >> 11 & 7
    status &= ~_EXCEPTIONS & ~_ROUNDED_UP & ~sum(1 << bit for bit in _CONDITIONS.values()) | _defined(
        _CONDITIONS, undefined
    )
    stack = [state[5 + 10 * index : 5 + 10 * index + size] for index in range(8)]
    return (
        control,
        status,
        tags,
        *(value for index, value in enumerate(stack) if tags >> ((top + index) & 7) & 1),
    )


def _values(stream: Stream, kind: str, answers: Answers) -> dict[str, str]:
    """The parts that differ."""
    aspects = {name: _aspects(stream, result)[kind] for name, result in answers.items() if result is not None}
    return {name: _shown(kind, value, list(aspects.values())) for name, value in aspects.items()}


def _shown(kind: str, value: object, all_values: Sequence[object]) -> str:
    if kind == "fault" and isinstance(value, tuple):
        return "vector {}, error {:#x}, at byte {}, CR2 {:#x}".format(*value)
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, bytes):
        parts = [value[at : at + 16].hex() for at in range(0, len(value), 16)]
        others = [
            [each[at : at + 16].hex() for at in range(0, len(value), 16)]
            for each in all_values
            if isinstance(each, bytes)
        ]
        return ", ".join(
            f"{index * 16:#x}: {part}"
            for index, part in enumerate(parts)
            if any(other[index] != part for other in others)
        )
    if isinstance(value, tuple):
        tuples = [each for each in all_values if isinstance(each, tuple)]
        return ", ".join(
            f"{index}: {part.hex() if isinstance(part, bytes) else hex(part)}"
            for index, part in enumerate(value)
            if any(len(other) <= index or other[index] != part for other in tuples)
        )
    return str(value)
