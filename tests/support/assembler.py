"""A small assembler for the guests of tests: Intel syntax in, the shortest encoding that iced-x86 finds out.

One statement to a line, or several with ``;`` between them; ``#`` begins a comment.

    poll:   in al, dx               # a label
            test al, 1
            jz poll                 # "$" is the statement's own address
            inc dword [0x9000]      # a size where the registers do not tell: byte, word, dword, qword
            mov rsi, [fs:rbx + rcx*4 + 8]
            rep movsb
            jmp 0x18:target         # far
            db 0x90, "text"

Numbers are Python's, or sums of numbers and labels. As in NASM, ``[0x2000]`` is an absolute address in 64-bit code,
too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from iced_x86 import (
    Code,
    Encoder,
    EncodingKind,
    Instruction,
    MemoryOperand,
    MemorySizeInfo,
    Mnemonic,
    OpCodeInfo,
    OpCodeOperandKind,
    Register,
    RegisterInfo,
)

from casemate.guests.entry import Bits

REGISTERS: dict[str, Any] = {
    name.lower(): getattr(Register, name) for name in dir(Register) if name.isupper() and name != "NONE"
}
KINDS = {getattr(OpCodeOperandKind, name): name for name in dir(OpCodeOperandKind) if name.isupper()}
SIZES = {"byte": 1, "word": 2, "dword": 4, "qword": 8, None: None}
PREFIXES = {
    "lock": "has_lock_prefix",
    "rep": "has_rep_prefix",
    "repe": "has_rep_prefix",
    "repne": "has_repne_prefix",
}
ALIASES = {"jz": "je", "jnz": "jne", "jc": "jb", "jnc": "jae", "loopz": "loope", "loopnz": "loopne"}
STRING = re.compile(r"(ins|outs)[bwd]|(movs|stos|lods|scas|cmps)[bwdq]")
BRANCHES = {16: ("BR16", "FARBR2"), 32: ("BR32", "FARBR4"), 64: ("BR64", "FARBR4")}
"""The branches of each mode that keep the whole instruction pointer."""
FAMILIES = {
    "SEG": r"[c-gs]s",
    "CR": r"cr\d+",
    "DR": r"dr\d+",
    "XMM": r"xmm\d+",
    "MM": r"mm\d",
    "STI": r"st\d",
}
MAX_PASSES = 20


class AssemblyError(ValueError):
    """A statement that is none; the text names it."""


class Memory(NamedTuple):
    """A memory operand; ``size`` in bytes where the source says it."""

    size: int | None
    segment: Any
    registers: dict[Any, int]
    displacement: int


class Far(NamedTuple):
    """A far pointer."""

    selector: int
    offset: int


Operand = int | Memory | Far | str
"""A register is its name."""


@dataclass(frozen=True)
class Assembler:
    """One block of code, at ``origin``."""

    bits: Bits
    origin: int

    def assemble(self, source: str) -> bytes:
        """The bytes of ``source``; repeated until no label moves any more."""
        labels: dict[str, int] | None = None
        for _ in range(MAX_PASSES):
            code, found = b"", {}
            for label, statement in statements(source):
                if label:
                    found[label] = self.origin + len(code)
                else:
                    code += self._encode(statement, self.origin + len(code), labels)
            if labels == found:
                return code
            labels = found
        raise AssemblyError("the labels do not come to rest")

    def _encode(self, statement: str, address: int, labels: Mapping[str, int] | None) -> bytes:
        known = Names({**(labels or {}), "$": address}, None if labels is not None else address)
        word, _, rest = statement.partition(" ")
        if word == "db":
            return b"".join(data(part, known) for part in split(rest))
        flags = []
        while word in PREFIXES:
            flags.append(PREFIXES[word])
            word, _, rest = rest.strip().partition(" ")
        operands = [operand(part, known) for part in split(rest)]
        found = []
        for instruction in self._instructions(word, operands):
            for flag in flags:
                setattr(instruction, flag, True)
            encoder = Encoder(self.bits)
            try:
                encoder.encode(instruction, address)
            except ValueError:  # too far, or not in this mode
                continue
            found.append(encoder.take_buffer())
        if not found:
            raise AssemblyError(f"no {self.bits}-bit instruction: {statement}")
        return min(found, key=len)

    def _instructions(self, word: str, operands: list[Operand]) -> Iterator[Instruction]:
        if STRING.fullmatch(word) and not operands:
            yield getattr(Instruction, f"create_{word}")(self.bits)
            return
        codes = [
            code for code in by_mnemonic().get(ALIASES.get(word, word), ()) if self._fits(code, operands)
        ]
        if not any(isinstance(each, str) or (isinstance(each, Memory) and each.size) for each in operands):
            # Nothing says how wide: as wide as the mode is.
            other = (32, 64) if self.bits == 16 else (16,)
            codes = [code for code in codes if OpCodeInfo(code).operand_size not in other] or codes
        sizes = {MemorySizeInfo(OpCodeInfo(code).memory_size).size for code in codes}
        if len(sizes) > 1 and any(isinstance(each, Memory) and each.size is None for each in operands):
            raise AssemblyError(f"{word}: byte, word, dword or qword?")
        for code in codes:
            try:
                yield self._instruction(code, operands)
            except (ValueError, OverflowError):  # an immediate that the instruction has no room for
                continue

    def _fits(self, code: Any, operands: list[Operand]) -> bool:
        info = OpCodeInfo(code)
        mode = {16: info.mode16, 32: info.mode32, 64: info.mode64}[self.bits]
        kinds = [KINDS[kind] for kind in info.op_kinds()]
        if not mode or len(kinds) != len(operands):
            return False
        if kinds and "BR" in kinds[0] and not kinds[0].startswith(BRANCHES[self.bits]):
            return False
        size = MemorySizeInfo(info.memory_size).size
        return all(matches(kind, each, size) for kind, each in zip(kinds, operands, strict=True))

    def _instruction(self, code: Any, operands: list[Operand]) -> Instruction:
        kinds = [KINDS[kind] for kind in OpCodeInfo(code).op_kinds()]
        if not operands:
            return Instruction.create(code)
        if kinds[0].startswith("BR"):
            assert isinstance(operands[0], int)
            return Instruction.create_branch(code, operands[0])
        if isinstance(operands[0], Far):
            return Instruction.create_far_branch(code, *operands[0])
        shape: list[str] = []
        arguments: list[Any] = []
        for kind, each in zip(kinds, operands, strict=True):
            if isinstance(each, str):
                shape.append("reg")
                arguments.append(REGISTERS[each])
            elif isinstance(each, Memory):
                shape.append("mem")
                arguments.append(self._memory(each))
            else:
                assert isinstance(each, int)
                sign = "i" if each < 1 << 31 else "u"
                shape.append(f"{sign}{64 if kind in ('IMM64', 'IMM32SEX64') and shape == ['reg'] else 32}")
                arguments.append(each)
        instruction: Instruction = getattr(Instruction, "create_" + "_".join(shape))(code, *arguments)
        return instruction

    def _memory(self, each: Memory) -> MemoryOperand:
        scaled = [register for register, scale in each.registers.items() if scale > 1]
        plain = [register for register, scale in each.registers.items() if scale == 1]
        base = plain[0] if plain else Register.NONE
        index = scaled[0] if scaled else plain[1] if len(plain) > 1 else Register.NONE
        if base:
            size = 1 if each.displacement else 0
        elif index:
            size = 4
        else:
            size = self.bits // 8 if each.displacement < 1 << self.bits else 4
        scale = each.registers.get(index, 1)
        return MemoryOperand(base, index, scale, each.displacement, size, False, each.segment)


class Names(dict[str, int]):
    """What the names stand for; in the first pass unknown ones are labels, and here."""

    def __init__(self, known: Mapping[str, int], here: int | None) -> None:
        super().__init__(known)
        self._here = here

    def __missing__(self, name: str) -> int:
        if self._here is None:
            raise AssemblyError(f"no such name: {name}")
        return self._here


@cache
def by_mnemonic() -> dict[str, list[Any]]:
    """All codes of each mnemonic, in iced's order."""
    names = {getattr(Mnemonic, name): name.lower() for name in dir(Mnemonic) if name.isupper()}
    found: dict[str, list[Any]] = {}
    for name in dir(Code):
        if name.isupper():
            info = OpCodeInfo(getattr(Code, name))
            is_usual = not info.decoder_option  # no old processor's, as CMPXCHG of the 486
            if info.is_instruction and is_usual and info.encoding == EncodingKind.LEGACY:
                found.setdefault(names[info.mnemonic], []).append(info.code)
    return {mnemonic: sorted(codes) for mnemonic, codes in found.items()}


