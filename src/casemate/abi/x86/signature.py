"""A processor's signature, by which CPUID leaf 1 and the digest's save areas name it (AMD 25481, Fn0000_0001)."""

from __future__ import annotations


def signature_of(family: int, model: int, stepping: int) -> int:
    """CPUID leaf 1, EAX, of numbers that fit."""
    extended_family, base_family = max(family - 0xF, 0), min(family, 0xF)
    return extended_family << 20 | (model >> 4) << 16 | base_family << 8 | (model & 0xF) << 4 | stepping
