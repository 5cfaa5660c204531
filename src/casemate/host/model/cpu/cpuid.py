"""What the modelled CPU says of itself, and what a SEV guest is told beside (AMD APM volume 3, appendix E).

The engine's own answers are asked for on a scratch engine, once a process: a SEV-ES guest's CPU raises #VC instead.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Protocol

from unicorn import Uc, unicorn_const, x86_const

from casemate.errors import HostError
from casemate.host.model.cpu.hooks import create_cpu
from casemate.native.code import guest_code

C_BIT = 39
"""Position of the encryption bit; the engine's CPU has 40 physical bits, hosts use 47 or 51."""

MAX_EXTENDED = 0x80000000
ENCRYPTION = 0x8000001F
_SEV, _SEV_ES = 1 << 1, 1 << 3
_REDUCED_BITS = 1
_INDEXED = frozenset({4, 7, 0xB, 0xD, 0x14})
_REGISTERS = tuple(getattr(x86_const, f"UC_X86_REG_{name}") for name in ("RAX", "RBX", "RCX", "RDX"))


def new_cpu(mode: int, *, amd: bool) -> Uc:
    """An engine whose CPU is AMD's, as guests of SEV expect it, or the engine's usual one (Intel's).

    Raises UnsupportedError where there is no modelled CPU, HostError where there is no memory for one.
    """
    cpu = Uc(unicorn_const.UC_ARCH_X86, mode)
    if amd:
        cpu.ctl_set_cpu_model(x86_const.UC_CPU_X86_EPYC)
    try:
        create_cpu(cpu._uch.value)
    except HostError:
        _given_up.append(cpu)
        raise
    return cpu


_given_up: list[Uc] = []
"""Engines that must not even be closed."""


class Leaf(NamedTuple):
    """EAX, EBX, ECX and EDX of one CPUID leaf."""

    eax: int
    ebx: int
    ecx: int
    edx: int


class CpuidTable(Protocol):
    """What a guest is told."""

    def answer(self, leaf: int, index: int) -> Leaf:
        """EAX and ECX before, the leaf after. OSXSAVE follows CR4, whatever is said here."""


class SevCpuid:
    """CPUID of a guest whose memory is encrypted."""

    def __init__(self, *, sev_es: bool) -> None:
        self._encryption = Leaf(_SEV | (_SEV_ES if sev_es else 0), C_BIT | _REDUCED_BITS << 6, 0, 0)

    def answer(self, leaf: int, index: int) -> Leaf:
        """The leaf as the guest shall see it."""
        if leaf == ENCRYPTION:
            return self._encryption
        native = native_leaf(leaf, index)
        return native._replace(eax=max(native.eax, ENCRYPTION)) if leaf == MAX_EXTENDED else native


def native_leaf(leaf: int, index: int = 0) -> Leaf:
    """What the engine's CPU, AMD's, says of itself."""
    return _native(leaf, index if leaf in _INDEXED else 0)


@cache
def _native(leaf: int, index: int) -> Leaf:
    scratch = _scratch_engine()
    scratch.reg_write(x86_const.UC_X86_REG_RAX, leaf)
    scratch.reg_write(x86_const.UC_X86_REG_RCX, index)
    scratch.emu_start(0x1000, 0x1002)
    return Leaf(*(scratch.reg_read(register) & 0xFFFFFFFF for register in _REGISTERS))


@cache
def _scratch_engine() -> Uc:
    scratch = new_cpu(unicorn_const.UC_MODE_64, amd=True)
    scratch.mem_map(0x1000, 0x1000)
    scratch.mem_write(0x1000, guest_code("host/model/cpu/cpuid.ask"))
    return scratch
