"""A summary as text (docs/guide/kvm.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_MOST = 8


def to_text(summary: dict[str, Any]) -> str:
    """Some lines for a terminal."""
    lines = [
        f"casemate: summary of {summary['program']} (process {summary['pid']}): modelled {summary['era']}, "
        f"{summary['seconds']:.1f} s"
    ]
    for vm in summary["vms"]:
        lines += [f"  {line}" for line in vm_lines(vm, summary["seconds"])]
    if summary["unknown_ioctls"]:
        names = ", ".join(f"{name} x{count}" for name, count in summary["unknown_ioctls"].items())
        lines.append(f"  refused as unknown: {names}")
    if summary["injected_faults"]:
        lines.append(f"  faults on demand: {', '.join(summary['injected_faults'])}")
    return "\n".join(lines)


def vm_lines(vm: dict[str, Any], seconds: float) -> Iterable[str]:
    """What is to be said of one VM of a process that ran for ``seconds``."""
    yield f"{vm['type']}, {vm['guest']} guest, {len(vm['slots'])} slots"
    exits = {name: count for name, count in vm["exits"].items() if count}
    rates = (f"{name} {count} ({count / max(seconds, 0.001):,.0f}/s)" for name, count in exits.items())
    yield "exits: " + (", ".join(rates) or "none")
    if vm["digest"]:
        yield f"launch digest {vm['digest']}"
    if vm["conversions"]:
        yield "pages converted: " + ", ".join(f"{pages} {what}" for what, pages in vm["conversions"].items())
    yield from vm["protection"][-_MOST:]
    yield from (f"violation: {text}" for text in vm["violations"])
