"""Streams of random instructions that user mode may execute, and the state that they begin with (Intel SDM volume 2).

An opcode is drawn from iced-x86's list, its operands are random bytes; what iced-x86 then decodes is kept if all hosts
have its feature and if the architecture says what it does. Most operands in memory are in a page that is there.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from iced_x86 import (
    Code,
    CodeSize,
    CpuidFeature,
    Decoder,
    EncodingKind,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    MandatoryPrefix,
    MemorySizeInfo,
    Mnemonic,
    OpAccess,
    OpCodeInfo,
    OpCodeTableKind,
    OpKind,
    Register,
    RegisterInfo,
    RflagsBits,
)

from casemate.address import PAGE_SIZE


def mnemonics(names: str) -> frozenset[int]:
    """iced-x86's numbers of the names in a text."""
    return frozenset(getattr(Mnemonic, name) for name in names.split())


FEATURES = frozenset(
    getattr(CpuidFeature, name)
    for name in (
        *("INTEL8086", "INTEL186", "INTEL286", "INTEL386", "INTEL486", "X64", "CMOV", "CX8", "CMPXCHG16B"),
        *("FPU", "FPU287", "FPU387", "MMX", "SSE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "SSE4A"),
        *("POPCNT", "LZCNT", "BMI1", "BMI2", "ADX", "MOVBE", "AES", "PCLMULQDQ"),
        *("MULTIBYTENOP", "PREFETCHW", "PAUSE"),
    )
)
"""What each host has."""

_LEFT_OUT = {
    "POPF POPFD POPFQ PUSHF PUSHFD PUSHFQ CLI STI": "the trap flag, and flags that only a kernel sees",
    "LAR LSL VERR VERW SGDT SIDT SLDT STR SMSW ARPL LDS LES LFS LGS LSS": "tables of the guest's own kernel",
    "RCPPS RCPSS RSQRTPS RSQRTSS": "approximations, of which each processor has its own",
    "FXSAVE FXSAVE64 FXRSTOR FXRSTOR64 FNSAVE FNSTENV FRSTOR FLDENV": "addresses of x87 code that nobody keeps alike",
    "FLDCW": "exceptions, which all stay masked",
    "EXTRQ INSERTQ": "operands of most values, of which nobody says what they do",
    "MASKMOVQ MASKMOVDQU MONITOR MWAIT RDTSC RDPMC UD0 UD1": "faults and stores that are the implementation's",
}
LEFT_OUT = {mnemonic: why for names, why in _LEFT_OUT.items() for mnemonic in mnemonics(names)}
"""Mnemonics of those features that are not drawn, and why."""

MAX_LENGTH = 20
"""Instructions of a stream."""
USER = 0x10000000
CODE, DATA = USER + 0x1000, USER + 0x2000
"""The pages of code, which is read-only, and of data; there is nothing around them."""

_NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))
_GENERAL = [getattr(Register, name) for name in _NAMES]
_MAPS = {
    OpCodeTableKind.NORMAL: (0, b""),
    OpCodeTableKind.T0F: (1, b"\x0f"),
    OpCodeTableKind.T0F38: (2, b"\x0f\x38"),
    OpCodeTableKind.T0F3A: (3, b"\x0f\x3a"),
}
_PREFIXES = {MandatoryPrefix.P66: b"\x66", MandatoryPrefix.PF2: b"\xf2", MandatoryPrefix.PF3: b"\xf3"}
_SEGMENTS = range(Register.ES, Register.GS + 1)
_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_READS = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_ADDRESS_MASKS = {CodeSize.CODE16: 0xFFFF, CodeSize.CODE32: 0xFFFFFFFF}
_BY_COUNT = mnemonics("SHL SHR SAL SAR ROL ROR RCL RCR SHLD SHRD")
"""They leave all flags alone if they shift by nothing."""
_BIT_STRINGS = mnemonics("BT BTC BTR BTS")
_WILD = 0.02
"""How often an operand may be in memory that is not there."""
_NUMBERS = (
    *(0, 1, 2, 7, 31, 63, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000),
    *(0x7FFFFFFF, 0x80000000, (1 << 63) - 1, 1 << 63),
)
_DOUBLES = (
    *(0, 1 << 63, 0x3FF << 52, 0xBFF << 52, 0x7FF << 52, 0xFFF << 52),
    *(0x7FF8 << 48, (0x7FF << 52) + 1, 1, 1 << 51),
)
_SINGLES = (
    *(0, 1 << 31, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000),
    *(0x7FC00000, 0x7F800001, 1, 1 << 22),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """Code of 64 or of 32 bits, and what it begins with."""

    number: int
    """In its series."""
    bits: int
    code: tuple[bytes, ...]
    """Each instruction."""
    undefined: tuple[int, ...]
    """The flags that nobody defines after so many instructions, in iced-x86's bits; one more than instructions."""
    registers: tuple[int, ...]
    """RAX, RCX, ... R15, in the order of their numbers."""
    flags: int
    floating: bytes
    """The 512 bytes that FXRSTOR64 takes."""
    memory: bytes
    """The page of data."""

    def beginning(self, length: int) -> Stream:
        """Its first ``length`` instructions."""
        return Stream(
            self.number,
            self.bits,
            self.code[:length],
            self.undefined[: length + 1],
            self.registers,
            self.flags,
            self.floating,
            self.memory,
        )


def decoded(bits: int, code: bytes) -> Instruction:
    """The first instruction of ``code``."""
    return Decoder(bits, code, ip=CODE).decode()


def uses_mmx(instruction: Instruction) -> bool:
    """Whether it makes all of the x87 registers valid, or empty."""
    return instruction.mnemonic == Mnemonic.EMMS or any(
        instruction.op_kind(index) == OpKind.REGISTER
        and Register.MM0 <= instruction.op_register(index) <= Register.MM7
        for index in range(instruction.op_count)
    )


@cache
def mnemonic_name(mnemonic: int) -> str:
    """In lower case."""
    return next(
        name.lower() for name in dir(Mnemonic) if name.isupper() and getattr(Mnemonic, name) == mnemonic
    )


@cache
def opcodes() -> tuple[OpCodeInfo, ...]:
    """One of each opcode of the features; the operand's size is not the opcode's."""
    found: dict[tuple[Any, ...], OpCodeInfo] = {}
    for name in dir(Code):
        if not name.isupper():
            continue
        info = OpCodeInfo(getattr(Code, name))
        if (
            not info.is_instruction
            or info.encoding not in (EncodingKind.LEGACY, EncodingKind.VEX)
            or info.mnemonic in LEFT_OUT
        ):
            continue
        instruction = Instruction()
        instruction.code = info.code
        if FEATURES.issuperset(instruction.cpuid_features()) and instruction.flow_control == FlowControl.NEXT:
            key = (
                info.encoding,
                info.table,
                info.mandatory_prefix,
                info.op_code,
                info.group_index,
                info.rm_group_index,
            )
            found.setdefault(key, info)
    return tuple(found.values())


def make_streams(seed: int, first: int, count: int) -> Iterator[Stream]:
    """Those with the numbers from ``first``; each depends on the seed and its number alone."""
    for number in range(first, first + count):
        yield _Maker(random.Random(f"{seed}/{number}"), number).make()


class _Maker:
    """Makes one stream, and keeps in mind what is known behind the instructions that it has so far."""

    def __init__(self, rng: random.Random, number: int) -> None:
        self.rng, self.number = rng, number
        self.bits = 64 if rng.random() < 0.85 else 32
        self.count = 16 if self.bits == 64 else 8
        self.registers = [self._register(index) for index in range(16)]
        self.known = {_GENERAL[index]: value for index, value in enumerate(self.registers[: self.count])}
        self.undefined = [0]
        depth = rng.choice((0, 2, 3, 4, 5, 6, 8))
        self.stack = [index < depth for index in range(8)]
        """Which of ST0 to ST7 are not empty."""
        self.in_mmx = False
        self.floating = self._floating()
        self.info = InstructionInfoFactory()

    def make(self) -> Stream:
        rng = self.rng
        length = rng.randint(1, MAX_LENGTH)
        code: list[bytes] = []
        while len(code) < length:
            if found := self._instruction():
                code.append(found)
        return Stream(
            self.number,
            self.bits,
            tuple(code),
            tuple(self.undefined),
            tuple(self.registers),
            2 | rng.getrandbits(12) & 0x8D5 | (0x400 if rng.random() < 0.2 else 0),
            self.floating,
            rng.randbytes(PAGE_SIZE),
        )

    def _register(self, index: int) -> int:
        rng = self.rng
        if index == 4 or rng.random() < 0.5:
            return DATA + (0x800 + rng.randrange(-0x400, 0x400)) & (-16 if rng.random() < 0.6 else -1)
        number = rng.choice(_NUMBERS) if rng.random() < 0.6 else rng.getrandbits(64)
        if rng.random() < 0.2:
            number = -number & (1 << 64) - 1
        return number if self.bits == 64 else number & 0xFFFFFFFF

    def _floating(self) -> bytes:
        rng = self.rng
        control = 0x37F
        if rng.random() < 0.2:
            control ^= rng.choice((0, 0x100, 0x200, 0x300)) | rng.choice((0, 0x400, 0x800, 0xC00))
        mxcsr = 0x1F80
        if rng.random() < 0.2:
            mxcsr ^= (
                rng.choice((0, 0x2000, 0x4000, 0x6000)) | rng.choice((0, 0x40, 0x8000)) | rng.randrange(64)
            )
        top = rng.randrange(8)
        tags = sum(full << ((top + index) & 7) for index, full in enumerate(self.stack))
        head = struct.pack("<HHBxHQQII", control, top << 11, tags, 0, 0, 0, mxcsr, 0)
        stack = b"".join(self._extended() + bytes(6) for _ in range(8))
        vectors = b"".join(self._vector() for _ in range(16))
        return (head + stack + vectors).ljust(512, b"\0")

    def _extended(self) -> bytes:
        rng = self.rng
        sign = rng.getrandbits(1) << 15
        exponent = rng.choice((0, 0x7FFF, 0x3FFF, 0x3FFF + rng.randrange(-70, 70), rng.randrange(0x8000)))
        fraction = rng.choice((0, 1, 1 << 62, rng.getrandbits(63), rng.getrandbits(63) & -(1 << 52)))
        return struct.pack("<QH", fraction | (1 << 63 if exponent else 0), sign | exponent)

    def _vector(self) -> bytes:
        rng = self.rng
        kind = rng.randrange(5)
        if kind == 0:
            return struct.pack("<2Q", *(rng.choice(_DOUBLES) for _ in range(2)))
        if kind == 1:
            return struct.pack("<4I", *(rng.choice(_SINGLES) for _ in range(4)))
        if kind == 2:
            return struct.pack("<2d", *(rng.uniform(-1e5, 1e5) for _ in range(2)))
        if kind == 3:
            return struct.pack("<4f", *(rng.uniform(-1e5, 1e5) for _ in range(4)))
        return rng.randbytes(16)

    def _instruction(self) -> bytes | None:
        """A try: None if chance made something that is not wanted."""
        data = self._draw(self.rng.choice(opcodes()))
        instruction = Decoder(self.bits, data, ip=CODE).decode()
        if not self._is_wanted(instruction):
            return None
        self._note(instruction)
        return data[: instruction.len]

    def _draw(self, info: OpCodeInfo) -> bytes:
        rng = self.rng
        operand, extension = self._operand(info)
        opcode = info.op_code.to_bytes(info.op_code_len, "big")
        number, escape = _MAPS[info.table]
        prefix = _PREFIXES.get(info.mandatory_prefix, b"")
        wide = rng.random() < 0.5
        if info.encoding == EncodingKind.VEX:
            kind = (MandatoryPrefix.P66, MandatoryPrefix.PF3, MandatoryPrefix.PF2)
            code = kind.index(info.mandatory_prefix) + 1 if info.mandatory_prefix in kind else 0
            second = wide << 7 | rng.randrange(16) << 3 | code
            head = bytes((0xC4, (~extension & 7) << 5 | number, second))
            return head + opcode + operand
        for chance, choices in (
            (0.1 / (1 + 9 * bool(prefix)), b"\x66"),
            (0.03, b"\xf0"),
            (0.03, b"\x2e\x36\x3e\x26\x64\x65"),
            (0.02, b"\x67"),
        ):
            if rng.random() < chance:
                prefix = bytes((rng.choice(choices),)) + prefix
        if info.can_use_rep_prefix and rng.random() < 0.4:
            prefix += rng.choice((b"\xf2", b"\xf3"))
        if self.bits == 64 and (extension or wide):
            prefix += bytes((0x40 | wide << 3 | extension,))
        return prefix + escape + opcode + operand

    def _operand(self, info: OpCodeInfo) -> tuple[bytes, int]:
        """ModRM and what may follow, and the three bits that a REX prefix has for it."""
        rng = self.rng
        tail = rng.choice((rng.randbytes(8), bytes((rng.randrange(8) << 4,)) + rng.randbytes(7)))
        if info.op_code_len == 2:
            return tail, 0
        reg = info.group_index if info.group_index >= 0 else rng.randrange(8)
        extension = (
            rng.randrange(8) & (5 if info.group_index < 0 else 1)
            if self.bits == 64 and rng.random() < 0.5
            else 0
        )
        if info.rm_group_index >= 0:
            return bytes((0xC0 | reg << 3 | info.rm_group_index,)) + tail, extension
        pointers = [number for number in range(self.count) if self._points(number)]
        if rng.random() < 0.4 or not pointers:
            return bytes((0xC0 | reg << 3 | rng.randrange(8),)) + tail, extension
        if self.bits == 64 and rng.random() < 0.1:
            distance = DATA - CODE + rng.randrange(PAGE_SIZE - 128)
            return bytes((reg << 3 | 5,)) + struct.pack("<i", distance) + tail, extension
        base = rng.choice(pointers)
        extension = extension & 4 | base >> 3
        mode = 0x40 if base & 7 == 5 or rng.random() < 0.6 else 0
        small = [
            number
            for number in range(self.count)
            if number != 4 and self.known.get(_GENERAL[number], 256) < 256
        ]
        if base & 7 == 4 or (small and rng.random() < 0.3):
            index = rng.choice(small) if small and rng.random() < 0.7 else 4
            extension |= (index >> 3) << 1
            sib = bytes((rng.randrange(4) << 6 | (index & 7) << 3 | base & 7,))
            return bytes((mode | reg << 3 | 4,)) + sib + tail, extension
        return bytes((mode | reg << 3 | base & 7,)) + tail, extension

    def _points(self, number: int) -> bool:
        return DATA <= self.known.get(_GENERAL[number], 0) < DATA + PAGE_SIZE

    def _is_wanted(self, instruction: Instruction) -> bool:
        if (
            instruction.is_invalid
            or instruction.mnemonic in LEFT_OUT
            or instruction.flow_control != FlowControl.NEXT
            or instruction.is_privileged
            or not FEATURES.issuperset(instruction.cpuid_features())
            or instruction.rflags_read & self.undefined[-1]
            or (
                instruction.mnemonic in (Mnemonic.SHLD, Mnemonic.SHRD)
                and OpCodeInfo(instruction.code).operand_size == 16
            )
        ):
            return False
        for index in range(instruction.op_count):
            if instruction.op_kind(index) == OpKind.REGISTER and instruction.op_register(index) in _SEGMENTS:
                return False
        if instruction.has_rep_prefix or instruction.has_repne_prefix:
            count = self.known.get(Register.RCX)
            if instruction.is_string_instruction and (count is None or count > 64):
                return False
        if self._faults_on_stack(instruction) or not self._is_bit_there(instruction):
            return False
        places = self.info.info(instruction).used_memory()
        return all(self._is_there(place) for place in places) or self.rng.random() < _WILD

    def _faults_on_stack(self, instruction: Instruction) -> bool:
        """Whether it reads an empty register of x87, or one of MMX, or pushes onto one that is not empty."""
        change = instruction.fpu_stack_increment_info()
        if (
            self.in_mmx
            and instruction.mnemonic != Mnemonic.FNINIT
            and (change.increment or self._stack_operands(instruction, _READS))
        ):
            return True
        if (
            change.increment < 0
            and instruction.mnemonic != Mnemonic.FDECSTP
            and any(self.stack[change.increment :])
        ):
            return True
        if mnemonic_name(instruction.mnemonic).startswith("fcmov") and not self.stack[0]:
            return True
        return any(not self.stack[number] for number in self._stack_operands(instruction, _READS))

    def _stack_operands(self, instruction: Instruction, accesses: tuple[int, ...]) -> list[int]:
        """Numbers of the x87 registers that it accesses in these ways."""
        return [
            used.register - Register.ST0
            for used in self.info.info(instruction).used_registers()
            if Register.ST0 <= used.register <= Register.ST7 and used.access in accesses
        ]

    def _note_stack(self, instruction: Instruction) -> None:
        change, mnemonic = instruction.fpu_stack_increment_info(), instruction.mnemonic
        if uses_mmx(instruction):
            self.in_mmx = mnemonic != Mnemonic.EMMS
            self.stack = [mnemonic != Mnemonic.EMMS] * 8
        elif mnemonic == Mnemonic.FNINIT:
            self.in_mmx = False
            self.stack = [False] * 8
        elif mnemonic in (Mnemonic.FINCSTP, Mnemonic.FDECSTP):
            self.stack = [*self.stack[change.increment :], *self.stack[: change.increment]]
        else:
            for number in self._stack_operands(instruction, _WRITES):
                self.stack[number] = True
            if mnemonic in (Mnemonic.FFREE, Mnemonic.FFREEP):
                self.stack[instruction.op_register(0) - Register.ST0] = False
            if change.increment > 0:
                self.stack = self.stack[change.increment :] + [False] * change.increment
            elif change.increment < 0:
                self.stack = [True] * -change.increment + self.stack[: change.increment]

    def _is_bit_there(self, instruction: Instruction) -> bool:
        """Whether a bit of a string in memory, whose number is in a register, is near."""
        if (
            instruction.mnemonic not in _BIT_STRINGS
            or instruction.op0_kind != OpKind.MEMORY
            or instruction.op1_kind != OpKind.REGISTER
        ):
            return True
        return self.known.get(RegisterInfo(instruction.op1_register).full_register, 1 << 63) < 512

    def _is_there(self, place: Any) -> bool:
        address = place.displacement
        for register, scale in ((place.base, 1), (place.index, place.scale)):
            if register in (Register.NONE, Register.RIP, Register.EIP):
                continue
            value = self.known.get(RegisterInfo(register).full_register)
            if value is None:
                return False
            address += value * scale
        address &= _ADDRESS_MASKS.get(place.address_size, (1 << 64) - 1)
        if MemorySizeInfo(place.memory_size).size >= 16 and address % 16:
            return False
        return bool(DATA <= address < DATA + PAGE_SIZE - 64)

    def _note(self, instruction: Instruction) -> None:
        """What is known and defined behind it."""
        self._note_stack(instruction)
        stack = self.known.get(Register.RSP)
        for used in self.info.info(instruction).used_registers():
            if used.access in _WRITES:
                self.known.pop(RegisterInfo(used.register).full_register, None)
        if stack is not None and Register.RSP not in self.known and instruction.is_stack_instruction:
            self.known[Register.RSP] = stack + instruction.stack_pointer_increment
        defined = instruction.rflags_written | instruction.rflags_cleared | instruction.rflags_set
        if instruction.mnemonic in _BY_COUNT or instruction.has_rep_prefix or instruction.has_repne_prefix:
            defined = RflagsBits.NONE
        undefined = instruction.rflags_undefined
        if instruction.mnemonic in (Mnemonic.RCL, Mnemonic.RCR):  # even by as many bits as change nothing
            undefined |= RflagsBits.OF
        self.undefined.append(self.undefined[-1] & ~defined | undefined)