def statements(source: str) -> Iterator[tuple[str, str]]:
    """Labels and statements in order: one of the two is empty."""
    for line in source.splitlines():
        for part in line.partition("#")[0].split(";"):
            statement = part.strip()
            while found := re.match(r"([A-Za-z_.]\w*):(?!\S)\s*", statement):
                yield found[1], ""
                statement = statement[found.end() :]
            if statement:
                yield "", statement


def split(text: str) -> list[str]:
    """The operands, at their commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def data(text: str, known: Mapping[str, int]) -> bytes:
    """One part of ``db``."""
    return ast.literal_eval(text).encode() if text[0] in "\"'" else bytes([value(text, known) & 0xFF])


def value(text: str, known: Mapping[str, int]) -> int:
    """A sum of numbers and names."""
    total = 0
    for sign, word in re.findall(r"([+-]?)\s*([^\s+-]+)", text):
        number = int(word, 0) if word[0].isdigit() else known[word]
        total += -number if sign == "-" else number
    return total


def operand(text: str, known: Mapping[str, int]) -> Operand:
    """A register's name, a number, a far pointer or memory."""
    if text in REGISTERS:
        return text
    if found := re.fullmatch(r"(?:(byte|word|dword|qword)\s+)?\[(?:(\w\w):)?(.+)\]", text):
        registers: dict[Any, int] = {}
        rest = ""
        for sign, term in re.findall(r"([+-]?)\s*([^\s+-]+)", found[3]):
            name, _, scale = term.partition("*")
            if name in REGISTERS:
                registers[REGISTERS[name]] = int(scale or 1)
            else:
                rest += f"{sign or '+'}{term}"
        segment = REGISTERS[found[2]] if found[2] else Register.NONE
        return Memory(SIZES[found[1]], segment, registers, value(rest, known))
    if found := re.fullmatch(r"(\w+):(\w+)", text):
        return Far(value(found[1], known), value(found[2], known))
    return value(text, known)


def matches(kind: str, each: Operand, memory_size: int) -> bool:
    """Whether an operand may stand where the instruction wants ``kind``."""
    if isinstance(each, Memory):
        if kind == "MEM_OFFS" and each.registers:
            return False
        return (kind in ("MEM", "MEM_OFFS") or kind.endswith("_OR_MEM")) and each.size in (None, memory_size)
    if isinstance(each, Far):
        return kind.startswith("FARBR")
    if isinstance(each, int):
        return kind.startswith(("IMM", "BR"))
    if kind.lower() == each:
        return True
    register, family = REGISTERS[each], kind.partition("_")[0]
    if family in ("R8", "R16", "R32", "R64"):
        general = Register.AL <= register <= Register.R15
        return general and RegisterInfo(register).size * 8 == int(family[1:])
    return bool(re.fullmatch(FAMILIES.get(family, ""), each))


def assemble(source: str, bits: Bits = 32, *, origin: int = 0) -> bytes:
    """The bytes of ``source`` for code of 16, 32 or 64 bits at ``origin``."""
    return Assembler(bits, origin).assemble(source)
