"""KVM's instruction emulator, as far as it decides about writes (Linux arch/x86/kvm/emulate.c, mmu, x86.c).

The engine executes every instruction alike. KVM leaves most to the processor and executes two kinds by itself, wherever
their operands lie: those that read a port, and those that load what no slot backs. Their writes become MMIO. Others it
executes only behind a read-only slot, and some it does not know.

INS to memory that takes no writes is executed as KVM does it: all that fits is read from the port first, then written.
What no memory takes becomes MMIO, in pieces of at most 8 bytes. Downwards KVM writes one element only, and has
forgotten the others when the guest comes back to the instruction.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import NamedTuple

from casemate.abi.kvm.structs import Regs, Sregs
from casemate.abi.kvm.write_outcome import WriteOutcome
from casemate.address import PAGE_SIZE, Gpa
from casemate.host.hypervisor import IoBus
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.engine import WRITE, Engine
from casemate.host.model.cpu.unicorn_api import x86_const
from casemate.host.model.slots import SlotTable

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REX = range(0x40, 0x50)
INPUT_OPCODES = frozenset(b"\x6c\x6d")
"""INS."""
_X87 = range(0xD8, 0xE0)
_FNSTCW, _FNSTSW = (0xD9, 7), (0xDD, 7)
"""Opcode and operation of the two x87 writes that KVM's emulator knows."""
_NAMES = [name for name, *_ in Regs._fields_]
_NUMBERS = tuple(getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in _NAMES)


class Opcode(NamedTuple):
    """The first bytes of an instruction, apart."""

    prefixes: frozenset[int]
    rex: int
    opcode: int
    operation: int
    """Bits 5 to 3 of the byte behind the opcode."""
    length: int
    """Up to and with the opcode."""


def split(code: bytes) -> Opcode:
    """Take apart an instruction that writes to memory. INC and DEC of a register, which look like REX, do not."""
    at = next((at for at, byte in enumerate(code) if byte not in _LEGACY_PREFIXES), len(code))
    prefixes = frozenset(code[:at])
    rex = code[at] if at < len(code) and code[at] in _REX else 0
    at += 1 if rex else 0
    opcode, following = (*code[at : at + 2], 0, 0)[:2]
    return Opcode(prefixes, rex, opcode, following >> 3 & 7, at + 1)


class WriteJudge:
    """Says for the instruction that the engine is at what KVM would do; plain guests only.

    Of an encrypted guest KVM knows the instruction by the processor's decode assists alone, which are not modelled.
    """

    def __init__(self, engine: Engine, memory: SlotTable) -> None:
        self._engine = engine
        self._memory = memory

    def behind_readonly_slot(self) -> WriteOutcome:
        """The outcome of a write to a read-only slot."""
        found = self._opcode()
        if found.opcode in INPUT_OPCODES:
            return WriteOutcome.INPUT
        if found.opcode in _X87 and (found.opcode, found.operation) not in (_FNSTCW, _FNSTSW):
            return WriteOutcome.UNDEFINED if self._engine.privilege() else WriteOutcome.INTERNAL_ERROR
        return WriteOutcome.MMIO

    def behind_readonly_mapping(self) -> WriteOutcome:
        """The outcome of a write to a slot whose mapping is read-only."""
        if self._opcode().opcode in INPUT_OPCODES:
            return WriteOutcome.INPUT
        mmio = any(self._is_mmio(gva) for gva in self._loads())
        return WriteOutcome.MMIO if mmio else WriteOutcome.EFAULT

    def _opcode(self) -> Opcode:
        return split(self._engine.code_here())

    def _loads(self) -> Iterator[int]:
        from casemate.host.write_target import load_addresses

        engine, sregs = self._engine, Sregs()
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            getattr(sregs, name).base = engine.segment_base(name)
        regs = Regs(*engine.read_many(_NUMBERS))
        return load_addresses(engine.code_here(), engine.code_bits(), regs, sregs)

    def _is_mmio(self, gva: int) -> bool:
        gpa = self._engine.translate(gva)
        return gpa is not None and self._memory.slot_at(gpa) is None


_READ_AHEAD = 1024
_MMIO_BYTES = 8
_DF = 1 << 10
_PF_PRESENT, _PF_WRITE, _PF_USER = 1, 2, 4
"""Bits of the error code of #PF."""
_REPEATS = frozenset(b"\xf2\xf3")
_OPERAND_SIZE, _ADDRESS_SIZE, _REX_W = 0x66, 0x67, 8
_INSB = 0x6C
_ADDRESS_BITS = {64: (64, 32), 32: (32, 16), 16: (16, 32)}
"""By the width of the code, without the prefix and with it."""
_STATE = (registers.RIP, registers.RCX, registers.RDX, registers.RDI, registers.RFLAGS)


