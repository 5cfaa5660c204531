"""What the modelled CPU is, in the engine, and what a SEV guest is told beside (AMD APM volume 3, appendix E)."""

from __future__ import annotations

from ctypes import c_uint32, c_uint64
from typing import Protocol

from casemate.errors import HostError
from casemate.host.model.cpu.hooks import create_cpu, env_of
from casemate.host.model.cpu.processor import (
    ENGINE_WORDS,
    XSAVE_COMPONENTS_WORD,
    Leaf,
    Processor,
    everything,
)
from casemate.host.model.cpu.unicorn_api import Uc, x86_const

C_BIT = 39
"""Position of the encryption bit; the engine's CPU has 40 physical bits, hosts use 47 or 51."""

MAX_EXTENDED = 0x80000000
ADDRESS_SIZES = 0x80000008
ENCRYPTION = 0x8000001F
_SEV, _SEV_ES = 1 << 1, 1 << 3
_REDUCED_BITS = 1
_HTT, _CMP_LEGACY = 1 << 28, 1 << 1
"""Of leaf 1, EDX, and of AMD's leaf 0x80000001, ECX: there are several processors, none of them a thread."""
_LEVELS = 1, 2
"""Types of the levels of leaf 0xB: threads, cores."""
_SHARED_CACHE = 3
"""The level of the cache that all processors share."""
_ENV_VENDOR, _ENV_VERSION, _ENV_FEATURES = 0x15F0, 0x15FC, 0x1600
"""``cpuid_vendor1``, ``cpuid_version`` and ``features``, as loaded by ``cpu_x86_cpuid`` of Unicorn 2.1.4."""


def new_cpu(mode: int, processor: Processor) -> Uc:
    """An engine that executes what ``processor`` has.

    Raises UnsupportedError where there is no modelled CPU, HostError where there is no memory for one.
    """
    cpu = Uc(mode)
    cpu.set_model(x86_const.UC_CPU_X86_EPYC)
    try:
        create_cpu(cpu.handle)
    except HostError:
        cpu.keep_open()
        raise
    _become(env_of(cpu.handle), processor)
    cpu.write_register(x86_const.UC_X86_REG_EDX, processor.model.signature)
    return cpu


def _become(env: int, processor: Processor) -> None:
    vendor = processor.answer(0, 0)
    for number, value in enumerate((vendor.ebx, vendor.edx, vendor.ecx)):
        c_uint32.from_address(env + _ENV_VENDOR + 4 * number).value = value
    c_uint32.from_address(env + _ENV_VERSION).value = processor.model.signature
    words = {number: processor.word(name) for name, number in ENGINE_WORDS.items()}
    words[XSAVE_COMPONENTS_WORD] = processor.xsave_components
    for number, bits in words.items():
        c_uint64.from_address(env + _ENV_FEATURES + 8 * number).value = bits


class CpuidTable(Protocol):
    """What a guest is told."""

    def answer(self, leaf: int, index: int) -> Leaf:
        """EAX and ECX before, the leaf after. OSXSAVE, OSPKE and the area of XSAVE follow the CPU's state."""


class SevCpuid:
    """CPUID of a guest whose memory is encrypted."""

    def __init__(self, processor: Processor, *, sev_es: bool) -> None:
        self._processor = processor
        self._encryption = Leaf(_SEV | (_SEV_ES if sev_es else 0), C_BIT | _REDUCED_BITS << 6, 0, 0)

    def answer(self, leaf: int, index: int) -> Leaf:
        """The leaf as the guest shall see it."""
        if leaf == ENCRYPTION:
            return self._encryption
        native = self._processor.answer(leaf, index)
        return native._replace(eax=max(native.eax, ENCRYPTION)) if leaf == MAX_EXTENDED else native


class CpuidOfMany:
    """What one of ``count`` processors is told: ``table``, and which one it is. Each is a core of one package.

    Source: AMD APM volume 3, appendix E.4; Intel SDM volume 2, CPUID. A power of two of APIC IDs is set aside.
    """

    def __init__(self, table: CpuidTable, number: int, count: int) -> None:
        self._table = table
        self._number = number
        self._count = count
        self._bits = (count - 1).bit_length()

    def answer(self, leaf: int, index: int) -> Leaf:
        """The leaf as this processor's guest shall see it."""
        found, ids = self._table.answer(leaf, index), 1 << self._bits
        match leaf:
            case 1:
                ebx = found.ebx & 0xFFFF | ids << 16 | self._number << 24
                return found._replace(ebx=ebx, edx=found.edx | _HTT)
            case 4 if found.eax:
                sharing = ids - 1 if found.eax >> 5 & 7 == _SHARED_CACHE else 0
                return found._replace(eax=found.eax & 0x3FFF | sharing << 14 | (ids - 1) << 26)
            case 0xB if index < len(_LEVELS):
                shift, units = ((0, 1), (self._bits, self._count))[index]
                return Leaf(shift, units, _LEVELS[index] << 8 | index, self._number)
            case 0xB:
                return Leaf(0, 0, index & 0xFF, self._number)
            case 0x80000001 if found.eax:
                return found._replace(ecx=found.ecx | _CMP_LEGACY)
            case 0x80000008:
                return found._replace(ecx=self._bits << 12 | self._count - 1)
            case 0x8000001E:
                return Leaf(self._number, self._number, 0, 0)
        return found


def below_c_bit(eax: int) -> int:
    """EAX of ADDRESS_SIZES with no physical address that has the C-bit, which elsewhere is above all that is in use."""
    return eax & ~0xFF | min(eax & 0xFF, C_BIT)


def native_leaf(leaf: int, index: int = 0) -> Leaf:
    """What AMD's processor with all that is executed says of itself."""
    return everything().answer(leaf, index)
