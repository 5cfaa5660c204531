"""The pages that an SNP guest finds prepared: its secrets and its CPUID table (AMD 56860, SNP_LAUNCH_UPDATE)."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_uint8, c_uint32, c_uint64

from casemate.abi.layout import Struct

MAX_CPUID_ENTRIES = 64


XSAVE_LEAF, XSAVE_LEGACY_SIZE = 0xD, 0x240
"""Leaf 0xD, subleaves 0 and 1, with nothing but the legacy area and header enabled: their EBX."""

REFUSED_FEATURES = {
    (0x1, 0, "ecx"): 1 << 24,  # TSC deadline timer
    (0x7, 0, "ebx"): 1 << 1,  # TSC_ADJUST
    (0x7, 0, "edx"): 0x3F << 26,  # SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, CORE_CAPABILITIES, SSBD
    (0x80000008, 0, "ebx"): 1 << 25,  # VIRT_SSBD
}
"""By leaf, subleaf and register: what KVM offers guests and the firmware refuses (QEMU target/i386/sev.c)."""


class CpuidFunction(Struct):
    """One answer of CPUID; ``ecx_in``, ``xcr0_in`` and ``xss_in`` are zero where they do not matter."""

    SIZE = 48
    SOURCE = "AMD 56860, CPUID_FUNCTION"
    _fields_ = (
        ("eax_in", c_uint32),
        ("ecx_in", c_uint32),
        ("xcr0_in", c_uint64),
        ("xss_in", c_uint64),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("reserved", c_uint64),
    )


class CpuidPage(Struct):
    """The table; the page behind it is zero."""

    SIZE = 16 + MAX_CPUID_ENTRIES * CpuidFunction.SIZE
    SOURCE = "AMD 56860, SNP_LAUNCH_UPDATE, CPUID page"
    _fields_ = (
        ("count", c_uint32),
        ("reserved_0x4", c_uint32),
        ("reserved_0x8", c_uint64),
        ("entries", CpuidFunction * MAX_CPUID_ENTRIES),
    )

    def used(self) -> Iterator[CpuidFunction]:
        """The entries that count."""
        yield from self.entries[: min(self.count, MAX_CPUID_ENTRIES)]


class SecretsPage(Struct):
    """What the firmware tells the guest alone: keys to talk to it with, one for each VMPL."""

    SIZE = 0x160
    SOURCE = "AMD 56860, SNP_LAUNCH_UPDATE, secrets page"
    VERSION = 3
    _fields_ = (
        ("version", c_uint32),
        ("imi_en", c_uint32),
        ("fms", c_uint32),
        ("reserved_0xc", c_uint32),
        ("gosvw", c_uint8 * 16),
        ("vmpck0", c_uint8 * 32),
        ("vmpck1", c_uint8 * 32),
        ("vmpck2", c_uint8 * 32),
        ("vmpck3", c_uint8 * 32),
        ("guest_reserved", c_uint8 * 96),
        ("vmsa_tweak_bitmap", c_uint64 * 8),
        ("guest_reserved_2", c_uint8 * 32),
    )
