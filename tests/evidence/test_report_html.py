"""The report of a run: what is in the page, that it is complete in itself, and how a browser shows it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.browser import chromium

from casemate.cli import main
from casemate.evidence.report_html import render_html
from casemate.evidence.timeline import make_timeline
from casemate.guests.actions import store_all, tell
from casemate.guests.entry import IMAGE_SIZE, make_image

UNIT1 = (1 << 32) - 2 * IMAGE_SIZE
SECTIONS = ["timeline", "violations", "firmware", "writes", "audit", "real", "reproduce"]
_VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a page is made of; raises if its elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.sections: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run(folder: Path, *options: str) -> dict[str, Any]:
    """A guest that probes, programs and erases its flash, then writes nonsense; its report in both forms."""
    stores = [(UNIT1, 0x70), (UNIT1, 0x10), (UNIT1, 0x5A), (UNIT1 + 0x2000, 0x20), (UNIT1 + 0x2000, 0xD0)]
    code = store_all([*stores, (UNIT1, 0xFF), (UNIT1 + 0x1234, 0x41)]) + tell(7)
    (folder / "code.fd").write_bytes(make_image(code, 32))
    (folder / "vars.fd").write_bytes(b"\xee" * IMAGE_SIZE)
    arguments = [
        "boot",
        "--code",
        str(folder / "code.fd"),
        "--vars",
        str(folder / "vars.fd"),
        "--memory",
        "4M",
    ]
    arguments += ["--machine", "bare", "--host", "model", "--serial", "none", "--timeout", "20", *options]
    for suffix in ("html", "json"):
        arguments += ["--report", str(folder / f"report.{suffix}")]
    main(arguments)
    document: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run(folder)
    return folder


def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_page_has_its_sections_and_what_they_are_about(folder: Path) -> None:
    found = Page(page(folder))
    assert found.sections == SECTIONS
    document = json.loads((folder / "report.json").read_text())
    flash = document["flash"]
    for text in (
        flash[0]["input_sha256"],
        flash[1]["sha256"],
        f"{UNIT1 + 0x1234:#x}",
        "mov byte ptr [0FFFE1234h],41h",
        "byte that is no flash command",
        "modelled host",
        "readonly-vma",
        f"casemate boot --code {folder}/code.fd",
    ):
        assert text in found.text, text
    assert flash[1]["input_sha256"] != flash[1]["sha256"]


def test_page_has_no_script_and_asks_for_nothing(folder: Path) -> None:
    found = Page(page(folder))
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(found.tags)
    names = {name for name, _ in found.attributes}
    assert not names & {"src", "href", "srcset", "action", "background"}
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in page(folder)
    assert "@import" not in page(folder)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def test_what_the_guest_says_is_text_and_nothing_else(folder: Path) -> None:
    document = json.loads((folder / "report.json").read_text())
    nasty = "</pre><script>alert(1)</script>\x1b[31m<b>\x00"
    document["serial"] = document["detail"] = nasty
    document["writes"]["units"][1]["variables"] = [{"name": nasty, "vendor": nasty, "bytes": 1}]
    found = Page(render_html(document))
    assert "script" not in found.tags
    assert found.text.count("<script>alert(1)</script>") == 4
    assert "\x1b" not in found.text.split("Console")[1]


def test_report_of_a_confidential_guest_shows_its_launch(folder: Path) -> None:
    document = json.loads((folder / "report.json").read_text())
    document["launch"] = {
        "state": "RUNNING", "vm_type": "KVM_X86_SEV_ES_VM", "init": "KVM_SEV_INIT2", "why": "debug-swap",
        "policy": 5, "vcpus": 1, "digest": "ab" * 32,
        "commands": [{"command": "KVM_SEV_LAUNCH_START", "detail": "policy 0x5"}],
    }  # fmt: skip
    document["measurement"] = {"mac": "cd" * 32, "note": "unverified: no TIK"}
    document["protection_audit"] = [{"what": "armed", "unit": 0, "why": "slot added", "at": 0.1}] * 300
    document["protection_changes"] = 5000
    found = Page(render_html(document))
    assert "launch" in found.sections
    for text in ("ab" * 32, "cd" * 32, "KVM_SEV_LAUNCH_START", "5,000 changes"):
        assert text in found.text
    assert len(render_html(document)) < 200_000
    document["launch"] = {"state": "failed", "error": "no", "commands": []}
    assert "failed" in Page(render_html(document)).text


@pytest.mark.parametrize("bios", [True, False])
def test_page_of_a_bios_guest_and_of_one_that_did_nothing(folder: Path, bios: bool) -> None:
    document = json.loads((folder / "report.json").read_text())
    document["writes"] |= {"units": [], "events": [], "violations": 0, "programs": 0, "erases": 0}
    document["seconds"] = 0.0
    if bios:
        unit = document["flash"][0]
        document |= {"flash": [], "bios": {key: value for key, value in unit.items() if key != "unit"}}
    found = Page(render_html(document))
    assert "No violations" in found.text
    assert ("--bios image" in found.text) is bios


def test_timeline_covers_the_run(folder: Path) -> None:
    document = json.loads((folder / "report.json").read_text())
    document["phases"] = [{"name": "PEI", "at": 0.25}, {"name": "DXE", "at": 0.5}]
    document["seconds"] = 1.0
    timeline = make_timeline(document)
    assert [phase.name for phase in timeline.phases] == ["SEC", "PEI", "DXE"]
    assert sum(phase.width for phase in timeline.phases) == pytest.approx(100, abs=0.01)
    assert all(0 <= mark.left <= 100 for mark in (*timeline.violations, *timeline.ticks))
    assert all(0 < bar.height <= 100 for bar in timeline.commands)
    assert len(timeline.violations) == 1


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("report.txt", 2, "neither .html nor .json"), ("no/report.html", 4, "is no folder")],
)
def test_report_that_cannot_be_written_is_refused(
    name: str, code: int, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["boot", "--bios", str(folder / "code.fd"), "--memory", "4M", "--machine", "bare"]
    try:
        ended = main([*arguments, "--serial", "none", "--report", str(tmp_path / name)])
    except SystemExit as error:
        ended = int(str(error.code))
    assert ended == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("width", [400, 1280])
def test_browser_shows_all_of_it_without_scrolling_sideways(width: int, folder: Path, tmp_path: Path) -> None:
    source = json.dumps(page(folder)).replace("</", "<\\/")
    probe = f"""<iframe id=f style="width:{width}px;height:900px;border:0"></iframe><pre id=out></pre><script>
    f.onload = () => {{ const d = f.contentDocument, r = [d.documentElement.scrollWidth,
      ...[...d.querySelectorAll("section")].map(s => s.id + ":" + Math.round(s.getBoundingClientRect().height)),
      "font:" + getComputedStyle(d.querySelector("td, dd")).fontSize];
      out.textContent = r.join(" "); }};
    f.srcdoc = {source};</script>"""
    (tmp_path / "probe.html").write_text(probe)
    dom = chromium(tmp_path, f"file://{tmp_path}/probe.html", "--dump-dom", "--virtual-time-budget=2000")
    found = re.search(r'<pre id="out">(.*?)</pre>', dom)
    assert found, dom[-500:]
    widest, *sections, font = found[1].split()
    assert int(widest) <= width
    assert [section.split(":")[0] for section in sections] == SECTIONS
    assert all(int(section.split(":")[1]) > 40 for section in sections)
    assert float(font.removeprefix("font:").removesuffix("px")) >= 13


def test_browser_prints_it(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    chromium(tmp_path, f"file://{folder}/report.html", f"--print-to-pdf={target}", "--no-pdf-header-footer")
    pages = target.read_bytes().count(b"/Type /Page\n")
    assert 1 <= pages <= 6
