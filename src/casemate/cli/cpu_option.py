"""``--cpu``: the modelled processor in QEMU's spelling, and the list of those that there are (docs/guide/boot.md)."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any

from casemate.abi.guest_kind import GuestKind
from casemate.abi.x86.cpu_models import CpuChoice, find_model
from casemate.digest.cpu_models import model_signature
from casemate.errors import SpecError
from casemate.host.model.cpu.processor import EXECUTED, default_cpu, list_models, make_processor

_SHOWN, _WIDTH = 5, 110


class CpuAction(argparse.Action):
    """Takes a choice that can be had, and lists all at ``help``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Set it, or end with the list; the wrong word ends in a usage error."""
        if values == "help":
            print(models_text())
            parser.exit(0)
        try:
            choice = CpuChoice.parse(str(values))
            make_processor(choice)
        except SpecError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, choice)


def chosen_cpu(args: argparse.Namespace) -> CpuChoice | None:
    """The processor that ``--cpu`` names, else that of the signature that is measured; None for a usual one."""
    cpu: CpuChoice | None = args.cpu
    if cpu is not None or args.vcpu_type is None:
        return cpu
    model_signature(args.vcpu_type)  # of which any version counts
    try:
        return CpuChoice(find_model(args.vcpu_type).name)
    except SpecError:
        return CpuChoice(args.vcpu_type.rpartition("-v")[0])


def measured_signature(args: argparse.Namespace) -> int:
    """CPUID's signature as a launch measures it: that of ``--vcpu-type``, else of the processor."""
    if args.vcpu_type is not None:
        return model_signature(args.vcpu_type)
    return find_model((args.cpu or default_cpu(GuestKind(args.guest))).model).signature


def cpu_warnings(args: argparse.Namespace) -> list[str]:
    """What whoever chose a processor has to know."""
    cpu: CpuChoice | None = args.cpu
    if cpu is None:
        return []
    warnings = []
    if left_out := make_processor(cpu).left_out:
        named = ", ".join(left_out[:_SHOWN]) + (
            f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
        )
        warnings.append(f"CPU model {cpu.model} is modelled without {named} (casemate boot --cpu help)")
    signature = find_model(cpu.model).signature
    if args.vcpu_type is not None and model_signature(args.vcpu_type) != signature:
        cause = f"measured is the vCPU type {args.vcpu_type}, and CPUID shows {cpu.model} (signature {signature:#x})"
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
    return textwrap.fill(text, _WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
