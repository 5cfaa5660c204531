"""Registers of a modelled CPU as KVM shows and takes them (Linux asm/kvm.h; Intel SDM volume 1, 10.5 for FXSAVE).

Segments and descriptor tables are the engine's own, with their hidden parts, which its interface does not show.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import c_uint32, c_uint64

from casemate.abi.kvm.structs import Regs, Segment, Sregs
from casemate.abi.x86 import msr
from casemate.host.model.cpu import engine as registers
from casemate.host.model.cpu.engine import Engine
from casemate.host.model.cpu.unicorn_api import x86_const

_GENERAL = {name: getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name, *_ in Regs._fields_}
_CR3 = x86_const.UC_X86_REG_CR3
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr")
"""In the engine's order; GDT and IDT follow."""
_ENV_HFLAGS, _ENV_SEGMENTS, _ENV_EFER, _ENV_XCR0 = 0xB0, 0xB8, 0x250, 0x1328
_SEGMENT_BYTES = 24
_CR0_RESET, _EFER_LMA, _PE = 0x60000010, 1 << 10, 1
_CPL, _CS32, _SS32, _ADDSEG, _CS64 = 3, 1 << 4, 1 << 5, 1 << 6, 1 << 15
"""Bits of what the engine keeps beside the registers (``HF_*_MASK``)."""
_FXSAVE_BYTES, _ST_AT, _XMM_AT = 512, 32, 160
_FP, _XMM = x86_const.UC_X86_REG_FP0, x86_const.UC_X86_REG_XMM0
_FPCW, _FPSW, _FPTAG, _MXCSR = (
    getattr(x86_const, f"UC_X86_REG_{name}") for name in ("FPCW", "FPSW", "FPTAG", "MXCSR")
)
_EMPTY, _TOP = 3, 11
"""A tag, and where the status word names the register that is ST0."""


class _Segment(ctypes.Structure):
    _fields_ = (
        ("selector", c_uint32),
        ("padding", c_uint32),
        ("base", c_uint64),
        ("limit", c_uint32),
        ("flags", c_uint32),
    )


