"""Findings as SARIF, which code hosts and editors show beside the line (OASIS SARIF 2.1.0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from casemate.advise.rule import Finding, Severity
from casemate.version import __version__

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}


def sarif_of(findings: Sequence[Finding], file: str, tool: str = "casemate lint") -> dict[str, Any]:
    """One run of ``tool`` over ``file``; an empty name is a command line that is in no file."""
    ids = list(dict.fromkeys(finding.id for finding in findings))
    references = {finding.id: finding.reference for finding in findings}
    rules = [{"id": name, "help": {"text": f"See {references[name]}."}} for name in ids]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": tool, "version": __version__, "rules": rules}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, file, ids.index(finding.id)) for finding in findings],
            }
        ],
    }


def _result(finding: Finding, file: str, rule: int) -> dict[str, Any]:
    text = f"{finding.cause}; {finding.remedy} (option: {finding.option})"
    result: dict[str, Any] = {
        "ruleId": finding.id,
        "ruleIndex": rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
    }
    if file:
        place: dict[str, Any] = {"artifactLocation": {"uri": quote(file)}}
        if finding.line:
            place["region"] = {"startLine": finding.line, "startColumn": finding.column}
        result["locations"] = [{"physicalLocation": place}]
    return result