class _Ins(NamedTuple):
    """One INS and the registers that it is about; ``step`` is the bytes of an element, negative downwards."""

    rip: int
    rcx: int
    port: int
    rdi: int
    step: int
    length: int
    repeats: bool
    code_bits: int
    address_bits: int

    @property
    def size(self) -> int:
        return abs(self.step)

    @property
    def elements(self) -> int:
        """Elements that are left."""
        return self.rcx & (1 << self.address_bits) - 1 if self.repeats else 1

    def read_ahead(self) -> int:
        """Elements that are read at once. KVM counts the bytes up to the page's end as elements, too."""
        in_page = self.rdi % PAGE_SIZE
        if self.step > 0:
            in_page = PAGE_SIZE - in_page
        return max(1, min(in_page, _READ_AHEAD // self.size, self.elements))

    def after(self, done: int) -> dict[int, int]:
        """The registers once ``done`` elements are written."""
        values = {registers.RDI: self._moved(self.rdi, done * self.step)}
        if self.repeats:
            values[registers.RCX] = self._moved(self.rcx, -done)
        if done >= self.elements:
            values[registers.RIP] = self.rip + self.length & (1 << self.code_bits) - 1
        return values

    def _moved(self, value: int, by: int) -> int:
        mask = (1 << self.address_bits) - 1
        # Results of 32 bits clear the rest of a register, those of 16 bits keep it.
        kept = value & ~mask if self.address_bits == 16 else 0
        return kept | value + by & mask


class PortInput:
    """Executes the INS that the engine stands on, as far as KVM does at once; ``written`` hears of writes to memory."""

    def __init__(self, engine: Engine, memory: SlotTable, written: Callable[[Gpa, int], None]) -> None:
        self._engine = engine
        self._memory = memory
        self._written = written

    def execute(self, bus: IoBus) -> None:
        """While the bus is asked, the registers are those before the instruction."""
        ins = self._decode()
        start, mask = self._linear(ins), (1 << 8 * ins.size) - 1
        read = [
            (bus.read_port(ins.port, ins.size) & mask).to_bytes(ins.size, "little")
            for _ in range(self._mapped(ins, start))
        ]
        stored = read if ins.step > 0 else read[:1]
        self._store(bus, start, b"".join(stored))
        self._engine.write_many(ins.after(len(stored)))

    def page_fault(self) -> int | None:
        """The error code, CR2 being set, if the element at hand ends in a page that the guest cannot write to."""
        ins = self._decode()
        start = self._linear(ins)
        in_page = PAGE_SIZE - start % PAGE_SIZE
        if in_page >= ins.size or self._engine.translate(start + in_page, WRITE) is not None:
            return None
        self._engine.write(registers.CR2, start + in_page)
        is_present = self._engine.translate(start + in_page) is not None
        return (
            _PF_WRITE
            | (_PF_PRESENT if is_present else 0)
            | (_PF_USER if self._engine.privilege() == 3 else 0)
        )

    def _decode(self) -> _Ins:
        engine = self._engine
        rip, rcx, rdx, rdi, rflags = engine.read_many(_STATE)
        opcode, bits = split(engine.code_here()), engine.code_bits()
        wide = bool(opcode.rex & _REX_W) or (_OPERAND_SIZE in opcode.prefixes) == (bits == 16)
        size = 1 if opcode.opcode == _INSB else 4 if wide else 2
        return _Ins(
            rip=rip,
            rcx=rcx,
            port=rdx & 0xFFFF,
            rdi=rdi,
            step=-size if rflags & _DF else size,
            length=opcode.length,
            repeats=bool(_REPEATS & opcode.prefixes),
            code_bits=bits,
            address_bits=_ADDRESS_BITS[bits][_ADDRESS_SIZE in opcode.prefixes],
        )

    def _linear(self, ins: _Ins) -> int:
        offset = ins.rdi & (1 << ins.address_bits) - 1
        return offset if ins.code_bits == 64 else self._engine.segment_base("es") + offset & 0xFFFFFFFF

    def _mapped(self, ins: _Ins, start: int) -> int:
        """How many elements are read; none for a further page that the guest does not map, for it would be lost."""
        count, in_page = ins.read_ahead(), PAGE_SIZE - start % PAGE_SIZE
        if ins.step < 0 or count * ins.size <= in_page:
            return count
        mapped = self._engine.translate(start + in_page, WRITE) is not None
        return count if mapped else max(1, in_page // ins.size)

    def _store(self, bus: IoBus, gva: int, data: bytes) -> None:
        pieces = [piece for at, part in _by_page(gva, data) for piece in self._to_memory(at, part)]
        for gpa, piece in pieces:
            bus.write_mmio(gpa, len(piece), int.from_bytes(piece, "little"))

    def _to_memory(self, gva: int, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Write within a page; yields what no memory takes, by guest-physical address."""
        gpa = self._engine.translate(gva, WRITE)
        assert gpa is not None, "the engine came to the write"
        hva = self._memory.hva(gpa, len(data), writable=True)
        if hva is None:
            for at in range(0, len(data), _MMIO_BYTES):
                yield gpa + at, data[at : at + _MMIO_BYTES]
        else:
            ctypes.memmove(hva, data, len(data))
            self._written(Gpa(gpa), len(data))


def _by_page(gva: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    in_page = PAGE_SIZE - gva % PAGE_SIZE
    yield gva, data[:in_page]
    if data[in_page:]:
        yield gva + in_page, data[in_page:]