class CpuState:
    """The state of one engine's CPU; only while it does not execute, or waits in a callback."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        env = engine.hooks.record.env
        self._hflags = c_uint32.from_address(env + _ENV_HFLAGS)
        self._efer = c_uint64.from_address(env + _ENV_EFER)
        self._xcr0 = c_uint64.from_address(env + _ENV_XCR0)
        self._segments = (_Segment * 10).from_address(env + _ENV_SEGMENTS)

    def regs(self) -> Regs:
        """General registers, RIP and RFLAGS."""
        self._engine.hooks.find_place()
        return Regs(*self._engine.read_many(tuple(_GENERAL.values())))

    def set_regs(self, values: Regs, names: Iterable[str] = tuple(_GENERAL)) -> None:
        """Set those of these names. In a callback of the engine RIP cannot be among them."""
        for name in names:
            self._engine.write(_GENERAL[name], getattr(values, name))

    @property
    def xcr0(self) -> int:
        """Which extended state XSAVE saves."""
        return int(self._xcr0.value)

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self._xcr0.value = value

    def sregs(self) -> Sregs:
        """Segments, descriptor tables, control registers, EFER and the APIC's base."""
        found, engine = Sregs(), self._engine
        for name, held in zip(_SEGMENTS, self._segments, strict=False):
            _show(held, getattr(found, name))
        for name, held in zip(("gdt", "idt"), self._segments[8:], strict=True):
            table = getattr(found, name)
            table.base, table.limit = held.base, held.limit & 0xFFFF
        control = (registers.CR0, registers.CR2, _CR3, registers.CR4)
        found.cr0, found.cr2, found.cr3, found.cr4 = engine.read_many(control)
        found.cr8 = engine.hooks.cr8
        found.efer = self._efer.value
        found.apic_base = engine.msrs.read(msr.APIC_BASE)
        return found

    def set_sregs(self, values: Sregs) -> None:
        """Set them all; paging is turned off in between, so that any mode can follow any other."""
        engine = self._engine
        engine.write(registers.CR0, _CR0_RESET)
        engine.write(registers.CR4, values.cr4)
        engine.write(_CR3, values.cr3)
        engine.write(registers.CR2, values.cr2)
        engine.uc.write_msr(msr.EFER, values.efer & ~_EFER_LMA)
        engine.write(registers.CR0, values.cr0)
        engine.hooks.cr8 = values.cr8
        for name, held in zip(_SEGMENTS, self._segments, strict=False):
            _take(getattr(values, name), held)
        for name, held in zip(("gdt", "idt"), self._segments[8:], strict=True):
            held.base, held.limit = getattr(values, name).base, getattr(values, name).limit
        self._hflags.value = self._mode(values)
        engine.msrs.write(msr.APIC_BASE, values.apic_base)

    def _mode(self, values: Sregs) -> int:
        flags = self._hflags.value & ~(_CPL | _CS32 | _SS32 | _ADDSEG | _CS64)
        if values.cr0 & _PE:
            flags |= values.ss.dpl & _CPL
        if values.cs.l and self._efer.value & _EFER_LMA:
            return flags | _CS64 | _CS32 | _SS32
        flags |= (_CS32 if values.cs.db else 0) | (_SS32 if values.ss.db else 0)
        has_bases = values.ds.base or values.es.base or values.ss.base
        return flags | (_ADDSEG if not values.cr0 & _PE or not values.cs.db or has_bases else 0)

    def fxsave(self) -> bytes:
        """x87 and SSE registers as FXSAVE64 writes them (512 bytes)."""
        uc, area = self._engine.uc, bytearray(_FXSAVE_BYTES)
        area[0:2] = uc.read_register(_FPCW).to_bytes(2, "little")
        area[2:4] = uc.read_register(_FPSW).to_bytes(2, "little")
        tags, top = uc.read_register(_FPTAG), uc.read_register(_FPSW) >> _TOP & 7
        area[4] = sum(1 << number for number in range(8) if tags >> 2 * number & 3 != _EMPTY)
        area[24:28] = uc.read_register(_MXCSR).to_bytes(4, "little")
        area[28:32] = (0xFFFF).to_bytes(4, "little")
        for number in range(8):
            at = _ST_AT + 16 * number
            area[at : at + 10] = uc.read_register(_FP + (top + number) % 8, 10).to_bytes(10, "little")
        for number in range(16):
            at = _XMM_AT + 16 * number
            area[at : at + 16] = uc.read_register(_XMM + number, 16).to_bytes(16, "little")
        return bytes(area)

    def set_fxsave(self, area: bytes) -> None:
        """Set them."""
        uc, top = self._engine.uc, int.from_bytes(area[2:4], "little") >> _TOP & 7
        uc.write_register(_FPCW, int.from_bytes(area[0:2], "little"))
        uc.write_register(_FPSW, int.from_bytes(area[2:4], "little"))
        for number in range(8):
            at = _ST_AT + 16 * number
            uc.write_register(_FP + (top + number) % 8, int.from_bytes(area[at : at + 10], "little"), 10)
        for number in range(16):
            at = _XMM_AT + 16 * number
            uc.write_register(_XMM + number, int.from_bytes(area[at : at + 16], "little"), 16)
        tags = sum((0 if area[4] >> number & 1 else _EMPTY) << 2 * number for number in range(8))
        uc.write_register(_FPTAG, tags)
        uc.write_register(_MXCSR, int.from_bytes(area[24:28], "little") & 0xFFFF)


def _show(held: _Segment, shown: Segment) -> None:
    flags = held.flags
    shown.selector, shown.base, shown.limit = held.selector & 0xFFFF, held.base, held.limit
    shown.type, shown.s, shown.dpl, shown.present = (
        flags >> 8 & 15,
        flags >> 12 & 1,
        flags >> 13 & 3,
        flags >> 15 & 1,
    )
    shown.avl, shown.l, shown.db, shown.g = flags >> 20 & 1, flags >> 21 & 1, flags >> 22 & 1, flags >> 23 & 1
    shown.unusable = not shown.present


def _take(given: Segment, held: _Segment) -> None:
    held.selector, held.base, held.limit = given.selector, given.base, given.limit
    held.flags = (
        given.type << 8
        | given.s << 12
        | given.dpl << 13
        | given.present << 15
        | given.avl << 20
        | given.l << 21
        | given.db << 22
        | given.g << 23
    )
