"""INS to memory that takes no stores, as KVM executes it (Linux arch/x86/kvm/emulate.c, pio_in_emulated; x86.c).

All that fits is read from the port first, then stored. What no memory takes becomes MMIO, in pieces of at most 8 bytes.
Downwards KVM stores one element only, and has forgotten the others when the guest comes back to the instruction.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from casemate.address import PAGE_SIZE, Gpa
from casemate.host.hypervisor import IoBus
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.engine import WRITE, Engine
from casemate.host.model.physical_memory import PhysicalMemory
from casemate.host.model.store_judge import split

_READ_AHEAD = 1024
_MMIO_BYTES = 8
_DF = 1 << 10
_REPEATS = frozenset(b"\xf2\xf3")
_OPERAND_SIZE, _ADDRESS_SIZE, _REX_W = 0x66, 0x67, 8
_INSB = 0x6C
_ADDRESS_BITS = {64: (64, 32), 32: (32, 16), 16: (16, 32)}
"""By the width of the code, without the prefix and with it."""
_STATE = (registers.RIP, registers.RCX, registers.RDX, registers.RDI, registers.RFLAGS)


@dataclass(frozen=True, slots=True)
class _Ins:
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
    def count(self) -> int:
        """Elements that are left."""
        return self.rcx & (1 << self.address_bits) - 1 if self.repeats else 1

    def read_ahead(self) -> int:
        """Elements that are read at once. KVM counts the bytes up to the page's end as elements, too."""
        in_page = self.rdi % PAGE_SIZE
        if self.step > 0:
            in_page = PAGE_SIZE - in_page
        return max(1, min(in_page, _READ_AHEAD // self.size, self.count))

    def after(self, done: int) -> dict[int, int]:
        """The registers once ``done`` elements are stored."""
        values = {registers.RDI: self._moved(self.rdi, done * self.step)}
        if self.repeats:
            values[registers.RCX] = self._moved(self.rcx, -done)
        if done >= self.count:
            values[registers.RIP] = self.rip + self.length & (1 << self.code_bits) - 1
        return values

    def _moved(self, value: int, by: int) -> int:
        mask = (1 << self.address_bits) - 1
        # Results of 32 bits clear the rest of a register, those of 16 bits keep it.
        kept = value & ~mask if self.address_bits == 16 else 0
        return kept | value + by & mask


class PortInput:
    """Executes the INS that the engine stands on, as far as KVM does at once; ``written`` hears of stores to memory."""

    def __init__(self, engine: Engine, memory: PhysicalMemory, written: Callable[[Gpa, int], None]) -> None:
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
        """Store within a page; yields what no memory takes, by guest-physical address."""
        gpa = self._engine.translate(gva, WRITE)
        assert gpa is not None, "the engine came to the store"
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
