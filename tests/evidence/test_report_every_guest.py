"""A report of every kind of guest, started in every way, and how a browser shows it (docs/guide/evidence.md)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.browser import chromium
from support.confidential_launches import write_guest, write_variables
from support.firmware_images import require_kernel
from test_report_html import Page

from casemate.cli import main
from casemate.guests.actions import tell
from casemate.testing.images import ImageBuilder

SNP_SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
RUNS = [
    (guest, way)
    for guest in ("plain", "sev", "sev-es", "snp")
    for way in ("flash", "bios", "kernel")
    if (guest, way) != ("snp", "flash")  # no SNP VM has read-only slots, and this is refused
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page for each kind of guest and way to start it."""
    folder = tmp_path_factory.mktemp("reports")
    image, variables, kernel = write_guest(folder, tell(7)), write_variables(folder), require_kernel()
    snp = folder / "snp.fd"
    snp.write_bytes(ImageBuilder().reset_block(0x80B004).sev_metadata(*SNP_SECTIONS).build())
    ways = {
        "flash": ["--code", str(image), "--vars", str(variables)],
        "bios": ["--bios", str(image)],
        "kernel": ["--kernel", str(kernel), "--append", "console=ttyS0", "--until", "Linux version"],
    }
    pages = {}
    for guest, way in RUNS:
        page = folder / f"{guest}-{way}.html"
        words = [
            "boot",
            "--host",
            "model",
            "--serial",
            "none",
            "--timeout",
            "60",
            "--guest",
            guest,
            *ways[way],
        ]
        if (guest, way) == ("snp", "bios"):
            words = [*words[:-1], str(snp), "--launch-only"]
        assert main([*words, "--report", str(page)]) == 0
        pages[f"{guest} by {way}"] = page
    return pages


@pytest.mark.boot
def test_every_page_is_whole_and_says_what_was_started(reports: dict[str, Path]) -> None:
    assert len(reports) == len(RUNS)
    for name, path in reports.items():
        page, (guest, _, way) = Page(path.read_text()), name.split()
        assert re.search(rf"\bguest\s+{guest}\s", page.text), name
        assert ("launch" in page.sections) == (guest != "plain"), name
        assert ("without firmware" in page.text) == (way == "kernel"), name
        assert ("--bios image" in page.text) == (way == "bios"), name


@pytest.mark.boot
def test_browser_shows_each_of_them_without_scrolling_sideways(
    reports: dict[str, Path], tmp_path: Path
) -> None:
    sources = json.dumps({name: path.read_text() for name, path in reports.items()}).replace("</", "<\\/")
    probe = f"""<pre id=out></pre><script>
    const found = {{}}, sources = {sources};
    Promise.all(Object.keys(sources).map(name => new Promise(done => {{
      const frame = document.createElement("iframe");
      frame.style = "width:400px;height:900px;border:0";
      frame.onload = () => {{
        const page = frame.contentDocument;
        found[name] = [page.documentElement.scrollWidth,
          ...[...page.querySelectorAll("section")].map(s => Math.round(s.getBoundingClientRect().height))];
        done();
      }};
      frame.srcdoc = sources[name];
      document.body.append(frame);
    }}))).then(() => out.textContent = JSON.stringify(found));</script>"""
    (tmp_path / "probe.html").write_text(f"<body>{probe}</body>")
    dom = chromium(tmp_path, f"file://{tmp_path}/probe.html", "--dump-dom", "--virtual-time-budget=5000")
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', dom)
    assert found, dom[-500:]
    shown = json.loads(found[1])
    assert set(shown) == set(reports)
    for name, (widest, *heights) in shown.items():
        assert widest <= 400, name
        assert min(heights) > 40, name
        assert len(heights) >= 7, name
