"""Summaries as a page of HTML (docs/guide/kvm.md)."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from casemate.userkvm.report import vm_lines


def to_html(summaries: Iterable[dict[str, Any]]) -> str:
    """One page for all processes."""
    parts = ["<h1>casemate kvm</h1><p>Everything here is modelled.</p>"]
    for summary in summaries:
        parts.append(f"<h2>{html.escape(summary['program'])}, process {summary['pid']}</h2>")
        parts.append(f"<p>{html.escape(summary['era'])}, {summary['seconds']} s</p>")
        parts += [_list(vm_lines(vm, summary["seconds"])) for vm in summary["vms"]]
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
