"""vCPU signatures, CPUID leaf 1 EAX, which the save area shows in RDX (AMD 25481 CPUID specification, Fn0000_0001)."""

from __future__ import annotations

from casemate.abi.x86.signature import signature_of
from casemate.errors import SpecError

DEFAULT_VCPU_TYPE = "EPYC-v4"


def cpu_signature(family: int, model: int, stepping: int) -> int:
    """The signature of a family, model and stepping. Raises SpecError if a number does not fit."""
    for name, value, limit in (
        ("family", family, 0xF + 0xFF),
        ("model", model, 0xFF),
        ("stepping", stepping, 0xF),
    ):
        if not 0 <= value <= limit:
            raise SpecError(
                f"vCPU {name} {value} is not between 0 and {limit}", "give the numbers that CPUID shows"
            )
    return signature_of(family, model, stepping)


CPU_MODELS = {
    "EPYC": cpu_signature(23, 1, 2),
    "EPYC-IBPB": cpu_signature(23, 1, 2),
    "EPYC-Rome": cpu_signature(23, 49, 0),
    "EPYC-Milan": cpu_signature(25, 1, 1),
    "EPYC-Genoa": cpu_signature(25, 17, 0),
    "EPYC-Turin": cpu_signature(26, 0, 0),
}
"""QEMU's names of the CPUs that have SEV; all versions of one (``EPYC-v4``) share its signature."""


def model_signature(name: str) -> int:
    """The signature of a QEMU CPU model, with or without ``-vN``. Raises SpecError if the name is unknown."""
    model, _, version = name.rpartition("-v")
    signature = CPU_MODELS.get(model if version.isdigit() else name)
    if signature is None:
        known = ", ".join(CPU_MODELS)
        remedy = f"use one of {known}, with or without -vN; casemate measure also takes --vcpu-sig"
        raise SpecError(f"unknown vCPU type {name!r}", remedy)
    return signature
