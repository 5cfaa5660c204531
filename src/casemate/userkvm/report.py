"""A summary as text and as a page of HTML (docs/guide/kvm.md)."""

from __future__ import annotations

import html
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
        lines += [f"  {line}" for line in _vm_lines(vm, summary["seconds"])]
    if summary["unknown_ioctls"]:
        names = ", ".join(f"{name} x{count}" for name, count in summary["unknown_ioctls"].items())
        lines.append(f"  refused as unknown: {names}")
    if summary["injected_faults"]:
        lines.append(f"  faults on demand: {', '.join(summary['injected_faults'])}")
    return "\n".join(lines)


def _vm_lines(vm: dict[str, Any], seconds: float) -> Iterable[str]:
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


def to_html(summaries: Iterable[dict[str, Any]]) -> str:
    """One page for all processes."""
    parts = ["<h1>casemate kvm</h1><p>Everything here is modelled.</p>"]
    for summary in summaries:
        parts.append(f"<h2>{html.escape(summary['program'])}, process {summary['pid']}</h2>")
        parts.append(f"<p>{html.escape(summary['era'])}, {summary['seconds']} s</p>")
        parts += [_list(_vm_lines(vm, summary["seconds"])) for vm in summary["vms"]]
        parts.append(
            "<h3>Capabilities</h3>"
            + _list(
                f"{row['capability']} of {row['asked_of']}: {row['answer']}"
                for row in summary["capabilities"]
            )
        )
        parts.append("<h3>Ioctls</h3>" + _list(f"{name}: {n}" for name, n in summary["ioctls"].items()))
        parts.append("<h3>Messages</h3>" + _list(summary["messages"]))
    head = "<!doctype html><meta charset=utf-8><title>casemate kvm</title>"
    return head + "<body style='font-family:sans-serif'>" + "".join(parts)


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
