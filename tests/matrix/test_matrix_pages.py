"""What ``casemate matrix`` writes for people and for CI systems."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.browser import chromium
from support.matrix_runs import RunMatrix

JUDGED = """
[[expect]]
where = { image = "two" }
outcome = "until"
"""


def test_the_page_links_reports_that_are_there_and_needs_nothing_from_elsewhere(
    run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    run_matrix(two_guests + JUDGED)
    page = (tmp_path / "results" / "matrix.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert links
    assert all((tmp_path / "results" / link).is_file() for link in links)
    assert "://" not in page
    assert "outcome is exit-port, not until" in page


@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_the_page_and_filters_it(
    width: int, run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    run_matrix(two_guests + JUDGED)
    source = json.dumps((tmp_path / "results" / "matrix.html").read_text()).replace("</", "<\\/")
    probe = f"""<iframe id=f style="width:{width}px;height:900px;border:0"></iframe><pre id=out></pre><script>
    const look = d => [d.documentElement.scrollWidth, d.querySelectorAll("tbody tr:not([hidden])").length,
      d.querySelectorAll("tbody td:not([hidden])").length, d.querySelectorAll("#bad li").length];
    f.onload = () => {{ const d = f.contentDocument, before = look(d);
      const choose = (axis, value) => {{ const s = d.querySelector(`select[data-axis="${{axis}}"]`);
        s.value = value; s.dispatchEvent(new Event("change")); }};
      choose("0", "linux-6.1"); const row = look(d);
      choose("1", "two"); const cell = look(d);
      choose("verdict", "good");
      out.textContent = JSON.stringify([before, row, cell, look(d)]); }};
    f.srcdoc = {source};</script>"""
    (tmp_path / "probe.html").write_text(probe)
    dom = chromium(tmp_path, f"file://{tmp_path}/probe.html", "--dump-dom", "--virtual-time-budget=5000")
    found = re.search(r'<pre id="out">(.*?)</pre>', dom)
    assert found, dom[-500:]
    widths, rows, cells, bad = zip(*json.loads(found[1]), strict=True)
    assert max(widths) <= width
    assert rows == (2, 1, 1, 0)
    assert cells == (4, 4, 2, 2)
    assert bad == (2, 2, 2, 2)


def test_junit_and_markdown_name_what_is_not_as_expected(
    run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    junit, markdown = tmp_path / "junit.xml", tmp_path / "summary.md"
    run_matrix(two_guests + JUDGED, "--junit", str(junit), "--markdown", str(markdown))
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "2", "0")
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["linux-6.1 two", "linux-6.18 two"]
    assert "4 cells: 2 good, 2 bad." in markdown.read_text()
    assert "| linux-6.1 two | bad | exit-port |  | outcome is exit-port, not until" in markdown.read_text()


def test_results_are_compared_with_those_of_another_folder(
    run_matrix: RunMatrix, two_guests: str, tmp_path: Path
) -> None:
    run_matrix(two_guests)
    (tmp_path / "results").rename(tmp_path / "yesterday")
    ran = run_matrix(
        two_guests.replace('memory = "4M"', 'memory = "0M"'), "--against", str(tmp_path / "yesterday")
    )
    assert ran.document["ran"] == 4
    assert "outcome: exit-port before, refused now" in ran.cells["linux-6.1 one"]["changes"]
    assert run_matrix(two_guests, "--against", str(tmp_path / "nowhere")).code == 4
