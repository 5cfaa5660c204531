"""The results of a matrix for CI systems: JUnit's XML as Jenkins and GitLab read it, and Markdown (CommonMark, GFM)."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

from casemate.matrix.judge import Judged, Verdict
from casemate.matrix.plan import Matrix

_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not have, in any spelling."""


def to_junit(matrix: Matrix, judged: list[Judged]) -> bytes:
    """One test case for each cell; what is not as expected is a failure, what has not run is skipped."""
    counts = Counter(each.verdict for each in judged)
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(matrix.name),
        tests=str(len(judged)),
        failures=str(counts[Verdict.BAD]),
        skipped=str(counts[Verdict.MISSING]),
        time=f"{sum(each.record.result['seconds'] for each in judged if each.record):.3f}",
    )
    for each in judged:
        seconds = each.record.result["seconds"] if each.record else 0.0
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_clean(matrix.name),
            name=_clean(each.cell.name),
            time=f"{seconds:.3f}",
        )
        if each.verdict is Verdict.BAD:
            text = "\n".join((*each.reasons, *each.changes))
            ElementTree.SubElement(case, "failure", message=_clean(each.reasons[0])).text = _clean(text)
        elif each.verdict is Verdict.MISSING:
            ElementTree.SubElement(case, "skipped", message="it has not run")
    found: bytes = ElementTree.tostring(suite, "utf-8", xml_declaration=True)
    return found


def to_markdown(matrix: Matrix, judged: list[Judged]) -> str:
    """Counts, and a table of the cells that are not as expected, changed, or end differently each time."""
    counts = Counter(each.verdict for each in judged)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    lines = [f"## {_escape(matrix.name)}", "", f"{len(judged)} cells: {told}."]
    shown = [each for each in judged if each.verdict is not Verdict.GOOD or each.changes or each.is_flaky]
    if shown:
        lines += ["", "| cell | verdict | outcome | conformance | why |", "|---|---|---|---|---|"]
    for each in shown:
        outcome = each.record.result["outcome"] if each.record else ""
        why = [*each.reasons, *(f"changed: {change}" for change in each.changes)]
        why += ["flaky"] if each.is_flaky else []
        cells = (each.cell.name, str(each.verdict), outcome, _conformance(each), "; ".join(why))
        lines.append(f"| {' | '.join(map(_escape, cells))} |")
    return "\n".join(lines) + "\n"


def _conformance(judged: Judged) -> str:
    result = judged.record.result if judged.record else {}
    if "kept_rules" not in result:
        return ""
    broken = result["broken_rules"]
    return f"breaks {', '.join(broken)}" if broken else f"{len(result['kept_rules'])} kept"


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)


def _escape(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split()))
