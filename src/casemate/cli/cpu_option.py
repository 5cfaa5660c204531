"""``--cpu``: the modelled processor in QEMU's spelling, and the list of those that there are (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import textwrap

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice, find_model
from casemate.digest.cpu_models import model_signature
from casemate.errors import SpecError
from casemate.host.model.cpu.processor import EXECUTED, default_cpu, list_models, make_processor

_SHOWN, _WIDTH = 5, 110


def cpu_choice(text: str) -> CpuChoice:
    """An argparse type: a choice that can be had; ``help`` lists all, and ends. Raises ArgumentTypeError."""
    if text == "help":
        print(models_text())
        raise SystemExit(0)
    try:
        return processor_of(text)
    except SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def processor_of(text: str) -> CpuChoice:
    """The same, of QEMU's ``-cpu``. Raises SpecError."""
    choice = CpuChoice.parse(text)
    make_processor(choice)
    return choice


def processor_of_type(vcpu_type: str) -> CpuChoice:
    """The processor with the signature that a ``--vcpu-type`` has measured. Raises SpecError."""
    model_signature(vcpu_type)  # of which any version counts
    try:
        return CpuChoice(find_model(vcpu_type).name)
    except SpecError:
        return CpuChoice(vcpu_type.rpartition("-v")[0])


def cpu_warnings(cpu: CpuChoice, vcpu_type: str | None) -> list[str]:
    """What whoever chose a processor has to know."""
    warnings = []
    if left_out := make_processor(cpu).left_out:
        named = ", ".join(left_out[:_SHOWN]) + (
            f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        )
        warnings.append(f"CPU model {cpu.model} is modelled without {named} (casemate boot --cpu help)")
    signature = find_model(cpu.model).signature
    if vcpu_type is not None and model_signature(vcpu_type) != signature:
        cause = (
            f"measured is the vCPU type {vcpu_type}, and CPUID shows {cpu.model} (signature {signature:#x})"
        )
        warnings.append(f"{cause}: a guest that compares them sees it")
    return warnings


def models_text() -> str:
    """Every model, and what it is modelled without."""
    lines = ["CPU models (QEMU's; also with -vN), and what they are modelled without:"]
    for name, description, left_out in list_models():
        lines.append(f"  {name:<26} {description}")
        if left_out:
            lines.append(_wrapped("without " + " ".join(left_out), 6))
    usual, of_sev = default_cpu(GuestKind.PLAIN).model, default_cpu(GuestKind.SNP).model
    lines += [
        f"usual: {usual} for plain guests, {of_sev} for confidential ones",
        "features, as +NAME and -NAME:",
    ]
    return "\n".join([*lines, _wrapped(" ".join(sorted(EXECUTED)), 2)])


def _wrapped(text: str, indent: int) -> str:
    spaces = " " * indent
    return textwrap.fill(
        text, _WIDTH, initial_indent=spaces, subsequent_indent=spaces, break_on_hyphens=False
    )
