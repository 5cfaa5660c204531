"""Differences that are understood: who is wrong, and where the manual says what is right (Intel SDM, AMD APM)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from iced_x86 import MemorySizeInfo, OpKind, Register

from tools.cpu_differences.compare import Difference
from tools.cpu_differences.streams import uses_mmx

_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"


@dataclass(frozen=True, slots=True)
class Known:
    """One class of differences."""

    name: str
    what: str
    """Who is wrong about what, and who says so."""
    kinds: Collection[str]
    wrong: Collection[str]
    """Hosts; the others agree with each other."""
    matches: Callable[[Difference], bool]

    def explains(self, difference: Difference) -> bool:
        """Whether it is of this class."""
        right = [any(host not in self.wrong for host in group) for group in difference.groups]
        return difference.kind in self.kinds and sum(right) <= 1 and self.matches(difference)


def _is(mnemonics: str) -> Callable[[Difference], bool]:
    names = frozenset(mnemonics.split())
    return lambda difference: difference.mnemonic in names


def _any(_: Difference) -> bool:
    return True


def _prefixes(difference: Difference) -> bytes:
    code, is_64_bit = difference.code, difference.stream.bits == 64
    count = 0
    while code[count] in _PREFIXES or (is_64_bit and code[count] & 0xF0 == 0x40):
        count += 1
    return code[:count]


def _has_rex(difference: Difference) -> bool:
    return difference.stream.bits == 64 and any(byte & 0xF0 == 0x40 for byte in _prefixes(difference))


def _has_two_mandatory_prefixes(difference: Difference) -> bool:
    prefixes = _prefixes(difference)
    return b"\x66" in prefixes and (b"\xf2" in prefixes or b"\xf3" in prefixes)


def _compares_by_more_than_three_bits(difference: Difference) -> bool:
    instruction = difference.instruction
    return difference.mnemonic in ("cmpps", "cmppd", "cmpss", "cmpsd") and instruction.immediate8 > 7


def _is_of_16_bytes(difference: Difference) -> bool:
    return MemorySizeInfo(difference.instruction.memory_size).size >= 16


def _is_on_stack(difference: Difference) -> bool:
    instruction = difference.instruction
    return instruction.is_stack_instruction or instruction.memory_segment == Register.SS


def _has_memory(difference: Difference) -> bool:
    instruction = difference.instruction
    return any(instruction.op_kind(index) == OpKind.MEMORY for index in range(instruction.op_count))


def _has_less_than_64_bits(difference: Difference) -> bool:
    control = int.from_bytes(difference.stream.floating[:2], "little")
    return control & 0x300 != 0x300 and difference.mnemonic.startswith("f")


def _has_rex_before_another(difference: Difference) -> bool:
    return _has_rex(difference) and difference.stream.bits == 64 and _prefixes(difference)[-1] & 0xF0 != 0x40


def _rex_on_mmx(difference: Difference) -> bool:
    return _has_rex(difference) and uses_mmx(difference.instruction)


_BOTH = ("model", "qemu")
_STATE = ("registers", "flags", "xmm", "mxcsr", "x87", "memory")

KNOWN = (
    Known(
        "exception flags",
        "the model keeps few, QEMU 7.2 not all; neither tells by C1 how x87 rounded (SDM 1, 8.1.3, 10.2.3)",
        ("exceptions",),
        _BOTH,
        _any,
    ),
    Known(
        "stored exception flags",
        "the same, seen by STMXCSR and FNSTSW",
        ("memory", "registers"),
        _BOTH,
        _is("stmxcsr fnstsw"),
    ),
    Known("resume flag", "QEMU pushes RF = 0 for faults (SDM 3, 17.3.1.1)", ("resume",), ("qemu",), _any),
    Known(
        "alignment",
        "the model takes operands of 16 bytes at any address, which are #GP (SDM 1, 10.4.1.1)",
        ("fault",),
        ("model",),
        _is_of_16_bytes,
    ),
    Known(
        "reserved forms",
        "reserved NOPs and TEST by F6 /1 and F7 /1 are #UD on both (APM 3, A.1)",
        ("fault",),
        _BOTH,
        _is("reservednop test"),
    ),
    Known(
        "predicate of CMPPS",
        "the model has #UD where more than three bits of it are set, which count for VEX alone (SDM 2, CMPPS)",
        ("fault",),
        ("model",),
        _compares_by_more_than_three_bits,
    ),
    Known(
        "66 and F2 or F3",
        "with both prefixes the model executes another instruction: 66 wins, where it has to lose (SDM 2, 2.1.2)",
        (*_STATE, "fault"),
        ("model",),
        _has_two_mandatory_prefixes,
    ),
    Known(
        "page fault of a modification",
        "it tells of a read, as the operand is read first; a processor tells of a write (SDM 3, 4.7)",
        ("access",),
        _BOTH,
        _has_memory,
    ),
    Known(
        "ENTER",
        "a processor looks whether the frame can be written before it writes any of it (SDM 2, ENTER)",
        ("fault", "memory"),
        _BOTH,
        _is("enter"),
    ),
    Known(
        "ENTER of 16 bits",
        "the upper half of EBP is another with each (SDM 2, ENTER)",
        ("registers",),
        _BOTH,
        _is("enter"),
    ),
    Known(
        "order of CMPS",
        "of two operands that fault it is the other one that does (SDM 2, CMPS)",
        ("fault",),
        _BOTH,
        lambda difference: difference.instruction.is_string_instruction,
    ),
    Known(
        "#SS",
        "addresses that are not canonical are #GP where the stack's segment is used, too (SDM 3, 6.15)",
        ("fault",),
        _BOTH,
        _is_on_stack,
    ),
    Known(
        "BZHI, BEXTR",
        "of as many bits as there are, or more, the model clears the last one (SDM 2, BZHI, BEXTR)",
        ("registers", "flags"),
        ("model",),
        _is("bzhi bextr"),
    ),
    Known("BLSI", "CF is the opposite (SDM 2, BLSI)", ("flags",), _BOTH, _is("blsi")),
    Known(
        "LAHF, SAHF",
        "with a REX prefix the model takes SPL for AH (APM 3, LAHF)",
        ("registers", "flags"),
        ("model",),
        lambda difference: _has_rex(difference) and difference.mnemonic in ("lahf", "sahf"),
    ),
    Known(
        "CMPXCHG",
        "the model clears the upper half of a destination of 32 bits that is not changed (APM 3, CMPXCHG)",
        ("registers",),
        ("model",),
        _is("cmpxchg"),
    ),
    Known(
        "LOCK NEG", "the model's flags are of the operand (SDM 2, NEG)", ("flags",), ("model",), _is("neg")
    ),
    Known(
        "BSF, BSR",
        "of zero they leave all of the register alone on AMD's processors (APM 3, BSF)",
        ("registers",),
        _BOTH,
        _is("bsf bsr"),
    ),
    Known(
        "transcendental",
        "fewer bits, other results for operands out of range and denormals (SDM 1, 8.3.10)",
        ("x87",),
        _BOTH,
        _is("f2xm1 fyl2x fyl2xp1 fpatan fptan fsin fcos fsincos fprem fprem1 fscale fxtract"),
    ),
    Known(
        "constants",
        "the model has them rounded to nearest whatever the control word says (SDM 1, 8.3.8)",
        ("x87",),
        ("model",),
        _is("fldpi fldl2e fldl2t fldlg2 fldln2"),
    ),
    Known(
        "stores of x87",
        "sign of a NaN and of a decimal zero, quiet NaNs (SDM 1, 4.8.3.4, FBSTP)",
        ("memory",),
        ("model",),
        _is("fst fstp fbstp"),
    ),
    Known(
        "CVTPI2PS",
        "of memory it changes to MMX mode, which a processor does not (SDM 2, CVTPI2PD)",
        ("x87",),
        _BOTH,
        lambda difference: _has_memory(difference) and difference.mnemonic in ("cvtpi2ps", "cvtpi2pd"),
    ),
    Known(
        "denormals",
        "MINPS and MAXPS give back an operand that MXCSR.DAZ makes zero (SDM 1, 10.2.3.4)",
        ("xmm",),
        _BOTH,
        _is("minps minpd minss minsd maxps maxpd maxss maxsd"),
    ),
    Known(
        "two NaNs",
        "the result is the first operand; both take the one with the larger fraction, as x87 does (SDM 1, 4.8.3.5)",
        ("xmm",),
        _BOTH,
        _is(
            "addps addpd addss addsd subps subpd subss subsd mulps mulpd mulss mulsd divps divpd divss divsd "
            "addsubps addsubpd haddps haddpd hsubps hsubpd dpps dppd"
        ),
    ),
    Known(
        "faults of MMX",
        "the change to MMX mode stays, though the operand in memory faults (SDM 3, 6.5)",
        ("x87",),
        _BOTH,
        lambda difference: uses_mmx(difference.instruction) and _has_memory(difference),
    ),
    Known(
        "substrings",
        "PCMPESTRI and its like: the model finds some at the wrong place (SDM 2, 4.1.4)",
        ("registers", "flags", "xmm"),
        ("model",),
        lambda difference: (
            difference.mnemonic.startswith(("pcmpestr", "pcmpistr"))
            and difference.instruction.immediate8 >> 2 & 3 == 3
        ),
    ),
    Known(
        "SHLD and RIP",
        "QEMU 7.2 forgets the last byte of SHLD and SHRD in addresses relative to RIP (SDM 2, 2.2.1.6)",
        ("memory", "flags", "registers"),
        ("qemu",),
        lambda difference: (
            difference.mnemonic in ("shld", "shrd") and difference.instruction.is_ip_rel_memory_operand
        ),
    ),
    Known(
        "precision of x87",
        "QEMU 7.2 rounds loads to less than 64 bits, and other results twice (SDM 1, 8.1.5.2)",
        ("x87", "memory"),
        ("qemu",),
        _has_less_than_64_bits,
    ),
    Known(
        "REX before another prefix",
        "it counts for nothing; QEMU 7.2 keeps some of it (SDM 2, 2.2.1)",
        _STATE,
        ("qemu",),
        _has_rex_before_another,
    ),
    Known(
        "PDEP of 32 bits",
        "the model takes 64 bits of the mask, if it is in a register (SDM 2, PDEP)",
        ("registers",),
        ("model",),
        _is("pdep"),
    ),
    Known(
        "REX and MMX",
        "QEMU 7.2 takes the bits of a REX prefix for those of an MMX register (SDM 2, 2.2.1.2)",
        _STATE,
        ("qemu",),
        _rex_on_mmx,
    ),
    Known(
        "QEMU's own",
        "QEMU 7.2: flags of FCOMI and ADCX, tags of FST, EMMS, lengths of PCMPESTRI, 66 with MOVBE and BSWAP",
        _STATE,
        ("qemu",),
        _is(
            "fcomi fcomip fucomi fucomip emms fst fstp fstpnce fisttp cmpxchg8b cmpxchg16b movbe bswap "
            "fbld crc32 rcl rcr pcmpestri pcmpestri64 pcmpestrm pcmpestrm64 adcx adox"
        ),
    ),
)


def explanation(difference: Difference) -> Known | None:
    """The class of a difference, if it is of a known one."""
    return next((known for known in KNOWN if known.explains(difference)), None)
