"""A pytest plugin: asks kvm_amd in the lab for the rules that the model is held to, and prints a table.

``./dev lab --rules`` loads it (docs/design/lab.md).
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import NamedTuple

import pytest

from tools.lab.differences import DIFFERENCES

RULES_ON = "CASEMATE_RULES_ON"
"""``kvm`` has the rigs of these tests be on the machine's KVM."""
_OUTCOMES = {
    "passed": "passed",
    "skipped": "skipped",
    "xfailed": "differs",
    "xpassed": "passed, unlike before",
    "failed": "FAILED",
    "error": "FAILED",
}
"""pytest's categories, as the table says them."""


class _Case(NamedTuple):
    outcome: str
    why: str


def pytest_configure(config: pytest.Config) -> None:
    """The rules are asked of KVM."""
    del config
    os.environ[RULES_ON] = "kvm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases on the model are left out; known differences fail nothing, and another processor may not have them."""
    items[:] = [item for item in items if _host_of(item) != "model"]
    for item in items:
        rule, _, case = item.name.removeprefix("test_").partition("[")
        for known in DIFFERENCES:
            if known.rule == rule and known.case in f"[{case}":
                item.add_marker(pytest.mark.xfail(reason=known.why, strict=False))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A row for each rule, outcome and reason."""
    rules: dict[str, list[_Case]] = defaultdict(list)
    for category, outcome in _OUTCOMES.items():
        for report in terminalreporter.getreports(category):
            name = report.nodeid.split("::")[-1].split("[")[0]
            rules[name.removeprefix("test_").replace("_", " ")].append(_Case(outcome, _reason_of(report)))
    terminalreporter.write_line("| rule | cases | outcome | why |\n|---|---|---|---|")
    for rule, cases in sorted(rules.items()):
        for case in sorted(set(cases)):
            terminalreporter.write_line(f"| {rule} | {cases.count(case)} | {case.outcome} | {case.why} |")


def _host_of(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get("host")


def _reason_of(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail)
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return "" if report.longrepr is None else report.longreprtext.splitlines()[-1]
